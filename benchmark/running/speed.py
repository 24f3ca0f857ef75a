"""How fast cells run: first probed, then learned."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from bdbench.cells.cell import Cell
from bdbench.cells.cost import shares
from bdbench.machine.clock import synchronise
from bdbench.models.scope import threaded
from bdbench.models.training.context import TrainingContext


class Speed:
    """Forward passes per second of each model, first probed and then learned from what ran.

    threads: of a processor, None for as many as torch takes
    """

    def __init__(self, device: torch.device, threads: int | None = None) -> None:
        self.device, self.threads = device, threads
        self._rates: dict[tuple[str, str, int], float] = {}

    def seconds(self, cells: Iterable[Cell]) -> float:
        """Expected for these cells, data loading and evaluation left out."""
        return sum(share / self._rate(cell) for cell, share in shares(cells).items())

    def learn(self, cell: Cell, done: float, seconds: float) -> None:
        """A cell did so much work in so many seconds."""
        if done and seconds:
            self._rates[self._kind(cell)] = done / seconds

    def _kind(self, cell: Cell) -> tuple[str, str, int]:
        return cell.specs["model"], cell.specs["recipe"], cell.dataset.image_size

    def _rate(self, cell: Cell) -> float:
        kind = self._kind(cell)
        if kind not in self._rates:
            with threaded(self.threads):
                self._rates[kind] = probe(cell, self.device)
        return self._rates[kind]


def probe(cell: Cell, device: torch.device, steps: int = 8) -> float:
    """Forward passes per second of a cell's model: the fastest of a few training steps on noise."""
    recipe, size, classes = cell.recipe, cell.dataset.image_size, cell.dataset.num_classes
    build = partial(cell.model.build, classes, size)
    network = TrainingContext(recipe, device, build, seed=0).build()
    optimizer = recipe.sgd(network)
    images = torch.rand(recipe.batch_size, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(recipe.batch_size, device=device) % classes
    seconds = []
    for _ in range(steps):
        synchronise(device)
        start = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 3 * recipe.batch_size / min(seconds)
