"""The leaderboard in LaTeX, as a paper prints it: defenses as rows, under their proper names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import Spec
from bdbench.tables.groups import Group, is_none
from bdbench.tables.leaderboard import (
    AT_FLOOR,
    CLEAN,
    MISSING,
    NO_CLEAN,
    UNKNOWN,
    LeaderboardBlock,
    decimal,
)
from bdbench.tables.names import names, title_of
from bdbench.tables.text import as_latex

WIDE = 9
"""Columns that fit on one column of a page; a table of more goes over both."""
LABEL = r"[A-Za-z0-9:._/+-]{1,100}"
SECTIONS = {
    NO_CLEAN: "Without clean images",
    CLEAN: "With clean images",
    UNKNOWN: "Clean images not known",
}
SAID = ("target",)
"""Settings of attacks that the caption says where all share them."""


def documents(blocks: Sequence[LeaderboardBlock], label: str = "") -> str:
    """A table environment for each block.

    label: of the first, and of the others with a number behind it; derived where it is empty

    Raises `InvalidInput` for a label that LaTeX would not take.
    """
    require(
        not label or re.fullmatch(LABEL, label) is not None,
        f"{label!r} is no label: write letters, digits and : . _ / + -, such as tab:leaderboard",
    )
    taken: set[str] = set()
    parts = []
    for block in blocks:
        base = label or _derived_label(block)
        own, number = base, 1
        while own in taken:
            number += 1
            own = f"{base}-{number}"
        taken.add(own)
        parts.append("\n".join(_environment(block, own)))
    return "\n".join(parts)


def _environment(block: LeaderboardBlock, label: str) -> Iterator[str]:
    columns = list(_columns(block))
    wide = len(columns) > WIDE
    kind = "table*" if wide else "table"
    yield r"% Needs \usepackage{booktabs} and \usepackage{adjustbox}."
    yield f"\\begin{{{kind}}}"
    yield r"\centering"
    yield f"\\caption[{as_latex(_short_title(block))}]{{{as_latex(_caption(block))}}}"
    yield f"\\label{{{label}}}"
    yield r"\begin{adjustbox}{max width=\linewidth}"
    yield f"\\begin{{tabular}}{{ll{'r' * (len(columns) - 2)}}}"
    yield r"\toprule"
    yield from _heads(columns)
    for section, defenses in block.sections().items():
        yield r"\midrule"
        heading = f"\\emph{{{as_latex(SECTIONS[section])}}}"
        yield _row([f"\\multicolumn{{{len(columns)}}}{{l}}{{{heading}}}"])
        for defense in defenses:
            yield _row(_fields(block, defense))
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{adjustbox}"
    yield f"\\end{{{kind}}}\n"


def _columns(block: LeaderboardBlock) -> Iterator[tuple[str, str]]:
    """Heading and subheading of each column; a heading spans those beside each other."""
    yield from (("", title) for title in ("Defense", "Spec", "Clean", "Trainings"))
    titles = names(_first_by_attack(block), "attack", _shared(block))
    for attack in block.attacks:
        yield from ((titles[attack], below) for below in _of_attack(block, attack))
    if len(block.poisoned) > 1:
        yield from (("Mean", below) for below in ("CA", "ASR", "R-Acc"))
    if block.poisoned:
        yield "", "DER"
    yield "", "Time"


def _of_attack(block: LeaderboardBlock, attack: str) -> tuple[str, ...]:
    """The mean over one attack is nothing to print, so its R-Acc stands with the others."""
    if is_none(attack):
        return ("CA",)
    return ("CA", "ASR", "R-Acc") if len(block.poisoned) == 1 else ("CA", "ASR")


def _heads(columns: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Both rows of headings, with a rule below each that spans several columns."""
    above: list[str] = []
    rules: list[str] = []
    first = 0
    while first < len(columns):
        text = columns[first][0]
        last = first
        while text and last + 1 < len(columns) and columns[last + 1][0] == text:
            last += 1
        span = last - first + 1
        above.append(f"\\multicolumn{{{span}}}{{c}}{{{as_latex(text)}}}" if text else "")
        rules += [f"\\cmidrule(lr){{{first + 1}-{last + 1}}}"] if text else []
        first = last + 1
    if rules:
        yield _row(above)
        yield " ".join(rules)
    yield _row([as_latex(below) for _, below in columns])


def _row(fields: Iterable[str]) -> str:
    first, *others = fields
    # After a line break LaTeX takes these for its options.
    guarded = f"{{}}{first}" if first.startswith(("[", "*")) else first
    return " & ".join([guarded, *others]) + r" \\"


def _fields(block: LeaderboardBlock, defense: str) -> Iterator[str]:
    """A row, escaped."""
    groups = [group for group in block.groups if group.names["defense"] == defense]
    numbers = block.numbers[defense]
    sign = block.sign(defense)
    yield as_latex(" ".join(filter(None, (title_of(groups[0].records[0], "defense"), sign))))
    yield f"\\texttt{{{as_latex(defense)}}}"
    yield MISSING if math.isnan(numbers["clean"]) else as_latex(f"{numbers['clean']:g} %")
    yield decimal(numbers["trainings"])
    for attack in block.attacks:
        group = block.cells.get((defense, attack))
        for name in _of_attack(block, attack):
            yield _entry(block, group, name) if group else MISSING
    total = dict(zip(block.totals(), block.total(defense), strict=True))
    if len(block.poisoned) > 1:
        yield from (as_latex(total[f"mean {name}"]) for name in ("CA", "ASR", "R-Acc"))
    if block.poisoned:
        yield as_latex(total["DER"])
    yield decimal(numbers["x none"])


def _entry(block: LeaderboardBlock, group: Group, name: str) -> str:
    """One number with its marks, which stand with the ASR, or without an attack with the CA."""
    field = block.field(group)
    last = "CA" if is_none(group.names["attack"]) else "ASR"
    marks = as_latex(" ".join(field.marks)) if name == last else ""
    if field.state:
        return " ".join(filter(None, (as_latex(field.state), marks))) if name == last else MISSING
    if name == "R-Acc":
        return decimal(block.numbers[group.names["defense"]][f"{group.names['attack']} R-Acc"])
    if name == "CA":
        return " ".join(filter(None, (_share(field.ca), marks)))
    look = {"best": "textbf"}.get(field.standing, "underline" if block.is_second(group) else "")
    share = _share(field.asr, look) + as_latex(AT_FLOOR * field.at_floor)
    tie = as_latex("~" * (field.standing == "tied"))
    return " ".join(filter(None, (share, tie, marks)))


def _share(text: str, look: str = "") -> str:
    """A mean in this look, and its half width in small print."""
    middle, _, half = map(as_latex, text.partition(" ± "))
    shown = f"\\{look}{{{middle}}}" if look else middle
    return f"{shown} {{\\scriptsize $\\pm$ {half}}}" if half else shown


def _caption(block: LeaderboardBlock) -> str:
    """What is compared and how to read it, in words."""
    return " ".join(_sentences(block))


def _sentences(block: LeaderboardBlock) -> Iterator[str]:
    records = [record for group in block.groups for record in group.records]
    seeds = {record.cell["seed"] for record in records}
    yield f"{_short_title(block)}. {_setting(block)}."
    attacks = ", ".join(block.poisoned)
    if attacks:
        yield f"Attacks as specs: {attacks}."
    shared = _shared(block)
    if "target" in shared:
        yield f"The target is class {_targets(block)[0]}."
    yield "In percent, after the last epoch."
    if len(seeds) > 1:
        yield "Means over seeds; in small print half the width of the 95 % interval."
    yield "CA: accuracy on clean test images."
    if block.poisoned:
        yield (
            "ASR: triggered test images of other classes that get the target. "
            "R-Acc: those that get their true label."
        )
        yield (
            "Bold: the lowest ASR of a group against an attack; underlined: the second lowest; "
            "~: cannot be told from the lowest at 95 %; °: not above the share that gets the "
            "target without the trigger."
        )
        yield "DER: (max(0, fall of ASR) - max(0, fall of CA) + 1) / 2 against no defense."
    yield (
        "Clean: share of the clean training images that a defense is given. Trainings: work "
        "relative to one plain training. Time: seconds relative to no defense."
    )
    yield from (f"{note[0].upper()}{note[1:]}." for note in block.footnotes())


def _short_title(block: LeaderboardBlock) -> str:
    record = block.groups[0].records[0]
    return f"Backdoor defenses on {title_of(record, 'dataset')} with {title_of(record, 'model')}"


def _setting(block: LeaderboardBlock) -> str:
    """Of the title in Markdown all but data set and model where these have no settings."""
    first = block.groups[0]
    parts = block.title().split(" · ")
    plain = [first.names[axis] for axis in ("dataset", "model") if "(" not in first.names[axis]]
    return ", ".join(_in_words(part) for n, part in enumerate(parts) if n > 1 or part not in plain)


def _in_words(part: str) -> str:
    """A recipe as its settings."""
    if not part.startswith("recipe("):
        return part
    fields = Spec.of(part).fields
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in fields.items())


def _shared(block: LeaderboardBlock) -> tuple[str, ...]:
    return SAID if len(set(_targets(block))) == 1 else ()


def _targets(block: LeaderboardBlock) -> list[str]:
    """Of the attacks, in words."""
    found = []
    for group in _first_by_attack(block):
        if not is_none(group.names["attack"]):
            try:
                fields = Spec.of(group.records[0].cell["attack"]).fields
            except InvalidInput:
                fields = {}
            found.append(str(fields.get("target", "not known")))
    return found


def _first_by_attack(block: LeaderboardBlock) -> list[Group]:
    found: dict[str, Group] = {}
    for group in block.groups:
        found.setdefault(group.names["attack"], group)
    return [found[attack] for attack in block.attacks]


def _derived_label(block: LeaderboardBlock) -> str:
    first = block.groups[0].names
    words = f"leaderboard {first['dataset'].partition('(')[0]} {first['model'].partition('(')[0]}"
    return "tab:" + re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")
