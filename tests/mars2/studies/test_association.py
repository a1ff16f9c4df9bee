"""Coefficients against scipy, by hand, and under weights against data written out."""

import numpy as np
import pytest
import scipy.stats

from mars2.studies.association import (
    COEFFICIENTS,
    GROUPINGS,
    always_tie,
    best_epsilon,
    by_rows,
    coefficient,
    grouped,
    item_weights,
    kendall_c,
    midranks,
    pair_counts,
    settled,
)

GOLD = np.array([1.0, 2, 2, 3, 4])
METRIC = np.array([2, 1, 1.5, 5, 3])
ONES = np.ones((1, 5))
OWN = np.arange(5)

ORACLES = {
    "pearson": lambda x, y: scipy.stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: scipy.stats.spearmanr(x, y).statistic,
    "kendall": lambda x, y: scipy.stats.kendalltau(x, y).statistic,
    "accuracy": lambda x, y: np.mean(
        [np.sign(x[i] - x[j]) == np.sign(y[i] - y[j]) for i in range(len(x)) for j in range(i)]
    ),
}


def tied(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two scores that go together and tie often."""
    x = rng.normal(size=n)
    return np.round(x, 1), np.round(2 * (x + rng.normal(size=n))) / 2


def test_public_example_of_metrics_with_ties():
    counts = pair_counts(METRIC, GOLD, OWN, ONES)
    assert counts.kendall()[0] == pytest.approx(0.316227766, abs=1e-9)
    assert kendall_c(METRIC, GOLD, OWN, ONES)[0] == pytest.approx(0.32, abs=1e-12)
    assert counts.accuracy()[0] == pytest.approx(0.6, abs=1e-12)
    assert best_epsilon(METRIC, GOLD) == (0.5, pytest.approx(0.7, abs=1e-12))
    at_best = pair_counts(METRIC, GOLD, OWN, ONES, epsilon=0.5)
    assert at_best.accuracy()[0] == pytest.approx(0.7, abs=1e-12)


def test_pairs_by_hand():
    # (1,1) (2,1) (2,2) (3,3): the second score ties the first two, the first score the middle two
    counts = pair_counts(
        np.array([1.0, 2, 2, 3]), np.array([1.0, 1, 2, 3]), np.arange(4), np.ones((1, 4))
    )
    found = [getattr(counts, name)[0] for name in
             ("concordant", "discordant", "x_tied", "y_tied", "both_tied", "total")]  # fmt: skip
    assert found == [4, 0, 1, 1, 0, 6]


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("seed", range(3))
def test_coefficients_match_scipy(name: str, seed: int):
    x, y = tied(np.random.default_rng(seed), 60)
    value = coefficient(name, x, y, np.arange(60), np.ones((1, 60)))[0]
    assert value == pytest.approx(ORACLES[name](x, y), abs=1e-12)
    assert by_rows(name, x[None], y[None])[0] == pytest.approx(ORACLES[name](x, y), abs=1e-12)


def test_tau_c_matches_scipy():
    x, y = tied(np.random.default_rng(5), 60)
    oracle = scipy.stats.kendalltau(x, y, variant="c").statistic
    assert kendall_c(x, y, np.arange(60), np.ones((1, 60)))[0] == pytest.approx(oracle, abs=1e-12)


@pytest.mark.parametrize("name", ["pearson", "spearman", "kendall"])
def test_weights_are_copies_written_out(name: str):
    # tau-b leaves out pairs of an image with its copy in numerator and denominator alike
    rng = np.random.default_rng(2)
    x, y = tied(rng, 40)
    owner = np.repeat(np.arange(10), 4)
    weights = item_weights(10, 5, rng)
    values = coefficient(name, x, y, owner, weights)
    for row, value in zip(weights, values, strict=True):
        copies = np.repeat(np.arange(40), row[owner].astype(int))
        assert value == pytest.approx(ORACLES[name](x[copies], y[copies]), abs=1e-12)


def test_accuracy_counts_no_pair_of_an_image_with_its_copy():
    x, y = tied(np.random.default_rng(3), 8)
    weights = np.array([[2.0, 0, 1, 3, 0, 0, 1, 1]])
    copies = [k for k in range(8) for _ in range(int(weights[0, k]))]
    right = [
        np.sign(x[i] - x[j]) == np.sign(y[i] - y[j])
        for a, i in enumerate(copies)
        for j in copies[:a]
        if i != j
    ]
    value = coefficient("accuracy", x, y, np.arange(8), weights)[0]
    assert value == pytest.approx(np.mean(right), abs=1e-12)


def test_midranks_match_scipy():
    x, _ = tied(np.random.default_rng(4), 30)
    assert midranks(x, np.ones((1, 30)))[0] == pytest.approx(scipy.stats.rankdata(x), abs=0)


def test_noise_in_the_last_digits_breaks_no_tie():
    x = np.array([0.1 + 0.2, 0.3, 0.5])
    assert x[0] != x[1]
    assert settled(x)[0] == settled(x)[1]
    y = np.array([1.0, 1.0, 2.0])
    for name in ("spearman", "kendall", "accuracy"):
        assert coefficient(name, x, y, np.arange(3), np.ones((1, 3)))[0] == pytest.approx(1)
        assert by_rows(name, x[None], y[None])[0] == pytest.approx(1)
    tiny = np.array([1e-12, 2e-12, 3e-12])  # but a score may be small
    assert coefficient("spearman", tiny, y, np.arange(3), np.ones((1, 3)))[0] > 0.8


@pytest.mark.parametrize("name", ["pearson", "spearman", "kendall"])
def test_a_constant_score_has_no_correlation(name: str):
    x, y = np.full(6, 0.1), np.arange(6.0)
    assert np.isnan(coefficient(name, x, y, np.arange(6), np.ones((1, 6)))[0])
    assert np.isnan(by_rows(name, x[None], y[None])[0])
    # nor where a resample only draws equal ones
    x[0] = 0.7
    weights = np.array([[0.0, 1, 1, 2, 1, 1]])
    assert np.isnan(coefficient(name, x, y, np.arange(6), weights)[0])


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_groupings_by_their_definitions(name: str, grouping: str):
    rng = np.random.default_rng(6)
    items, methods = 12, 6
    owner, method = np.repeat(np.arange(items), methods), np.tile(np.arange(methods), items)
    x, y = tied(rng, items * methods)
    found = grouped(name, grouping, x, y, owner, method, np.ones((1, items)))
    oracle = ORACLES[name]
    if grouping == "flat":
        expected = oracle(x, y)
    elif grouping == "system":
        means = [[scores[method == k].mean() for k in range(methods)] for scores in (x, y)]
        expected = oracle(*map(np.array, means))
    else:
        group = owner if grouping == "item" else method
        expected = np.mean([oracle(x[group == k], y[group == k]) for k in np.unique(group)])
    assert found.values[0] == pytest.approx(expected, abs=1e-9)
    assert found.undefined == 0


def test_a_metric_that_tells_methods_apart_only_wins_flat_and_loses_within_them():
    rng = np.random.default_rng(7)
    owner, method = np.repeat(np.arange(50), 4), np.tile(np.arange(4), 50)
    y = 2.0 * method + rng.normal(size=200)
    by_method = method + 0.01 * rng.normal(size=200)
    by_image = y - 2.0 * method + 0.5 * rng.normal(size=200)
    ones = np.ones((1, 50))
    flat = [grouped("spearman", "flat", x, y, owner, method, ones).values[0]
            for x in (by_method, by_image)]  # fmt: skip
    within = [grouped("spearman", "method", x, y, owner, method, ones).values[0]
              for x in (by_method, by_image)]  # fmt: skip
    assert flat[0] > 0.8 > 0.5 > flat[1]
    assert within[1] > 0.8 > 0.2 > within[0]


def test_groups_that_define_nothing_are_left_out_and_counted():
    owner, method = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    y = np.array([1.0, 2, 3, 5, 5, 5, 3, 2, 1])
    x = np.array([1.0, 2, 3, 1, 2, 3, 1, 2, 3])
    found = grouped("kendall", "item", x, y, owner, method, np.ones((1, 3)))
    assert (found.groups, found.undefined, found.values[0]) == (3, 1, 0.0)


def test_items_of_unequal_size_and_missing_cells():
    owner, method = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 0, 1, 0])
    x = np.array([1.0, 2, 3, 2, 1, 4])
    y = np.array([1.0, 2, 3, 1, 2, 4])
    found = grouped("kendall", "item", x, y, owner, method, np.ones((1, 3)))
    assert (found.groups, found.undefined, found.values[0]) == (3, 1, 0.0)  # 1, -1, one image


def test_calibration_may_come_to_always_tie():
    # people tie nearly everything: the best metric says nothing
    y = np.array([3.0] * 9 + [4.0])
    x = np.random.default_rng(8).normal(size=10)
    x[9] = x[:9].mean()
    epsilon, accuracy = best_epsilon(x, y)
    assert accuracy == pytest.approx(always_tie(y)) == pytest.approx(36 / 45)
    assert epsilon == pytest.approx(np.ptp(x))


def test_best_epsilon_tries_every_gap_within_groups():
    rng = np.random.default_rng(9)
    owner = np.repeat(np.arange(8), 4)
    x, y = tied(rng, 32)
    ones, method = np.ones((1, 8)), np.tile(np.arange(4), 8)
    gaps = np.unique(np.round(np.abs(x[:, None] - x), 9))
    tried = [
        grouped("accuracy", "item", x, y, owner, method, ones, epsilon).values[0]
        for epsilon in gaps
    ]
    epsilon, accuracy = best_epsilon(x, y, owner)
    assert accuracy == pytest.approx(max(tried), abs=1e-9)
    assert epsilon == pytest.approx(gaps[int(np.argmax(np.round(tried, 9)))], abs=1e-9)
