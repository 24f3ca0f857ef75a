"""What a page shows as a table, as files: CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from bdbench.records.count import wilson
from bdbench.records.record import Record
from bdbench.report.comparison import Section
from bdbench.tables.groups import ASR, CA, FLOOR, RACC, Group, is_none, seconds_total
from bdbench.tables.latex import documents
from bdbench.tables.leaderboard import MISSING, LeaderboardBlock, decimal
from bdbench.tables.text import as_latex, csv_field

Value = str | int | float | None
Content = Callable[[], bytes]
KINDS = ("csv", "json", "tex")


@dataclass(frozen=True)
class Grid:
    """A table: its title, the headings of its columns, and rows of texts and numbers. What is
    missing is None."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]

    def csv(self) -> bytes:
        """Numbers have six significant digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(csv_field, self.columns))
        writer.writerows([_exact(value) for value in row] for row in self.rows)
        return _bytes(text.getvalue())

    def json(self) -> bytes:
        """A list with an object for each row."""
        rows = [
            {name: _number(value) for name, value in zip(self.columns, row, strict=True)}
            for row in self.rows
        ]
        return _bytes(json.dumps(rows, indent=1, allow_nan=False) + "\n")

    def tex(self) -> bytes:
        """A table environment, which needs the package booktabs. Numbers have one decimal."""
        texts = [any(isinstance(row[n], str) for row in self.rows) for n in range(self._width)]
        aligned = "".join("l" if text else "r" for text in texts)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{as_latex(self.title)}}}",
            rf"\begin{{tabular}}{{{aligned}}}",
            r"\toprule",
            _latex_row(self.columns),
            r"\midrule",
            *map(_latex_row, self.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return _bytes("\n".join(lines) + "\n")

    @property
    def _width(self) -> int:
        return len(self.columns)


def files(stem: str, grid: Callable[[], Grid]) -> dict[str, Content]:
    """By name, what makes each file of a table; the table is made when it is asked for."""
    return {f"{stem}.{kind}": partial(_content, grid, kind) for kind in KINDS}


def _content(grid: Callable[[], Grid], kind: str) -> bytes:
    content: bytes = getattr(grid(), kind)()
    return content


def of_block(stem: str, block: LeaderboardBlock) -> dict[str, Content]:
    """The files of a leaderboard. In LaTeX it is the one for papers, see `documents`."""
    tex = {f"{stem}.tex": partial(lambda own: _bytes(documents([own])), block)}
    return files(stem, partial(leaderboard, block)) | tex


def leaderboard(block: LeaderboardBlock) -> Grid:
    """As the index shows it, in percent."""
    columns = list(block.totals())
    for attack in block.attacks:
        columns += [
            f"{attack} {short}" for short in (("CA",) if is_none(attack) else ("CA", "ASR"))
        ]
    rows = [
        [defense, *(block.numbers[defense].get(column) for column in columns)]
        for defense in block.defenses
    ]
    return Grid(f"Leaderboard, {block.title()}", ["defense", *columns], rows)


def of_plugin(title: str, axis: str, groups: Sequence[Group]) -> Grid:
    """The cells of one attack or defense: shares in percent with their intervals, and seconds.

    axis: what the rows differ in
    """
    shares = {"CA": CA, "ASR": ASR, "R-Acc": RACC, "floor": FLOOR}
    heads = [f"{short}{part}" for short in shares for part in ("", " low", " high")]
    places = ("dataset", "model", "recipe", axis)
    rows: list[list[Value]] = []
    for group in groups:
        found = [100 * n for metric in shares.values() for n in group.estimate(metric)]
        names = [group.names[place] for place in places]
        seconds = group.mean(seconds_total)
        rows.append([*names, len(group.used), *found, seconds, ", ".join(group.flagged)])
    return Grid(title, [*places, "seeds", *heads, "seconds", "flags"], rows)


def comparison(title: str, sections: Sequence[Section]) -> Grid:
    """Cells that are here and there, in percent."""
    rows: list[list[Value]] = []
    for section in sections:
        for pair in section.pairs:
            row: list[Value] = [pair.here.names[axis] for axis in _PLACES]
            for metric in (CA, ASR):
                here, there = (100 * side.estimate(metric)[0] for side in (pair.here, pair.there))
                row += [here, there, 100 * pair.difference(metric), pair.separable(metric)]
            rows.append(row)
    parts = ("here", "there", "difference", "separable")
    heads = [f"{short} {part}" for short in ("CA", "ASR") for part in parts]
    return Grid(title, [*_PLACES, *heads], rows)


_PLACES = ("dataset", "model", "recipe", "attack", "defense")


def metrics(title: str, record: Record) -> Grid:
    """Of one cell, in percent, with Wilson's interval."""
    rows: list[list[Value]] = []
    for name, count in (record.metrics or {}).items():
        if count is not None:
            low, high = wilson(count.hits, count.of)
            rows.append([name, *(100 * n for n in (count.rate, low, high)), count.hits, count.of])
    return Grid(title, ["metric", "percent", "low", "high", "hits", "of"], rows)


def everything(record: Record) -> Grid:
    """Of one cell, a number in each row: metrics, classes and curves."""
    return Grid(record.key, ["part", "of", "name", "value"], list(_everything(record)))


def _everything(record: Record) -> Iterator[list[Value]]:
    for name, count in (record.metrics or {}).items():
        if count is not None:
            yield from (["metrics", name, part, n] for part, n in vars(count).items())
    classes = record.classes
    for label, name in enumerate(classes.get("names", ())):
        for part in ("images", "clean_own", "clean_goal"):
            yield ["classes", name, part, classes[part][label]]
        for to, count in sorted(classes["triggered"][label].items(), key=lambda pair: int(pair[0])):
            yield ["triggered", name, classes["names"][int(to)], count]
    for point in record.curves:
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


def _latex_row(values: Sequence[Value]) -> str:
    return " & ".join(map(_latex, values)) + r" \\"


def _latex(value: Value) -> str:
    known = _number(value)
    if known is None:
        return MISSING
    return decimal(known) if isinstance(known, float) else as_latex(str(known))


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")
