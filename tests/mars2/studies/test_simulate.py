"""Intervals and tests hold what they promise, in few made-up studies."""

import numpy as np
import pytest

from mars2.studies.simulate import STATISTICS, coverage, make, rejections


@pytest.mark.parametrize("name", ["Spearman, flat", "Spearman, item"])
def test_intervals_hold_the_truth(name: str):
    # 100 studies: the share of a right 95 % interval lies in 88.5 to 100 % in 99.8 % of all tests
    assert 0.885 <= coverage(name, studies=100, items=50, resamples=200) <= 1


def test_all_statistics_can_be_simulated():
    made = make(5, np.random.default_rng(0))
    for statistic in STATISTICS.values():
        assert np.isfinite(statistic(made, np.ones((1, 5)))[0])


def test_the_permutation_test_rejects_a_true_null_rarely():
    # 150 tests at 5 %: more than 14 % would come up once in 100,000
    assert rejections(studies=150, units="images", permutations=99, items=40) <= 0.14


def test_images_of_an_item_that_are_not_independent_need_items_exchanged():
    shares = [
        rejections(studies=80, units=units, by_item=1.0, permutations=99, items=30)
        for units in ("images", "items")
    ]
    assert shares[1] <= 0.16 < shares[0]
