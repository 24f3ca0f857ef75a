"""Numbers and lists as the text of tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from bdbench.records.count import Count
from bdbench.tables.groups import (
    mean,
)
from bdbench.tables.statistics import spread

MISSING = "-"
"""A number that there is not."""


def decimal(value: float) -> str:
    """A number with one decimal, without the sign of a zero; `MISSING` for nan."""
    return MISSING if math.isnan(value) else f"{value:z.1f}"


def plus_minus(middle: float, half: float) -> str:
    """A number with the half width of its interval, unless that is nan."""
    return decimal(middle) if math.isnan(half) else f"{decimal(middle)} ± {decimal(half)}"


def percent(counts: Sequence[Count]) -> str:
    """The mean over seeds with the half width of its interval."""
    return plus_minus(100 * mean(count.rate for count in counts), 100 * spread(counts))


def listed(names: Sequence[str]) -> str:
    """Such as `ASR, R-Acc and floor`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def markdown_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str]
) -> str:
    """A table in Markdown; `align` is "left" or "right" for each column."""
    # tabulate pads columns beyond the width of its headers, so they are passed as a row.
    table = tabulate([headers, *rows], tablefmt="pipe", disable_numparse=True, colalign=align)
    rule, header, *others = table.splitlines()
    return "\n".join([header, rule, *others])
