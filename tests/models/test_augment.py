"""Batched augmentation against a per-image reference that uses torchvision and the same draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import functional

from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.rng import stream
from bdbench.models.training.augment import (
    Augmentation,
    AugmentationDraws,
    augment,
    draw_augmentation,
    to_float,
)
from bdbench.models.training.feed import BatchSource


def reference(
    image: torch.Tensor, draws: AugmentationDraws, n: int, how: Augmentation
) -> torch.Tensor:
    """One image through PIL as in public code: pad, crop, mirror, then zero a square."""
    height, width = image.shape[1:]
    picture = functional.to_pil_image(image)
    picture = functional.pad(picture, [how.padding])
    picture = functional.crop(picture, int(draws.top[n]), int(draws.left[n]), height, width)
    if how.flip and draws.mirrored[n]:
        picture = functional.hflip(picture)
    pixels = functional.pil_to_tensor(picture)
    for y in range(height):
        for x in range(width):
            down = y - (int(draws.row[n]) - how.cutout // 2)
            across = x - (int(draws.column[n]) - how.cutout // 2)
            if 0 <= down < how.cutout and 0 <= across < how.cutout:
                pixels[:, y, x] = 0
    return pixels


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("cutout", [0, 2, 3, 9])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("size", [(32, 32), (12, 20)])
def test_equals_the_per_image_reference(
    flip: bool, cutout: int, padding: int, size: tuple[int, int]
) -> None:
    how = Augmentation(padding, flip, cutout)
    images = torch.randint(1, 256, (16, 3, *size), dtype=torch.uint8, generator=stream(1, "images"))
    draws = draw_augmentation(16, size, how, stream(2, "draws"))
    expected = torch.stack([reference(images[n], draws, n, how) for n in range(16)])
    before = images.clone()
    assert torch.equal(augment(images, draws, how), expected)
    assert torch.equal(images, before), "the input was written"


def test_the_square_is_two_pixels_wide_and_cut_at_the_border() -> None:
    how = Augmentation(padding=0, flip=False, cutout=2)
    images = torch.full((3, 3, 8, 8), 200, dtype=torch.uint8)
    nothing = torch.zeros(3, dtype=torch.int64)
    draws = AugmentationDraws(
        torch.arange(3), nothing, nothing, nothing, torch.tensor([4, 0, 7]), torch.tensor([4, 0, 7])
    )
    zeros = [
        {tuple(p) for p in (image[0] == 0).nonzero().tolist()}
        for image in augment(images, draws, how)
    ]
    assert zeros[0] == {(3, 3), (3, 4), (4, 3), (4, 4)}
    assert zeros[1] == {(0, 0)}
    assert zeros[2] == {(6, 6), (6, 7), (7, 6), (7, 7)}


def test_draws_cover_every_value() -> None:
    how = Augmentation(padding=4)
    draws = draw_augmentation(5_000, (32, 24), how, stream(0, "draws"))
    assert torch.equal(draws.order.sort().values, torch.arange(5_000))
    for values, high in (
        (draws.top, 9),
        (draws.left, 9),
        (draws.mirrored, 2),
        (draws.row, 32),
        (draws.column, 24),
    ):
        counts = values.bincount(minlength=high)
        assert len(counts) == high
        expected = 5_000 / high
        assert (counts - expected).abs().max() < 6 * expected**0.5


def test_every_image_has_its_own_draws(images: ImageSet) -> None:
    same = images.images[:1].expand(60, -1, -1, -1).contiguous()
    how = Augmentation()
    views = augment(same, draw_augmentation(60, images.size, how, stream(3, "draws")), how)
    assert len({view.numpy().tobytes() for view in views}) > 50


class Operations(TorchDispatchMode):
    """Counts the operations on a device, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_tables_that_depend_on_the_size_are_computed_once(images: ImageSet) -> None:
    feed = BatchSource(images, Augmentation(), 20, stream(0, "feed"))
    counts = []
    for _ in range(2):
        size = feed.advance()
        with Operations() as asked:
            feed.take(size)
        counts.append(asked.count)
    # One after the other: place, rows, choices, labels; of the images gathering and padding, then
    # where a crop begins and comes from, the crop, and four for the cutout; two for floats.
    assert counts[1] == 16 <= counts[0]


def test_floats_are_exact_and_channels_last() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    result = to_float(images)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, images.float() / 255)


def test_floats_are_refused_and_stay_as_they_are() -> None:
    images = torch.rand(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    with pytest.raises(InvalidInput, match=r"got torch\.float32"):
        to_float(images)
    assert torch.equal(images, before)
