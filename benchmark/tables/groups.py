"""The records of one cell over its seeds: which of them enter a mean, and the means."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from bdbench.models.plugins.registry import file_of
from bdbench.records.by_class import ByClass
from bdbench.records.consistency import AXES, consistent, specs
from bdbench.records.count import Count
from bdbench.records.record import CONTROL, METRICS, REACTIVATED, REACTIVATED_CA, Record
from bdbench.tables.source import defaults
from bdbench.tables.statistics import (
    Estimate,
    common_seeds,
    estimate,
    proportions_separable,
    tied,
)

CA, ASR, RACC = "clean_accuracy", "attack_success_rate", "robust_accuracy"
FLOOR = "asr_floor"
EXCLUDED_FLAGS = {"not_finite", "diverged"}
"""Flags of records that enter no mean. `diverged` is from older records and covers both not finite
and at chance."""
CODE = ("dataset", "model", "attack", "defense", "training")
"""The parts of the code of a cell, as `Provenance.sources` has them."""
BEFORE = ("dataset", "model", "attack", "training")
"""Those that decide what a defense starts from."""


RETUNED = 0.02, 5
"""What P-ASR is said to stand on: a share of the clean training set, and poisoned images."""
OTHER_CLASSES = "other classes"
MOST_NAMES = 3
"""Classes that a sentence names."""


@dataclass(frozen=True)
class Group:
    """Records that differ only in their seed, sorted by seed.

    names: by axis, the name of the data set, model, recipe, attack or defense in tables
    """

    records: tuple[Record, ...]
    names: dict[str, str]

    @cached_property
    def used(self) -> tuple[Record, ...]:
        """The records that enter a mean: the cell finished and its network is finite."""
        return tuple(
            r for r in self.records if r.status == "ok" and not {*r.flags} & EXCLUDED_FLAGS
        )

    @property
    def state(self) -> str:
        """Why there is no mean: "not finite", "diverged" or "failed"; "" if there is one."""
        if self.used:
            return ""
        return next(
            (f.replace("_", " ") for f in sorted(EXCLUDED_FLAGS) if f in self.flagged), "failed"
        )

    @cached_property
    def flagged(self) -> dict[str, tuple[Record, ...]]:
        """The records with each flag, `failed` included; flags in alphabetical order."""
        flags = {flag for record in self.records for flag in _flags(record)}
        return {f: tuple(r for r in self.records if f in _flags(r)) for f in sorted(flags)}

    @cached_property
    def mixed_code(self) -> tuple[str, ...]:
        """The parts of `CODE` in which the sources of the used records that state them differ."""
        used = [record.provenance.sources for record in self.used]
        return tuple(part for part in CODE if len({s[part] for s in used if part in s}) > 1)

    @property
    def is_ranked(self) -> bool:
        """Whether its ASR may be the best: it has one, and an accuracy above chance."""
        return bool(self.counts(ASR)) and "at_chance" not in self.flagged

    def counts(self, metric: str) -> dict[int, Count]:
        """By seed, the counts of a metric in the used records that have it."""
        found = {r.cell.seed: r.count(metric) for r in self.used}
        return {seed: count for seed, count in found.items() if count is not None}

    def estimate(self, metric: str) -> Estimate:
        """(mean, low, high) over the seeds: a share in [0, 1] with its 95 % interval."""
        return self._estimates[metric]

    @cached_property
    def _estimates(self) -> dict[str, Estimate]:
        metrics = (*METRICS, REACTIVATED, REACTIVATED_CA, CONTROL)
        return {metric: estimate(list(self.counts(metric).values())) for metric in metrics}

    def rates(self, metric: str) -> dict[int, float]:
        """By seed, a metric as a share in [0, 1], see `counts`."""
        return {seed: count.rate for seed, count in self.counts(metric).items()}

    def difference(self, other: Group, metric: str) -> float:
        """Mean of this group's share minus the other's, over the seeds that both have.

        Without a common seed it is the difference of the two means; nan if either has no value.
        """
        ours, theirs = self.rates(metric), other.rates(metric)
        if seeds := common_seeds((ours, theirs)):
            return mean(ours[seed] - theirs[seed] for seed in seeds)
        return mean(ours.values()) - mean(theirs.values())

    def mean(self, value: Callable[[Record], float]) -> float:
        """Mean of a value over the used records for which it is not nan; nan if there are none."""
        return mean(found for found in map(value, self.used) if not math.isnan(found))

    @cached_property
    def seconds(self) -> dict[int, float]:
        """By seed, `seconds_total` of the used records."""
        return {record.cell.seed: seconds_total(record) for record in self.used}

    @cached_property
    def clean_fraction(self) -> float:
        """Share of the clean training set that the defense is lent, in [0, 1); nan if unknown."""
        return next((f for f in map(clean_fraction, self.records) if not math.isnan(f)), math.nan)

    @cached_property
    def at_floor(self) -> bool:
        """Whether the ASR does not exceed the floor of the same networks at 95 %.

        It must hold over all seeds and for each seed alone, so that networks without a backdoor
        cannot hide one that has it; and for each part of an attack, as each has a floor of its own.
        """
        parts = sorted({f"_{part}" for record in self.used for part in record.parts})
        pairs = ((self.counts(ASR + part), self.counts(FLOOR + part)) for part in ("", *parts))
        return all(_at_floor(asr, floor) for asr, floor in pairs)

    @cached_property
    def by_seed(self) -> dict[int, Record]:
        """The used records."""
        return {record.cell.seed: record for record in self.used}

    def seeds_alike(self, base: Group) -> list[int]:
        """The seeds that both groups have, and whose cells were run alike, see `unlike`."""
        seeds = common_seeds((self.by_seed, base.by_seed))
        return [seed for seed in seeds if not unlike(self.by_seed[seed], base.by_seed[seed])]

    def der(self, undefended: Group | None) -> float:
        """Defense effectiveness rating in [0, 1] (Zhu et al., 2023, arXiv:2304.11823, equation 7).

        It is (max(0, dASR) - max(0, dCA) + 1) / 2, where d is the drop from `undefended`, see
        `difference`. nan if a value is missing, and for no defense itself.
        """
        if undefended is None or is_none(self.names["defense"]):
            return math.nan
        asr_drop, ca_drop = (undefended.difference(self, metric) for metric in (ASR, CA))
        if math.isnan(asr_drop) or math.isnan(ca_drop):
            return math.nan
        return (max(0.0, asr_drop) - max(0.0, ca_drop) + 1) / 2


def _at_floor(asr: Mapping[int, Count], floor: Mapping[int, Count]) -> bool:
    """Whether an ASR does not exceed its floor, given counts by seed, see `Group.at_floor`."""
    common = common_seeds((asr, floor))
    if not common or any(exceeds(asr[seed], floor[seed]) for seed in common):
        return False
    return mean(asr[s].rate - floor[s].rate for s in common) <= 0 or tied(floor, asr)


def exceeds(asr: Count, floor: Count) -> bool:
    """Whether the ASR of one network is above its floor at 95 %."""
    return asr.rate > floor.rate and proportions_separable(floor, asr)


def attacked(found: ByClass, quote: str = "") -> str:
    """The classes whose images a trigger should turn, in words: `OTHER_CLASSES` than the target,
    all, up to `MOST_NAMES` of them by name, or their number.

    quote: before and after a name
    """
    victims, names = found.victims, found.names
    if len(victims) == len(names):
        return "all classes"
    if found.target is not None and len(victims) == len(names) - 1:
        return OTHER_CLASSES
    if len(victims) <= MOST_NAMES:
        return " and ".join(f"{quote}{names[label]}{quote}" for label in victims)
    return f"{len(victims)} of {len(names)} classes"


def unlike(record: Record, base: Record) -> tuple[str, ...]:
    """In what two cells were run differently, so that their seconds do not compare: "device",
    "threads", and the parts of `BEFORE` whose code differs. What a record does not say is not
    judged."""
    ours, theirs = record.provenance, base.provenance
    stated = {
        "device": (ours.device, theirs.device),
        "threads": (ours.threads, theirs.threads),
        **{part: (ours.sources.get(part), theirs.sources.get(part)) for part in BEFORE},
    }
    return tuple(part for part, (a, b) in stated.items() if None not in (a, b) and a != b)


def seconds_own(record: Record) -> float:
    """Seconds that a defense itself trains."""
    return float(record.measured.seconds.fit)


def seconds_total(record: Record) -> float:
    """Seconds of a defense with the undefended networks that it starts from."""
    return seconds_own(record) + float(record.measured.seconds.undefended)


def clean_fraction(record: Record) -> float:
    """Share of the clean training set that a defense was lent, in [0, 1); nan if unknown.

    Records that do not say it are older: for these, what the source of a built-in defense says.
    """
    stored = record.provenance.clean_fraction
    found = _built_in(record, "clean_fraction", 0.0) if stored is None else stored
    return math.nan if found is None else float(found)


def _built_in(record: Record, name: str, default: float) -> Any:
    """A class attribute of a built-in defense, from its source; None for any other defense."""
    defense = record.cell.defense.name
    if not defense.isidentifier() or not file_of("bdbench.defenses", defense).is_file():
        return None
    return defaults("bdbench.defenses", defense).get(name, default)


def lent(record: Record) -> str:
    """A sentence on how many clean images a defense was lent, if that is not the declared share.

    Empty if the two agree up to rounding, which is half an image per class. The reason is left out
    if neither the record nor the source of a built-in defense says how many it gets at least.
    """
    found, declared = record.diagnostics.lent, clean_fraction(record)
    if found is None or not found.of or math.isnan(declared):
        return ""
    given = found.fit + found.validation
    if abs(given - declared * found.of) <= found.classes / 2:
        return ""
    share = f"{100 * given / found.of:.3g} %"
    least = _built_in(record, "clean_images", 2) if found.least is None else found.least
    reason = "" if least is None else f", because it gets at least {least} per class"
    return (
        f"was lent {given:,} of {found.of:,} clean images ({share}) instead of the "
        f"declared {100 * declared:.3g} %{reason}"
    )


def retuned(record: Record) -> str:
    """On how many images the P-ASR stands, in words, if these are not `RETUNED` up to rounding,
    which is half an image per class; empty also if the record does not say it."""
    found, (share, few) = record.diagnostics.retuned, RETUNED
    if found is None or not found.of:
        return ""
    if abs(found.clean - share * found.of) <= found.classes / 2 and found.poisoned == few:
        return ""
    return (
        f"{found.clean:,} of {found.of:,} clean images ({100 * found.clean / found.of:.3g} %) and "
        f"{found.poisoned} poisoned ones"
    )


def passes(record: Record) -> float:
    """Forward passes per training image; a backward pass counts as two."""
    return float(record.passes.forward + 2 * record.passes.backward)


def trainings(record: Record) -> float:
    """Passes of a defense, including the undefended network, in units of one plain training, which
    takes three per epoch; nan if the recipe has no epochs."""
    epochs = record.cell.recipe.fields.get("epochs")
    return passes(record) / (3 * epochs) if isinstance(epochs, int) and epochs else math.nan


class Filtered(NamedTuple):
    """How well a defense filters the training set, as shares; nan where unknown.

    tpr, fpr: of the images that it flags as poisoned
    auroc: of the scores by which it flags them
    """

    tpr: float = math.nan
    fpr: float = math.nan
    auroc: float = math.nan


def filtered(record: Record) -> Filtered:
    """How well the defense of a record filters."""
    return _filtered(record.diagnostics.samples)


def filtered_parts(record: Record) -> dict[str, Filtered]:
    """The same by part of an attack, for the parts whose TPR is known."""
    found = {name: _filtered(part.samples) for name, part in record.diagnostics.parts.items()}
    return {name: shares for name, shares in found.items() if not math.isnan(shares.tpr)}


def _filtered(samples: Mapping[str, Mapping[str, Any]]) -> Filtered:
    """The first per-sample verdict by name, and the scores beside it; their AUROC is unknown if a
    defense publishes several scores. Older records store recall, which is the TPR, and the share of
    clean images that are kept."""
    ordered = [found for _, found in sorted(samples.items())]
    verdicts = [found for found in ordered if found.keys() & {"tpr", "fpr", "recall"}]
    scores = [found for found in ordered if found not in verdicts]
    if not verdicts:
        return Filtered()
    recall, kept = (float(verdicts[0].get(name, math.nan)) for name in ("recall", "mean_clean"))
    return Filtered(
        float(verdicts[0].get("tpr", recall)),
        float(verdicts[0].get("fpr", 1 - kept)),
        float(scores[0].get("auroc", math.nan)) if len(scores) == 1 else math.nan,
    )


def mean(values: Iterable[float]) -> float:
    """Mean that does not depend on the order of the values; nan if there are none."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def collect(records: Iterable[Record]) -> list[Group]:
    """Group records by cell, sorted by name along `AXES` with `none` first.

    Raises `InvalidInput` for records that are not `consistent`.
    """
    ordered = consistent(records)
    names = {axis: _names(ordered, axis) for axis in AXES}
    grouped: dict[tuple[str, ...], list[Record]] = {}
    for record in ordered:
        grouped.setdefault(specs(record), []).append(record)
    groups = [
        Group(
            tuple(same), {axis: names[axis][spec] for axis, spec in zip(AXES, place, strict=True)}
        )
        for place, same in grouped.items()
    ]
    return sorted(groups, key=lambda group: [name_order(group.names[axis]) for axis in AXES])


def is_none(name: str) -> bool:
    """Whether a spec means no attack or no defense, whatever its fields."""
    return name.partition("(")[0] == "none"


def name_order(name: str) -> tuple[bool, str]:
    """Sort key that puts `none` first."""
    return not is_none(name), name


def _flags(record: Record) -> tuple[str, ...]:
    return (*record.flags, "failed") if record.status == "failed" else record.flags


def _names(records: Sequence[Record], axis: str) -> dict[str, str]:
    """By canonical spec, its label, or the spec itself if the label is ambiguous."""
    labels = {str(record.cell[axis]): record.labels[axis] for record in records}
    taken = Counter(name for pair in labels.items() for name in set(pair))
    return {spec: label if taken[label] == 1 else spec for spec, label in labels.items()}
