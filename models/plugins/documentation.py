"""The docstrings of a plugin."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any


def about_module(factory: Callable[..., Any]) -> str:
    """The docstring of the module that defines a class or function: method, source, departures from
    the paper. Empty if it has none."""
    return _text(inspect.getmodule(factory))


def about_fields(factory: Callable[..., Any]) -> str:
    """The docstring of a class or function: its settings, with units. Empty if it has none, which
    `dataclass` replaces by the signature."""
    text, name = _text(factory), getattr(factory, "__name__", "")
    generated = dataclasses.is_dataclass(factory) and text.startswith(f"{name}(")
    return "" if generated else text


def _text(documented: Any) -> str:
    # With -OO, Python drops docstrings.
    return _in_file(documented) if sys.flags.optimize > 1 else inspect.getdoc(documented) or ""


def _in_file(documented: Any) -> str:
    """The docstring in the source file of a module, class or function."""
    try:
        tree: Any = ast.parse(textwrap.dedent(inspect.getsource(documented)))
    except (OSError, TypeError, SyntaxError):
        return ""
    return ast.get_docstring(tree if inspect.ismodule(documented) else tree.body[0]) or ""
