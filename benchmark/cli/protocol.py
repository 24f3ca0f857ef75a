"""What `bdbench describe --protocol` prints: the rules by which defenses are compared.

It is made from the code: what a defense is given from its class, hyperparameters and their sources
from the docstrings of its fields, and deviations from the docstring of its module.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from bdbench.cells.declared import clean_needs, defense_passes, undefended
from bdbench.defenses.base import VALIDATION, Defense
from bdbench.defenses.registry import defenses
from bdbench.models.plugins import spec
from bdbench.models.plugins.documentation import about_fields, about_module
from bdbench.models.training.recipe import Recipe

IMAGES = 50_000
"""Size of the training set that work is given for: that of CIFAR-10."""
RECIPE = Recipe()
EPOCH = 3.0
"""Passes per image of an epoch of training."""
SOURCES = re.compile(r"\b(paper|code|choice|validation|BackdoorBench)\b")
"""A source in brackets contains one of these words."""
CONDITION = re.compile(r"Only for .+:")
"""The first line of a paragraph of a docstring whose fields matter only then."""
RULES = (
    "For each seed, every defense gets the same poisoned training set, the same undefended "
    "networks and, if it asks for clean images, the same clean images, or a part of them if it "
    "asks for fewer. One that needs a number of each class may get more of a small data set. No "
    "defense sees a test image, the poison mask, the trigger or the target.",
    "Clean images are a stratified share of the training set in its clean state; "
    f"about {100 * (1 - VALIDATION):g} % of them, rounded by class, are for fitting and "
    f"{100 * VALIDATION:g} % for validation. The undefended network was trained on them or on "
    "their poisoned copies, so its validation accuracy is measured on images it has seen.",
    "A default comes from the method's paper, or from its authors' code where the paper is silent, "
    "where its printed form does not train here, or where the code that gave its numbers does "
    'something else (each method\'s "Differs"); then from what a defender sees (training losses, '
    "accuracy on clean validation images) or another benchmark; and last from us. None is tuned "
    "to lower an ASR, but some were set when an ASR or the poison mask had been seen: `portion` of "
    "`i_bau`, and of `abl` the isolation, the length of the joint unlearning and the limits of the "
    "ascent (see DECISIONS.md).",
    "Settings are the same for all attacks, data sets and networks; if a suite changes one, the "
    "row of its tables says so. Only the recipe follows the data set, as in the CBD paper: its "
    "learning rate (0.1, and 0.01 on GTSRB; `toy` has its own), and whether images are mirrored.",
    f"Stages that train on the poisoned set have lengths for {RECIPE.epochs} epochs, which scale "
    "with the recipe, except `t1` of `cbd`, the unlearning of `abl`, and the copies and "
    "`interval` of `asd`. Stages on clean images make a fixed number of updates, the published one "
    "where there is one, whatever the recipe and the number of images. A suite can shorten them, "
    "and the joint unlearning of `abl`, by its recipe's `updates`, for all defenses alike, or for "
    "one defense by a spec, which its row shows: `quick` gives `mcr` three tenths of its updates.",
    "Numbers are those of the last epoch. No epoch, network or seed is selected by a test result.",
    "Seeds are 0 to N-1 unless `--seed` or a suite names others, and all of them are shown. With "
    "several seeds, the interval is the 95 % t interval, and at least Wilson's of all images.",
    "Work and seconds count everything that a defense needs, including the undefended networks.",
)
"""They hold for all defenses."""
WIDTH = 120


@dataclass(frozen=True)
class Setting:
    """A field of a plugin.

    meaning: its line of the docstring, without the source
    source: where its default comes from, empty if the docstring does not say
    """

    name: str
    default: Any
    meaning: str
    source: str


def protocol(names: Sequence[str] = ()) -> str:
    """The rules and the settings of some defenses, by default all, in Markdown."""
    chosen = list(names) or defenses.names()
    rules = "\n".join(_wrapped(rule, "- ") for rule in RULES)
    parts = ["### Rules for all", rules, "### What a defense is given", _given(chosen)]
    parts.append("### Hyperparameters and their sources")
    for name in chosen:
        parts += _section(name)
    return "\n\n".join(parts)


def settings(factory: Callable[..., Any]) -> list[Setting]:
    """The fields of a plugin, each with what the docstring says about it."""
    fields = spec.fields_of(factory)
    documented = _documented(about_fields(factory), fields)
    return [
        Setting(name, field.default, *documented.get(name, ("", "")))
        for name, field in fields.items()
    ]


def paragraph(factory: Callable[..., Any], word: str) -> str:
    """The paragraph of the plugin's module that begins with `word` and a colon, as one line."""
    for part in about_module(factory).split("\n\n"):
        if part.startswith(f"{word}:"):
            return " ".join(part.removeprefix(f"{word}:").split())
    return ""


def _documented(text: str, fields: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Meaning and source of fields, as a docstring has them in its lines `name: meaning`."""
    found = {}
    for block in text.split("\n\n"):
        condition = ""
        for part in re.split(r"\n(?=\w+(?:, \w+)*: )", block):
            names, colon, rest = " ".join(part.split()).partition(": ")
            if CONDITION.fullmatch(names):
                condition = f"{names[0].lower()}{names[1:]} "
            elif colon and set(names.split(", ")) <= set(fields):
                for name in names.split(", "):
                    found[name] = _split(f"{condition}{rest}")
    return found


def _split(text: str) -> tuple[str, str]:
    """Split a line into meaning and source, the brackets that contain one of `SOURCES`. Where a
    line has several, each belongs to the value before it and stays there; the first is that of the
    default."""
    sources = [each for each in re.findall(r"\(([^()]*)\)", text) if SOURCES.search(each)]
    if len(sources) == 1:
        text = text.replace(f"({sources[0]})", "")
    return re.sub(r"\s+([;,.:]|$)", r"\1", " ".join(text.split())), "".join(sources[:1])


def _given(names: Sequence[str]) -> str:
    headers = ("defense", "starts from", "clean images", "training", "at test time", "work")
    rows = []
    for name in names:
        made: Defense = defenses.build(name)
        (share, _), many = clean_needs(made, name), undefended(made, name)
        start = "an undefended network" if many == 1 else f"{many} undefended networks"
        plain = 3.0 * RECIPE.epochs
        passes = defense_passes(made, RECIPE, IMAGES, name)
        own = passes - many * plain
        # Some only look at an undefended network; they state the passes of a network of their own.
        fresh = not many or (not share and own > EPOCH)
        tuning = "on the clean images" if share else "none"
        rows.append(
            (
                f"`{name}`",
                start if many else "new networks",
                f"{100 * share:g} %" if share else "none",
                "from scratch" if fresh else tuning,
                "one network, nothing else",
                f"{passes / plain:.2f}",
            )
        )
    note = (
        f"Work: in plain trainings of {RECIPE.epochs} epochs on {IMAGES:,} images, including the "
        "undefended networks."
    )
    return f"{_table(headers, rows)}\n\n{note}"


def _section(name: str) -> list[str]:
    factory = defenses.factory(name)
    found = settings(factory)
    parts = [f"#### `{name}`"]
    if found:
        rows = [(f"`{s.name}`", f"`{s.default!r}`", s.meaning, s.source or "-") for s in found]
        parts.append(_table(("field", "default", "meaning", "source of the default"), rows))
    for word in ("Differs", "Elsewhere"):
        if text := paragraph(factory, word):
            parts.append(_wrapped(f"{word}: {text}"))
    return parts


def _wrapped(text: str, bullet: str = "") -> str:
    inside = " " * len(bullet)
    return textwrap.fill(
        text, WIDTH, initial_indent=bullet, subsequent_indent=inside, break_on_hyphens=False
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    table: str = tabulate(cells, headers, tablefmt="github", disable_numparse=True)
    return re.sub(r" {2,}", " ", re.sub(r"-{4,}", "---", table))
