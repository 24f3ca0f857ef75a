"""Where a run is made: engines by name, whose libraries are imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bdbench.machine.devices import device_of
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, check
from bdbench.running.engines.base import Ear, Engine, Here
from bdbench.running.worker import Job

ENGINES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Place:
    """Where a run is made. Raises `InvalidInput` for what cannot be.

    engine: of `ENGINES`
    jobs: cells at once; None is one, in this process, or as many as a cluster takes
    cores, gpus: of a cluster, for each cell; a GPU may be shared, as in 0.25
    options: for the cluster's library, by name
    """

    engine: str = "local"
    jobs: int | None = None
    cores: int | None = None
    gpus: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.engine in ENGINES
        check(known, f"unknown engine {self.engine!r}{spec.did_you_mean(self.engine, ENGINES)}")
        for name, least in (("jobs", 1), ("cores", 1), ("gpus", 0)):
            value = getattr(self, name)
            check(
                value is None or least <= value < float("inf"),
                f"--{name} must be at least {least}, got {value}",
            )
            remote = name != "jobs" and value is not None
            check(not (remote and self.is_here), f"--{name} is for --engine ray and slurm")
        check(not (self.options and self.is_here), "--option is for --engine ray and slurm")

    @property
    def is_here(self) -> bool:
        """Whether cells run on this very machine."""
        return self.engine == "local"

    @property
    def threads(self) -> int | None:
        """Of a cell; None for as many as torch takes. Workers that share a processor and take
        several each would wait for one another."""
        if self.is_here:
            return None if self.jobs is None else 1
        return self.cores or 1

    def device(self, name: str) -> torch.device:
        """Of a cell; nothing is known here of the devices of a cluster."""
        if self.is_here:
            return device_of(name)
        return torch.device(name if name != "auto" else "cuda" if self.gpus else "cpu")

    def start(self, job: Job, ear: Ear) -> Engine:
        """The engine. Raises `InvalidInput` where its library or its cluster is not there."""
        cores, gpus = self.cores or 1, self.gpus or 0.0
        try:
            if self.engine == "ray":
                from bdbench.running.engines.ray import Ray

                return Ray(job, self.jobs, cores, gpus, self.options)
            if self.engine == "slurm":
                from bdbench.running.engines.slurm import Slurm

                return Slurm(job, self.jobs, cores, gpus, self.options)
            if self.jobs is not None:
                from bdbench.running.engines.processes import Processes

                return Processes(job, ear, self.jobs)
        except ModuleNotFoundError as error:
            raise InvalidInput(
                f"--engine {self.engine} needs {error.name}: pip install {error.name}"
            ) from error
        return Here(job, ear)


def options_of(texts: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE each; a value of digits is a number. Raises `InvalidInput` for anything else."""
    pairs = [text.partition("=") for text in texts]
    for key, equals, _ in pairs:
        check(bool(key.isidentifier() and equals), f"--option is written KEY=VALUE, got {key!r}")
    return {key: int(value) if value.isdecimal() else value for key, _, value in pairs}
