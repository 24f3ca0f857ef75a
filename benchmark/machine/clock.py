"""Seconds by stage, with the device idle at both ends of each stage; and peak memory."""

from __future__ import annotations

import re
import resource
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from bdbench.machine.suspension import now


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class _Stage:
    """When a stage started, and the seconds of finished stages inside it."""

    name: str
    start: float
    inner: float = 0.0


class Stopwatch:
    """Seconds of each stage, without those of the stages inside it and of suspensions."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[_Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block and adds its seconds to `name`, also if the block raises."""
        synchronise(self.device)
        stage = _Stage(name, now())
        self._open.append(stage)
        try:
            yield
            synchronise(self.device)
        finally:
            elapsed = now() - stage.start
            self._open.pop()
            self.seconds[name] += elapsed - stage.inner
            if self._open:
                self._open[-1].inner += elapsed

    def own(self, name: str) -> float:
        """Seconds of a stage until now, if no other stage is open inside it."""
        running = self._open[-1] if self._open else None
        if running is None or running.name != name:
            return self.seconds[name]
        return self.seconds[name] + now() - running.start - running.inner

    def charge(self, name: str, seconds: float) -> None:
        """Add seconds that an earlier cell spent on a shared entry of the cache."""
        self.seconds[name] += seconds


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of `peak_memory`, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        # Linux: the high-water mark becomes the current size.
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: the largest allocation on a GPU, else the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Preferred to ru_maxrss, which a process inherits from its parent.
    with suppress(OSError):
        if mark := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M):
            return int(mark[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
