"""Which folders are caches of bdbench, and that no file of others in them is changed or removed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from bdbench.cli import main
from bdbench.models.plugins.errors import InvalidInput
from bdbench.storage import mark
from bdbench.storage.atomic import remove_abandoned, write_atomically
from bdbench.storage.cache import Cache, DamagedCache, UnwritableCache
from bdbench.storage.checkpoints import Checkpoints, discard, hash_of
from bdbench.storage.keys import digest_of
from bdbench.storage.maintenance import KINDS, clear, contents

KEY = {"a": 1}
DIGEST = digest_of(KEY)
STATE = {"x": torch.zeros(2)}
MONTH = 30 * 24 * 3600.0


def build() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {"x": torch.arange(5)}, {}


def tree(folder: Path) -> dict[str, str | bytes]:
    """What lies under a folder: contents of files, targets of links."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


def put(path: Path) -> Path:
    """A file of somebody else, a month old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    os.utime(path, (time.time() - MONTH, time.time() - MONTH))
    return path


def clear_all(root: Path) -> None:
    """Remove everything that can be removed."""
    for kind in (None, *KINDS):
        clear(Cache(root), kind)


# Whose a folder is


def test_a_new_cache_says_whose_it_is(cache_folder: Path) -> None:
    Cache(cache_folder).fetch("poisoned", KEY, build)
    lines = (cache_folder / "CACHEDIR.TAG").read_text().splitlines()
    assert lines[0] == "Signature: 8a477f597d28d172789f06886806bc55", "what backups look for"
    assert mark.marked(cache_folder)
    assert mark.LINE in lines


@pytest.mark.parametrize(
    "name",
    [
        "thesis.tex",
        ".bashrc",
        "lib/x",
        "datasets/instances.json",
        "datasets/coco/annotations.json",
        "datasets",
        "checkpoints/llama.safetensors",
        "checkpoints/mymodel/model.safetensors",
        "poisoned/well.json",
        "CACHEDIR.TAG",
    ],
)
@pytest.mark.parametrize("ours", [False, True])
def test_the_folder_of_somebody_else_is_refused_in_one_line(
    name: str, ours: bool, tmp_path: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if ours:  # besides it
        put(cache_folder / "undefended" / f"{DIGEST}.json")
    put(cache_folder / name)
    before = tree(cache_folder)
    for command in (
        ["cache", "ls"],
        ["cache", "clear"],
        ["cache", "clear", "--older-than=0"],
        *(["cache", "clear", kind] for kind in KINDS),
        ["run", "--attack=none", "--defense=none", f"--results={tmp_path}"],
    ):
        assert main(command) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert f"{cache_folder} is not a cache of bdbench: it" in line
    with pytest.raises(InvalidInput, match="is not a cache"):
        Cache(cache_folder).fetch("poisoned", KEY, build)
    with pytest.raises(InvalidInput, match="is not a cache"):
        Cache(cache_folder).put("embeddings", KEY, {"mask": numpy.ones(3)})
    assert tree(cache_folder) == before


def test_the_root_and_a_home_are_no_cache_even_if_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    for root in ("/", "~", str(home), str(tmp_path / "link")):
        monkeypatch.setenv("BDBENCH_CACHE", root)
        assert main(["cache", "clear"]) == 2
        assert "is not a cache of bdbench: a home or root folder" in capsys.readouterr().err
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        f"poisoned/{DIGEST}.lock",
        f"undefended/{DIGEST}.json",
        f"datasets/.{DIGEST}.json.{32 * '0'}.tmp",
        f"embeddings/{DIGEST}.json",
        f"artefacts/{16 * '0'}-{16 * '0'}.safetensors",
        f"checkpoints/{DIGEST}/0-1-{DIGEST}.safetensors",
        "data/cifar10/data_batch_1",
        "lost+found/x",
        f".CACHEDIR.TAG.{32 * '0'}.tmp",
    ],
)
def test_what_older_versions_left_becomes_a_cache_with_the_mark(name: str, tmp_path: Path) -> None:
    put(tmp_path / name)
    for kind in KINDS:  # may be empty
        (tmp_path / kind).mkdir(exist_ok=True)
    assert not mark.marked(tmp_path)
    Cache(tmp_path).fetch("poisoned", KEY, build)
    assert mark.marked(tmp_path)
    put(tmp_path / "notes.txt")
    clear_all(tmp_path)
    assert (tmp_path / "notes.txt").exists()


# What in it is ours


def foreign_files(root: Path, outside: Path) -> None:
    for kind in KINDS:
        for name in ("instances.json", "model.safetensors", "x.lock", ".x.tmp", "notes.txt"):
            put(root / kind / name)
            put(root / kind / "coco" / name)
            put(root / kind / DIGEST / name)
        put(root / kind / f".x.json.{32 * '0'}.tmp")
        put(root / kind / f"{DIGEST[:-1]}.json")
        put(root / kind / f"{DIGEST}.json.bak")
        put(root / kind / f"{DIGEST.upper()}.json")


def folders_named_like_ours(root: Path, outside: Path) -> None:
    for suffix in ("json", "safetensors", "lock"):
        put(root / "poisoned" / f"{DIGEST}.{suffix}" / f"{DIGEST}.{suffix}")
    put(root / "embeddings" / f"{DIGEST}.safetensors" / "x.safetensors")
    put(root / "checkpoints" / DIGEST / f"0-1-{DIGEST}.safetensors" / "x")


def linked_files(root: Path, outside: Path) -> None:
    for kind, name in (
        ("poisoned", f"{DIGEST}.json"),
        ("poisoned", f"{DIGEST}.safetensors"),
        ("poisoned", f".{DIGEST}.json.{32 * '0'}.tmp"),
        ("undefended", f"{DIGEST}.lock"),
        ("embeddings", f"{DIGEST}.json"),
        ("embeddings", f"{DIGEST}.safetensors"),
        (f"checkpoints/{DIGEST}", f"0-1-{DIGEST}.safetensors"),
    ):
        (root / kind).mkdir(parents=True, exist_ok=True)
        (root / kind / name).symlink_to(put(outside / name))


def linked_folders(root: Path, outside: Path) -> None:
    put(outside / DIGEST / "model.safetensors")
    put(outside / f"{DIGEST}.json")
    put(outside / f"{DIGEST}.safetensors")
    for kind in KINDS:
        (root / kind).symlink_to(outside)


def linked_checkpoints(root: Path, outside: Path) -> None:
    put(outside / f"0-1-{DIGEST}.safetensors")
    put(outside / "model.safetensors")
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / DIGEST).symlink_to(outside)


@pytest.mark.parametrize(
    "lay",
    [
        foreign_files,
        folders_named_like_ours,
        linked_files,
        linked_folders,
        linked_checkpoints,
    ],
)
def test_nothing_of_anybody_else_is_removed_from_a_cache(
    lay: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    root, outside = tmp_path / "cache", tmp_path / "outside"
    Cache(root).prepare()
    lay(root, outside)
    before = tree(tmp_path)
    assert not any(contents(Cache(root), kind) for kind in KINDS)
    clear_all(root)
    Cache(root).prepare()
    keeper = Checkpoints(root / "checkpoints" / DIGEST, dict, lambda note: None)
    assert keeper.find("0") is None
    discard(root / "checkpoints" / DIGEST)
    assert tree(tmp_path) == before


def test_checkpoints_are_not_written_through_a_link(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / DIGEST
    put(outside / "model.safetensors")
    folder.symlink_to(outside)
    keeper = Checkpoints(folder, dict, lambda note: None, -1.0)
    with pytest.warns(UserWarning, match=f"without checkpoints: .*{DIGEST} is a link"):
        keeper.offer("0", 1, False, STATE)
    keeper.offer("0", 2, False, STATE)
    assert list(tree(outside)) == ["model.safetensors"]


def test_a_finished_cell_removes_its_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / DIGEST
    keeper = Checkpoints(folder, dict, lambda note: None, -1.0)
    keeper.offer("0", 1, False, STATE)
    keeper.offer("0.1", 2, False, STATE)
    put(folder / f".0-1-{DIGEST}.safetensors.{32 * '0'}.tmp")
    put(folder / f"0-9-{hash_of(b'x')}.safetensors")
    assert len(list(folder.iterdir())) == 4
    discard(folder)
    assert not folder.exists()
    keeper.offer("0", 3, False, STATE)
    put(folder / "notes.txt")
    discard(folder)
    assert list(tree(folder)) == ["notes.txt"]
    discard(tmp_path / "nowhere")


def test_an_entry_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    root, outside = tmp_path / "cache", tmp_path / "outside"
    Cache(root).prepare()
    linked_files(root, outside)
    before = tree(outside)
    with pytest.warns(UserWarning, match="is corrupt; rebuilding it"):
        assert Cache(root).fetch("poisoned", KEY, build).fresh
    Cache(root).put("embeddings", KEY, {"mask": numpy.ones(3)})
    assert Cache(root).get("embeddings", KEY)
    assert not Cache(root).fetch("poisoned", KEY, build).fresh
    assert tree(outside) == before


def test_a_folder_in_the_place_of_an_entry_costs_time_only(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    Cache(root).prepare()
    folders_named_like_ours(root, tmp_path)
    before = tree(tmp_path)
    with (
        pytest.warns(DamagedCache, match="rebuilding it"),
        pytest.warns(UnwritableCache, match="Is a directory"),
    ):
        entry = Cache(root).fetch("poisoned", KEY, build)
    assert entry.fresh
    assert torch.equal(entry.tensors["x"], torch.arange(5))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_in_the_place_of_a_lock_stays(folder: bool, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    Cache(root).fetch("poisoned", KEY, build)
    lock, target = root / "poisoned" / f"{DIGEST}.lock", put(tmp_path / "target")
    lock.unlink()
    if folder:
        put(lock / "x")
    else:
        lock.symlink_to(target)
    clear_all(root)
    assert tree(root / "poisoned").keys() == {lock.name, *([f"{lock.name}/x"] * folder)}
    assert target.read_text() == "mine"


def test_another_name_of_a_file_of_ours_stays(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    Cache(root).fetch("poisoned", KEY, build)
    os.link(root / "poisoned" / f"{DIGEST}.safetensors", tmp_path / "copy.safetensors")
    clear_all(root)
    assert not list((root / "poisoned").iterdir())
    assert (tmp_path / "copy.safetensors").stat().st_size


def test_the_cache_itself_may_be_a_link(tmp_path: Path) -> None:
    disk, link = tmp_path / "disk", tmp_path / "cache"
    disk.mkdir()
    link.symlink_to(disk)
    Cache(link).fetch("poisoned", KEY, build)
    assert mark.marked(disk)
    clear_all(link)
    assert tree(disk).keys() == {"poisoned", mark.TAG}


def test_of_temporary_files_those_of_dead_writers_go_and_no_link_or_other_file(
    tmp_path: Path,
) -> None:
    target = put(tmp_path / "target")
    (tmp_path / f".a.md.{32 * '1'}.tmp").symlink_to(target)
    (tmp_path / f".a.md.{32 * '2'}.tmp").mkdir()
    kept = [f".a.md.{31 * '0'}.tmp", ".a.md.tmp", f".b.md.{32 * '3'}.tmp", ".a.md.draft.tmp"]
    for name in (*kept, f".a.md.{32 * '4'}.tmp"):
        put(tmp_path / name)
    before = tree(tmp_path)
    remove_abandoned(tmp_path, "a.md")
    assert before.keys() - tree(tmp_path).keys() == {f".a.md.{32 * '4'}.tmp"}
    remove_abandoned(tmp_path)
    assert before.keys() - tree(tmp_path).keys() == {
        f".{each}.md.{32 * digit}.tmp" for each, digit in ("a4", "b3")
    }
    remove_abandoned(tmp_path / "nowhere")
    put(tmp_path / ".a.md.0.tmp")
    (tmp_path / ".c.md.0.tmp").symlink_to(target)
    for name in "ac":
        write_atomically(tmp_path / f"{name}.md", b"whole")
    assert not (tmp_path / ".a.md.0.tmp").exists()
    assert (tmp_path / ".c.md.0.tmp").is_symlink()
    assert target.read_text() == "mine"
