"""How sure a figure is, and whether two systems differ: against published examples, scipy, and
simulation."""

import math
import random

import pytest
from scipy.stats import binomtest

from qlora_kit import scoring


@pytest.mark.parametrize(
    "right, rows, low, high",
    # from statsmodels.stats.proportion.proportion_confint(..., method="wilson")
    [(137, 200, 0.6176, 0.7453), (0, 200, 0.0, 0.0188), (40, 40, 0.9124, 1.0)],
)
def test_the_interval_of_a_proportion_is_wilson_s(right, rows, low, high):
    estimate = scoring.proportion([True] * right + [False] * (rows - right))
    assert estimate == pytest.approx((right / rows, low, high), abs=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 7, 40, 51, 200, 997])
def test_none_and_all_reach_the_edge_exactly(rows):
    assert scoring.proportion([False] * rows)[:2] == (0, 0)
    assert scoring.proportion([True] * rows)[::2] == (1, 1)
    assert scoring.clustered([(0, 2)] * rows)[:2] == (0, 0)
    assert scoring.clustered([(2, 2)] * rows)[::2] == (1, 1)


def facts_of_rows(rng, sizes, value, together):
    """(right, total) a row: each row has its own chance of a right fact, `value` on the average.

    `together` is the correlation of two facts of a row (a beta-binomial; 1: all or none).
    """
    rows = []
    for size in sizes:
        if together == 1:
            chance = float(rng.random() < value)
        else:
            spread = 1 / together - 1
            chance = rng.betavariate(value * spread, (1 - value) * spread)
        rows.append((sum(rng.random() < chance for _ in range(size)), size))
    return rows


@pytest.mark.parametrize("value", [0.02, 0.05, 0.5])
@pytest.mark.parametrize("together", [0.3, 1])
@pytest.mark.parametrize(
    "sizes",
    [[1] * 30 + [2] * 9 + [3], [3] * 40, [1] * 20 + [2] * 10 + [4] * 6 + [8] * 4],
    ids=["the-checklist-s", "threes", "uneven"],
)
def test_the_interval_of_facts_covers_the_truth_near_the_edge_too(value, together, sizes):
    rng = random.Random(0)
    hits = 0
    for _ in range(400):
        estimate = scoring.clustered(facts_of_rows(rng, sizes, value, together))
        hits += estimate.low <= value <= estimate.high
    assert 0.9 <= hits / 400 <= 0.995, "too narrow, or wide for nothing"


def test_rows_of_one_fact_are_about_as_sure_as_single_answers():
    alone = [True] * 12 + [False] * 28
    loose = scoring.proportion(alone)
    estimate = scoring.clustered([(int(right), 1) for right in alone])
    assert estimate.value == loose.value
    assert estimate == pytest.approx(loose, abs=0.01)


def test_facts_that_go_together_count_as_one():
    """Ten rows of eight facts, all or none: no surer than ten answers."""
    estimate = scoring.clustered([(8, 8)] * 4 + [(0, 8)] * 6)
    ten = scoring.proportion([True] * 4 + [False] * 6)
    assert estimate.low <= ten.low and estimate.high >= ten.high
    assert scoring.clustered([(0, 8)] * 10).high == pytest.approx(
        scoring.proportion([False] * 10).high
    )


def test_facts_are_never_surer_than_as_many_answers():
    """Rows that differ less than a coin would have it, as by chance they may."""
    estimate = scoring.clustered([(1, 2)] * 19 + [(2, 2)])
    loose = scoring.proportion([True] * 21 + [False] * 19)
    assert estimate == pytest.approx(loose)


def test_the_bootstrap_of_a_ratio_covers_the_truth_about_as_often_as_it_says():
    rng = random.Random(1)
    hits = 0
    for _ in range(200):
        rows = [(rng.random(), 1) for _ in range(40)]
        estimate = scoring.ratio(rows, draws=200)
        hits += estimate.low <= 0.5 <= estimate.high
    assert 178 <= hits <= 199
    assert scoring.ratio(rows) == scoring.ratio(rows)


@pytest.mark.parametrize(
    "estimate, text",
    [
        (scoring.proportion([True] * 56 + [False] * 144), "28 % [22, 35]"),
        (scoring.proportion([False] * 200), "0 % [0, 2]"),
        (scoring.proportion([True] * 200), "100 % [98, 100]"),
        (scoring.proportion([True] * 17 + [False] * 183), "9 % [5, 13]"),  # 8.5: half goes up
        (scoring.proportion([True] * 83 + [False] * 117), "42 % [35, 48]"),  # 41.5
        (scoring.clustered([(0, 1)] * 30 + [(0, 2)] * 9 + [(0, 3)]), "0 % [0, 10]"),
        (scoring.Estimate(13.04, 12.1, 14.0), "13.0 [12.1, 14.0]"),
        (scoring.Estimate(100.2, 86.84, 1234.4), "100 [86.8, 1234]"),
        (scoring.Estimate(2.0, 1.0, 9.996), "2.00 [1.00, 10.0]"),
    ],
)
def test_figures_are_printed_as_people_read_them(estimate, text):
    assert str(estimate) == text


def pairs(both, ours, theirs, neither):
    """What two systems got right, from the four counts of a table."""
    counts = {(True, True): both, (True, False): ours, (False, True): theirs}
    counts[False, False] = neither
    return zip(*[pair for pair, count in counts.items() for _ in range(count)], strict=True)


@pytest.mark.parametrize(
    "counts, low, high, p",
    [
        # Fagerland, Lydersen & Laake 2014, Statistics in Medicine 33: airways of 21 children before
        # and after a transplantation (Bentur et al. 2009)
        ((1, 1, 7, 12), -0.517, -0.026, 0.0703),
        # the package ratesci 0.3 for R, test of its paired score interval, "Tango"
        ((4, 9, 3, 16), -0.027, 0.390, 0.1460),
        # the package PropCIs for R: scoreci.mp(28, 25, 618)
        ((300, 28, 25, 265), -0.0188, 0.0287, None),
    ],
)
def test_the_interval_of_a_difference_is_tango_s(counts, low, high, p):
    found = scoring.compare(*pairs(*counts))
    assert (found.both, found.ours, found.theirs, found.neither) == counts
    assert found.difference == pytest.approx(
        ((counts[1] - counts[2]) / sum(counts), low, high), abs=6e-4
    )
    if p:
        assert found.p == pytest.approx(p, abs=1e-4)
    turned = scoring.compare(*reversed(list(pairs(*counts)))).difference
    assert turned == pytest.approx([-found.difference[i] for i in (0, 2, 1)], abs=1e-9)


@pytest.mark.parametrize(
    "counts, verdict",
    [
        ((0, 6, 0, 34), "better"),  # 2 / 64
        ((0, 5, 0, 35), "not settled on these rows"),  # 2 / 32
        ((20, 0, 6, 14), "worse"),
        ((91, 39, 29, 41), "not settled on these rows"),
        ((200, 0, 0, 0), "not settled on these rows"),
        # 100 and 76 of 200 right: each interval holds ends of the other, and yet it is settled
        ((70, 30, 6, 94), "better"),
    ],
)
def test_the_verdict_is_the_exact_test_s(counts, verdict):
    found = scoring.compare(*pairs(*counts))
    assert found.verdict == verdict
    assert str(found).endswith(verdict)


def test_a_comparison_is_printed_as_people_read_it():
    unsure, sure = (scoring.compare(*pairs(*c)) for c in ((91, 39, 29, 41), (0, 0, 130, 70)))
    assert str(unsure) == "+5 points [-3, +13], p = 0.27: not settled on these rows"
    assert str(sure) == "-65 points [-71, -58], p < 0.001: worse"


def test_intervals_that_overlap_say_nothing_against_a_difference():
    ours, theirs = map(list, pairs(70, 30, 6, 94))
    assert scoring.proportion(ours).low < scoring.proportion(theirs).high
    assert scoring.compare(ours, theirs).verdict == "better"


def test_what_is_settled_has_zero_outside_of_its_interval():
    """The exact test is the stricter of the two, so that a row never contradicts itself."""
    for ours in range(0, 40):
        for theirs in range(0, 40, 3):
            found = scoring.compare(*pairs(3, ours, theirs, 5))
            low, high = found.difference[1:]
            assert -1 <= low <= found.difference.value <= high <= 1
            if found.verdict != "not settled on these rows":
                assert low > 0 or high < 0, (ours, theirs)


def test_two_equal_systems_are_told_apart_at_most_once_in_twenty():
    rng = random.Random(0)
    settled = covered = 0
    for _ in range(400):
        rows = [(rng.random() < 0.5,) * 2 for _ in range(60)]  # on these they agree
        rows += [(right := rng.random() < 0.5, not right) for _ in range(40)]
        found = scoring.compare(*zip(*rows, strict=True))
        settled += found.verdict != "not settled on these rows"
        covered += found.difference.low <= 0 <= found.difference.high
    assert settled <= 0.05 * 400
    assert covered >= 0.93 * 400


def test_the_p_value_is_that_of_a_fair_coin():
    found = scoring.compare(*pairs(10, 9, 2, 10))
    by_hand = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert found.p == pytest.approx(by_hand) == pytest.approx(binomtest(2, 11).pvalue)


def test_two_systems_must_have_answered_the_same_rows():
    with pytest.raises(ValueError):
        scoring.compare([True], [True, False])
