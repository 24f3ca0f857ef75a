"""The leaderboard and the tables of the paper, made from records as Markdown, CSV and LaTeX.

The same records give the same bytes, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import did_you_mean
from bdbench.records.beside import ALONE, Origins
from bdbench.records.consistency import AXES
from bdbench.records.record import Record
from bdbench.storage.atomic import write_atomically
from bdbench.tables.block import EXTRA_COLUMNS, PASR, PASR_INTERVAL, LeaderboardBlock
from bdbench.tables.frames import differences, folders, long_form, summary
from bdbench.tables.groups import Group, collect
from bdbench.tables.latex import documents
from bdbench.tables.leaderboard import LEGEND, PASR_LEGEND, markdown
from bdbench.tables.paper import LEGEND as PAPER_LEGEND
from bdbench.tables.paper import TIMING, paper_tables
from bdbench.tables.sheet import PaperTable
from bdbench.tables.text import as_csv, as_markdown

SUITES = {1: "table1-cifar10", 2: "table2", 3: "table3", 5: "table5"}
"""The suite that fills a table of the paper."""


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """Defenses by attacks.

    blocks: Markdown, one per data set, model and recipe
    sources: the blocks that the Markdown shows
    summary: the table of `summarise`, with the folder of each row if there are several
    remarks: records of other folders that are left out
    order: the column that the rows of the Markdown are sorted by
    """

    blocks: tuple[str, ...]
    sources: tuple[LeaderboardBlock, ...]
    summary: pd.DataFrame
    remarks: tuple[str, ...] = ()
    order: str = "DER"

    def markdown(self) -> str:
        """The blocks, the remarks and a legend."""
        remarks = "\n".join(f"- {as_markdown(line)}" for line in self.remarks)
        reactivated = any(block.reactivated for block in self.sources)
        order = as_markdown(self.order)
        legend = "\n".join([LEGEND.format(order=order), *[PASR_LEGEND] * reactivated])
        return "\n\n".join([*self.blocks, *filter(None, [remarks]), legend]) + "\n"

    def latex(self, label: str = "") -> str:
        """One LaTeX table per block, see `documents`.

        label: that of the first block; further ones get a number. Derived if empty

        Raises `InvalidInput` for an invalid label.
        """
        return documents(self.sources, label)

    def csv(self) -> str:
        """The summary as CSV: shares in [0, 1], six significant digits, empty for nan."""
        return as_csv(self.summary)


def leaderboard(
    records: Iterable[Record],
    sort: str = "",
    columns: Iterable[str] = (),
    origins: Origins = ALONE,
) -> Leaderboard:
    """Defenses by attacks, for each data set, model and recipe.

    sort: title of the column that sorts the defenses of a section, best first, such as
        "badnets ASR" or "seconds"; DER if empty
    columns: the `EXTRA_COLUMNS` to add for each attack, or "all"; P-ASR is shown where it was
        measured, its interval on request
    origins: the folders that the records come from, see `join`

    Raises `InvalidInput` for an unknown column, and as `summarise` does.
    """
    groups = collect(records)
    settings = groupby(groups, key=lambda group: [group.names[axis] for axis in AXES[:3]])
    blocks = tuple(LeaderboardBlock(tuple(members), origins=origins) for _, members in settings)
    titles = {title for block in blocks for row in block.numbers.values() for title in row}
    known = ["defense", *sorted(titles)]
    require(sort in ("", *known), f"unknown column {sort!r}{did_you_mean(sort, known)}")
    wanted = list(columns)
    for name in wanted:
        choices = [*EXTRA_COLUMNS, PASR, PASR_INTERVAL, "all"]
        require(name in choices, f"unknown column {name!r}{did_you_mean(name, choices)}")
    extra = (*EXTRA_COLUMNS, PASR_INTERVAL) if "all" in wanted else wanted
    texts = tuple(markdown(block, sort, extra) for block in blocks)
    frame = summary(groups)
    if origins.signs:
        frame["folder"] = [folders(group, origins) for group in groups]
    return Leaderboard(texts, blocks, frame, origins.remarks, sort or "DER")


def write_files(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write files by name to `<folder>/tables` and return their paths. Raises `Unusable` for an
    unwritable folder."""
    for name, text in texts.items():
        write_atomically(folder / "tables" / name, text.encode())
    return [folder / "tables" / name for name in texts]


def leaderboard_files(
    records: Sequence[Record], folder: Path, origins: Origins = ALONE, label: str | None = None
) -> dict[str, str]:
    """The texts of `leaderboard.csv` and `.md`, of the records of a folder.

    label: if not None, `leaderboard.tex` too, with this label; derived if empty

    Raises `InvalidInput` for no records, and as `leaderboard` does.
    """
    if not records:
        raise InvalidInput(f"no records in {folder / 'records'}; create some with `bdbench run`")
    board = leaderboard(records, origins=origins)
    texts = {"leaderboard.csv": board.csv(), "leaderboard.md": board.markdown()}
    if label is not None:
        texts["leaderboard.tex"] = board.latex(label)
    return texts


@dataclass(frozen=True, eq=False)
class NumberedTable:
    """Table 1, 2, 3 or 5 of the paper, made from our records.

    parts: in the paper's layout, at least one per data set, model and recipe
    groups: the cells in it
    """

    number: int
    parts: tuple[PaperTable, ...]
    groups: tuple[Group, ...]

    def markdown(self) -> str:
        """Markdown in the paper's layout, with a legend."""
        return "\n\n".join([*(part.markdown() for part in self.parts), self._legend]) + "\n"

    def latex(self) -> str:
        """LaTeX in the paper's layout, with the legend in each caption."""
        return "\n".join(part.latex(self._legend) for part in self.parts)

    @property
    def _legend(self) -> str:
        return TIMING if self.number == 3 else PAPER_LEGEND

    def csv(self) -> str:
        """CSV in long form, with the printed numbers."""
        return as_csv(long_form(self.groups, self.number))

    def differences(self) -> str:
        """Differences between each pair of defenses on the same poisoned sets, as CSV."""
        return as_csv(differences(self.groups))


def paper_table(number: int, records: Iterable[Record], folder: Path) -> NumberedTable:
    """A table of the paper from the records of a folder, without those of networks that a user
    brought. Raises `InvalidInput` if no record belongs in it, and as `summarise` does."""
    made = paper_tables(number, collect(record for record in records if record.given is None))
    require(
        bool(made),
        f"no record in {folder / 'records'} belongs in table {number}; "
        f"create some with `bdbench run {SUITES[number]}`",
    )
    return NumberedTable(
        number,
        tuple(part for parts, _ in made for part in parts),
        tuple(group for _, groups in made for group in groups),
    )


def table_files(
    table: int, records: Sequence[Record], folder: Path, latex: bool = False
) -> dict[str, str]:
    """The texts of a table of the paper, from the records of a folder.

    They are `table<N>.md` in the paper's layout, `table<N>.csv` in long form, except for Table 3
    `table<N>-differences.csv` with the differences between each pair of defenses, and with `latex`
    `table<N>.tex`. Raises `InvalidInput` if no record belongs in the table.
    """
    made = paper_table(table, records, folder)
    texts = {f"table{table}.md": made.markdown(), f"table{table}.csv": made.csv()}
    if table != 3:
        texts[f"table{table}-differences.csv"] = made.differences()
    if latex:
        texts[f"table{table}.tex"] = made.latex()
    return texts
