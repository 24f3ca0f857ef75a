"""Who looks on while networks train: counts, progress and curves, without a defense's help.

The harness installs an `Observer`; the loop and the networks report to the current one. A defense
neither passes it around nor learns what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

from bdbench.models.scope import set_in_context


class Observer:
    """Sees nothing; subclasses override what they care about."""

    def forward(self, images: int) -> None:
        """A network was applied to so many images."""

    def backward(self, images: int) -> None:
        """A gradient went back through a network for so many images."""

    def loop_started(self, rounds: int, images: int, part: tuple[int, int]) -> None:
        """A training begins, see `loop`, of so many rounds, in all of which `images` images go
        forward.

        part: which one it is, from 0, of how many, where a longer training is made of several
        """

    def trained(self, images: int) -> None:
        """One step on so many images is done (or queued, on a GPU)."""

    def found(self) -> None:
        """What was counted since the last step was done by an earlier attempt."""

    def round_ended(self, rounds: int) -> None:
        """So many rounds of the current loop are complete."""

    def counts(self) -> dict[str, Any]:
        """All that was counted, as JSON values, to be kept with a checkpoint."""
        return {}

    def go_on(self, counts: Mapping[str, Any]) -> None:
        """From these, which were kept, whatever was counted until now."""

    def capture(self) -> AbstractContextManager[None]:
        """Around the recording or compiling of a step, which is no training."""
        return nullcontext()

    def watch(self, classifier: Any) -> None:
        """From now on `classifier` is what the defense will return."""

    def show(self, name: str, classifier: Any) -> None:
        """The embedding of this network is worth drawing, now and when the defense is done."""


_nobody = Observer()
_current: ContextVar[Observer] = ContextVar("observer", default=_nobody)


def current() -> Observer:
    """The installed observer, or one that sees nothing."""
    return _current.get()


def observed_by(observer: Observer) -> AbstractContextManager[None]:
    """Installs `observer` inside the block."""
    return set_in_context(_current, observer)
