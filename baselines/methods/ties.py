"""TIES on the updates (Yadav et al. 2023, arXiv 2306.01708, Section 3, Algorithm 1).

    trim   keep the largest ``density`` of each update's entries
    elect  for each entry the sign of the sum of what is left
    merge  the mean of the entries that have this sign

Algorithm 1, with its lambda at 1, keeps 20 % of each task's entries over all layers; here they are
counted layer by layer, as in peft, and 50 % are kept, as where LoRA.rar compared with TIES. An
entry whose sum is 0 has no sign and becomes 0. A weight multiplies an update's entries after the
election, as in peft. The result is brought to low rank: see ``baselines.dense``.
"""

from collections.abc import Sequence

from baselines.adapter import LowRankDelta
from baselines.consensus import disjoint_mean
from baselines.dense import merge_matrices
from baselines.pair import subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import trim


@layer_method("ties", paper="https://arxiv.org/abs/2306.01708")
def ties(
    deltas: Sequence[LowRankDelta],
    *,
    density: float = 0.5,
    w_subject: float = 1.0,
    w_style: float = 1.0,
    rank: int | None = None,
) -> LowRankDelta:
    """Trim both updates, elect the sign of each entry, and average the entries that have it.

    Args:
        deltas: The subject's and the style's update.
        density: Fraction of entries kept of each, in ``(0, 1]``.
        w_subject: Weight of the subject's entries in the mean.
        w_style: Weight of the style's.
        rank: Of the result; None: the sum of both; the layer's smaller side: exact.

    Raises:
        AdapterError: If there are not two updates or an option is out of range.
    """
    subject_and_style("ties", deltas)
    return merge_matrices(
        deltas,
        rank,
        lambda updates: disjoint_mean(
            [trim(update, density) for update in updates], [w_subject, w_style]
        ),
    )
