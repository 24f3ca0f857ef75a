"""Memory that is free on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from bdbench.machine.cgroup import groups

PROCESS = 2 * 10**9
"""Bytes that a process which runs cells is taken to need."""


def processes_that_fit() -> int:
    """How many processes of `PROCESS` bytes fit into the free memory, at least 1. The rule is
    simple: the need of a cell is not estimated, and `--jobs` overrides it."""
    return max(1, free_memory() // PROCESS)


def free_memory(system: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the machine has, and its control groups allow.

    system: the folder above `proc` and `sys`
    """
    limits = [left for group in groups(system) if (left := _left_in(group)) is not None]
    return min([psutil.virtual_memory().available, *limits])


def _left_in(group: Path) -> int | None:
    """Bytes that a control group may still take, None where it has no limit."""
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        pages = re.search(
            r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE
        )
    except (OSError, ValueError):
        return None
    # Cached pages of files are given up first.
    return max(0, limit - used + int(pages[1] if pages else 0))
