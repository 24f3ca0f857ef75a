"""Which cells have the record that a run asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bdbench.cells.cell import Cell
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.files import path_of, read
from bdbench.records.record import OtherSchema
from bdbench.storage.networks import path_of as network_of
from bdbench.trial import provenance

Kind = Literal["missing", "unreactivated", "unsaved", "outdated", "finished"]


@dataclass(frozen=True)
class CellState:
    """The state of a cell before a run.

    kind: missing, without a record that the run accepts; unreactivated, with such a record but
        without the P-ASR that the run should measure; unsaved, without the network that it should
        save; outdated, with a record that other code made; finished
    folder: of the record, None if missing
    other_code: the parts of the cell whose code has changed since, of an outdated one
    images: hash of the images that the record was made on, None if there is no record
    """

    kind: Kind
    folder: Path | None = None
    other_code: tuple[str, ...] = ()
    images: str | None = None

    @property
    def runs(self) -> bool:
        """Whether the cell has to run."""
        return self.kind in ("missing", "unreactivated", "unsaved")


def state_of(
    cell: Cell,
    folders: Sequence[Path],
    *,
    stale: bool,
    curves: bool,
    save: bool,
    reactivate: bool = False,
) -> CellState:
    """The state of a cell by the first folder that has a record of it, which tables show. Networks
    are saved in the first folder only. Raises `OtherSchema`.

    stale, curves, save, reactivate: see `RunOptions`
    """
    for folder in folders:
        state = _state(cell, folder, stale, curves, save and folder == folders[0], reactivate)
        if state.kind != "missing":
            return state
    return MISSING


MISSING = CellState("missing")


def _state(
    cell: Cell, folder: Path, stale: bool, curves: bool, save: bool, reactivate: bool
) -> CellState:
    path = path_of(folder, cell.key)
    if not path.exists():
        return MISSING
    try:
        record = read(path)
    except OtherSchema:
        raise
    except InvalidInput:
        return MISSING
    other = provenance.changed(record, cell)
    accepted = not (stale and other) and not (curves and not record.curves)
    if record.status == "failed" or not accepted:
        return MISSING
    if reactivate and not record.is_reactivated:
        return CellState("unreactivated", folder)
    if save and not network_of(folder, cell.key).exists():
        return CellState("unsaved", folder)
    images = record.provenance.data_sha256
    return CellState("outdated" if other else "finished", folder, other, images)
