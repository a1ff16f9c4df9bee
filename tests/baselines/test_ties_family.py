"""Merges of the updates entry by entry: TIES, DARE, magnitude, DELLA, Breadcrumbs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from baselines import AdapterError, LowRankDelta
from baselines.methods.breadcrumbs import breadcrumbs
from baselines.methods.dare import dare
from baselines.methods.dare_ties import dare_ties
from baselines.methods.della import della, keep_chances
from baselines.methods.magnitude import magnitude
from baselines.methods.ties import ties

EXACT = 1000
"""A rank at which nothing is lost."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def delta(matrix: list[list[float]]) -> LowRankDelta:
    update = torch.tensor(matrix)
    return LowRankDelta(update, torch.eye(update.shape[1]))


def random_pair(d_out: int = 12, d_in: int = 9) -> list[LowRankDelta]:
    rng = seeded(3)
    return [
        LowRankDelta(
            torch.randn(d_out, rank, generator=rng, dtype=torch.float64),
            torch.randn(rank, d_in, generator=rng, dtype=torch.float64),
        )
        for rank in (2, 3)
    ]


SUBJECT = delta([[4.0, -3.0], [1.0, 0.5]])
STYLE = delta([[2.0, 5.0], [-0.1, 3.0]])


def test_ties_by_hand():
    # trimmed: [[4, -3], [0, 0]] and [[0, 5], [0, 3]]; signs + + . +
    assert ties([SUBJECT, STYLE], rank=EXACT).dense().tolist() == [[4.0, 5.0], [0.0, 3.0]]
    # nothing trimmed: 4 and 2 agree, 5 beats -3, 1 beats -0.1, 0.5 and 3 agree
    whole = ties([SUBJECT, STYLE], density=1.0, rank=EXACT)
    assert whole.dense().tolist() == [[3.0, 5.0], [1.0, 1.75]]


def test_ties_weights_by_hand():
    merged = ties([SUBJECT, STYLE], density=1.0, w_subject=2.0, w_style=0.5, rank=EXACT)
    assert merged.dense().tolist() == [[4.5, 2.5], [2.0, 1.25]]


def test_magnitude_by_hand():
    merged = magnitude([SUBJECT, STYLE], w_style=2.0, rank=EXACT)
    assert merged.dense().tolist() == [[4.0, 7.0], [0.0, 6.0]]


def test_breadcrumbs_by_hand():
    merged = breadcrumbs([SUBJECT, STYLE], density=0.5, outliers=0.25, rank=EXACT)
    assert merged.dense().tolist() == [[2.0, -3.0], [1.0, 3.0]]


def test_breadcrumbs_without_outliers_is_magnitude():
    pair = random_pair()
    assert torch.equal(
        breadcrumbs(pair, density=0.3, outliers=0.0).dense(), magnitude(pair, density=0.3).dense()
    )


@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
def test_ties_by_its_equations(density: float):
    """Trim, elect and merge spelt out on sorted entries, one entry after the other."""
    pair = random_pair()
    trimmed = []
    for update in (pair[0].up @ pair[0].down, pair[1].up @ pair[1].down):
        smallest = sorted(update.abs().flatten().tolist(), reverse=True)[int(density * 108) - 1]
        trimmed.append(update * (update.abs() >= smallest))
    expected = torch.zeros(12, 9, dtype=torch.float64)
    for row in range(12):
        for column in range(9):
            entries = [float(update[row, column]) for update in trimmed]
            agreeing = [entry for entry in entries if entry * sum(entries) > 0]
            expected[row, column] = sum(agreeing) / max(1, len(agreeing))
    merged = ties(pair, density=density, rank=EXACT)
    assert_close(merged.dense(), expected, rtol=1e-12, atol=1e-12)


def test_dare_by_its_equation():
    pair = random_pair()
    rng = seeded(5)
    expected = torch.zeros(12, 9, dtype=torch.float64)
    for update, weight in zip(pair, (0.7, 1.3), strict=True):
        mask = torch.bernoulli(torch.full((12, 9), 0.4), generator=rng).double()
        expected += weight * mask * (update.up @ update.down) / 0.4
    merged = dare(pair, rng=seeded(5), density=0.4, w_subject=0.7, w_style=1.3, rank=EXACT)
    assert_close(merged.dense(), expected, rtol=1e-12, atol=1e-12)


def test_dare_is_unbiased():
    """The mean of many merges is the sum, within four standard errors of each entry."""
    pair, times = random_pair(4, 3), 2000
    rng = seeded(11)
    total = torch.zeros(4, 3, dtype=torch.float64)
    for _ in range(times):
        total += dare(pair, rng=rng, density=0.5, rank=EXACT).dense()
    # (1 - density) / density = 1: the variance of an entry is the sum of both squares
    error = sum((d.dense().square() for d in pair), torch.zeros(4, 3)).div(times).sqrt()
    assert ((total / times - (pair[0] + pair[1]).dense()).abs() < 4 * error).all()


def test_dare_keeps_everything_at_density_1():
    pair = random_pair()
    expected = (pair[0] + pair[1]).dense()
    assert_close(dare(pair, rng=seeded(), density=1.0).dense(), expected, rtol=1e-12, atol=1e-12)


def test_dare_ties_is_ties_of_what_dare_keeps():
    pair, rng = random_pair(), seeded(8)
    kept = []
    for update in pair:
        mask = torch.bernoulli(torch.full((12, 9), 0.5), generator=rng).double()
        kept.append(LowRankDelta(2.0 * mask * update.dense(), torch.eye(9, dtype=torch.float64)))
    merged = dare_ties(pair, rng=seeded(8), rank=EXACT).dense()
    assert_close(merged, ties(kept, density=1.0, rank=EXACT).dense(), rtol=1e-12, atol=1e-12)


def test_della_chances_by_hand():
    chances = keep_chances(torch.tensor([[1.0, -4.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0]]), 0.5, 0.4)
    # from 0.5 + 0.4 / 2 for the largest, 0.4 / 4 less a rank
    expected = torch.tensor([[0.4, 0.7, 0.5, 0.6], [0.7, 0.6, 0.5, 0.4]])
    assert_close(chances, expected, rtol=0, atol=1e-6)


def test_della_without_epsilon_is_dare_ties():
    pair = random_pair()
    merged = della(pair, rng=seeded(4), density=0.6, epsilon=0.0, rank=EXACT)
    expected = dare_ties(pair, rng=seeded(4), density=0.6, rank=EXACT)
    assert_close(merged.dense(), expected.dense(), rtol=1e-6, atol=1e-6)  # chances are float32


def test_della_by_its_equations():
    """Each row's chances from its sorted entries; then drop, elect and fuse."""
    pair, rng = random_pair(), seeded(6)
    kept = []
    for update in pair:
        dense = update.dense()
        chances = torch.zeros(12, 9, dtype=torch.float64)
        for row in range(12):
            by_size = sorted(range(9), key=lambda column: -abs(float(dense[row, column])))
            for rank, column in enumerate(by_size):
                chances[row, column] = 1 - (0.5 - 0.1 / 2 + 0.1 * rank / 9)
        mask = torch.bernoulli(chances.float(), generator=rng).double()
        kept.append(mask * dense / chances)
    sign = (kept[0] + kept[1]).sign()
    fused = [torch.where(update.sign() == sign, update, 0.0) for update in kept]
    count = sum(((update != 0.0).double() for update in fused), torch.zeros(12, 9)).clamp(min=1)
    merged = della(pair, rng=seeded(6), rank=EXACT)
    assert_close(merged.dense(), (fused[0] + fused[1]) / count, rtol=1e-12, atol=1e-12)


def test_breadcrumbs_by_its_equation():
    """Entries between two percentiles of the magnitude, here as quantiles of a sorted list."""
    pair = random_pair(10, 10)
    expected = torch.zeros(10, 10, dtype=torch.float64)
    for update in pair:
        dense = update.dense()
        order = dense.abs().flatten().sort(descending=True).values
        kept = (dense.abs() <= order[4]) & (dense.abs() >= order[23])  # 4 dropped, 20 kept
        expected += torch.where(kept, dense, 0.0)
    merged = breadcrumbs(pair, density=0.2, outliers=0.04, rank=EXACT)
    assert_close(merged.dense(), expected, rtol=1e-12, atol=1e-12)


DRAWS = {dare, dare_ties, della}
FAMILY: list[Callable[..., LowRankDelta]] = [
    *(ties, dare, dare_ties, magnitude, della, breadcrumbs),
]


def run(method: Callable[..., LowRankDelta], pair: list[LowRankDelta], **options: Any) -> Tensor:
    supplied = {"rng": seeded(2)} if method in DRAWS else {}
    return method(pair, **supplied, **options).dense()


@pytest.mark.parametrize("method", FAMILY)
def test_low_rank_result_is_the_best_approximation_of_the_exact_one(
    method: Callable[..., LowRankDelta],
):
    pair = random_pair()
    exact = run(method, pair, rank=EXACT)
    left, values, right = torch.linalg.svd(exact, full_matrices=False)
    for rank, kept in ((None, 5), (2, 2)):
        best = left[:, :kept] * values[:kept] @ right[:kept]
        assert_close(run(method, pair, rank=rank), best, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", FAMILY)
def test_refuses_what_it_cannot_merge(method: Callable[..., LowRankDelta]):
    pair = random_pair()
    with pytest.raises(AdapterError, match=rf"{method.__name__} merges a subject and a style"):
        run(method, pair[:1])
    with pytest.raises(AdapterError, match=r"density is 0.0"):
        run(method, pair, density=0.0)
    with pytest.raises(AdapterError, match="rank is 0"):
        run(method, pair, rank=0)


def test_della_refuses_chances_out_of_range():
    for density, epsilon in ((0.9, 0.3), (0.1, 0.3), (0.5, -0.1)):
        with pytest.raises(AdapterError, match=rf"epsilon is {epsilon}: with density {density}"):
            della(random_pair(), rng=seeded(), density=density, epsilon=epsilon)
    della(random_pair(), rng=seeded(), density=0.9, epsilon=0.2 - 1e-9)
