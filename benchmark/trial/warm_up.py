"""Training steps on noise, because the first steps are slow: libraries choose their algorithms and
a GPU wakes up."""

from __future__ import annotations

import math
import time
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from bdbench.cells.cell import Cell
from bdbench.machine.clock import synchronise
from bdbench.models.rng import derive, stream
from bdbench.models.training.context import TrainingContext

FEW = 16
"""Images of a step on a CPU, where the first step is hardly slower than others."""


_warm: set[tuple[str, int, int, str]] = set()
"""The networks for which this process has chosen its algorithms on a CPU."""


def warm_up(cell: Cell, device: torch.device) -> None:
    """Run two training steps, before any clock runs: on a CPU once in a process for each network,
    on a GPU, which goes to sleep, for each cell."""
    if device.type == "cuda":
        steps(cell, device, 2, min(cell.recipe.batch_size, cell.dataset.count))
        return
    images = (cell.dataset.image_size, cell.dataset.num_classes)
    network = (cell.specs["model"], *images, cell.recipe.precision)
    if network not in _warm:
        steps(cell, device, 2, FEW)
        _warm.add(network)


def steps(
    cell: Cell, device: torch.device, count: int, batch: int, enough: float = math.inf
) -> list[float]:
    """Seconds of each of a few training steps of a throw-away network, with the model, recipe and
    image size of a cell. The global generators stay as they were.

    count: of steps, at most
    enough: seconds after which three steps are enough
    """
    recipe, size, classes = cell.recipe, cell.dataset.image_size, cell.dataset.num_classes
    build = partial(cell.model.build, classes, size)
    seed = derive(cell.seed, "warm up")
    network = TrainingContext(recipe, device, build, seed).build()
    optimizer = recipe.sgd(network)
    noise = torch.rand(batch, 3, size, size, generator=stream(seed, "noise"))
    images = noise.to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % classes
    seconds: list[float] = []
    while len(seconds) < count and (len(seconds) < 3 or sum(seconds) < enough):
        synchronise(device)
        start = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return seconds
