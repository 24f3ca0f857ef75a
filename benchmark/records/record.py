"""Records: the result of one cell as JSON values, from which every table and figure is made.

A record may grow: a part that is new is optional, and a reader keeps the parts that it does not
know. So records of all versions with one schema can be read, merged and written again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any

from bdbench.models.plugins.errors import InvalidInput, one_of, require
from bdbench.models.plugins.spec import Spec
from bdbench.records.by_class import check_classes
from bdbench.records.count import Count
from bdbench.storage.keys import KEY, digest_of

SCHEMA = 1
STATUSES = ("ok", "failed")
METRICS = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "asr_floor")
STANDS = TESTED, TRAINED = "test_images", "training_images"
"""How many images a point of a curve stands on: its shares, and its losses."""
FLAGS = ("attack_failed", "not_finite", "at_chance", "no_op")
STAGES = ("load", "poison", "prepare", "capture", "undefended", "fit", "evaluate")
ALONE = 0.2
"""Of `others`, the most that leaves seconds as they are: a step ends with its slowest thread, so a
fifth of one core counts on a machine with many."""


class OtherSchema(InvalidInput):
    """A record that another version of the program wrote."""


def key_of(identity: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    """16 hex digits that stand for a cell, the name of its record.

    identity: dataset, model, attack, defense, recipe as canonical specs, and the seed
    versions: of the plugins by axis: a number, that of a local plugin a hash of its code, a list
        of them where one plugin holds another, or with the hash of its files for a user's folder
    """
    return digest_of({"schema": SCHEMA, "versions": versions, **identity})[:16]


@dataclass(frozen=True)
class Record:
    """The result of one cell. Its fields are those of the JSON file; JSON values throughout.

    schema: version of this layout
    key: 16 hex digits, the identity of the cell
    status: "ok", or "failed" for a cell that raised
    cell: dataset, model, attack, defense, recipe as canonical specs, and the seed
    labels: the same specs with only the fields that differ from their defaults
    metrics: counts by name, None where one makes no sense; None as a whole if failed
    passes: forward and backward passes per training image
    flags: of `FLAGS`
    curves: one dict per evaluated epoch: epoch, shares and losses or None by name, and in newer
        records how many images they are of, see `STANDS`
    diagnostics: what a method publishes about itself
    provenance: versions, device, precision, commit, source hashes, data_sha256, notes
    measured: seconds by stage; peak_memory_bytes; images, a third of all forward passes, of which a
        backward pass counts two; images_per_second, these by seconds of training; started and ended
        (ISO 8601); resumed, how often work went on from a checkpoint, whose seconds are counted;
        isolated, whether the cell had a process of its own;
        retries, why earlier attempts ended; others, how many cores of the processor other processes
        kept busy meanwhile, or how many of them were on the GPU, None if not known; older records
        lack capture, images, others and isolated; the only part in which two runs may differ
    error: type, message and traceback if failed, else None
    versions: of the plugins by axis, see `key_of`; older records lack them
    classes: counts of test images by class, see `ByClass`; older and failed records lack them
    example: a test image before and after the trigger: its row, label and goal, and png, both
        images above each other in base64; where there is no trigger, and in older records, absent
    plugins: by axis, what the authors of the plugins say: about, the method, its source and its
        threat model; settings, the fields; origin; older records lack them
    more: parts that a later version wrote, kept as they are
    """

    schema: int
    key: str
    status: str
    cell: dict[str, Any]
    labels: dict[str, str]
    metrics: dict[str, Count | None] | None
    passes: dict[str, float]
    flags: tuple[str, ...]
    curves: list[dict[str, Any]]
    diagnostics: dict[str, Any]
    provenance: dict[str, Any]
    measured: dict[str, Any]
    error: dict[str, str] | None
    versions: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, Any] = field(default_factory=dict)
    example: dict[str, Any] = field(default_factory=dict)
    plugins: dict[str, dict[str, str]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> str | None:
        """The architecture of a network that a user brought, as a spec; None for a cell whose
        networks were trained."""
        model = self.cell["model"]
        if model.partition("(")[0] != "weights":
            return None
        inner = Spec.of(model).fields.get("model")
        return inner if isinstance(inner, str) else None

    @property
    def clean_accuracy(self) -> Count | None:
        """Clean test images that get their own label; None if the cell failed."""
        return self._count("clean_accuracy")

    @property
    def attack_success_rate(self) -> Count | None:
        """Triggered test images that get the label that the attack wants."""
        return self._count("attack_success_rate")

    @property
    def robust_accuracy(self) -> Count | None:
        """Triggered test images that get their own label."""
        return self._count("robust_accuracy")

    @property
    def asr_floor(self) -> Count | None:
        """The same images without the trigger that get the label that the attack wants."""
        return self._count("asr_floor")

    def _count(self, metric: str) -> Count | None:
        return (self.metrics or {}).get(metric)


CLOSED = ("record.cell", "record.labels", "metrics.", "error")
"""Parts of a record to which no later version adds: what a cell is, counts and errors. To all
others, and to the record itself, it may add; what a reader does not know, it keeps."""
OPTIONAL = ("versions", "classes", "example", "plugins")
"""Parts that are left out where they are empty, so that older records keep their bytes."""
LONGEST_NAME = 100
_NUMBER = (int, float)
_SPECS = {"dataset": str, "model": str, "attack": str, "defense": str, "recipe": str}
_SHAPE = {
    "schema": int,
    "key": str,
    "status": str,
    "cell": _SPECS | {"seed": int},
    "labels": _SPECS,
    "metrics": (dict, NoneType),
    "passes": {"forward": _NUMBER, "backward": _NUMBER},
    "flags": list,
    "curves": list,
    "diagnostics": dict,
    "provenance": dict,
    "measured": {
        "seconds": {f"{stage}?" if stage == "capture" else stage: _NUMBER for stage in STAGES},
        "peak_memory_bytes": int,
        "images_per_second": _NUMBER,
        "started": str,
        "ended": str,
        "resumed?": int,
        "isolated?": bool,
        "retries?": list,
        "images?": int,
        "others?": (*_NUMBER, NoneType),
    },
    "error": (dict, NoneType),
    "versions?": dict,
    "classes?": dict,
    "example?": {"row": int, "label": int, "goal": int, "png": str},
    "plugins?": {
        f"{axis}?": {"about": str, "settings": str, "origin": str}
        for axis in ("dataset", "model", "attack", "defense")
    },
}
_ABSENT = object()
_COUNT = {"hits": int, "of": int, "rate": _NUMBER}
_ERROR = {"type": str, "message": str, "traceback": str}
_SHARE = (int, float, NoneType)
_POINT = {"epoch": int, "clean_accuracy": _SHARE, "attack_success_rate": _SHARE}


def encode(record: Record) -> dict[str, Any]:
    """A record as JSON values. Raises `InvalidInput` for one that could not be read again."""
    known = [part.name for part in fields(Record) if part.name != "more"]
    document = {**record.more, **{name: getattr(record, name) for name in known}}
    document["flags"] = list(record.flags)
    for name in OPTIONAL:
        if not document[name]:
            del document[name]
    if record.metrics is not None:
        document["metrics"] = {
            name: count and {"hits": count.hits, "of": count.of, "rate": round(count.rate, 6)}
            for name, count in record.metrics.items()
        }
    _validate(document)
    return document


def decode(document: Any) -> Record:
    """The inverse of `encode`. Raises `InvalidInput`, or `OtherSchema` before all else."""
    _validate(document)
    metrics = document["metrics"] and {
        name: count and Count(count["hits"], count["of"])
        for name, count in document["metrics"].items()
    }
    parts = document | {"metrics": metrics, "flags": tuple(document["flags"])}
    known = {part.name for part in fields(Record)}
    more = {name: parts.pop(name) for name in parts.keys() - known}
    return Record(**parts, more=more)


def _validate(document: Any) -> None:
    if isinstance(document, dict) and type(document.get("schema")) is int:
        found = document["schema"]
        if found != SCHEMA:
            raise OtherSchema(f"the record has schema {found}, this version reads schema {SCHEMA}")
    _fit(document, _SHAPE, "record")
    key, status = document["key"], document["status"]
    require(re.fullmatch(KEY, key) is not None, f"key {key!r} is not 16 hex digits")
    if versions := document.get("versions"):
        require(key == key_of(document["cell"], versions), "its key is not that of its cell")
    one_of(STATUSES, status=status)
    spent = document["measured"]["seconds"] | document["passes"]
    require(min(spent.values()) >= 0, "seconds and passes must be at least 0")
    for flag in document["flags"]:
        named = isinstance(flag, str) and flag.isidentifier()
        require(named, f"flags must be names such as {', '.join(FLAGS)}, got {flag!r}")
    for point in document["curves"]:
        require(isinstance(point, dict), "curves must hold objects")
        _fit(point, dict.fromkeys(point, _SHARE) | _POINT, "curves")
    whole, broken = document["metrics"], document["error"]
    require((whole is None) == (status == "failed"), "metrics must be null in failed records only")
    require((broken is None) == (status == "ok"), "error must be null in records that are ok only")
    if broken is not None:
        _fit(broken, _ERROR, "error")
    if whole is not None:
        _fit(whole, dict.fromkeys({*METRICS, *whole}, (dict, NoneType)), "metrics")
        for name, count in whole.items():
            if count is not None:
                _fit(count, _COUNT, f"metrics.{name}")
                rate = round(Count(count["hits"], count["of"]).rate, 6)
                require(rate == count["rate"], f"metrics.{name}.rate is not hits / of")
    if classes := document.get("classes"):
        check_classes(classes, whole or {})


def _fit(value: Any, shape: dict[str, Any], name: str) -> None:
    """Raise `InvalidInput` for a part of `value` that has not the type `shape` asks, or is not in
    it where the shape is closed. The name of a part that may be absent ends with a question mark.
    """
    if not isinstance(value, dict):
        raise InvalidInput(f"{name} must be an object")
    missing = [part for part in shape if part not in value and not part.endswith("?")]
    require(not missing, f"{name} lacks {', '.join(sorted(missing))}")
    unknown = dict(value)
    for part, expected in shape.items():
        part = part.removesuffix("?")
        found = unknown.pop(part, _ABSENT)
        if found is _ABSENT:
            continue
        if isinstance(expected, dict):
            _fit(found, expected, f"{name}.{part}")
        elif not isinstance(found, expected) or isinstance(found, bool) > (expected is bool):
            raise InvalidInput(f"{name}.{part} has the wrong type, {type(found).__name__}")
    if unknown:
        names = sorted(map(str, unknown))
        named = all(part.isidentifier() and len(part) <= LONGEST_NAME for part in names)
        require(named, f"{name} has a part whose name is none")
        closed = name.startswith(CLOSED)
        require(not closed, f"{name} has unknown fields: {', '.join(names)}")
