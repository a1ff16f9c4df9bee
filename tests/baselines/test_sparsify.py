"""Trimming by magnitude and dropping at random: counts, ranges, expectation."""

import pytest
import torch
from torch.testing import assert_close

from baselines import AdapterError
from baselines.sparsify import drop, trim


def test_trim_by_hand():
    tensor = torch.tensor([[1.0, -4.0], [3.0, -2.0]])
    assert trim(tensor, 0.5).tolist() == [[0.0, -4.0], [3.0, 0.0]]
    assert trim(tensor, 0.75).tolist() == [[0.0, -4.0], [3.0, -2.0]]
    assert trim(tensor, 1.0).tolist() == tensor.tolist()
    assert trim(tensor, 0.5, outliers=0.25).tolist() == [[0.0, 0.0], [3.0, -2.0]]
    assert trim(tensor, 0.75, outliers=0.25).tolist() == [[1.0, 0.0], [3.0, -2.0]]


def test_trim_rounds_down_but_never_to_nothing():
    tensor = torch.arange(1.0, 11.0)
    assert trim(tensor, 0.19).count_nonzero() == 1
    assert trim(tensor, 0.29).count_nonzero() == 2
    assert trim(tensor, 0.01).tolist() == [0.0] * 9 + [10.0]
    # too few entries for an outlier: none is dropped, and not all of them either
    assert trim(tensor, 0.2, outliers=0.01).tolist() == [0.0] * 8 + [9.0, 10.0]
    assert trim(torch.tensor([2.0]), 0.5).tolist() == [2.0]


def test_trim_keeps_exactly_as_many_of_equal_entries():
    assert trim(torch.ones(8), 0.5).sum() == 4.0


def test_trim_leaves_its_argument_alone():
    tensor = torch.tensor([1.0, -4.0, 3.0])
    trim(tensor, 0.4, outliers=0.34)
    assert tensor.tolist() == [1.0, -4.0, 3.0]


@pytest.mark.parametrize(
    ("density", "outliers", "message"),
    [
        (0.0, 0.0, r"density is 0.0: .* in \(0, 1\]"),
        (1.5, 0.0, r"density is 1.5"),
        (0.5, 1.0, r"outliers is 1.0, density 0.5"),
        (0.5, -0.1, r"outliers is -0.1"),
        (0.5, 0.6, r"both add up to 1 at most"),
    ],
)
def test_trim_refuses(density: float, outliers: float, message: str):
    with pytest.raises(AdapterError, match=message):
        trim(torch.ones(4), density, outliers=outliers)


def test_drop_keeps_a_share_and_rescales_it():
    rng = torch.Generator().manual_seed(0)
    dropped = drop(torch.full((400, 400), 3.0), 0.25, rng)
    assert set(dropped.unique().tolist()) == {0.0, 12.0}
    share = (dropped != 0.0).double().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 160_000) ** 0.5  # four standard errors


def test_drop_with_a_chance_for_each_entry():
    chances = torch.tensor([1.0, 0.5, 0.1]).expand(50_000, 3)
    dropped = drop(torch.ones(50_000, 3), chances, torch.Generator().manual_seed(1))
    assert_close(dropped.max(0).values, torch.tensor([1.0, 2.0, 10.0]))
    for column, chance in zip(dropped.T, (1.0, 0.5, 0.1), strict=True):
        error = ((1 - chance) / chance / 50_000) ** 0.5
        assert abs(column.mean().item() - 1.0) <= 4 * error + 1e-6


def test_drop_draws_nothing_at_density_1_and_the_same_for_every_precision():
    tensor = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(7)
    before = rng.get_state()
    assert torch.equal(drop(tensor, 1.0, rng), tensor)
    assert torch.equal(rng.get_state(), before)
    single = drop(tensor, 0.5, torch.Generator().manual_seed(7))
    double = drop(tensor.double(), 0.5, torch.Generator().manual_seed(7))
    assert double.dtype == torch.float64
    assert torch.equal(single, double.float())


@pytest.mark.parametrize("density", [0.0, 1.1, torch.tensor([0.0, 1.0]), torch.tensor([0.5, 1.5])])
def test_drop_refuses(density: float | torch.Tensor):
    with pytest.raises(AdapterError, match=r"\(0, 1\]"):
        drop(torch.ones(2), density, torch.Generator())


def test_drop_gives_the_draws_of_bernoulli():
    tensor = torch.randn(33, 65, generator=torch.Generator().manual_seed(0))
    for density in (0.5, 0.3, 1 / 3, 0.001):
        kept = torch.bernoulli(
            torch.full(tensor.shape, density), generator=torch.Generator().manual_seed(4)
        )
        dropped = drop(tensor, density, torch.Generator().manual_seed(4))
        assert torch.equal(dropped, tensor * kept / density)
