"""The leaderboard as Markdown: defenses by attacks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bdbench.tables.block import AT_FLOOR, SHARES, LeaderboardBlock
from bdbench.tables.footnotes import footnotes
from bdbench.tables.groups import (
    Group,
    is_none,
)
from bdbench.tables.numbers import MISSING, decimal, markdown_table
from bdbench.tables.text import as_markdown

LEGEND = """\
In percent, after the last epoch. Rows are sorted by {order}.

- Clean: share of the clean training set that a defense is given.
- Trainings: forward and backward passes, including the undefended network, relative to one plain \
training.
- CA: accuracy on clean test images. R-Acc: share of the triggered test images of other classes \
that are classified as their true label.
- ASR: share of the triggered test images of other classes that are classified as the target. \
**Bold**: the lowest ASR of a section against an attack, if separable from that of no defense. ~: \
not separable from the lowest.
- °: not separably above its floor, the share of the same images that the network classifies as \
the target without the trigger.
- ~ and ° are tested at 95 %: two-proportion z-test for one seed; for several the paired t-test, \
and McNemar's for the images of all. ° also requires the z-test of every seed, which misses an \
effect of the trigger on a few images.
- Mean: over the attacks that have results (how many, if not all) and the seeds that all of them \
share. Drops and ratios use the seeds that both sides share.
- DER: (max(0, drop in ASR) - max(0, drop in CA) + 1) / 2 relative to no defense. It is a \
trade-off score: 50 means no gain, and a high DER implies neither a high CA nor a low ASR.
- Seconds: training time, including the undefended network. x none: relative to no defense.
- Floors, R-Acc by attack and intervals, and TPR, FPR and AUROC of filters are in the CSV file and \
with --columns."""
PASR_LEGEND = """\
- P-ASR: ASR of a copy of the network that was fine-tuned on 2 % of the clean training images and \
five poisoned ones. If it is far above the ASR, and above that of a network trained on clean \
images, the defense hid the backdoor and did not remove it."""


def markdown(block: LeaderboardBlock, order: str = "", extra: Sequence[str] = ()) -> str:
    """Title, table and footnotes.

    order: title of the column that sorts the defenses of a section, DER if empty
    extra: the `EXTRA_COLUMNS` to add for each attack that has a number in them
    """
    columns = {
        attack: [n for n in block.columns(attack, extra) if block.has_numbers(attack, n)]
        for attack in block.attacks
    }
    overall = list(block.overall_titles())[2:]
    means = [title.removeprefix("mean ") for title in overall if title.startswith("mean ")]
    headers = ["defense", "clean", "trainings"]
    for heading, subheadings in [*columns.items(), *([("mean", means)] if means else [])]:
        headers += [as_markdown(heading), *[""] * (len(subheadings) - 1)]
    headers += overall[len(means) :]
    subheadings = [*(name for names in columns.values() for name in names), *means]
    padding = [""] * (len(overall) - len(means))
    rows = []
    for section, defenses in block.sections(order).items():
        rows.append([section, "", "", *subheadings, *padding])
        for defense in defenses:
            clean, work, *rest = block.overall(defense)
            texts = [
                text
                for attack, names in columns.items()
                for text in _texts(block, defense, attack, names)
            ]
            name = " ".join(filter(None, (as_markdown(defense), block.sign(defense))))
            rows.append([name, clean, work, *texts, *rest])
    table = markdown_table(headers, rows, ["left", *["right"] * (len(headers) - 1)])
    notes = "\n".join(f"- {as_markdown(note)}" for note in footnotes(block))
    title = f"## {as_markdown(block.title())}"
    return "\n\n".join(part for part in (title, table, notes) if part)


def _texts(
    block: LeaderboardBlock, defense: str, attack: str, names: Sequence[str]
) -> Iterator[str]:
    """The columns of an attack, as text. State and marks are in the ASR column, or in the CA
    column if there is no attack."""
    group = block.cells.get((defense, attack))
    if group is None:
        yield from [MISSING] * len(names)
        return
    summary, last = block.summary(group), "CA" if is_none(attack) else "ASR"
    for name in names:
        text = _interval(group, name) or decimal(block.numbers[defense][f"{attack} {name}"])
        if name == "ASR":
            text = f"**{text}**" if summary.standing == "best" else text
            text += AT_FLOOR * summary.at_floor + " ~" * (summary.standing == "tied")
        if name == last:
            text = " ".join([summary.state or text, *summary.marks])
        yield text


def _interval(group: Group, name: str) -> str:
    """Both ends of an interval, in percent; empty if the column is not an interval."""
    if not name.endswith(" interval"):
        return ""
    _, low, high = group.estimate(SHARES[name])
    return MISSING if math.isnan(low) else f"{decimal(100 * low)} to {decimal(100 * high)}"
