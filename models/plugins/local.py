"""Plugins that are passed as objects: classes and functions of a notebook or a script.

No other process can build them, and no version number tells one edit from the next. Their code
does: the methods, the functions that these call, and the values that these read. A value whose text
does not define it, such as a tensor, leaves the code incomplete.
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

from bdbench.models.plugins.installed import is_installed

GENERATED_FILE = "<string>"
"""The file name of the methods that a dataclass generates, and of all code without a source."""
DATACLASS_METHODS = {
    *("__init__", "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__"),
    *("__setattr__", "__delattr__", "__replace__", "__getstate__", "__setstate__"),
}
BY_NAME = ("globals", "eval", "exec", "__import__", "import_module")
"""Functions that read what no name in the code stands for."""
GLOBAL_READS = ("LOAD_GLOBAL", "LOAD_NAME")
"""Bytecode instructions that read a variable of the module, not an attribute of that name."""
PLAIN = (int, float, str, bytes, bool, complex, types.NoneType, PurePath)


@dataclass(frozen=True)
class Code:
    """The code of a local plugin.

    text: its source, and the source of everything that it uses
    whole: whether that is complete; if not, no two calls give the same text
    """

    text: str
    whole: bool


def code_of(factory: Callable[..., Any]) -> Code:
    """The current code of a local class or function."""
    try:
        return Code("\n".join(_Reader().read(factory)), True)
    except Exception:
        # `_NoSource`, or what a reader does not foresee, such as a list that contains itself. Also
        # of one class: a value that it reads may have changed since.
        return Code(f"unknown, {uuid.uuid4().hex}", False)


class _NoSource(Exception):
    """Some of the code has no source, or reads a value whose text does not define it."""


class _Reader:
    """Visits everything that is reachable from a class or function, each once."""

    def __init__(self) -> None:
        self._pending: list[Any] = []
        self._seen: set[int] = set()

    def read(self, factory: Callable[..., Any]) -> Iterator[str]:
        """The source of every part."""
        self._pending.append(factory)
        while self._pending:
            part = self._pending.pop()
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
        self._pending += [base for base in kind.__mro__[1:] if is_user_code(base.__module__)]
        for name, value in vars(kind).items():
            for part in _unwrapped(value):
                if isinstance(part, types.FunctionType):
                    if _is_generated(kind, name, part):
                        continue
                    # Such as a method that a later Python gives to dataclasses.
                    own = part.__module__ == kind.__module__ or is_user_code(part.__module__)
                    yield from self._function(part) if own else [self._value(name, part)]
                elif not _is_internal(name, part):
                    yield self._value(name, part)

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        try:
            # The source of the code object: a wrapper has the name of the function it wraps.
            yield textwrap.dedent(inspect.getsource(function.__code__))
        except (OSError, TypeError):
            raise _NoSource from None
        # The file may have changed since it was loaded.
        digest = hashlib.sha256(_compiled(function.__code__).encode()).hexdigest()
        yield f"# compiled {digest[:16]}"
        if _reads_by_name(function):
            raise _NoSource
        for name, value in sorted(_outer_values(function).items()):
            yield self._value(name, value)
        for name in _imported(function):
            yield self._value(name, _module_of(name))

    def _module(self, module: types.ModuleType) -> Iterator[str]:
        """A file of the user, and the files that it imports."""
        try:
            yield Path(str(module.__file__)).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise _NoSource from None
        for value in list(vars(module).values()):
            named = getattr(value, "__module__", None)
            other = value if isinstance(value, types.ModuleType) else sys.modules.get(str(named))
            if other is not None and is_user_code(other.__name__) and other.__name__ != "__main__":
                self._pending.append(other)

    def _value(self, name: str, value: Any) -> str:
        """A line with a value; code that the value refers to is read later."""
        return f"{name} = {self._text(value)}"

    def _text(self, value: Any) -> str:
        if isinstance(value, re.Pattern):
            return self._text(("pattern", value.pattern, value.flags))  # the repr cuts a long one
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
            if is_user_code(value.__name__):
                self._pending.append(value)
            return f"module {value.__name__}"
        named = isinstance(value, type | types.FunctionType | types.BuiltinFunctionType)
        if named and is_user_code(value.__module__):
            self._pending.append(value)
        if named:
            return f"{value.__module__}.{value.__qualname__}"
        # A function of a library that is not a Python function, such as a ufunc of numpy.
        library = callable(value) and hasattr(value, "__name__")
        if library and not is_user_code(getattr(value, "__module__", None)):
            return f"{getattr(value, '__module__', None)}.{value.__name__}"
        raise _NoSource


def _unwrapped(value: Any) -> list[Any]:
    """The functions behind a property, a static method or another descriptor."""
    if isinstance(value, property):
        return [part for part in (value.fget, value.fset, value.fdel) if part is not None]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, functools.cached_property):
        return [value.func]
    return [value]


def _is_generated(kind: type, name: str, function: types.FunctionType) -> bool:
    """Whether `dataclass` generated a method."""
    generated = function.__code__.co_filename == GENERATED_FILE
    # Python 3.11 wraps the repr that it generates.
    inner = getattr(function, "__wrapped__", function)
    generated = generated or inner.__code__.co_filename == GENERATED_FILE
    return generated and name in DATACLASS_METHODS and dataclasses.is_dataclass(kind)


def _is_internal(name: str, value: Any) -> bool:
    """Whether Python or a library added an attribute to a class."""
    slots = types.MemberDescriptorType | types.GetSetDescriptorType | types.WrapperDescriptorType
    return name.startswith(("__", "_abc_")) or isinstance(value, slots)


def _outer_values(function: types.FunctionType) -> dict[str, Any]:
    """The values of the outer names that a function and its inner functions read, and the defaults
    of its parameters."""
    outside: dict[str, Any] = dict(inspect.getclosurevars(function).nonlocals)
    outside |= {f"default {n}": value for n, value in enumerate(function.__defaults__ or ())}
    outside |= {f"default {n}": value for n, value in (function.__kwdefaults__ or {}).items()}
    read = [step.argval for step in _instructions(function) if step.opname in GLOBAL_READS]
    return outside | {n: function.__globals__[n] for n in read if n in function.__globals__}


def _reads_by_name(function: types.FunctionType) -> bool:
    """Whether a function may read what its code does not name."""
    return any(
        step.argval in (BY_NAME if step.opname in GLOBAL_READS else ("import_module",))
        for step in _instructions(function)
        if isinstance(step.argval, str) and step.opname != "LOAD_CONST"
    )


def _imported(function: types.FunctionType) -> list[str]:
    """The modules that a function imports when it is called."""
    steps = _instructions(function)
    return sorted({step.argval for step in steps if step.opname == "IMPORT_NAME"})


def _compiled(code: types.CodeType) -> str:
    """The bytecode of a function as text, independent of its file and line."""
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
        raise _NoSource from None


def _instructions(function: types.FunctionType) -> Iterator[dis.Instruction]:
    """The bytecode instructions of a function and of its inner functions."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        yield from dis.get_instructions(code)


def is_user_code(module: str | None, file: Path | None = None) -> bool:
    """Whether a module belongs neither to bdbench nor to Python nor to an installed package, so
    that it may change at any time.

    file: its file, for a module whose import has not finished
    """
    if module is None:
        return False
    if module == "__main__":
        return True
    if module.partition(".")[0] in {"bdbench", "builtins"} | sys.stdlib_module_names:
        return False
    path = file or getattr(sys.modules.get(module), "__file__", None)
    return path is not None and not is_installed(module, Path(path))
