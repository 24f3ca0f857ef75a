"""The data path of public code: image by image through PIL, in the workers of a DataLoader.

It is slow on purpose. Given the same draws, its pictures are those of `augment.py`, so that
what a defense costs beside plain training can be compared with papers whose time went into
loading. As in public code, every pass has new workers, and nothing lies in pinned memory.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bdbench.models.training.augment import Augmentation, AugmentationDraws

WORKERS = 4
"""As in CBD's code."""


class Choice(NamedTuple):
    """One draw: what the sampler asks a worker for."""

    position: int
    top: int
    left: int
    mirrored: int
    row: int
    column: int


def batches(
    images: Tensor,
    labels: Tensor,
    draws: AugmentationDraws,
    spans: Sequence[tuple[int, int]],
    augmentation: Augmentation,
    workers: int = WORKERS,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each span [start, stop) of the draws, on the CPU: images float32 (b, 3, height, width) in
    [0, 1], not channels last, labels int64 (b,), and positions in the image set int64 (b,).

    images: uint8 (n, 3, height, width) on any device
    labels: int64 (n,)
    workers: processes, 0 for none

    The workers start with the first batch, and end with the last or when the iterator is dropped.
    """
    # Before workers start, which would import it anew. Not above, because that takes as long as to
    # import torch, and whoever asks for a model imports this file.
    importlib.import_module("torchvision.transforms.functional")
    with warnings.catch_warnings():
        # Public code has four workers on any machine, and torch finds that many for two cores.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        # Python 3.12 warns of every fork beside threads. A worker takes no lock of another thread.
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
        loader = DataLoader(
            Pictures(images, labels, augmentation),
            batch_sampler=choices(draws, spans),
            num_workers=workers,
            # Newer ways to start a process would send it all images at every pass.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            # A loader draws a seed, and would take it from the global generator.
            generator=torch.Generator(),
        )
        made = iter(loader)
    yield from map(tuple, made)


def choices(draws: AugmentationDraws, spans: Sequence[tuple[int, int]]) -> Iterator[list[Choice]]:
    """The draws row by row, a list for each span."""
    columns = (draws.order, draws.top, draws.left, draws.mirrored, draws.row, draws.column)
    # Once, so that no batch waits for the device.
    here = [values.cpu() for values in columns]
    for start, stop in spans:
        rows = zip(*(values[start:stop].tolist() for values in here), strict=True)
        yield [Choice(*row) for row in rows]


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """Augmented images by the choices for them, each with its label and its position."""

    def __init__(self, images: Tensor, labels: Tensor, augmentation: Augmentation) -> None:
        self.images = images.permute(0, 2, 3, 1).cpu().numpy()
        self.labels = labels.tolist()
        self.augmentation = augmentation

    def __getitem__(self, choice: Choice) -> tuple[Tensor, int, int]:
        from torchvision.transforms import functional

        how, pixels = self.augmentation, self.images[choice.position]
        height, width, _ = pixels.shape
        picture = functional.pad(functional.to_pil_image(pixels), how.padding)
        picture = functional.crop(picture, choice.top, choice.left, height, width)
        if how.flip and choice.mirrored:
            picture = functional.hflip(picture)
        image = functional.to_tensor(picture)
        if how.cutout:
            top, bottom = within(choice.row, how.cutout, height)
            left, right = within(choice.column, how.cutout, width)
            nothing = torch.zeros(())
            image = functional.erase(image, top, left, bottom - top, right - left, nothing)
        return image, self.labels[choice.position], choice.position


def within(centre: int, side: int, length: int) -> tuple[int, int]:
    """First and one past last of the `side` places from centre - side // 2 on, as far as there."""
    first = centre - side // 2
    return max(first, 0), min(first + side, length)
