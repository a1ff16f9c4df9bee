"""Means, cluster-bootstrap intervals and paired differences."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from leaderboards.stats import Estimate, cluster_mean, crossed_mean, paired_difference


def test_mean_leaves_unscored_out_and_counts_it():
    estimate = cluster_mean([1.0, None, 0.0, 0.5], ["a", "a", "b", "b"])
    assert (estimate.value, estimate.n, estimate.n_unscored, estimate.n_clusters) == (0.5, 3, 1, 2)


@pytest.mark.parametrize("values", [[], [None, None]])
def test_no_value_gives_no_number(values):
    estimate = cluster_mean(values, ["a"] * len(values))
    assert estimate == Estimate(None, None, None, 0, len(values), 0)


def test_one_cluster_gives_no_interval():
    estimate = cluster_mean([0.0, 1.0, 1.0], ["a"] * 3)
    assert estimate == Estimate(2 / 3, None, None, 3, 0, 1)


def test_a_cluster_without_values_is_none():
    scored = cluster_mean([1.0, 0.0], ["a", "b"])
    with_empty = cluster_mean([1.0, 0.0, None], ["a", "b", "c"])
    assert (with_empty.low, with_empty.high) == (scored.low, scored.high)
    assert (with_empty.n_clusters, with_empty.n_unscored) == (2, 1)


def test_two_clusters_by_hand():
    # {a: 0, b: 1}: the four resamples give 0, 1/2, 1/2, 1, each with chance 1/4
    estimate = cluster_mean([0.0, 1.0], ["a", "b"], level=0.6)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)
    estimate = cluster_mean([0.0, 1.0], ["a", "b"], level=0.4)
    assert (estimate.low, estimate.high) == (0.5, 0.5)


def test_unequal_clusters_match_all_resamples_drawn_out():
    groups = {"a": [1.0, 1.0, 1.0], "b": [0.0], "c": [0.25, 0.5], "d": [0.0, 0.0, 1.0]}
    means = [
        np.mean(np.concatenate([groups[name] for name in draw]))
        for draw in itertools.product(groups, repeat=4)
    ]
    values = [value for group in groups.values() for value in group]
    clusters = [name for name, group in groups.items() for _ in group]
    estimate = cluster_mean(values, clusters, resamples=40_000, level=0.8)
    assert estimate.value == pytest.approx(np.mean(values), abs=1e-12)
    # of 256 equally likely means the ones next to the quantile; 40,000 draws miss it by 0.2 %
    ordered = np.sort(means)
    assert ordered[24] <= estimate.low <= ordered[27]
    assert ordered[228] <= estimate.high <= ordered[231]


def test_interval_agrees_with_scipy_on_cluster_means_when_balanced():
    rng = np.random.default_rng(1)
    table = rng.random((12, 5))  # (clusters, images)
    estimate = cluster_mean(
        table.ravel().tolist(), np.repeat(np.arange(12), 5).tolist(), resamples=50_000
    )
    oracle = scipy.stats.bootstrap(
        (table.mean(axis=1),), np.mean, n_resamples=50_000, method="percentile", rng=rng
    )
    # the error of a 2.5 % quantile from 50,000 draws, twice: sqrt(p (1 - p) / n) / density
    spread = oracle.standard_error
    density = scipy.stats.norm.pdf(1.96) / spread
    tolerance = 4 * math.sqrt(2) * math.sqrt(0.025 * 0.975 / 50_000) / density
    assert estimate.low == pytest.approx(oracle.confidence_interval.low, abs=tolerance)
    assert estimate.high == pytest.approx(oracle.confidence_interval.high, abs=tolerance)


def test_nominal_95_percent_interval_covers_the_truth():
    # 25 pairs x 4 images, correlated within a pair; one that drew images would cover about 73 %
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(25), 4).tolist()
    covered = drew_images = 0
    for trial in range(400):
        values = (rng.normal(size=(25, 1)) + 0.5 * rng.normal(size=(25, 4))).ravel().tolist()
        estimate = cluster_mean(values, clusters, seed=trial, resamples=500)
        covered += estimate.low <= 0 <= estimate.high
        images = cluster_mean(values, range(100), seed=trial, resamples=500)
        drew_images += images.low <= 0 <= images.high
    # theory: 2 Phi(1.96 sqrt(24/25)) minus the t(24) correction, about 93.5 %; +- 4 standard errors
    assert 0.885 <= covered / 400 <= 0.985
    assert drew_images / 400 < 0.8


def test_interval_does_not_depend_on_the_order_of_images_in_a_cluster_or_a_shift():
    values, clusters = [0.1, 0.9, 0.3, 0.7, 0.2], ["a", "a", "b", "b", "c"]
    one = cluster_mean(values, clusters, seed=3)
    other = cluster_mean([0.9, 0.1, 0.3, 0.7, 0.2], clusters, seed=3)
    shifted = cluster_mean([value + 10 for value in values], clusters, seed=3)
    assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-12)
    assert (shifted.low - 10, shifted.high - 10) == pytest.approx((one.low, one.high), abs=1e-12)


def test_same_seed_same_interval_other_seed_another():
    values, clusters = np.random.default_rng(4).random(30).tolist(), list(range(30))
    assert cluster_mean(values, clusters, seed=5) == cluster_mean(values, clusters, seed=5)
    assert cluster_mean(values, clusters, seed=5) != cluster_mean(values, clusters, seed=6)


def test_wider_level_wider_interval():
    values, clusters = np.random.default_rng(4).random(30).tolist(), list(range(30))
    narrow, wide = (cluster_mean(values, clusters, level=level) for level in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_paired_difference_by_hand():
    a, b = [1.0, 1.0, None, 0.5], [0.0, 1.0, 1.0, 0.25]
    estimate = paired_difference(a, b, ["x", "x", "y", "z"])
    assert estimate.value == pytest.approx(1.25 / 3, abs=1e-12)
    assert (estimate.n, estimate.n_unscored, estimate.n_clusters) == (3, 1, 2)


def test_pairing_cancels_what_both_methods_share():
    rng = np.random.default_rng(7)
    difficulty = rng.normal(size=40)
    a, b = (difficulty + 0.1).tolist(), difficulty.tolist()
    paired = paired_difference(a, b, list(range(40)))
    assert paired.low == pytest.approx(0.1, abs=1e-12)
    assert paired.high == pytest.approx(0.1, abs=1e-12)
    assert paired_difference(b, a, list(range(40))).value == pytest.approx(-0.1, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster_mean([1.0], ["a", "b"]), "1 values, but 2 clusters"),
        (lambda: paired_difference([1.0], [], ["a"]), "not paired"),
        (lambda: cluster_mean([float("nan"), 1.0], ["a", "b"]), "not finite"),
        (lambda: cluster_mean([1.0], ["a"], level=95), "level is 95"),
        (lambda: cluster_mean([1.0], ["a"], resamples=0), "resamples is 0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rows_and_columns_match_all_resamples_drawn_out():
    cells = {("a", "x"): [1.0, 0.5], ("a", "y"): [0.0], ("b", "y"): [0.75], ("c", "x"): [0.25]}
    means = []
    for rows in itertools.product("abc", repeat=2):  # one less than there are
        for columns in "xy":
            drawn = [v for r in rows for c in columns for v in cells.get((r, c), [])]
            if drawn:  # b with x alone has no value
                means.append(np.mean(drawn))
    values = [value for own in cells.values() for value in own]
    rows, columns = ([key[k] for key, own in cells.items() for _ in own] for k in (0, 1))
    estimate = crossed_mean([*values, None], [*rows, "b"], [*columns, "x"], resamples=40_000,
                            level=0.8)  # fmt: skip
    assert (estimate.n, estimate.n_unscored, estimate.n_clusters) == (5, 1, 2)
    assert estimate.value == pytest.approx(np.mean(values), abs=1e-12)
    ordered = np.sort(means)
    count = len(ordered)
    for end, level in ((estimate.low, 0.1), (estimate.high, 0.9)):
        assert ordered[int((level - 0.01) * count)] <= end <= ordered[int((level + 0.01) * count)]


def test_both_intervals_are_inside_that_of_rows_and_columns():
    rng = np.random.default_rng(3)
    table = rng.normal(size=(20, 1, 1)) + rng.normal(size=(1, 8, 1)) + rng.normal(size=(20, 8, 3))
    rows, columns, _ = (index.ravel().tolist() for index in np.indices(table.shape))
    values = table.ravel().tolist()
    both = crossed_mean(values, rows, columns)
    for side in (rows, columns):
        one = cluster_mean(values, side)
        assert one.value == pytest.approx(both.value, abs=1e-12)
        assert both.high - both.low > one.high - one.low


@pytest.mark.parametrize(("columns", "of_columns"), [(3, 0.0), (3, 0.1), (8, 0.1)])
def test_the_interval_over_both_has_the_variance_of_rows_and_columns(columns, of_columns):
    """Of 25 rows and some columns; the rest counts three times (Owen 2007)."""
    rng = np.random.default_rng(4)
    widths = []
    for seed in range(40):
        table = rng.normal(0, 0.3, (25, 1)) + rng.normal(0, of_columns, (1, columns))
        table = table + rng.normal(0, 0.05, (25, columns))
        rows, places = (index.ravel().tolist() for index in np.indices(table.shape))
        found = crossed_mean(table.ravel().tolist(), rows, places, resamples=400, seed=seed)
        widths.append(((found.high - found.low) / 3.92) ** 2)
    expected = 0.3**2 / 25 + of_columns**2 / columns + 3 * 0.05**2 / (25 * columns)
    # a chi-square of 2 in the worst case, 40 times: its mean is within 16 % at one deviation
    assert np.mean(widths) == pytest.approx(expected, rel=0.35)


def test_one_column_gives_no_interval_over_both():
    estimate = crossed_mean([0.0, 1.0], ["a", "b"], ["x", "x"])
    assert estimate == Estimate(0.5, None, None, 2, 0, 1)
    assert crossed_mean([None], ["a"], ["x"]) == Estimate(None, None, None, 0, 1, 0)
    with pytest.raises(ValueError, match="2 values, but 1 columns"):
        crossed_mean([0.0, 1.0], ["a", "b"], ["x"])
