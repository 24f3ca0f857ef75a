"""The leaderboard and the tables of the paper, made from records as Markdown, CSV and LaTeX.

The same records give the same bytes, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import pandas as pd

from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import did_you_mean
from bdbench.records.beside import ALONE, Origins
from bdbench.records.consistency import AXES
from bdbench.records.record import CONTROL, REACTIVATED, REACTIVATED_CA, STAGES, Record
from bdbench.storage.atomic import write_atomically
from bdbench.tables.block import EXTRA_COLUMNS, PASR, PASR_INTERVAL, LeaderboardBlock
from bdbench.tables.groups import (
    Group,
    collect,
    filtered,
    is_none,
    seconds_own,
    seconds_total,
    trainings,
)
from bdbench.tables.latex import documents
from bdbench.tables.leaderboard import LEGEND, PASR_LEGEND, markdown
from bdbench.tables.paper import LEGEND as PAPER_LEGEND
from bdbench.tables.paper import (
    TIMING,
    overhead,
    paper_tables,
    passes_ratios,
    spread,
    stage_seconds,
)
from bdbench.tables.published import reference
from bdbench.tables.sheet import PaperTable
from bdbench.tables.statistics import difference, tied
from bdbench.tables.text import as_csv, as_markdown

INTERVALS = ("clean_accuracy", "attack_success_rate", "robust_accuracy")
COLUMNS = (
    *("dataset", "model", "attack", "defense", "recipe", "seeds"),
    *(f"{metric}{part}" for metric in INTERVALS for part in ("", "_low", "_high")),
    *("asr_floor", "at_floor", "der", "tpr", "fpr", "auroc", "clean_fraction", "trainings"),
    *("seconds_own", "seconds_total", "passes_forward", "passes_backward"),
    *("flags", "excluded"),
)
REACTIVATION = (
    *(f"{REACTIVATED}{part}" for part in ("", "_low", "_high", "_seeds")),
    *(REACTIVATED_CA, CONTROL),
)
"""Columns of P-ASR, where any cell has one; `_seeds`: how many its mean is over."""

DIFFERENCES = (
    *("dataset", "model", "recipe", "attack", "metric", "defense", "other"),
    *("seeds", "difference", "low", "high", "separable"),
)
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


def summarise(records: Iterable[Record]) -> pd.DataFrame:
    """One row per cell, over its seeds, with the columns `COLUMNS`, and those of `REACTIVATION`
    where one is measured.

    metrics: shares in [0, 1] with their interval, see `statistics.estimate`
    at_floor: whether the ASR does not exceed the floor
    der, clean_fraction: shares in [0, 1], see `Group.der`, `clean_fraction`
    tpr, fpr, auroc: shares in [0, 1], see `filtered`
    trainings: see `groups.trainings`
    seeds, excluded: records that enter the means, and records that failed or are not finite
    flags: with their number of seeds, such as `not_finite:2`

    Raises `InvalidInput` for records that do not belong in one table, see `collect`.
    """
    return _summary(collect(records))


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
    summary = _summary(groups)
    if origins.signs:
        summary["folder"] = [_folders(group, origins) for group in groups]
    return Leaderboard(texts, blocks, summary, origins.remarks, sort or "DER")


def write_leaderboard(
    records: Sequence[Record], folder: Path, origins: Origins = ALONE, label: str | None = None
) -> list[Path]:
    """Write `leaderboard_files` to `<folder>/tables` and return their paths. Raises as it and
    `write_files` do."""
    return write_files(leaderboard_files(records, folder, origins, label), folder)


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
        return as_csv(_long_form(self.groups, self.number))

    def differences(self) -> str:
        """Differences between each pair of defenses on the same poisoned sets, as CSV."""
        return as_csv(_differences(self.groups))


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


def write_table(
    table: int, records: Sequence[Record], folder: Path, latex: bool = False
) -> list[Path]:
    """Write `table_files` to `<folder>/tables` and return their paths. Raises as it and
    `write_files` do."""
    return write_files(table_files(table, records, folder, latex), folder)


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


def _summary(groups: Sequence[Group]) -> pd.DataFrame:
    undefended = _undefended(groups)
    rows = [_row(group, undefended.get(_data_of(group))) for group in groups]
    if not any(group.counts(REACTIVATED) for group in groups):
        return pd.DataFrame(rows, columns=list(COLUMNS))
    for row, group in zip(rows, groups, strict=True):
        others = [group.estimate(metric)[0] for metric in (REACTIVATED_CA, CONTROL)]
        own = (*group.estimate(REACTIVATED), len(group.counts(REACTIVATED)))
        row |= zip(REACTIVATION, (*own, *others), strict=True)
    return pd.DataFrame(rows, columns=[*COLUMNS, *REACTIVATION])


def _undefended(groups: Iterable[Group]) -> dict[tuple[str, ...], Group]:
    """The groups with no defense by all other names; the first one if there are several."""
    found: dict[tuple[str, ...], Group] = {}
    for group in groups:
        if is_none(group.names["defense"]):
            found.setdefault(_data_of(group), group)
    return found


def _row(group: Group, undefended: Group | None) -> dict[str, Any]:
    row: dict[str, Any] = {**group.names, "seeds": len(group.used)}
    for metric in INTERVALS:
        share = group.estimate(metric)
        row |= zip((metric, f"{metric}_low", f"{metric}_high"), share, strict=True)
    return row | {
        "asr_floor": group.estimate("asr_floor")[0],
        "at_floor": group.at_floor if group.counts("attack_success_rate") else None,
        "der": group.der(undefended),
        "tpr": group.mean(lambda record: filtered(record).tpr),
        "fpr": group.mean(lambda record: filtered(record).fpr),
        "auroc": group.mean(lambda record: filtered(record).auroc),
        "clean_fraction": group.clean_fraction,
        "trainings": group.mean(trainings),
        "seconds_own": group.mean(seconds_own),
        "seconds_total": group.mean(seconds_total),
        "passes_forward": group.mean(lambda record: record.passes.forward),
        "passes_backward": group.mean(lambda record: record.passes.backward),
        "flags": " ".join(f"{flag}:{len(own)}" for flag, own in group.flagged.items()),
        "excluded": len(group.records) - len(group.used),
    }


def _long_form(groups: Sequence[Group], table: int) -> pd.DataFrame:
    """One row per group, with the printed shares in [0, 1] and the differences from them."""
    undefended = _undefended(groups)
    rows = []
    for group in groups:
        found = reference(group.records[0].cell, table)
        row = _row(group, undefended.get(_data_of(group)))
        if table == 3:
            row |= _timing(group, undefended[_data_of(group)])
            row["paper_seconds"] = found.published.seconds if found else None
        else:
            for metric in INTERVALS[:2]:
                printed = found.printed(metric) if found else None
                row[f"paper_{metric}"] = math.nan if printed is None else printed / 100
                row[f"{metric}_difference"] = row[metric] - row[f"paper_{metric}"]
        rows.append(row | {"departures": "; ".join(found.departures) if found else ""})
    return pd.DataFrame(rows)


def _timing(group: Group, undefended: Group) -> dict[str, float]:
    """The columns of Table 3: medians over the seeds, `_low` and `_high` their range.

    seconds_total, seconds_<stage>: time in all and by stage
    seconds_increase: increase of seconds_total over no defense, as a share
    passes_ratio: passes relative to no defense
    others: the largest load that other processes put on the device
    """
    total = spread(list(group.seconds.values()))
    increase = spread([percent / 100 for percent in overhead(group, undefended)])
    parts = ("", "_low", "_high")
    others: list[Any] = [record.measured.others for record in group.used]
    return {
        "seconds_own": spread(stage_seconds(group, "fit"))[0],
        **dict(zip((f"seconds_total{part}" for part in parts), total, strict=True)),
        **{f"seconds_{stage}": spread(stage_seconds(group, stage))[0] for stage in STAGES},
        **dict(zip((f"seconds_increase{part}" for part in parts), increase, strict=True)),
        "passes_ratio": spread(passes_ratios(group, undefended))[0],
        "others": math.nan if None in others else max(others),
    }


def _folders(group: Group, origins: Origins) -> str:
    """The folders that the records of a row come from."""
    return "; ".join(dict.fromkeys(str(origins.of(record)) for record in group.records))


def _data_of(group: Group) -> tuple[str, ...]:
    return tuple(group.names[axis] for axis in AXES if axis != "defense")


def _differences(groups: Sequence[Group]) -> pd.DataFrame:
    """For each attack and pair of defenses, `other` minus `defense`.

    It is the mean over the seeds that both have, with its 95 % interval, see
    `statistics.difference`. The two are separable if they are not `tied`.
    """
    rows = []
    for _, members in groupby(groups, key=_data_of):
        for one, two in combinations(members, 2):
            for metric in INTERVALS[:2]:
                a, b = one.counts(metric), two.counts(metric)
                common = sorted(a.keys() & b.keys())
                if not common:
                    continue
                sides = ([side[seed] for seed in common] for side in (b, a))
                interval = zip(("difference", "low", "high"), difference(*sides), strict=True)
                rows.append(
                    {
                        **{axis: one.names[axis] for axis in AXES if axis != "defense"},
                        "metric": metric,
                        "defense": one.names["defense"],
                        "other": two.names["defense"],
                        "seeds": len(common),
                        **dict(interval),
                        "separable": not tied(a, b),
                    }
                )
    return pd.DataFrame(rows, columns=list(DIFFERENCES))
