"""The test image in a record, before and after the trigger, as files of the report."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from functools import cache, cached_property

from bdbench.records.record import Record

LARGEST = 256
"""Largest side in pixels. It bounds the memory that an untrusted record can claim."""
GREY = 128


@dataclass(frozen=True)
class Example:
    """A test image, the same image with the trigger, and their difference.

    row: index of the image in the test set
    label, goal: names of its class, and of the class that the trigger should cause
    png: the clean image above the triggered one
    part: the part of the attack that has this trigger, empty if it has no parts
    """

    row: int
    label: str
    goal: str
    png: bytes
    part: str = ""

    @cached_property
    def stem(self) -> str:
        """Common start of the file names, the same for all cells with these images."""
        return f"pictures/trigger-{hashlib.sha256(self.png).hexdigest()[:12]}"

    def files(self) -> dict[str, bytes]:
        """By file name, the PNG images."""
        return {f"{self.stem}-{part}.png": content for part, content in self._parts[0].items()}

    @property
    def factor(self) -> float:
        """The factor that multiplies the difference."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[dict[str, bytes], float]:
        import numpy as np
        from PIL import Image

        whole = Image.open(io.BytesIO(self.png)).convert("RGB")
        clean, triggered = np.split(np.asarray(whole).astype(np.int16), 2)
        change = triggered - clean
        # One decimal, because the page shows it.
        factor = max(1.0, int(1270 / max(1, int(np.abs(change).max()))) / 10)
        grey = (GREY + factor * change).round().clip(0, 255)
        parts = {"clean": clean, "triggered": triggered, "difference": grey}
        made = {}
        for name, values in parts.items():
            content = io.BytesIO()
            Image.fromarray(values.astype(np.uint8)).save(content, format="png")
            made[name] = content.getvalue()
        return made, factor


def example(record: Record) -> Example | None:
    """The example in a record; None if it has none or its image is damaged."""
    kept = record.example
    png = _picture(kept.png) if kept else b""
    if not kept or not png:
        return None
    names = record.classes.names if record.classes else []
    label, goal = (names[n] if 0 <= n < len(names) else str(n) for n in (kept.label, kept.goal))
    return Example(kept.row, label, goal, png, kept.part)


@cache
def _picture(text: str) -> bytes:
    """Decode a PNG from base64; empty if it is damaged or too large. Many records share one."""
    from PIL import Image

    try:
        png = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(png), formats=["png"]) as picture:
            width, height = picture.size
            if height % 2 or not height or max(width, height // 2) > LARGEST:
                return b""
            picture.load()
    except (OSError, ValueError, SyntaxError):
        return b""
    return png
