"""Merges of the factors instead of the updates, as peft's ``add_weighted_adapter`` makes them.

The ups are merged with each other, and the downs with each other, so the merged update has
products of one adapter's up with the other's down, as large as what is wanted. LoRA.rar compared
with TIES and DARE in this form, weights 0.5 and 0.5, density 0.5.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn.functional import pad

from baselines.adapter import LowRankDelta
from baselines.pair import same_precision


def merge_factors(
    deltas: Sequence[LowRankDelta],
    weights: Sequence[float],
    *,
    sparsify: Callable[[Tensor], Tensor],
    combine: Callable[[Sequence[Tensor], Sequence[float]], Tensor],
) -> LowRankDelta:
    """Sparsify the factors and combine them, each times the root of its adapter's weight.

    As peft does, downs first, the sign of a negative weight on the down. Two differences: peft
    refuses adapters of different ranks, here the smaller factors are padded with zeros once they
    are sparse; and peft puts the root of alpha / rank on each factor, while here it is in the up
    (the same for alpha = rank, which is how the paper's adapters were trained).

    Args:
        deltas: Of one layer.
        weights: One an update.
        sparsify: Drops entries of a factor.
        combine: Makes one factor of several of one shape, given their weights.
    """
    rank = max(delta.rank for delta in deltas)
    exact = same_precision(deltas)
    roots = [math.sqrt(abs(weight)) for weight in weights]
    signed = [math.copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]
    downs = [pad(sparsify(delta.down), (0, 0, 0, rank - delta.rank)) for delta in exact]
    ups = [pad(sparsify(delta.up), (0, rank - delta.rank)) for delta in exact]
    return LowRankDelta(combine(ups, roots), combine(downs, signed))
