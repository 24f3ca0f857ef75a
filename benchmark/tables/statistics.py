"""Intervals of shares, and tests of whether two shares differ.

Quantiles are scipy's. The formulas are written out because `scipy.stats` takes half a second to
import and half a millisecond per test for a p-value that is not used, and in plain Python because
numpy is slow on a handful of seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from scipy import special

from bdbench.records.count import Count, normal_quantile

Estimate = tuple[float, float, float]


@cache
def _student(freedom: int, confidence: float) -> float:
    return float(special.stdtrit(freedom, (1 + confidence) / 2))


def half_width(values: Sequence[float], confidence: float = 0.95) -> float:
    """Half width of the t interval of a mean, in the unit of the values; nan below two values."""
    if len(values) < 2:
        return math.nan
    middle = _mean(values)
    deviation = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))
    return _student(len(values) - 1, confidence) * deviation / math.sqrt(len(values))


def mean_interval(rates: Sequence[float]) -> Estimate:
    """(mean, low, high): mean and 95 % t interval of shares, clipped to [0, 1].

    One share has no interval (nan); without shares all are nan.
    """
    if not rates:
        return math.nan, math.nan, math.nan
    mean, half = _mean(rates), half_width(rates)
    if math.isnan(half):
        return mean, half, half
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def estimate(counts: Sequence[Count]) -> Estimate:
    """(mean, low, high) over seeds, nan without any.

    For one seed it is the Wilson interval. For several it is the t interval, and at least the
    Wilson interval of all their images: seeds whose counts agree by chance say nothing of images.
    """
    if len(counts) == 1:
        return counts[0].rate, *counts[0].interval
    mean, low, high = mean_interval([count.rate for count in counts])
    if not counts:
        return mean, low, high
    least, most = total(counts).interval
    return mean, min(low, least), max(high, most)


def spread(counts: Sequence[Count]) -> float:
    """Half width of the interval over several seeds, as `estimate` has it but about the mean; nan
    below two."""
    half = half_width([count.rate for count in counts])
    if math.isnan(half):
        return half
    low, high = total(counts).interval
    return max(half, (high - low) / 2)


def total(counts: Iterable[Count]) -> Count:
    """The counts of several seeds as one, of at least one."""
    counts = list(counts)
    return Count(sum(count.hits for count in counts), sum(count.of for count in counts))


def common_seeds(sides: Iterable[Mapping[int, object]]) -> list[int]:
    """The seeds that all sides have, sorted; empty without sides."""
    seeds = [set(side) for side in sides]
    return sorted(set.intersection(*seeds)) if seeds else []


def average(sides: Sequence[Mapping[int, Count]]) -> tuple[float, float]:
    """Mean over several cells, each given by seed, and the half width of its 95 % interval.

    Both use the seeds that all cells have: averages over the cells first, then over the seeds. The
    half width is that of the t interval over seeds, and at least that of Wilson's of all images,
    whose squares add up over the cells; nan below two seeds. Without a common seed it is the mean
    of the cells' means, without interval; without cells both are nan.
    """
    seeds = common_seeds(sides)
    if seeds:
        rates = [_mean([side[seed].rate for side in sides]) for seed in seeds]
        half = half_width(rates)
        sums = [total(side[seed] for seed in seeds).interval for side in sides]
        images = math.hypot(*((high - low) / 2 for low, high in sums)) / len(sides)
        return _mean(rates), half if math.isnan(half) else max(half, images)
    means = [_mean([count.rate for count in side.values()]) for side in sides if side]
    return (_mean(means) if means else math.nan), math.nan


def difference(a: Sequence[Count], b: Sequence[Count]) -> Estimate:
    """(mean, low, high) of `a` minus `b` in pairs of the same images, nan without any.

    It is the paired t interval, and at least that of McNemar's test, see `images_separable`. One
    pair has no interval (nan).
    """
    differences = [x.rate - y.rate for x, y in zip(a, b, strict=True)]
    if not differences:
        return math.nan, math.nan, math.nan
    middle, half = _mean(differences), half_width(differences)
    if not math.isnan(half):
        half = max(half, _least_change(_changes(a, b)) / sum(x.of for x in a))
    return middle, middle - half, middle + half


def paired_separable(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two means differ by a paired t-test at 95 %; the pairs share a poisoned set.

    False for fewer than two pairs. If all differences are equal, True unless they are zero. Raises
    ValueError for unequal lengths.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    if len(differences) < 2:
        return False
    rounding = 1e-12
    return abs(_mean(differences)) > half_width(differences) + rounding


def proportions_separable(a: Count, b: Count) -> bool:
    """Whether two shares differ by the pooled two-proportion z-test at 95 %.

    Yates' continuity correction brings it close to Fisher's exact test for rare hits.
    """
    pooled = (a.hits + b.hits) / (a.of + b.of)
    spread = 1 / a.of + 1 / b.of
    error = math.sqrt(pooled * (1 - pooled) * spread)
    return abs(a.rate - b.rate) - spread / 2 > normal_quantile(0.95) * error


def tied(best: Mapping[int, Count], other: Mapping[int, Count]) -> bool:
    """Whether `other` is not separable from `best`, given counts by seed, at least one in each.

    If two or more seeds are common, both the paired t-test and `images_separable` must separate
    them: seeds whose differences agree by chance say nothing of a few images. Otherwise the test is
    the z-test of two proportions: for the one common seed, or for the sums over all seeds if none
    is common.
    """
    common = common_seeds((best, other))
    if len(common) < 2:
        sums = [total(side[seed] for seed in common or side) for side in (best, other)]
        return not proportions_separable(*sums)
    a, b = ([side[seed] for seed in common] for side in (best, other))
    rates = ([count.rate for count in side] for side in (a, b))
    return not (images_separable(a, b) and paired_separable(*rates))


def images_separable(a: Sequence[Count], b: Sequence[Count]) -> bool:
    """Whether the sums of counts of the same images differ by McNemar's test at 95 %, with its
    continuity correction, if no image changed against the net change of its seed. How many did is
    not known, so this is the most that the counts can show."""
    changes = _changes(a, b)
    return abs(math.fsum(changes)) > _least_change(changes)


def separably_lower(low: Mapping[int, Count], high: Mapping[int, Count]) -> bool:
    """Whether a share is lower than another and not `tied` with it, both over the seeds that the
    test is about: means over all seeds of each side may say the opposite."""
    common = common_seeds((low, high))
    means = [_mean([side[seed].rate for seed in common or side]) for side in (low, high)]
    return means[0] < means[1] and not tied(low, high)


def _changes(a: Sequence[Count], b: Sequence[Count]) -> list[float]:
    """By pair, how many images more `a` has."""
    return [x.of * (x.rate - y.rate) for x, y in zip(a, b, strict=True)]


def _least_change(changes: Sequence[float]) -> float:
    """Images by which sums must differ at least to be separable, see `images_separable`."""
    return 1 + normal_quantile(0.95) * math.sqrt(math.fsum(map(abs, changes)))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
