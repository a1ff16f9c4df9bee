"""TIES on the factors: peft's ``combination_type="ties"``, which LoRA.rar compared with.

TIES (Yadav et al. 2023, arXiv 2306.01708, Algorithm 1) on both ups, and on both downs, each times
the root of its adapter's weight: see ``baselines.factorwise``. Not TIES of the updates, which is
``ties``. As in peft, and against the paper, an entry whose sum is 0 is elected positive.
"""

from collections.abc import Sequence
from functools import partial

from baselines.adapter import LowRankDelta
from baselines.consensus import disjoint_mean
from baselines.factorwise import merge_factors
from baselines.pair import subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import trim


@layer_method("ties_factors", paper="https://arxiv.org/abs/2306.01708")
def ties_factors(
    deltas: Sequence[LowRankDelta],
    *,
    density: float = 0.5,
    w_subject: float = 0.5,
    w_style: float = 0.5,
) -> LowRankDelta:
    """Merge ups with ups and downs with downs by TIES, as peft does.

    Args:
        deltas: The subject's and the style's update.
        density: Fraction of entries kept of each factor, in ``(0, 1]``.
        w_subject: Weight of the subject; its root is on each factor.
        w_style: Weight of the style.

    Raises:
        AdapterError: If there are not two updates or the density is out of range.
    """
    subject_and_style("ties_factors", deltas)
    return merge_factors(
        deltas,
        [w_subject, w_style],
        sparsify=lambda factor: trim(factor, density),
        combine=partial(disjoint_mean, tie=1.0),
    )
