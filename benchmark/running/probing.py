"""Calls of plugins before a run. Third-party plugins are called in a fresh process, since their
code may do anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from bdbench.attacks.base import Attack
from bdbench.cells.cell import Cell, check_network, check_trigger, is_built_in
from bdbench.models.plugins.errors import SIGNALS, InvalidInput
from bdbench.running.engines.base import Died
from bdbench.running.speed import probe
from bdbench.running.worker import Job, Worker

T = TypeVar("T")


@dataclass(frozen=True)
class Asking:
    """Checks plugins and measures their speed before a run.

    apart: makes a call in a fresh process; None to call third-party plugins in this one
    """

    job: Job
    apart: Callable[[Job, Callable[[Worker], object]], object] | None

    def triggers(self, cells: Iterable[Cell]) -> None:
        """Raises `InvalidInput` for an attack whose trigger does not fit the images."""
        for cell in _unlike(cells, "attack", "dataset"):
            self._refuse(cell, check_trigger, "attack")

    def networks(self, cells: Collection[Cell]) -> None:
        """Raises `InvalidInput` for a model that cannot build a network for the images, or whose
        networks lack what a defense or an attack needs."""
        # Most attacks need nothing.
        needy = [cell for cell in cells if type(cell.attack).lacks is not Attack.lacks]
        for axis, asked in (("defense", cells), ("attack", needy)):
            for cell in _unlike(asked, "model", "dataset", axis):
                self._refuse(cell, partial(check_network, axes=(axis,)), "model", axis)

    def speed(self, cell: Cell, device: torch.device) -> float:
        """See `probe`; infinite for a network that cannot be trained, NaN, which fits no budget, if
        the process died. Built-in models run in a fresh process too, where torch's optimizers are
        already loaded."""
        try:
            return self._made(cell, partial(probe, device=device))
        except SIGNALS:
            raise
        except Died:
            return math.nan
        except BaseException:
            return math.inf

    def _refuse(self, cell: Cell, question: Callable[[Cell], None], *axes: str) -> None:
        """Raises `InvalidInput` if the question does. Other errors become a failed record when the
        cell runs."""
        try:
            self._ask(cell, question, *axes)
        except InvalidInput as error:
            if not error.of_code:
                raise
        except SIGNALS:
            raise
        except BaseException:
            return

    def _ask(self, cell: Cell, question: Callable[[Cell], T], *axes: str) -> T:
        """The answer to a question that calls the plugins of these axes, in a fresh process unless
        all are built in."""
        built_in = all(map(partial(is_built_in, cell), axes))
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
