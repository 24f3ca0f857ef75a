"""The parts of a record and their types, which pydantic checks.

All parts but the closed ones are open: what a later version adds to them is kept and written again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import core_schema

from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import Spec
from bdbench.records.count import Count

LONGEST_NAME = 100
"""Characters of the name of a part that a later version adds."""
SAMPLE_NUMBERS = ("tpr", "fpr", "auroc", "precision", "recall", "mean_clean", "mean_poisoned")
"""The parts of a `Sample` that are numbers."""


def _accepted(schema: core_schema.CoreSchema, wanted: str) -> GetPydanticSchema:
    named = core_schema.custom_error_schema(
        schema, custom_error_type="type", custom_error_message=f"Input should be {wanted}"
    )
    return GetPydanticSchema(lambda kind, handler: named)


def _number(least: int | None = None) -> core_schema.CoreSchema:
    """An int stays an int, so that a record keeps its bytes."""
    whole = core_schema.int_schema(strict=True, ge=least)
    return core_schema.union_schema([whole, core_schema.float_schema(strict=True, ge=least)])


Text = Annotated[str, _accepted(core_schema.is_instance_schema(str), "a string")]
"""Also one that is not valid Unicode, such as the name of a file may be."""
Number = Annotated[float, _accepted(_number(), "a number")]
Spent = Annotated[float, _accepted(_number(0), "a number of at least 0")]
Share = Number | None


@dataclass(frozen=True, eq=False)
class RecordedSpec(Spec):
    """A spec as a record has it: its `str` is this text, canonical or not. A text that this version
    cannot read is a name without fields."""

    text: str = ""

    @classmethod
    @lru_cache(maxsize=2**12)
    def of(cls, text: str) -> RecordedSpec:
        """Never raises `InvalidInput`: tables show records of plugins that are gone."""
        try:
            found = Spec.of(text)
        except InvalidInput:
            found = Spec(text)
        return cls(found.name, found.fields, text)

    def __str__(self) -> str:
        return self.text


def _read_spec(value: Any) -> Spec:
    if isinstance(value, Spec):
        return value
    require(isinstance(value, str), f"a spec must be a string, got {type(value).__name__}")
    return RecordedSpec.of(value)


def _write_spec(spec: Spec) -> str:
    return str(spec)


def _read_count(value: Any) -> Count:
    if isinstance(value, Count):
        return value
    whole = isinstance(value, Mapping) and value.keys() == {"hits", "of", "rate"}
    require(whole, "a count must have hits, of and rate, and nothing else")
    hits, of, rate = value["hits"], value["of"], value["rate"]
    require(type(hits) is type(of) is int, "hits and of must be integers")
    count = Count(hits, of)
    require(type(rate) is not bool and rate == round(count.rate, 6), "rate is not hits / of")
    return count


def _write_count(count: Count) -> dict[str, float]:
    return {"hits": count.hits, "of": count.of, "rate": round(count.rate, 6)}


SpecText = Annotated[
    Spec, PlainValidator(_read_spec), PlainSerializer(_write_spec, return_type=Any)
]
"""A spec, in JSON its text."""
Counted = Annotated[
    Count, PlainValidator(_read_count), PlainSerializer(_write_count, return_type=Any)
]
"""A count, in JSON with its rate."""
Filled = BeforeValidator(lambda value: None if value == {} else value)
"""None for a part that is empty."""


class Part(BaseModel):
    """A part of a record. It is made of JSON values or of parts, and frozen; see `with_`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    def __getitem__(self, name: str) -> Any:
        """The part of this name, for names that are computed."""
        return getattr(self, name)

    def with_(self, **parts: Any) -> Self:
        """The same with these parts."""
        given = {name: value for name, value in self if name in self.model_fields_set}
        return self.model_validate({**given, **(self.model_extra or {}), **parts})

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, without the parts that it was made without."""
        return self.model_dump(exclude_unset=True)


class NamedPart(Part):
    """A part whose further parts have names like those of Python."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        check_names(self.model_extra or ())
        return self


class ClosedPart(Part):
    """A part to which no later version adds."""

    model_config = ConfigDict(extra="forbid")


def check_names(names: Any) -> None:
    """Raise `InvalidInput` unless all names could be those of fields."""
    named = all(name.isidentifier() and len(name) <= LONGEST_NAME for name in names)
    require(named, "it has a part whose name is not an identifier")


class Identity(ClosedPart):
    """What a cell is: canonical specs and the seed."""

    dataset: SpecText
    model: SpecText
    attack: SpecText
    defense: SpecText
    recipe: SpecText
    seed: int


class Labels(ClosedPart):
    """The specs of a cell with only the fields that differ from their defaults."""

    dataset: Text
    model: Text
    attack: Text
    defense: Text
    recipe: Text


class Metrics(NamedPart):
    """Counts by name, None where one makes no sense."""

    __pydantic_extra__: dict[str, Counted | None]

    clean_accuracy: Counted | None
    attack_success_rate: Counted | None
    robust_accuracy: Counted | None
    asr_floor: Counted | None

    def counts(self) -> dict[str, Count]:
        """Those that are not None, sorted by name."""
        return {name: count for name, count in sorted(self) if count is not None}


class Passes(NamedPart):
    """Passes per training image."""

    __pydantic_extra__: dict[str, Spent]

    forward: Spent
    backward: Spent


class Seconds(NamedPart):
    """Seconds by stage; older records lack capture."""

    __pydantic_extra__: dict[str, Spent]

    load: Spent
    poison: Spent
    prepare: Spent
    capture: Spent | None = None
    undefended: Spent
    fit: Spent
    evaluate: Spent

    @property
    def total(self) -> float:
        """Of all stages."""
        return math.fsum(spent for _, spent in self if spent is not None)


class Measured(NamedPart):
    """The only part in which two runs of a cell may differ.

    images: a third of all forward passes, of which a backward pass counts two
    images_per_second: these by seconds of training
    started, ended: ISO 8601
    resumed: how often the run resumed from a checkpoint; the seconds before that are counted
    isolated: whether the cell had a process of its own
    retries: why earlier attempts ended
    others: how many cores of the processor other processes, also those of other cells, kept busy
        meanwhile, or how many of them were on the GPU; None if not known
    """

    seconds: Seconds
    peak_memory_bytes: int
    images_per_second: Number
    started: Text
    ended: Text
    resumed: int | None = None
    isolated: bool | None = None
    retries: list[Text] = Field(default_factory=list)
    images: int | None = None
    others: Number | None = None

    @property
    def wall(self) -> float | None:
        """Seconds from start to end; None where these are no times. `seconds` also has what earlier
        cells spent on shared work."""
        try:
            began, ended = map(datetime.fromisoformat, (self.started, self.ended))
            return max(0.0, (ended - began).total_seconds())
        except (TypeError, ValueError):
            return None


class Given(Part):
    """A network that a user brought.

    file: its name, or empty
    sha256: hash of its weights
    """

    file: Text = ""
    sha256: Text = ""


class Provenance(Part):
    """Where the numbers come from; None for what an older record does not state.

    versions: of Python and the libraries
    instructions: of the CPU, such as "AVX512 with bf16"; None for a GPU
    sources: hashes of the code of the plugins by axis, and of training
    titles: what the plugins are called in print, by axis
    code: of plugins that were defined in a notebook or a script, by axis
    plugins: plugin files, relative to the folder of the run if they were below it
    clean_fraction: share of the training set that the defense was lent as clean images
    data_sha256: hash of the images
    given: the network that a user brought
    network_sha256: hash of the weights that the defense returned
    """

    versions: dict[str, Text] = Field(default_factory=dict)
    device: Text | None = None
    precision: Text | None = None
    tf32: bool | None = None
    deterministic: bool | None = None
    threads: int | None = None
    instructions: Text | None = None
    commit: Text | None = None
    sources: dict[str, Text] = Field(default_factory=dict)
    titles: dict[str, Text] = Field(default_factory=dict)
    code: dict[str, Text] = Field(default_factory=dict)
    plugins: list[Text] = Field(default_factory=list)
    clean_fraction: Number | None = None
    data_sha256: Text | None = None
    data_notes: list[Text] = Field(default_factory=list)
    given: Given | None = None
    network_sha256: Text | None = None


class LentImages(Part):
    """How many clean images a defense was lent.

    of: images of the training set
    classes: of the training set
    least: images of each class that the defense asks for; None in older records
    """

    fit: int = 0
    validation: int = 0
    of: int = 0
    classes: int = 0
    least: int | None = None


class RetuningImages(Part):
    """On how many images a network was fine-tuned to reactivate its backdoor.

    of: clean images of the training set
    classes: of the training set
    """

    clean: int = 0
    poisoned: int = 0
    of: int = 0
    classes: int = 0


def _check_sample(found: dict[str, Any]) -> dict[str, Any]:
    for name in SAMPLE_NUMBERS:
        value = found.get(name, 0)
        require(type(value) in (int, float), f"its {name} must be a number, got {_shown(value)}")
    return found


Sample = Annotated[dict[str, Any], AfterValidator(_check_sample)]
"""What the values that a defense gives to training images say about who is poisoned."""


class AttackPart(Part):
    """What a run publishes about one of several attacks, see `Diagnostics`.

    attack: its label
    samples: with the poisoned images of this part, and the clean ones
    """

    attack: Text = ""
    poisoned_images: int | None = None
    cover_images: int | None = None
    relabelled_images: int | None = None
    share_of_dataset: Number | None = None
    share_of_target_class: Number | None = None
    samples: dict[str, Sample] = Field(default_factory=dict)


class Diagnostics(Part):
    """What a run publishes about its attack and its defense.

    samples: what per-sample values say about who is poisoned, by name
    scalars: numbers of the defense by name
    attack: numbers of the attack by name
    parts: of an attack that consists of several, by the names that metrics end in; a share of the
        target class is known by part only
    """

    poisoned_images: int | None = None
    cover_images: int | None = None
    relabelled_images: int | None = None
    share_of_dataset: Number | None = None
    share_of_target_class: Number | None = None
    lent: LentImages | None = None
    retuned: RetuningImages | None = None
    attack: dict[str, Any] = Field(default_factory=dict)
    scalars: dict[str, Any] = Field(default_factory=dict)
    samples: dict[str, Sample] = Field(default_factory=dict)
    warnings: list[Text] = Field(default_factory=list)
    parts: dict[str, AttackPart] = Field(default_factory=dict)


class Failure(ClosedPart):
    """What a cell raised."""

    type: Text
    message: Text
    traceback: Text


class Example(NamedPart):
    """A test image before and after the trigger.

    row: number of the image in the test set
    png: both images above each other, in base64
    part: the part of the attack that has this trigger, if it has parts
    """

    row: int
    label: int
    goal: int
    png: Text
    part: Text = ""


class PluginText(NamedPart):
    """What the author of a plugin says.

    about: the method, its source and its threat model
    settings: the fields
    origin: where the plugin comes from
    """

    about: Text
    settings: Text
    origin: Text


class PluginTexts(NamedPart):
    """By axis; older records lack them."""

    dataset: PluginText | None = None
    model: PluginText | None = None
    attack: PluginText | None = None
    defense: PluginText | None = None


def _check_point(point: dict[str, float | None]) -> dict[str, float | None]:
    absent = sorted({"epoch", "clean_accuracy", "attack_success_rate"} - point.keys())
    require(not absent, f"it lacks {', '.join(absent)}")
    require(type(point["epoch"]) is int, "its epoch must be an integer")
    check_names(point)
    return point


Point = Annotated[dict[str, Share], AfterValidator(_check_point)]
"""An evaluated epoch: its number, and shares and losses by name, None where one makes no sense."""


def complaint(error: ValidationError) -> str:
    """What is wrong first, in one line that names the part."""
    found = error.errors(include_url=False)
    first = found[0]
    kind, place = first["type"], first["loc"]
    if verb := {"missing": "lacks", "extra_forbidden": "has unknown fields:"}.get(kind):
        *owner, _ = place
        alike = [each["loc"] for each in found if each["type"] == kind]
        names = sorted(str(name) for *above, name in alike if above == owner)
        return f"{_path(owner)} {verb} {', '.join(names)}"
    if kind == "value_error":
        return f"{_path(place)}: {first['ctx']['error']}"
    wanted = first["msg"].removeprefix("Input should be ").partition(" or instance of ")[0]
    return f"{_path(place)} must be {wanted}, got {_shown(first['input'])}"


def _path(place: Iterable[int | str]) -> str:
    return ".".join(map(str, ("record", *place)))


def _shown(value: Any) -> str:
    return repr(value) if type(value) in (int, float) else type(value).__name__
