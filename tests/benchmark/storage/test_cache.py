"""The store: damage, dead writers, full disks, several processes, arrays, and clearing it."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from filelock import FileLock
from rich.filesize import decimal
from torch import Tensor

from bdbench.cli import main
from bdbench.models.plugins.errors import InvalidInput
from bdbench.storage.atomic import write_atomically
from bdbench.storage.cache import Cache, DamagedCache, UnwritableCache, sha256_of
from bdbench.storage.keys import digest_of
from bdbench.storage.maintenance import KINDS, clear, contents, listing
from bdbench.storage.mark import TAG

SPAWN = multiprocessing.get_context("spawn")
DAY = 24 * 3600.0
KEY = {"a": 1}
CELL = {"cell": "0123456789abcdef"}
VALUES = torch.arange(500)
TOKEN = "0"
"""Of a temporary file."""


def build() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {"x": VALUES}, {"n": 7}


def fill(root: Path, kind: str = "poisoned", key: Any = KEY, age: float = 0.0) -> list[Path]:
    """An entry that was last used `age` seconds ago: its description and its payload."""
    Cache(root).fetch(kind, key, build)
    paths = [root / kind / f"{digest_of(key)}.{suffix}" for suffix in ("json", "safetensors")]
    return [aged(path, age) for path in paths]


def aged(path: Path, age: float) -> Path:
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def checkpoint(root: Path, name: str, age: float, content: bytes = b"state") -> Path:
    path = (
        root / "checkpoints" / folder_of(name) / f"0-3-{hashlib.sha256(content).hexdigest()[:32]}"
    )
    path = path.with_suffix(".safetensors")
    write_atomically(path, content)
    return aged(path, age)


def folder_of(name: str) -> str:
    """The name of the folder of a piece of work."""
    return digest_of(name)


def embeddings(root: Path, age: float = 0.0) -> list[Path]:
    Cache(root).put("embeddings", CELL, {"mask": numpy.ones(9)})
    return [aged(path, age) for path in (root / "embeddings").glob(f"{digest_of(CELL)}.[js]*")]


def names(root: Path) -> set[str]:
    """All files, but the mark of the cache and the locks of entries that are there."""
    paths = {path for path in root.rglob("*") if path.is_file() and path.name != TAG}
    locks = {
        path for path in paths if path.suffix == ".lock" and path.with_suffix(".json").exists()
    }
    return {str(path.relative_to(root)) for path in paths - locks}


@dataclass
class Bomb:
    """Makes a file when it is unpickled."""

    path: str

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return write_text, (self.path, "executed")


def write_text(path: str, text: str) -> None:
    Path(path).write_text(text)


def rewrite(description: Path, **changes: Any) -> None:
    """Change a description as someone would who knows how it is made."""
    document = json.loads(description.read_bytes()) | changes
    del document["digest"]
    description.write_text(json.dumps(document | {"digest": digest_of(document)}))


def bit_flipped(description: Path, payload: Path, bomb: Bomb) -> None:
    content = bytearray(payload.read_bytes())
    content[-1] ^= 1
    payload.write_bytes(content)


def torch_file(description: Path, payload: Path, bomb: Bomb) -> None:
    torch.save(bomb, payload)


def torch_file_with_its_hash(description: Path, payload: Path, bomb: Bomb) -> None:
    torch.save(bomb, payload)
    rewrite(description, sha256=sha256_of(payload))


def numpy_file_with_its_hash(description: Path, payload: Path, bomb: Bomb) -> None:
    with payload.open("wb") as file:
        numpy.save(file, numpy.array([bomb], dtype=object), allow_pickle=True)
    rewrite(description, sha256=sha256_of(payload))


def pickle_as_description(description: Path, payload: Path, bomb: Bomb) -> None:
    description.write_bytes(pickle.dumps(bomb))


def meta_emptied(description: Path, payload: Path, bomb: Bomb) -> None:
    document = json.loads(description.read_bytes())
    description.write_text(json.dumps(document | {"meta": {}}))


def digit_flipped(description: Path, payload: Path, bomb: Bomb) -> None:
    text = description.read_text()
    assert text.count('"n": 7') == 1
    description.write_text(text.replace('"n": 7', '"n": 3'))


def entry_of_another_key(description: Path, payload: Path, bomb: Bomb) -> None:
    others = fill(description.parents[1], key={"a": 2})
    for other, path in zip(others, (description, payload), strict=True):
        shutil.copy(other, path)


def deeply_nested(description: Path, payload: Path, bomb: Bomb) -> None:
    description.write_text("[" * 100_000)


def another_json(description: Path, payload: Path, bomb: Bomb) -> None:
    description.write_text("[1, 2]")


@pytest.mark.parametrize(
    "damage",
    [
        bit_flipped,
        torch_file,
        torch_file_with_its_hash,
        numpy_file_with_its_hash,
        pickle_as_description,
        meta_emptied,
        digit_flipped,
        entry_of_another_key,
        deeply_nested,
        another_json,
    ],
)
def test_damage_is_found_and_mended_and_nothing_is_executed(
    damage: Callable[[Path, Path, Bomb], None], tmp_path: Path
) -> None:
    cache, trace = Cache(tmp_path / "cache"), tmp_path / "trace"
    description, payload = fill(cache.root)
    damage(description, payload, Bomb(str(trace)))
    with pytest.warns(DamagedCache, match="is corrupt; rebuilding it"):
        assert cache.fetch("poisoned", KEY, build).fresh
    again = cache.fetch("poisoned", KEY, build)
    assert not again.fresh
    assert torch.equal(again.tensors["x"], VALUES)
    assert again.meta == {"n": 7}
    assert not trace.exists()


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(str(tmp_path / "trace"))))
    assert (tmp_path / "trace").exists()


def test_the_next_writer_removes_what_a_dead_one_left_of_the_same_entry(tmp_path: Path) -> None:
    folder = tmp_path / "poisoned"
    folder.mkdir()
    own = [f".{digest_of(KEY)}.{suffix}.{TOKEN}.tmp" for suffix in ("json", "safetensors")]
    others = {f".{digest_of(0)}.json.{TOKEN}.tmp", f".{digest_of(KEY)}.json.0ab1.tmp"}
    for name in (*own, *others):
        (folder / name).write_text("half")
    fill(tmp_path)
    assert {path.name for path in folder.glob(".*")} == others
    Cache(tmp_path).prepare()
    assert {path.name for path in folder.glob(".*")} == {f".{digest_of(KEY)}.json.0ab1.tmp"}


def test_a_hit_counts_as_use(tmp_path: Path) -> None:
    description, _ = fill(tmp_path, age=DAY)
    (entry,) = contents(Cache(tmp_path), "poisoned")
    assert time.time() - entry.used == pytest.approx(DAY, abs=60)
    fill(tmp_path, key={"a": 2}, age=60.0)
    Cache(tmp_path).fetch("poisoned", KEY, build)
    newest, oldest = contents(Cache(tmp_path), "poisoned")
    assert newest.name == description.stem
    assert time.time() - newest.used < 50 < time.time() - oldest.used
    embeddings(tmp_path, DAY)
    assert Cache(tmp_path).get("embeddings", CELL)
    (entry,) = contents(Cache(tmp_path), "embeddings")
    assert time.time() - entry.used < 50


# Full disks


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidInput, match=r"cannot write file in .*: No space left on device$"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize(("numbers", "letters"), [(10_000, 1), (1, 50_000)])
def test_a_real_limit_leaves_no_half_entry(numbers: int, letters: int, tmp_path: Path) -> None:
    """Either the payload or, after it, the description meets the limit."""
    cache, made = Cache(tmp_path), ({"x": torch.arange(numbers)}, {"text": letters * "a"})
    cache.prepare()
    write_atomically(tmp_path / "file", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.warns(UnwritableCache, match="File too large"):
            entry = cache.fetch("poisoned", KEY, lambda: made)
        assert (entry.tensors, entry.meta) == made
        with pytest.raises(InvalidInput, match="File too large"):
            write_atomically(tmp_path / "file", bytes(30_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == {"file", f"poisoned/{digest_of(KEY)}.lock"}
    fill(tmp_path)
    assert not Cache(tmp_path).fetch("poisoned", KEY, build).fresh


# Several processes


def ask(root: Path, ready: Barrier) -> None:
    """Fetch with a slow builder, and write down what came of it."""

    def slowly() -> tuple[dict[str, Tensor], dict[str, Any]]:
        (root / f"built by {os.getpid()}").touch()
        time.sleep(0.3)
        return build()

    ready.wait(60)
    entry = Cache(root).fetch("poisoned", KEY, slowly)
    (root / f"{'fresh' if entry.fresh else 'found'} {int(entry.tensors['x'].sum())}").touch()


def test_of_two_processes_one_builds_and_both_have_it(tmp_path: Path) -> None:
    ready = SPAWN.Barrier(2)
    child = SPAWN.Process(target=ask, args=(tmp_path, ready))
    child.start()
    ask(tmp_path, ready)
    child.join(60)
    assert child.exitcode == 0
    total = int(VALUES.sum())
    assert (tmp_path / f"fresh {total}").exists()
    assert (tmp_path / f"found {total}").exists()
    assert len(list(tmp_path.glob("built by *"))) == 1


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def hang_while_writing(root: Path) -> None:
    def hang(descriptor: int) -> None:
        (root / "writing").touch()
        time.sleep(60)

    Cache(root).prepare()
    os.fsync = hang
    Cache(root).fetch("poisoned", KEY, build)


@pytest.mark.timeout(120)
def test_a_builder_that_is_killed_while_it_writes_holds_nobody_up(tmp_path: Path) -> None:
    child = SPAWN.Process(target=hang_while_writing, args=(tmp_path,))
    child.start()
    wait_for(tmp_path / "writing")
    assert clear(Cache(tmp_path))[0] == "kept 1 in use"
    assert len(list(tmp_path.rglob(".*.tmp"))) == 1
    child.kill()
    child.join()
    assert Cache(tmp_path).fetch("poisoned", KEY, build).fresh
    assert not list(tmp_path.rglob(".*.tmp"))


def hang_in_a_table(path: Path) -> None:
    def hang(descriptor: int) -> None:
        path.with_name("writing").touch()
        time.sleep(60)

    os.fsync = hang
    write_atomically(path, b"half")


def test_a_file_that_is_written_again_has_nothing_of_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "table[1].md"
    child = SPAWN.Process(target=hang_in_a_table, args=(path,))
    child.start()
    wait_for(tmp_path / "writing")
    write_atomically(path, b"whole")
    assert len(list(tmp_path.glob(".*.tmp"))) == 1, "its writer is alive"
    child.kill()
    child.join()
    write_atomically(path, b"whole")
    assert names(tmp_path) == {path.name, "writing"}
    assert path.read_bytes() == b"whole"


# Arrays

ARRAYS = {
    "mask": numpy.array([True, False]),
    "samples/w": numpy.array([0.5, 1.0], dtype=numpy.float32),
    "embedding/z/after": numpy.arange(6, dtype=numpy.float32).reshape(3, 2).T,
}


def test_arrays_are_read_as_they_were_stored(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("embeddings", CELL, ARRAYS)
    found = cache.get("embeddings", CELL)
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert numpy.array_equal(found[name], array)
    assert cache.get("embeddings", {"cell": 16 * "f"}) is None


def test_a_key_has_one_set_of_arrays(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path), {"cell": 16 * "f"}
    cache.put("embeddings", other, ARRAYS)
    for values in ([True, True], [False, False]):
        cache.put("embeddings", CELL, {"mask": numpy.array(values)})
        found = cache.get("embeddings", CELL)
        assert found is not None
        assert found["mask"].tolist() == values
    kept = {entry.name for entry in contents(cache, "embeddings")}
    assert kept == {digest_of(CELL), digest_of(other)}


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_damaged_arrays_are_as_good_as_none(
    tmp_path: Path, damage: bytes | None, index: int
) -> None:
    path = sorted(embeddings(tmp_path))[index]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content) if damage is None else damage)
    assert Cache(tmp_path).get("embeddings", CELL) is None


def test_arrays_need_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys, numpy
from pathlib import Path
from bdbench.storage.cache import Cache
cache = Cache(Path({str(tmp_path)!r}))
cache.put("embeddings", {{}}, {{"x": numpy.ones(3)}})
assert cache.get("embeddings", {{}})["x"].sum() == 3
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Clearing it


def test_everything_but_the_data_of_figures_is_cleared(tmp_path: Path) -> None:
    embeddings(tmp_path, 100 * DAY)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.json").touch()
    (tmp_path / "poisoned").mkdir()
    (tmp_path / "poisoned" / "notes.txt").touch()
    expected = names(tmp_path)

    fill(tmp_path)
    fill(tmp_path, "undefended", age=DAY)
    fill(tmp_path, "datasets", {"a": 4})[1].unlink()  # corrupt
    (tmp_path / "undefended" / f"{digest_of(5)}.lock").touch()
    (tmp_path / "undefended" / f"{digest_of(6)}.safetensors").touch()
    (tmp_path / "poisoned" / f".{digest_of(KEY)}.json.{TOKEN}.tmp").write_text("half")
    checkpoint(tmp_path, "paused", DAY)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.*") if path.is_file())

    lines = clear(Cache(tmp_path))
    assert names(tmp_path) == expected
    assert not list((tmp_path / "checkpoints").iterdir())
    assert not list((tmp_path / "undefended").iterdir())
    freed = size - sum(path.stat().st_size for path in tmp_path.rglob("*.*") if path.is_file())
    assert lines[:-1] == [
        "removed 1 of datasets",
        "removed 1 of poisoned",
        "removed 2 of undefended",
        "removed 1 of checkpoints",
    ]
    left = sum(path.stat().st_size for path in (tmp_path / "embeddings").iterdir())
    assert lines[-1] == f"{decimal(freed)} removed, {left} bytes left in {tmp_path}"
    assert clear(Cache(tmp_path))[0].startswith("0 bytes removed, ")


def test_only_the_kind_that_is_named_is_cleared(tmp_path: Path) -> None:
    fill(tmp_path)
    fill(tmp_path, "undefended")
    embeddings(tmp_path)
    cache = Cache(tmp_path)
    for kind, left in (
        ("poisoned", {"undefended", "embeddings"}),
        ("checkpoints", {"undefended", "embeddings"}),
        ("embeddings", {"undefended"}),
        (None, set()),
    ):
        clear(cache, kind)
        assert {each for each in KINDS if contents(cache, each)} == left


def test_only_what_was_not_used_for_so_many_days_is_cleared(tmp_path: Path) -> None:
    for age in (1, 2, 3, 4):
        fill(tmp_path, ("datasets", "poisoned")[age % 2], {"a": age}, age * DAY)
    checkpoint(tmp_path, "paused", 3 * DAY)
    clear(Cache(tmp_path), older_than=2.5)
    assert names(tmp_path) == {
        f"{kind}/{digest_of({'a': age})}.{suffix}"
        for kind, age in (("poisoned", 1), ("datasets", 2))
        for suffix in ("json", "safetensors")
    }
    Cache(tmp_path).fetch("poisoned", {"a": 1}, build)
    clear(Cache(tmp_path), older_than=0.5)
    assert {name.split("/")[0] for name in names(tmp_path)} == {"poisoned"}


@pytest.mark.parametrize("age", [-DAY, 0.0, 60.0])
def test_checkpoints_of_a_running_cell_are_kept(tmp_path: Path, age: float) -> None:
    path = checkpoint(tmp_path, "running", age)
    checkpoint(tmp_path, "paused", 2 * 3600.0)
    for kind in (None, "checkpoints"):
        assert "kept 1 in use" in clear(Cache(tmp_path), kind)
    assert [path] == list(tmp_path.rglob("*.safetensors"))


def test_what_is_locked_is_kept_and_a_build_survives_a_clear_beside_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    payload = fill(tmp_path)[1]
    payload.write_bytes(b"damaged")
    fill(tmp_path, key={"a": 2}, age=DAY)

    def cleared() -> tuple[dict[str, Tensor], dict[str, Any]]:
        with FileLock(tmp_path / "poisoned" / f"{digest_of({'a': 2})}.lock"):
            assert clear(cache)[0] == "kept 2 in use"
        assert payload.read_bytes() == b"damaged"
        return build()

    with pytest.warns(DamagedCache):
        assert cache.fetch("poisoned", KEY, cleared).fresh
    assert not cache.fetch("poisoned", KEY, build).fresh
    assert not cache.fetch("poisoned", {"a": 2}, build).fresh


# Commands


def test_the_commands_list_and_clear(
    cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = "badnets(poisoning_rate=0.1, target=3)"
    made = {"data": "ab" * 32, "attack": spec, "source": "x", "seed": 5}
    fill(cache_folder, key=made, age=DAY)
    fill(cache_folder, key={**made, "attack": "gone(x=1)", "model": "wrn16_1"})
    fill(cache_folder, "datasets", {"name": "gtsrb", "files": "x", "decoder": 1})[1].unlink()
    embeddings(cache_folder)
    checkpoint(cache_folder, "fedc", DAY)

    assert main(["cache", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = {line.split()[0]: line.split()[1] for line in lines[1:6]}
    assert counts == {
        "datasets": "1",
        "poisoned": "2",
        "undefended": "0",
        "embeddings": "1",
        "checkpoints": "1",
    }
    assert lines[-1].endswith(f" in {cache_folder}")

    assert main(["cache", "ls", "poisoned"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("data abababab · gone(x=1) · wrn16_1 · seed 5")
    assert lines[2].endswith("data abababab · badnets(target=3) · seed 5")
    assert lines[2].startswith(digest_of(made))
    for kind, words in (
        ("datasets", "gtsrb"),
        ("embeddings", "of cell 0123456789abcdef"),
        ("checkpoints", "of an unfinished cell"),
    ):
        assert main(["cache", "ls", kind]) == 0
        assert capsys.readouterr().out.splitlines()[1].endswith(words)

    (cache_folder / "datasets" / f"{digest_of(1)}.json").touch()
    assert main(["cache", "ls", "datasets"]) == 0
    assert "corrupt or incomplete" in capsys.readouterr().out
    assert main(["cache", "clear", "--older-than=2"]) == 0
    assert capsys.readouterr().out.startswith("0 bytes removed, ")
    assert main(["cache", "clear", "poisoned", "--older-than", "0.5"]) == 0
    assert capsys.readouterr().out.startswith("removed 1 of poisoned\n")
    assert main(["cache", "clear"]) == 0
    assert {name.split("/")[0] for name in names(cache_folder)} == {"embeddings"}
    assert main(["cache", "clear", "embeddings"]) == 0
    assert capsys.readouterr().out.endswith(f"removed, 0 bytes left in {cache_folder}\n")
    assert names(cache_folder) == set()


def test_an_empty_cache_is_fine(cache_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["ls"], ["ls", "poisoned"], ["clear"], ["clear", "poisoned"]):
        assert main(["cache", *command]) == 0
    assert not list(cache_folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ls", "poison"], "unknown kind 'poison'; did you mean 'poisoned'?"),
        (["clear", "data"], "unknown kind 'data'"),
        (["clear", "--older-than=-1"], "--older-than must be 0 days or more, got -1"),
        (["clear", "--older-than=nan"], "--older-than must be 0 days or more, got nan"),
        (["clear", "--older-than=inf"], "--older-than must be 0 days or more, got inf"),
        (["clear", "--older-than=week"], "'week' is not a valid float"),
        (["gc"], "unknown command 'gc'"),
    ],
)
def test_a_mistake_is_one_line_and_removes_nothing(
    arguments: list[str],
    complaint: str,
    cache_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(cache_folder)[1].unlink()
    before = names(cache_folder)
    assert main(["cache", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert complaint in lines[0]
    assert names(cache_folder) == before


def test_a_lock_alone_is_no_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.fetch("poisoned", {"a": 1}, lambda: ({}, {}))
    assert cache.find("poisoned", {"a": 2}, lambda meta: True) is None
    (cache.root / "poisoned" / f"{digest_of(3)}.lock").touch()
    assert "corrupt" not in listing(cache, "poisoned")
    assert re.search(r"poisoned +1 ", listing(cache))
