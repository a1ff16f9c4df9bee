"""DARE on the factors: peft's ``combination_type="dare_linear"``, which LoRA.rar compared with.

DARE (Yu et al. 2023, arXiv 2311.03099) on both ups, and on both downs, which are then added, each
times the root of its adapter's weight: see ``baselines.factorwise``. Not DARE of the updates, which
is ``dare``: each adapter's own product has the right expectation here too, but products of one
adapter's up with the other's down come on top.
"""

from collections.abc import Sequence

import torch

from baselines.adapter import LowRankDelta
from baselines.consensus import weighted_sum
from baselines.factorwise import merge_factors
from baselines.pair import subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import drop


@layer_method("dare_factors", paper="https://arxiv.org/abs/2311.03099")
def dare_factors(
    deltas: Sequence[LowRankDelta],
    *,
    rng: torch.Generator,
    density: float = 0.5,
    w_subject: float = 0.5,
    w_style: float = 0.5,
) -> LowRankDelta:
    """Add ups to ups and downs to downs with entries dropped at random, as peft does.

    Args:
        deltas: The subject's and the style's update.
        rng: Draws what is kept: the subject's down, the style's down, then the ups.
        density: Chance of an entry to be kept, in ``(0, 1]``.
        w_subject: Weight of the subject; its root is on each factor.
        w_style: Weight of the style.

    Raises:
        AdapterError: If there are not two updates or the density is out of range.
    """
    subject_and_style("dare_factors", deltas)
    return merge_factors(
        deltas,
        [w_subject, w_style],
        sparsify=lambda factor: drop(factor, density, rng),
        combine=weighted_sum,
    )
