"""What holds inside a block: values, for its thread alone, and how many threads compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def set_in_context(variable: ContextVar[T], value: T) -> Iterator[None]:
    """The variable has this value inside the block, and afterwards what it had before."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def num_threads(threads: int | None) -> Iterator[None]:
    """Computes with so many threads inside the block; None changes nothing. Afterwards also threads
    that are new compute with as many as before."""
    usual = torch.get_num_threads()
    torch.set_num_threads(threads or usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
