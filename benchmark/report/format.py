"""Templates, and the format of numbers, names and prose on the pages."""

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
from bdbench.records.record import CONTROL, METRICS, REACTIVATED, REACTIVATED_CA
from bdbench.records.rerun import again
from bdbench.report import charts
from bdbench.report.answers import STAGE_WORDS
from bdbench.report.downloads import KINDS
from bdbench.report.prose import inline, prose
from bdbench.tables.block import AT_FLOOR, FOOTNOTES, LeaderboardBlock, footnote
from bdbench.tables.footnotes import footnotes
from bdbench.tables.groups import ASR, CA, FLOOR, filtered_parts, is_none, seconds_total
from bdbench.tables.numbers import MISSING, decimal
from bdbench.tables.others import SOURCES

LARGE = 1_000
"""Number of groups above which a block has no heat maps and one link per group, so that the index
still opens quickly."""
TEMPLATES = Path(__file__).parent / "templates"


def slug(name: str) -> str:
    """A unique file name for a plugin name, of letters, digits, `_` and `-`."""
    plain = re.sub("[^a-z0-9_]+", "-", name.lower())[:40].strip("-")
    if re.fullmatch("[a-z0-9_]+", name) and name == plain:
        return name
    return f"{plain}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def number(value: Any) -> str:
    """A JSON value as text, floats with six significant digits."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _name(text: str) -> Markup:
    """A spec with optional line breaks for narrow columns."""
    return escape(text).replace("(", Markup("(<wbr>")).replace("=", Markup("=<wbr>"))


def _sentence(text: str) -> Markup:
    """A sentence without line breaks before percent signs."""
    return inline(text).replace(" %", Markup("&nbsp;%"))


def _results_first(columns: Iterable[str]) -> list[str]:
    """Columns reordered with the results before the cost: a narrow screen shows only the first.

    columns: of `LeaderboardBlock.overall_titles` or `LeaderboardBlock.overall`
    """
    clean, trainings, *results, seconds, ratio = columns
    return [*results, clean, trainings, seconds, ratio]


def _signed(share: float) -> str:
    """A difference in percentage points."""
    return MISSING if math.isnan(share) else f"{100 * share:+z.1f}"


def _level(share: float) -> str:
    """The CSS class of a cell in a heat map."""
    return "off" if math.isnan(share) else f"l{round(10 * share)}"


def sent(classes: ByClass, label: int) -> Markup:
    """A class's row in the table of labels that triggered images get.

    It is made here and not by a template, because a page has hundreds of mostly empty cells.
    """
    of, goal = classes.images[label], classes.goals[label]
    if not of:
        return Markup(f'<td class="empty"><span>{MISSING}</span></td>\n' * len(classes.names))
    cells = ['<td class="l0"><span>0</span></td>\n'] * len(classes.names)
    for to in {goal, *map(int, classes.triggered[label])}:
        share = classes.sent(label, to) / of
        shown, kind = decimal(100 * share) if share else "0", " goal" if to == goal else ""
        cells[to] = f'<td class="{_level(share)}{kind}"><span>{shown}</span></td>\n'
    return Markup("".join(cells))


@cache
def templates() -> Environment:
    """The templates with their filters, tests and globals."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
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
        # A page does not reveal the folders of its author.
        "again": partial(again, results=Path("results")),
        "at_floor": AT_FLOOR,
        "download_kinds": KINDS,
        "filtered_parts": filtered_parts,
        "footnote": footnote,
        "flags": FOOTNOTES,
        "footnotes": footnotes,
        "maps": maps,
        "always": METRICS,
        "metric_words": METRIC_WORDS,
        "missing": MISSING,
        "other_sources": SOURCES,
        "seconds_total": seconds_total,
        "sent": sent,
        "stage_words": STAGE_WORDS,
        "zip": zip,
        "frame": charts,
    }
    return environment


METRIC_WORDS = {
    CA: ("clean accuracy", "CA: clean test images with a correct label", "ca"),
    ASR: ("attack success rate", "ASR: triggered images classified as the target", "asr"),
    "robust_accuracy": ("robust accuracy", "R-Acc: triggered images with a correct label", ""),
    FLOOR: ("ASR floor", "the same images without the trigger, classified as the target", ""),
    REACTIVATED: ("P-ASR", "ASR after fine-tuning on few clean and five poisoned images", "asr"),
    REACTIVATED_CA: ("CA beside P-ASR", "clean accuracy after this fine-tuning", "ca"),
    CONTROL: ("P-ASR without a backdoor", "the same for a network trained on clean images", ""),
}
"""By metric, its name, meaning and CSS class. Only some records have those of P-ASR."""
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
"""By heading on the index page, the path of a value in a record's provenance."""


def maps(block: LeaderboardBlock) -> Iterator[tuple[str, str, Sequence[str], str]]:
    """(short name, metric, attacks, title) of each heat map."""
    if block.poisoned:
        yield "asr", ASR, block.poisoned, "ASR in percent, lower is better"
    yield "ca", CA, block.attacks, "CA in percent, higher is better"
