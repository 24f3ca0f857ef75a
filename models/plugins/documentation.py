"""The docstrings of a plugin."""

from __future__ import annotations

import dataclasses
import inspect
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


def _text(documented: object) -> str:
    return inspect.getdoc(documented) or ""
