"""Arithmetic on pixels, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def add(images: Tensor, change: Tensor) -> Tensor:
    """uint8 images plus whole grey levels, clipped to [0, 255]; change of any dtype and of a shape
    that fits."""
    return (images.to(torch.int16) + change.to(torch.int16)).clamp_(0, 255).to(torch.uint8)
