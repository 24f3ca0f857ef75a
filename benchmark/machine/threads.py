"""Cores and threads: how many exist, and how threads wait for each other."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bdbench.machine.cgroup import groups

SPIN = "5000"
"""Rounds that a thread of OpenMP spins at a barrier before it sleeps. The default is milliseconds,
in which it keeps a core from a thread that waits for one."""


def short_spin(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to set before libraries are loaded; none where the user has chosen how threads
    wait."""
    chosen = environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    return {} if chosen else {"GOMP_SPINCOUNT": SPIN}


def cores(system: Path = Path("/")) -> int:
    """Cores that this process may use: of the machine, by affinity, and by the quota of its control
    group.

    system: the folder above `proc` and `sys`
    """
    found = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        found.append(len(os.sched_getaffinity(0)))
    for group in groups(system):
        with suppress(OSError, ValueError):
            quota, period = map(int, (group / "cpu.max").read_text().split())
            found.append(math.ceil(quota / period))
    return max(1, min(found))
