"""The ImageNet subset: which files it reads, how it resizes images, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from bdbench.attacks.registry import attacks
from bdbench.cells.cell import cell
from bdbench.cli import main
from bdbench.datasets import imagenette, images
from bdbench.datasets.base import Dataset
from bdbench.datasets.imagenet_subset import ImageNetSubset, crop
from bdbench.datasets.registry import datasets
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.training.recipe import Recipe
from bdbench.storage.cache import Cache

WORDNET = [f"n{number:08d}" for number in range(100, 112)]
PER_CLASS = 2


def flat(level: int, width: int = 12, height: int = 8) -> NDArray[np.uint8]:
    return np.full((height, width, 3), level, dtype=np.uint8)


def noise(width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def huge_header(width: int, height: int) -> bytes:
    """A PNG of one pixel that claims to be larger."""
    content = bytearray(encoded(flat(0, 1, 1)))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def write_folders(root: Path, test: str = "val", test_level: int = 100) -> Path:
    """Two grey images for training and one for the test in each of twelve classes."""
    base = root / "imagenet_subset"
    # Not in the order of their names, as a file system may list them.
    for label, name in reversed(list(enumerate(WORDNET))):
        for split, count, level in (("train", PER_CLASS, 10), (test, 1, test_level)):
            folder = base / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                content = encoded(flat(level + label + 20 * index))
                (folder / f"{name}_{index}.JPEG").write_bytes(content)
    return base


def write_parquet(
    path: Path, labels: list[int], names: list[str] | None = None, content: bytes | None = None
) -> None:
    picture = encoded(flat(50)) if content is None else content
    table = pa.table({"image": [{"bytes": picture, "path": "x"}] * len(labels), "label": labels})
    if names:
        metadata = json.dumps({"info": {"features": {"label": {"names": names}}}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def load(root: Path, text: str = "imagenet_subset") -> Dataset:
    return datasets.build(text).load([root], Cache(root / "cache"))


def refusal(root: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        load(root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_class_folders_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    base = write_folders(tmp_path)
    data = load(tmp_path)
    assert data.train.images.shape == (24, 3, 224, 224)
    assert data.test.images.shape == (12, 3, 224, 224)
    assert data.train.labels.tolist() == [label for label in range(12) for _ in range(2)]
    assert data.test.labels.tolist() == list(range(12))
    levels = [10 + label + 20 * index for label in range(12) for index in range(2)]
    assert data.train.images.amax((1, 2, 3)).tolist() == levels
    assert data.train.images.amin((1, 2, 3)).tolist() == levels
    assert data.test.images[:, 0, 0, 0].tolist() == list(range(100, 112))
    assert data.class_names == tuple(WORDNET)
    assert data.train.num_classes == data.test.num_classes == 12
    assert data.notes == (
        "24 training images, the official imagenet_subset has 15,600",
        "12 test images, the official imagenet_subset has 600",
    )
    assert ImageNetSubset().locate([tmp_path]) == f"class folders in {base}"


def test_test_stands_in_for_val(tmp_path: Path) -> None:
    write_folders(tmp_path / "one", "test")
    assert load(tmp_path / "one").test.labels.tolist() == list(range(12))
    base = write_folders(tmp_path / "two")
    shutil.copytree(tmp_path / "one/imagenet_subset/test", base / "test")
    (base / "test" / WORDNET[0] / f"{WORDNET[0]}_0.JPEG").write_bytes(encoded(flat(7)))
    assert load(tmp_path / "two").test.images[0, 0, 0, 0] == 100


def test_only_visible_images_count(tmp_path: Path) -> None:
    base = write_folders(tmp_path)
    first = base / "train" / WORDNET[0]
    for name in ("a.jpg", "b.jpeg", "c.png", "d.PNG"):
        (first / name).write_bytes(encoded(flat(200), "JPEG"))
    for name in ("notes.txt", ".hidden.JPEG", "list.csv"):
        (first / name).write_bytes(b"no image")
    (base / "train" / ".thumbnails").mkdir()
    (base / "train" / "readme.txt").write_text("no class")
    data = load(tmp_path)
    assert data.train.labels.bincount().tolist() == [6] + [2] * 11
    assert (data.train.images[:, 0, 0, 0] == 200).sum() == 4


def test_the_name_of_a_class_is_part_of_the_content(tmp_path: Path) -> None:
    base = write_folders(tmp_path)
    load(tmp_path)
    for split in ("train", "val"):
        (base / split / WORDNET[3]).rename(base / split / "n99999999")
    data = load(tmp_path)
    assert data.class_names == (*WORDNET[:3], *WORDNET[4:], "n99999999")
    assert data.test.images[:, 0, 0, 0].tolist() == [100, 101, 102, *range(104, 112), 103]


@pytest.mark.parametrize("size", [(256, 256), (512, 256), (300, 300), (320, 640), (128, 192)])
def test_images_are_cropped_as_torchvision_does(size: tuple[int, int]) -> None:
    """Sizes for which torchvision need not round sides and offsets to whole pixels."""
    picture = Image.fromarray(noise(*size))
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    ours, reference = (np.asarray(made, dtype=int) for made in (crop(picture, 224), usual(picture)))
    assert ours.shape == reference.shape == (224, 224, 3)
    assert abs(ours - reference).max() <= 1


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (259, 257), (90, 1000)])
def test_images_of_any_shape_are_cropped_to_half_a_pixel(size: tuple[int, int]) -> None:
    """In a ramp of one grey level per output pixel, its value is the position in the source."""
    width, height = size
    scale = 256 / min(size)
    # The centre of the image has level 127.5.
    x = (np.arange(width) + 0.5 - width / 2) * scale + 127.5
    y = (np.arange(height) + 0.5 - height / 2) * scale + 127.5
    levels = np.stack(np.broadcast_arrays(x, y[:, None], np.zeros((height, width))), 2)
    picture = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    cropped = np.asarray(crop(picture, 224)).astype(float)
    expected = np.arange(224) + 0.5 - 112 + 127.5
    inner = slice(2, -2)
    assert abs(cropped[:, inner, 0] - expected[inner]).max() <= 1.0
    assert abs(cropped[inner, :, 1] - expected[inner, None]).max() <= 1.0


def test_images_of_every_format_are_read_and_other_files_are_named(tmp_path: Path) -> None:
    base = write_folders(tmp_path)
    folder = base / "train" / WORDNET[0]
    for kind in ("webp", "bmp", "ppm", "tif", "tiff", "png", "jpg"):
        pillow = {"tif": "TIFF", "jpg": "JPEG"}.get(kind, kind)
        (folder / f"more.{kind.upper()}").write_bytes(encoded(flat(9), pillow))
    data = load(tmp_path)
    assert data.train.labels.bincount().tolist() == [PER_CLASS + 7, *([PER_CLASS] * 11)]
    assert not any("left out" in note for note in data.notes)
    for name in ("a.gif", "b.txt", "c.npy", "d.zip"):
        (folder / name).touch()
    (base / "val/labels.csv").touch()
    (folder / ".hidden").touch()
    (base / "test").mkdir()
    (base / "test/unused.txt").touch()
    (note,) = [note for note in load(tmp_path).notes if "left out" in note]
    inside = f"train/{WORDNET[0]}"
    named = f"test, {inside}/a.gif, {inside}/b.txt and 3 more"
    read = "{train,val}/CLASS/*.{bmp,jpeg,jpg,png,ppm,tif,tiff,webp}"
    choice = "both val and test are here: val is used"
    assert note == f"{choice}; left out 6, as not {read}: {named}"


def test_a_sharp_image_of_the_final_size_is_left_alone(tmp_path: Path) -> None:
    base = write_folders(tmp_path)
    picture = noise(224, 224)
    (base / "val" / WORDNET[0] / "0.png").write_bytes(encoded(picture))
    assert load(tmp_path).test.images[0].equal(torch.from_numpy(picture).permute(2, 0, 1))


def test_a_narrow_image_is_never_enlarged_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watch(image: Image.Image, size: tuple[int, int], *rest: object) -> Image.Image:
        made.append(size)
        return resize(image, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", watch)
    content = encoded(flat(9, 10_000, 1))
    assert images.decode(content, 224, crop, "x") == b"\t" * (3 * 224 * 224)
    assert made == [(224, 224)]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_printed_jpegs_become_colour(mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(flat(77, 300, 260)).convert(mode).save(file, "JPEG", quality=95)
    levels = np.frombuffer(images.decode(file.getvalue(), 224, crop, "x"), dtype=np.uint8)
    assert abs(levels.astype(int) - 77).max() <= 1


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def damage(content: bytes) -> Callable[[Path], None]:
    return lambda base: (base / "train" / WORDNET[4] / "bad.JPEG").write_bytes(content) and None


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "eleven classes": (
        lambda base: shutil.rmtree(base / "train" / WORDNET[2]),
        "imagenet_subset/train has 11 class folders; 12 are needed",
    ),
    "thirteen classes": (
        lambda base: (base / "val/n00000999").mkdir(),
        "imagenet_subset/val has 13 class folders; 12 are needed",
    ),
    "images without classes": (
        lambda base: [path.rename(base / path.name) for path in (base / "val").iterdir()],
        "imagenet_subset/val has 0 class folders; 12 are needed",
    ),
    "other classes": (
        lambda base: (base / "val" / WORDNET[2]).rename(base / "val/n00000999"),
        f"imagenet_subset/val has no class {WORDNET[2]}",
    ),
    "no test images": (
        lambda base: shutil.rmtree(base / "val"),
        "imagenet_subset has train, but neither val nor test",
    ),
    "empty training class": (
        lambda base: empty(base / "train" / WORDNET[0]),
        f"imagenet_subset/train/{WORDNET[0]} has no images *.bmp, *.jpeg, *.jpg, *.png",
    ),
    "empty test class": (
        lambda base: empty(base / "val" / WORDNET[11]),
        f"imagenet_subset/val/{WORDNET[11]} has no images *.bmp, *.jpeg, *.jpg, *.png",
    ),
    "no image": (damage(b"no image"), f"{WORDNET[4]}/bad.JPEG: image cannot be decoded"),
    "empty file": (damage(b" "), f"{WORDNET[4]}/bad.JPEG: image cannot be decoded"),
    "truncated": (
        damage(encoded(noise(300, 260), "JPEG")[:9000]),
        f"{WORDNET[4]}/bad.JPEG: image cannot be decoded (OSError)",
    ),
    "image bomb": (
        damage(huge_header(60_000, 60_000)),
        f"{WORDNET[4]}/bad.JPEG: image is larger than 10000x10000 pixels",
    ),
    "too long": (
        damage(huge_header(10_001, 2)),
        f"{WORDNET[4]}/bad.JPEG: image is 10001x2 pixels, larger than 10000x10000",
    ),
    "dangling link": (
        lambda base: (base / "train" / WORDNET[4] / "bad.JPEG").symlink_to("nowhere"),
        f"{WORDNET[4]}/bad.JPEG: No such file or directory",
    ),
    "folder for a file": (
        lambda base: (base / "train" / WORDNET[4] / "bad.JPEG").mkdir(),
        f"{WORDNET[4]}/bad.JPEG: Is a directory",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_in_one_line(tmp_path: Path, fault: str) -> None:
    inflict, message = FAULTS[fault]
    base = write_folders(tmp_path)
    inflict(base)
    assert message in refusal(tmp_path)
    # It still shows where the data are for which it would be refused.
    assert ImageNetSubset().locate([tmp_path]) == f"class folders in {base}"


def test_nothing_is_hashed_before_the_folders_are_right(tmp_path: Path) -> None:
    base = write_folders(tmp_path)
    assert len(next(ImageNetSubset().find(tmp_path)).files) == 36
    (base / "train/n00000999").mkdir()
    assert next(ImageNetSubset().find(tmp_path)).files == ()


def test_a_photograph_of_a_camera_is_not_too_large() -> None:
    content = encoded(flat(30, 5000, 40), "JPEG")
    assert images.decode(content, 224, crop, "x") == b"\x1e" * (3 * 224 * 224)


def test_parquet(tmp_path: Path) -> None:
    base = tmp_path / "imagenet_subset"
    write_folders(tmp_path)
    write_parquet(base / "train-00000-of-00001.parquet", [*range(12), 3])
    write_parquet(base / "test-00000-of-00001.parquet", list(range(12)))
    data = load(tmp_path)
    assert ImageNetSubset().locate([tmp_path]) == f"parquet in {base}"
    assert data.train.labels.tolist() == [*range(12), 3]
    assert data.train.images.shape == (13, 3, 224, 224)
    assert data.test.images.unique().tolist() == [50]
    assert data.class_names == tuple(f"{label:02d}" for label in range(12))
    for split in ("train", "test"):
        write_parquet(base / f"{split}-00000-of-00001.parquet", list(range(12)), WORDNET)
    assert load(tmp_path).class_names == tuple(WORDNET)


TWELVE = list(range(12))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"labels": TWELVE[:-1]}, "test-*.parquet has no image of label 11"),
        ({"labels": [*TWELVE[1:], 1]}, "test-*.parquet has no image of label 0"),
        ({"labels": [*TWELVE, 12]}, "test-0.parquet row 12: label 12 is not in [0, 12)"),
        ({"labels": TWELVE, "names": WORDNET[:-1]}, "names 11 classes; 12 are needed"),
        ({"labels": TWELVE, "names": WORDNET[::-1]}, "test-*.parquet name different classes"),
        ({"labels": TWELVE, "content": b"no"}, "test-0.parquet row 0: image cannot be decoded"),
        (
            {"labels": TWELVE, "content": huge_header(60_000, 60_000)},
            "test-0.parquet row 0: image is larger than 10000x10000 pixels",
        ),
    ],
)
def test_faults_of_parquet(tmp_path: Path, fault: dict[str, object], message: str) -> None:
    base = tmp_path / "imagenet_subset"
    write_parquet(base / "train-0.parquet", TWELVE, WORDNET)
    write_parquet(base / "test-0.parquet", **fault)
    said = refusal(tmp_path)
    assert message in said
    assert str(base) in said


def test_a_missing_data_set_names_the_layouts(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    for part in (str(tmp_path), "imagenet_subset/{train,val}/CLASS/*", "{train,test}-*.parquet"):
        assert part in message
    assert ImageNetSubset().locate([tmp_path]) is None


def test_fewer_training_images(tmp_path: Path) -> None:
    write_folders(tmp_path)
    data = load(tmp_path, "imagenet_subset(train_images=12)")
    assert data.train.labels.tolist() == list(range(12))
    assert len(data.test) == 12
    with pytest.raises(InvalidInput, match="train_images of imagenet_subset must be at least 12"):
        ImageNetSubset(train_images=11)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_folders(tmp_path)
    assert main(["list", "datasets"]) == 0
    assert "ImageNet subset, Deng et al. 2009" in capsys.readouterr().out
    assert main(["describe", "imagenet_subset"]) == 0
    shown = capsys.readouterr().out
    assert "random resized crops" in shown.lower()
    assert "train_images  int" in shown
    assert main(["data", "ls", "--data", str(tmp_path)]) == 0
    assert f"imagenet_subset  class folders in {base}\n" in capsys.readouterr().out
    assert main(["data", "prepare", "imagenet_subset", "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "24 of 224 x 224 pixels" in shown
    assert f"12: {', '.join(WORDNET)}" in shown
    shutil.rmtree(base / "val")
    assert main(["data", "prepare", "imagenet_subset", "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_network_of_the_paper_fits() -> None:
    source = ImageNetSubset()
    network = models.build("resnet34").build(source.num_classes, source.image_size).eval()
    with torch.inference_mode():
        inputs = torch.zeros(1, 3, source.image_size, source.image_size)
        assert network(inputs).shape == (1, 12)
        assert network.stages(inputs)[-1].shape == (1, 512, 7, 7)


@pytest.mark.parametrize("attack", attacks.names())
def test_every_attack_fits(attack: str) -> None:
    made = cell("imagenet_subset", "resnet34", attack, "none", Recipe(), 0)
    assert made.specs["attack"].startswith(attack)


def write_imagenette(base: Path) -> None:
    for split in ("train", "val"):
        for label, name in enumerate(imagenette.CLASSES):
            (base / split / name).mkdir(parents=True)
            (base / split / name / "x.JPEG").write_bytes(encoded(flat(20 * label)))


@pytest.mark.parametrize("below", ["imagenette2-320", "imagenette/imagenette2-320", "imagenette"])
def test_imagenette(tmp_path: Path, below: str) -> None:
    write_imagenette(tmp_path / below)
    data = load(tmp_path, "imagenette(size=32)")
    assert data.train.images.shape == (10, 3, 32, 32)
    assert data.train.images[:, 0, 0, 0].tolist() == [20 * label for label in range(10)]
    assert data.class_names == tuple(imagenette.CLASSES.values())
    assert load(tmp_path, "imagenette").train.size == (224, 224)
    assert "10 training images, the official imagenette has 9,469" in data.notes


def test_imagenette_is_these_ten_classes(tmp_path: Path) -> None:
    base = tmp_path / "imagenette"
    write_imagenette(base)
    (base / "val/n01440764").rename(base / "val/n02086240")
    with pytest.raises(InvalidInput, match=r"imagenette/val lacks the class n01440764"):
        load(tmp_path, "imagenette")
    (base / "val/n02086240").rename(base / "val/n01440764")
    (base / "train/n02086240").mkdir()
    with pytest.raises(InvalidInput, match=r"train has a class that imagenette lacks: n02086240"):
        load(tmp_path, "imagenette")
    with pytest.raises(InvalidInput, match=r"size of imagenette must be from 16 to 320, got 8"):
        datasets.build("imagenette(size=8)")
