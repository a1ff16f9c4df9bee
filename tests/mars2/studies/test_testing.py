"""Tests of metrics against each other: all exchanges written out, scipy, and published examples."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from mars2.studies.pairwise import bradley_terry
from mars2.studies.testing import (
    clusters,
    holm,
    permutation_test,
    ranking_test,
    soft_pairwise_accuracy,
    student_tail,
    williams,
)


def test_williams_of_the_public_example():
    gold = np.arange(1, 6.0)
    better, worse = np.array([1.1, 2, 3.1, 4, 5.1]), np.array([1.5, 2, 3.1, 4, 5.5])
    assert williams(better, worse, gold) == pytest.approx(0.019, abs=5e-4)
    assert williams(worse, better, gold) == pytest.approx(0.981, abs=5e-4)


@pytest.mark.parametrize("t", [-3.0, -0.2, 0.0, 1.3, 4.0, 40.0])
@pytest.mark.parametrize("degrees", [1, 2, 7, 50, 1000])
def test_student_tail_matches_scipy(t: float, degrees: int):
    assert student_tail(t, degrees) == pytest.approx(
        scipy.stats.t.sf(t, degrees), rel=1e-9, abs=1e-15
    )


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_permutation_p_is_the_share_of_all_exchanges(name: str):
    rng = np.random.default_rng(0)
    y = rng.normal(size=9)
    a, b = y + rng.normal(size=9), y + 2 * rng.normal(size=9)
    correlate = getattr(scipy.stats, "pearsonr" if name == "pearson" else "spearmanr")
    scale = scipy.stats.zscore if name == "pearson" else scipy.stats.rankdata
    first, second = scale(a), scale(b)

    def difference(exchanged: tuple[bool, ...]) -> float:
        mask = np.array(exchanged)
        return (
            correlate(np.where(mask, second, first), y).statistic
            - correlate(np.where(mask, first, second), y).statistic
        )

    everything = [difference(mask) for mask in itertools.product([False, True], repeat=9)]
    exact = np.mean(np.abs(everything) >= abs(everything[0]) - 1e-9)
    observed, p = permutation_test(a, b, y, np.zeros(9, dtype=int), name=name, permutations=8000)
    assert observed == pytest.approx(everything[0], abs=1e-12)
    assert p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 8000) ** 0.5)


def test_whole_items_are_exchanged():
    # two items: with their images exchanged as a whole there are only two differences, both extreme
    rng = np.random.default_rng(1)
    unit = np.repeat([0, 1], 20)
    y = rng.normal(size=40)
    _, p = permutation_test(
        y, rng.normal(size=40), y, np.zeros(40, dtype=int), name="pearson", unit=unit
    )
    assert p > 0.4


def test_within_items_the_differences_are_averaged():
    rng = np.random.default_rng(2)
    owner = np.repeat(np.arange(15), 5)[::-1].copy()
    y = np.round(rng.normal(size=75), 1)
    a, b = y + rng.normal(size=75), y + 3 * rng.normal(size=75)
    observed, p = permutation_test(a, b, y, owner, name="spearman", permutations=199)
    means = [
        np.mean([scipy.stats.spearmanr(x[owner == k], y[owner == k]).statistic for k in range(15)])
        for x in (a, b)
    ]
    assert observed == pytest.approx(means[0] - means[1], abs=1e-12)
    assert 0 < p < 0.05


def test_a_constant_metric_is_not_tested():
    y = np.arange(5.0)
    _, p = permutation_test(np.ones(5), y, y, np.zeros(5, dtype=int), name="pearson")
    assert np.isnan(p)


def test_holm_by_hand():
    # sorted .01 x 4, .02 x 3, .03 x 2 (below .06: raised to it), .5
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert np.isnan(holm([np.nan, 0.01])[0])
    assert holm([np.nan, 0.01])[1] == 0.01


def test_clusters_hold_none_that_are_told_apart():
    told = {("a", "c"), ("a", "d"), ("b", "d")}
    assert clusters(["a", "b", "c", "d"], told) == {"a": 1, "b": 1, "c": 2, "d": 2}
    assert clusters(["a"], set()) == {"a": 1}


def test_soft_accuracy_is_one_for_the_same_scores_and_low_for_the_opposite():
    rng = np.random.default_rng(3)
    y = np.linspace(0, 3, 4) + rng.normal(size=(60, 4))
    assert soft_pairwise_accuracy(y, y) == 1
    assert soft_pairwise_accuracy(3 * y + 1, y) == pytest.approx(1, abs=1e-9)
    assert soft_pairwise_accuracy(-y, y) < 0.1
    assert soft_pairwise_accuracy(np.zeros_like(y), y) == pytest.approx(0.5, abs=0.03)


def test_rankings_of_few_methods_get_no_p():
    assert ranking_test(np.arange(6.0), np.arange(6.0)) is None
    p = ranking_test(np.arange(7.0), np.arange(7.0))
    assert p is not None
    assert p < 0.002  # 1 of 5,040 orders


def test_bradley_terry_by_hand():
    # 3 wins to 1: the odds are 3
    strengths = bradley_terry(np.array([[[0.0, 3], [1, 0]]]), prior=0)[0]
    assert strengths[0] - strengths[1] == pytest.approx(np.log(3), abs=1e-9)


def test_bradley_terry_maximises_the_likelihood():
    wins = np.random.default_rng(4).integers(1, 9, (4, 4)).astype(float)
    np.fill_diagonal(wins, 0)

    def loss(free: np.ndarray) -> float:
        s = np.append(free, -free.sum())
        return float((wins * np.log1p(np.exp(s[None, :] - s[:, None]))).sum())

    best = scipy.optimize.minimize(loss, np.zeros(3), tol=1e-12).x
    assert bradley_terry(wins[None], prior=0)[0, :3] == pytest.approx(best, abs=1e-5)


def test_a_method_that_always_won_is_finite_and_one_never_compared_is_undefined():
    wins = np.zeros((1, 3, 3))
    wins[0, 0, 1] = 5
    strengths = bradley_terry(wins)[0]
    assert strengths[0] - strengths[1] == pytest.approx(np.log(5.1 / 0.1), abs=1e-6)
    assert np.isnan(strengths[2])
