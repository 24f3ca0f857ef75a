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

from bdbench.cells.cell import REGISTRIES, Cell, check_network, check_trigger
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
        """Raises `InvalidInput` for an attack whose trigger does not fit the images."""
        for cell in _unlike(cells, "attack", "dataset"):
            self._refuse(cell, check_trigger, "attack")

    def networks(self, cells: Iterable[Cell]) -> None:
        """Raises `InvalidInput` for a model that makes no network for the images, and for one whose
        networks lack what a defense needs."""
        for cell in _unlike(cells, "model", "dataset", "defense"):
            self._refuse(cell, check_network, "model", "defense")

    def footprints(self, cells: Iterable[Cell]) -> None:
        """Makes `footprint_of` know them, those of networks that cannot be made as nothing."""
        for cell in _unlike(cells, "model", "dataset", "recipe"):
            with suppress(Exception):
                footprint_of(cell, lambda chosen: self._ask(chosen, footprint_of, "model"))
                continue
            footprint_of(cell, lambda chosen: Footprint(0, 0, 0, 0))

    def speed(self, cell: Cell, device: torch.device) -> float:
        """See `probe`; without end for a network that cannot be trained. Even our own is trained
        apart, where optimizers are loaded already."""
        try:
            return self._made(cell, partial(probe, device=device))
        except Exception:
            return math.inf

    def _refuse(self, cell: Cell, question: Callable[[Cell], None], *axes: str) -> None:
        """Raises `InvalidInput` where the answer is one. Whatever else goes wrong is for the cell
        to tell."""
        try:
            self._ask(cell, question, *axes)
        except InvalidInput as error:
            if not error.of_code:
                raise
        except Exception:
            return

    def _ask(self, cell: Cell, question: Callable[[Cell], T], *axes: str) -> T:
        """The answer to a question that calls the plugins of these axes."""
        built_in = all(map(partial(_is_built_in, cell), axes))
        return question(cell) if built_in else self._made(cell, question)

    def _made(self, cell: Cell, question: Callable[[Cell], T]) -> T:
        if self.apart is None:
            return question(cell)
        answer: T = self.apart(self.job.narrowed(cell), partial(_answer, question, cell.located))  # type: ignore[assignment]
        return answer


def _is_built_in(cell: Cell, axis: str) -> bool:
    registry = REGISTRIES[axis]
    parts = registry.factories(getattr(cell, axis))
    return all(part.__module__.startswith(f"{registry.package}.") for part in parts)


def _answer(question: Callable[[Cell], T], identity: dict[str, object], worker: Worker) -> T:
    return question(worker.cell(identity))


def _unlike(cells: Iterable[Cell], *axes: str) -> list[Cell]:
    """The first cell of each combination."""
    return list({tuple(cell.specs[axis] for axis in axes): cell for cell in cells}.values())
