"""Intervals and tests agree with scipy and with numbers worked by hand."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.count import Count, wilson
from bdbench.tables.statistics import (
    average,
    common_seeds,
    difference,
    estimate,
    half_width,
    images_separable,
    mean_interval,
    paired_separable,
    proportions_separable,
    separably_lower,
    spread,
    tied,
)

counts = st.integers(1, 20_000).flatmap(
    lambda of: st.builds(Count, st.integers(0, of), st.just(of))
)


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_values(hits, of, low, high):
    assert wilson(hits, of) == pytest.approx((low, high), abs=5e-5)


@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy_and_contains_its_share(count, confidence):
    low, high = wilson(count.hits, count.of, confidence)
    theirs = stats.binomtest(count.hits, count.of).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= count.rate <= high <= 1


@pytest.mark.parametrize(("hits", "of"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(hits, of):
    with pytest.raises(InvalidInput, match=f"{hits} of {of} is not a count"):
        wilson(hits, of)


def test_mean_interval_worked_by_hand():
    # Deviation 0.1, standard error 0.1 / sqrt(3), quantile 4.302653 for 2 degrees of freedom.
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert mean_interval([0.4, 0.5, 0.6]) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert half_width([0.4, 0.5, 0.6]) == pytest.approx(half)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8, unique=True))
def test_mean_interval_agrees_with_scipy_between_0_and_1(rates):
    error = stats.sem(rates)
    mean, low, high = mean_interval(rates)
    if error > 0:
        theirs = stats.t.interval(0.95, len(rates) - 1, loc=mean, scale=error)
        assert (low, high) == pytest.approx((max(0, theirs[0]), min(1, theirs[1])), abs=1e-9)


def test_mean_interval_of_few_or_equal_values():
    assert mean_interval([0.25, 0.25]) == (0.25, 0.25, 0.25)
    assert mean_interval([0.25]) == pytest.approx((0.25, math.nan, math.nan), nan_ok=True)
    assert all(map(math.isnan, mean_interval([])))


def test_one_seed_has_a_wilson_interval_and_several_have_a_t_interval():
    assert estimate([Count(81, 263)]) == (81 / 263, *wilson(81, 263))
    assert estimate([Count(40, 100), Count(60, 100)]) == mean_interval([0.4, 0.6])
    assert all(map(math.isnan, estimate([])))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=6))
def test_paired_test_agrees_with_scipy(pairs):
    a, b = ([pair[side] / 50 for pair in pairs] for side in (0, 1))
    steps = {x - y for x, y in pairs}
    if len(steps) == 1:
        assert paired_separable(a, b) == (steps != {0})
    else:
        assert paired_separable(a, b) == (stats.ttest_rel(a, b).pvalue < 0.05)


def test_paired_test_needs_two_pairs():
    assert not paired_separable([], [])
    assert not paired_separable([0.0], [1.0])
    with pytest.raises(ValueError, match="argument 2"):
        paired_separable([0.1, 0.2], [0.1])


def test_pairing_sees_through_differences_between_seeds():
    a, b = [0.10, 0.50, 0.90], [0.11, 0.51, 0.912]
    assert paired_separable(a, b)
    assert stats.ttest_ind(a, b).pvalue > 0.9


@given(counts, counts)
def test_proportions_test_agrees_with_scipy(a, b):
    table = [[count.hits, count.of - count.hits] for count in (a, b)]
    if all(sum(column) for column in zip(*table, strict=True)):
        pvalue = stats.chi2_contingency(table, correction=True).pvalue
        if abs(pvalue - 0.05) > 1e-9:
            assert proportions_separable(a, b) == (pvalue < 0.05)
    else:
        assert not proportions_separable(a, b)


@pytest.mark.parametrize("more", range(3, 9))
def test_proportions_test_of_rare_hits_agrees_with_the_exact_test(more):
    exact = stats.fisher_exact([[0, 9000], [more, 9000 - more]]).pvalue < 0.05
    assert proportions_separable(Count(0, 9000), Count(more, 9000)) == exact


def test_tied_by_pairs_where_two_seeds_are_common():
    best = {0: Count(10, 1000), 1: Count(20, 1000), 2: Count(30, 1000)}
    worse = {seed: Count(count.hits + 5, 1000) for seed, count in best.items()}
    assert not tied(best, worse)
    assert tied(best, dict(best))
    assert tied(best, {0: Count(5, 1000), 1: Count(30, 1000), 2: Count(40, 1000)})


def test_tied_by_counts_where_one_seed_or_none_is_common():
    best = {0: Count(100, 1000), 1: Count(0, 1000)}
    assert tied(best, {0: Count(120, 1000)})
    assert not tied(best, {0: Count(150, 1000)})
    # No common seed: 100 of 2000 against 60 of 1000, then against 150 of 1000.
    assert tied(best, {2: Count(60, 1000)})
    assert not tied(best, {2: Count(150, 1000)})


def test_an_average_is_over_the_seeds_that_all_cells_have():
    one, two = (
        {seed: Count(hits, 1000) for seed, hits in enumerate(each)}
        for each in ((900, 800, 100), (500, 800))
    )
    assert common_seeds([one, two]) == [0, 1]
    assert average([one, two]) == pytest.approx((0.75, half_width([0.7, 0.8])))
    assert average([one])[0] == pytest.approx(0.6)
    middle, half = average([{0: Count(20, 100)}, {1: Count(40, 100)}])
    assert middle == pytest.approx(0.3)
    assert math.isnan(half)
    assert all(map(math.isnan, average([])))
    assert common_seeds([]) == []


def test_seeds_that_agree_by_chance_do_not_narrow_an_interval():
    """Two equal counts are more evidence than one, and less than none of a deviation."""
    one, two = estimate([Count(8740, 10_000)]), estimate([Count(8740, 10_000)] * 2)
    assert one[1] < two[1] < two[0] == one[0] < two[2] < one[2]
    assert two == (0.874, *wilson(17480, 20_000))
    assert spread([Count(8740, 10_000)] * 2) == pytest.approx((two[2] - two[1]) / 2)
    assert math.isnan(spread([Count(8740, 10_000)]))


@pytest.mark.parametrize("cells", [1, 2, 6])
def test_an_average_of_seeds_that_agree_by_chance_has_an_interval_of_its_images(cells):
    """Independent cells: the half width of one by the root of their number."""
    same = {0: Count(874, 1000), 1: Count(874, 1000)}
    middle, half = average([same] * cells)
    assert middle == pytest.approx(0.874)
    assert half == pytest.approx(spread([*same.values()]) / math.sqrt(cells))
    assert average([{0: Count(0, 1000), 1: Count(0, 1000)}])[1] > 0
    assert math.isnan(average([{0: Count(874, 1000)}] * cells)[1])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=6))
def test_a_difference_is_separable_where_its_interval_leaves_out_zero(pairs):
    a, b = ([Count(pair[side], 50) for pair in pairs] for side in (0, 1))
    middle, low, high = difference(a, b)
    assert low < middle < high
    if min(abs(low), abs(high)) > 1e-9:
        outside = low > 0 or high < 0
        assert tied(dict(enumerate(a)), dict(enumerate(b))) != outside


def test_a_difference_of_one_pair_has_no_interval():
    middle, *ends = difference([Count(3, 10)], [Count(1, 10)])
    assert middle == pytest.approx(0.2)
    assert all(map(math.isnan, [*ends, *difference([], [])]))


@pytest.mark.parametrize(
    ("low", "high", "lower"),
    [
        ({0: 20, 1: 30}, {0: 500, 1: 510}, True),
        ({0: 500, 1: 510}, {0: 20, 1: 30}, False),
        # Lower over all seeds, and separably higher on the only one that both have.
        ({0: 500, 1: 0, 2: 0}, {0: 300}, False),
        ({0: 300}, {0: 500, 1: 0, 2: 0}, True),
        ({0: 300, 1: 0}, {2: 500}, True),
        ({0: 300}, {0: 301}, False),
    ],
)
def test_a_separable_share_is_lower_only_by_the_seeds_that_are_tested(low, high, lower):
    sides = [{seed: Count(hits, 1000) for seed, hits in side.items()} for side in (low, high)]
    assert separably_lower(*sides) == lower


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_an_interval_covers_its_mean_seeds_and_images(hits):
    mean, low, high = estimate([Count(each, 50) for each in hits])
    assert low <= mean <= high
    least, most = wilson(sum(hits), 50 * len(hits))
    assert low <= least <= most <= high


@pytest.mark.parametrize(
    ("changes", "separable"),
    [([1, 1], False), ([2, 3], False), ([3, 3], True), ([9, -3], False), ([40, -2], True)],
)
def test_a_few_images_are_not_separable_however_the_seeds_agree(changes, separable):
    """The exact sign test of 5 changes has p = 0.0625, and of 6 it has 0.031."""
    a = [Count(50, 538)] * 2
    b = [Count(50 + change, 538) for change in changes]
    assert images_separable(a, b) == images_separable(b, a) == separable


def test_equal_networks_are_rarely_called_different():
    """Two seeds, images that fail independently: the t-test alone errs in about a tenth."""
    rng = random.Random(0)
    wrong = 0
    for _ in range(2_000):
        sides = [
            {seed: Count(sum(rng.random() < 0.05 for _ in range(20)), 540) for seed in range(2)}
            for _ in range(2)
        ]
        wrong += not tied(*sides)
    assert wrong / 2_000 < 0.05
