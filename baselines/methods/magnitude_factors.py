"""Magnitude pruning of the factors: peft's ``combination_type="magnitude_prune"``.

The large entries of both ups are added, and those of both downs, each times the root of its
adapter's weight: see ``baselines.factorwise``. Not pruning of the updates, which is ``magnitude``.
"""

from collections.abc import Sequence

from baselines.adapter import LowRankDelta
from baselines.consensus import weighted_sum
from baselines.factorwise import merge_factors
from baselines.pair import subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import trim


@layer_method("magnitude_factors")
def magnitude_factors(
    deltas: Sequence[LowRankDelta],
    *,
    density: float = 0.5,
    w_subject: float = 0.5,
    w_style: float = 0.5,
) -> LowRankDelta:
    """Add ups to ups and downs to downs without their smallest entries, as peft does.

    Args:
        deltas: The subject's and the style's update.
        density: Fraction of entries kept of each factor, in ``(0, 1]``.
        w_subject: Weight of the subject; its root is on each factor.
        w_style: Weight of the style.

    Raises:
        AdapterError: If there are not two updates or the density is out of range.
    """
    subject_and_style("magnitude_factors", deltas)
    return merge_factors(
        deltas,
        [w_subject, w_style],
        sparsify=lambda factor: trim(factor, density),
        combine=weighted_sum,
    )
