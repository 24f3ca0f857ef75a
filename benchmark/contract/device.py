"""Whether a device computes the same numbers eagerly and in graphs, alone and in parallel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bdbench.contract.scenarios import random_images
from bdbench.defenses.base import Context
from bdbench.defenses.registry import defenses
from bdbench.models.registry import models
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.graphs import CudaRecorder, Recorder, recorded_by
from bdbench.models.training.loop import train
from bdbench.models.training.recipe import Recipe

IMAGES, BATCH = 320, 32
LIMITS = {"fp32": 1e-5, "bf16": 1e-2}
"""Relative L2 distance of parameters and buffers, by precision."""
TO_PLAIN = {"fp32": 1e-3, "bf16": 1e-2}
"""The same between recorded and plain steps, whose optimizers round otherwise."""


@dataclass(frozen=True)
class Comparison:
    """
    what: name of the comparison
    distance: relative L2 distance of all parameters and buffers
    limit: distance below which the two are the same
    """

    what: str
    distance: float
    limit: float

    @property
    def safe(self) -> bool:
        return self.distance < self.limit

    def __str__(self) -> str:
        verdict = "safe" if self.safe else "NOT SAFE"
        return f"{verdict}, {self.distance:.1e} apart (limit {self.limit:.0e})"


def weights(
    device: torch.device,
    defense: str,
    precision: str = "fp32",
    recorder: Callable[[torch.device], Recorder] | None = None,
) -> Tensor:
    """float64 (n,): the parameters and buffers of a network after two epochs of `none` or `cbd`.

    recorder: captures steps as CUDA graphs; None for plain steps
    """
    recipe = Recipe(epochs=2, batch_size=BATCH, learning_rate=0.02, precision=precision)
    build = partial(models.build("wrn16_1").build, 10, 32)
    context = TrainingContext(recipe, device, build, seed=0)
    data = random_images(IMAGES, 32, 10).to(device)
    with full_precision(), recorded_by(recorder) if recorder else nullcontext():
        if defense == "none":
            network = train(context.build(), data, recipe, context.rng("classifier"))
        else:
            network = defenses.build(defense).fit(data, Context(**vars(context)))
    return torch.cat([part.flatten().double().cpu() for part in network.state_dict().values()])


def distance(one: Tensor, other: Tensor) -> float:
    """L2 distance relative to the norm of the first."""
    return float((one - other).norm() / one.norm())


def graphs(
    device: torch.device, recorder: Callable[..., Recorder] = CudaRecorder
) -> Iterator[Comparison]:
    """Captured steps compared with the same ones that are never captured, and with plain steps."""
    never = partial(recorder, warm_up=sys.maxsize)
    for precision, limit in LIMITS.items():
        for defense in ("none", "cbd(t1=1)"):
            recorded, same, plain = (
                weights(device, defense, precision, how) for how in (recorder, never, None)
            )
            name = f"{defense.partition('(')[0]}, {precision}"
            yield Comparison(f"graphs, {name}", distance(same, recorded), limit)
            far = distance(plain, recorded)
            yield Comparison(f"graphs and plain steps, {name}", far, TO_PLAIN[precision])


def bf16(device: torch.device) -> Comparison:
    """The same steps in bf16 compared with fp32; a network that learns something else is far
    away."""
    fine, coarse = (weights(device, "none", precision) for precision in ("fp32", "bf16"))
    return Comparison("bf16, none", distance(fine, coarse), 10 * LIMITS["bf16"])


def jobs(alone: Callable[[], Tensor], at_once: Callable[[], list[Tensor]]) -> Comparison:
    """Parallel trainings compared with a single one."""
    first = alone()
    worst = max(distance(first, other) for other in at_once())
    return Comparison("jobs, none, fp32", worst, LIMITS["fp32"])


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute without TF32 and with deterministic algorithms inside the block."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    cudnn.deterministic = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = before
