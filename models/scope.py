"""Values that hold inside a block and for its thread alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def bound(variable: ContextVar[T], value: T) -> Iterator[None]:
    """The variable has this value inside the block, and afterwards what it had before."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
