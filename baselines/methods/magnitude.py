"""Magnitude pruning of the updates: the large entries of each, added.

    dW = sum over both of w * trim(dW_i, density)

What DARE's authors compare with, and peft's ``magnitude_prune``, here layer by layer on the
updates. The result is brought to low rank: see ``baselines.dense``.
"""

from collections.abc import Sequence

from baselines.adapter import LowRankDelta
from baselines.consensus import weighted_sum
from baselines.dense import merge_matrices
from baselines.pair import subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import trim


@layer_method("magnitude")
def magnitude(
    deltas: Sequence[LowRankDelta],
    *,
    density: float = 0.5,
    w_subject: float = 1.0,
    w_style: float = 1.0,
    rank: int | None = None,
) -> LowRankDelta:
    """Add the updates, each without its smallest entries.

    Args:
        deltas: The subject's and the style's update.
        density: Fraction of entries kept of each, in ``(0, 1]``.
        w_subject: Weight of the subject's update.
        w_style: Weight of the style's.
        rank: Of the result; None: the sum of both; the layer's smaller side: exact.

    Raises:
        AdapterError: If there are not two updates or an option is out of range.
    """
    subject_and_style("magnitude", deltas)
    return merge_matrices(
        deltas,
        rank,
        lambda updates: weighted_sum(
            [trim(update, density) for update in updates], [w_subject, w_style]
        ),
    )
