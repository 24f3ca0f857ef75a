"""Records of one cell over its seeds: which of them enter a mean, and what it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from bdbench.records.consistency import AXES, consistent
from bdbench.records.count import Count
from bdbench.records.record import METRICS, Record
from bdbench.tables.statistics import Estimate, estimate


@dataclass(frozen=True)
class Group:
    """Records that differ in nothing but their seed, sorted by it.

    names: what the data set, model, recipe, attack and defense are called in tables
    """

    records: tuple[Record, ...]
    names: dict[str, str]

    @cached_property
    def used(self) -> tuple[Record, ...]:
        """The records that enter a mean: those of cells that ended in a network with numbers."""
        return tuple(r for r in self.records if r.status == "ok" and "not_finite" not in r.flags)

    @property
    def state(self) -> str:
        """Why there is no mean: "not finite" or "failed"; or ""."""
        if self.used:
            return ""
        return "not finite" if "not_finite" in self.flagged else "failed"

    @cached_property
    def flagged(self) -> dict[str, tuple[Record, ...]]:
        """Records by flag, `failed` counting as one; flags in alphabetical order."""
        flags = {flag for record in self.records for flag in _flags(record)}
        return {f: tuple(r for r in self.records if f in _flags(r)) for f in sorted(flags)}

    def counts(self, metric: str) -> dict[int, Count]:
        """By seed, of the used records that have this metric."""
        found = {r.cell["seed"]: (r.metrics or {}).get(metric) for r in self.used}
        return {seed: count for seed, count in found.items() if count is not None}

    def estimate(self, metric: str) -> Estimate:
        """(mean, low, high) of a share in [0, 1], with its 95 % interval."""
        return self._estimates[metric]

    @cached_property
    def _estimates(self) -> dict[str, Estimate]:
        return {metric: estimate(list(self.counts(metric).values())) for metric in METRICS}

    def mean(self, value: Callable[[Record], float]) -> float:
        """Over the used records; nan if there are none."""
        return mean(map(value, self.used))


def seconds_own(record: Record) -> float:
    """Seconds that a defense itself trains."""
    return float(record.measured["seconds"]["fit"])


def seconds_total(record: Record) -> float:
    """Seconds of a defense with the undefended networks that it starts from."""
    return seconds_own(record) + float(record.measured["seconds"]["undefended"])


def mean(values: Iterable[float]) -> float:
    """Independent of the order of the values; nan if there are none."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def collect(records: Iterable[Record]) -> list[Group]:
    """Records as groups, sorted by name along `AXES`, `none` before all others.

    Raises `InvalidInput` for records that are not `consistent`.
    """
    ordered = consistent(records)
    names = {axis: _names(ordered, axis) for axis in AXES}
    grouped: dict[tuple[str, ...], list[Record]] = {}
    for record in ordered:
        grouped.setdefault(tuple(record.cell[axis] for axis in AXES), []).append(record)
    groups = [
        Group(
            tuple(same), {axis: names[axis][spec] for axis, spec in zip(AXES, specs, strict=True)}
        )
        for specs, same in grouped.items()
    ]
    return sorted(groups, key=lambda group: [name_order(group.names[axis]) for axis in AXES])


def is_none(name: str) -> bool:
    """Whether a spec is that of no attack or no defense, whatever its fields."""
    return name.partition("(")[0] == "none"


def name_order(name: str) -> tuple[bool, str]:
    """Sorts `none` first."""
    return not is_none(name), name


def _flags(record: Record) -> tuple[str, ...]:
    return (*record.flags, "failed") if record.status == "failed" else record.flags


def _names(records: Sequence[Record], axis: str) -> dict[str, str]:
    """Canonical spec to label, or to the spec itself where the label could mean another."""
    labels = {record.cell[axis]: record.labels[axis] for record in records}
    taken = Counter(name for pair in labels.items() for name in set(pair))
    return {spec: label if taken[label] == 1 else spec for spec, label in labels.items()}
