"""Two results folders, compared cell by cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bdbench.records.consistency import AXES, specs
from bdbench.tables.groups import Group
from bdbench.tables.numbers import MISSING
from bdbench.tables.statistics import tied


@dataclass(frozen=True)
class Pair:
    """One cell in two folders."""

    here: Group
    there: Group

    def difference(self, metric: str) -> float:
        """Here minus there, see `Group.difference`."""
        return self.here.difference(self.there, metric)

    def separable(self, metric: str) -> str:
        """Whether the two shares are separable at 95 %: "yes", "no", or why it cannot be tested."""
        one, two = self.here.counts(metric), self.there.counts(metric)
        if not one or not two:
            return MISSING
        mixed = _data(self.here) | _data(self.there)
        return "other data" if len(mixed) > 1 else "no" if tied(one, two) else "yes"


@dataclass(frozen=True)
class Section:
    """The cells of one data set, model and recipe: those in both folders, and those in one."""

    title: str
    pairs: list[Pair]
    here: list[Group]
    there: list[Group]


def compare(here: Iterable[Group], there: Iterable[Group]) -> list[Section]:
    """Compare the groups of two folders, each from `collect`, in their order."""
    ours, theirs = ({_cell(group): group for group in side} for side in (here, there))
    cells = dict.fromkeys([*ours, *theirs])
    sections = []
    for setting in dict.fromkeys(cell[:3] for cell in cells):
        members = [cell for cell in cells if cell[:3] == setting]
        names = (ours.get(members[0]) or theirs[members[0]]).names
        sections.append(
            Section(
                title=" · ".join(names[axis] for axis in AXES[:3]),
                pairs=[Pair(ours[c], theirs[c]) for c in members if c in ours and c in theirs],
                here=[ours[c] for c in members if c not in theirs],
                there=[theirs[c] for c in members if c not in ours],
            )
        )
    return sections


def _cell(group: Group) -> tuple[str, ...]:
    return specs(group.records[0])


def _data(group: Group) -> set[str]:
    return {record.provenance.data_sha256 or "" for record in group.records} - {""}
