"""Spec strings: the textual form of a configured plugin, such as `blend(alpha=0.1)`.

`ast` parses a spec into literals; nothing is evaluated. The canonical form writes every field out
and serves as cache key and test id, except fields that were `added` later.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from bdbench.models.plugins import literals
from bdbench.models.plugins.errors import InvalidInput

LONGEST = 2_000
"""Characters of a spec. A mixed attack has those of its parts, with all settings and paths."""
LONGEST_GUESSED = 1_000
"""Characters of a text for which a near name is looked up."""
LONGEST_NAME = 60
"""Characters of the name of a plugin."""
NEARLY_A_NAME = re.compile(rf"\w[\w .+-]{{,{LONGEST_NAME - 1}}}")
LARGEST_SWEEP = 10_000
"""Specs of one sweep."""
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """A configured plugin as text; `str` is the inverse of `of`.

    name: name of the plugin
    fields: literals by name, in the order in which the text has them
    """

    name: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Spec:
        """Parse `name(field=literal, ...)`. Raises `InvalidInput` for any other text."""
        name, fields = _parse(text)
        return cls(name, dict(fields))

    def with_(self, **fields: Any) -> Spec:
        """The same spec with these fields set."""
        return Spec(self.name, {**self.fields, **fields})

    @property
    def is_none(self) -> bool:
        """Whether it stands for no attack or no defense, whatever its fields."""
        return self.name == "none"

    def __str__(self) -> str:
        if not self.fields:
            return self.name
        written = ", ".join(f"{key}={value!r}" for key, value in self.fields.items())
        return f"{self.name}({written})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, Spec) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))


def asked(text: str) -> Spec:
    """The spec in a text, see `Spec.of`. A name that no plugin can have, such as CIFAR-10, is one
    too: whoever looks it up answers with the nearest that exists."""
    try:
        return Spec.of(text)
    except InvalidInput:
        if NEARLY_A_NAME.fullmatch(text.strip()) is None:
            raise
        return Spec(text.strip())


def is_name(text: str) -> bool:
    """Whether a plugin may have this name: a spec of the name alone gives it back."""
    try:
        return len(text) <= LONGEST_NAME and Spec.of(text).name == text
    except InvalidInput:
        return False


@functools.lru_cache(maxsize=2**14)
def _parse(text: str) -> tuple[str, Mapping[str, Any]]:
    """Name and fields. Cached: the records of thousands of cells repeat a few specs."""
    if len(text) > LONGEST:
        raise InvalidInput(
            f"a spec of {len(text):,} characters is too long; it may have at most {LONGEST:,}"
        )
    shape = f"expected name or name(field=value, ...), got {text!r}"
    try:
        with warnings.catch_warnings():
            # Text that Python only warns about, such as 1if, is not a literal either.
            warnings.simplefilter("error")
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InvalidInput(shape) from None
    if isinstance(tree, ast.Name):
        return tree.id, {}
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
        raise InvalidInput(shape)
    fields: dict[str, Any] = {}
    for keyword in tree.keywords:
        if keyword.arg is None or keyword.arg in fields:
            raise InvalidInput(shape)
        try:
            fields[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            message = f"{keyword.arg} must be a literal such as 3, 0.1, True or 'text' in {text!r}"
            raise InvalidInput(message) from None
    return tree.func.id, fields


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting of a plugin.

    default: as a literal
    added: whether the field was added after records were made, see `added`
    is_path: whether it holds a path, see `path_field`
    """

    name: str
    type: Any
    default: Any
    added: bool = False
    is_path: bool = False

    def accept(self, value: Any, owner: str) -> Any:
        """`value` as a literal of this field's type; an int is accepted for a float. Raises
        `InvalidInput`."""
        return self._accept(value, f"{self.name} of {owner}")

    def accept_default(self, owner: str) -> Any:
        """The default as such a literal. Raises `InvalidInput` if it is not of the field's type."""
        hint = f"; write {self.shown} | None for its type" if self.default is None else ""
        return self._accept(self.default, f"the default of {self.name} of {owner}", hint)

    def fits(self, value: Any) -> bool:
        """Whether `accept` accepts the value."""
        try:
            literals.to_literal(self.type, value)
        except literals.Misfit:
            return False
        return True

    def values(self, value: Any, owner: str) -> list[Any]:
        """The values of a setting, as literals. A list sweeps over its values, unless the list
        itself is a value of this field. Raises `InvalidInput`, also for a repeated value."""
        if not isinstance(value, list) or self.fits(value) or not any(map(self.fits, value)):
            return [self.accept(value, owner)]
        found = [self.accept(each, owner) for each in value]
        for each, count in Counter(map(repr, found)).items():
            if count > 1:
                raise InvalidInput(
                    f"the sweep over {self.name} of {owner} has {each} twice; remove one"
                )
        return found

    def from_literal(self, literal: Any) -> Any:
        """The value that the plugin gets for a literal, such as the member of an Enum."""
        return literals.from_literal(self.type, literal)

    def without_folder(self, literal: Any) -> Any:
        """The value in a canonical spec, where a path is reduced to its last part."""
        return os.path.basename(_absolute(literal)) if self.is_path and literal else literal

    def absolute(self, literal: Any) -> Any:
        """The value for other processes of this machine, where a path is absolute."""
        return _absolute(literal) if self.is_path and literal else literal

    @property
    def shown(self) -> str:
        """The type as Python writes it."""
        return literals.text(self.type)

    def _accept(self, value: Any, what: str, hint: str = "") -> Any:
        part = literals.unsupported(self.type)
        if isinstance(part, literals.Unresolved):
            raise InvalidInput(
                f"{what} has the type {self.shown}, which cannot be resolved: {part.why}; import "
                "it at the top of the file, outside of `if TYPE_CHECKING`"
            )
        if part is not None:
            inner = "" if part is self.type else f"; {literals.text(part)}"
            raise InvalidInput(
                f"{what} has the type {self.shown}{inner}, which no spec can write; "
                f"use {literals.SUPPORTED}"
            )
        if (member := literals.ambiguous(self.type)) is not None:
            raise InvalidInput(
                f"{what} has the type {self.shown}, in which {member.name!r} does not stand for "
                f"{member}: name the Enum first"
            )
        try:
            return literals.to_literal(self.type, value)
        except literals.Misfit as misfit:
            advice = hint or self._sweep_advice(value) or self._list_advice(value)
            expected = str(misfit) or f"{self.shown}, got {_shown(value)}{advice}"
        known = literals.choices(self.type)
        if known and not hint:
            near = difflib.get_close_matches(str(value)[:LONGEST_GUESSED], map(str, known), 1, 0.5)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            guess = self._sweep_advice(value) or guess
            expected = f"one of {', '.join(map(repr, known))}, got {_shown(value)}{guess}"
        raise InvalidInput(f"{what} must be {expected}")

    def _sweep_advice(self, value: Any) -> str:
        """What to do about a list if it cannot be a sweep, or is empty."""
        if not isinstance(value, list) or not all(map(self.fits, value)):
            return ""
        if not value:
            return "; a sweep needs at least one value"
        return "; a list is a sweep, which only the run of a suite accepts: give one value"

    def _list_advice(self, value: Any) -> str:
        """What to do about a value that should be a list of one."""
        return f"; write {[value]!r}" if self.fits([value]) else ""


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # it may be an object of any class
        return f"a {type(value).__name__}"


def added(default: Any) -> Any:
    """A dataclass field, or the default of a parameter of a model, that was added after records
    were made. The canonical spec omits it at its default, so that these records keep their keys.
    The default must do what the plugin did before it had the field."""
    return dataclasses.field(default=default, metadata={"added": True})


def path_field(default: str = "") -> Any:
    """A dataclass field, or the default of a parameter of a model, that holds the path of a file or
    folder. The canonical spec has only the last part of the path: files that were moved are the
    same. They are identified by their content, which is in the key of each cell; those of a data
    set that has a `content` by that."""
    return dataclasses.field(default=default, metadata={"place": True})


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


@functools.cache
def fields_of(factory: Callable[..., Any]) -> Mapping[str, Field]:
    """The settings of a class or function: its parameters with a default, in order. A dataclass
    field with `repr=False` is not a setting."""
    kinds = literals.types_of(factory)
    declared = {}
    if dataclasses.is_dataclass(factory):
        declared = {field.name: field for field in dataclasses.fields(factory)}
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        field, default = declared.get(name), parameter.default
        if isinstance(default, dataclasses.Field):
            # Of a function, such as `path_field()`.
            field, default = default, default.default
        if default is parameter.empty or (field is not None and not field.repr):
            continue
        if field is not None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        kind = kinds.get(name, Any)
        with contextlib.suppress(literals.Misfit):
            default = literals.to_literal(kind, default)
        marks = {} if field is None else field.metadata
        added, is_path = bool(marks.get("added")), bool(marks.get("place"))
        found[name] = Field(name, kind, default, added, is_path)
    return MappingProxyType(found)


def marked(factory: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of the parameters of a function that have a mark, as `path_field` gives one."""
    fields, parameters = fields_of(factory), inspect.signature(factory).parameters
    marks = (name for name in fields if isinstance(parameters[name].default, dataclasses.Field))
    return {name: fields[name].from_literal(fields[name].default) for name in marks}


def filled_by(kind: type) -> set[str]:
    """The fields of a class that its objects fill themselves."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return {field.name for field in fields if not field.init or field.metadata.get("filled")}


def variable(factory: Callable[..., Any]) -> list[str]:
    """The parameters of a class or function that take any number of values, such as `**options`."""
    parameters = inspect.signature(factory).parameters.values()
    return [str(p).partition(":")[0] for p in parameters if p.kind in VARIABLE]


def is_same(one: Any, other: Any) -> bool:
    """Whether a spec writes two literals alike: True is not 1."""
    return repr(one) == repr(other)


def required(factory: Callable[..., Any], skipped: int = 0) -> list[str]:
    """The parameters of a class or function without a default, after the first `skipped` ones."""
    parameters = list(inspect.signature(factory).parameters.values())[skipped:]
    return [p.name for p in parameters if p.default is p.empty and p.kind not in VARIABLE]


def canonical(spec: Spec, fields: Mapping[str, Field]) -> Spec:
    """The canonical spec of these values: without `added` fields at their defaults, and with the
    last part of a path only."""
    written = {
        key: fields[key].without_folder(value)
        for key, value in spec.fields.items()
        if not (fields[key].added and is_same(value, fields[key].default))
    }
    return Spec(spec.name, written)


def swept(given: Spec, fields: Mapping[str, Field], owner: str) -> list[Spec]:
    """Every combination of the values of a spec, see `Field.values`; the last field varies fastest.
    An unknown field is passed through, and building the plugin refuses it. Raises
    `InvalidInput`."""
    values = {
        name: fields[name].values(value, owner)
        if isinstance(value, list) and name in fields
        else [value]
        for name, value in given.fields.items()
    }
    count = math.prod(map(len, values.values()))
    if count > LARGEST_SWEEP:
        raise InvalidInput(
            f"{owner} is swept over {count:,} settings; sweep over at most {LARGEST_SWEEP:,}"
        )
    combined = itertools.product(*values.values())
    return [Spec(given.name, dict(zip(values, each, strict=True))) for each in combined]


def located(spec: Spec, fields: Mapping[str, Field]) -> Spec:
    """The spec with absolute paths, for another process of this machine."""
    return Spec(spec.name, {key: fields[key].absolute(value) for key, value in spec.fields.items()})


def _initials(text: str) -> str:
    """Of a name of several words, as `lr` for `learning_rate`; empty for one word."""
    words = text.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'badnets'?"` for the `nearest` known name; without one, all known names."""
    known = list(dict.fromkeys(known))
    if (found := nearest(name, known)) is not None:
        return f"; did you mean {found!r}?"
    return f"; choose one of: {', '.join(known)}" if known else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The nearest known name, whatever its case: it has these initials, as learning_rate has those
    of lr, begins with `name`, contains it or has most of its letters. None if none is near."""
    folded = {each: each.casefold() for each in known}
    wanted = name[:LONGEST_GUESSED].casefold()
    close = difflib.get_close_matches(wanted, folded.values(), n=5, cutoff=0.5)
    # One or two letters are in many names by chance.
    word = wanted if len(wanted) > 2 else None
    near = [each for each, text in folded.items() if text in close or (word and word in text)]
    if wanted and wanted not in folded.values():
        near = [each for each, text in folded.items() if _initials(text) == wanted] or near

    def sort_key(each: str) -> tuple[float, ...]:
        text = folded[each]
        if word and text.startswith(word):
            return (0, text != wanted)
        # Of equally near names, prefer a permutation of the letters (cdb means cbd, not dbd), then
        # the one that begins alike.
        permuted = sorted(text) == sorted(wanted)
        likeness = difflib.SequenceMatcher(None, text, wanted).ratio()
        alike = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(text, wanted, strict=False)
        )
        begun = len(list(alike))
        return 1 if word and word in text else 2, text != wanted, not permuted, -likeness, -begun

    return min(near, key=sort_key, default=None)
