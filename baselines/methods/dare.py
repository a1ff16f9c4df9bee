"""DARE on the updates (Yu et al. 2023, arXiv 2311.03099): drop entries at random and rescale.

    dW = sum over both of w * (m * dW_i) / density,  m[j, k] ~ Bernoulli(density)

The expectation is the weighted sum. The paper drops with a rate p = 1 - density, mostly .9 and
more, and merges what is left by other methods; this is its task arithmetic, and 50 % are kept, as
where LoRA.rar compared with DARE. The result is brought to low rank (see ``baselines.dense``),
which takes back part of the noise that the dropping made.
"""

from collections.abc import Sequence

import torch

from baselines.adapter import LowRankDelta
from baselines.consensus import weighted_sum
from baselines.dense import merge_matrices
from baselines.pair import subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import drop


@layer_method("dare", paper="https://arxiv.org/abs/2311.03099")
def dare(
    deltas: Sequence[LowRankDelta],
    *,
    rng: torch.Generator,
    density: float = 0.5,
    w_subject: float = 1.0,
    w_style: float = 1.0,
    rank: int | None = None,
) -> LowRankDelta:
    """Add the updates, each with entries dropped at random and the others rescaled.

    Args:
        deltas: The subject's and the style's update.
        rng: Draws what is kept, for the subject first.
        density: Chance of an entry to be kept, in ``(0, 1]``.
        w_subject: Weight of the subject's update.
        w_style: Weight of the style's.
        rank: Of the result; None: the sum of both; the layer's smaller side: exact.

    Raises:
        AdapterError: If there are not two updates or an option is out of range.
    """
    subject_and_style("dare", deltas)
    return merge_matrices(
        deltas,
        rank,
        lambda updates: weighted_sum(
            [drop(update, density, rng) for update in updates], [w_subject, w_style]
        ),
    )
