"""Disks that are full or fail: what was whole stays whole, and a cell goes on with what it has."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from builders import make_record
from commands import refused
from torch import Tensor

import bdbench as bd
from bdbench.cells.cell import cell, cell_of_record
from bdbench.cli import main
from bdbench.models.training.recipe import Recipe
from bdbench.records.claims import claimed, lock_of, stamp
from bdbench.records.files import path_of, read, write
from bdbench.running.worker import keep
from bdbench.storage import folders
from bdbench.storage.atomic import Unusable, write_atomically
from bdbench.storage.cache import Cache, UnwritableCache
from bdbench.storage.checkpoints import Checkpoints, discard
from bdbench.storage.folders import LITTLE, free_disk, low_disk
from bdbench.storage.keys import digest_of
from bdbench.storage.maintenance import clear
from bdbench.trial.harness import Harness

ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EFBIG", "EMFILE")
KEY = {"a": 1}
VALUES = torch.arange(5)
CELL = 16 * "0"


def build() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {"x": VALUES}, {"n": 7}


def failing(name: str) -> Callable[..., Any]:
    """A call that fails with the error of that name."""

    def fail(*arguments: Any, **named: Any) -> Any:
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number))

    return fail


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


@contextmanager
def few_files() -> Iterator[None]:
    """In it, no more files can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = os.open(os.devnull, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(last)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("name", ERRORS)
def test_a_file_stays_as_it_was_where_it_cannot_be_written(
    call: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(os, call, failing(name))
    said = os.strerror(getattr(errno, name))
    with pytest.raises(Unusable, match=f"^cannot write file in {tmp_path}: {said}$"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert temporaries(tmp_path) == []


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    with few_files(), pytest.raises(Unusable, match="Too many open files"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("broken", [False, True])
def test_a_temporary_file_that_cannot_be_removed_hides_nothing(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", failing("EIO"))
        if broken:
            patch.setattr(os, "fsync", failing("ENOSPC"))
            with pytest.raises(Unusable, match="No space left"):
                write_atomically(tmp_path / "file", b"new")
        else:
            write_atomically(tmp_path / "file", b"new")
    assert len(temporaries(tmp_path)) == broken
    write_atomically(tmp_path / "file", b"new")
    assert temporaries(tmp_path) == []


# The cache


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("name", ERRORS)
def test_an_entry_that_cannot_be_written_costs_a_warning(
    call: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    cache.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(name))
        with pytest.warns(
            UnwritableCache, match=f"poisoned/{digest_of(KEY)} is not cached: cannot"
        ):
            entry = cache.fetch("poisoned", KEY, build)
        with pytest.warns(UnwritableCache, match=r"embeddings/\w+ is not cached: cannot write"):
            cache.put("embeddings", KEY, {"mask": numpy.ones(3)})
    assert entry.fresh
    assert (entry.tensors, entry.meta) == build()
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".TAG", ".lock"}
    assert cache.get("embeddings", KEY) is None
    cache.fetch("poisoned", KEY, build)
    assert not cache.fetch("poisoned", KEY, build).fresh


def test_an_entry_is_made_where_nothing_can_be_opened(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with few_files(), pytest.warns(UnwritableCache, match="Too many open files"):
        entry = cache.fetch("poisoned", KEY, build)
    assert entry.fresh
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", ["ENOLCK", "EIO", "ENOSYS"])
def test_a_cache_without_locks_is_a_cache(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    monkeypatch.setattr(fcntl, "flock", failing(error))
    assert cache.fetch("poisoned", KEY, build).fresh
    assert not cache.fetch("poisoned", KEY, build).fresh


def test_an_unreadable_entry_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    cache.fetch("poisoned", KEY, build)
    with monkeypatch.context() as patch:
        patch.setattr("bdbench.storage.cache.sha256_of", failing("EIO"))
        with pytest.warns(UserWarning, match="is corrupt; rebuilding it"):
            assert cache.fetch("poisoned", KEY, build).fresh
    assert not cache.fetch("poisoned", KEY, build).fresh


def test_a_read_only_cache_gives_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    cache.fetch("poisoned", KEY, build)
    for call in ("fsync", "unlink", "utime", "replace"):
        monkeypatch.setattr(os, call, failing("EROFS"))
    monkeypatch.setattr(type(cache.lock("poisoned", "x")), "_acquire", failing("EROFS"))
    assert not cache.fetch("poisoned", KEY, build).fresh
    with pytest.raises(OSError, match="Read-only file system"):
        clear(cache)


def test_a_disk_with_little_space_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, cache = tmp_path / "not" / "there", tmp_path / "cache"
    assert free_disk(results) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    left = {"results": LITTLE, "cache": LITTLE}
    monkeypatch.setattr(folders, "free_disk", lambda folder: left[folder.name])
    results = tmp_path / "results"
    assert low_disk(results, cache) is None
    left["cache"] = 3_100_000
    assert low_disk(results, cache) == (
        f"little disk space is left: 3.1 MB in {cache}; free some, or choose other folders with "
        "--results and BDBENCH_CACHE"
    )
    left["results"] = 0
    assert f": 0 bytes in {results} and 3.1 MB in {cache}; " in str(low_disk(results, cache))


def test_a_run_warns_once_of_little_disk_space_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folders, "free_disk", lambda folder: 3_100_000)
    results = tmp_path / "results"
    data = "toy(train_images=40, test_images=20, image_size=16)"
    command = ["run", f"--dataset={data}", "--attack=none", "--defense=none", "--device=cpu"]
    assert main([*command, "--epochs=1", "--seeds=2", f"--results={results}"]) == 0
    said = capsys.readouterr().out
    assert said.count("warning: little disk space is left: 3.1 MB in ") == 1
    assert len(list((results / "records").iterdir())) == 2
    assert main([*command, "--epochs=2", f"--results={results}", "--dry-run"]) == 0
    assert "MB" not in capsys.readouterr().out


def test_a_disk_that_does_not_say_is_not_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", failing("EIO"))
    assert low_disk(tmp_path) is None


@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_checkpoints_that_cannot_be_written_or_removed_cost_no_training(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / digest_of(KEY)
    keeper = Checkpoints(folder, dict, lambda note: None, -1.0)
    keeper.offer("0", 1, False, {"x": VALUES})
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        patch.setattr(os, call, failing("EIO"))
        keeper.offer("0", 2, False, {"x": VALUES})
        keeper.offer("0", 3, False, {"x": VALUES})
        discard(folder)
    assert len(warned) == (call != "unlink"), "once is enough"
    discard(folder)
    assert not folder.exists()


def test_an_unreadable_checkpoint_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / digest_of(KEY)
    Checkpoints(folder, dict, lambda note: None, -1.0).offer("0", 1, False, {"x": VALUES})
    monkeypatch.setattr(Path, "read_bytes", failing("EIO"))
    assert Checkpoints(folder, dict, lambda note: None).find("0") is None


def test_a_cell_has_its_record_where_the_cache_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.01)
    data = "toy(train_images=32, test_images=20, image_size=16)"
    chosen = cell(data, "wrn16_1", "badnets", "none", recipe, 0)
    harness = Harness(Cache(tmp_path), (), torch.device("cpu"), patience=-1.0)
    whole = vars(harness.run(chosen))
    for path in tmp_path.rglob("*.json"):
        path.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.warns(UserWarning, match="File too large"):
            made = vars(harness.run(chosen))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert made["status"] == "ok"
    assert {**made, "measured": 0} == {**whole, "measured": 0}
    assert temporaries(tmp_path) == []


def test_a_tiny_disk_keeps_what_fits(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        # The limit of a file's size, above, stands in where one is not root.
        pytest.skip(f"only root may mount a disk of 64 kB: {mounted.stderr.strip()}")
    try:
        cache = Cache(disk)
        cache.fetch("poisoned", KEY, build)
        with pytest.warns(UnwritableCache, match="No space left on device"):
            entry = cache.fetch("poisoned", {"a": 2}, lambda: ({"x": torch.zeros(99_999)}, {}))
        assert len(entry.tensors["x"]) == 99_999
        assert not cache.fetch("poisoned", KEY, build).fresh
        assert temporaries(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Claims


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSPC", "EROFS", "EIO", "EMFILE"])
def test_a_claim_that_cannot_be_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    monkeypatch.setattr(FileLock, "_acquire", failing(name))
    said = os.strerror(getattr(errno, name))
    with pytest.raises(Unusable, match=rf"^cannot lock .* in .*: {said}$"), claimed(tmp_path, CELL):
        pytest.fail("nobody may be in it")


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS"])
def test_the_lock_of_the_system_is_what_fails(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no file stands in for it, which a dead process would leave behind."""
    monkeypatch.setattr(fcntl, "flock", failing(name))
    assert Cache(tmp_path).fetch("poisoned", KEY, build).fresh
    with pytest.raises(Unusable, match="cannot lock"), claimed(tmp_path, CELL):
        pytest.fail("nobody may be in it")


def test_a_lock_that_cannot_be_removed_is_removed_by_the_next_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, claimed(tmp_path, CELL) as mine:
        assert mine
        patch.setattr(os, "unlink", failing("EIO"))
    path = lock_of(tmp_path, CELL)
    with claimed(tmp_path, CELL) as mine:
        assert mine
    assert not path.exists()


def test_a_record_that_cannot_be_seen_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "stat", failing("EIO"))
    assert stamp(tmp_path, CELL) is None


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_whoever_may_use_a_folder_finds_its_locks_taken(mask: int, tmp_path: Path) -> None:
    """A lock that others cannot open would fail their cells; the folder decides who they are."""
    before = os.umask(mask)
    try:
        with claimed(tmp_path, CELL) as mine:
            assert mine
            assert lock_of(tmp_path, CELL).stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("name", "age", "removed"),
    [("EACCES", 2, 0), ("EPERM", 2, 0), ("ENOLCK", 0.5, 0), ("ENOLCK", 2, 1), ("ENOSYS", 2, 1)],
)
def test_what_may_be_in_use_is_not_cleared(
    name: str, age: float, removed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an entry whose lock belongs to another user. Age in hours."""
    from filelock import FileLock

    cache = Cache(tmp_path)
    cache.fetch("poisoned", KEY, build)
    for path in (tmp_path / "poisoned").iterdir():
        os.utime(path, (time.time() - 3600 * age,) * 2)
    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "_acquire", failing(name))
        said = clear(cache)
    assert ("kept 1 in use" in said) != removed
    assert cache.fetch("poisoned", KEY, build).fresh == bool(removed)


# Results


def test_a_new_file_outlasts_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it replaces is removed next, so its name must be on the disk, too."""
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda n: (calls.append(os.readlink(f"/proc/self/fd/{n}")), sync(n))
    )
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("renamed"), replace(*names)))
    write_atomically(tmp_path / "x.json", b"x")
    assert calls == [str(tmp_path / ".x.json.0.tmp"), "renamed", str(tmp_path)]
    # Where a folder cannot be synchronised, the file is there all the same.
    monkeypatch.setattr(os, "open", failing("EINVAL"))
    write_atomically(tmp_path / "y.json", b"y")
    assert (tmp_path / "y.json").read_bytes() == b"y"


def test_a_folder_without_locks_is_refused_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Harness, "run", failing("EIO"))
    monkeypatch.setattr(fcntl, "flock", failing("ENOLCK"))
    toy = "toy(image_size=16, train_images=100, test_images=50)"
    words = ["--in-process", f"--dataset={toy}", "--attack=none", "--defense=none", "--seed=0"]
    said = refused(capsys, "run", *words, f"--results={tmp_path}")
    assert said.startswith(f"bdbench: cannot lock .folder.lock in {tmp_path / 'records'}: ")
    assert said.endswith("; name a folder on another file system with --results")


def finished(folder: Path) -> tuple[list[str], Path]:
    """Run a cell. Gives the command that does it, and the file of its record."""
    toy = "toy(image_size=16, train_images=100, test_images=50)"
    words = ["--in-process", f"--dataset={toy}", "--attack=none", "--defense=none", "--seed=0"]
    command = ["run", *words, "--recipe=recipe(epochs=1)", f"--results={folder}"]
    assert main(command) == 0
    (path,) = (folder / "records").glob("*.json")
    return command, path


def test_a_record_that_cannot_be_read_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as that of another user. Here a folder has its name, which no one can read as a file."""
    command, path = finished(tmp_path)
    record = read(path)
    path.unlink()
    path.mkdir()
    capsys.readouterr()
    assert refused(capsys, *command) == f"bdbench: cannot read record {path}: Is a directory"
    with pytest.raises(Unusable, match="cannot read record"):
        keep(tmp_path, replace(record, status="failed"), cell_of_record(record))
    other = make_record("none", "badnets", 800, 10)
    write(tmp_path / "other", other)
    path_of(tmp_path / "into", other.key).mkdir(parents=True)
    assert main(["merge", str(tmp_path / "other"), f"--results={tmp_path / 'into'}"]) == 1
    assert "cannot read record" in capsys.readouterr().out


def test_a_damaged_record_is_named_before_its_cell_runs_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, path = finished(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    line = f"warning: damaged record {path}: "
    for more in (["--dry-run"], []):
        capsys.readouterr()
        assert main([*command, *more]) == 0
        said = capsys.readouterr()
        assert line in said.out + said.err
        assert "its cell runs again and replaces it, unless you restore the file" in said.out
    assert main([*command, "--dry-run"]) == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("place", ["records", "networks"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_trains(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Harness, "run", failing("EIO"))
    (tmp_path / place).touch()
    toy = "toy(image_size=16, train_images=100, test_images=50)"
    words = ["--in-process", "--save", f"--dataset={toy}", "--attack=none", "--defense=none"]
    said = refused(capsys, "run", *words, "--seed=0", f"--results={tmp_path}")
    assert said == f"bdbench: cannot write in {tmp_path / place}: File exists"
    with pytest.raises(Unusable, match=f"cannot write in {tmp_path / place}: File exists"):
        bd.run_cell(dataset=toy, attack="none", defense="none", results=tmp_path, save=True)
