"""Records of one cell over its seeds: which of them enter a mean, and what it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.registry import file_of
from bdbench.models.plugins.spec import Spec
from bdbench.records.consistency import AXES, consistent
from bdbench.records.count import Count
from bdbench.records.record import METRICS, Record
from bdbench.tables.published import defaults
from bdbench.tables.statistics import (
    Estimate,
    common_seeds,
    estimate,
    proportions_separable,
    tied,
)

CA, ASR, RACC = "clean_accuracy", "attack_success_rate", "robust_accuracy"
FLOOR = "asr_floor"
NUMBERLESS = {"not_finite", "diverged"}
"""Flags of records that enter no mean. Older ones do not tell not finite from at chance."""


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
        return tuple(r for r in self.records if r.status == "ok" and not {*r.flags} & NUMBERLESS)

    @property
    def state(self) -> str:
        """Why there is no mean: "not finite", "diverged" or "failed"; or ""."""
        if self.used:
            return ""
        return next(
            (f.replace("_", " ") for f in sorted(NUMBERLESS) if f in self.flagged), "failed"
        )

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

    def rates(self, metric: str) -> dict[int, float]:
        """Shares in [0, 1] by seed, see `counts`."""
        return {seed: count.rate for seed, count in self.counts(metric).items()}

    def more(self, other: Group, metric: str) -> float:
        """By how much this has more than the other: the mean difference over the seeds that both
        have, or that of the means where they have none in common; nan where one has none."""
        ours, theirs = self.rates(metric), other.rates(metric)
        if seeds := common_seeds((ours, theirs)):
            return mean(ours[seed] - theirs[seed] for seed in seeds)
        return mean(ours.values()) - mean(theirs.values())

    def mean(self, value: Callable[[Record], float]) -> float:
        """Over the used records for which it is a number; nan if there are none."""
        return mean(found for found in map(value, self.used) if not math.isnan(found))

    @cached_property
    def seconds(self) -> dict[int, float]:
        """By seed, of the used records, see `seconds_total`."""
        return {record.cell["seed"]: seconds_total(record) for record in self.used}

    @cached_property
    def clean_fraction(self) -> float:
        """Share of the clean training set that the defense is lent, in [0, 1); nan if unknown."""
        return next((f for f in map(clean_fraction, self.records) if not math.isnan(f)), math.nan)

    @cached_property
    def at_floor(self) -> bool:
        """Whether the ASR is not above the floor of the same networks at 95 %: neither over all
        seeds nor in any of them, as one network with a backdoor is not made up for by others."""
        asr, floor = self.counts(ASR), self.counts(FLOOR)
        common = common_seeds((asr, floor))
        if not common or any(
            asr[seed].rate > floor[seed].rate and proportions_separable(floor[seed], asr[seed])
            for seed in common
        ):
            return False
        return mean(asr[s].rate - floor[s].rate for s in common) <= 0 or tied(floor, asr)

    def der(self, bare: Group | None) -> float:
        """Defense effectiveness rating in [0, 1]: (max(0, dASR) - max(0, dCA) + 1) / 2, with d by
        how much no defense, `bare`, has more than this one, see `more` (Zhu et al., 2023,
        arXiv:2304.11823, equation 7). nan where one of the four is missing, and for no defense
        itself."""
        if bare is None or is_none(self.names["defense"]):
            return math.nan
        lost = [bare.more(self, metric) for metric in (ASR, CA)]
        if any(map(math.isnan, lost)):
            return math.nan
        return (max(0.0, lost[0]) - max(0.0, lost[1]) + 1) / 2


def seconds_own(record: Record) -> float:
    """Seconds that a defense itself trains."""
    return float(record.measured["seconds"]["fit"])


def seconds_total(record: Record) -> float:
    """Seconds of a defense with the undefended networks that it starts from."""
    return seconds_own(record) + float(record.measured["seconds"]["undefended"])


def clean_fraction(record: Record) -> float:
    """Share of the clean training set that a defense was lent, in [0, 1); nan if unknown.

    Records that do not say it are older: for these, what the source of a built-in defense says.
    """
    stored = record.provenance.get("clean_fraction")
    if isinstance(stored, int | float):
        return float(stored)
    try:
        name = Spec.of(record.cell["defense"]).name
    except InvalidInput:
        return math.nan
    if not file_of("bdbench.defenses", name).is_file():
        return math.nan
    return float(defaults("bdbench.defenses", name).get("clean_fraction", 0.0))


def lent(record: Record) -> str:
    """How many clean images a defense had, in words, where that is another share than it declares
    by more than rounding, which is half an image of each class; else empty."""
    found, declared = record.diagnostics.get("lent"), clean_fraction(record)
    parts = found if isinstance(found, dict) else {}
    counts = [parts.get(name) for name in ("fit", "validation", "of", "classes")]
    fit, validation, of, classes = (n if type(n) is int and n > 0 else 0 for n in counts)
    given = fit + validation
    if not of or math.isnan(declared) or abs(given - declared * of) <= classes / 2:
        return ""
    return (
        f"was lent {given:,} clean images of {of:,}, {100 * given / of:.3g} %, where it declares "
        f"{100 * declared:.3g} %: at least two of each class"
    )


def passes(record: Record) -> float:
    """Forward passes per training image, of which a backward pass counts two."""
    return float(record.passes["forward"] + 2 * record.passes["backward"])


def trainings(record: Record) -> float:
    """The passes of a defense, undefended networks included, in units of one plain training, which
    takes three an epoch; nan where the recipe names no epochs."""
    try:
        epochs = Spec.of(record.cell["recipe"]).fields.get("epochs")
    except InvalidInput:
        return math.nan
    return passes(record) / (3 * epochs) if isinstance(epochs, int) and epochs else math.nan


def filtered(record: Record) -> tuple[float, float]:
    """TPR and FPR of what a defense took for poisoned, each nan if it judged no such images.

    They are of the first per-sample verdict by name. Older records have recall, which is the TPR,
    and the share of clean images that were kept.
    """
    samples = record.diagnostics.get("samples")
    for _, found in sorted(samples.items()) if isinstance(samples, dict) else ():
        if isinstance(found, dict) and found.keys() & {"tpr", "fpr", "recall"}:
            recall, kept = (float(found.get(n, math.nan)) for n in ("recall", "mean_clean"))
            return float(found.get("tpr", recall)), float(found.get("fpr", 1 - kept))
    return math.nan, math.nan


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
