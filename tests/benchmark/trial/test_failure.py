"""Errors in failed records: no paths of the machine, and advice where memory ran out."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import ROOT

import bdbench
from bdbench.models.plugins.errors import InvalidInput
from bdbench.trial import failure
from bdbench.trial.failure import LESS_MEMORY, LONGEST, error_of, without_folders, worker_died


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, below the home folder of a user."""
    folder = tmp_path / "home/jane doe/project"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    return folder


def missing_file() -> None:
    (Path.cwd() / "data/cifar10.bin").read_bytes()


def outside() -> None:
    raise InvalidInput(f"no data in {Path.cwd().parents[2] / 'scratch/data'}, or {Path.home()}")


def in_a_library() -> None:
    json.loads("{")


def in_torch() -> None:
    torch.nn.Linear(2, 2)(torch.zeros(3))


def chained() -> None:
    try:
        missing_file()
    except OSError as error:
        raise RuntimeError(f"cannot read '{error.filename}'") from error


def in_ours() -> None:
    bdbench.models.Recipe(epochs=-1)


def test_an_error_is_stated_also_where_the_working_folder_was_removed(
    remove_folder: Callable[[], None], project: Path
) -> None:
    remove_folder()
    said = error_of(RuntimeError(f"no {project}/data"))
    assert said["message"] == "no ~/project/data"


@pytest.mark.parametrize("fault", [missing_file, outside, in_a_library, in_torch, chained, in_ours])
def test_no_path_of_a_machine_is_in_an_error(fault: Callable[[], None], tmp_path: Path) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        fault()
    found = error_of(raised.value)
    assert found["type"] == raised.type.__name__
    for text in found.values():
        for place in (tmp_path, ROOT, Path(os.path.realpath(__file__)).parent):
            assert str(place) not in text
        assert "jane" not in text
        assert sysconfig.get_paths()["stdlib"] not in text
    assert f"in {fault.__name__}" in found["traceback"]


def test_paths_are_those_of_modules_and_of_the_working_folder(project: Path) -> None:
    with pytest.raises(ValueError, match="Expecting") as raised:
        in_a_library()
    assert 'File "json/decoder.py", line ' in error_of(raised.value)["traceback"]
    with pytest.raises(InvalidInput) as refused:
        in_ours()
    assert 'File "bdbench/models/training/recipe.py", line ' in error_of(refused.value)["traceback"]
    with pytest.raises(OSError) as absent:  # noqa: PT011
        missing_file()
    assert error_of(absent.value)["message"].endswith(": 'data/cifar10.bin'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{cwd}/plugin.py", "plugin.py"),
        ("in {cwd}, or", "in ., or"),
        ("in {cwd}/", "in ."),
        ("{home}/.cache/x", "~/.cache/x"),
        ("of {home}: no", "of ~: no"),
        ("'{home}'", "'~'"),
        ("{cwd}-2/x", "~/project-2/x"),
        ("{top}/scratch/a b/c", "a b/c"),
        ("'{top}/scratch/a b/c.png'", "'c.png'"),
        ("{top}/scratch/data: none", "data: none"),
        ("/tmp", "tmp"),
        ("10 images/s, 1 / 2, a /b", "10 images/s, 1 / 2, a /b"),
        ("see https://tmp.org/tmp/x", "see https://tmp.org/tmp/x"),
        ("<tmp/x>, ../tmp, ./x, a.b/tmp", "<tmp/x>, ../tmp, ./x, a.b/tmp"),
    ],
)
def test_a_path_by_hand(
    text: str, expected: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure.sys, "path", [])
    places = {"cwd": project, "home": project.parent, "top": tmp_path}
    assert without_folders(text.format(**places)) == expected


NO_MEMORY = [
    MemoryError(),
    MemoryError("while images were loaded"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4398046511104 bytes."
    ),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:20])
def test_where_memory_ran_out_the_message_ends_with_what_to_change(error: Exception) -> None:
    message = error_of(error)["message"]
    assert message.startswith(str(error))
    assert message.endswith(LESS_MEMORY)


def test_torch_says_so_itself_when_memory_runs_out() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**58, dtype=torch.uint8)
    assert error_of(raised.value)["message"].endswith(f"; {LESS_MEMORY}")


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("std::bad_alloc"), KeyboardInterrupt()]
)
def test_no_other_error_gets_advice_on_memory(error: BaseException) -> None:
    assert error_of(error)["message"] == str(error)


def test_a_worker_that_died_is_told_in_one_line() -> None:
    assert str(worker_died("worker killed (SIGKILL, possibly out of memory)", 3)) == (
        "worker killed (SIGKILL, possibly out of memory); gave up after 3 attempts"
    )


def test_of_a_huge_message_a_record_keeps_both_ends() -> None:
    error = ValueError(f"first {'/x' * 10**6} last")
    kept = error_of(error)
    assert (kept["message"][:6], kept["message"][-5:]) == ("first ", " last")
    assert kept["traceback"].endswith(" last\n")
    assert max(map(len, kept.values())) <= LONGEST + 5
