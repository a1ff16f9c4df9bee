"""TIES in Core Space (Panariello et al. 2025, arXiv 2509.17786, id not verified).

A small space that loses nothing holds both updates:

    U: left singular vectors of [B_subject B_style];  V: right ones of [A_subject; A_style]
    M = U^T B A V^T                                   each update's core, (k, l), k and l at most
                                                      r_subject + r_style
    dW = U ties(M_subject, M_style) V

Ranks may differ. The paper merges cores by several methods; those that depend on singular values
and vectors alone (``tsv_m``, ``iso_c``) give the same in Core Space as outside it, so TIES, which
depends on the axes, is what is offered. Deviations: directions whose singular value is rounding are
left out; alpha / rank is in B; density and weights as in ``ties``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.adapter import LowRankDelta, significant
from baselines.consensus import disjoint_mean
from baselines.pair import same_precision, subject_and_style
from baselines.registry import layer_method
from baselines.sparsify import trim


@layer_method("core_space", paper="https://arxiv.org/abs/2509.17786")
def core_space(
    deltas: Sequence[LowRankDelta],
    *,
    density: float = 0.5,
    w_subject: float = 1.0,
    w_style: float = 1.0,
) -> LowRankDelta:
    """Bring both updates to a small common space, merge by TIES there, and come back.

    Args:
        deltas: The subject's and the style's update.
        density: Fraction of entries of each core kept, in ``(0, 1]``.
        w_subject: Weight of the subject's entries in the mean.
        w_style: Weight of the style's.

    Raises:
        AdapterError: If there are not two updates or the density is out of range.
    """
    subject_and_style("core_space", deltas)
    up_basis, cores, down_basis = to_core_space(deltas)
    merged = disjoint_mean([trim(core, density) for core in cores], [w_subject, w_style])
    return LowRankDelta(up_basis @ merged, down_basis)


def to_core_space(deltas: Sequence[LowRankDelta]) -> tuple[Tensor, list[Tensor], Tensor]:
    """U ``(d_out, k)``, the cores ``(k, l)``, V ``(l, d_in)``: an update is U core V, exactly."""
    exact = same_precision(deltas)
    left, values, _ = torch.linalg.svd(torch.cat([d.up for d in exact], 1), full_matrices=False)
    up_basis = left[:, : max(1, significant(values))]
    _, values, right = torch.linalg.svd(torch.cat([d.down for d in exact]), full_matrices=False)
    down_basis = right[: max(1, significant(values))]
    cores = [(up_basis.T @ delta.up) @ (delta.down @ down_basis.T) for delta in exact]
    return up_basis, cores, down_basis
