"""Ten generated shapes: a data set without files, for demonstrations and tests.

The class is the shape. Position, size, tilt and colours are random. The background has a colour
gradient, clutter and blobs, so that single pixels say little and a network must learn features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from bdbench.datasets import register
from bdbench.datasets.base import Dataset, Source, fingerprint
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import require
from bdbench.models.plugins.spec import added
from bdbench.models.rng import derive
from bdbench.storage.cache import Cache

Floats = NDArray[np.floating[Any]]

CLASSES = (
    "disc",
    "ring",
    "square",
    "frame",
    "triangle",
    "plus",
    "cross",
    "rows",
    "columns",
    "checkerboard",
)
SIZE = 32
RATES = {16: 0.03, 32: 0.01}
"""The learning rate by image size; DECISIONS.md gives the reason."""
MOST = 1_000_000
"""Largest number of images in a set."""
CHUNK = 250
"""Images drawn at once."""

# Below, grey levels are in [0, 1] and lengths in pixels of an image of 32x32.
RADIUS = (8.0, 11.0)
SHIFT = 4.0
"""Largest distance of a shape's centre from the middle, in either direction."""
TILT = 0.2
"""Largest rotation, approximately in radians."""
CONTRAST = (0.15, 0.3)
"""Difference between shape and background, in each colour channel, of either sign."""
GRADIENT = 0.15
CLUTTER = 0.15
CLUTTER_CELLS = 6
BLOBS = 3
BLOB_RADIUS = (3.0, 7.0)
BLOB_CONTRAST = 0.3
NOISE = 0.03


@register("toy", title="Toy")
@dataclass(frozen=True)
class Toy(Source):
    """Generated shapes, ten balanced classes, the same on every machine.

    train_images, test_images: number of images, from 10 to 1,000,000
    image_size: height and width, 16 or 32 pixels; the shapes grow with the image
    """

    name: ClassVar[str] = "toy"
    num_classes: ClassVar[int] = 10
    train_size: ClassVar[int] = 4_000
    flip: ClassVar[bool] = True

    train_images: int = 4_000
    test_images: int = 1_000
    image_size: int = added(SIZE)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, count in (("train_images", self.count), ("test_images", self.test_images)):
            require(
                self.num_classes <= count <= MOST,
                f"{field} of toy must be from {self.num_classes} to {MOST:,}, got {count:,}",
            )
        require(
            self.image_size in RATES,
            f"image_size of toy must be 16 or 32, got {self.image_size:,}",
        )

    @property
    def learning_rate(self) -> float:
        return RATES[self.image_size]

    def load(self, roots: Sequence[Path], cache: Cache) -> Dataset:
        train = generate(self.count, "train", self.image_size)
        test = generate(self.test_images, "test", self.image_size)
        return Dataset(train, test, CLASSES, fingerprint(train, test))

    def locate(self, roots: Sequence[Path]) -> str:
        return "generated"


def generate(count: int, split: str, size: int = SIZE) -> ImageSet:
    """Draw `count` images in random order, with equal class sizes up to one image.

    split: train or test, which seeds the draw
    size: height and width, pixels
    """
    rng = Generator(PCG64(derive(0, "toy", split)))
    labels = rng.permutation(np.arange(count) % len(CLASSES))
    chunks = (labels[start : start + CHUNK] for start in range(0, count, CHUNK))
    images = np.concatenate([draw(chunk, rng, size) for chunk in chunks])
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), len(CLASSES))


def draw(labels: NDArray[np.int64], rng: Generator, size: int = SIZE) -> NDArray[np.uint8]:
    """Draw the shapes `labels` as uint8 (n, 3, size, size); `size` is a power of two.

    Only elementwise sums, products, quotients, square roots and comparisons are used. IEEE 754
    rounds these exactly, so pixels are the same on every machine.
    """
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Floats:
        return rng.random((n, *shape), dtype=np.float32) * (high - low) + low

    pixel = SIZE / size
    axis = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * pixel
    y, x = axis[:, None], axis

    colour = uniform(0.3, 0.7, 3, 1, 1)
    slope = uniform(-GRADIENT, GRADIENT, 2, 3, 1, 1) / (SIZE / 2)
    cells = uniform(-CLUTTER, CLUTTER, 3, CLUTTER_CELLS, CLUTTER_CELLS)
    clutter = enlarge(enlarge(cells, size).swapaxes(2, 3), size)
    image = colour + slope[:, 0] * x + slope[:, 1] * y + clutter
    for _ in range(BLOBS):
        dx, dy = x - uniform(-SIZE / 2, SIZE / 2, 1, 1), y - uniform(-SIZE / 2, SIZE / 2, 1, 1)
        radius = uniform(*BLOB_RADIUS, 1, 1)
        bump = np.maximum(1 - (dx * dx + dy * dy) / (radius * radius), 0)
        image += bump[:, None] * uniform(-BLOB_CONTRAST, BLOB_CONTRAST, 3, 1, 1)

    radius = uniform(*RADIUS, 1, 1)
    dx, dy = x - uniform(-SHIFT, SHIFT, 1, 1), y - uniform(-SHIFT, SHIFT, 1, 1)
    # Cosine and sine of the rotation, from the tangent of its half.
    half = uniform(-TILT / 2, TILT / 2, 1, 1)
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    u, v = (dx * cosine + dy * sine) / radius, (dy * cosine - dx * sine) / radius
    distance = np.empty_like(u)
    for label, name in enumerate(CLASSES):
        rows = labels == label
        distance[rows] = outline(name, u[rows], v[rows])
    inside = np.clip(0.5 - distance * radius / pixel, 0, 1)
    contrast = np.copysign(uniform(*CONTRAST, 3, 1, 1), uniform(-1, 1, 3, 1, 1))
    image += inside[:, None] * contrast

    image += uniform(-NOISE, NOISE, 3, size, size)
    image += uniform(-NOISE, NOISE, 3, size, size)
    levels: NDArray[np.uint8] = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    return levels


def enlarge(cells: Floats, size: int) -> Floats:
    """Interpolate (..., cells) linearly to (..., size)."""
    place = np.arange(size, dtype=np.float32) * ((cells.shape[-1] - 1) / size)
    left = place.astype(np.int64)
    weight = place - left.astype(np.float32)
    between: Floats = cells[..., left] * (1 - weight) + cells[..., left + 1] * weight
    return between


def outline(name: str, u: Floats, v: Floats) -> Floats:
    """Signed distance of points (u, v) to the edge of a shape of radius 1, negative inside.

    A shape that is mirrored left to right stays in its class.
    """
    across, down = np.abs(u), np.abs(v)

    def box(x: Floats, y: Floats, a: float, b: float) -> Floats:
        edge: Floats = np.maximum(x - a, y - b)
        return edge

    def plus(x: Floats, y: Floats, length: float) -> Floats:
        edge: Floats = np.minimum(box(x, y, length, 0.28), box(x, y, 0.28, length))
        return edge

    def stripes(x: Floats) -> Floats:
        three = np.minimum(x, np.abs(x - 0.72)) - 0.18
        edge: Floats = np.maximum(three, box(across, down, 0.9, 0.9))
        return edge

    def alternate(x: Floats) -> Floats:
        side: Floats = np.where(x < 0, -1, 1).astype(np.float32)
        return side * (0.24 - np.abs(np.abs(x) - 0.24))

    edge: Floats
    match name:
        case "disc":
            edge = np.sqrt(u * u + v * v) - 0.95
        case "ring":
            edge = np.abs(np.sqrt(u * u + v * v) - 0.75) - 0.22
        case "square":
            edge = box(across, down, 0.85, 0.85)
        case "frame":
            edge = np.abs(box(across, down, 0.7, 0.7)) - 0.2
        case "triangle":
            edge = np.maximum(v - 0.75, 0.88 * across - 0.475 * (v + 1))
        case "plus":
            edge = plus(across, down, 0.95)
        case "cross":
            edge = plus(np.abs(u + v) * 0.7071, np.abs(u - v) * 0.7071, 1.1)
        case "rows":
            edge = stripes(down)
        case "columns":
            edge = stripes(across)
        case _:
            a, b = alternate(u), alternate(v)
            same = np.minimum(np.maximum(-a, -b), np.maximum(a, b))
            edge = np.maximum(same, box(across, down, 0.96, 0.96))
    return edge
