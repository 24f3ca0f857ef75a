"""How much memory is free, and how many processes a run starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bdbench.cells.suites import Suite
from bdbench.machine import memory
from bdbench.machine.memory import KEPT, PROCESS, free_memory, keep_freed, processes_that_fit
from bdbench.models.scope import num_threads
from bdbench.running.engines import options
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.plan import Plan, RunOptions, plan

AVAILABLE = 8_192_000_000


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=AVAILABLE))


def limited(root: Path, groups: dict[str, dict[str, str]], group: str = "/a/b") -> Path:
    """The files of control groups, as Linux writes them."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(f"1:cpu:/x\n0::{group}\n")
    for name, files in groups.items():
        folder = root / "sys" / "fs" / "cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / f"memory.{file}").write_text(text)
    return root


LIMIT = {"max": "5000\n", "current": "3000\n", "stat": "anon 9\ninactive_file 500\nx 1\n"}
NONE = LIMIT | {"max": "max\n"}


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        ({}, AVAILABLE),
        ({"a/b": NONE, "a": NONE}, AVAILABLE),
        ({"a/b": LIMIT}, 2500),
        ({"a/b": NONE, "a": LIMIT}, 2500),
        ({"": LIMIT, "a/b": LIMIT | {"max": "4000"}}, 1500),
        ({"a/b": LIMIT | {"max": "100"}}, 0),
        ({"another": LIMIT}, AVAILABLE),
        ({"a/b": {"max": "5000"}}, AVAILABLE),
    ],
)
def test_free_memory_is_the_machine_s_or_what_a_limit_leaves(
    groups: dict[str, dict[str, str]], free: int, tmp_path: Path
) -> None:
    assert free_memory(limited(tmp_path, groups)) == free


def test_a_limit_of_the_first_version_of_control_groups_holds(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:cpuset,memory:/a\n4:cpu,cpuacct:/a\n0::/\n")
    for name, limit in (("a", 2**63 - 4096), (".", 5000)):
        folder = tmp_path / "sys/fs/cgroup/memory" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text("3000\n")
        (folder / "memory.stat").write_text("cache 9\ninactive_file 500\n")
    assert free_memory(tmp_path) == 2500


def test_without_control_groups_it_is_the_machine_s(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == AVAILABLE


@pytest.mark.parametrize(
    ("free", "count"), [(0, 1), (PROCESS - 1, 1), (3 * PROCESS - 1, 2), (3 * PROCESS, 3)]
)
def test_a_process_is_given_2_gb(free: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    assert processes_that_fit() == count


@pytest.mark.parametrize(
    ("free", "jobs", "cells", "at_once"),
    [
        (100 * PROCESS, None, 10, 6),
        (100 * PROCESS, None, 2, 2),
        (4 * PROCESS, None, 10, 4),
        (0, None, 10, 1),
        (4 * PROCESS, 5, 10, 5),
    ],
)
def test_without_jobs_a_run_has_a_cell_for_each_core_as_far_as_memory_allows(
    free: int,
    jobs: int | None,
    cells: int,
    at_once: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    monkeypatch.setattr(options, "cores", lambda: 6)
    suite = Suite("", ("toy",), attacks=("none",), defenses=("none",), seeds=cells)
    chosen = RunOptions(device="cpu", results=tmp_path)
    assert plan("x", suite, ExecutionOptions(jobs=jobs), chosen).at_once == at_once


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"GLIBC_TUNABLES": KEPT}),
        ({"PATH": "/bin"}, {"GLIBC_TUNABLES": KEPT}),
        ({"GLIBC_TUNABLES": ""}, {}),
        ({"MALLOC_TRIM_THRESHOLD_": "0"}, {}),
    ],
)
def test_freed_memory_is_kept_unless_the_user_has_tuned_the_allocator(
    given: dict[str, str], added: dict[str, str]
) -> None:
    assert keep_freed(given) == added


@pytest.mark.parametrize(
    ("how", "cells", "said"),
    [
        ({}, 1, " (--threads 6 is faster for one cell)"),
        ({"jobs": 1}, 2, " (--threads 6 is faster for one cell)"),
        ({"jobs": 2}, 2, ", 2 at once"),
        ({"threads": 2}, 1, ""),
        ({"in_process": True}, 1, ", in this process"),
    ],
)
def test_a_run_advises_threads_only_where_it_accepts_them(
    how: dict[str, Any], cells: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("engines.options", "plan"):
        monkeypatch.setattr(f"bdbench.running.{module}.cores", lambda: 6)
    monkeypatch.setattr(Plan, "expected", None)
    suite = Suite("", ("toy",), attacks=("none",), defenses=("none",), seeds=cells)
    with num_threads(1):
        made = plan("x", suite, ExecutionOptions(**how), RunOptions("cpu", tmp_path))
        assert made.headline.partition(" in ")[2].removeprefix(made.precision) == said
