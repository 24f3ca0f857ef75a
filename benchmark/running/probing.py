"""What a run must know of plugins before it begins. Those of others are asked in a fresh process:
nobody here knows what their code does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from bdbench.cells.cell import REGISTRIES, Cell, check_trigger
from bdbench.models.plugins.errors import InvalidInput
from bdbench.running.needs import Footprint, footprint_of
from bdbench.running.speed import probe
from bdbench.running.worker import Job, Worker

T = TypeVar("T")


@dataclass(frozen=True)
class Asking:
    """Asks for what a run must know.

    apart: makes a call in a fresh process, None where plugins of others are asked here
    """

    job: Job
    apart: Callable[[Job, Callable[[Worker], object]], object] | None

    def triggers(self, cells: Iterable[Cell]) -> None:
        """Raises `InvalidInput` for an attack whose trigger does not fit the images. Whatever else
        goes wrong is for the cell to tell."""
        for cell in _unlike(cells, "attack", "dataset"):
            try:
                self._ask(cell, "attack", check_trigger)
            except InvalidInput:
                raise
            except Exception:
                continue

    def footprints(self, cells: Iterable[Cell]) -> None:
        """Makes `footprint_of` know them, those of networks that cannot be made as nothing."""
        for cell in _unlike(cells, "model", "dataset", "recipe"):
            with suppress(Exception):
                footprint_of(cell, lambda chosen: self._ask(chosen, "model", footprint_of))
                continue
            footprint_of(cell, lambda chosen: Footprint(0, 0, 0, 0))

    def speed(self, cell: Cell, device: torch.device) -> float:
        """See `probe`; without end for a network that cannot be trained. Even our own is trained
        apart, where optimizers are loaded already."""
        try:
            return self._made(cell, partial(probe, device=device))
        except Exception:
            return math.inf

    def _ask(self, cell: Cell, axis: str, question: Callable[[Cell], T]) -> T:
        registry = REGISTRIES[axis]
        ours = f"{registry.package}."
        built_in = all(
            part.__module__.startswith(ours) for part in registry.factories(getattr(cell, axis))
        )
        return question(cell) if built_in else self._made(cell, question)

    def _made(self, cell: Cell, question: Callable[[Cell], T]) -> T:
        if self.apart is None:
            return question(cell)
        answer: T = self.apart(self.job.narrowed(cell), partial(_answer, question, cell.located))  # type: ignore[assignment]
        return answer


def _answer(question: Callable[[Cell], T], identity: dict[str, object], worker: Worker) -> T:
    return question(worker.cell(identity))


def _unlike(cells: Iterable[Cell], *axes: str) -> list[Cell]:
    """The first cell of each combination."""
    return list({tuple(cell.specs[axis] for axis in axes): cell for cell in cells}.values())
