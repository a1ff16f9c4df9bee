"""Features of paired columns, as many for every width: what a width-free hypernetwork reads.

With c_j and s_j the columns j of the subject's and of the style's update, all from the factors:

    0  ||c_j||                                   divided by both updates' root mean square column
    1  ||s_j||                                   norm, if normalised
    2  cos(c_j, s_j)
    3  ||P_s c_j|| / ||c_j||                     share inside the output space of the style's update
    4  ||P_c s_j|| / ||s_j||                     share inside the output space of the subject's
    5  ||dW_c||^2 / (||dW_c||^2 + ||dW_s||^2)    the same for all columns of a layer

None of them changes when the output features are permuted or rotated, in both updates alike.
"""

import torch
from torch import Tensor

from baselines.adapter import LowRankDelta, significant

FEATURES = 6


def column_features(subject: LowRankDelta, style: LowRankDelta, *, normalize: bool) -> Tensor:
    """The features of every pair of columns, ``(FEATURES, d_in)``; finite for zero updates, too.

    Args:
        subject: The subject's update.
        style: The style's, of the same shape and type.
        normalize: Divide the norms by the root mean square norm of both updates' columns, so that
            they do not depend on the LoRAs' strength.
    """
    norms = [_column_norms(delta.up, delta.down) for delta in (subject, style)]
    tiny = torch.finfo(norms[0].dtype).tiny
    inner = (subject.down * ((subject.up.T @ style.up) @ style.down)).sum(0)
    cosine = inner / (norms[0] * norms[1]).clamp_min(tiny)
    inside = [
        _column_norms(_output_space(other).T @ delta.up, delta.down) / norm.clamp_min(tiny)
        for delta, other, norm in ((subject, style, norms[0]), (style, subject, norms[1]))
    ]
    energies = [norm.square().sum() for norm in norms]
    share = energies[0] / (energies[0] + energies[1]).clamp_min(tiny)
    if normalize:
        both = ((energies[0] + energies[1]) / (2 * norms[0].numel())).sqrt().clamp_min(tiny)
        norms = [norm / both for norm in norms]
    return torch.stack([*norms, cosine, *inside, share.expand_as(cosine)])


def _column_norms(up: Tensor, down: Tensor) -> Tensor:
    """The norms of the columns of ``up @ down``, ``(d_in,)``, without building it."""
    square = torch.linalg.qr(up, mode="r").R @ down  # as long as the columns, and rank high
    norms: Tensor = torch.linalg.vector_norm(square, dim=0)
    return norms


def _output_space(delta: LowRankDelta) -> Tensor:
    """An orthonormal basis of the update's columns, ``(d_out, k)``; k = 0 for a zero update."""
    left, values, _ = delta.svd()
    return left[:, : significant(values)]
