"""Settings for the duration of a block: context variables, and the number of compute threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def set_in_context(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Set a context variable inside the block and reset it afterwards."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def num_threads(threads: int | None) -> Iterator[None]:
    """Compute with so many threads inside the block; None keeps the current number. Afterwards the
    previous number holds again, for new threads too."""
    usual = torch.get_num_threads()
    torch.set_num_threads(threads or usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
