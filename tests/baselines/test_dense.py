"""From a matrix to low rank: exact where that is possible, near the best where it is iterated."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from baselines import AdapterError, LowRankDelta
from baselines.dense import low_rank, merge_matrices


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_is_the_matrix_itself_from_the_smaller_side_on(shape: tuple[int, int]):
    matrix = random(*shape)
    for rank in (min(shape), 1000):
        kept = low_rank(matrix, rank)
        assert torch.equal(kept.dense(), matrix)
        assert kept.rank == min(shape)


def test_small_matrices_get_the_best_approximation():
    matrix = random(20, 30)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    best = left[:, :7] * values[:7] @ right[:7]
    assert_close(low_rank(matrix, 7).dense(), best, rtol=1e-12, atol=1e-12)


def test_iteration_is_exact_for_a_matrix_of_no_higher_rank():
    matrix = random(300, 5) @ random(5, 200, seed=1)
    assert_close(low_rank(matrix, 8).dense(), matrix, rtol=1e-12, atol=1e-12)


def test_iteration_is_near_the_best_for_a_low_rank_matrix_in_noise():
    down = random(8, 200, seed=1)
    matrix = random(300, 8) @ down + 0.5 * random(300, 200, seed=2)
    best = torch.linalg.svdvals(matrix)[8:].square().sum().sqrt()
    for start in (None, down):
        found = low_rank(matrix, 8, start=start)
        assert found.rank == 8
        error = torch.linalg.matrix_norm(matrix - found.dense())
        assert (1 - 1e-12) * best <= error <= (1 + 1e-8) * best


def test_iteration_is_within_a_hundredth_of_the_best_for_noise_alone():
    """The hardest case: all singular values are alike, so that nothing stands out."""
    matrix = random(300, 200)
    best = torch.linalg.svdvals(matrix)[8:].square().sum().sqrt()
    error = torch.linalg.matrix_norm(matrix - low_rank(matrix, 8).dense())
    assert best <= error <= 1.01 * best  # measured: 1.003


def test_start_may_be_longer_or_shorter_than_the_rank():
    matrix = random(300, 5) @ random(5, 200, seed=1)
    for rows in (1, 5, 12):
        found = low_rank(matrix, 6, start=random(rows, 200, seed=3))
        assert_close(found.dense(), matrix, rtol=1e-12, atol=1e-12)


def test_iteration_is_the_same_for_permuted_outputs():
    matrix, order = random(300, 200), torch.arange(299, -1, -1)
    permuted = low_rank(matrix[order], 8).dense()
    assert_close(permuted, low_rank(matrix, 8).dense()[order], rtol=1e-10, atol=1e-10)


def test_merged_rank_is_the_sum_unless_another_is_asked_for():
    one = LowRankDelta(random(30, 2), random(2, 40))
    two = LowRankDelta(random(30, 3), random(3, 40))

    def spread(matrices: list[Tensor]) -> Tensor:
        return matrices[0] + matrices[1].abs()

    assert merge_matrices([one, two], None, spread).rank == 5
    assert merge_matrices([one, two], 7, spread).rank == 7
    exact = merge_matrices([one, two], 30, spread)
    assert_close(exact.dense(), one.dense() + two.dense().abs(), rtol=1e-12, atol=1e-12)


def test_merged_in_the_better_precision():
    one = LowRankDelta(random(4, 2), random(2, 5))
    half = one.to(dtype=torch.float16)
    assert merge_matrices([half, one], 4, lambda m: m[0] - m[1]).up.dtype == torch.float64
    assert merge_matrices([half, half], 4, lambda m: m[0] - m[1]).up.dtype == torch.float32


def test_refuses():
    one, wide = LowRankDelta(random(4, 1), random(1, 5)), LowRankDelta(random(4, 1), random(1, 6))
    with pytest.raises(AdapterError, match=r"\(4, 5\), \(4, 6\) cannot be merged"):
        merge_matrices([one, wide], None, lambda matrices: matrices[0])
    with pytest.raises(AdapterError, match="rank is 0"):
        merge_matrices([one, one], 0, lambda matrices: matrices[0])
    with pytest.raises(AdapterError, match="rank is -1"):
        low_rank(random(300, 200), -1)
