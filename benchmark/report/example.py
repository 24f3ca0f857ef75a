"""The test image that a record keeps, before and after the trigger, as files of the report."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from functools import cache, cached_property

from bdbench.records.record import Record

LARGEST = 256
"""Pixels of a side: a picture of a record of others is no reason to fill the memory."""
GREY = 128


@dataclass(frozen=True)
class Example:
    """A test image of a class, the same with the trigger, and what differs.

    row: number of the image in the test set
    label, goal: names of its class, and of that which the trigger is to make of it
    png: both images above each other
    """

    row: int
    label: str
    goal: str
    png: bytes

    @cached_property
    def stem(self) -> str:
        """Of the names of its files, which all cells with the same images share."""
        return f"pictures/trigger-{hashlib.sha256(self.png).hexdigest()[:12]}"

    def files(self) -> dict[str, bytes]:
        """PNG by name."""
        return {f"{self.stem}-{part}.png": content for part, content in self._parts[0].items()}

    @property
    def factor(self) -> float:
        """By what the difference is multiplied."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[dict[str, bytes], float]:
        import numpy as np
        from PIL import Image

        whole = Image.open(io.BytesIO(self.png)).convert("RGB")
        clean, triggered = np.split(np.asarray(whole).astype(np.int16), 2)
        change = triggered - clean
        # One decimal, as it is named.
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
    """What the record keeps; None where it keeps none, or no picture that can be read."""
    kept = record.example
    png = _picture(kept.get("png", ""))
    if not png:
        return None
    names = record.classes.get("names", [])
    label, goal = (
        names[n] if 0 <= n < len(names) else str(n) for n in (kept["label"], kept["goal"])
    )
    return Example(kept["row"], label, goal, png)


@cache
def _picture(text: str) -> bytes:
    """The PNG in base64, which many records share; empty for what is none, or too large."""
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
