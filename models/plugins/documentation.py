"""What the author of a plugin says about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def about_module(factory: Callable[..., Any]) -> str:
    """Of the module of a class or function: method, source, departures. Empty without one."""
    return _text(inspect.getmodule(factory))


def about_fields(factory: Callable[..., Any]) -> str:
    """Of a class or function: its settings, with units. Empty without any."""
    return _text(factory)


def _text(what: object) -> str:
    return inspect.getdoc(what) or ""
