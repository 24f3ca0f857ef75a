"""Spec strings: the textual form of a configured plugin, such as `blend(alpha=0.1)`.

A spec is read with `ast` into literals and never evaluated. Its canonical form writes every field
out, and serves as cache key and test id; a field that came later is `added`.
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
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from bdbench.models.plugins import literals
from bdbench.models.plugins.errors import InvalidInput

LONGEST = 1_000
MOST_SWEPT = 10_000
"""Specs that one sweep may stand for."""
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclasses.dataclass(frozen=True, eq=False)
class Spec:
    """A configured plugin in words; `str` is the inverse of `of`.

    name: of the plugin
    fields: literals by name, in the order in which they are written
    """

    name: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Spec:
        """Read `name(field=literal, ...)`. Raises `InvalidInput` for any other text."""
        name, fields = _parse(text)
        return cls(name, dict(fields))

    def with_(self, **fields: Any) -> Spec:
        """The same with these fields."""
        return Spec(self.name, {**self.fields, **fields})

    @property
    def is_none(self) -> bool:
        """Whether it means no attack or no defense, whatever its fields."""
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


@functools.lru_cache(maxsize=2**14)
def _parse(text: str) -> tuple[str, Mapping[str, Any]]:
    """Name and fields. Records of thousands of cells have few specs, each many times."""
    if len(text) > LONGEST:
        raise InvalidInput(f"a spec of {len(text):,} characters is too long, at most {LONGEST:,}")
    shape = f"expected name or name(field=value, ...), got {text!r}"
    try:
        with warnings.catch_warnings():
            # What Python only warns of, such as 1if, is no literal either.
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
    """One setting of a plugin: its name, type and default, as a literal, and whether it was
    `added` or is a `place`."""

    name: str
    type: Any
    default: Any
    added: bool = False
    place: bool = False

    def accept(self, value: Any, owner: str) -> Any:
        """`value` as a literal of this field's type; an int serves as a float. Raises
        `InvalidInput`."""
        return self._accept(value, f"{self.name} of {owner}")

    def accept_default(self, owner: str) -> Any:
        """The same for the default, which may have another type than the field."""
        hint = f"; write {self.shown} | None for its type" if self.default is None else ""
        return self._accept(self.default, f"the default of {self.name} of {owner}", hint)

    def fits(self, value: Any) -> bool:
        """Whether `accept` takes it."""
        try:
            literals.written(self.type, value)
        except literals.Misfit:
            return False
        return True

    def values(self, value: Any, owner: str) -> list[Any]:
        """What a setting stands for, as literals: each value of a list that is no value of this
        field itself, which sweeps it; else the one value. Raises `InvalidInput`, for a value that
        is given twice, too."""
        if not isinstance(value, list) or self.fits(value) or not any(map(self.fits, value)):
            return [self.accept(value, owner)]
        found = [self.accept(each, owner) for each in value]
        for each, count in Counter(map(repr, found)).items():
            if count > 1:
                raise InvalidInput(f"{self.name} of {owner} is given {each} twice in a sweep")
        return found

    def made(self, literal: Any) -> Any:
        """What the plugin is given for an accepted value, such as the member of an Enum."""
        return literals.made(self.type, literal)

    def without_way(self, literal: Any) -> Any:
        """The value as a canonical spec has it: of a `place` its own name, not the way to it."""
        return os.path.basename(_absolute(literal)) if self.place and literal else literal

    def with_way(self, literal: Any) -> Any:
        """The value as any process on this machine understands it."""
        return _absolute(literal) if self.place and literal else literal

    @property
    def shown(self) -> str:
        """The type, as it is written in Python."""
        return literals.text(self.type)

    def _accept(self, value: Any, what: str, hint: str = "") -> Any:
        part = literals.unwritable(self.type)
        if isinstance(part, literals.Unknown):
            raise InvalidInput(
                f"{what} has the type {self.shown}, which cannot be read: {part.why}; import what "
                "it names at the top of the file, outside of `if TYPE_CHECKING`"
            )
        if part is not None:
            inner = "" if part is self.type else f"; {literals.text(part)}"
            raise InvalidInput(
                f"{what} has the type {self.shown}{inner}, which no spec can write; "
                f"use {literals.OFFERED}"
            )
        try:
            return literals.written(self.type, value)
        except literals.Misfit as misfit:
            told = hint or self._sweeping(value)
            wanted = str(misfit) or f"{self.shown}, got {_shown(value)}{told}"
        known = literals.choices(self.type)
        if known and not hint:
            near = difflib.get_close_matches(str(value)[:LONGEST], map(str, known), 1, 0.5)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            guess = self._sweeping(value) or guess
            wanted = f"one of {', '.join(map(repr, known))}, got {_shown(value)}{guess}"
        raise InvalidInput(f"{what} must be {wanted}")

    def _sweeping(self, value: Any) -> str:
        """What to do about a list where there can be no sweep, or one of nothing."""
        if not isinstance(value, list) or not all(map(self.fits, value)):
            return ""
        if not value:
            return "; a sweep needs at least one value"
        return "; a list is a sweep, which a run of a suite takes: give one value here"


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # it may be an object of any class
        return f"a {type(value).__name__}"


def added(default: Any) -> Any:
    """A dataclass field that came after records were made: the canonical spec leaves it out at its
    default, which must do what was done without the field. So these records keep their keys."""
    return dataclasses.field(default=default, metadata={"added": True})


def place(default: str = "") -> Any:
    """A dataclass field that says where files lie. The canonical spec has the last part of the path
    alone: what was moved is the same, and what lies there is known by its `content`."""
    return dataclasses.field(default=default, metadata={"place": True})


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


@functools.cache
def fields_of(factory: Callable[..., Any]) -> Mapping[str, Field]:
    """The settings of a class or function: its parameters that have a default, in order. A
    dataclass field that its `repr` leaves out is no setting."""
    kinds = literals.types_of(factory)
    declared = {}
    if dataclasses.is_dataclass(factory):
        declared = {field.name: field for field in dataclasses.fields(factory)}
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        field, default = declared.get(name), parameter.default
        if default is parameter.empty or (field is not None and not field.repr):
            continue
        if field is not None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        kind = kinds.get(name, Any)
        with contextlib.suppress(literals.Misfit):
            default = literals.written(kind, default)
        marks = {} if field is None else field.metadata
        added, place = bool(marks.get("added")), bool(marks.get("place"))
        found[name] = Field(name, kind, default, added, place)
    return MappingProxyType(found)


def required(factory: Callable[..., Any], given: int = 0) -> list[str]:
    """The parameters of a class or function that have no default, but for the first ones, which
    are `given` by whoever calls it."""
    parameters = list(inspect.signature(factory).parameters.values())[given:]
    return [p.name for p in parameters if p.default is p.empty and p.kind not in VARIABLE]


def canonical(spec: Spec, fields: Mapping[str, Field]) -> Spec:
    """The one spec of these values, in which fields that were `added` are left out where they have
    their defaults, and a `place` has its name alone."""
    written = {
        key: fields[key].without_way(value)
        for key, value in spec.fields.items()
        if not (fields[key].added and value == fields[key].default)
    }
    return Spec(spec.name, written)


def swept(given: Spec, fields: Mapping[str, Field], owner: str) -> list[Spec]:
    """Every combination of the values of its fields, see `Field.values`; the last field changes
    first. What is no field stays, for whoever makes the plugin. Raises `InvalidInput`."""
    values = {
        name: fields[name].values(value, owner)
        if isinstance(value, list) and name in fields
        else [value]
        for name, value in given.fields.items()
    }
    count = math.prod(map(len, values.values()))
    if count > MOST_SWEPT:
        raise InvalidInput(f"{owner} is swept over {count:,} settings, at most {MOST_SWEPT:,}")
    combined = itertools.product(*values.values())
    return [Spec(given.name, dict(zip(values, each, strict=True))) for each in combined]


def located(spec: Spec, fields: Mapping[str, Field]) -> Spec:
    """The same values for another process of this machine: a `place` has the whole way to it."""
    return Spec(spec.name, {key: fields[key].with_way(value) for key, value in spec.fields.items()})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'badnets'?"` for the nearest known name, or the list of all of them."""
    known = list(known)
    near = difflib.get_close_matches(name[:LONGEST], known, n=5, cutoff=0.5)
    # Of equally near names, the one with its letters exchanged: cdb is cbd and not dbd.
    near.sort(key=lambda other: sorted(other) != sorted(name))
    return f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(known) or 'none'}"
