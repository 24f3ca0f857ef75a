"""Plugins that are passed as objects: classes and functions of a notebook or a script.

No other process can make them, and no version tells one edit from the next. Their code does: the
methods, what these call, and the values that they read. What has no text that says all about it,
such as a tensor, makes the code not whole.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import importlib
import inspect
import re
import sys
import textwrap
import types
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from weakref import WeakKeyDictionary

MADE_BY_PYTHON = "<string>"
"""The file name of methods that a dataclass writes, and of all code without a source."""
OF_DATACLASSES = {
    *("__init__", "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__"),
    *("__setattr__", "__delattr__", "__replace__", "__getstate__", "__setstate__"),
}
READING = ("LOAD_GLOBAL", "LOAD_NAME")
"""Steps of Python that read a variable of the module, and no attribute of the same name."""
PLAIN = (int, float, str, bytes, bool, complex, types.NoneType, PurePath, re.Pattern)

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
        return Code("\n".join(_Reader().read(factory)), True)
    except _NotKnown:
        return Code(_unknown.setdefault(factory, f"unknown, {uuid.uuid4().hex}"), False)


class _NotKnown(Exception):
    """Some of the code has no source, or reads a value that has no text."""


class _Reader:
    """Goes through everything that is reached, each once."""

    def __init__(self) -> None:
        self._left: list[Any] = []
        self._seen: set[int] = set()

    def read(self, factory: Callable[..., Any]) -> Iterator[str]:
        """The source of all parts."""
        self._left.append(factory)
        while self._left:
            part = self._left.pop()
            if id(part) in self._seen:
                continue
            self._seen.add(id(part))
            if isinstance(part, types.ModuleType):
                yield from self._module(part)
            elif inspect.isclass(part):
                yield from self._class(part)
            else:
                yield from self._function(part)

    def _class(self, kind: type) -> Iterator[str]:
        """Name, class variables and defaults, and methods."""
        yield f"class {kind.__qualname__}"
        self._left += [base for base in kind.__mro__[1:] if is_the_users(base.__module__)]
        for name, value in vars(kind).items():
            for part in _unwrapped(value):
                if isinstance(part, types.FunctionType):
                    if not _is_written_by_dataclass(kind, name, part):
                        yield from self._function(part)
                elif not _is_machinery(name, part):
                    yield self._value(name, part)

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        try:
            # Of the code, as a wrapper passes for what it wraps.
            yield textwrap.dedent(inspect.getsource(function.__code__))
        except (OSError, TypeError):
            raise _NotKnown from None
        # The file may have changed since it was loaded.
        digest = hashlib.sha256(_compiled(function.__code__).encode()).hexdigest()
        yield f"# compiled {digest[:16]}"
        for name, value in sorted(_used(function).items()):
            yield self._value(name, value)
        for name in _imported(function):
            yield self._value(name, _module_of(name))

    def _module(self, module: types.ModuleType) -> Iterator[str]:
        """A file of the user's, and the files that it imports."""
        try:
            yield Path(str(module.__file__)).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise _NotKnown from None
        for value in list(vars(module).values()):
            named = getattr(value, "__module__", None)
            other = value if isinstance(value, types.ModuleType) else sys.modules.get(str(named))
            if other is not None and is_the_users(other.__name__) and other.__name__ != "__main__":
                self._left.append(other)

    def _value(self, name: str, value: Any) -> str:
        """A line about a value; code that it leads to is read later."""
        return f"{name} = {self._text(value)}"

    def _text(self, value: Any) -> str:
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, tuple | list | set | frozenset):
            parts = [self._text(part) for part in value]
            ordered = parts if isinstance(value, tuple | list) else sorted(parts)
            return f"{type(value).__name__}({', '.join(ordered)})"
        if isinstance(value, dict):
            return str({self._text(key): self._text(part) for key, part in value.items()})
        if isinstance(value, functools.partial | functools.partialmethod):
            return self._text((value.func, value.args, value.keywords))
        if isinstance(value, types.ModuleType):
            if is_the_users(value.__name__):
                self._left.append(value)
            return f"module {value.__name__}"
        named = isinstance(value, type | types.FunctionType | types.BuiltinFunctionType)
        if named and is_the_users(value.__module__):
            self._left.append(value)
        if named:
            return f"{value.__module__}.{value.__qualname__}"
        # A function of a library, such as one of numpy, which is made in C or by a class.
        library = callable(value) and hasattr(value, "__name__")
        if library and not is_the_users(getattr(value, "__module__", None)):
            return f"{getattr(value, '__module__', None)}.{value.__name__}"
        raise _NotKnown


def _unwrapped(value: Any) -> list[Any]:
    """The functions in a method, whatever it is."""
    if isinstance(value, property):
        return [part for part in (value.fget, value.fset, value.fdel) if part is not None]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, functools.cached_property):
        return [value.func]
    return [value]


def _is_written_by_dataclass(kind: type, name: str, function: types.FunctionType) -> bool:
    made = function.__code__.co_filename == MADE_BY_PYTHON
    # Python 3.11 wraps the repr that it makes.
    inner = getattr(function, "__wrapped__", function)
    made = made or inner.__code__.co_filename == MADE_BY_PYTHON
    return made and name in OF_DATACLASSES and dataclasses.is_dataclass(kind)


def _is_machinery(name: str, value: Any) -> bool:
    """What Python or a library puts into a class, beside its own content."""
    slots = types.MemberDescriptorType | types.GetSetDescriptorType | types.WrapperDescriptorType
    return name.startswith(("__", "_abc_")) or isinstance(value, slots)


def _used(function: types.FunctionType) -> dict[str, Any]:
    """What the names in a function, and in functions inside of it, stand for outside; and the
    values of parameters that are left out."""
    outside: dict[str, Any] = dict(inspect.getclosurevars(function).nonlocals)
    outside |= {f"default {n}": value for n, value in enumerate(function.__defaults__ or ())}
    outside |= {f"default {n}": value for n, value in (function.__kwdefaults__ or {}).items()}
    read = [step.argval for step in _steps(function) if step.opname in READING]
    return outside | {n: function.__globals__[n] for n in read if n in function.__globals__}


def _imported(function: types.FunctionType) -> list[str]:
    """The modules that a function imports when it is called."""
    return sorted({step.argval for step in _steps(function) if step.opname == "IMPORT_NAME"})


def _compiled(code: types.CodeType) -> str:
    """What a function does when it is called, wherever it stands."""
    constants = []
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            constants.append(_compiled(value))
        elif isinstance(value, frozenset):
            constants.append(str(sorted(map(repr, value))))
        else:
            constants.append(repr(value))
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _module_of(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except Exception:
        raise _NotKnown from None


def _steps(function: types.FunctionType) -> Iterator[dis.Instruction]:
    """Those of a function, and of functions inside of it."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        yield from dis.get_instructions(code)


def is_the_users(module: str | None, file: Path | None = None) -> bool:
    """Whether a module is neither ours nor Python's nor installed, and may change at any time.

    file: where it lies, for a module that was not imported whole
    """
    if module is None:
        return False
    if module == "__main__":
        return True
    if module.partition(".")[0] in {"bdbench", "builtins"} | sys.stdlib_module_names:
        return False
    place = file or getattr(sys.modules.get(module), "__file__", None)
    return place is not None and not {"site-packages", "dist-packages"} & {*Path(place).parts}
