"""Endless streams of mini-batches; every image occurs once in each pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from bdbench.models.data import ImageSet
from bdbench.models.training.augment import (
    Augmentation,
    AugmentationDraws,
    augment,
    draw_augmentation,
    to_float,
)
from bdbench.models.training.reference_loader import batches


@dataclass(frozen=True)
class Batch:
    """A mini-batch of one image set.

    images: float32 (b, 3, height, width) in [0, 1], augmented, channels last
    labels: int64 (b,)
    index: int64 (b,), positions in the image set
    """

    images: Tensor
    labels: Tensor
    index: Tensor


class BatchSource:
    """Gathers and augments batches on the device, which holds the draws of a pass from its start.

    A batch takes two calls: `advance` runs on the host, and `take` on the device alone, which keeps
    its own position in the pass.

    capturable: whether `take` can be captured once and replayed
    """

    capturable = True

    def __init__(
        self, data: ImageSet, augmentation: Augmentation, batch_size: int, rng: torch.Generator
    ) -> None:
        self.data, self.augmentation, self.rng = data, augmentation, rng
        self.sizes = list(batch_sizes(len(data), batch_size))
        self.used = len(self.sizes)
        # The draws, one row for each field, at a fixed address.
        self.choices = torch.zeros(
            len(fields(AugmentationDraws)), len(data), dtype=torch.int64, device=data.device
        )
        self.position = torch.zeros((), dtype=torch.int64, device=data.device)
        self.offsets = torch.arange(max(self.sizes), device=data.device)

    def advance(self) -> int:
        """The size of the next batch. At the end of a pass, this makes the draws of the next."""
        if self.used == len(self.sizes):
            draws = draw_augmentation(len(self.data), self.data.size, self.augmentation, self.rng)
            self.choices.copy_(torch.stack(list(vars(draws).values())))
            self.position.zero_()
            self.used = 0
        self.used += 1
        return self.sizes[self.used - 1]

    def take(self, size: int) -> Batch:
        """The next batch; `size` is the result of `advance`."""
        rows = self.position + self.offsets[:size]
        self.position.add_(size)
        draws = AugmentationDraws(*self.choices.index_select(1, rows))
        images = augment(self.data.images[draws.order], draws, self.augmentation)
        return Batch(to_float(images), self.data.labels[draws.order], draws.order)

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used, "choices": self.choices}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.used = state["used"]
        self.choices.copy_(state["choices"])
        self.position.fill_(sum(self.sizes[: self.used]))


class ReferenceBatchSource(BatchSource):
    """The same batches, made as public code makes them: image by image in worker processes, with a
    synchronisation at every step. It serves to compare the overhead of defenses with papers."""

    capturable = False

    def __init__(
        self, data: ImageSet, augmentation: Augmentation, batch_size: int, rng: torch.Generator
    ) -> None:
        super().__init__(data, augmentation, batch_size, rng)
        self.batches: Iterator[tuple[Tensor, Tensor, Tensor]] = iter(())

    def advance(self) -> int:
        starts = self.used == len(self.sizes)
        size = super().advance()
        if starts:
            self._open()
        # Only to synchronise.
        self.position.item()
        return size

    def take(self, size: int) -> Batch:
        device = self.data.device
        images, labels, index = next(self.batches)
        return Batch(images.to(device), labels.to(device), index.to(device))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._open(self.used)

    def _open(self, first: int = 0) -> None:
        """Start workers for the batches of this pass, from batch `first`."""
        ends = [0, *accumulate(self.sizes)]
        self.batches = batches(
            self.data.images,
            self.data.labels,
            AugmentationDraws(*self.choices.cpu()),
            list(pairwise(ends))[first:],
            self.augmentation,
        )


def batch_sizes(count: int, batch_size: int) -> Iterator[int]:
    """The sizes of the batches of one pass over `count` images. A last batch of one image joins the
    one before, because batch statistics of a single image are undefined."""
    while count:
        size = count if count == batch_size + 1 else min(batch_size, count)
        yield size
        count -= size


def steps_per_epoch(count: int, batch_size: int) -> int:
    """The number of batches in one pass over `count` images."""
    return len(list(batch_sizes(count, batch_size)))


BATCH_SOURCES: dict[str, type[BatchSource]] = {
    "resident": BatchSource,
    "reference": ReferenceBatchSource,
}
