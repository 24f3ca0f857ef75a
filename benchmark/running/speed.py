"""How fast cells run: first probed, then learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from bdbench.cells.cell import Cell
from bdbench.cells.cost import NOTHING, Part, added_work, curve_work
from bdbench.models.scope import num_threads
from bdbench.trial.warm_up import steps


class Speed:
    """Forward passes per second of each model, first probed and then learned from what ran.

    threads: of a processor, None for as many as torch takes
    there: work that is done of parts of cells; whoever does more adds it
    curves: whether networks are evaluated at the ends of epochs
    probing: see `probe`, which it is by default
    """

    def __init__(
        self,
        device: torch.device,
        threads: int | None = None,
        there: Mapping[Part, float] = NOTHING,
        curves: bool = False,
        probing: Callable[[Cell, torch.device], float] | None = None,
    ) -> None:
        self.device, self.threads, self.curves = device, threads, curves
        self.there, self._probing = dict(there), probing
        self._rates: dict[tuple[str, str, int], float] = {}

    def seconds(self, cells: Iterable[Cell]) -> float:
        """Expected for these cells, data loading and evaluation at the end left out."""
        return sum(
            (share + (curve_work(cell, self.there) if self.curves else 0.0)) / self._rate(cell)
            for cell, share in added_work(cells, self.there).items()
        )

    def learn(self, cell: Cell, done: float, seconds: float) -> None:
        """A cell did so much work in so many seconds."""
        if done and seconds:
            self._rates[self._kind(cell)] = done / seconds

    def _kind(self, cell: Cell) -> tuple[str, str, int]:
        return cell.specs["model"], cell.specs["recipe"], cell.dataset.image_size

    def _rate(self, cell: Cell) -> float:
        kind = self._kind(cell)
        if kind not in self._rates:
            with num_threads(self.threads):
                self._rates[kind] = (self._probing or probe)(cell, self.device)
        return self._rates[kind]


STEPS, ENOUGH = 8, 1.0
"""Of a probe: as many steps as take about so many seconds, up to so many."""


def probe(cell: Cell, device: torch.device) -> float:
    """Forward passes per second of a cell's model: the fastest of a few training steps on noise."""
    batch = cell.recipe.batch_size
    return 3 * batch / min(steps(cell, device, STEPS, batch, ENOUGH))
