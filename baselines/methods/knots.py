"""KnOTS-TIES (Stoica et al. 2024, arXiv 2410.19735): TIES in a basis that both updates share.

    [dW_subject | dW_style] = U S [V_subject | V_style]        an SVD, of all columns of both
    dW = U S ties(V_subject, V_style)

Each V (k, d_in) says how its update uses the common output directions U S, so that what is compared
entry by entry means the same in both. The SVD comes from the factors, and the result has rank
r_subject + r_style without any loss. Deviations: directions whose singular value is rounding are
left out, so that they take no part in trimming; 50 % of the entries are kept, layer by layer;
weights multiply after the election, as in ``ties``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.adapter import LowRankDelta, significant
from baselines.consensus import disjoint_mean
from baselines.pair import same_precision, subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import trim


@layer_method("knots", paper="https://arxiv.org/abs/2410.19735")
def knots(
    deltas: Sequence[LowRankDelta],
    *,
    density: float = 0.5,
    w_subject: float = 1.0,
    w_style: float = 1.0,
) -> LowRankDelta:
    """Express both updates in shared output directions, and merge by TIES there.

    Args:
        deltas: The subject's and the style's update.
        density: Fraction of entries of each V kept, in ``(0, 1]``.
        w_subject: Weight of the subject's entries in the mean.
        w_style: Weight of the style's.

    Raises:
        AdapterError: If there are not two updates or the density is out of range.
    """
    subject_and_style("knots", deltas)
    basis, aligned = shared_directions(deltas)
    trimmed = [trim(rows, density) for rows in aligned]
    return LowRankDelta(basis, disjoint_mean(trimmed, [w_subject, w_style]))


def shared_directions(deltas: Sequence[LowRankDelta]) -> tuple[Tensor, list[Tensor]]:
    """U S ``(d_out, k)`` and each update's V ``(k, d_in)``: its update is their product, exactly.

    The SVD of the updates side by side, from QR decompositions of all ups and of each down.
    """
    exact = same_precision(deltas)
    up_basis, up_part = torch.linalg.qr(torch.cat([delta.up for delta in exact], 1))
    up_parts = up_part.split([delta.rank for delta in exact], 1)  # each (k, rank)
    downs = [torch.linalg.qr(delta.down.T) for delta in exact]  # each (d_in, l), (l, rank)
    cores = [part @ down.R.T for part, down in zip(up_parts, downs, strict=True)]  # (k, l)
    left, values, right = torch.linalg.svd(torch.cat(cores, 1), full_matrices=False)
    count = max(1, significant(values))
    rights = right[:count].split([core.shape[1] for core in cores], 1)
    aligned = [rows @ down.Q.T for rows, down in zip(rights, downs, strict=True)]
    return up_basis @ (left * values)[:, :count], aligned
