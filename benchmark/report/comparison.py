"""Two folders of results, cell by cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bdbench.records.consistency import AXES
from bdbench.tables.groups import Group
from bdbench.tables.leaderboard import MISSING
from bdbench.tables.statistics import tied


@dataclass(frozen=True)
class Pair:
    """One cell in two folders."""

    here: Group
    there: Group

    def difference(self, metric: str) -> float:
        """By how much more there is here, see `Group.more`."""
        return self.here.more(self.there, metric)

    def separable(self, metric: str) -> str:
        """Whether the two shares can be told apart at 95 %: yes, no, or why nobody can say."""
        one, two = self.here.counts(metric), self.there.counts(metric)
        if not one or not two:
            return MISSING
        mixed = _data(self.here) | _data(self.there)
        return "other data" if len(mixed) > 1 else "no" if tied(one, two) else "yes"


@dataclass(frozen=True)
class Section:
    """The cells of one data set, model and recipe: in both folders, and in one of them alone."""

    title: str
    pairs: list[Pair]
    here: list[Group]
    there: list[Group]


def compare(here: Iterable[Group], there: Iterable[Group]) -> list[Section]:
    """Two results of `collect`, in their order."""
    ours, theirs = ({_cell(group): group for group in side} for side in (here, there))
    cells = dict.fromkeys([*ours, *theirs])
    sections = []
    for own in dict.fromkeys(cell[:3] for cell in cells):
        inside = [cell for cell in cells if cell[:3] == own]
        names = (ours.get(inside[0]) or theirs[inside[0]]).names
        sections.append(
            Section(
                title=" · ".join(names[axis] for axis in AXES[:3]),
                pairs=[Pair(ours[c], theirs[c]) for c in inside if c in ours and c in theirs],
                here=[ours[c] for c in inside if c not in theirs],
                there=[theirs[c] for c in inside if c not in ours],
            )
        )
    return sections


def _cell(group: Group) -> tuple[str, ...]:
    return tuple(group.records[0].cell[axis] for axis in AXES)


def _data(group: Group) -> set[str]:
    return {str(record.provenance.get("data_sha256") or "") for record in group.records} - {""}
