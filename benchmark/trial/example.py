"""A test image without and with the trigger, small enough for a record."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bdbench.models.data import ImageSet

SIDE = 32
"""Pixels: larger images are scaled down, so that both together take a few kilobytes."""
CANDIDATES = 100
"""Images of which one is chosen: a trigger may not change every image."""


def example(test: ImageSet, triggered: Tensor, goal: Tensor) -> dict[str, Any]:
    """The first victim that the trigger changes, see `Record.example`; empty if it changes none of
    the candidates.

    triggered: uint8 (n, 3, height, width), all test images with the trigger
    goal: int64 (n,), the label that the trigger should cause
    """
    rows = torch.nonzero(test.labels != goal).flatten()[:CANDIDATES]
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
    """Images, uint8 (3, height, width), one above the other, as PNG in base64."""
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
