"""Iso-C (Marczak et al. 2025, arXiv 2502.04959): the sum with a flat spectrum.

    w_subject dW_subject + w_style dW_style = U S V        an SVD
    dW = mean(S) U V

The paper's updates have full rank. That of a sum of LoRAs is r_subject + r_style at most: the mean
is over those singular values that are more than rounding, and no direction is added, so that the
sum of the singular values stays what it was. The paper tunes one factor for all tasks: the
weights. All of it from the factors.
"""

from collections.abc import Sequence

from baselines.adapter import LowRankDelta, significant
from baselines.pair import subject_and_style
from baselines.registry import layer_method


@layer_method("iso_c", paper="https://arxiv.org/abs/2502.04959")
def iso_c(
    deltas: Sequence[LowRankDelta], *, w_subject: float = 1.0, w_style: float = 1.0
) -> LowRankDelta:
    """Add the updates and set all singular values to their mean.

    Args:
        deltas: The subject's and the style's update.
        w_subject: Weight of the subject's update.
        w_style: Weight of the style's.

    Raises:
        AdapterError: If there are not two updates.
    """
    subject, style = subject_and_style("iso_c", deltas)
    left, values, right = (w_subject * subject + w_style * style).svd()
    count = max(1, significant(values))
    root = values[:count].mean().sqrt()
    return LowRankDelta(left[:, :count] * root, root * right[:count])
