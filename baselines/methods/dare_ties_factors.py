"""DARE, then TIES' election, on the factors: peft's ``"dare_ties"``, which LoRA.rar compared with.

As ``ties_factors``, with entries dropped at random and the others rescaled (Yu et al. 2023, arXiv
2311.03099) in the place of trimming. Not the merge of the updates, which is ``dare_ties``.
"""

from collections.abc import Sequence
from functools import partial

import torch

from baselines.adapter import LowRankDelta
from baselines.consensus import disjoint_mean
from baselines.factorwise import merge_factors
from baselines.pair import subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import drop


@layer_method("dare_ties_factors", paper="https://arxiv.org/abs/2311.03099")
def dare_ties_factors(
    deltas: Sequence[LowRankDelta],
    *,
    rng: torch.Generator,
    density: float = 0.5,
    w_subject: float = 0.5,
    w_style: float = 0.5,
) -> LowRankDelta:
    """Merge ups with ups and downs with downs by DARE and TIES, as peft does.

    Args:
        deltas: The subject's and the style's update.
        rng: Draws what is kept: the subject's down, the style's down, then the ups.
        density: Chance of an entry to be kept, in ``(0, 1]``.
        w_subject: Weight of the subject; its root is on each factor.
        w_style: Weight of the style.

    Raises:
        AdapterError: If there are not two updates or the density is out of range.
    """
    subject_and_style("dare_ties_factors", deltas)
    return merge_factors(
        deltas,
        [w_subject, w_style],
        sparsify=lambda factor: drop(factor, density, rng),
        combine=partial(disjoint_mean, tie=1.0),
    )
