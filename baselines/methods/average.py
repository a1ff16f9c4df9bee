"""The weighted average of the updates: weights that sum to 1, so that strength is kept.

dW = weight dW_subject + (1 - weight) dW_style
"""

from collections.abc import Sequence

from baselines.adapter import AdapterError, LowRankDelta
from baselines.registry import layer_method


@layer_method("average")
def average(deltas: Sequence[LowRankDelta], *, weight: float = 0.5) -> LowRankDelta:
    """Average the updates: ``weight``, in ``[0, 1]``, for the subject, the rest for the style.

    Raises:
        AdapterError: If there are not two updates, or ``weight`` is out of range.
    """
    if len(deltas) != 2:
        raise AdapterError(f"average merges a subject and a style, not {len(deltas)} adapters")
    if not 0.0 <= weight <= 1.0:
        raise AdapterError(f"average: weight is {weight}, it must be in [0, 1]; see direct_sum")
    subject, style = deltas
    return weight * subject + (1.0 - weight) * style
