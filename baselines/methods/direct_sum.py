"""The direct sum: what a user gets who loads both LoRAs at once.

    dW = w_subject dW_subject + w_style dW_style

This is the sum of the *updates*, exact because the factors are concatenated. peft's
``combination_type="linear"`` adds the factors instead, which brings in products of one adapter's B
with the other's A.
"""

from collections.abc import Sequence

from baselines.adapter import AdapterError, LowRankDelta
from baselines.registry import layer_method


@layer_method("direct_sum")
def direct_sum(
    deltas: Sequence[LowRankDelta], *, w_subject: float = 1.0, w_style: float = 1.0
) -> LowRankDelta:
    """Add the updates, the subject's times ``w_subject`` and the style's times ``w_style``.

    Raises:
        AdapterError: If there are not two.
    """
    if len(deltas) != 2:
        raise AdapterError(f"direct_sum merges a subject and a style, not {len(deltas)} adapters")
    subject, style = deltas
    return w_subject * subject + w_style * style
