"""SimCLR's random views, Chen et al., ICML 2020, arXiv:2002.05709, of a whole batch at once.

A crop of random size and aspect ratio is resized to the whole image; at random it is mirrored, its
colours change, and it becomes grey or blurred. Each image has its own draws. As in `augment.py`,
all draws are made beforehand on the CPU, and given the same draws, the result equals that of
torchvision's functions image by image.

Differs: the colours change in one fixed order (brightness, contrast, saturation, hue), while
torchvision draws an order for each image. Pixels stay floats between the operations; overshoot of
the bicubic filter is clipped as in 8-bit images. The kernel of the blur reaches three times the
largest standard deviation, 13 pixels in all; the paper's kernel, a tenth of the image, would have 3
on CIFAR-10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCALE = (0.2, 1.0)
"""Area of the crop, as a share of the image."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of the crop, uniform on a logarithmic scale."""
TRIES = 10
"""Draws of a crop until one fits; otherwise the crop is the whole image, as in torchvision."""
JITTER, STRENGTH, HUE = 0.8, 0.4, 0.1
"""Probability of changed colours; largest distance of the three factors from 1; largest hue shift
in turns."""
GREY = 0.2
"""Probability of a grey view."""
BLUR, SIGMA, REACH = 0.5, (0.1, 2.0), 6
"""Probability of a blur; its standard deviation in pixels; pixels of its kernel on each side."""
LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey."""


@dataclass(frozen=True)
class ViewDraws:
    """The random draws of n views, each (n,). An operation that does not happen has its neutral
    value.

    top, left, height, width: of the crop, int64, pixels
    mirrored: bool
    brightness, contrast, saturation: float32 factors, 1 changes nothing
    hue: float32, turns of the colour wheel, 0 changes nothing
    grey: bool
    sigma: float32, standard deviation of the blur in pixels, 0 for none
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    mirrored: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grey: Tensor
    sigma: Tensor

    def to(self, device: torch.device) -> ViewDraws:
        return ViewDraws(*(values.to(device) for values in vars(self).values()))

    def __getitem__(self, rows: Tensor | slice) -> ViewDraws:
        """The draws at these positions."""
        return ViewDraws(*(values[rows] for values in vars(self).values()))

    def __len__(self) -> int:
        return len(self.top)


def draw_views(
    count: int, size: tuple[int, int], flip: bool, generator: torch.Generator
) -> ViewDraws:
    """Draws for `count` views of images of `size` (height, width). Without `flip`, no view is
    mirrored.

    All other draws are the same with and without `flip`.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def happens(probability: float) -> Tensor:
        return torch.rand(count, generator=generator) < probability

    top, left, height, width = _draw_crops(count, size, generator)
    mirrored = happens(0.5) & flip
    jittered, grey, blurred = happens(JITTER), happens(GREY), happens(BLUR)
    factors = uniform(1 - STRENGTH, 1 + STRENGTH, 3).where(jittered[:, None], 1.0)
    return ViewDraws(
        top=top,
        left=left,
        height=height,
        width=width,
        mirrored=mirrored,
        brightness=factors[:, 0],
        contrast=factors[:, 1],
        saturation=factors[:, 2],
        hue=uniform(-HUE, HUE).where(jittered, 0.0),
        grey=grey,
        sigma=uniform(*SIGMA).where(blurred, 0.0),
    )


def _draw_crops(
    count: int, size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width, int64 (count,): the first of `TRIES` crops that fits."""
    rows, columns = size
    area = rows * columns * (SCALE[0] + (SCALE[1] - SCALE[0]) * _rand(count, generator))
    low, high = (math.log(ratio) for ratio in RATIO)
    ratio = (low + (high - low) * _rand(count, generator)).exp()
    heights = (area / ratio).sqrt().round().long()
    widths = (area * ratio).sqrt().round().long()
    fits = (heights >= 1) & (heights <= rows) & (widths >= 1) & (widths <= columns)
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    height = heights.gather(1, first).squeeze(1).where(found, rows)
    width = widths.gather(1, first).squeeze(1).where(found, columns)
    # The remainder of a huge random integer, because the range of offsets differs by image.
    huge = torch.randint(2**62, (2, count), generator=generator)
    return huge[0] % (rows - height + 1), huge[1] % (columns - width + 1), height, width


def _rand(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, TRIES, generator=generator)


def make_views(images: Tensor, draws: ViewDraws) -> Tensor:
    """float32 (n, 3, height, width) in [0, 1] -> n views of the same shape, channels last."""
    # A view takes some thirty passes over the pixels: on a CPU, in chunks that fit its cache.
    chunk = 64 if images.device.type == "cpu" else len(images)
    parts = [
        _make_views(images[start : start + chunk], draws[start : start + chunk])
        for start in range(0, len(images), chunk)
    ]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def _make_views(images: Tensor, draws: ViewDraws) -> Tensor:
    height, width = images.shape[2:]
    down = _resizing(draws.top, draws.height, height, torch.zeros_like(draws.mirrored))
    across = _resizing(draws.left, draws.width, width, draws.mirrored)
    images = _filter(images, down, across).clamp_(0, 1)

    def each(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    images = (images * each(draws.brightness)).clamp_(0, 1)
    mean = _grey(images).mean((2, 3), keepdim=True)
    images = torch.lerp(mean, images, each(draws.contrast)).clamp_(0, 1)
    images = torch.lerp(_grey(images), images, each(draws.saturation)).clamp_(0, 1)
    images = _shift_hue(images, each(draws.hue))
    images = torch.where(each(draws.grey), _grey(images), images)
    down, across = _blurring(draws.sigma, height), _blurring(draws.sigma, width)
    return _filter(images, down, across).clamp_(0, 1)


def _filter(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """A linear filter along each axis: weights (n, height, height) and (n, width, width)."""
    return torch.einsum("nyi,ncij,nxj->ncyx", down, images, across)


def _resizing(start: Tensor, extent: Tensor, side: int, mirrored: Tensor) -> Tensor:
    """float32 (n, side, side): the matrix that resizes `extent` pixels of a line from `start` to
    `side` pixels. Row y holds the weights of the input pixels in output pixel y.

    Bicubic with Keys' kernel at a = -1/2. Enlarging needs no wider kernel against aliasing. Weights
    outside the crop are dropped, and the others are scaled to a sum of 1.
    """
    position = torch.arange(side, device=start.device)
    out = torch.where(mirrored[:, None], side - 1 - position, position)
    centre = start[:, None] + (out + 0.5) * (extent[:, None] / side)
    distance = (position + 0.5 - centre[:, :, None]).abs()
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    inside = (position >= start[:, None]) & (position < (start + extent)[:, None])
    weights = torch.where(distance <= 1, near, far) * ((distance < 2) & inside[:, None])
    return weights / weights.sum(2, keepdim=True)


def _blurring(sigma: Tensor, side: int) -> Tensor:
    """float32 (n, side, side): the matrix of a Gaussian blur, as in `_resizing`. The line is
    reflected at its ends without repeating the last pixel."""
    reach = min(REACH, side - 1)
    steps = torch.arange(-reach, reach + 1, device=sigma.device)
    # Not 0, so that a blur of 0 is a kernel of one pixel, not 0 / 0.
    width = sigma.clamp(min=1e-3)[:, None]
    kernel = (-0.5 * (steps / width).square()).softmax(1)
    position = torch.arange(side, device=sigma.device)
    source = (steps[:, None] + position).abs()
    source = side - 1 - (side - 1 - source).abs()
    reads = (source[:, :, None] == position).float()
    return (kernel @ reads.flatten(1)).view(-1, side, side)


def _grey(images: Tensor) -> Tensor:
    """float32 (n, 3, height, width) -> (n, 1, height, width)."""
    red, green, blue = images.split(1, 1)
    grey: Tensor = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return grey


def _shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue in HSV; saturation and value stay the same.

    With hue h in sixths of a turn, value v and chroma c, a channel is v - c * clamp(min(k, 4 - k))
    in [0, 1], where k = (h + 5, 3 or 1) modulo 6 for red, green and blue.
    """
    red, green, blue = images.split(1, 1)
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    safe = chroma.clamp(min=1e-12)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    offset = 5 - 2 * torch.arange(3, device=images.device).view(1, 3, 1, 1)
    k = (hue + 6 * turns + offset).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
