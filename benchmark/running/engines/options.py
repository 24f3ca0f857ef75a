"""Engines by name and their options. The library of an engine is imported when it is used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bdbench.machine.devices import devices_of
from bdbench.machine.threads import cores
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, of_types, require
from bdbench.running.engines.base import Engine, InProcess, WorkerEvents
from bdbench.running.worker import Job

ENGINES = ("local", "ray", "slurm")
LARGEST_MACHINE = 1_024
"""Cores or GPUs of a cluster that a cell can have, at most."""
MOST_THREADS = 16
"""Threads that a cell can have on any machine, so that a small one can repeat the last bits of a
larger one."""


@dataclass(frozen=True)
class ExecutionOptions:
    """Where and how cells are executed. Raises `InvalidInput` for a value of another type, and
    for options that exclude each other.

    engine: of `ENGINES`
    jobs: cells at once; None is one for each core or GPU, or as many as a cluster takes
    threads: of each cell on a CPU; None is one, so that the last bits of a number depend neither on
        the number of cells nor on the cores of a machine
    in_process: run cells in this process, one after the other, for debugging
    cores, gpus: of a cluster, for each cell; a GPU may be shared, as in 0.25
    options: for the cluster's library, by name
    """

    engine: str = "local"
    jobs: int | None = None
    threads: int | None = None
    in_process: bool = False
    cores: int | None = None
    gpus: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        of_types(self)
        known = self.engine in ENGINES
        require(known, f"unknown engine {self.engine!r}{spec.did_you_mean(self.engine, ENGINES)}")
        for name, least in (("jobs", 1), ("threads", 1), ("cores", 1), ("gpus", 0)):
            value = getattr(self, name)
            require(
                value is None or least <= value < float("inf"),
                f"--{name} must be at least {least}, got {value}",
            )
            require(
                value is None or name in ("jobs", "threads") or value <= LARGEST_MACHINE,
                f"--{name} must be at most {LARGEST_MACHINE:,}, got {value}",
            )
            remote = name in ("cores", "gpus") and value is not None
            require(not (remote and self.is_here), f"--{name} is for --engine ray and slurm")
        most = max(MOST_THREADS, 2 * cores())
        require(
            self.threads is None or self.threads <= most,
            f"--threads must be at most {most} on a machine of {cores()} cores, got {self.threads}",
        )
        allowed = self.threads is None or (self.is_here and not self.in_process)
        require(
            allowed,
            "--threads is for worker processes on this machine: use --cores on a cluster, and "
            "OMP_NUM_THREADS with --in-process",
        )
        require(not (self.options and self.is_here), "--option is for --engine ray and slurm")
        alone = self.is_here and self.jobs in (None, 1)
        require(
            alone or not self.in_process,
            "--in-process runs one cell after the other in this process: leave out --jobs and "
            "--engine, or --in-process",
        )

    @property
    def is_here(self) -> bool:
        """Whether cells run on this machine."""
        return self.engine == "local"

    def devices(self, name: str) -> tuple[torch.device, ...]:
        """The devices of cells. Those of a cluster are not known here. Raises `InvalidInput` for a
        name that none can have."""
        if self.is_here:
            return devices_of(name)
        chosen = name if name != "auto" else "cuda" if self.gpus else "cpu"
        require(
            re.fullmatch(r"cpu|cuda(:\d{1,2})?", chosen) is not None,
            f"device {name!r} does not exist{spec.did_you_mean(name, ('auto', 'cpu', 'cuda'))}",
        )
        require(
            bool(self.gpus) == chosen.startswith("cuda"),
            f"--device {name} needs --gpus, the number of GPUs of each cell"
            if chosen.startswith("cuda")
            else f"--gpus is of no use to --device {name}: leave out one of them",
        )
        return (torch.device(chosen),)

    def at_once(self, cells: int, devices: Sequence[torch.device], timed: bool) -> int:
        """How many of `cells` cells run at the same time on this machine, if memory allows it."""
        if self.in_process or timed:
            return 1
        here = max(1, cores() // (self.threads or 1))
        places = self.jobs or (here if devices[0].type == "cpu" else len(devices))
        return max(1, min(places, cells))

    def threads_of(self, device: torch.device, timed: bool) -> int:
        """Threads of each cell."""
        if not self.is_here:
            return self.cores or 1
        usual = min(torch.get_num_threads(), cores())
        if self.in_process or (timed and self.threads is None):
            return usual
        return self.threads or (1 if device.type == "cpu" else usual)

    def start(
        self, job: Job, events: WorkerEvents, slots: int, devices: Sequence[torch.device]
    ) -> Engine:
        """Start the engine. Raises `InvalidInput` if its library or its cluster is missing.

        slots, devices: on this machine
        """
        asked, gpus = self.cores or 1, self.gpus or 0.0
        try:
            if self.engine == "ray":
                from bdbench.running.engines.ray import Ray

                return Ray(job, self.jobs, asked, gpus, self.options)
            if self.engine == "slurm":
                from bdbench.running.engines.slurm import Slurm

                return Slurm(job, self.jobs, asked, gpus, self.options)
        except ModuleNotFoundError as error:
            raise InvalidInput(
                f"--engine {self.engine} needs {error.name}: pip install {error.name}"
            ) from error
        if self.in_process:
            return InProcess(job, events)
        from bdbench.running.engines.processes import Processes

        return Processes(job, events, slots, [str(device) for device in devices])


def options_of(texts: tuple[str, ...]) -> dict[str, Any]:
    """Parse options KEY=VALUE; a value of digits is a number. Raises `InvalidInput` for other
    text."""
    pairs = [text.partition("=") for text in texts]
    for key, equals, _ in pairs:
        require(bool(key.isidentifier() and equals), f"--option is written KEY=VALUE, got {key!r}")
    return {key: int(value) if value.isdecimal() else value for key, _, value in pairs}
