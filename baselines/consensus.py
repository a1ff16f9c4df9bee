"""One tensor from several of one shape: their weighted sum, or the mean of those that agree."""

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of the tensors, each times its weight."""
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight)
    return total


def disjoint_mean(
    tensors: Sequence[Tensor], weights: Sequence[float], *, tie: float = 0.0
) -> Tensor:
    """TIES' last two steps: elect a sign for each entry, and average the entries that have it.

    The sign is that of the sum before weighting, and the mean divides by the number of entries
    that have it, as in Algorithm 1 of Yadav et al. 2023 and in peft. (mergekit weights first and
    divides by the weights that agree: another algorithm.) Zeros vote for nothing and are not
    counted.

    >>> a, b = torch.tensor([3.0, 2.0, 0.0]), torch.tensor([1.0, -4.0, 5.0])
    >>> disjoint_mean([a, b], [1.0, 1.0])
    tensor([ 2., -4.,  5.])

    Args:
        tensors: Of one shape.
        weights: One a tensor; it multiplies what is averaged.
        tie: The sign elected where the sum is 0: 0 gives no entry, 1 is peft's choice.
    """
    elected = weighted_sum(tensors, [1.0] * len(tensors)).sign_()
    if tie:
        elected.masked_fill_(elected == 0.0, tie)
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for tensor, weight in zip(tensors, weights, strict=True):
        agrees = (tensor * elected).gt_(0.0)  # 1 or 0, in the tensor's type: no other is as fast
        count.add_(agrees)
        total.add_(agrees.mul_(tensor), alpha=weight)
    return total.div_(count.clamp_(min=1.0))
