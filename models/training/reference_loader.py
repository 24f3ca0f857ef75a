"""The data path of public code: image by image through PIL, in the workers of a DataLoader.

It is slow on purpose: with it, the overhead of a defense relative to plain training is comparable
to that in papers whose time went into loading. Given the same draws, it gives the same images as
`augment.py`. As in public code, every pass starts new workers and does not use pinned memory.
Workers send arrays: torch would send tensors through sockets and /dev/shm, which may be small.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bdbench.models.training.augment import Augmentation, AugmentationDraws

WORKERS = 4
"""As in CBD's code."""


class ImageDraw(NamedTuple):
    """The draws for one image, which the sampler sends to a worker."""

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
    workers: number of processes; with 0 this process loads the images

    The workers start with the first batch. They end with the last, or when the iterator is dropped.
    """
    # Imported before the workers start, so that they inherit it. Not at the top of the file,
    # because it takes as long as importing torch, and any use of a model imports this file.
    importlib.import_module("torchvision.transforms.functional")
    with warnings.catch_warnings():
        # Public code uses four workers on any machine; torch warns of that on two cores.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        # Python 3.12 warns of a fork in a process with threads. A worker takes no lock of theirs.
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
        loader = DataLoader(
            AugmentedImages(images, labels, augmentation),
            batch_sampler=image_draws(draws, spans),
            collate_fn=stacked,
            num_workers=workers,
            # Other start methods would send all images to every worker in every pass.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            # Without it, the loader draws a seed from the global generator.
            generator=torch.Generator(),
        )
        iterator = iter(loader)
    for pixels, targets, positions in iterator:
        yield torch.from_numpy(pixels), torch.from_numpy(targets), torch.from_numpy(positions)


def stacked(samples: Sequence[tuple[Tensor, int, int]]) -> tuple[NDArray[Any], ...]:
    """A batch as arrays: images float32 (b, 3, height, width), labels and positions int64 (b,)."""
    images, labels, positions = zip(*samples, strict=True)
    pixels = numpy.stack([image.numpy() for image in images])
    return pixels, numpy.array(labels, numpy.int64), numpy.array(positions, numpy.int64)


def image_draws(
    draws: AugmentationDraws, spans: Sequence[tuple[int, int]]
) -> Iterator[list[ImageDraw]]:
    """The draws image by image, a list for each span."""
    columns = (draws.order, draws.top, draws.left, draws.mirrored, draws.row, draws.column)
    # Copied once, so that no batch synchronises with the device.
    on_host = [values.cpu() for values in columns]
    for start, stop in spans:
        rows = zip(*(values[start:stop].tolist() for values in on_host), strict=True)
        yield [ImageDraw(*row) for row in rows]


class AugmentedImages(Dataset[tuple[Tensor, int, int]]):
    """Augmented images, indexed by their draws, each with its label and its position."""

    def __init__(self, images: Tensor, labels: Tensor, augmentation: Augmentation) -> None:
        self.images = images.permute(0, 2, 3, 1).cpu().numpy()
        self.labels = labels.tolist()
        self.augmentation = augmentation

    def __getitem__(self, draw: ImageDraw) -> tuple[Tensor, int, int]:
        from torchvision.transforms import functional

        augmentation, pixels = self.augmentation, self.images[draw.position]
        height, width, _ = pixels.shape
        picture = functional.pad(functional.to_pil_image(pixels), augmentation.padding)
        picture = functional.crop(picture, draw.top, draw.left, height, width)
        if augmentation.flip and draw.mirrored:
            picture = functional.hflip(picture)
        image = functional.to_tensor(picture)
        if augmentation.cutout:
            top, bottom = clipped_span(draw.row, augmentation.cutout, height)
            left, right = clipped_span(draw.column, augmentation.cutout, width)
            zero = torch.zeros(())
            image = functional.erase(image, top, left, bottom - top, right - left, zero)
        return image, self.labels[draw.position], draw.position


def clipped_span(centre: int, side: int, length: int) -> tuple[int, int]:
    """Start and stop of the `side` positions from centre - side // 2, clipped to [0, length)."""
    first = centre - side // 2
    return max(first, 0), min(first + side, length)
