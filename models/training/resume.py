"""Resumable loops: an interrupted computation resumes from its last checkpoint.

A `CheckpointStore` is installed around a computation, such as the `fit` of a defense. `resumable`
iterates over its epochs or rounds; after each one, it offers everything that the round changed to
the store. A second attempt runs the same loops in the same order. A finished loop is restored at
once, an interrupted one resumes, and one without a checkpoint runs again. Code between two loops
runs again too, so it must be deterministic and should be cheap.

A computation may split into parallel branches (`parallel.py`), each with its own loops.
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
    """An object with a state dict, such as a module, an optimizer or a learning-rate schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


Part = Stateful | Tensor | torch.Generator | numpy.random.Generator | dict[str, Any]
State = Mapping[str, Part]


@dataclass(frozen=True)
class Checkpoint:
    """The stored state of a loop.

    rounds: the number of rounds that are done
    finished: whether the loop has ended
    state: see `snapshot`
    """

    rounds: int
    finished: bool
    state: dict[str, Any]


class CheckpointStore:
    """Stores nothing; a subclass overrides both methods, which several threads may call. Loops are
    numbered from 0: "2.5.0" is the first loop of the sixth branch, if the computation splits after
    two loops."""

    def find(self, loop: str) -> Checkpoint | None:
        """The checkpoint of a loop from an earlier attempt."""
        return None

    def offer(self, loop: str, rounds: int, finished: bool, state: State) -> None:
        """Called after every round. Writing a checkpoint takes time, so a store may skip it."""


@dataclass
class _Computation:
    """A store, and the position in the computation that it belongs to.

    branch: prefix of the names of its loops
    steps: the number of loops and splits so far
    round: (n, count) inside round n of a loop of `count` rounds; None between two loops
    """

    store: CheckpointStore
    branch: str = ""
    steps: int = 0
    round: tuple[int, int] | None = None

    def next(self) -> str:
        """The name of the next loop or split."""
        self.steps += 1
        return f"{self.branch}{self.steps - 1}"


_current: ContextVar[_Computation | None] = ContextVar("computation", default=None)


def checkpointed_in(store: CheckpointStore) -> AbstractContextManager[None]:
    """Install `store` inside the block, whose loops are numbered from 0."""
    return set_in_context(_current, _Computation(store))


def branched(count: int) -> list[AbstractContextManager[None]]:
    """Blocks for `count` branches of the current computation, each to be entered in its own
    context."""
    outer = _current.get()
    if outer is None or outer.round is not None:
        return [checkpointed_in(CheckpointStore()) for _ in range(count)]
    split = outer.next()
    branches = (_Computation(outer.store, f"{split}.{n}.") for n in range(count))
    return [set_in_context(_current, branch) for branch in branches]


def enclosing_round() -> tuple[int, int]:
    """(n, count) inside round n of a resumable loop of `count` rounds, so that a loop inside it is
    one part of `count`. (0, 1) outside of all loops."""
    outer = _current.get()
    return (0, 1) if outer is None or outer.round is None else outer.round


def resumable(count: int, state: State, until: Callable[[], bool] = lambda: False) -> Iterator[int]:
    """Iterate over the remaining rounds of a loop of `count` rounds, numbered from 0.

    state: everything that a round changes and that is read afterwards, by name: modules,
        optimizers, tensors, generators, and dicts of JSON values or tensors. It is restored in
        place.
    until: called after every round; the loop ends when it returns True

    The global generators are stored too. A loop inside another one has no checkpoint of its own:
    the state of the outer loop must include its state.
    """
    # A slash, so that the name differs from those of a caller.
    state = {**state, "global/generators": GENERATORS}
    computation = _current.get()
    if computation is None or computation.round is not None:
        for done in range(count):
            yield done
            if until():
                return
        return
    loop = computation.next()
    checkpoint = computation.store.find(loop)
    first = 0
    if checkpoint is not None:
        restore(state, checkpoint.state)
        first = count if checkpoint.finished else checkpoint.rounds
    try:
        for done in range(first, count):
            computation.round = done, count
            yield done
            # Called after the last round too, because it may record what that round did.
            finished = until() or done + 1 == count
            computation.store.offer(loop, done + 1, finished, state)
            if finished:
                return
    finally:
        computation.round = None


def snapshot(state: State) -> dict[str, Any]:
    """The state as JSON values and tensors in dicts and lists, for `restore`. The tensors are not
    copied."""
    return {name: _snapshot_of(part) for name, part in state.items()}


@torch.no_grad()
def restore(state: State, saved: Mapping[str, Any]) -> None:
    """Restore every part of `state` in place from a snapshot. Raises KeyError if the snapshot lacks
    a part."""
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


def _snapshot_of(part: Part) -> Any:
    if isinstance(part, Tensor | dict):
        return part
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, numpy.random.Generator):
        return part.bit_generator.state
    return part.state_dict()
