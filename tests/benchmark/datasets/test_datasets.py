import hashlib
import io
import json
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from sklearn.datasets import load_digits
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, interpolate
from torchvision.datasets import CIFAR10, CIFAR100

from bdbench.datasets import digits, gtsrb, images, parquet, toy
from bdbench.datasets.base import Dataset, Source, fingerprint, stratified
from bdbench.datasets.cifar10 import CLASSES, FOLDER
from bdbench.datasets.files import Located, content_of
from bdbench.datasets.registry import datasets
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput
from bdbench.storage.cache import Cache
from bdbench.storage.folders import roots

ROWS = 20


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def pictures(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def huge_header(width: int, height: int) -> bytes:
    """A PNG of one pixel that claims to be larger."""
    content = bytearray(encoded(pictures(1, 1)[0]))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    # Readers check the checksum of the header.
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def write(
    path: Path,
    contents: list[bytes | None],
    labels: list[int | None],
    image: str = "image",
    names: tuple[str, ...] = (),
) -> None:
    structs = [None if c is None else {"bytes": c, "path": "x.png"} for c in contents]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(structs, kind), "label": pa.array(labels, pa.int64())})
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        metadata = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)


def write_cifar(root: Path, **options: object) -> None:
    """ROWS training images in two shards and as many test images."""
    train, test = pictures(ROWS), pictures(ROWS, seed=1)
    labels = [row % 10 for row in range(ROWS)]
    folder, half = root / "cifar10", ROWS // 2
    for shard, rows in enumerate((slice(0, half), slice(half, ROWS))):
        name = f"train-{shard:05d}-of-00002.parquet"
        write(folder / name, [encoded(p) for p in train[rows]], labels[rows], **options)
    write(folder / "test-00000-of-00001.parquet", [encoded(p) for p in test], labels, **options)


def load(name: str, root: Path, cache: Path | None = None) -> Dataset:
    return datasets.build(name).load([root], Cache(cache or root / "cache"))


def refusal(name: str, root: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        load(name, root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2)


@pytest.mark.parametrize("image", ["image", "img"])
def test_parquet_is_decoded_exactly(tmp_path: Path, image: str) -> None:
    write_cifar(tmp_path, image=image)
    data = load("cifar10", tmp_path)
    assert data.train.images.equal(chw(pictures(ROWS)))
    assert data.test.images.equal(chw(pictures(ROWS, seed=1)))
    assert data.train.labels.tolist() == [row % 10 for row in range(ROWS)]
    assert data.class_names == CLASSES
    assert data.notes == (
        "20 training images, the official cifar10 has 50,000",
        "20 test images, the official cifar10 has 10,000",
    )
    assert datasets.build("cifar10").locate([tmp_path]) == f"parquet in {tmp_path / 'cifar10'}"


def test_class_names_come_from_the_schema(tmp_path: Path) -> None:
    write_cifar(tmp_path, names=tuple("abcdefghij"))
    assert load("cifar10", tmp_path).class_names == tuple("abcdefghij")
    write_cifar(tmp_path, names=("a", "b"))
    assert "names 2 classes; 10 are needed" in refusal("cifar10", tmp_path)


@pytest.mark.parametrize(
    "metadata", ["{", "[]", '{"info": null}', '{"info": {"features": {"label": 3}}}', "[" * 10**5]
)
def test_odd_schema_metadata_names_no_classes(metadata: str) -> None:
    assert parquet._class_names({b"huggingface": metadata.encode()}, "label") == ()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "PPM", "BMP", "TIFF"])
def test_image_formats(kind: str) -> None:
    flat = np.full((32, 32, 3), 77, dtype=np.uint8)
    assert images.decode(encoded(flat, kind), 32, None, "x") == b"M" * 3072


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def ramp(kind: str) -> np.ndarray:
    """32 x 32 levels of grey from the lowest to the highest of 16 bits."""
    return np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(kind)


DEEP = {
    "PNG": saved(Image.frombytes("I;16", (32, 32), ramp("<u2").tobytes()), "PNG"),
    "TIFF": saved(Image.frombytes("I;16", (32, 32), ramp("<u2").tobytes()), "TIFF"),
    "big-endian TIFF": saved(Image.frombytes("I;16B", (32, 32), ramp(">u2").tobytes()), "TIFF"),
    "PPM": b"P5 32 32 65535\n" + ramp(">u2").tobytes(),
    "coloured PPM": b"P6 32 32 65535\n" + np.repeat(ramp(">u2"), 3).tobytes(),
}


@pytest.mark.parametrize("content", [pytest.param(each, id=name) for name, each in DEEP.items()])
def test_of_sixteen_bits_the_upper_eight_stay(content: bytes) -> None:
    found = np.frombuffer(images.decode(content, 32, None, "x"), np.uint8).reshape(3, 32, 32)
    expected = ramp("u2") >> 8
    # Pillow itself rounds when it reads three channels.
    assert all(abs(channel.astype(int) - expected).max() <= 1 for channel in found)


def tiff(
    bits: int, pair: bytes, photometric: int = 1, sample_format: int = 1, order: str = "<"
) -> bytes:
    """A TIFF of 32 x 32 levels of grey, a pair of them repeated. Pillow cannot write most kinds.

    photometric: 0 if level 0 is white, 1 if it is black
    sample_format: 1 for unsigned integers, 2 for signed ones
    """
    stored = pair * 512
    tags = {256: 32, 257: 32, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 32}
    tags |= {279: len(stored), 339: sample_format}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()]
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    return start + b"".join(entries) + bytes(4) + stored


def coloured_png(pair: bytes) -> bytes:
    """A PNG of 32 x 32 pixels of three times 16 bits, which Pillow cannot write."""
    row = b"\0" + b"".join(pair[at : at + 2] * 3 for at in (0, 2)) * 16
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0),
        b"IDAT": zlib.compress(row * 32),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


TWELVE_BITS = struct.pack(">HH", 0x123, 0xFED)
LITTLE, BIG = (struct.pack(f"{order}HH", 0x1234, 0xFEDC) for order in "<>")
DARK_AND_BRIGHT = {
    "TIFF of 8 bits": tiff(8, b"\x12\xfe"),
    "TIFF of 8 bits from white": tiff(8, b"\xed\x01", photometric=0),
    "TIFF of 12 bits": tiff(12, b"\x12\x3f\xed"),
    "TIFF of 16 bits": tiff(16, LITTLE),
    "TIFF of 16 bits from white": tiff(16, bytes(255 - byte for byte in LITTLE), photometric=0),
    "big-endian TIFF of 16 bits": tiff(16, BIG, order=">"),
    "PGM of 12 bits": b"P5 32 32 4095\n" + TWELVE_BITS * 512,
    "PGM in words": b"P2 32 32 4095\n" + b"291 4077 " * 512,
    "PPM of 12 bits": b"P6 32 32 4095\n"
    + b"".join(TWELVE_BITS[at : at + 2] * 3 for at in (0, 2)) * 512,
    "PNG of three times 16 bits": coloured_png(BIG),
}


@pytest.mark.parametrize("kind", DARK_AND_BRIGHT)
def test_levels_are_read_in_their_own_number_of_bits_and_from_black(kind: str) -> None:
    levels = np.frombuffer(images.decode(DARK_AND_BRIGHT[kind], 32, None, "x"), np.uint8)
    assert levels.reshape(-1, 2).tolist() == [[0x12, 0xFE]] * (3 * 512)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tiff(32, LITTLE * 2), "pixels of 32-bit integers, whose range"),
        (saved(Image.fromarray(ramp("f4")), "TIFF"), "pixels of floating point, whose range of"),
        (saved(Image.new("LAB", (32, 32)), "TIFF"), "image has pixels of the kind LAB"),
        (saved(Image.fromarray(ramp("i4") * 9), "TIFF"), "pixels of signed integers, whose range"),
        (tiff(8, b"\x12\xfe", sample_format=2), "pixels of signed integers, whose range of"),
        (tiff(16, LITTLE, sample_format=2), "pixels of signed integers, whose range of"),
    ],
    ids=["I", "F", "LAB", "signed 32 bits", "signed 8 bits", "signed 16 bits"],
)
def test_pixels_of_an_unknown_range_are_refused_in_words(content: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=f"^x: image has {said.removeprefix('image has ')}"):
        images.decode(content, 32, None, "x")


RED, CLEAR = (200, 10, 20), (200, 10, 20, 0)
KINDS = {
    "palette": (saved(Image.new("RGB", (32, 32), RED).quantize(4), "PNG"), RED),
    "transparent palette": (
        saved(Image.new("RGB", (32, 32), RED).quantize(4), "PNG", transparency=0),
        RED,
    ),
    "alpha": (saved(Image.new("RGBA", (32, 32), CLEAR), "PNG"), RED),
    "alpha of WebP": (saved(Image.new("RGBA", (32, 32), RED), "WEBP", lossless=True), RED),
    "grey and alpha": (saved(Image.new("LA", (32, 32), (77, 0)), "PNG"), (77, 77, 77)),
    "transparent colour": (
        saved(Image.new("RGB", (32, 32), RED), "PNG", transparency=RED),
        RED,
    ),
    "black and white": (saved(Image.new("1", (32, 32), 1), "PNG"), (255, 255, 255)),
    "CMYK": (saved(Image.new("CMYK", (32, 32), (55, 245, 235, 0)), "TIFF"), RED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_has_the_colour_that_is_stored_whatever_its_transparency(kind: str) -> None:
    content, expected = KINDS[kind]
    found = np.frombuffer(images.decode(content, 32, None, "x"), np.uint8).reshape(3, -1)
    assert found.min(1).tolist() == found.max(1).tolist() == list(expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(9))
def test_an_image_is_oriented_as_its_exif_says(orientation: int, kind: str) -> None:
    levels = np.zeros((32, 32, 3), dtype=np.uint8)
    levels[:16, :16], levels[:16, 16:], levels[16:, :16] = 240, 160, 80
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = saved(Image.fromarray(levels), kind, exif=exif)
    found = np.frombuffer(images.decode(content, 32, None, "x"), np.uint8).reshape(3, 32, 32)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert found.transpose(1, 2, 0).tolist() == np.asarray(upright).tolist()
    moved = orientation > 1
    assert (abs(found[0, ::31, ::31].astype(int) - [[240, 160], [80, 0]]).max() > 9) == moved


def test_a_damaged_exif_turns_nothing() -> None:
    content = saved(Image.fromarray(pictures(1)[0]), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert images.decode(content, 32, None, "x") == chw(pictures(1)).numpy().tobytes()


@pytest.mark.parametrize(
    ("name", "folder"),
    [(name, below) for name in ("cifar10", "cifar100") for below in ("data", "plain_text", name)],
)
def test_parquet_is_found_where_hubs_put_it(name: str, folder: str, tmp_path: Path) -> None:
    base = tmp_path / name / folder
    assert f"{name}/[data/|plain_text/|{name}/]{{train,test}}-*.parquet" in refusal(name, tmp_path)
    for split, seed in (("train", 0), ("test", 1)):
        contents = [encoded(picture) for picture in pictures(ROWS, seed=seed)]
        write(base / f"{split}-00000-of-00001.parquet", contents, [n % 10 for n in range(ROWS)])
    assert load(name, tmp_path).train.images.equal(chw(pictures(ROWS)))
    assert datasets.build(name).locate([tmp_path]) == f"parquet in {base}"


def test_parquet_files_of_other_splits_are_named(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    assert not any("left out" in note for note in load("cifar10", tmp_path).notes)
    (tmp_path / "cifar10/validation-00000-of-00001.parquet").touch()
    note = "left out 1, as not {train,test}-*.parquet: validation-00000-of-00001.parquet"
    assert note in load("cifar10", tmp_path).notes


def test_grey_and_palette_images_become_colour() -> None:
    grey = Image.fromarray(np.full((32, 32), 77, dtype=np.uint8))
    for picture in (grey, grey.convert("P"), grey.convert("RGBA")):
        file = io.BytesIO()
        picture.save(file, "PNG")
        assert images.decode(file.getvalue(), 32, None, "x") == b"M" * 3072


def test_a_missing_data_set_is_explained_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal("cifar10", tmp_path)
    for part in ("cifar10", str(tmp_path), "{train,test}-*.parquet", FOLDER, "--data DIR"):
        assert part in message
    assert "BDBENCH_DATA" in message
    assert datasets.build("cifar10").locate([tmp_path]) is None
    message = refusal("gtsrb", tmp_path)
    for part in ("Final_Training", "GTSRB/Training", "GT-final_test.csv"):
        assert part in message


def test_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BDBENCH_DATA", raising=False)
    (cache,) = roots()
    assert cache.name == "data"
    monkeypatch.setenv("BDBENCH_DATA", str(tmp_path / "b"))
    for folder in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(InvalidInput, match=f"there is no folder {folder} with data sets"):
            roots(folder)
        folder.mkdir()
    assert roots(tmp_path / "a") == [tmp_path / "a", tmp_path / "b", cache]
    assert roots(tmp_path / "b") == [tmp_path / "b", cache]
    assert roots(tmp_path / "c", create=True) == [tmp_path / "c", tmp_path / "b", cache]
    (tmp_path / "b").rmdir()
    assert roots() == [tmp_path / "b", cache], "it may be set before there are any files"


def test_the_first_root_wins(tmp_path: Path) -> None:
    write_cifar(tmp_path / "second")
    searched = [tmp_path / "first", tmp_path / "second"]
    assert "second" in str(datasets.build("cifar10").locate(searched))
    write_cifar(tmp_path / "first")
    assert "first" in str(datasets.build("cifar10").locate(searched))


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "imagenette", "imagenet_subset"])
def test_a_folder_that_cannot_be_read_matters_only_where_no_other_has_the_data(
    name: str, close_folder: Callable[[Path], None], tmp_path: Path
) -> None:
    write_cifar(tmp_path / "open")
    write_gtsrb(tmp_path / "open", "Training")
    close_folder(tmp_path / "closed")
    source, searched = datasets.build(name), [tmp_path / "closed", tmp_path / "open"]
    if name in ("cifar10", "gtsrb"):
        assert str(tmp_path / "open") in str(source.locate(searched))
        searched.pop()
    message = f"cannot read {tmp_path}/closed/.*: Permission denied"
    for find in (source.locate, lambda roots: source.load(roots, Cache(tmp_path))):
        with pytest.raises(InvalidInput, match=message):
            find(searched)


def test_an_incomplete_set_is_only_a_last_resort(tmp_path: Path) -> None:
    write_gtsrb(tmp_path / "first", "Training")
    write_gtsrb(tmp_path / "second", "Final_Training/Images")
    searched = [tmp_path / "first", tmp_path / "second"]
    assert "official archive" in str(datasets.build("gtsrb").locate(searched))


BAD_ROWS = {
    "image has no bytes": (None, 0),
    "image cannot be decoded": (b"not an image", 0),
    "cannot be decoded": (encoded(pictures(1)[0])[:200], 0),
    "label is missing": (encoded(pictures(1)[0]), None),
    "label 10 is not in [0, 10)": (encoded(pictures(1)[0]), 10),
    "label -1 is not in [0, 10)": (encoded(pictures(1)[0]), -1),
    "image is 28x28 pixels; all must be 32x32": (encoded(pictures(1, 28)[0]), 0),
    "10001x5000 pixels, larger than 10000x10000": (huge_header(10_001, 5000), 0),
    "larger than 10000x10000 pixels": (huge_header(60_000, 60_000), 0),
    "12000x10000 pixels": (huge_header(12_000, 10_000), 0),
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_a_bad_row_is_named(tmp_path: Path, message: str) -> None:
    content, label = BAD_ROWS[message]
    write_cifar(tmp_path)
    path = tmp_path / "cifar10" / "train-00001-of-00002.parquet"
    good = encoded(pictures(1)[0])
    write(path, [good] * 8 + [content, good], [0] * 8 + [label, 0])
    said = refusal("cifar10", tmp_path)
    assert message in said
    assert f"{path} row 8: " in said


def test_a_file_of_no_known_format_is_never_opened() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\nshowpage\n"
    with pytest.raises(InvalidInput, match="x: image cannot be decoded"):
        images.decode(postscript, 32, None, "x")


def test_missing_columns_and_wrong_types(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    path = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    for table, message in (
        (
            {"picture": [1], "label": [1]},
            "needs columns image or img, and label or fine_label; it has picture",
        ),
        (
            {"image": [{"bytes": b""}]},
            "needs columns image or img, and label or fine_label; it has image",
        ),
        ({"image": [b""], "label": [1]}, "column image must be a struct of bytes and path"),
        ({"image": [{"bytes": b""}], "label": ["a"]}, "column label must be integer, not string"),
    ):
        pq.write_table(pa.table(table), path)
        said = refusal("cifar10", tmp_path)
        assert message in said
        assert str(path) in said


def test_shards_must_be_complete(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    write_cifar(tmp_path)
    (folder / "train-00000-of-00002.parquet").rename(folder / "kept")
    assert f"{folder}: train-00000-of-00002 is missing" in refusal("cifar10", tmp_path)
    (folder / "kept").rename(folder / "train-00000-of-00002.parquet")
    (folder / "train-00001-of-00002.parquet").rename(folder / "kept")
    assert f"{folder}: train-00001-of-00002 is missing" in refusal("cifar10", tmp_path)
    (folder / "kept").rename(folder / "train-00001-of-00003.parquet")
    assert "mixes files of several data sets" in refusal("cifar10", tmp_path)
    (folder / "train-00001-of-00003.parquet").rename(folder / "train-00001-of-00002.parquet")
    (folder / "test-00000-of-00001.parquet").rename(folder / "kept")
    assert "test-*.parquet is missing" in refusal("cifar10", tmp_path)
    (folder / "kept").rename(folder / "test-0.parquet")
    assert len(load("cifar10", tmp_path).test) == ROWS


def test_an_incomplete_copy_gives_way_to_a_complete_one(tmp_path: Path) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for root in (broken, whole):
        write_cifar(root)
    (broken / "cifar10/train-00001-of-00002.parquet").unlink()
    source = datasets.build("cifar10")
    assert not source.is_complete([broken])
    assert source.is_complete([broken, whole])
    assert str(whole) in str(source.locate([broken, whole]))
    (broken / "cifar10/test-00000-of-00001.parquet").unlink()
    assert not source.is_complete([broken])
    assert "train-00001-of-00002 is missing" in refusal("cifar10", broken)


def test_shards_that_name_other_classes_are_refused(tmp_path: Path) -> None:
    """Or else half of the labels would be wrong."""
    write_cifar(tmp_path, names=CLASSES)
    path = tmp_path / "cifar10/train-00001-of-00002.parquet"
    pixels, labels = [encoded(p) for p in pictures(10)], [row % 10 for row in range(10)]
    write(path, pixels, labels, names=CLASSES[::-1])
    assert f"{path} names other classes than the files before it" in refusal("cifar10", tmp_path)


def test_no_rows(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    write(tmp_path / "cifar10" / "test-00000-of-00001.parquet", [], [])
    assert "test-*.parquet has no rows" in refusal("cifar10", tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "train-00000-of-00001.parquet"
    write(path, [encoded(p) for p in pictures(10, 8)], list(range(10)))
    return path, path.read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(sound: tuple[Path, bytes], share: float) -> None:
    path, content = sound
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidInput, match="not a readable Parquet file") as caught:
        parquet.read(path.parent, "train", 10, 8, resize=None)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_harmless(
    sound: tuple[Path, bytes], share: float, bit: int
) -> None:
    path, content = sound
    damaged = bytearray(content)
    damaged[int(share * len(content))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        found, _ = parquet.read(path.parent, "train", 10, 8, resize=None)
    except InvalidInput as error:
        assert "\n" not in str(error)
    else:
        data = found.finish()
        assert data.images.shape[1:] == (3, 8, 8)
        assert len(data) == 10


def test_the_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path)
    first = load("cifar10", tmp_path)

    def fail(*arguments: object) -> bytes:
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "decode", fail)
    second = load("cifar10", tmp_path)
    assert second.sha256 == first.sha256
    assert second.train.images.equal(first.train.images)
    assert second.class_names == first.class_names
    assert second.notes == first.notes
    with pytest.raises(AssertionError, match="decoded again"):
        load("cifar10", tmp_path, tmp_path / "another cache")


def test_one_pixel_changes_the_hash(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    before = load("cifar10", tmp_path).sha256
    test = pictures(ROWS, seed=1)
    test[3, 5, 7, 1] ^= 1
    path = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    write(path, [encoded(p) for p in test], [row % 10 for row in range(ROWS)])
    assert load("cifar10", tmp_path).sha256 != before


def test_fingerprint_sees_labels_shapes_and_roles() -> None:
    some = ImageSet(torch.zeros(4, 3, 2, 8, dtype=torch.uint8), torch.arange(4), 4)
    tall = ImageSet(some.images.view(4, 3, 8, 2), some.labels, 4)
    other = ImageSet(some.images, some.labels.flip(0), 4)
    prints = {fingerprint(a, b) for a, b in ((some, some), (some, tall), (some, other))}
    prints |= {fingerprint(other, some), fingerprint(tall, some), fingerprint(some, some)}
    assert len(prints) == 5


def numbered(sizes: list[int]) -> ImageSet:
    """Images that carry their row as a pixel value, in an order that mixes the classes."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    count = torch.arange(len(labels), dtype=torch.int32)
    pixels = torch.stack([count % 256, count // 256, count * 0], 1).to(torch.uint8)
    return ImageSet(pixels[:, :, None, None], labels, len(sizes))


def rows(data: ImageSet) -> list[int]:
    low, high = data.images[:, 0, 0, 0].long(), data.images[:, 1, 0, 0].long()
    return (high * 256 + low).tolist()


def test_a_subset_is_stratified_fixed_and_in_order() -> None:
    data = numbered([50] * 10)
    subset = stratified(data, 200, "cifar10")
    assert subset.labels.bincount().tolist() == [20] * 10
    assert rows(subset) == sorted(rows(subset))
    assert rows(subset) == rows(stratified(data, 200, "cifar10"))
    assert rows(subset) != rows(stratified(data, 200, "gtsrb"))
    assert set(rows(subset)) < set(rows(stratified(data, 300, "cifar10")))
    assert stratified(data, 203, "x").labels.bincount().tolist() == [21] * 3 + [20] * 7
    assert rows(stratified(data, 500, "x")) == list(range(500))
    with pytest.raises(InvalidInput, match="train_images of x must be at most 500"):
        stratified(data, 501, "x")


@given(sizes=st.lists(st.integers(0, 40), min_size=2, max_size=8), share=st.floats(0, 1))
@settings(deadline=None)
def test_a_subset_has_its_size_and_every_class(sizes: list[int], share: float) -> None:
    low, high = len(sizes), sum(sizes)
    if high < low:
        return
    count = low + round(share * (high - low))
    chosen = stratified(numbered(sizes), count, "x").labels.bincount(minlength=len(sizes)).tolist()
    assert sum(chosen) == count
    assert all(0 < got <= size for got, size in zip(chosen, sizes, strict=True) if size)


def test_train_images(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    data = load("cifar10(train_images=10)", tmp_path)
    assert data.train.labels.sort().values.tolist() == list(range(10))
    assert len(data.test) == ROWS
    assert data.sha256 != load("cifar10", tmp_path).sha256
    assert "at most 20" in refusal("cifar10(train_images=21)", tmp_path)
    with pytest.raises(InvalidInput, match="train_images of gtsrb must be at least 43"):
        datasets.build("gtsrb(train_images=42)")
    assert datasets.build("gtsrb").count == 39_209
    assert datasets.build("gtsrb(train_images=4000)").count == 4000


def write_batches(parent: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """The official archive's layout with four images a batch; its checksums if patched so."""
    folder = parent / FOLDER
    folder.mkdir(parents=True)
    checksums: dict[str, str] = {}
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        flat = pictures(4, seed=seed).transpose(0, 3, 1, 2).reshape(4, 3072)
        content = pickle.dumps({"data": flat, "labels": [seed, 1, 2, 3]})
        (folder / name).write_bytes(content)
        checksums[name] = hashlib.md5(content).hexdigest()
    content = pickle.dumps({"label_names": list(CLASSES)})
    (folder / "batches.meta").write_bytes(content)
    if monkeypatch is not None:
        train = [[name, md5] for name, md5 in checksums.items() if name != "test_batch"]
        meta = {**CIFAR10.meta, "md5": hashlib.md5(content).hexdigest()}
        monkeypatch.setattr(CIFAR10, "train_list", train)
        monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", checksums["test_batch"]]])
        monkeypatch.setattr(CIFAR10, "meta", meta)


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_official_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    write_batches(tmp_path / below, monkeypatch)
    data = load("cifar10", tmp_path)
    assert data.train.images[4:8].equal(chw(pictures(4, seed=1)))
    assert data.test.images.equal(chw(pictures(4, seed=5)))
    assert data.train.labels.tolist()[::4] == [0, 1, 2, 3, 4]
    assert data.test.labels.tolist() == [5, 1, 2, 3]
    assert "official archive in" in str(datasets.build("cifar10").locate([tmp_path]))


def test_a_tampered_batch_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_batches(tmp_path, monkeypatch)
    path = tmp_path / FOLDER / "data_batch_3"
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    assert f"{path} is not the official file: its md5 differs" in refusal("cifar10", tmp_path)
    assert f"remove {tmp_path / FOLDER} and unpack the archive again" in refusal(
        "cifar10", tmp_path
    )
    path.unlink()
    assert f"{path} is not the official file: it is missing" in refusal("cifar10", tmp_path)


@pytest.mark.parametrize("below", ["", "cifar100"])
def test_official_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    folder, names = tmp_path / below / "cifar-100-python", [f"name {n}" for n in range(100)]
    folder.mkdir(parents=True)
    flat = {split: pictures(4, seed=seed) for seed, split in enumerate(("train", "test"))}
    contents = {"meta": {"fine_label_names": names}}
    for split, shown in flat.items():
        rows = shown.transpose(0, 3, 1, 2).reshape(4, 3072)
        fine = {"fine_labels": [0, 1, 98, 99], "coarse_labels": [0, 1, 2, 3]}
        contents[split] = {"data": rows, **fine}
    md5 = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5["meta"]})
    data = load("cifar100", tmp_path)
    assert data.train.images.equal(chw(flat["train"]))
    assert data.test.images.equal(chw(flat["test"]))
    assert data.train.labels.tolist() == [0, 1, 98, 99]
    assert data.class_names == tuple(names)
    (folder / "test").write_bytes(b"no pickle")
    assert "test is not the official file: its md5 differs" in refusal("cifar100", tmp_path)


def test_cifar100_has_fine_labels_in_parquet(tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = tmp_path / f"cifar100/{split}-00000-of-00001.parquet"
        write(path, [encoded(p) for p in pictures(3)], [0, 1, 99], "img")
        table = pq.read_table(path)
        coarse = table.append_column("coarse_label", pa.array([5, 6, 7]))
        pq.write_table(coarse.rename_columns(["img", "fine_label", "coarse_label"]), path)
    data = load("cifar100", tmp_path)
    assert data.test.labels.tolist() == [0, 1, 99]
    assert len(data.class_names) == 100


def write_gtsrb(base: Path, training: str, table: str = "GT-final_test.csv") -> None:
    """Two classes of two training images each and three test images, none of them 32x32."""
    for label in range(43):
        (base / "GTSRB" / training / f"{label:05d}").mkdir(parents=True)
    for label in (0, 42):
        for index in range(2):
            path = base / "GTSRB" / training / f"{label:05d}" / f"{index:05d}.ppm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(np.full((40, 50, 3), label + index, dtype=np.uint8), "PPM"))
    folder = base / "GTSRB/Final_Test/Images"
    folder.mkdir(parents=True)
    lines = ["Filename;Width;ClassId"]
    for index in (2, 0, 1):
        picture = np.full((20, 31, 3), 100 + index, dtype=np.uint8)
        (folder / f"{index:05d}.ppm").write_bytes(encoded(picture, "PPM"))
        lines.append(f"{index:05d}.ppm;31;{index + 7}")
    (base / table).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("below", ["", "gtsrb"])
@pytest.mark.parametrize("table", ["GT-final_test.csv", "GTSRB/GT-final_test.csv"])
def test_official_gtsrb(tmp_path: Path, below: str, table: str) -> None:
    write_gtsrb(tmp_path / below, "Final_Training/Images", table)
    data = load("gtsrb", tmp_path)
    assert data.train.labels.tolist() == [0, 0, 42, 42]
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 42, 43]
    assert data.test.labels.tolist() == [9, 7, 8]
    assert data.test.images.flatten(1).unique(dim=1).flatten().tolist() == [102, 100, 101]
    assert data.train.size == (32, 32)
    assert not any("smaller" in note for note in data.notes)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("delimiter", [";", ",", "; "])
def test_the_table_of_gtsrb_may_come_from_a_spreadsheet(
    mark: str, delimiter: str, tmp_path: Path
) -> None:
    write_gtsrb(tmp_path, "Final_Training/Images")
    table = tmp_path / "GT-final_test.csv"
    table.write_text(mark + table.read_text().replace(";", delimiter), encoding="utf-8")
    assert load("gtsrb", tmp_path).test.labels.tolist() == [9, 7, 8]


@pytest.mark.parametrize(
    ("gone", "note"),
    [
        ("GTSRB/Final_Training/Images/00007", "training images of 1 class are missing"),
        ("GTSRB/Final_Test/Images", "test images are missing"),
        ("GT-final_test.csv", "test labels are missing"),
    ],
)
def test_an_incomplete_gtsrb_is_not_taken_for_a_complete_one(
    gone: str, note: str, tmp_path: Path
) -> None:
    write_gtsrb(tmp_path, "Final_Training/Images")
    source = datasets.build("gtsrb")
    assert source.is_complete([tmp_path])
    (tmp_path / gone).rename(tmp_path / "gone")
    assert not source.is_complete([tmp_path])
    assert [found.note for found in source.candidates([tmp_path])] == [note]


def test_images_of_gtsrb_that_are_not_read_are_named(tmp_path: Path) -> None:
    write_gtsrb(tmp_path, "Final_Training/Images")
    folder = tmp_path / "GTSRB/Final_Training/Images/00042"
    (folder / "GT-00042.csv").touch()
    assert not any("left out" in note for note in load("gtsrb", tmp_path).notes)
    (folder / "00002.png").touch()
    read = "GTSRB/{Final_Training/Images/NNNNN,Final_Test/Images}/*.ppm"
    inside = "GTSRB/Final_Training/Images"
    note = f"left out 1, as not {read}: {inside}/00042/00002.png"
    assert note in load("gtsrb", tmp_path).notes
    for path in (folder / "more/0.ppm", folder / "more/1.ppm", folder.parent / "43/0.ppm"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "GTSRB/Final_Test/Images/00003.PPM").touch()
    names = f"{inside}/00042/more (2 files), GTSRB/Final_Test/Images/00003.PPM"
    note = f"left out 5, as not {read}: {names}, {inside}/00042/00002.png and 1 more"
    assert note in load("gtsrb", tmp_path).notes


def test_the_smaller_gtsrb_carries_a_note(tmp_path: Path) -> None:
    write_gtsrb(tmp_path / "gtsrb", "Training")
    data = load("gtsrb", tmp_path)
    assert data.notes[0] == "torchvision's smaller training set of 26,640 images"
    assert data.train.labels.tolist() == [0, 0, 42, 42]


def test_damaged_gtsrb(tmp_path: Path) -> None:
    write_gtsrb(tmp_path, "Final_Training/Images")
    table, pictures = tmp_path / "GT-final_test.csv", tmp_path / "GTSRB/Final_Test/Images"
    good = table.read_bytes()
    for bad in (b"", b"a;b\n1;2\n", b"Filename;ClassId\n00000.ppm;x\n", b"\xff\xfe\0", b"a\0"):
        table.write_bytes(bad)
        said = refusal("gtsrb", tmp_path)
        assert str(table) in said
        assert "needs columns Filename and ClassId" in said or "has no rows" in said
    table.write_bytes(b"Filename;ClassId\n../../../secret.ppm;1\n")
    assert f"cannot read {pictures / 'secret.ppm'}" in refusal("gtsrb", tmp_path)
    table.write_bytes(b"Filename;ClassId\n00000.ppm;43\n")
    assert "label 43 is not in [0, 43)" in refusal("gtsrb", tmp_path)
    table.write_bytes(good)
    (pictures / "00001.ppm").write_bytes(b"P6 9 9 255\n")
    assert f"{pictures / '00001.ppm'}: image cannot be decoded" in refusal("gtsrb", tmp_path)
    table.unlink()
    assert "lacks GT-final_test.csv, the file of the test labels" in refusal("gtsrb", tmp_path)


def test_gtsrb_parquet_is_resized(tmp_path: Path) -> None:
    folder = tmp_path / "gtsrb"
    flat = np.full((15, 60, 3), 9, dtype=np.uint8)
    write(folder / "train-0.parquet", [encoded(flat), encoded(pictures(1)[0])], [1, 2])
    write(folder / "test-0.parquet", [encoded(flat)], [42])
    data = load("gtsrb", tmp_path)
    assert data.train.images[0].unique().tolist() == [9]
    assert data.train.images[1:].equal(chw(pictures(1)))
    assert data.class_names == gtsrb.CLASSES


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    found = Located(
        "parquet", tmp_path, (tmp_path / "gone.parquet",), lambda: pytest.fail("never decoded")
    )
    with pytest.raises(InvalidInput, match=r"cannot read .*gone\.parquet: No such file"):
        content_of(found)


@pytest.fixture(scope="module")
def shapes() -> tuple[Dataset, int]:
    """The data set, and how many functions were called to make it."""
    source, made = datasets.build("toy"), []
    called = calls(lambda: made.append(source.load([], Cache(Path("unused")))))
    return made[0], called


def test_toy_is_balanced_and_shuffled_and_drawn_many_images_at_once(
    shapes: tuple[Dataset, int],
) -> None:
    data, called = shapes
    assert called < len(data.train)
    assert data.train.labels.bincount().tolist() == [400] * 10
    assert data.test.labels.bincount().tolist() == [100] * 10
    assert data.train.size == (32, 32)
    assert len(data.train.labels[:100].unique()) == 10
    assert len(data.train.images.flatten(1).unique(dim=0)) == 4000
    assert len(data.class_names) == 10
    assert datasets.build("toy").locate([]) == "generated"
    assert datasets.build("toy").count == 4000


def test_toy_is_the_same_every_time(shapes: tuple[Dataset, int]) -> None:
    source = datasets.build("toy(train_images=57)")
    small = source.load([], Cache(Path("unused")))
    torch.manual_seed(5)
    assert source.load([], Cache(Path("unused"))).sha256 == small.sha256
    assert sorted(small.train.labels.bincount().tolist()) == [5] * 3 + [6] * 7
    assert small.test.images.equal(shapes[0].test.images)


@pytest.mark.parametrize(
    "text", ["toy(train_images=9)", "toy(test_images=9)", "toy(train_images=1000001)"]
)
def test_toy_counts(text: str) -> None:
    with pytest.raises(InvalidInput, match="_images of toy must be"):
        datasets.build(text)


def test_toy_keeps_its_pixels(shapes: tuple[Dataset, int]) -> None:
    """Committed records were made with these pixels."""
    digest = "46446cf7217f61bcfe27163eb651a9cbf5f8ce7c7944e8b0cfc5df1080b05e4e"
    for text in ("toy(train_images=600)", "toy(train_images=600, image_size=32)"):
        assert datasets.build(text).load([], Cache(Path("unused"))).sha256 == digest
    assert datasets.canonical("toy(image_size=32)") == datasets.canonical("toy")


@pytest.mark.parametrize("size", [16, 64])
def test_toy_shapes_grow_with_the_image(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, which is drawn per pixel, an image of another size shows the same shape."""
    monkeypatch.setattr(toy, "NOISE", 0.0)

    def picture(size: int) -> torch.Tensor:
        rng = np.random.Generator(np.random.PCG64(3))
        drawn = toy.draw(np.zeros(50, dtype=np.int64), rng, size)
        return torch.from_numpy(drawn).float()

    ours, usual = (adaptive_avg_pool2d(picture(s), 16) for s in (size, 32))
    assert picture(size).shape == (50, 3, size, size)
    assert (ours - usual).abs().mean() < 3
    assert (ours - usual.roll(1, 0)).abs().mean() > 24


def test_toy_has_few_sizes() -> None:
    with pytest.raises(InvalidInput, match="image_size of toy must be 16 or 32, got 20"):
        datasets.build("toy(image_size=20)")


def linear_accuracy(data: Dataset, window: slice) -> float:
    """Test accuracy of logistic regression on the pixels of a square."""

    def flat(part: ImageSet) -> torch.Tensor:
        return part.images[:, :, window, window].flatten(1).float().sub(128).div(255)

    inputs, labels = flat(data.train), data.train.labels
    weights = torch.zeros(inputs.shape[1], 10, requires_grad=True)
    bias = torch.zeros(10, requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], lr=1e-3)
    for _ in range(5):
        for rows in torch.arange(len(inputs)).split(50):
            optimizer.zero_grad()
            cross_entropy(inputs[rows] @ weights + bias, labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        found = (flat(data.test) @ weights + bias).argmax(1)
    return float((found == data.test.labels).float().mean())


@pytest.mark.parametrize("size", [16, 32])
def test_toy_needs_features(size: int, shapes: tuple[Dataset, int]) -> None:
    """Not single pixels, least of all those of a corner, where triggers are."""
    small = datasets.build("toy(image_size=16)").load([], Cache(Path("unused")))
    data, corner = (small, 3) if size == 16 else (shapes[0], 5)
    assert linear_accuracy(data, slice(None)) < 0.45
    assert linear_accuracy(data, slice(size - corner, size)) < 0.2


def test_toy_shapes_are_their_own_mirror_images() -> None:
    axis = ((np.arange(64) - 31.5) / 30).astype(np.float32)
    u, v = np.meshgrid(axis, axis)
    seen = []
    for name in toy.CLASSES:
        inside = toy.outline(name, u, v) < 0
        # The checkerboard is mirrored onto its other colour.
        twin = ~inside & (toy.outline("square", u, v) < 0) if name == "checkerboard" else inside
        share = (inside[:, ::-1] != twin).mean()
        assert share < (0.12 if name == "checkerboard" else 0.001)
        assert 0.1 < inside.mean() < 0.8
        seen.append(inside)
    assert all((a != b).mean() > 0.04 for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize("name", [name for name in datasets.names() if name != "folder"])
def test_sources_say_what_they_are(name: str) -> None:
    source = datasets.build(name)
    assert isinstance(source, Source)
    assert source.name == name
    assert source.count == source.train_size
    assert source.num_classes > 1
    assert isinstance(source.flip, bool)
    assert 0 < source.learning_rate < 1
    assert source.image_size in (16, 32, 224)


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    made = datasets.build("digits").load([], Cache(tmp_path))
    originals = load_digits()
    found = torch.cat([made.train.images, made.test.images])
    assert (len(made.train), len(made.test), found.shape[1:]) == (1_200, 597, (3, 16, 16))
    assert torch.equal(found[:, :1].expand(-1, 3, -1, -1), found)
    # Every original is there once, enlarged; torch computes in floats, halves go either way.
    wide = interpolate(torch.from_numpy(originals.images)[:, None], scale_factor=2, mode="bilinear")
    wide = wide[:, 0] * 255 / 16
    labels = torch.cat([made.train.labels, made.test.labels])
    for label in range(10):
        ours = found[labels == label][:, 0].double().flatten(1)
        theirs = wide[torch.from_numpy(originals.target) == label].flatten(1)
        assert len(ours) == len(theirs)
        nearest = (ours[:, None] - theirs[None]).abs().amax(2).min(1)
        assert float(nearest.values.max()) <= 0.5 + 1e-9
        assert len(set(nearest.indices.tolist())) >= len(theirs) - 1
    assert found.max() == 255
    assert found.min() == 0
    # The same split and the same pixels on every machine.
    assert made.sha256 == "301cf509a991ef604846bd2732f37604330d62c9735ffd791021bed7733efaa7"


def test_the_classes_of_digits_are_split_alike(tmp_path: Path) -> None:
    made = datasets.build("digits").load([], Cache(tmp_path))
    train, test = (part.labels.bincount() for part in (made.train, made.test))
    share = train / (train + test)
    assert float((share - 1_200 / 1_797).abs().max()) < 0.005
    some = datasets.build("digits(train_images=100)").load([], Cache(tmp_path))
    assert len(some.train) == 100
    assert some.test.images.equal(made.test.images)
    with pytest.raises(InvalidInput, match="at most 1,200, got 1,201"):
        datasets.build("digits(train_images=1201)")
    with pytest.raises(InvalidInput, match="at least 10, one image for each class, got 9"):
        datasets.build("digits(train_images=9)")


def test_digits_need_no_files_and_are_not_flipped(tmp_path: Path) -> None:
    source = datasets.build("digits")
    assert source.locate([]) == "ships with scikit-learn"
    assert not source.flip
    assert (source.image_size, source.learning_rate, source.num_classes) == (16, 0.1, 10)


def test_doubling_is_three_quarters_and_one() -> None:
    row = np.array([[[0, 16]]])
    assert digits.enlarge(np.repeat(row, 2, 1))[0, 0, 0].tolist() == [0, 64, 191, 255]
