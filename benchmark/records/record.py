"""Records: the result of one cell, from which every table and figure is made.

A later version may add optional parts, and a reader keeps the parts that it does not know. So
records of all versions with one schema can be read, merged and written again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field, fields
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from bdbench.models.plugins.errors import InvalidInput, one_of, require
from bdbench.records.by_class import ByClass
from bdbench.records.count import Count
from bdbench.records.parts import (
    Diagnostics,
    Example,
    Failure,
    Filled,
    Identity,
    Labels,
    Measured,
    Metrics,
    Part,
    Passes,
    PluginTexts,
    Point,
    Provenance,
    Seconds,
    Text,
    check_names,
    complaint,
)
from bdbench.storage.keys import KEY, digest_of

SCHEMA = 1
STATUSES = ("ok", "failed")
SPECS = ("dataset", "model", "attack", "defense", "recipe")
"""The parts of a cell but for its seed, in the order of options and columns."""
METRICS = tuple(Metrics.model_fields)
STANDS = TESTED, TRAINED = "test_images", "training_images"
"""Names of the numbers of images behind a point of a curve: for its shares, and for its losses."""
FLAGS = ("attack_failed", "not_finite", "at_chance", "no_op")
TRIGGERED = ("attack_success_rate", "robust_accuracy")
"""Metrics of triggered images."""
STAGES = tuple(Seconds.model_fields)
LATER_STAGES = ("reactivate",)
"""Stages that only some records have."""
REACTIVATED, REACTIVATED_CA = "reactivated_success_rate", "reactivated_clean_accuracy"
CONTROL = "control_success_rate"
"""Metrics that only records of `--reactivate` have."""
ALONE = 0.2
"""The largest `others` at which seconds count as undisturbed: a step ends with its slowest thread,
so a fifth of one core matters on a machine with many."""


class OtherSchema(InvalidInput):
    """A record that another version of the program wrote."""


def key_of(identity: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    """The key of a cell, 16 hex digits, which name its record.

    identity: dataset, model, attack, defense, recipe as canonical specs, and the seed
    versions: of the plugins by axis: a number; for a local plugin a hash of its code; a list where
        one plugin holds another; with the hash of its files for a user's folder
    """
    return digest_of({"schema": SCHEMA, "versions": versions, **identity})[:16]


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Record:
    """The result of one cell. Its fields are those of the JSON file. They may be given as JSON
    values, or as the types below; pydantic's ValidationError, a ValueError, says what does not fit.

    schema: version of this layout
    key: 16 hex digits, the identity of the cell
    status: "ok", or "failed" for a cell that raised
    metrics: None if failed
    flags: of `FLAGS`
    curves: the evaluated epochs; newer records say how many images a point stands on, see `STANDS`
    error: None unless failed
    versions: of the plugins by axis, see `key_of`; older records lack them
    classes: counts of test images by class; None in older and failed records
    example: a test image with the trigger; None where there is no trigger, and in older records
    plugins: what the authors of the plugins say; older records lack it
    more: parts that a later version wrote, kept as they are
    """

    schema: int
    key: Text
    status: Text
    cell: Identity
    labels: Labels
    metrics: Metrics | None
    passes: Passes
    flags: Annotated[tuple[Text, ...], Field(strict=False)]
    curves: list[Point]
    diagnostics: Diagnostics
    provenance: Provenance
    measured: Measured
    error: Failure | None
    versions: dict[str, Any] = field(default_factory=dict)
    classes: Annotated[ByClass | None, Filled] = None
    example: Annotated[Example | None, Filled] = None
    plugins: PluginTexts = field(default_factory=PluginTexts)
    more: dict[str, Any] = field(default_factory=dict)

    if TYPE_CHECKING:

        def __init__(self, **parts: Any) -> None: ...

    @property
    def given(self) -> str | None:
        """The architecture of a network that a user brought, as a spec; None for a cell whose
        networks were trained."""
        model = self.cell.model
        inner = model.fields.get("model") if model.name == "weights" else None
        return inner if isinstance(inner, str) else None

    @property
    def clean_accuracy(self) -> Count | None:
        """Clean test images that get their own label; None if the cell failed."""
        return self.count("clean_accuracy")

    @property
    def attack_success_rate(self) -> Count | None:
        """Triggered test images that get the label that the attack wants; None without an
        attack."""
        return self.count("attack_success_rate")

    @property
    def robust_accuracy(self) -> Count | None:
        """Triggered test images that get their own label; None without an attack."""
        return self.count("robust_accuracy")

    @property
    def asr_floor(self) -> Count | None:
        """The same images without the trigger that get the label that the attack wants."""
        return self.count("asr_floor")

    @property
    def parts(self) -> dict[str, dict[str, Count]]:
        """Of an attack that consists of several, by part: the counts of its attack success rate,
        robust accuracy and floor. Those of the record are the worst part's."""
        metrics = [name for name in METRICS if name != "clean_accuracy"]
        found = {
            part: {name: count for name in metrics if (count := self.count(f"{name}_{part}"))}
            for part in self.diagnostics.parts
        }
        return {part: counts for part, counts in found.items() if len(counts) == len(metrics)}

    @property
    def worst_part(self) -> str:
        """The part with the highest attack success rate, the first by name of several; empty
        without."""
        rates = {name: part["attack_success_rate"].rate for name, part in self.parts.items()}
        return max(sorted(rates), key=rates.__getitem__, default="")

    @property
    def is_reactivated(self) -> bool:
        """Whether the record says if the backdoor comes back, or there is none that could."""
        return self.cell.attack.is_none or self.count(REACTIVATED) is not None

    def count(self, metric: str) -> Count | None:
        """The count of a metric by name, also of a later version; None where there is none. Without
        an attack there is no ASR and no R-Acc."""
        bare = self.cell.attack.is_none and metric.startswith(TRIGGERED)
        return None if bare else self.counts.get(metric)

    @property
    def meaningful(self) -> dict[str, Count]:
        """The counts by name, sorted, without those that mean nothing, see `count`."""
        return {name: count for name in self.counts if (count := self.count(name))}

    @property
    def points(self) -> list[dict[str, Any]]:
        """The points of its curves as JSON values, without what means nothing, see `count`."""
        bare = self.cell.attack.is_none
        return [
            {name: n for name, n in point.items() if not (bare and name.startswith(TRIGGERED))}
            for point in self.curves
        ]

    def holds(self, *, curves: bool, reactivate: bool) -> bool:
        """Whether it has what a run with these options measures."""
        return (bool(self.curves) or not curves) and (self.is_reactivated or not reactivate)

    def contradicts(self, other: Record) -> bool:
        """Whether one of the two failed, or a metric that both have differs."""
        ours, theirs = self.counts, other.counts
        return self.status != other.status or any(
            ours[name] != theirs[name] for name in ours.keys() & theirs.keys()
        )

    @property
    def counts(self) -> dict[str, Count]:
        """All counts by name, sorted, also those that mean nothing; none if the cell failed."""
        return self.metrics.counts() if self.metrics else {}


OPTIONAL = ("versions", "classes", "example", "plugins")
"""Parts that are left out where they are empty, so that older records keep their bytes."""


def encode(record: Record) -> dict[str, Any]:
    """A record as JSON values. Raises `InvalidInput` for one that `decode` would refuse."""
    _check(record)
    document = {**record.more, **{name: _plain(getattr(record, name)) for name in _names()}}
    for name in OPTIONAL:
        if not document[name]:
            del document[name]
    return document


def decode(document: Any) -> Record:
    """The inverse of `encode`. Raises `InvalidInput`, or `OtherSchema` before all else."""
    require(isinstance(document, dict), "record must be a dictionary")
    found = document.get("schema")
    if type(found) is int and found != SCHEMA:
        raise OtherSchema(f"the record has schema {found}, this version reads schema {SCHEMA}")
    parts = {name: document[name] for name in _names() if name in document}
    more = {name: part for name, part in document.items() if name not in parts}
    check_names(more)
    try:
        record = Record(**parts, more=more)
    except ValidationError as error:
        raise InvalidInput(complaint(error)) from None
    _check(record)
    return record


def _names() -> list[str]:
    """Of the parts of a document that this version knows."""
    return [part.name for part in fields(Record) if part.name != "more"]


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.as_dict()
    return list(value) if isinstance(value, tuple) else value


def _check(record: Record) -> None:
    """Raise `InvalidInput` where parts contradict each other or the key."""
    require(re.fullmatch(KEY, record.key) is not None, f"key {record.key!r} is not 16 hex digits")
    if record.versions:
        known = key_of(record.cell.as_dict(), record.versions)
        require(record.key == known, "its key is not that of its cell")
    one_of(STATUSES, status=record.status)
    failed = record.status == "failed"
    require((record.metrics is None) == failed, "metrics must be null in failed records only")
    require((record.error is not None) == failed, "error must be null in records that are ok only")
    for flag in record.flags:
        names = ", ".join(FLAGS)
        require(flag.isidentifier(), f"flags must be names such as {names}, got {flag!r}")
    if record.classes:
        record.classes.check_sums(record.metrics)
