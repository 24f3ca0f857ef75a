"""What others take of a device while seconds are measured."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import psutil
import torch

from bdbench.machine.clock import synchronise

IDLE = ("idle", "iowait", "guest", "guest_nice")
"""Of the times of a core, those in which it did nothing, or which are part of another."""


class Contention:
    """What others take of a device from now on.

    family: the process that is no other, with all that it has started; None for this one
    """

    family: ClassVar[int | None] = None

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # A GPU has no process of ours on it before it was asked for something.
        synchronise(device)
        self._begun = self._look()

    def meanwhile(self) -> float | None:
        """How many cores of a processor other processes have kept busy on average, or how many of
        them were on a GPU, now or at the beginning; None where that cannot be known."""
        begun, now = self._begun, self._look()
        if isinstance(begun, _Load) and isinstance(now, _Load):
            return now.by_others(begun)
        return max(begun, now) if isinstance(begun, int) and isinstance(now, int) else None

    def _look(self) -> _Load | int | None:
        if self.device.type == "cuda":
            return _processes(self.device, self.family)
        return _Load.now(self.family)


def combine(others: Iterable[float | None]) -> float | None:
    """Of several answers of `Contention.meanwhile`; None where one of them is not known."""
    answers = list(others)
    known = [answer for answer in answers if answer is not None]
    return max(known) if len(known) == len(answers) else None


@dataclass(frozen=True)
class _Load:
    """Readings of three clocks, in seconds.

    clock: the one on the wall
    busy: of all cores that this process may use, when they work
    own: of the family's first process and all that it has started
    """

    clock: float
    busy: float
    own: float

    @classmethod
    def now(cls, first: int | None) -> _Load | None:
        """None where the system does not tell."""
        try:
            family = _family(first)
            own = sum(sum(process.cpu_times()[:4]) for process in family)
            return cls(time.perf_counter(), sum(map(_busy, _cores())), own)
        except (psutil.Error, OSError):
            return None

    def by_others(self, begun: _Load) -> float | None:
        """Cores that others have kept busy since then."""
        busy, own = self.busy - begun.busy, self.own - begun.own
        # Some sandboxes have clocks that stand still.
        return max(0.0, busy - own) / (self.clock - begun.clock) if busy > 0 else None


def _family(first: int | None) -> list[psutil.Process]:
    """A process and all that it has started. Raises psutil.Error where it is gone."""
    oldest = psutil.Process(first)
    return [oldest, *oldest.children(recursive=True)]


def _cores() -> list[Any]:
    """The times of each core that this process may use."""
    cores = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
    return [core for number, core in enumerate(cores) if number in usable]


def _busy(core: Any) -> float:
    times: dict[str, float] = core._asdict()
    return sum(seconds for name, seconds in times.items() if name not in IDLE)


def _processes(device: torch.device, first: int | None) -> int | None:
    """Processes on a GPU that are not of the family; None where nvidia-smi is absent, or tells of
    none."""
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    asked = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader", "-i", name]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    listed = answer.stdout.split()
    if not listed or not all(map(str.isdecimal, listed)):
        return None
    ours = {os.getpid()}
    with suppress(psutil.Error):
        ours |= {process.pid for process in _family(first)}
    # This process is among them, in a container perhaps under another number.
    return len(listed) - max(1, len(ours & set(map(int, listed))))
