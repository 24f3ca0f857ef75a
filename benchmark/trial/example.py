"""A test image as it is and with the trigger, small enough to lie in a record."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bdbench.models.data import ImageSet

SIDE = 32
"""Pixels: a larger image is made as small, so that both together take a few kilobytes."""
LOOKED_AT = 100
"""Images of which one is chosen: a trigger may leave some of them as they are."""


def example(test: ImageSet, triggered: Tensor, goal: Tensor) -> dict[str, Any]:
    """The first test image that the trigger is to turn and changes, as `Record.example` has it;
    empty where it changes none of the first ones.

    triggered: uint8 (n, 3, height, width), all test images with the trigger
    goal: int64 (n,), what it is to make of each
    """
    rows = torch.nonzero(test.labels != goal).flatten()[:LOOKED_AT]
    changed = (test.images[rows] != triggered[rows]).flatten(1).any(1)
    if not changed.any():
        return {}
    row = int(rows[changed][0])
    return {
        "row": row,
        "label": int(test.labels[row]),
        "goal": int(goal[row]),
        "png": _png(test.images[row], triggered[row]),
    }


def _png(*images: Tensor) -> str:
    """Images uint8 (3, height, width) above each other, in base64."""
    parts = [_small(Image.fromarray(each.permute(1, 2, 0).cpu().numpy())) for each in images]
    width, height = parts[0].size
    whole = Image.new("RGB", (width, height * len(parts)))
    for number, part in enumerate(parts):
        whole.paste(part, (0, number * height))
    content = io.BytesIO()
    whole.save(content, format="png", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def _small(image: Image.Image) -> Image.Image:
    scale = min(1.0, SIDE / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image if scale == 1 else image.resize((width, height), Image.Resampling.BOX)
