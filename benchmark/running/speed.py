"""How fast cells run: first probed, then measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from bdbench.cells.cell import Cell
from bdbench.cells.cost import (
    NOTHING,
    Part,
    added_work,
    controls,
    curve_work,
    reactivation_work,
)
from bdbench.models.scope import num_threads
from bdbench.trial.warm_up import steps


class Speed:
    """Forward passes per second of each model.

    threads: of a CPU, None for as many as torch uses
    done: forward passes that are done of parts of cells; grows during a run
    curves: whether networks are evaluated at the ends of epochs
    probing: measures the speed of a model that has not run yet, by default `probe`
    reactivate: whether cells also measure if the backdoor comes back
    """

    def __init__(
        self,
        device: torch.device,
        threads: int | None = None,
        done: Mapping[Part, float] = NOTHING,
        curves: bool = False,
        probing: Callable[[Cell, torch.device], float] | None = None,
        reactivate: bool = False,
    ) -> None:
        self.device, self.threads, self.curves = device, threads, curves
        self.done, self._probing = dict(done), probing
        self.reactivate = reactivate
        self._rates: dict[tuple[str, str, int], float] = {}

    def seconds(self, cells: Iterable[Cell]) -> float:
        """Expected for these cells, without data loading and the final evaluation."""
        cells = list(cells)
        extra = {cell: curve_work(cell, self.done) if self.curves else 0.0 for cell in cells}
        if self.reactivate:
            extra = {cell: work + reactivation_work(cell) for cell, work in extra.items()}
            cells += controls(cells)
        return sum(
            (share + extra.get(cell, 0.0)) / self._rate(cell)
            for cell, share in added_work(cells, self.done).items()
        )

    def learn(self, cell: Cell, done: float, seconds: float) -> None:
        """Take the speed of a model from a cell that took these seconds for `done` forward
        passes."""
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
"""Steps of a probe, at most, and seconds after which fewer are enough."""


def probe(cell: Cell, device: torch.device) -> float:
    """Forward passes per second of a cell's model, from the fastest of a few training steps."""
    batch = min(cell.recipe.batch_size, cell.dataset.count)
    return 3 * batch / min(steps(cell, device, STEPS, batch, ENOUGH))
