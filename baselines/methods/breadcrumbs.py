"""Model Breadcrumbs (Davari and Belilovsky 2023, arXiv 2312.06795): neither outliers nor dust.

    dW = sum over both of w * mask(dW_i)

The mask of a layer leaves out its largest entries by magnitude, fraction ``outliers``, and its
smallest, so that ``density`` is kept. The paper names both ends by percentiles, beta and gamma:
beta = 1 - density - outliers, gamma = 1 - outliers; it keeps about a tenth and tunes one factor for
all tasks, which is in the weights here. The result is brought to low rank: see ``baselines.dense``.
"""

from collections.abc import Sequence

from baselines.adapter import LowRankDelta
from baselines.consensus import weighted_sum
from baselines.dense import merge_matrices
from baselines.pair import subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import trim


@layer_method("breadcrumbs", paper="https://arxiv.org/abs/2312.06795")
def breadcrumbs(
    deltas: Sequence[LowRankDelta],
    *,
    density: float = 0.5,
    outliers: float = 0.01,
    w_subject: float = 1.0,
    w_style: float = 1.0,
    rank: int | None = None,
) -> LowRankDelta:
    """Add the updates, each without its smallest entries and its very largest.

    Args:
        deltas: The subject's and the style's update.
        density: Fraction of entries kept of each, in ``(0, 1]``.
        outliers: Fraction dropped as too large, in ``[0, 1)``.
        w_subject: Weight of the subject's update.
        w_style: Weight of the style's.
        rank: Of the result; None: the sum of both; the layer's smaller side: exact.

    Raises:
        AdapterError: If there are not two updates or an option is out of range.
    """
    subject_and_style("breadcrumbs", deltas)
    return merge_matrices(
        deltas,
        rank,
        lambda updates: weighted_sum(
            [trim(update, density, outliers=outliers) for update in updates], [w_subject, w_style]
        ),
    )
