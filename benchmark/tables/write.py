"""Tables are pure functions of records: a tidy CSV and a leaderboard in Markdown.

The same records give the same bytes, in whatever order they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import pandas as pd

from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import did_you_mean
from bdbench.records.beside import ALONE, Origins
from bdbench.records.consistency import AXES
from bdbench.records.record import STAGES, Record
from bdbench.storage.atomic import write_atomically
from bdbench.tables.groups import (
    Group,
    collect,
    filtered,
    is_none,
    mean,
    seconds_own,
    seconds_total,
    trainings,
)
from bdbench.tables.latex import documents
from bdbench.tables.leaderboard import EXTRA, LEGEND, LeaderboardBlock
from bdbench.tables.paper import LEGEND as PAPER_LEGEND
from bdbench.tables.paper import (
    TIMING,
    overhead,
    passes_ratio,
    sheets,
    spread,
    stage_seconds,
)
from bdbench.tables.published import reference
from bdbench.tables.sheet import PaperTable
from bdbench.tables.statistics import half_width, tied
from bdbench.tables.text import as_csv, as_markdown

INTERVALS = ("clean_accuracy", "attack_success_rate", "robust_accuracy")
COLUMNS = (
    *("dataset", "model", "attack", "defense", "recipe", "seeds"),
    *(f"{metric}{part}" for metric in INTERVALS for part in ("", "_low", "_high")),
    *("asr_floor", "at_floor", "der", "tpr", "fpr", "clean_fraction", "trainings"),
    *("seconds_own", "seconds_total", "passes_forward", "passes_backward"),
    *("flags", "excluded"),
)

DIFFERENCES = (
    *("dataset", "model", "recipe", "attack", "metric", "defense", "other"),
    *("seeds", "more", "low", "high", "separable"),
)
SUITES_OF = {1: "table1-cifar10", 2: "table2", 3: "table3", 5: "table5"}
"""What fills a table of the paper."""


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """
    blocks: Markdown, one per data set, model and recipe
    made: of which these are made
    summary: what `summarise` returns, with the folder of each row where there are several
    remarks: what other folders have that is left out
    """

    blocks: tuple[str, ...]
    made: tuple[LeaderboardBlock, ...]
    summary: pd.DataFrame
    remarks: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The blocks, what is left out, and a legend."""
        remarks = "\n".join(f"- {as_markdown(line)}" for line in self.remarks)
        return "\n\n".join([*self.blocks, *filter(None, [remarks]), LEGEND]) + "\n"

    def latex(self, label: str = "") -> str:
        """A table of LaTeX for each block; `label` is that of the first, and of the others with a
        number. Raises `InvalidInput` for one that LaTeX would not take."""
        return documents(self.made, label)

    def csv(self) -> str:
        """The summary with shares in [0, 1], six significant digits, and nothing for nan."""
        return as_csv(self.summary)


def summarise(records: Iterable[Record]) -> pd.DataFrame:
    """One row per cell, over its seeds, with the columns `COLUMNS`.

    Metrics are shares in [0, 1] with the Wilson interval of one seed or the t interval of several.
    at_floor: whether the ASR is not above the floor. der, tpr, fpr, clean_fraction: shares, see
    `Group.der`, `filtered` and `clean_fraction`; trainings: see there. Records that failed or are
    not finite enter no mean: they are counted in `excluded`, and `seeds` are the others. Flags read
    `not_finite:2` for two seeds. Raises `InvalidInput` for records that do not belong into one
    table, see `collect`.
    """
    return _summary(collect(records))


def leaderboard(
    records: Iterable[Record],
    sort: str = "",
    columns: Iterable[str] = (),
    origins: Origins = ALONE,
) -> Leaderboard:
    """Defenses by attacks, for each data set, model and recipe.

    sort: title of the column that orders the defenses of a section, such as "badnets ASR" or
        "seconds"; DER if not given. The best number comes first.
    columns: which of `EXTRA` to add for each attack, or "all"
    origins: from which folders the records come, see `join`

    Raises `InvalidInput` for a column that is not there, or as `summarise` does.
    """
    groups = collect(records)
    found = groupby(groups, key=lambda group: [group.names[axis] for axis in AXES[:3]])
    blocks = tuple(LeaderboardBlock(tuple(members), origins=origins) for _, members in found)
    titles = {title for block in blocks for row in block.numbers.values() for title in row}
    known = ["defense", *sorted(titles)]
    require(sort in ("", *known), f"unknown column {sort!r}{did_you_mean(sort, known)}")
    wanted = list(columns)
    for name in wanted:
        choices = [*EXTRA, "all"]
        require(name in choices, f"unknown column {name!r}{did_you_mean(name, choices)}")
    extra = EXTRA if "all" in wanted else wanted
    texts = tuple(block.markdown(sort, extra) for block in blocks)
    summary = _summary(groups)
    if origins.signs:
        summary["folder"] = [_folders(group, origins) for group in groups]
    return Leaderboard(texts, blocks, summary, origins.remarks)


def write_leaderboard(
    records: Sequence[Record], folder: Path, origins: Origins = ALONE, label: str | None = None
) -> list[Path]:
    """Write `leaderboard.csv` and `.md` to `<folder>/tables` and return their paths.

    label: of a table in LaTeX, `.tex`, which is written too; derived where it is empty

    Raises `InvalidInput` for no records, an unwritable folder, or as `leaderboard` does.
    """
    if not records:
        raise InvalidInput(f"no records in {folder / 'records'}; `bdbench run` makes them")
    board = leaderboard(records, origins=origins)
    texts = {"leaderboard.csv": board.csv(), "leaderboard.md": board.markdown()}
    if label is not None:
        texts["leaderboard.tex"] = board.latex(label)
    for name, text in texts.items():
        write_atomically(folder / "tables" / name, text.encode())
    return [folder / "tables" / name for name in texts]


@dataclass(frozen=True, eq=False)
class OfPaper:
    """A table of the paper, from 1 to 5.

    sheets: it as it is printed, one for each data set, model and recipe
    groups: those that stand in it
    """

    number: int
    sheets: tuple[PaperTable, ...]
    groups: tuple[Group, ...]

    def markdown(self) -> str:
        """In the paper's layout, and a legend."""
        legend = TIMING if self.number == 3 else PAPER_LEGEND
        return "\n\n".join([*(sheet.markdown() for sheet in self.sheets), legend]) + "\n"

    def latex(self) -> str:
        """In the paper's layout."""
        return "\n".join(sheet.latex() for sheet in self.sheets)

    def csv(self) -> str:
        """In long form, with what the paper prints."""
        return as_csv(_long_form(self.groups, self.number))

    def differences(self) -> str:
        """Of each pair of defenses on the same poisoned sets, as CSV."""
        return as_csv(_differences(self.groups))


def paper_table(number: int, records: Iterable[Record], folder: Path) -> OfPaper:
    """A table of the paper from the records of a folder, but for those of networks that a user
    brought. Raises `InvalidInput` where nothing belongs into it, or as `summarise` does."""
    made = sheets(number, collect(record for record in records if record.given is None))
    require(
        bool(made),
        f"no record in {folder / 'records'} belongs into table {number}; "
        f"`bdbench run {SUITES_OF[number]}` makes them",
    )
    return OfPaper(
        number,
        tuple(sheet for several, _ in made for sheet in several),
        tuple(group for _, chosen in made for group in chosen),
    )


def write_table(
    table: int, records: Sequence[Record], folder: Path, latex: bool = False
) -> list[Path]:
    """Write a table of the paper to `<folder>/tables` and return the paths.

    `table<N>.md` in the paper's layout, `.csv` in long form, `-differences.csv` of each pair of
    defenses on the same poisoned sets, and `.tex` if wanted. Raises `InvalidInput` where nothing
    belongs into it, or as `write_leaderboard` does.
    """
    made = paper_table(table, records, folder)
    texts = {f"table{table}.md": made.markdown(), f"table{table}.csv": made.csv()}
    if table != 3:
        texts[f"table{table}-differences.csv"] = made.differences()
    if latex:
        texts[f"table{table}.tex"] = made.latex()
    for name, text in texts.items():
        write_atomically(folder / "tables" / name, text.encode())
    return [folder / "tables" / name for name in texts]


def _summary(groups: Sequence[Group]) -> pd.DataFrame:
    bare = _undefended(groups)
    rows = [_row(group, bare.get(_data_of(group))) for group in groups]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _undefended(groups: Iterable[Group]) -> dict[tuple[str, ...], Group]:
    """The groups of no defense by what they share with others, the first by name of several."""
    bare: dict[tuple[str, ...], Group] = {}
    for group in groups:
        if is_none(group.names["defense"]):
            bare.setdefault(_data_of(group), group)
    return bare


def _row(group: Group, bare: Group | None) -> dict[str, Any]:
    row: dict[str, Any] = {**group.names, "seeds": len(group.used)}
    for metric in INTERVALS:
        share = group.estimate(metric)
        row |= zip((metric, f"{metric}_low", f"{metric}_high"), share, strict=True)
    return row | {
        "asr_floor": group.estimate("asr_floor")[0],
        "at_floor": group.at_floor if group.counts("attack_success_rate") else None,
        "der": group.der(bare),
        "tpr": group.mean(lambda record: filtered(record)[0]),
        "fpr": group.mean(lambda record: filtered(record)[1]),
        "clean_fraction": group.clean_fraction,
        "trainings": group.mean(trainings),
        "seconds_own": group.mean(seconds_own),
        "seconds_total": group.mean(seconds_total),
        "passes_forward": group.mean(lambda record: record.passes["forward"]),
        "passes_backward": group.mean(lambda record: record.passes["backward"]),
        "flags": " ".join(f"{flag}:{len(those)}" for flag, those in group.flagged.items()),
        "excluded": len(group.records) - len(group.used),
    }


def _long_form(groups: Sequence[Group], table: int) -> pd.DataFrame:
    """A row for each group with what the paper prints; shares like our own metrics."""
    bare = _undefended(groups)
    rows = []
    for group in groups:
        found = reference(group.records[0].cell, table)
        row = _row(group, bare.get(_data_of(group)))
        if table == 3:
            row |= _timing(group, bare[_data_of(group)])
            row["paper_seconds"] = found.published.seconds if found else None
        else:
            for metric in INTERVALS[:2]:
                printed = getattr(found.published, metric) if found else None
                row[f"paper_{metric}"] = math.nan if printed is None else printed / 100
                row[f"{metric}_more"] = row[metric] - row[f"paper_{metric}"]
        rows.append(row | {"departures": "; ".join(found.departures) if found else ""})
    return pd.DataFrame(rows)


def _timing(group: Group, bare: Group) -> dict[str, float]:
    """Medians with the ranges from the least to the largest: seconds, by stage, too; by what share
    they are more than with no defense. And the passes relative to it, and what others took of the
    device at most."""
    total = spread(list(group.seconds.values()))
    more = spread([percent / 100 for percent in overhead(group, bare)])
    others: list[Any] = [record.measured.get("others") for record in group.used]
    return {
        "seconds_own": spread(stage_seconds(group, "fit"))[0],
        **dict(zip((f"seconds_total{part}" for part in ("", "_low", "_high")), total, strict=True)),
        **{f"seconds_{stage}": spread(stage_seconds(group, stage))[0] for stage in STAGES},
        **dict(zip(("seconds_more", "more_low", "more_high"), more, strict=True)),
        "passes_ratio": passes_ratio(group, bare),
        "others": math.nan if None in others else max(others),
    }


def _folders(group: Group, origins: Origins) -> str:
    """Where the records of a row come from."""
    return "; ".join(dict.fromkeys(str(origins.of(record)) for record in group.records))


def _data_of(group: Group) -> tuple[str, ...]:
    return tuple(group.names[axis] for axis in AXES if axis != "defense")


def _differences(groups: Sequence[Group]) -> pd.DataFrame:
    """Each pair of defenses on each attack: how much more the second has than the first.

    The mean over the seeds that both have, with its paired 95 % t interval; see `tied` for what is
    separable.
    """
    rows = []
    for _, members in groupby(groups, key=_data_of):
        for one, two in combinations(members, 2):
            for metric in INTERVALS[:2]:
                a, b = one.counts(metric), two.counts(metric)
                common = sorted(a.keys() & b.keys())
                if not common:
                    continue
                gaps = [b[seed].rate - a[seed].rate for seed in common]
                half = half_width(gaps)
                rows.append(
                    {
                        **{axis: one.names[axis] for axis in AXES if axis != "defense"},
                        "metric": metric,
                        "defense": one.names["defense"],
                        "other": two.names["defense"],
                        "seeds": len(common),
                        "more": mean(gaps),
                        "low": mean(gaps) - half,
                        "high": mean(gaps) + half,
                        "separable": not tied(a, b),
                    }
                )
    return pd.DataFrame(rows, columns=list(DIFFERENCES))
