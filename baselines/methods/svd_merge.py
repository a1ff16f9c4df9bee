"""The weighted sum, truncated: peft's ``combination_type="svd"``, from the factors.

    dW = best approximation of rank ``rank`` of w_subject dW_subject + w_style dW_style

The singular values and vectors are those of the update itself, found by QR of the factors and a
small SVD (Eckart and Young 1936); peft builds the update and decomposes it in full.
"""

from collections.abc import Sequence

from baselines.adapter import LowRankDelta
from baselines.pair import subject_and_style
from baselines.registry import layer_method


@layer_method("svd_merge")
def svd_merge(
    deltas: Sequence[LowRankDelta],
    *,
    w_subject: float = 1.0,
    w_style: float = 1.0,
    rank: int | None = None,
) -> LowRankDelta:
    """Add the updates and keep the largest singular values: a merge no bigger than its parts.

    Args:
        deltas: The subject's and the style's update.
        w_subject: Weight of the subject's update.
        w_style: Weight of the style's.
        rank: Of the result; None: the larger of both, as in peft.

    Raises:
        AdapterError: If there are not two updates or ``rank`` is below 1.
    """
    subject, style = subject_and_style("svd_merge", deltas)
    merged = w_subject * subject + w_style * style
    return merged.truncate(max(subject.rank, style.rank) if rank is None else rank)
