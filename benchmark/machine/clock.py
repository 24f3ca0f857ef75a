"""Seconds by stage, with the device idle at both ends of each; and who else used it meanwhile."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class _Stage:
    """When it began, and the seconds of the stages inside of it that are over."""

    name: str
    start: float
    inner: float = 0.0


class Stopwatch:
    """Own seconds of each stage: what a stage spends inside another is taken off the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[_Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block and adds it to `name`, also when the block raises."""
        synchronise(self.device)
        stage = _Stage(name, time.perf_counter())
        self._open.append(stage)
        try:
            yield
            synchronise(self.device)
        finally:
            elapsed = time.perf_counter() - stage.start
            self._open.pop()
            self.seconds[name] += elapsed - stage.inner
            if self._open:
                self._open[-1].inner += elapsed

    def own(self, name: str) -> float:
        """Seconds of a stage until now, when no other is open inside of it."""
        running = self._open[-1] if self._open else None
        if running is None or running.name != name:
            return self.seconds[name]
        return self.seconds[name] + time.perf_counter() - running.start - running.inner

    def charge(self, name: str, seconds: float) -> None:
        """Add seconds that were spent when a shared artefact was first made."""
        self.seconds[name] += seconds


def reset_peak_memory(device: torch.device) -> None:
    """From now on `peak_memory` is of what follows, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        # Linux: the mark is the size of now.
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: the largest allocation on a GPU, else the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not of ru_maxrss where this is there: a process inherits that from whoever started it.
    with suppress(OSError):
        if mark := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M):
            return int(mark[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
