"""Plugins that are passed as objects: classes and functions of a notebook or a script.

No other process can make them, and no version tells one edit from the next. Their code does: the
methods, what these call, and the values that they read.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
import types
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

MADE_BY_PYTHON = "<string>"
"""The file name of methods that a dataclass writes, and of all code without a source."""
PLAIN = (int, float, str, bytes, bool, complex, tuple, list, dict, set, frozenset, types.NoneType)

_unknown: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class Code:
    """What a local plugin does.

    text: its source, with that of what it uses
    whole: whether that is all; if not, the text is never the same for two classes
    """

    text: str
    whole: bool


def code_of(factory: Callable[..., Any]) -> Code:
    """The code of a local class or function, as it is now."""
    try:
        return Code("\n".join(_walk(factory)), True)
    except _NotKnown:
        return Code(_unknown.setdefault(factory, f"unknown, {uuid.uuid4().hex}"), False)


class _NotKnown(Exception):
    """Some of the code has no source, or reads a value that has no text."""


def _walk(factory: Callable[..., Any]) -> Iterator[str]:
    """The source of everything that is reached, each once."""
    left: list[Any] = [factory]
    seen: set[int] = set()
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if inspect.isclass(part):
            yield from _class(part)
            left += [base for base in part.__mro__[1:] if _is_the_users(base.__module__)]
            functions = list(_methods(part))
        else:
            functions = [part]
        for function in functions:
            yield _source(function)
            for name, value in sorted(_used(function).items()):
                if isinstance(value, PLAIN):
                    yield f"{name} = {value!r}"
                elif isinstance(value, types.ModuleType):
                    yield _module(value)
                elif _is_the_users(getattr(value, "__module__", "__main__")):
                    if not isinstance(value, type | types.FunctionType):
                        raise _NotKnown
                    left.append(value)


def _class(kind: type) -> Iterator[str]:
    """Name, and what is no method: defaults and class variables."""
    yield f"class {kind.__qualname__}"
    for name, value in vars(kind).items():
        if not name.startswith("__") and isinstance(value, PLAIN):
            yield f"{name} = {value!r}"


def _methods(kind: type) -> Iterator[types.FunctionType]:
    for value in vars(kind).values():
        if isinstance(value, property):
            found: list[Any] = [value.fget, value.fset]
        else:
            found = [inspect.unwrap(getattr(value, "__func__", value))]
        for function in found:
            written = isinstance(function, types.FunctionType)
            if written and function.__code__.co_filename != MADE_BY_PYTHON:
                yield function


def _source(function: types.FunctionType) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise _NotKnown from None


def _used(function: types.FunctionType) -> dict[str, Any]:
    """What the names in a function, and in functions inside of it, stand for outside."""
    outside = dict(inspect.getclosurevars(function).nonlocals)
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        for name in code.co_names:
            if name in function.__globals__:
                outside[name] = function.__globals__[name]
    return outside


def _module(module: types.ModuleType) -> str:
    """A library by name; a module of the user's with its content."""
    line = f"import {module.__name__}"
    if not _is_the_users(module.__name__):
        return line
    try:
        return f"{line}\n{Path(str(module.__file__)).read_text(encoding='utf-8')}"
    except (OSError, UnicodeDecodeError):
        raise _NotKnown from None


def _is_the_users(module: str | None) -> bool:
    """Whether a module is neither ours nor Python's nor installed, and may change at any time."""
    if module is None:
        return False
    if module == "__main__":
        return True
    if module.partition(".")[0] in {"bdbench", "builtins"} | sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"} & {*Path(file).parts}
