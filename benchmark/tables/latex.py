"""Tables in LaTeX, and the leaderboard as a paper prints it: defenses as rows, by their titles."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from bdbench.models.plugins.errors import require
from bdbench.records.parts import RecordedSpec
from bdbench.records.record import Record
from bdbench.tables.block import AT_FLOOR, CLEAN, NO_CLEAN, PASR, UNKNOWN, LeaderboardBlock
from bdbench.tables.footnotes import footnotes
from bdbench.tables.groups import Group, is_none
from bdbench.tables.names import names, title_of
from bdbench.tables.numbers import MISSING, decimal
from bdbench.tables.tabular import Tabular, environment, headings, row, sentence
from bdbench.tables.text import as_latex

LABEL = r"[A-Za-z0-9:._/+-]{1,100}"
SECTIONS = {
    NO_CLEAN: "Without clean images",
    CLEAN: "With clean images",
    UNKNOWN: "Clean images not known",
}
IN_CAPTION = ("target",)
"""Settings that the caption states, see `_target`."""


def documents(blocks: Sequence[LeaderboardBlock], label: str = "") -> str:
    """One table environment per block.

    label: that of the first block; further ones get a number. Derived if empty

    Raises `InvalidInput` for an invalid label.
    """
    require(
        not label or re.fullmatch(LABEL, label) is not None,
        f"invalid label {label!r}; use letters, digits and : . _ / + -, as in tab:leaderboard",
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
        parts.append(environment(_leaderboard(block), _caption(block), _short_title(block), own))
    return "\n".join(parts)


def _leaderboard(block: LeaderboardBlock) -> Tabular:
    columns = list(_columns(block))
    lines = list(headings(columns))
    for section, defenses in block.sections().items():
        heading = f"\\emph{{{as_latex(SECTIONS[section])}}}"
        lines += [r"\midrule", row([f"\\multicolumn{{{len(columns)}}}{{l}}{{{heading}}}"])]
        lines += [row(_cells(block, defense)) for defense in defenses]
    return Tabular("ll" + "r" * (len(columns) - 2), lines)


def _columns(block: LeaderboardBlock) -> Iterator[tuple[str, str]]:
    """Heading and subheading of each column; equal headings of neighbours are merged."""
    yield from (("", title) for title in ("Defense", "Spec", "Clean", "Trainings"))
    titles = names(_first_by_attack(block), "attack", _shared_settings(block))
    for attack in block.attacks:
        yield from ((titles[attack], metric) for metric in _attack_columns(block, attack))
    if len(block.poisoned) > 1:
        yield from (("Mean", metric) for metric in ("CA", "ASR", "R-Acc"))
    if block.poisoned:
        yield "", "DER"
    yield "", "Time"


def _attack_columns(block: LeaderboardBlock, attack: str) -> tuple[str, ...]:
    """The metrics of an attack: with R-Acc if it is the only one, as there is no mean then."""
    if is_none(attack):
        return ("CA",)
    shown = tuple(block.columns(attack))
    return (*shown, "R-Acc") if len(block.poisoned) == 1 else shown


def _cells(block: LeaderboardBlock, defense: str) -> Iterator[str]:
    """The cells of a defense's row."""
    groups = [group for group in block.groups if group.names["defense"] == defense]
    numbers = block.numbers[defense]
    sign = block.sign(defense)
    yield as_latex(" ".join(filter(None, (title_of(groups[0].records[0], "defense"), sign))))
    yield f"\\texttt{{{as_latex(defense)}}}"
    yield MISSING if math.isnan(numbers["clean"]) else as_latex(f"{numbers['clean']:g} %")
    yield decimal(numbers["trainings"])
    for attack in block.attacks:
        group = block.cells.get((defense, attack))
        for name in _attack_columns(block, attack):
            yield _cell(block, group, name) if group else MISSING
    overall = dict(zip(block.overall_titles(), block.overall(defense), strict=True))
    if len(block.poisoned) > 1:
        yield from (as_latex(overall[f"mean {name}"]) for name in ("CA", "ASR", "R-Acc"))
    if block.poisoned:
        yield as_latex(overall["DER"])
    # No column of seconds precedes it, which would say over how many attacks it is.
    whole = dict(zip(block.overall_titles(), block.overall(defense, terse=False), strict=True))
    yield as_latex(whole["x none"])


def _cell(block: LeaderboardBlock, group: Group, name: str) -> str:
    """One number. Marks are with the ASR, or with the CA if there is no attack."""
    summary = block.summary(group)
    marked = name == ("CA" if is_none(group.names["attack"]) else "ASR")
    marks = as_latex(" ".join(summary.marks)) if marked else ""
    if summary.state:
        return " ".join(filter(None, (as_latex(summary.state), marks))) if marked else MISSING
    if name == "R-Acc":
        return decimal(block.numbers[group.names["defense"]][f"{group.names['attack']} R-Acc"])
    if name == PASR:
        return _share(summary.pasr)
    if name == "CA":
        return " ".join(filter(None, (_share(summary.ca), marks)))
    style = {"best": "textbf"}.get(summary.standing, "underline" if block.is_second(group) else "")
    share = _share(summary.asr, style) + as_latex(AT_FLOOR * summary.at_floor)
    tie = as_latex("~" * (summary.standing == "tied"))
    return " ".join(filter(None, (share, tie, marks)))


def _share(text: str, style: str = "") -> str:
    """A mean in a style, such as "textbf", and the half width of its interval in small print."""
    mean, _, half = map(as_latex, text.partition(" ± "))
    styled = f"\\{style}{{{mean}}}" if style else mean
    return f"{styled} {{\\scriptsize $\\pm$ {half}}}" if half else styled


def _caption(block: LeaderboardBlock) -> str:
    """What the table compares, and how to read it."""
    return " ".join(_sentences(block))


def _sentences(block: LeaderboardBlock) -> Iterator[str]:
    records = [record for group in block.groups for record in group.records]
    seeds = {record.cell.seed for record in records}
    yield f"{_short_title(block)}. {_setting(block)}."
    attacks = ", ".join(block.poisoned)
    if attacks:
        yield f"Attacks as specs: {attacks}."
    if (target := _target(block)) is not None:
        yield f"The target is class {target}."
    yield "In percent, after the last epoch."
    if len(seeds) > 1:
        yield "Means over seeds; in small print the half width of the 95 % interval."
    yield "CA: accuracy on clean test images."
    if block.poisoned:
        yield (
            "ASR: share of the triggered test images of other classes that are classified as the "
            "target. R-Acc: share that is classified as the true label."
        )
        yield (
            "Bold: lowest ASR of a section on an attack, if separable from that of no defense; "
            "underlined: second lowest; ~: not separable from the lowest at 95 %; °: does not "
            "exceed the share that is classified as the target without the trigger."
        )
        if block.reactivated:
            yield (
                "P-ASR: ASR of a copy that was fine-tuned on 2 % of the clean training images and "
                "five poisoned ones."
            )
        yield "DER: (max(0, drop in ASR) - max(0, drop in CA) + 1) / 2 relative to no defense."
        yield (
            "Means are over the attacks that have results (how many, if not all) and the seeds "
            "that all of them share; drops and ratios use the seeds that both sides share."
        )
    yield (
        "Clean: share of the clean training set that a defense is given. Trainings: passes "
        "relative to one plain training. Time: seconds relative to no defense."
    )
    known = {group.names[axis] for group in block.groups for axis in ("attack", "defense")}
    yield from (sentence(note, known) for note in footnotes(block))


def _short_title(block: LeaderboardBlock) -> str:
    record = block.groups[0].records[0]
    return f"Backdoor defenses on {title_of(record, 'dataset')} with {title_of(record, 'model')}"


def _setting(block: LeaderboardBlock) -> str:
    """The Markdown title without the data set and model, unless these have settings."""
    first = block.groups[0]
    parts = block.title().split(" · ")
    plain = [first.names[axis] for axis in ("dataset", "model") if "(" not in first.names[axis]]
    return ", ".join(_in_words(part) for n, part in enumerate(parts) if n > 1 or part not in plain)


def _in_words(part: str) -> str:
    """The settings of a recipe; other parts of a title as they are."""
    if not part.startswith("recipe("):
        return part
    fields = RecordedSpec.of(part).fields
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in fields.items())


def _shared_settings(block: LeaderboardBlock) -> tuple[str, ...]:
    return () if _target(block) is None else IN_CAPTION


def _target(block: LeaderboardBlock) -> int | None:
    """The label that every attack wants for all classes that it attacks. None if there are several,
    or if the records of an attack do not say."""
    goals: dict[str, set[int | None]] = {attack: set() for attack in block.poisoned}
    for group in block.groups:
        for record in group.used:
            if group.names["attack"] in goals:
                goals[group.names["attack"]] |= _goals(record)
    found: set[int | None] = set().union(*goals.values())
    return found.pop() if all(goals.values()) and len(found) == 1 else None


def _goals(record: Record) -> set[int | None]:
    """The labels that the attack wants; None among them if the record does not have all."""
    # Of an attack that consists of several, the classes are those of the worst part.
    if record.classes is None or record.diagnostics.parts:
        return {None}
    return {record.classes.goals[label] for label in record.classes.victims}


def _first_by_attack(block: LeaderboardBlock) -> list[Group]:
    found: dict[str, Group] = {}
    for group in block.groups:
        found.setdefault(group.names["attack"], group)
    return [found[attack] for attack in block.attacks]


def _derived_label(block: LeaderboardBlock) -> str:
    first = block.groups[0].names
    words = f"leaderboard {first['dataset'].partition('(')[0]} {first['model'].partition('(')[0]}"
    return "tab:" + re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")
