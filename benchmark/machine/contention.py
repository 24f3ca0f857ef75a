"""How much other processes use a device while seconds are measured."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from typing import ClassVar

import psutil
import torch

from bdbench.machine.clock import synchronise

IDLE = ("idle", "iowait", "guest", "guest_nice")
"""Times of a core in which it did nothing, or which are part of another time."""


class Contention:
    """Other processes on a device, from now until `meanwhile`. Those that this process descends
    from, as far as `family`, and its own descendants do not count; other cells of the run do.

    family: the process of the run; None for this one
    """

    family: ClassVar[int | None] = None

    def __init__(self, device: torch.device) -> None:
        self.device = device
        synchronise(device)  # puts this process on the GPU
        self._begun = self._read()

    def meanwhile(self) -> float | None:
        """Cores of a CPU that other processes kept busy on average, or how many other processes
        were on a GPU, at the start or now; None where the system does not say."""
        begun, now = self._begun, self._read()
        if begun is None or now is None:
            return None
        if self.device.type == "cuda":
            return max(begun[0], now[0])
        wall, busy, own = (after - before for before, after in zip(begun, now, strict=True))
        # In some sandboxes the times of cores stand still.
        return max(0.0, busy - own) / wall if busy > 0 else None

    def _read(self) -> tuple[float, ...] | None:
        """Seconds by the wall clock, of cores and of our own processes; or processes on the GPU."""
        try:
            cell = [here := psutil.Process(), *here.children(recursive=True)]
            above = _above(here, self.family)
            if self.device.type == "cuda":
                return (_others_on(self.device, {each.pid for each in (*cell, *above)}),)
            own = sum(sum(each.cpu_times()[:4]) for each in cell)  # with children that have ended
            # Their children that have ended may have been other cells.
            own += sum(sum(each.cpu_times()[:2]) for each in above)
            return time.perf_counter(), _busy(), own
        except (psutil.Error, OSError, ValueError, subprocess.SubprocessError):
            return None


def combine(others: Iterable[float | None]) -> float | None:
    """The largest of several answers of `Contention.meanwhile`; None where one is not known."""
    answers = list(others)
    known = [answer for answer in answers if answer is not None]
    return max(known) if len(known) == len(answers) else None


def _above(process: psutil.Process, oldest: int | None) -> list[psutil.Process]:
    """The processes that one descends from, up to `oldest`; none if it does not descend from it."""
    found = []
    for parent in process.parents():
        found.append(parent)
        if parent.pid == oldest:
            return found
    return []


def _busy() -> float:
    """Seconds in which the cores that this process may use have worked."""
    cores = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
    counted: list[dict[str, float]] = [
        core._asdict() for number, core in enumerate(cores) if number in usable
    ]
    return sum(took for core in counted for name, took in core.items() if name not in IDLE)


def _others_on(device: torch.device, own: set[int]) -> int:
    """Processes on a GPU other than our own. Raises OSError, ValueError or SubprocessError
    where nvidia-smi is missing, fails or lists no process."""
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader", "-i", name]
    answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
    listed = list(map(int, answer.stdout.split()))
    if not listed:
        raise ValueError("this process is on the GPU, and nvidia-smi does not list it")
    # This process is listed, in a container perhaps under another number.
    return len(listed) - max(1, len(own.intersection(listed)))
