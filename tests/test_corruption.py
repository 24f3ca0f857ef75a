"""A flipped bit or a cut in any file is noticed, or changes nothing that is read from it.

Where a format lets damage pass unseen, the sha256 of the data changes with it, and so does the data
set that a record names: JPEG, PPM, and Parquet pages without checksums. PNG, Parquet pages with
checksums, records, cache entries and artefacts never pass damage off as what was written.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_results import FOLDERS

from bdbench.cli import main
from bdbench.datasets import gtsrb, images, parquet
from bdbench.datasets.base import fingerprint
from bdbench.datasets.files import Decoded
from bdbench.datasets.registry import datasets
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records import files as records
from bdbench.records.merge import merge
from bdbench.storage import artefacts
from bdbench.storage.cache import Cache, DamagedCache

PLACES = 1_000_000
RECORDS = [
    builders.make_record("none", "badnets", 900, 990),
    builders.make_record("cbd", "badnets", 850, 13, floor=12, seconds=(0.0, 123.25)),
    builders.make_record("cbd", "blend"),
]

FIXED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def damage(examples: int) -> Callable[[Any], Any]:
    """A test of `hurt`, which flips one bit of a file's content or cuts the content off."""

    def some(place: int, bit: int | None) -> Callable[[bytes], bytes]:
        def hurt(content: bytes) -> bytes:
            position = place * len(content) // PLACES
            if bit is None:
                return content[:position]
            byte = content[position] ^ 1 << bit
            return content[:position] + bytes([byte]) + content[position + 1 :]

        return hurt

    bits = st.sampled_from([None, *range(8)])
    hurts = st.builds(some, st.integers(0, PLACES - 1), bits)

    def decorate(test: Any) -> Any:
        return settings(FIXED, max_examples=examples)(given(hurt=hurts)(test))

    return decorate


@contextlib.contextmanager
def damaged(path: Path, hurt: Callable[[bytes], bytes]) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(hurt(before))
    try:
        yield
    finally:
        path.write_bytes(before)


def one_line(message: str, path: Path) -> bool:
    return str(path) in message and message.isprintable()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for record in RECORDS:
        records.write(folder, record)
    return folder


def file_of(results: Path, index: int) -> Path:
    return results / "records" / f"{RECORDS[index].key}.json"


@pytest.mark.parametrize("index", [1, 2], ids=["ok", "failed"])
@damage(100)
def test_a_damaged_record_is_never_another_record(
    results: Path, index: int, hurt: Callable[[bytes], bytes]
) -> None:
    path = file_of(results, index)
    with damaged(path, hurt):
        try:
            assert records.read(path) == RECORDS[index]
        except InvalidInput as error:
            assert one_line(str(error), path)


def test_no_digit_of_a_record_changes_unseen(results: Path) -> None:
    path = file_of(results, 1)
    content = path.read_bytes()
    digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    assert len(digits) > 100
    for place in digits:
        other = b"%d" % ((content[place] - ord("0") + 1) % 10)
        path.write_bytes(content[:place] + other + content[place + 1 :])
        with pytest.raises(InvalidInput):
            records.read(path)
    path.write_bytes(content)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_no_digit_of_a_published_record_changes_unseen(folder: Path, tmp_path: Path) -> None:
    source = min((folder / "records").glob("*.json"))
    sound, content = records.read(source), source.read_bytes()
    path = tmp_path / source.name
    digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    assert len(digits) > 100
    for place in digits[:: max(1, len(digits) // 60)]:
        other = b"%d" % ((content[place] - ord("0") + 1) % 10)
        path.write_bytes(content[:place] + other + content[place + 1 :])
        try:
            assert records.read(path) == sound
        except InvalidInput as error:
            assert one_line(str(error), path)


@damage(40)
def test_a_table_shows_what_was_recorded_or_names_the_file(
    results: Path, hurt: Callable[[bytes], bytes]
) -> None:
    path = file_of(results, 1)

    def table() -> tuple[int, str, bytes]:
        shutil.rmtree(results / "tables", ignore_errors=True)
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as e,
        ):
            code = main(["table", "leaderboard", "--results", str(results)])
        made_of = results / "tables/leaderboard.csv"
        return code, e.getvalue(), made_of.read_bytes() if made_of.exists() else b""

    sound = table()
    assert sound[:2] == (0, "")
    with damaged(path, hurt):
        code, said, shown = table()
    if code == 0:
        assert (said, shown) == sound[1:]
    else:
        assert one_line(said.removesuffix("\n"), path)
        # Either the other records are shown, or, for another version of the program, nothing.
        assert (code, bool(shown)) in {(1, True), (2, False)}
        assert shown != sound[2]


def test_a_record_without_a_checksum_is_read_and_merging_gives_it_one(
    results: Path, tmp_path: Path
) -> None:
    document = json.loads(file_of(results, 1).read_bytes())
    assert len(document.pop("checksum")) == 64
    old = tmp_path / "old" / "records" / f"{RECORDS[1].key}.json"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps(document))
    assert records.read(old) == RECORDS[1]
    merge([old.parent.parent], tmp_path)
    assert (tmp_path / "records" / old.name).read_bytes() == file_of(results, 1).read_bytes()


def test_another_layout_of_the_same_values_is_no_damage(results: Path) -> None:
    path = file_of(results, 1)
    with damaged(path, lambda content: json.dumps(json.loads(content), indent=7).encode()):
        assert records.read(path) == RECORDS[1]


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@damage(40)
def test_a_damaged_cache_entry_is_made_anew(
    tmp_path: Path, suffix: str, hurt: Callable[[bytes], bytes]
) -> None:
    tensors = {"pixels": torch.arange(12, dtype=torch.uint8), "loss": torch.tensor([0.5, -1.25])}
    meta = {"class_names": ["disc", "ring"], "prepare": 12.5}
    cache = Cache(tmp_path)

    def fetch() -> bool:
        entry = cache.fetch("things", {"seed": 1}, lambda: (tensors, meta))
        assert entry.meta == meta
        assert entry.tensors.keys() == tensors.keys()
        assert all(entry.tensors[name].equal(value) for name, value in tensors.items())
        return entry.fresh

    fetch()
    path = next((tmp_path / "things").glob(f"*.{suffix}"))
    path.write_bytes(hurt(path.read_bytes()))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made_anew = fetch()
    assert [each.category for each in said] == [DamagedCache] * made_anew
    assert made_anew or suffix == "json"
    assert not fetch()


@damage(40)
def test_damaged_artefacts_are_as_good_as_none(
    tmp_path: Path, hurt: Callable[[bytes], bytes]
) -> None:
    arrays = {"mask": np.array([True, False]), "samples/w": np.array([0.5, 1.0], np.float32)}
    path = artefacts.save("0123456789abcdef", tmp_path, arrays)
    with damaged(path, hurt):
        assert artefacts.load("0123456789abcdef", tmp_path) is None
    assert artefacts.load("0123456789abcdef", tmp_path) is not None


def picture(index: int) -> np.ndarray:
    """Smooth, so that an encoder has something to compress, and a flip does more than one pixel."""
    y, x = np.mgrid[:8, :8]
    return np.stack([y * 20 + index, x * 20, y + x + index], -1).astype(np.uint8)


def encoded(index: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(index)).save(file, kind)
    return file.getvalue()


def test_no_bit_of_a_png_changes_the_picture_unseen() -> None:
    content = encoded(0, "PNG")
    for place, byte in enumerate(content):
        for bit in range(8):
            hurt = content[:place] + bytes([byte ^ 1 << bit]) + content[place + 1 :]
            try:
                found = images.decode(hurt, 8, None, "x")
            except InvalidInput as error:
                assert one_line(str(error), Path("x"))
            else:
                assert found == picture(0).transpose(2, 0, 1).tobytes()


def write_shard(path: Path, kind: str, **options: Any) -> None:
    structs = [{"bytes": encoded(index, kind), "path": "x"} for index in range(10)]
    shape = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array(structs, shape), "label": list(range(10))})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4, **options)


def sha256(decoded: Decoded) -> str:
    return fingerprint(decoded.train, decoded.test)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"compression": "none"}),
        ("PPM", {"compression": "none", "write_page_checksum": True}),
    ],
    ids=["png", "jpeg", "ppm in pages with checksums"],
)
@damage(70)
def test_a_damaged_shard_is_refused_or_the_same_data_or_has_another_sha256(
    tmp_path: Path, kind: str, options: dict[str, Any], hurt: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    write_shard(path, kind, **options)
    sound, _ = parquet.read(tmp_path, "train", 10, 8, None)
    with damaged(path, hurt):
        try:
            found, _ = parquet.read(tmp_path, "train", 10, 8, None)
        except InvalidInput as error:
            assert one_line(str(error), path)
            return
    same = found.images.equal(sound.images) and found.labels.equal(sound.labels)
    assert (fingerprint(found, found) == fingerprint(sound, sound)) == same
    assert same or not options.get("write_page_checksum")
    if kind == "PNG":
        # At worst a row has the picture of another: what a dictionary page without checksum allows.
        known = {image.numpy().tobytes() for image in sound.images}
        assert {image.numpy().tobytes() for image in found.images} <= known


def test_a_label_that_changes_unseen_gives_another_data_set(tmp_path: Path) -> None:
    def load() -> str:
        return datasets.build("cifar10").load([tmp_path], Cache(tmp_path / "cache")).sha256

    picture_32 = io.BytesIO()
    Image.new("RGB", (32, 32), (1, 2, 3)).save(picture_32, "PNG")
    shape = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = list(range(10))
    for split in ("train", "test"):
        path = tmp_path / "cifar10" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        column = pa.array([{"bytes": picture_32.getvalue(), "path": "x"}] * 10, shape)
        table = pa.table({"img": column, "label": pa.array(labels, pa.int64())})
        pq.write_table(table, path, use_dictionary=False, compression="none")
    before = load()
    plain = np.arange(10, dtype="<i8").tobytes()
    place = path.read_bytes().index(plain) + 8 * 4
    with damaged(path, lambda content: content[:place] + b"\x05" + content[place + 1 :]):
        assert load() != before
    assert load() == before


@pytest.mark.parametrize(
    "which",
    [
        "GT-final_test.csv",
        "GTSRB/Training/00000/00000.ppm",
        "GTSRB/Final_Test/Images/00000.ppm",
    ],
)
@damage(40)
def test_damaged_gtsrb_is_refused_or_the_same_data_or_has_another_sha256(
    tmp_path: Path, which: str, hurt: Callable[[bytes], bytes]
) -> None:
    training, pictures = tmp_path / "GTSRB/Training/00000", tmp_path / "GTSRB/Final_Test/Images"
    for folder, count in ((training, 1), (pictures, 2)):
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (folder / f"{index:05d}.ppm").write_bytes(encoded(index, "PPM"))
    table = tmp_path / "GT-final_test.csv"
    table.write_text("Filename;Width;ClassId\n00000.ppm;8;7\n00001.ppm;8;21\n")
    sound = gtsrb.archive(tmp_path, "", "Training").decode()
    path = tmp_path / which
    with damaged(path, hurt):
        try:
            found = gtsrb.archive(tmp_path, "", "Training").decode()
        except InvalidInput as error:
            assert one_line(str(error), tmp_path)
            return
    same = all(
        one.images.equal(other.images) and one.labels.equal(other.labels)
        for one, other in ((found.train, sound.train), (found.test, sound.test))
    )
    assert (sha256(found) == sha256(sound)) == same
