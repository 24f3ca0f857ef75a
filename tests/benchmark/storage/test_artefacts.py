"""What is kept of a cell beside its record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from bdbench.storage.artefacts import load, save

ARRAYS = {
    "mask": numpy.array([True, False]),
    "samples/w": numpy.array([0.5, 1.0], dtype=numpy.float32),
    "embedding/z/after": numpy.arange(6, dtype=numpy.float32).reshape(3, 2).T,
}
KEY = "0123456789abcdef"


def same(one: dict[str, numpy.ndarray], other: dict[str, numpy.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and numpy.array_equal(one[name], other[name])
        for name in one
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(KEY, tmp_path, ARRAYS)
    found = load(KEY, tmp_path)
    assert found is not None
    assert same(found, ARRAYS)
    assert load("f" * 16, tmp_path) is None


def test_a_cell_has_one_file(tmp_path: Path) -> None:
    other = "f" * 16
    save(other, tmp_path, ARRAYS)
    save(KEY, tmp_path, ARRAYS)
    newer = {"mask": numpy.array([False, False])}
    last = save(KEY, tmp_path, newer)
    assert save(KEY, tmp_path, newer) == last
    assert sorted(path.name[:16] for path in last.parent.iterdir()) == [KEY, other]
    found = load(KEY, tmp_path)
    assert found is not None
    assert same(found, newer)


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: bytes | None) -> None:
    path = save(KEY, tmp_path, ARRAYS)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content) if damage is None else damage)
    assert load(KEY, tmp_path) is None


def test_it_needs_no_torch() -> None:
    code = "import sys, bdbench.storage.artefacts; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
