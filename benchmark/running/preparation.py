"""What cells share is made before them, each part in a process that has imported only the plugins
that its key names: other files may change the process that imports them, and an attack that ran may
have left something behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from bdbench.cells.cell import REGISTRIES, Cell, is_built_in
from bdbench.cells.cost import controls
from bdbench.defenses.registry import defenses
from bdbench.models.networks.given import given
from bdbench.models.registry import models
from bdbench.running.worker import Job, Worker, limited

OURS = "wrn16_1"
"""A model whose file changes nothing."""

Step = tuple[Job, Callable[[Worker], Any]]
"""A call for a fresh process."""


def steps(job: Job, cell: Cell, work: Callable[[Worker], Any]) -> list[Step]:
    """The calls of an attempt at a cell, in their order: its preparations, then `work`."""
    job = job.repeated(cell)
    first = preparations(job, cell)
    return [*first, (replace(job.narrowed(cell), shares=not first), work)]


def preparations(job: Job, cell: Cell) -> list[Step]:
    """The calls that make what a cell shares with others, in their order; each returns how often
    its work resumed. None for a cell whose plugins are all built in, as these leave their process
    as it was."""
    if all(is_built_in(cell, axis) for axis in REGISTRIES):
        return []
    every = [cell, *(controls([cell]) if job.reactivate else [])]
    return [
        (job.narrowed(part), partial(_make, identity=part.located, key=cell.key, networks=networks))
        for each in every
        for part, networks in _parts(each)
    ]


def _parts(cell: Cell) -> Iterator[tuple[Cell, int]]:
    """The cells without a defense that make the poisoned set, and then the undefended networks;
    with the number of these."""
    undefended = replace(cell, defense=defenses.build("none"))
    trains = cell.attack.trains
    yield (undefended if trains else replace(undefended, model=models.build(OURS))), 0
    if cell.declared.undefended and given(cell.model) is None:
        yield undefended, cell.declared.undefended


def _make(worker: Worker, identity: Mapping[str, Any], key: str, networks: int) -> int:
    """In the fresh process.

    key: of the cell that waits
    """
    worker.harness.progress = lambda work: worker.progress(key, work)
    with limited(worker.job.limit, worker.job.spent):
        cell = worker.cell(identity)
        worker.check_images(cell)
        return worker.harness.share(cell, networks)
