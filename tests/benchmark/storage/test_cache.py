"""The store: damage, dead writers, full disks, several processes, and keeping it small."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import shutil
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
from torch import Tensor

from bdbench.cli import main
from bdbench.models.plugins.errors import InvalidInput
from bdbench.storage import artefacts
from bdbench.storage.atomic import write_atomically
from bdbench.storage.cache import Cache, DamagedCache, UnwritableCache, sha256_of
from bdbench.storage.keys import digest_of
from bdbench.storage.maintenance import contents, parse_size, sweep, verify
from bdbench.storage.mark import TAG

SPAWN = multiprocessing.get_context("spawn")
DAY = 24 * 3600.0
KEY = {"a": 1}
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
    """Under which name the checkpoints of a piece of work lie."""
    return digest_of(name)


def artefact(root: Path, age: float = 0.0) -> Path:
    return aged(artefacts.save("0123456789abcdef", root, {"mask": numpy.ones(9)}), age)


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
    lines, whole = verify(cache)
    assert not whole
    assert lines[0] == f"damaged or half written: poisoned/{digest_of(KEY)}"
    with pytest.warns(DamagedCache, match="is damaged and is made anew"):
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
    assert contents(Cache(tmp_path), "poisoned")[0].age == pytest.approx(DAY, abs=60)
    fill(tmp_path, key={"a": 2}, age=60.0)
    Cache(tmp_path).fetch("poisoned", KEY, build)
    newest, oldest = contents(Cache(tmp_path), "poisoned")
    assert newest.name == description.stem
    assert newest.age < 50 < oldest.age


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
    assert verify(Cache(tmp_path))[1]


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


def test_a_builder_that_is_killed_while_it_writes_holds_nobody_up(tmp_path: Path) -> None:
    child = SPAWN.Process(target=hang_while_writing, args=(tmp_path,))
    child.start()
    wait_for(tmp_path / "writing")
    (entry,) = contents(Cache(tmp_path), "poisoned")
    with entry.claim() as free:
        assert not free
    assert "removed 0 bytes" in sweep(Cache(tmp_path), max_size="0")[0]
    assert len(list(tmp_path.rglob(".*.tmp"))) == 1
    child.kill()
    child.join()
    start = time.monotonic()
    assert Cache(tmp_path).fetch("poisoned", KEY, build).fresh
    assert time.monotonic() - start < 5
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


# Keeping it small


def test_what_no_run_can_use_is_removed_and_nothing_else(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    fill(tmp_path)
    fill(tmp_path, "undefended")
    checkpoint(tmp_path, "young", DAY)
    artefact(tmp_path, 100 * DAY)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.json").touch()
    (tmp_path / "poisoned" / "notes.txt").touch()
    expected = names(tmp_path)

    description, payload = fill(tmp_path, key={"a": 2})
    payload.write_bytes(payload.read_bytes()[:-1])
    fill(tmp_path, key={"a": 3})[0].unlink()
    fill(tmp_path, "datasets", {"a": 4})[1].unlink()
    (tmp_path / "undefended" / f"{digest_of(5)}.lock").touch()
    (tmp_path / "undefended" / f"{digest_of(6)}.safetensors").touch()
    (tmp_path / "poisoned" / f".{digest_of(KEY)}.json.{TOKEN}.tmp").write_text("half")
    young, old = (folder_of(name) for name in ("young", "old"))
    write_atomically(tmp_path / "checkpoints" / young / f"1-1-{32 * '0'}.safetensors", b"x")
    aged(tmp_path / "checkpoints" / young / f"1-1-{32 * '0'}.safetensors", DAY)
    checkpoint(tmp_path, "old", 8 * DAY)
    before, size = names(tmp_path), sum(p.stat().st_size for p in tmp_path.rglob("*.*"))

    foreseen = sweep(cache, dry_run=True)
    assert names(tmp_path) == before
    done = sweep(cache)
    assert [line.replace("would remove", "removed") for line in foreseen[:-1]] == done[:-1]
    assert names(tmp_path) == expected
    assert not (tmp_path / "checkpoints" / old).exists()
    said = "\n".join(done)
    assert f"removed poisoned/{description.stem}, damaged or half written" in said
    assert f"removed poisoned/{digest_of(KEY)}, left over: 4 bytes" in said
    assert f"removed undefended/{digest_of(5)}, left over: 0 bytes" in said
    assert f"removed checkpoints/{young}, damaged or half written: 1 byte" in said
    assert f"removed checkpoints/{old}, unused for a week: 5 bytes" in said
    freed = size - sum(p.stat().st_size for p in tmp_path.rglob("*.*"))
    assert done[-1].startswith(f"removed {freed / 1000:.1f} kB, ")
    assert verify(cache)[1]
    assert "removed 0 bytes" in sweep(cache)[0]


def test_the_least_recently_used_go_until_the_rest_fits(tmp_path: Path) -> None:
    for age in (3, 1, 4, 2):
        fill(tmp_path, ("datasets", "poisoned")[age % 2], {"a": age}, age * DAY)
    checkpoint(tmp_path, "paused", 2.5 * DAY, bytes(1000))
    checkpoint(tmp_path, "running", 60.0)
    artefact(tmp_path, 100 * DAY)
    cache = Cache(tmp_path)
    one = contents(cache, "poisoned")[0].size
    lines = sweep(cache, max_size=str(2 * one + 10))
    assert [line.split(", ")[0] for line in lines[:-1]] == [
        f"removed datasets/{digest_of({'a': 4})}",
        f"removed poisoned/{digest_of({'a': 3})}",
        f"removed checkpoints/{folder_of('paused')}",
    ]
    assert {
        stored.name for kind in ("datasets", "poisoned") for stored in contents(cache, kind)
    } == {
        digest_of({"a": 1}),
        digest_of({"a": 2}),
    }
    assert [stored.name for stored in contents(cache, "checkpoints")] == [folder_of("running")]
    assert sweep(cache, max_size="0")[-1] == "that is more than 0: the rest is in use"
    assert {name.split("/")[0] for name in names(tmp_path)} == {"checkpoints", "artefacts"}
    assert not list(tmp_path.rglob("*.lock"))


def test_only_a_kind_that_is_named_is_touched(tmp_path: Path) -> None:
    fill(tmp_path)
    artefact(tmp_path)
    damaged = tmp_path / "artefacts" / f"{16 * '0'}-{16 * '0'}.safetensors"
    write_atomically(damaged, b"x")
    young = tmp_path / "artefacts" / f".{16 * '0'}-{16 * '1'}.safetensors.{TOKEN}.tmp"
    young.touch()
    sweep(Cache(tmp_path))
    assert damaged.exists()
    sweep(Cache(tmp_path), ["artefacts"])
    assert young.exists(), "its writer may be alive, and has no lock"
    assert not damaged.exists()
    sweep(Cache(tmp_path), ["artefacts"], max_size="0")
    assert names(tmp_path) == {
        f"poisoned/{digest_of(KEY)}.{s}" for s in ("json", "safetensors")
    } | {f"artefacts/{young.name}"}


def test_what_is_held_stays_and_a_build_survives_a_sweep_beside_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    payload = fill(tmp_path)[1]
    payload.write_bytes(b"damaged")
    fill(tmp_path, key={"a": 2}, age=DAY)

    def swept() -> tuple[dict[str, Tensor], dict[str, Any]]:
        with FileLock(tmp_path / "poisoned" / f"{digest_of({'a': 2})}.lock"):
            assert sweep(cache, max_size="0")[-1] == "that is more than 0: the rest is in use"
            lines, whole = verify(cache)
        assert whole
        assert ["poisoned", "0", "2"] in [line.split() for line in lines[0].splitlines()]
        assert payload.read_bytes() == b"damaged"
        return build()

    with pytest.warns(DamagedCache):
        assert cache.fetch("poisoned", KEY, swept).fresh
    assert not cache.fetch("poisoned", KEY, build).fresh
    assert not cache.fetch("poisoned", {"a": 2}, build).fresh


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500M", 500_000_000),
        ("10G", 10**10),
        ("1.5T", 1_500_000_000_000),
        ("123", 123),
        ("2 kB", 2_000),
        (" 10gb ", 10**10),
        ("0", 0),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1e9", "ten", "10X", "10 G B", "1.2.3", "9" * 400])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"a size is written 500M, 10G, 1\.5T or in bytes"):
        parse_size(text)


# Commands


def test_the_commands_show_check_and_clear(
    cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = "badnets(poisoning_rate=0.1, target=3)"
    made = {"data": "ab" * 32, "attack": spec, "source": "x", "seed": 5}
    fill(cache_folder, key=made, age=DAY)
    fill(cache_folder, key={**made, "attack": "gone(x=1)", "model": "wrn16_1"})
    fill(cache_folder, "datasets", {"name": "gtsrb", "files": "x", "decoder": 1})[1].unlink()
    artefact(cache_folder)
    checkpoint(cache_folder, "fedc", DAY)

    assert main(["cache", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = {line.split()[0]: line.split()[1] for line in lines[1:6]}
    assert counts == {
        "datasets": "1",
        "poisoned": "2",
        "undefended": "0",
        "artefacts": "1",
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
        ("artefacts", "of cell 0123456789abcdef"),
        ("checkpoints", "of an unfinished cell"),
    ):
        assert main(["cache", "ls", kind]) == 0
        assert capsys.readouterr().out.splitlines()[1].endswith(words)

    before = names(cache_folder)
    assert main(["cache", "verify"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("damaged or half written: datasets/")
    assert "1 damaged in" in said
    assert main(["cache", "gc", "--dry-run"]) == 0
    assert names(cache_folder) == before
    assert main(["cache", "gc"]) == 0
    assert "removed datasets/" in capsys.readouterr().out
    assert main(["cache", "verify"]) == 0
    assert "0 damaged in" in capsys.readouterr().out
    assert main(["cache", "gc", "--max-size=0", "--kind=poisoned", "--kind=artefacts"]) == 0
    assert [name.split("/")[0] for name in names(cache_folder)] == ["checkpoints"]


def test_an_empty_cache_is_fine(cache_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["ls"], ["ls", "poisoned"], ["verify"], ["gc", "--max-size=1G"]):
        assert main(["cache", *command]) == 0
    assert not list(cache_folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ls", "poison"], "unknown kind 'poison'; did you mean 'poisoned'?"),
        (["gc", "--kind=data"], "unknown kind 'data'"),
        (["gc", "--max-size=10X"], "a size is written 500M, 10G, 1.5T or in bytes, got '10X'"),
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
