"""Spec strings: the textual form of a configured plugin, such as `blend(alpha=0.1)`.

A spec is read with `ast` into literals and never evaluated. Its canonical form writes every field
out, and serves as cache key and test id; a field that came later is `added`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bdbench.models.plugins.errors import InvalidInput, check

LONGEST = 1_000
LARGEST = 2**63 - 1


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
    """One setting of a plugin: its name, type and default, and whether it was `added`."""

    name: str
    type: Any
    default: Any
    added: bool = False

    def accept(self, value: Any, owner: str) -> Any:
        """`value` as this field's type; an int serves as a float. Raises `InvalidInput`."""
        accepted = self.type
        if typing.get_origin(accepted) in (typing.Union, types.UnionType):
            kinds = typing.get_args(accepted)
        else:
            kinds = (accepted,)
        for kind in kinds:
            plain, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
            if plain is tuple and parts and isinstance(value, list | tuple):
                expected = parts[:1] * len(value) if parts[-1] is ... else parts
                if len(expected) == len(value):
                    pairs = zip(expected, value, strict=True)
                    return tuple(Field(self.name, p, None).accept(v, owner) for p, v in pairs)
            elif plain is float and isinstance(value, int) and not isinstance(value, bool):
                return float(self._bounded(value, owner))
            elif isinstance(plain, type) and isinstance(value, plain):
                if plain is int and isinstance(value, bool):
                    continue
                return self._bounded(value, owner)
        wanted = getattr(accepted, "__name__", str(accepted))
        raise InvalidInput(f"{self.name} of {owner} must be {wanted}, got {value!r}")

    def _bounded(self, value: Any, owner: str) -> Any:
        """No number that the arithmetic behind it could not hold."""
        if isinstance(value, float):
            check(math.isfinite(value), f"{self.name} of {owner} must be finite, got {value!r}")
        if isinstance(value, int):
            fits = abs(value) <= LARGEST
            check(fits, f"{self.name} of {owner} must be below 2**63, got {value!r}")
        return value


def added(default: Any) -> Any:
    """A dataclass field that came after records were made: the canonical spec leaves it out at its
    default, which must do what was done without the field. So these records keep their keys."""
    return dataclasses.field(default=default, metadata={"added": True})


@functools.cache
def fields_of(factory: Callable[..., Any]) -> Mapping[str, Field]:
    """The settings of a class or function: its parameters that have a default, in order. A
    dataclass field that its `repr` leaves out is no setting."""
    hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    hidden, later = set(), set()
    if dataclasses.is_dataclass(factory):
        hidden = {field.name for field in dataclasses.fields(factory) if not field.repr}
        later = {field.name for field in dataclasses.fields(factory) if field.metadata.get("added")}
    found = {
        name: Field(name, hints.get(name, Any), parameter.default, name in later)
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in hidden
    }
    return types.MappingProxyType(found)


def canonical(spec: Spec, fields: Mapping[str, Field]) -> Spec:
    """The one spec of these values, in which fields that were `added` are left out where they have
    their defaults."""
    written = {
        key: value
        for key, value in spec.fields.items()
        if not (fields[key].added and value == fields[key].default)
    }
    return Spec(spec.name, written)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'badnets'?"` for the nearest known name, or the list of all of them."""
    known = list(known)
    near = difflib.get_close_matches(name[:LONGEST], known, n=5, cutoff=0.5)
    # Of equally near names, the one with its letters exchanged: cdb is cbd and not dbd.
    near.sort(key=lambda other: sorted(other) != sorted(name))
    return f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(known) or 'none'}"
