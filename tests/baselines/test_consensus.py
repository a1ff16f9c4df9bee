"""The weighted sum and the mean of entries that agree in sign."""

import torch
from torch.testing import assert_close

from baselines.consensus import disjoint_mean, weighted_sum


def test_weighted_sum_by_hand():
    total = weighted_sum([torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0])], [2.0, -1.0])
    assert total.tolist() == [-1.0, 8.0]


def test_disjoint_mean_by_hand():
    a = torch.tensor([3.0, 2.0, 0.0, 1.0, 0.0, -1.0])
    b = torch.tensor([1.0, -4.0, 5.0, -1.0, 0.0, -3.0])
    # agree; the second is larger; one is there; no sign; nothing; agree
    assert disjoint_mean([a, b], [1.0, 1.0]).tolist() == [2.0, -4.0, 5.0, 0.0, 0.0, -2.0]
    # peft's tie: the positive one
    assert disjoint_mean([a, b], [1.0, 1.0], tie=1.0).tolist() == [2.0, -4.0, 5.0, 1.0, 0.0, -2.0]


def test_weights_come_after_the_election_and_do_not_change_the_divisor():
    a, b = torch.tensor([1.0, 4.0]), torch.tensor([-3.0, 2.0])
    # weighted first, 100 would win the first entry
    assert disjoint_mean([a, b], [100.0, 1.0]).tolist() == [-3.0, 201.0]


def test_three_tensors_entry_by_entry():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    tensors[0][tensors[0].abs() < 0.5] = 0.0
    weights = [0.5, 2.0, 1.0]
    merged = disjoint_mean(tensors, weights)
    for row in range(5):
        for column in range(4):
            entries = [float(tensor[row, column]) for tensor in tensors]
            agrees = [x * sum(entries) > 0 for x in entries]
            parts = [w * x * a for w, x, a in zip(weights, entries, agrees, strict=True)]
            expected = sum(parts) / sum(agrees)
            assert_close(merged[row, column].item(), expected, rtol=1e-12, atol=1e-12)


def test_arguments_are_left_alone():
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    weighted_sum([a, b], [2.0, 2.0])
    disjoint_mean([a, b], [2.0, 2.0], tie=1.0)
    assert a.tolist() == [1.0, -2.0]
    assert b.tolist() == [3.0, 4.0]
