"""Batches of an image set without end, every image once in each pass."""

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
    """What a step sees of one image set.

    images: float32 (b, 3, height, width) in [0, 1], augmented, channels last
    labels: int64 (b,)
    index: int64 (b,), positions in the image set
    """

    images: Tensor
    labels: Tensor
    index: Tensor


class BatchSource:
    """Gathers and augments on the device, where the choices of a pass lie before it begins.

    A batch is had in two parts: `advance` belongs to the host, `take` to the device alone, which
    keeps its own place in the pass.

    recordable: whether `take` can be recorded once and replayed
    """

    recordable = True

    def __init__(
        self, data: ImageSet, augmentation: Augmentation, batch_size: int, rng: torch.Generator
    ) -> None:
        self.data, self.augmentation, self.rng = data, augmentation, rng
        self.sizes = list(batch_sizes(len(data), batch_size))
        self.used = len(self.sizes)
        # The draws, one field below the other, at a fixed address.
        self.choices = torch.zeros(
            len(fields(AugmentationDraws)), len(data), dtype=torch.int64, device=data.device
        )
        self.place = torch.zeros((), dtype=torch.int64, device=data.device)
        self.places = torch.arange(max(self.sizes), device=data.device)

    def advance(self) -> int:
        """The size of the next batch. When a pass is over, the choices of another are drawn."""
        if self.used == len(self.sizes):
            draws = draw_augmentation(len(self.data), self.data.size, self.augmentation, self.rng)
            self.choices.copy_(torch.stack(list(vars(draws).values())))
            self.place.zero_()
            self.used = 0
        self.used += 1
        return self.sizes[self.used - 1]

    def take(self, size: int) -> Batch:
        """The next batch, `size` as `advance` gave it."""
        rows = self.place + self.places[:size]
        self.place.add_(size)
        draws = AugmentationDraws(*self.choices.index_select(1, rows))
        images = augment(self.data.images[draws.order], draws, self.augmentation)
        return Batch(to_float(images), self.data.labels[draws.order], draws.order)

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used, "choices": self.choices}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.used = state["used"]
        self.choices.copy_(state["choices"])
        self.place.fill_(sum(self.sizes[: self.used]))


class ReferenceBatchSource(BatchSource):
    """The same batches the way public code makes them, so that overheads can be compared: image by
    image in worker processes, with the device waited for at every step."""

    recordable = False

    def __init__(
        self, data: ImageSet, augmentation: Augmentation, batch_size: int, rng: torch.Generator
    ) -> None:
        super().__init__(data, augmentation, batch_size, rng)
        self.batches: Iterator[tuple[Tensor, Tensor, Tensor]] = iter(())

    def advance(self) -> int:
        begins = self.used == len(self.sizes)
        size = super().advance()
        if begins:
            self._open()
        # For nothing but to wait.
        self.place.item()
        return size

    def take(self, size: int) -> Batch:
        device = self.data.device
        images, labels, index = next(self.batches)
        return Batch(images.to(device), labels.to(device), index.to(device))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._open(self.used)

    def _open(self, first: int = 0) -> None:
        """Workers for the batches of this pass from the first on."""
        ends = [0, *accumulate(self.sizes)]
        self.batches = batches(
            self.data.images,
            self.data.labels,
            AugmentationDraws(*self.choices.cpu()),
            list(pairwise(ends))[first:],
            self.augmentation,
        )


def batch_sizes(count: int, batch_size: int) -> Iterator[int]:
    """They cover `count`; a last batch of one image joins the one before, because batch statistics
    of a single image are not defined."""
    while count:
        size = count if count == batch_size + 1 else min(batch_size, count)
        yield size
        count -= size


def steps_per_epoch(count: int, batch_size: int) -> int:
    """How many batches one pass over `count` images has."""
    return len(list(batch_sizes(count, batch_size)))


BATCH_SOURCES: dict[str, type[BatchSource]] = {
    "resident": BatchSource,
    "reference": ReferenceBatchSource,
}
