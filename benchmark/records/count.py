"""Counts of images, and confidence intervals of their rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from scipy import special

from bdbench.models.plugins.errors import require

Interval = tuple[float, float]


@dataclass(frozen=True)
class Count:
    """`hits` of `of` images, `of` at least 1. Raises `InvalidInput` for impossible counts."""

    hits: int
    of: int

    def __post_init__(self) -> None:
        possible = 0 <= self.hits <= self.of and self.of > 0
        require(possible, f"{self.hits} of {self.of} is not a count")

    @property
    def rate(self) -> float:
        """In [0, 1]."""
        return self.hits / self.of

    @property
    def interval(self) -> Interval:
        """Low and high end of the 95 % interval of the rate (Wilson). It covers the choice of test
        images, not that of the seed."""
        return wilson(self.hits, self.of)


@cache
def normal_quantile(confidence: float) -> float:
    return float(special.ndtri((1 + confidence) / 2))


def wilson(hits: int, of: int, confidence: float = 0.95) -> Interval:
    """The score interval (low, high) of a rate, within [0, 1] (Wilson, 1927).

    Raises `InvalidInput` unless 0 <= hits <= of and of is at least 1.
    """
    rate, z = Count(hits, of).rate, normal_quantile(confidence)
    shrink = 1 + z**2 / of
    middle = (rate + z**2 / (2 * of)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / of + z**2 / (4 * of**2)) / shrink
    # Exact at both ends, where rounding could leave the rate outside its own interval.
    return (max(0.0, middle - half) if hits else 0.0, min(1.0, middle + half) if hits < of else 1.0)
