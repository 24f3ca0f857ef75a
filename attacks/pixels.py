"""Arithmetic on pixels, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from bdbench.models.plugins.errors import require


def add(images: Tensor, change: Tensor) -> Tensor:
    """uint8 images plus whole grey levels, clipped to [0, 255]; change of any dtype and of a shape
    that fits."""
    return (images.to(torch.int16) + change.to(torch.int16)).clamp_(0, 255).to(torch.uint8)


def check_bound(epsilon: float) -> None:
    """Raises `InvalidInput` unless the largest change of a pixel is a whole number of grey levels.
    A change that is rounded after it was bounded would exceed any other."""
    require(
        1 <= epsilon <= 255 and float(epsilon).is_integer(),
        f"epsilon must be a whole number of grey levels from 1 to 255, got {epsilon}",
    )
