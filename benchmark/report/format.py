"""How numbers, names and prose look on the pages."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from bdbench.models.plugins.errors import shown
from bdbench.records.by_class import ByClass
from bdbench.records.count import wilson
from bdbench.records.rerun import again
from bdbench.report import charts
from bdbench.report.answers import STAGE_WORDS
from bdbench.report.downloads import KINDS
from bdbench.report.prose import inline, prose
from bdbench.tables.groups import ASR, CA, FLOOR, is_none, seconds_total
from bdbench.tables.leaderboard import AT_FLOOR, FOOTNOTES, MISSING, LeaderboardBlock, decimal
from bdbench.tables.others import SOURCES

LARGE = 1_000
"""Groups above which a block has no heat maps, and one link for each group: who opens the index
waits for all of it."""
PAGES = Path(__file__).parent / "templates"


def slug(name: str) -> str:
    """A file name of letters, digits, `_` and `-` that belongs to no other name."""
    plain = re.sub("[^a-z0-9_]+", "-", name.lower())[:40].strip("-")
    if re.fullmatch("[a-z0-9_]+", name) and name == plain:
        return name
    return f"{plain}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def number(value: Any) -> str:
    """A JSON value, numbers with at most six digits."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _name(text: str) -> Markup:
    """A spec that a narrow column may break."""
    return escape(text).replace("(", Markup("(<wbr>")).replace("=", Markup("=<wbr>"))


def _sentence(text: str) -> Markup:
    """A sentence with numbers, of which no line ends before a percent sign."""
    return inline(text).replace(" %", Markup("&nbsp;%"))


def _results_first(columns: Iterable[str]) -> list[str]:
    """What the index has of a row, or the titles: the means before what they took, since a narrow
    screen shows the first columns only.

    columns: of `LeaderboardBlock.totals` or `LeaderboardBlock.total`
    """
    clean, trainings, *means, seconds, ratio = columns
    return [*means, clean, trainings, seconds, ratio]


def _signed(share: float) -> str:
    """A difference in points."""
    return MISSING if math.isnan(share) else f"{100 * share:+z.1f}"


def _level(share: float) -> str:
    """The class of a field in a heat map."""
    return "off" if math.isnan(share) else f"l{round(10 * share)}"


def sent(classes: ByClass, label: int) -> Markup:
    """The fields of a class in the table of labels that triggered images get. Most of them are
    empty, and there are a hundred and more on each page, so no template makes them."""
    of, goal = classes.images[label], classes.goals[label]
    if not of:
        return Markup(f'<td class="empty"><span>{MISSING}</span></td>\n' * len(classes.names))
    fields = ['<td class="l0"><span>0</span></td>\n'] * len(classes.names)
    for to in {goal, *map(int, classes.triggered[label])}:
        share = classes.sent(label, to) / of
        shown, kind = decimal(100 * share) if share else "0", " goal" if to == goal else ""
        fields[to] = f'<td class="{_level(share)}{kind}"><span>{shown}</span></td>\n'
    return Markup("".join(fields))


@cache
def templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "decimal": decimal,
        "exact": lambda value: "" if math.isnan(value) else f"{value:.6g}",
        "home": lambda group: f"cells/{(group.used or group.records)[0].key}.html",
        "level": _level,
        "name": _name,
        "number": number,
        "inline": inline,
        "prose": prose,
        "results_first": _results_first,
        "sentence": _sentence,
        "percent": lambda share: decimal(100 * share),
        "signed": _signed,
    }
    environment.tests["bare"] = is_none
    environment.tests["large"] = lambda block: len(block.groups) > LARGE
    environment.globals |= {
        # A page says nothing of the folders of whoever made it.
        "again": partial(again, results=Path("results")),
        "at_floor": AT_FLOOR,
        "download_kinds": KINDS,
        "footnotes": FOOTNOTES,
        "maps": maps,
        "metric_words": METRIC_WORDS,
        "missing": MISSING,
        "other_sources": SOURCES,
        "seconds_total": seconds_total,
        "sent": sent,
        "stage_words": STAGE_WORDS,
        "wilson": wilson,
        "zip": zip,
        "frame": charts,
    }
    return environment


METRIC_WORDS = {
    CA: ("clean accuracy", "CA: clean test images that get their own label", "ca"),
    ASR: ("attack success rate", "ASR: triggered images that get the target", "asr"),
    "robust_accuracy": ("robust accuracy", "triggered images that get their own label", ""),
    FLOOR: ("ASR floor", "the same images, without the trigger, that get the target", ""),
}
ORIGINS = {
    "data, sha256": "data_sha256",
    "notes on the data": "data_notes",
    "device": "device",
    "precision": "precision",
    "bdbench": "versions · bdbench",
    "commit": "commit",
    "python": "versions · python",
    "torch": "versions · torch",
}
"""The parts of a record's provenance that the index sums up, with at most `VALUES` values each."""


def maps(block: LeaderboardBlock) -> Iterator[tuple[str, str, Sequence[str], str]]:
    """Of each heat map: its short name, metric, rows and title."""
    if block.poisoned:
        yield "asr", ASR, block.poisoned, "ASR in percent, low is good"
    yield "ca", CA, block.attacks, "CA in percent, high is good"
