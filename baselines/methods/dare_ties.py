"""DARE, then TIES' sign election, on the updates (Yu et al. 2023, arXiv 2311.03099).

As ``ties``, with entries dropped at random and the others rescaled in the place of trimming; the
same deviations, and the same limits of low rank as ``dare``.
"""

from collections.abc import Sequence

import torch

from baselines.adapter import LowRankDelta
from baselines.consensus import disjoint_mean
from baselines.dense import merge_matrices
from baselines.pair import subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import drop


@layer_method("dare_ties", paper="https://arxiv.org/abs/2311.03099")
def dare_ties(
    deltas: Sequence[LowRankDelta],
    *,
    rng: torch.Generator,
    density: float = 0.5,
    w_subject: float = 1.0,
    w_style: float = 1.0,
    rank: int | None = None,
) -> LowRankDelta:
    """Drop entries at random and rescale, elect signs, and average the entries that have them.

    Args:
        deltas: The subject's and the style's update.
        rng: Draws what is kept, for the subject first.
        density: Chance of an entry to be kept, in ``(0, 1]``.
        w_subject: Weight of the subject's entries in the mean.
        w_style: Weight of the style's.
        rank: Of the result; None: the sum of both; the layer's smaller side: exact.

    Raises:
        AdapterError: If there are not two updates or an option is out of range.
    """
    subject_and_style("dare_ties", deltas)
    return merge_matrices(
        deltas,
        rank,
        lambda updates: disjoint_mean(
            [drop(update, density, rng) for update in updates], [w_subject, w_style]
        ),
    )
