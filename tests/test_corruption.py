"""A flipped bit or a cut in any file is noticed, or changes nothing that is read from it.

JPEG, PPM, and Parquet pages without checksums let damage pass unseen. The sha256 of the data
changes with it, and so does the data set that a record names. PNG, Parquet pages with checksums,
records, cache entries and embeddings never pass damage off as what was written.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import torch
from builders import write_gtsrb, write_shard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_results import FOLDERS

from bdbench.cli import main
from bdbench.datasets import gtsrb, images, parquet
from bdbench.datasets.base import fingerprint
from bdbench.datasets.registry import datasets
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records import files as records
from bdbench.records.merge import merge
from bdbench.storage.cache import Cache, DamagedCache

Hurt = Callable[[bytes], bytes]

PLACES = 1_000_000
RECORDS = [
    builders.make_record("none", "badnets", 900, 990),
    builders.make_record("cbd", "badnets", 850, 13, floor=12, seconds=(0.0, 123.25)),
    builders.make_record("cbd", "blend"),
]


def damage(examples: int) -> Callable[[Any], Any]:
    """A test of `hurt`, which flips one bit of a file's content or cuts the content off."""

    def hurting(share: int, bit: int | None) -> Hurt:
        def hurt(content: bytes) -> bytes:
            place = share * len(content) // PLACES
            return content[:place] if bit is None else flipped(content, place, bit)

        return hurt

    bits = st.sampled_from([None, *range(8)])
    hurts = st.builds(hurting, st.integers(0, PLACES - 1), bits)
    ignored = [HealthCheck.function_scoped_fixture]
    how = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=ignored,
    )
    return lambda test: how(given(hurt=hurts)(test))


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


@contextlib.contextmanager
def damaged(path: Path, hurt: Hurt) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(hurt(before))
    try:
        yield
    finally:
        path.write_bytes(before)


def one_line(message: str, path: Path) -> bool:
    return str(path) in message and message.isprintable()


# Records


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
def test_a_damaged_record_is_never_another_record(results: Path, index: int, hurt: Hurt) -> None:
    path = file_of(results, index)
    with damaged(path, hurt):
        try:
            found = records.read(path)
            # Without its name a checksum is an unknown field, and the others are not checked.
            assert replace(found, more={}) == RECORDS[index]
        except InvalidInput as error:
            assert one_line(str(error), path)


@pytest.mark.parametrize("folder", [None, *FOLDERS], ids=lambda folder: folder and folder.name)
def test_no_digit_of_a_record_changes_unseen(
    folder: Path | None, results: Path, tmp_path: Path
) -> None:
    """But the last digit of a published float may change where its value does not."""
    source = min((folder / "records").glob("*.json")) if folder else file_of(results, 1)
    sound, content = records.read(source), source.read_bytes()
    digits = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    assert len(digits) > 100
    path = tmp_path / source.name
    for place in digits[:: max(1, len(digits) // 60)] if folder else digits:
        other = b"%d" % ((content[place] - ord("0") + 1) % 10)
        path.write_bytes(content[:place] + other + content[place + 1 :])
        try:
            assert records.read(path) == sound
            assert folder
        except InvalidInput as error:
            assert one_line(str(error), path)


@damage(40)
def test_a_table_shows_what_was_recorded_or_names_the_file(results: Path, hurt: Hurt) -> None:
    path, board = file_of(results, 1), results / "tables/leaderboard.csv"

    def table() -> tuple[int, str, bytes]:
        shutil.rmtree(results / "tables", ignore_errors=True)
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            code = main(["table", "leaderboard", "--results", str(results)])
        return code, errors.getvalue(), board.read_bytes() if board.exists() else b""

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


def test_a_merge_gives_a_record_without_a_checksum_one(results: Path, tmp_path: Path) -> None:
    document = json.loads(file_of(results, 1).read_bytes())
    assert len(document.pop("checksum")) == 64
    old = tmp_path / "old" / "records" / f"{RECORDS[1].key}.json"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps(document))
    assert records.read(old) == RECORDS[1]
    merge([old.parent.parent], tmp_path)
    assert (tmp_path / "records" / old.name).read_bytes() == file_of(results, 1).read_bytes()


def test_a_record_in_another_layout_is_not_damaged(results: Path) -> None:
    path = file_of(results, 1)
    with damaged(path, lambda content: json.dumps(json.loads(content), indent=7).encode()):
        assert records.read(path) == RECORDS[1]


# Cache


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@damage(40)
def test_a_damaged_cache_entry_is_built_again(tmp_path: Path, suffix: str, hurt: Hurt) -> None:
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
        rebuilt = fetch()
    assert [each.category for each in said] == [DamagedCache] * rebuilt
    assert rebuilt or suffix == "json"
    assert not fetch()


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@damage(40)
def test_damaged_embeddings_are_not_loaded(tmp_path: Path, suffix: str, hurt: Hurt) -> None:
    arrays = {"mask": np.array([True, False]), "samples/w": np.array([0.5, 1.0], np.float32)}
    cache, key = Cache(tmp_path), {"cell": "0123456789abcdef"}
    cache.put("embeddings", key, arrays)
    with damaged(next((tmp_path / "embeddings").glob(f"*.{suffix}")), hurt):
        found = cache.get("embeddings", key)
        # Another layout of the same JSON is no damage.
        assert found is None or (suffix == "json" and found["mask"].tolist() == [True, False])
    assert cache.get("embeddings", key) is not None


# Data sets


def picture(index: int) -> np.ndarray:
    """Smooth, so that an encoder has something to compress, and a flip does more than one pixel."""
    y, x = np.mgrid[:8, :8]
    return np.stack([y * 20 + index, x * 20, y + x + index], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def pictures(count: int, kind: str) -> list[bytes]:
    return [encoded(Image.fromarray(picture(index)), kind) for index in range(count)]


def check(
    read: Callable[[], tuple[ImageSet, ImageSet]], path: Path, hurt: Hurt
) -> tuple[ImageSet, ImageSet, bool] | None:
    """Read two sets of images before and after damage. Returns None where the damage is refused,
    else what the first set was and is, and whether both are the same, as their sha256 must say."""
    sound = read()
    with damaged(path, hurt):
        try:
            found = read()
        except InvalidInput as error:
            assert one_line(str(error), path.parent)
            return None
    same = all(
        one.images.equal(other.images) and one.labels.equal(other.labels)
        for one, other in zip(found, sound, strict=True)
    )
    assert (fingerprint(*found) == fingerprint(*sound)) == same
    return sound[0], found[0], same


def test_no_bit_of_a_png_changes_the_picture_unseen() -> None:
    (content,) = pictures(1, "PNG")
    for place in range(len(content)):
        for bit in range(8):
            try:
                found = images.decode(flipped(content, place, bit), 8, None, "x")
            except InvalidInput as error:
                assert one_line(str(error), Path("x"))
            else:
                assert found == picture(0).transpose(2, 0, 1).tobytes()


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
    tmp_path: Path, kind: str, options: dict[str, Any], hurt: Hurt
) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    write_shard(path, pictures(10, kind), range(10), row_group_size=4, **options)

    def read() -> tuple[ImageSet, ImageSet]:
        return (parquet.read(tmp_path, "train", 10, 8, None)[0].finish(),) * 2

    outcome = check(read, path, hurt)
    if outcome is None:
        return
    sound, found, same = outcome
    assert same or not options.get("write_page_checksum")
    if kind == "PNG":
        # At worst a row has the picture of another: what a dictionary page without checksum allows.
        known = {image.numpy().tobytes() for image in sound.images}
        assert {image.numpy().tobytes() for image in found.images} <= known


def test_a_label_that_changes_unseen_gives_another_data_set(tmp_path: Path) -> None:
    def load() -> str:
        return datasets.build("cifar10").load([tmp_path], Cache(tmp_path / "cache")).sha256

    black = encoded(Image.new("RGB", (32, 32)), "PNG")
    for split in ("train", "test"):
        path = tmp_path / "cifar10" / f"{split}-00000-of-00001.parquet"
        write_shard(path, [black] * 10, range(10), use_dictionary=False, compression="none")
    before = load()
    labels = np.arange(10, dtype="<i8").tobytes()
    place = path.read_bytes().index(labels) + 8 * 4
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
    tmp_path: Path, which: str, hurt: Hurt
) -> None:
    write_gtsrb(tmp_path, pictures(2, "PPM"))

    def read() -> tuple[ImageSet, ImageSet]:
        decoded = gtsrb.locate(tmp_path, "", "Training").decode()
        return decoded.train, decoded.test

    check(read, tmp_path / which, hurt)
