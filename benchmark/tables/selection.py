"""The records that a figure or table shows: those of a folder that match what the user selects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bdbench.cells.suites import SUITES, Suite
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import Spec
from bdbench.records.consistency import AXES
from bdbench.records.files import PUBLISHED
from bdbench.records.parts import RecordedSpec
from bdbench.records.record import Record
from bdbench.records.rerun import line, with_plugins
from bdbench.tables.groups import Group, collect, is_none, name_order
from bdbench.tables.names import PACKAGES
from bdbench.tables.published import default_rate
from bdbench.tables.source import defaults

SETTING = AXES[:3]
"""The axes that all cells of a figure share."""
DEFAULT_SUITE = "quick"
OF_DATA: dict[str, Any] = {"learning_rate": 0.1, "flip": True}
"""The defaults of a recipe that a data set may change. Importing the recipe imports torch."""
SELECTED = "-selection"
"""Ends the names of files that show a part of a folder."""
NOUNS = dict(zip(AXES, ("data set", "model", "recipe", "attack", "defense"), strict=True))


@dataclass(frozen=True)
class Selection:
    """The cells of a folder that the user selects.

    results: the results folder
    every: all groups of the folder
    wanted: specs by axis, as the user gave them; an axis without specs is not filtered
    data: folder of data sets, None for the default ones
    field: field of a plugin or the recipe to sweep, or empty
    """

    results: Path
    every: tuple[Group, ...]
    wanted: Mapping[str, Sequence[str]]
    data: Path | None = None
    field: str = ""

    @property
    def ending(self) -> str:
        """Of the names of files: those of a part of a folder do not replace those of all."""
        return SELECTED if any(self.wanted.values()) else ""

    @cached_property
    def groups(self) -> list[Group]:
        """The groups that match a wanted spec on each axis, see `agrees`.

        Raises `InvalidInput` for a spec that no group matches.
        """
        return self._chosen(self._accepted)

    @cached_property
    def with_baseline(self) -> list[Group]:
        """The selected groups, and those of no defense even if not selected."""
        none = {g.names["defense"] for g in self.every if is_none(g.names["defense"])}
        return self._chosen(self._accepted | {"defense": self._accepted["defense"] | none})

    @cached_property
    def ranks(self) -> dict[str, int]:
        """By defense, the number of its colour, the same in all figures of a folder."""
        names = {group.names["defense"] for group in self.every}
        return {name: rank for rank, name in enumerate(sorted(names, key=name_order))}

    def settled(self, groups: Iterable[Group], axes: Sequence[str] = SETTING) -> list[Group]:
        """The groups, if they have one name on each of the axes; else raises `InvalidInput`."""
        groups = list(groups)
        for axis in axes:
            names = list(dict.fromkeys(group.names[axis] for group in groups))
            require(
                len(names) <= 1,
                f"{self.results} has records of several {NOUNS[axis]}s: {', '.join(names)}; "
                f"choose one with --{axis}",
            )
        return groups

    def command(
        self, *options: str, of: Sequence[Group] | None = None, into: Path | None = None
    ) -> str:
        """The command that runs the selected cells, with further options.

        of: those of these groups only
        into: another results folder
        """
        name, words = self.results.name, []
        suite = SUITES.get(name, SUITES[DEFAULT_SUITE])
        meant = self.groups if of is None else of
        axes = [a for a in AXES if name not in SUITES or not _covers(suite, meant, a)]
        groups = self.settled(meant, [axis for axis in SETTING if axis in axes])
        for axis in axes:
            specs = dict.fromkeys(_repeatable(group, axis, suite) for group in groups)
            words += [word for text in specs for word in (f"--{axis}", text)]
        records = [record for group in groups for record in group.records]
        usual = suite.each_seed if name in SUITES else range(1)
        words += _seeds({record.cell.seed for record in records}, usual)
        return _command(self.results, *words, *with_plugins(records), *options, into=into)

    def missing(self, what: str, groups: Sequence[Group] | None = None) -> InvalidInput:
        """The error that cells lack something that a run with curves stores.

        groups: their groups, all that are selected by default
        """
        meant = self.groups if groups is None else groups
        if not any(group.used for group in meant):
            return InvalidInput(f"{what}: all these cells failed or are not finite")
        # A run with curves skips every record that already has a curve.
        finished = any(record.curves for group in meant for record in group.used)
        into = self.results / "again" if finished else None
        return InvalidInput(f"{what}; run {self.command('--curves', of=meant, into=into)}")

    def _chosen(self, accepted: Mapping[str, set[str]]) -> list[Group]:
        found = [g for g in self.every if all(g.names[a] in accepted[a] for a in AXES)]
        wanted = ", ".join(text for specs in self.wanted.values() for text in specs)
        require(
            bool(found), f"no record in {self.results} matches all of {wanted}; drop one of them"
        )
        return found

    @cached_property
    def _accepted(self) -> dict[str, set[str]]:
        return {axis: self._names(axis) for axis in AXES}

    def _names(self, axis: str) -> set[str]:
        specs = {group.names[axis]: group.records[0].cell[axis] for group in self.every}
        wanted = self.wanted.get(axis, ())
        accepted = set() if wanted else set(specs)
        for text in wanted:
            agreeing = {name for name in specs if agrees(text, specs[name])}
            if not agreeing:
                known = dict.fromkeys([*specs, *(name.partition("(")[0] for name in specs)])
                guess = spec.did_you_mean(text, known)
                raise InvalidInput(f"{self.results} has no {NOUNS[axis]} {text!r}{guess}")
            # A name without settings means that spec if it exists, as everywhere.
            accepted |= {text} if text in agreeing else agreeing
        return accepted


def select(
    records: Iterable[Record],
    results: Path,
    wanted: Mapping[str, Sequence[str]],
    data: Path | None = None,
    field: str = "",
) -> Selection:
    """Select from the records of a results folder, see `Selection`. Raises `InvalidInput` if it is
    empty."""
    selection = Selection(results, tuple(collect(records)), wanted, data, field)
    if not selection.every:
        raise InvalidInput(f"no records in {results / 'records'}; run {_command(results)}")
    return selection


def agrees(text: str, full: Spec) -> bool:
    """Whether a canonical spec has the name and all fields of `text`. Raises `InvalidInput`."""
    given = Spec.of(text)
    return given.name == full.name and all(
        name in full.fields and full.fields[name] == value for name, value in given.fields.items()
    )


def _covers(suite: Suite, groups: Iterable[Group], axis: str) -> bool:
    """Whether the groups have all that a built-in suite has on an axis, and nothing else."""
    own = {RecordedSpec.of(group.records[0].labels[axis]) for group in groups}
    return {_changed(axis, each) for each in own} == {
        _changed(axis, each) for each in _entries(suite, axis)
    }


def _entries(suite: Suite, axis: str) -> Iterator[Spec]:
    """The specs of a built-in suite on an axis; of the recipe, one for each data set."""
    for text in getattr(suite, "datasets" if axis == "recipe" else f"{axis}s"):
        given = Spec.of(suite.settings.get(text, text))
        if axis == "recipe":
            stated = defaults(PACKAGES["dataset"], given.name)
            own = {name: stated[name] for name in OF_DATA if name in stated}
            given = Spec("recipe", {**own, **suite.recipe})
        yield given


def _changed(axis: str, given: Spec) -> str:
    """A spec as text, with only the fields that differ from their defaults, in alphabetical
    order."""
    usual = OF_DATA if axis == "recipe" else {**defaults(PACKAGES[axis], given.name)}
    if axis == "attack":
        usual.setdefault("poisoning_rate", default_rate(given.name))
    # A label writes a list as a tuple.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in sorted(given.fields.items())}
    return str(Spec(given.name, {k: v for k, v in fields.items() if usual.get(k, ...) != v}))


def _repeatable(group: Group, axis: str, suite: Suite) -> str:
    """A spec that reproduces this cell: its label.

    It is the full spec for a recipe, whose label omits what the data set sets, and for a label that
    means something else in the suite.
    """
    record = group.records[0]
    label = str(record.labels[axis])
    return str(record.cell[axis]) if axis == "recipe" or label in suite.settings else label


def _seeds(wanted: set[int], usual: Sequence[int]) -> list[str]:
    """Options for these seeds; none if these are the seeds of a run without options."""
    if wanted == {*usual}:
        return []
    if wanted == {*range(len(wanted))}:
        return ["--seeds", str(len(wanted))]
    return [word for seed in sorted(wanted) for word in ("--seed", str(seed))]


def _command(results: Path, *words: str, into: Path | None = None) -> str:
    name, folder = results.name, results if into is None else into
    suite = [name] if name in SUITES else []
    usual = suite and folder == Path("results") / name and not (folder / PUBLISHED).exists()
    option = [] if usual else ["--results", str(folder)]
    return f"`{line('bdbench', 'run', *suite, *words, *option)}`"
