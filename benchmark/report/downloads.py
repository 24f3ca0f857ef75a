"""The tables of the pages as files: CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from bdbench.records.record import Record
from bdbench.report.comparison import Section
from bdbench.tables import latex, tabular
from bdbench.tables.block import LeaderboardBlock
from bdbench.tables.groups import ASR, CA, FLOOR, RACC, Group, seconds_total
from bdbench.tables.numbers import MISSING, decimal
from bdbench.tables.text import as_latex, csv_field

Value = str | int | float | None
Content = Callable[[], bytes]
KINDS = ("csv", "json", "tex")


@dataclass(frozen=True)
class Grid:
    """A table.

    columns: headings
    rows: text and numbers, None where a value is missing
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]

    def csv(self) -> bytes:
        """CSV with six significant digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(csv_field, self.columns))
        writer.writerows([_exact(value) for value in row] for row in self.rows)
        return _bytes(text.getvalue())

    def json(self) -> bytes:
        """JSON: a list with one object per row."""
        rows = [
            {name: _number(value) for name, value in zip(self.columns, row, strict=True)}
            for row in self.rows
        ]
        return _bytes(json.dumps(rows, indent=1, allow_nan=False) + "\n")

    def tex(self) -> bytes:
        """A LaTeX table, see `tabular.environment`. Numbers have one decimal."""
        is_text = [
            any(isinstance(row[n], str) for row in self.rows) for n in range(len(self.columns))
        ]
        alignment = "".join("l" if text else "r" for text in is_text)
        rows = [tabular.row(map(_latex, values)) for values in (self.columns, *self.rows)]
        inside = tabular.Tabular(alignment, [rows[0], r"\midrule", *rows[1:]])
        return _bytes(tabular.environment(inside, self.title))


def files(stem: str, grid: Callable[[], Grid]) -> dict[str, Content]:
    """By file name, a function that makes the file of a table; the table is made when called."""
    return {f"{stem}.{kind}": partial(_content, grid, kind) for kind in KINDS}


def _content(grid: Callable[[], Grid], kind: str) -> bytes:
    content: bytes = getattr(grid(), kind)()
    return content


def of_block(stem: str, block: LeaderboardBlock) -> dict[str, Content]:
    """The files of a leaderboard. The LaTeX file is the one for papers, see `latex.documents`."""
    tex = {f"{stem}.tex": partial(lambda own: _bytes(latex.documents([own])), block)}
    return files(stem, partial(leaderboard, block)) | tex


def leaderboard(block: LeaderboardBlock) -> Grid:
    """The leaderboard of the index page, in percent."""
    columns = list(block.overall_titles())
    for attack in block.attacks:
        columns += [f"{attack} {short}" for short in block.columns(attack)]
    rows = [
        [
            defense,
            len(block.shares(defense, ASR, block.poisoned)),
            *(block.numbers[defense].get(column) for column in columns),
        ]
        for defense in block.defenses
    ]
    return Grid(f"Leaderboard, {block.title()}", ["defense", "attacks", *columns], rows)


def of_plugin(title: str, axis: str, groups: Sequence[Group]) -> Grid:
    """The cells of one attack or defense: shares in percent with their intervals, and seconds.

    axis: the one that the rows differ in
    """
    metrics = {"CA": CA, "ASR": ASR, "R-Acc": RACC, "floor": FLOOR}
    headings = [f"{short}{part}" for short in metrics for part in ("", " low", " high")]
    axes = ("dataset", "model", "recipe", axis)
    rows: list[list[Value]] = []
    for group in groups:
        shares = [100 * n for metric in metrics.values() for n in group.estimate(metric)]
        names = [group.names[each] for each in axes]
        seconds = group.mean(seconds_total)
        rows.append([*names, len(group.used), *shares, seconds, ", ".join(group.flagged)])
    return Grid(title, [*axes, "seeds", *headings, "seconds", "flags"], rows)


def comparison(title: str, sections: Sequence[Section]) -> Grid:
    """The cells that are in both folders, in percent."""
    rows: list[list[Value]] = []
    for section in sections:
        for pair in section.pairs:
            row: list[Value] = [pair.here.names[axis] for axis in _AXES]
            for metric in (CA, ASR):
                here, there = (100 * side.estimate(metric)[0] for side in (pair.here, pair.there))
                row += [here, there, 100 * pair.difference(metric), pair.separable(metric)]
            rows.append(row)
    parts = ("here", "there", "difference", "separable")
    headings = [f"{short} {part}" for short in ("CA", "ASR") for part in parts]
    return Grid(title, [*_AXES, *headings], rows)


_AXES = ("dataset", "model", "recipe", "attack", "defense")


def metrics(title: str, record: Record) -> Grid:
    """The metrics of one cell, in percent, with Wilson's interval."""
    rows: list[list[Value]] = []
    for name, count in record.meaningful.items():
        shares = (count.rate, *count.interval)
        rows.append([name, *(100 * n for n in shares), count.hits, count.of])
    return Grid(title, ["metric", "percent", "low", "high", "hits", "of"], rows)


def everything(record: Record) -> Grid:
    """All metrics, classes and curves of one cell, one number per row."""
    return Grid(record.key, ["part", "of", "name", "value"], list(_everything(record)))


def _everything(record: Record) -> Iterator[list[Value]]:
    for name, count in record.meaningful.items():
        yield from (["metrics", name, part, n] for part, n in vars(count).items())
    if classes := record.classes:
        for label, name in enumerate(classes.names):
            for part in ("images", "clean_own", "clean_goal"):
                yield ["classes", name, part, classes[part][label]]
            for to, n in sorted((int(to), n) for to, n in classes.triggered[label].items()):
                yield ["triggered", name, classes.names[to], n]
    for point in record.points:
        for name, share in sorted(point.items()):
            if name != "epoch":
                yield ["curves", f"epoch {point['epoch']}", name, share]


def _number(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _exact(value: Value) -> str:
    known = _number(value)
    if isinstance(known, float):
        return f"{known:.6g}"
    return "" if known is None else csv_field(str(known)) if isinstance(known, str) else str(known)


def _latex(value: Value) -> str:
    known = _number(value)
    if known is None:
        return MISSING
    return decimal(known) if isinstance(known, float) else as_latex(str(known))


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")
