"""Observers of training: pass counts, progress and curves, without the help of a defense.

The harness installs an `Observer`, and the loop and the networks report to it. A defense neither
passes it on nor learns what it recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from bdbench.models.scope import set_in_context

if TYPE_CHECKING:
    from torch import Tensor


class Observer:
    """Records nothing; subclasses override the events that they record."""

    def forward(self, images: int) -> None:
        """A forward pass of so many images."""

    def backward(self, images: int) -> None:
        """A backward pass of so many images."""

    def loop_started(self, rounds: int, images: int, part: tuple[int, int]) -> None:
        """A loop starts, see `loop`.

        rounds: its length
        images: forward passes of the first image set in all rounds together
        part: (n, count) for the n-th of `count` loops that make up a longer training, from 0
        """

    def trained(self, images: int) -> None:
        """A step on so many images is done (on a GPU: queued)."""

    def restored(self) -> None:
        """The passes counted since the last step were made by an earlier attempt."""

    def round_ended(self, rounds: int) -> None:
        """So many rounds of the current loop are done."""

    def counts(self) -> dict[str, Any]:
        """All counts, as JSON values, to be stored with a checkpoint."""
        return {}

    def resume_from(self, counts: Mapping[str, Any]) -> None:
        """Replace the current counts by those of a checkpoint."""

    def capture(self) -> AbstractContextManager[None]:
        """A block in which a step is captured or compiled, which is not training."""
        return nullcontext()

    def watch(self, classifier: Any) -> None:
        """From now on, `classifier` is the network that the defense will return."""

    def show(self, name: str, classifier: Any) -> None:
        """The embedding of this network is worth drawing, now and at the end of the defense."""


_default = Observer()
_current: ContextVar[Observer] = ContextVar("observer", default=_default)


def current() -> Observer:
    """The installed observer, or one that records nothing."""
    return _current.get()


def count_passes(images: int, outputs: Tensor) -> None:
    """Report the forward pass of so many images, and the backward pass if there will be one.

    outputs: what the network made of them, of any shape
    """
    observer = current()
    observer.forward(images)
    if outputs.requires_grad:
        outputs.register_hook(lambda gradient: observer.backward(images))


def observed_by(observer: Observer) -> AbstractContextManager[None]:
    """Installs `observer` inside the block."""
    return set_in_context(_current, observer)
