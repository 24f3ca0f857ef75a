"""Resumable loops: interrupted work continues from its last checkpoint.

A `CheckpointStore` is installed around a piece of work, such as the `fit` of a defense. `resumable`
is a `for` over its epochs or rounds: after each one, it offers the store everything that the round
changed. A second attempt at the same work meets its loops in the same order. A finished loop is
restored at once, an interrupted one resumes, and one without a checkpoint runs again. Code between
two loops runs again too, so it must be deterministic and should be cheap.

Work may split into parallel branches (`parallel.py`), each with loops of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy
import torch
from torch import Tensor

from bdbench.models.rng import GENERATORS
from bdbench.models.scope import set_in_context


@runtime_checkable
class Stateful(Protocol):
    """Such as a module, an optimizer or a schedule of learning rates."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


Part = Stateful | Tensor | torch.Generator | numpy.random.Generator | dict[str, Any]
State = Mapping[str, Part]


@dataclass(frozen=True)
class Checkpoint:
    """What is left of a loop.

    rounds: how many of its rounds are done
    finished: whether none is left to do
    state: see `snapshot`
    """

    rounds: int
    finished: bool
    state: dict[str, Any]


class CheckpointStore:
    """Keeps nothing; a subclass overrides both methods, which several threads may call. Loops count
    from 0: "2.5.0" is the first loop of the sixth branch, where the work parts after two loops."""

    def find(self, loop: str) -> Checkpoint | None:
        """What is left of a loop from an earlier attempt."""
        return None

    def offer(self, loop: str, rounds: int, finished: bool, state: State) -> None:
        """A loop has come so far. To keep this costs time, so a store need not."""


@dataclass
class _Work:
    """A store, and how many loops and partings it has met.

    branch: what the names of its loops begin with
    round: of the loop that the work is inside of, from 0, and of how many; None outside
    """

    store: CheckpointStore
    branch: str = ""
    met: int = 0
    round: tuple[int, int] | None = None

    def next(self) -> str:
        self.met += 1
        return f"{self.branch}{self.met - 1}"


_current: ContextVar[_Work | None] = ContextVar("work", default=None)


def kept_by(store: CheckpointStore) -> AbstractContextManager[None]:
    """Installs `store` inside the block, whose loops are counted anew."""
    return set_in_context(_current, _Work(store))


def branched(count: int) -> list[AbstractContextManager[None]]:
    """Blocks for as many branches of the current work, each to be entered in its own context."""
    work = _current.get()
    if work is None or work.round is not None:
        return [kept_by(CheckpointStore()) for _ in range(count)]
    parting = work.next()
    branches = (_Work(work.store, f"{parting}.{n}.") for n in range(count))
    return [set_in_context(_current, branch) for branch in branches]


def round_around() -> tuple[int, int]:
    """Which round of a kept loop the work is in, from 0, of how many: a loop inside of it is one
    part of as many. (0, 1) outside of all."""
    work = _current.get()
    return (0, 1) if work is None or work.round is None else work.round


def resumable(count: int, state: State, until: Callable[[], bool] = lambda: False) -> Iterator[int]:
    """The numbers of the rounds that are left of `count`, from 0, until `until` says after one that
    it was the last.

    state: by name, all that a round changes and that is read after it: modules, optimizers,
        tensors, generators, and dicts of such values as JSON or tensors. It is changed in place.

    The global generators are kept with it. A loop inside of another is not kept by itself: the
    state of the outer one must have it all.
    """
    # A slash, so that it differs from a caller's own names.
    state = {**state, "global/generators": GENERATORS}
    work = _current.get()
    if work is None or work.round is not None:
        for done in range(count):
            yield done
            if until():
                return
        return
    loop = work.next()
    kept = work.store.find(loop)
    first = 0
    if kept is not None:
        restore(state, kept.state)
        first = count if kept.finished else kept.rounds
    try:
        for done in range(first, count):
            work.round = done, count
            yield done
            # Asked in any case, for it may look at what the last round did.
            finished = until() or done + 1 == count
            work.store.offer(loop, done + 1, finished, state)
            if finished:
                return
    finally:
        work.round = None


def snapshot(state: State) -> dict[str, Any]:
    """What `restore` needs: JSON values and tensors in dicts and lists. The tensors are those in
    use, not copies."""
    return {name: _captured(part) for name, part in state.items()}


@torch.no_grad()
def restore(state: State, saved: Mapping[str, Any]) -> None:
    """Put every part of `state` back as it was captured. Raises KeyError for another state."""
    for name, part in state.items():
        value = saved[name]
        if isinstance(part, Tensor):
            part.copy_(value)
        elif isinstance(part, torch.Generator):
            part.set_state(value)
        elif isinstance(part, numpy.random.Generator):
            part.bit_generator.state = value
        elif isinstance(part, dict):
            part.clear()
            part.update(value)
        else:
            part.load_state_dict(value)


def _captured(part: Part) -> Any:
    if isinstance(part, Tensor | dict):
        return part
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, numpy.random.Generator):
        return part.bit_generator.state
    return part.state_dict()
