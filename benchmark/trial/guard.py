"""Whoever is lent images may not write in them: what others get would be changed, too."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from bdbench.models.data import ImageSet


class WroteInPlace(Exception):
    """A plugin changed images or labels that it was lent. Nothing made from them is kept."""


class Lent:
    """Image sets that a plugin reads and does not change.

    who: such as "defense abl"
    what: such as "the training set"
    """

    def __init__(self, who: str, what: str, *sets: ImageSet) -> None:
        self.who, self.what, self.sets = who, what, sets
        self._before = self._digest()

    def check(self) -> None:
        """Raises `WroteInPlace` where they are not as they were."""
        if self._digest() != self._before:
            raise WroteInPlace(
                f"{self.who} wrote in {self.what}, which it was lent: it must change a copy, such "
                "as data.images.clone() or data.labels.clone()"
            )

    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for lent in self.sets:
            for values in (lent.images, lent.labels):
                digest.update(values.detach().cpu().contiguous().numpy().data)
        return digest.digest()


@contextmanager
def unchanged(lent: Lent) -> Iterator[None]:
    """Checks at the end of the block, unless it raises."""
    yield
    lent.check()
