"""Cores and threads: how many exist, and how threads wait for each other."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import product
from pathlib import Path

from bdbench.machine.cgroup import groups

SPIN = "5000"
"""Rounds that a thread of OpenMP spins at a barrier before it sleeps. The default is milliseconds,
in which it keeps a core from a thread that waits for one."""

QUOTAS = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
"""Files of a control group with its quota and period, in versions 2 and 1."""


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
    for group, files in product(groups(system), QUOTAS):
        with suppress(OSError, ValueError):
            text = " ".join((group / file).read_text() for file in files)
            quota, period = map(int, text.split())
            if quota > 0:
                found.append(math.ceil(quota / period))
    return max(1, min(found))
