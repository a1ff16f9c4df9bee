"""TSV-Merge (Gargiulo et al. 2024, arXiv 2412.00081, Algorithm 1): singular vectors, whitened.

    dW_i ~ U_i S_i V_i                                the largest singular values of each
    dW = polar([U_subject U_style]) diag(S_subject, S_style) polar([V_subject; V_style])

The polar factor, P Q^T of the SVD P D Q^T, is the nearest matrix with orthonormal columns (or
rows): it removes the interference of singular vectors of one task with those of the other. The
algorithm keeps a share of 1 / 2, for two tasks, of each layer's singular values, which is all of
them for an ordinary LoRA, whose rank is below half of the layer's width; ``rank`` keeps fewer.
Values that are rounding have no vectors worth keeping and are left out. All of it from the factors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.adapter import LowRankDelta, significant
from baselines.pair import same_precision, subject_and_style
from baselines.registry import layer_method


@layer_method("tsv_m", paper="https://arxiv.org/abs/2412.00081")
def tsv_m(
    deltas: Sequence[LowRankDelta],
    *,
    w_subject: float = 1.0,
    w_style: float = 1.0,
    rank: int | None = None,
) -> LowRankDelta:
    """Add the updates after making the singular vectors of both orthogonal to each other.

    Args:
        deltas: The subject's and the style's update.
        w_subject: Weight of the subject's singular values.
        w_style: Weight of the style's.
        rank: Singular values kept of each update; None: half of the layer's smaller side at most.

    Raises:
        AdapterError: If there are not two updates or ``rank`` is below 1.
    """
    subject_and_style("tsv_m", deltas)
    if rank is None:
        rank = max(1, min(deltas[0].shape) // 2)
    lefts, weighted, rights = [], [], []
    for delta, weight in zip(same_precision(deltas), (w_subject, w_style), strict=True):
        left, values, right = delta.truncate(rank).svd()
        count = significant(values)
        lefts.append(left[:, :count])
        weighted.append(weight * values[:count])
        rights.append(right[:count])
    values = torch.cat(weighted)
    if not len(values):
        return 0.0 * deltas[0]
    root = values.abs().sqrt()
    up = polar(torch.cat(lefts, 1)) * (root * values.sign())
    return LowRankDelta(up, root[:, None] * polar(torch.cat(rights)))


def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix, ``(n, k)`` as the given one, with orthonormal columns, or rows if k > n.

    The solution of the orthogonal Procrustes problem.
    """
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = left @ right
    return nearest
