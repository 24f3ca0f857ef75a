"""Which cells have the record that a run asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bdbench.cells.cell import Cell
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.claims import stamp
from bdbench.records.files import network_of, path_of, read
from bdbench.records.record import OtherSchema, Record
from bdbench.storage.atomic import Unusable
from bdbench.trial import provenance

Kind = Literal["missing", "unreactivated", "unsaved", "outdated", "finished"]


@dataclass(frozen=True)
class CellState:
    """The state of a cell before a run.

    kind: missing, without a record that the run accepts; unreactivated, with such a record but
        without the P-ASR that the run should measure; unsaved, without the network that it should
        save; outdated, with a record that other code made; finished
    folder: of the record that tables show, None if no folder has one
    other_code: the parts of the cell whose code has changed since that record
    before: `stamp` of the record in the folder of the run, which another run may replace
    damaged: what is wrong with that record, empty for nothing
    """

    kind: Kind
    folder: Path | None = None
    other_code: tuple[str, ...] = ()
    before: int | None = None
    damaged: str = ""

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
    """The state of a cell by the first folder that has results of it, which tables show. The first
    folder is that of the run; networks are saved there only. Raises `OtherSchema`, and
    `Unusable` for a record that cannot be read.

    stale, curves, save, reactivate: see `RunOptions`
    """
    own = folders[0]
    # Taken first: what another run writes from now on counts as new.
    before, damaged = stamp(own, cell.key), ""
    for folder in folders:
        record, wrong = _results(folder, cell)
        damaged = damaged or (wrong if folder == own else "")
        if record is None:
            continue
        other = provenance.changed(record, cell)
        kind: Kind = "outdated" if other else "finished"
        if (stale and other) or (curves and not record.curves):
            kind = "missing"
        elif reactivate and not record.is_reactivated:
            kind = "unreactivated"
        elif save and folder == own and not network_of(folder, cell.key).exists():
            kind = "unsaved"
        return CellState(kind, folder, other, before, damaged)
    return CellState("missing", before=before, damaged=damaged)


def _results(folder: Path, cell: Cell) -> tuple[Record | None, str]:
    """The record of a cell in a folder, None for one that is missing, damaged or failed, and what
    is wrong with a damaged one. Raises as `state_of` does."""
    path = path_of(folder, cell.key)
    if not path.exists():
        return None, ""
    try:
        record = read(path)
    except (OtherSchema, Unusable):
        raise
    except InvalidInput as error:
        return None, str(error)
    return (record if record.status == "ok" else None), ""
