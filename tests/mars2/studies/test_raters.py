"""Agreement of raters: published examples, and pair by pair as defined."""

import itertools

import numpy as np
import pytest

from mars2.studies import raters
from mars2.studies.association import item_weights

NAN = np.nan
# Krippendorff 2011, section D: 4 observers, 12 units, some not observed
OBSERVED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T
# Shrout and Fleiss 1979, table 2
JUDGED = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7.0]]
)


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_krippendorffs_own_example(level: str, alpha: float):
    value = raters.krippendorff(OBSERVED, np.arange(12), np.ones((1, 12)), level)[0]
    assert value == pytest.approx(alpha, abs=5e-4)


def test_interval_alpha_from_all_pairs_of_values():
    units = [row[~np.isnan(row)] for row in OBSERVED]
    units = [unit for unit in units if len(unit) > 1]
    values = np.concatenate(units)
    observed = sum(
        sum((a - b) ** 2 for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1)
        for unit in units
    ) / len(values)
    expected = sum((a - b) ** 2 for a, b in itertools.permutations(values, 2))
    expected /= len(values) * (len(values) - 1)
    found = raters.krippendorff(OBSERVED, np.arange(12), np.ones((1, 12)), "interval")[0]
    assert found == pytest.approx(1 - observed / expected, abs=1e-12)


@pytest.mark.parametrize("level", raters.LEVELS)
def test_alpha_of_a_resample_is_that_of_its_images_written_out(level: str):
    weights = item_weights(12, 4, np.random.default_rng(0))
    values = raters.krippendorff(OBSERVED, np.arange(12), weights, level)
    for row, value in zip(weights, values, strict=True):
        copies = np.repeat(OBSERVED, row.astype(int), axis=0)
        again = raters.krippendorff(copies, np.arange(12), np.ones((1, 12)), level)[0]
        assert value == pytest.approx(again, abs=1e-12)


def test_alpha_of_too_many_different_scores_is_not_computed():
    table = np.random.default_rng(1).random((100, 2))
    assert np.isnan(raters.krippendorff(table, np.arange(100), np.ones((1, 100)), "interval")[0])


def test_fleiss_example():
    # Fleiss 1971, as retold on Wikipedia: 10 subjects, 14 raters, 5 categories
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    table = np.array([np.repeat(np.arange(5.0), row) for row in counts])
    kappa, n = raters.fleiss(table, np.arange(10), np.ones((1, 10)))
    assert kappa[0] == pytest.approx(0.210, abs=5e-4)
    assert n == 10


def test_fleiss_is_over_images_of_the_commonest_number_of_ratings():
    _, n = raters.fleiss(OBSERVED, np.arange(12), np.ones((1, 12)))
    assert n == 8  # four ratings each; of the others three, two or one


def test_intraclass_correlations_of_shrout_and_fleiss():
    single, average, n = raters.intraclass(JUDGED, np.arange(6), np.ones((1, 6)))
    assert (round(single[0], 2), round(average[0], 2), n) == (0.29, 0.62, 6)


def test_intraclass_of_a_resample_is_that_of_its_images_written_out():
    weights = item_weights(6, 5, np.random.default_rng(2))
    values = raters.intraclass(JUDGED, np.arange(6), weights)
    for row, single, average in zip(weights, *values[:2], strict=True):
        copies = np.repeat(JUDGED, row.astype(int), axis=0)
        again = raters.intraclass(copies, np.arange(6), np.ones((1, 6)))
        assert (single, average) == pytest.approx((again[0][0], again[1][0]), abs=1e-9)


def test_intraclass_needs_images_that_all_rated():
    table = np.array([[1.0, NAN], [NAN, 2]])
    assert raters.intraclass(table, np.arange(2), np.ones((1, 2)))[2] == 0


def test_means_leave_empty_cells_out():
    table = np.array([[1.0, NAN, 5], [NAN, NAN, NAN]])
    assert raters.mean_rating(table)[0] == 3
    assert np.isnan(raters.mean_rating(table)[1])
    assert raters.others_mean(table, 0)[0] == 5


def test_halves_are_different_and_none_is_another_s_complement():
    found = raters.halves(4, 10, np.random.default_rng(3))
    assert [tuple(half) for half in found] == [(0, 1), (0, 2), (0, 3)]
    assert len(raters.halves(2, 10, np.random.default_rng(3))) == 1
    assert all(len(half) == 2 for half in raters.halves(5, 10, np.random.default_rng(3)))
