"""DELLA (Deep et al. 2024, arXiv 2406.11617): its steps Drop (MAGPRUNE), Elect and Fuse.

    drop   within each row of an update, that is for each output feature, entries are ranked by
           magnitude, r = 0 for the largest of n; an entry is dropped with the chance
           (1 - density) - epsilon / 2 + epsilon r / n, and divided by 1 minus it if it is kept
    elect  for each entry the sign of the sum of what is left
    fuse   the mean of the entries that have this sign

With epsilon 0 it is ``dare_ties``. The paper tunes density, epsilon and a factor lambda for each
merge; here epsilon is 0.1, and lambda is in the weights. An entry whose sum is 0 becomes 0. The
result is brought to low rank: see ``baselines.dense``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.adapter import AdapterError, LowRankDelta
from baselines.consensus import disjoint_mean
from baselines.dense import merge_matrices
from baselines.pair import subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import check_density, drop


@layer_method("della", paper="https://arxiv.org/abs/2406.11617")
def della(
    deltas: Sequence[LowRankDelta],
    *,
    rng: torch.Generator,
    density: float = 0.5,
    epsilon: float = 0.1,
    w_subject: float = 1.0,
    w_style: float = 1.0,
    rank: int | None = None,
) -> LowRankDelta:
    """Drop entries at random, small ones more often, elect signs, and average what has them.

    Args:
        deltas: The subject's and the style's update.
        rng: Draws what is kept, for the subject first.
        density: Chance of an entry of middle rank to be kept, in ``(0, 1]``.
        epsilon: How much higher the chance of a row's largest entry is than of its smallest.
        w_subject: Weight of the subject's entries in the mean.
        w_style: Weight of the style's.
        rank: Of the result; None: the sum of both; the layer's smaller side: exact.

    Raises:
        AdapterError: If there are not two updates or an option is out of range.
    """
    subject_and_style("della", deltas)
    check_density(density)
    if not 0.0 <= epsilon <= 2.0 * min(1.0 - density, density):
        raise AdapterError(
            f"della: epsilon is {epsilon}: with density {density} it is at least 0 and at most "
            f"{2.0 * min(1.0 - density, density):g}, so that every chance is in [0, 1]"
        )
    return merge_matrices(
        deltas,
        rank,
        lambda updates: disjoint_mean(
            [drop(update, keep_chances(update, density, epsilon), rng) for update in updates],
            [w_subject, w_style],
        ),
    )


def keep_chances(update: Tensor, density: float, epsilon: float) -> Tensor:
    """MAGPRUNE's chance of each entry to be kept, ``(d_out, d_in)``.

    It falls from ``density + epsilon / 2`` for the largest entry of a row, by epsilon / d_in a
    rank; equal entries take theirs in the order of the columns.
    """
    d_in = update.shape[1]
    ramp = density + epsilon / 2 - epsilon * torch.arange(d_in).to(update) / d_in  # (d_in,)
    order = update.abs().argsort(dim=1, descending=True, stable=True)  # (d_out, d_in)
    ramp = ramp.clamp(max=1.0)  # the sum may round up
    return torch.empty_like(update).scatter_(1, order, ramp.expand_as(update))
