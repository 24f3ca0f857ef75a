"""Memory: how much is free on this machine, and that a process keeps what it has freed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import psutil

from bdbench.machine.cgroup import groups

PROCESS = 2 * 10**9
"""Bytes that a process which runs cells is taken to need."""

LIMITS = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Files of a control group with its limit and its use, in versions 2 and 1."""

_SIZES = {"trim_threshold": 1 << 40, "mmap_threshold": 32 << 20, "top_pad": 64 << 20}
KEPT = ":".join(f"glibc.malloc.{name}={size}" for name, size in _SIZES.items())
"""GNU's allocator: never return the top of the heap to the system; serve from the heap what is
smaller than 32 MiB, the most that all its versions accept; grow the heap by 64 MiB at a time."""


def keep_freed(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for a new process that trains on the CPU; none where the user has tuned the
    allocator. By default each step gives the memory of its maps back, and the next step waits while
    the system maps and clears it again."""
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in environment)
    return {} if chosen else {"GLIBC_TUNABLES": KEPT}


def processes_that_fit() -> int:
    """How many processes of `PROCESS` bytes fit into the free memory, at least 1. The rule is
    simple: the need of a cell is not estimated, and `--jobs` overrides it."""
    return max(1, free_memory() // PROCESS)


def free_memory(system: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the machine has, and its control groups allow.

    system: the folder above `proc` and `sys`
    """
    found = (_left_in(group, *files) for group in groups(system) for files in LIMITS)
    limits = [left for left in found if left is not None]
    return min([psutil.virtual_memory().available, *limits])


def _left_in(group: Path, *files: str) -> int | None:
    """Bytes that a control group may still take, None where it has no limit."""
    try:
        limit, used = (int((group / file).read_text()) for file in files)
        pages = re.search(
            r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE
        )
    except (OSError, ValueError):
        return None
    # Cached pages of files are given up first.
    return max(0, limit - used + int(pages[1] if pages else 0))
