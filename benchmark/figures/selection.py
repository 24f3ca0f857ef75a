"""Which records a figure is drawn from: those of a folder that agree with what the user wants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bdbench.cells.suites import SUITES, Suite
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import Spec
from bdbench.records.consistency import AXES
from bdbench.records.record import Record
from bdbench.records.rerun import line, with_plugins
from bdbench.tables.groups import Group, collect, is_none, name_order

SETTING = AXES[:3]
"""What the cells of one figure have in common."""
DEFAULT_SUITE = "quick"
NOUNS = dict(zip(AXES, ("data set", "model", "recipe", "attack", "defense"), strict=True))


@dataclass(frozen=True)
class Selection:
    """
    results: the folder of the records
    every: all of its groups
    wanted: specs by axis, as the user gave them; an axis without any is taken whole
    data: where data sets lie, None for the usual places
    field: of a plugin or the recipe, if the user named one
    """

    results: Path
    every: tuple[Group, ...]
    wanted: Mapping[str, Sequence[str]]
    data: Path | None = None
    field: str = ""

    @cached_property
    def groups(self) -> list[Group]:
        """Those that agree with a wanted spec on each axis, see `agrees`.

        Raises `InvalidInput` for a spec with which none does.
        """
        return self._chosen(self._accepted)

    @cached_property
    def with_baseline(self) -> list[Group]:
        """The same with those of no defense, wanted or not."""
        bare = {g.names["defense"] for g in self.every if is_none(g.names["defense"])}
        return self._chosen(self._accepted | {"defense": self._accepted["defense"] | bare})

    @cached_property
    def ranks(self) -> dict[str, int]:
        """By defense, a number for its colour: the same in all figures of a folder."""
        names = {group.names["defense"] for group in self.every}
        return {name: rank for rank, name in enumerate(sorted(names, key=name_order))}

    def settled(self, groups: Iterable[Group], axes: Sequence[str] = SETTING) -> list[Group]:
        """The groups, which have one name on each of the axes; else raises `InvalidInput`."""
        groups = list(groups)
        for axis in axes:
            names = list(dict.fromkeys(group.names[axis] for group in groups))
            require(
                len(names) <= 1,
                f"{self.results} has records of several {NOUNS[axis]}s: {', '.join(names)}; "
                f"choose one with --{axis}",
            )
        return groups

    def command(self, *options: str) -> str:
        """What runs the cells of this choice, with `options` added."""
        name, words = self.results.name, []
        suite = SUITES.get(name, SUITES[DEFAULT_SUITE])
        axes = [axis for axis in AXES if name not in SUITES or self.wanted.get(axis)]
        groups = self.settled(self.groups, [axis for axis in SETTING if axis in axes])
        for axis in axes:
            specs = dict.fromkeys(_repeatable(group, axis, suite) for group in groups)
            words += [word for text in specs for word in (f"--{axis}", text)]
        records = [record for group in groups for record in group.records]
        usual = suite.each_seed if name in SUITES else range(1)
        words += _seeds({record.cell["seed"] for record in records}, usual)
        return _command(self.results, *words, *with_plugins(records), *options)

    def lack(self, what: str) -> InvalidInput:
        """The error that these cells lack what a run with curves keeps."""
        if not any(group.used for group in self.groups):
            return InvalidInput(f"{what}: all these cells failed or are not finite")
        # Such a run takes a record that has any curve for finished.
        finished = any(record.curves for group in self.groups for record in group.used)
        first = f"remove their records from {self.results / 'records'}, then " * finished
        return InvalidInput(f"{what}; {first}{self.command('--curves')} makes them")

    def _chosen(self, accepted: Mapping[str, set[str]]) -> list[Group]:
        found = [g for g in self.every if all(g.names[a] in accepted[a] for a in AXES)]
        wanted = ", ".join(text for specs in self.wanted.values() for text in specs)
        require(bool(found), f"no record in {self.results} is of all of {wanted}")
        return found

    @cached_property
    def _accepted(self) -> dict[str, set[str]]:
        return {axis: self._names(axis) for axis in AXES}

    def _names(self, axis: str) -> set[str]:
        specs = {group.names[axis]: group.records[0].cell[axis] for group in self.every}
        wanted = self.wanted.get(axis, ())
        found = set() if wanted else set(specs)
        for text in wanted:
            agreeing = {name for name in specs if agrees(text, specs[name])}
            if not agreeing:
                known = dict.fromkeys([*specs, *(name.partition("(")[0] for name in specs)])
                guess = spec.did_you_mean(text, known)
                raise InvalidInput(f"{self.results} has no {NOUNS[axis]} {text!r}{guess}")
            # A name alone is the plain one where there is such, as it is everywhere else.
            found |= {text} if text in agreeing else agreeing
        return found


def select(
    records: Iterable[Record],
    results: Path,
    wanted: Mapping[str, Sequence[str]],
    data: Path | None = None,
    field: str = "",
) -> Selection:
    """The records of the folder `results`; see `Selection`. Raises `InvalidInput` for none."""
    selection = Selection(results, tuple(collect(records)), wanted, data, field)
    if not selection.every:
        raise InvalidInput(f"no records in {results / 'records'}; {_command(results)} makes them")
    return selection


def agrees(text: str, canonical: str) -> bool:
    """Whether a spec has the name and every field that `text` gives. Raises `InvalidInput`."""
    given, whole = Spec.of(text), Spec.of(canonical)
    return given.name == whole.name and all(
        key in whole.fields and whole.fields[key] == value for key, value in given.fields.items()
    )


def _repeatable(group: Group, axis: str, suite: Suite) -> str:
    """A spec that gives this very cell again: its label, but for a recipe, from which that leaves
    out what the data set brings, and for a name that stands for something else in the suite."""
    record = group.records[0]
    label = str(record.labels[axis])
    return str(record.cell[axis]) if axis == "recipe" or label in suite.settings else label


def _seeds(wanted: set[int], usual: Sequence[int]) -> list[str]:
    """Options for these seeds, where a run takes the usual ones without."""
    if wanted <= {*usual}:
        return []
    if wanted == {*range(len(wanted))}:
        return ["--seeds", str(len(wanted))]
    return [word for seed in sorted(wanted) for word in ("--seed", str(seed))]


def _command(results: Path, *words: str) -> str:
    name = results.name
    suite = [name] if name in SUITES else []
    usual = suite and results == Path("results") / name
    folder = [] if usual else ["--results", str(results)]
    return f"`{line('bdbench', 'run', *suite, *words, *folder)}`"
