"""Types of settings: which values a type accepts, and how a spec writes them.

A spec holds literals. The member of an Enum is written as its name, a sequence as a list if the
type is a list and as a tuple otherwise, and any other value as it is.
"""

from __future__ import annotations

import cmath
import collections.abc
import dataclasses
import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST = 2**63 - 1
PLAIN: tuple[Any, ...] = (bool, int, float, complex, str, bytes, types.NoneType)
LISTS = (list, collections.abc.MutableSequence)
TUPLES = (tuple, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
UNIONS = (typing.Union, types.UnionType)
ANY = (Any, object)
SUPPORTED = (
    "int, float, bool, str, bytes, None, Literal, an Enum, or a list, tuple, dict or union of them"
)
WELL_KNOWN = {**vars(typing), **vars(collections.abc)}
"""Names of `typing` and `collections.abc` for annotations, even if a file imports them for type
checkers only."""


@dataclass(frozen=True)
class Unresolved:
    """An annotation with a name that does not resolve."""

    text: str
    why: str


class Misfit(Exception):
    """A value that its type does not accept. The message, if any, says what a number must be."""


def types_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """The types of the parameters of a class or function, by name; `Unresolved` if an annotation
    does not resolve."""
    found = {}
    for owner in _annotated(factory):
        module = vars(sys.modules.get(owner.__module__, types))
        names = {**WELL_KNOWN, **module, **getattr(owner, "__globals__", {})}
        for name, annotation in inspect.get_annotations(owner).items():
            found[name] = _resolve(annotation, names)
    return found


def _annotated(factory: Callable[..., Any]) -> list[Any]:
    """The objects that carry the annotations of the parameters. A dataclass field resolves in the
    module of the class that declares it, not in that of the generated `__init__`."""
    if not inspect.isclass(factory):
        return [factory]
    if dataclasses.is_dataclass(factory) and factory.__init__.__code__.co_filename == "<string>":
        return list(reversed(factory.__mro__))
    return [factory.__init__]


def _resolve(annotation: Any, names: dict[str, Any]) -> Any:
    # A class, because Final is allowed there.
    holder = type("Holder", (), {"__annotations__": {"it": annotation}})
    try:
        return typing.get_type_hints(holder, names, {})["it"]
    except Exception as error:
        return Unresolved(str(annotation), str(error))


def text(kind: Any) -> str:
    """A type as Python writes it."""
    if isinstance(kind, Unresolved):
        return kind.text
    if isinstance(kind, type) and typing.get_origin(kind) is None:
        return "None" if kind is types.NoneType else kind.__name__
    if kind is Ellipsis:
        return "..."
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Final:
        return text(parts[0])
    if origin in UNIONS:
        return " | ".join(map(text, parts))
    inner = map(repr if origin is typing.Literal else text, parts)
    name = getattr(kind, "__name__", None) or str(kind)
    return f"{name}[{', '.join(inner)}]" if parts else name


def unsupported(kind: Any) -> Any:
    """The part of a type that no spec can write, such as a Tensor; None if a spec can write all."""
    kind = _plain(kind)
    if kind in ANY or kind in PLAIN or kind is Ellipsis or _is_enum(kind):
        return None
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal or kind in (*LISTS, *TUPLES, *MAPPINGS):
        return None
    if origin in (*UNIONS, *LISTS, *TUPLES, *MAPPINGS):
        return next((part for part in map(unsupported, parts) if part is not None), None)
    return kind


def ambiguous(kind: Any) -> enum.Enum | None:
    """A member of an Enum that a type accepts and that does not come back from its literal, as in
    `str | Mode`; None without one."""
    kind = _plain(kind)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        members = (member for part in map(_plain, parts) for member in _members(part))
        lost = (m for m in members if from_literal(kind, to_literal(kind, m)) is not m)
        if (found := next(lost, None)) is not None:
            return found
    inner = () if origin is typing.Literal else parts
    return next((found for part in inner if (found := ambiguous(part)) is not None), None)


def _members(kind: Any) -> list[enum.Enum]:
    """The members of an Enum that a type lists."""
    if _is_enum(kind):
        return list(kind)
    literal = typing.get_origin(kind) is typing.Literal
    choices = typing.get_args(kind) if literal else ()
    return [choice for choice in choices if isinstance(choice, enum.Enum)]


def choices(kind: Any) -> list[Any]:
    """The literals that a type consists of; empty for a type with arbitrary values."""
    kind = _plain(kind)
    if _is_enum(kind):
        return list(kind.__members__)
    if typing.get_origin(kind) is typing.Literal:
        return [_literal_of(choice) for choice in typing.get_args(kind)]
    if kind is types.NoneType:
        return [None]
    if typing.get_origin(kind) in UNIONS:
        found = [choices(part) for part in typing.get_args(kind)]
        return [choice for part in found for choice in part] if all(found) else []
    return []


def to_literal(kind: Any, value: Any) -> Any:
    """A value of this type as a literal. An int is accepted for a float, and a list for a tuple.
    Raises `Misfit`."""
    kind = _plain(kind)
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind in ANY:
        return _literal(value)
    if origin in UNIONS:
        return _first(parts, value)
    if origin is typing.Literal:
        return _chosen(parts, value)
    if _is_enum(kind):
        return _chosen(tuple(kind.__members__.values()), _member(kind, value))
    if origin in MAPPINGS and isinstance(value, dict):
        keys, values = parts or (Any, Any)
        return {to_literal(keys, key): to_literal(values, each) for key, each in value.items()}
    if origin in LISTS and isinstance(value, list | tuple):
        return [to_literal((parts or (Any,))[0], each) for each in value]
    if origin in TUPLES and isinstance(value, list | tuple):
        kinds = _element_types(origin, parts, len(value))
        return tuple(to_literal(part, each) for part, each in zip(kinds, value, strict=True))
    if kind is float and type(value) is int:
        return float(_bounded(value))
    # A bool is an int to Python.
    fits = isinstance(kind, type) and isinstance(value, kind)
    if kind not in PLAIN or not fits or (isinstance(value, bool) and kind is not bool):
        raise Misfit
    return _literal(value)


def from_literal(kind: Any, literal: Any) -> Any:
    """The inverse of `to_literal`: the value that a class of this type expects."""
    kind = _plain(kind)
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in UNIONS:
        return from_literal(next(part for part in parts if _fits(part, literal)), literal)
    if origin is typing.Literal:
        return next(choice for choice in parts if _same(_literal_of(choice), literal))
    if _is_enum(kind):
        return kind[literal]
    if isinstance(literal, dict) and parts:
        key_type, value_type = parts
        return {
            from_literal(key_type, key): from_literal(value_type, value)
            for key, value in literal.items()
        }
    if isinstance(literal, list):
        return [from_literal((parts or (Any,))[0], each) for each in literal]
    if isinstance(literal, tuple):
        kinds = _element_types(origin, parts, len(literal))
        return tuple(from_literal(part, each) for part, each in zip(kinds, literal, strict=True))
    return literal


def _plain(kind: Any) -> Any:
    """The type behind a NewType, a type alias or Final."""
    while True:
        inner = getattr(kind, "__supertype__", None) or getattr(kind, "__value__", None)
        if kind is typing.Final:
            return Any
        if typing.get_origin(kind) is typing.Final:
            inner = typing.get_args(kind)[0]
        if inner is None or isinstance(kind, type):
            return kind
        kind = inner


def _element_types(origin: Any, parts: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The types of `count` elements. Raises `Misfit` if the type has another number of them."""
    if not parts:
        return (Any,) * count
    if origin is not tuple or parts[-1] is ...:
        return parts[:1] * count
    expected = () if parts == ((),) else parts
    if len(expected) != count:
        raise Misfit
    return expected


def _first(kinds: tuple[Any, ...], value: Any) -> Any:
    reason = ""
    for kind in kinds:
        try:
            return to_literal(kind, value)
        except Misfit as error:
            reason = reason or str(error)
    raise Misfit(reason)


def _fits(kind: Any, literal: Any) -> bool:
    try:
        return _same(to_literal(kind, literal), literal)
    except Misfit:
        return False


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one type: 1 is not True."""
    return type(one) is type(other) and bool(one == other)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _literal_of(choice: Any) -> Any:
    return choice.name if isinstance(choice, enum.Enum) else choice


def _member(kind: type[enum.Enum], value: Any) -> Any:
    """The member of an Enum with this name or value; an unknown value as it is."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    return next((member for member in kind if _same(member.value, value)), value)


def _chosen(known: tuple[Any, ...], value: Any) -> Any:
    for choice in known:
        if _same(choice, value) or _same(_literal_of(choice), value):
            return _literal_of(choice)
    raise Misfit


def _literal(value: Any) -> Any:
    """A value of any type as a literal that Python reads back. Raises `Misfit` if it cannot."""
    if isinstance(value, enum.Enum) or not isinstance(value, (*PLAIN, list, tuple, dict)):
        raise Misfit
    if isinstance(value, list):
        return [_literal(each) for each in value]
    if isinstance(value, tuple):
        return tuple(_literal(each) for each in value)
    if isinstance(value, dict):
        return {_literal(key): _literal(each) for key, each in value.items()}
    kind = next(kind for kind in PLAIN if isinstance(value, kind))
    # A subclass, such as numpy.float64, becomes a plain number.
    return _bounded(value if type(value) is kind else kind(value))


def _bounded(value: Any) -> Any:
    """`value`. Raises `Misfit` for a number that is not finite or does not fit 64 bits."""
    if isinstance(value, float | complex) and not cmath.isfinite(value):
        raise Misfit(f"finite, got {value!r}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise Misfit(f"below 2**63, got {value!r}")
    return value
