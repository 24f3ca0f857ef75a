"""Detects plugins that write in their input images: other cells read the same tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bdbench.models.data import ImageSet


class WroteInPlace(Exception):
    """A plugin changed its input images or labels. Nothing made from them is stored."""


@contextmanager
def read_only(plugin: str, what: str, *sets: ImageSet) -> Iterator[Callable[[], None]]:
    """Raises `WroteInPlace` at the end of the block if images or labels have changed, unless the
    block itself raises. Gives a function that makes the same check at once.

    plugin: who must not write, such as "defense abl"
    what: the images in words, such as "the training set"
    """
    before = _digest(sets)

    def check() -> None:
        if _digest(sets) != before:
            raise WroteInPlace(
                f"{plugin} wrote in {what}, which it must not change: work on a copy, such as "
                "data.images.clone() or data.labels.clone()"
            )

    yield check
    check()


def _digest(sets: tuple[ImageSet, ...]) -> bytes:
    """SHA-256 of all images and labels."""
    digest = hashlib.sha256()
    for images in sets:
        for values in (images.images, images.labels):
            digest.update(values.detach().cpu().contiguous().numpy().data)
    return digest.digest()
