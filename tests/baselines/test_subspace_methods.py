"""Merges in a subspace, from the factors: SVD, KnOTS, Core Space, TSV-M, Iso-C, NP-LoRA."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.testing import assert_close

from baselines import AdapterError, LowRankDelta
from baselines.methods.core_space import core_space, to_core_space
from baselines.methods.iso_c import iso_c
from baselines.methods.knots import knots, shared_directions
from baselines.methods.np_lora import np_lora
from baselines.methods.svd_merge import svd_merge
from baselines.methods.ties import ties
from baselines.methods.tsv_m import polar, tsv_m

D_OUT, D_IN = 14, 11
ONE: dict[str, float] = {"rtol": 1e-12, "atol": 1e-12}


def random_delta(seed: int, rank: int) -> LowRankDelta:
    rng = torch.Generator().manual_seed(seed)
    return LowRankDelta(
        torch.randn(D_OUT, rank, generator=rng, dtype=torch.float64),
        torch.randn(rank, D_IN, generator=rng, dtype=torch.float64),
    )


@pytest.fixture
def pair() -> list[LowRankDelta]:
    return [random_delta(0, 2), random_delta(1, 3)]


def delta(matrix: list[list[float]]) -> LowRankDelta:
    return LowRankDelta.from_dense(torch.tensor(matrix, dtype=torch.float64))


# svd_merge


def test_svd_merge_by_hand():
    merged = svd_merge([delta([[3.0, 0.0], [0.0, 0.0]]), delta([[0.0, 0.0], [0.0, 2.0]])])
    assert merged.rank == 1
    assert_close(merged.dense(), torch.diag(torch.tensor([3.0, 0.0], dtype=torch.float64)), **ONE)


@pytest.mark.parametrize(("rank", "kept"), [(None, 3), (1, 1), (4, 4), (50, 5)])
def test_svd_merge_is_the_truncated_svd_of_the_sum(
    pair: list[LowRankDelta], rank: int | None, kept: int
):
    total = 0.6 * pair[0].dense() + 1.4 * pair[1].dense()
    left, values, right = torch.linalg.svd(total, full_matrices=False)
    merged = svd_merge(pair, w_subject=0.6, w_style=1.4, rank=rank)
    assert merged.rank == kept
    assert_close(merged.dense(), left[:, :kept] * values[:kept] @ right[:kept], **ONE)


# knots


def test_knots_directions_lose_nothing(pair: list[LowRankDelta]):
    basis, aligned = shared_directions(pair)
    assert basis.shape == (D_OUT, 5)
    for rows, update in zip(aligned, pair, strict=True):
        assert_close(basis @ rows, update.dense(), **ONE)


def test_knots_directions_are_the_svd_of_both_side_by_side(pair: list[LowRankDelta]):
    basis, aligned = shared_directions(pair)
    values = torch.linalg.svdvals(torch.cat([d.dense() for d in pair], 1))[:5]
    assert_close(basis.T @ basis, torch.diag(values.square()), rtol=1e-12, atol=1e-10)
    rows = torch.cat(aligned, 1)
    assert_close(rows @ rows.T, torch.eye(5, dtype=torch.float64), **ONE)


@pytest.mark.parametrize("density", [0.4, 1.0])
def test_knots_equals_the_dense_algorithm(pair: list[LowRankDelta], density: float):
    """The SVD of the matrices themselves, TIES on its V blocks, and back."""
    both = torch.cat([d.dense() for d in pair], 1)
    left, values, right = torch.linalg.svd(both, full_matrices=False)
    blocks = [
        LowRankDelta(torch.eye(5, dtype=torch.float64), right[:5, :D_IN]),
        LowRankDelta(torch.eye(5, dtype=torch.float64), right[:5, D_IN:]),
    ]
    merged = ties(blocks, density=density, w_style=0.7, rank=D_IN).dense()
    expected = left[:, :5] * values[:5] @ merged
    assert_close(knots(pair, density=density, w_style=0.7).dense(), expected, **ONE)


def test_knots_by_hand():
    """Both use one output direction, so their rows are compared as they are."""
    subject, style = delta([[3.0, 1.0], [0.0, 0.0]]), delta([[1.0, -5.0], [0.0, 0.0]])
    expected = torch.tensor([[2.0, -5.0], [0.0, 0.0]], dtype=torch.float64)
    assert_close(knots([subject, style], density=1.0).dense(), expected, **ONE)
    trimmed = torch.tensor([[3.0, -5.0], [0.0, 0.0]], dtype=torch.float64)
    assert_close(knots([subject, style], density=0.5).dense(), trimmed, **ONE)


def test_knots_leaves_out_directions_that_are_rounding(pair: list[LowRankDelta]):
    basis, _ = shared_directions([pair[0], -1.0 * pair[0]])
    assert basis.shape == (D_OUT, 2)


# core_space


def test_core_space_loses_nothing(pair: list[LowRankDelta]):
    up_basis, cores, down_basis = to_core_space(pair)
    for core, update in zip(cores, pair, strict=True):
        assert core.shape == (5, 5)
        assert_close(up_basis @ core @ down_basis, update.dense(), **ONE)
    eye = torch.eye(5, dtype=torch.float64)
    assert_close(up_basis.T @ up_basis, eye, **ONE)
    assert_close(down_basis @ down_basis.T, eye, **ONE)


@pytest.mark.parametrize("density", [0.4, 1.0])
def test_core_space_equals_its_equations(pair: list[LowRankDelta], density: float):
    """Cores as U^T dW V from dense updates and scipy's bases, TIES on them, and back."""
    ups = torch.cat([d.up for d in pair], 1).numpy()
    downs = torch.cat([d.down for d in pair]).numpy()
    left = torch.from_numpy(scipy.linalg.svd(ups, full_matrices=False)[0])
    right = torch.from_numpy(scipy.linalg.svd(downs, full_matrices=False)[2])
    eye = torch.eye(5, dtype=torch.float64)
    cores = [LowRankDelta(left.T @ d.dense() @ right.T, eye) for d in pair]
    expected = left @ ties(cores, density=density, w_subject=0.7, rank=5).dense() @ right
    assert_close(core_space(pair, density=density, w_subject=0.7).dense(), expected, **ONE)


def test_core_space_by_hand():
    """Factors of unequal size along the axes, so that the cores are entries of the updates."""
    eye = torch.eye(2, dtype=torch.float64)
    subject = LowRankDelta(eye[:, :1], 3.0 * eye[:1])  # [[3, 0], [0, 0]]
    style = LowRankDelta(4.0 * eye, torch.tensor([[-1.0, 0.0], [0.0, 0.5]]).double())
    # cores, up to order and signs of the axes: 3 alone against -4 and 2; -4 wins over 3
    expected = torch.tensor([[-4.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert_close(core_space([subject, style], density=1.0).dense(), expected, **ONE)


def test_methods_of_the_spectrum_are_the_same_in_core_space(pair: list[LowRankDelta]):
    """Why Core Space is offered with TIES alone."""
    up_basis, cores, down_basis = to_core_space(pair)
    eye = torch.eye(5, dtype=torch.float64)
    inside = [LowRankDelta(core, eye) for core in cores]
    lifted = up_basis @ iso_c(inside).dense() @ down_basis
    assert_close(lifted, iso_c(pair).dense(), rtol=1e-10, atol=1e-10)
    lifted = up_basis @ tsv_m(inside, rank=3).dense() @ down_basis
    assert_close(lifted, tsv_m(pair, rank=3).dense(), rtol=1e-10, atol=1e-10)


# tsv_m


def test_tsv_m_by_hand():
    """Orthogonal updates have nothing to whiten; equal directions are shared out."""
    subject, style = delta([[3.0, 0.0], [0.0, 0.0]]), delta([[0.0, 0.0], [0.0, 2.0]])
    expected = torch.diag(torch.tensor([3.0, 2.0], dtype=torch.float64))
    assert_close(tsv_m([subject, style]).dense(), expected, **ONE)
    # outputs (1, 0) and (4, 3) / 5, 37 degrees apart: each is turned away to make 90
    style = delta([[0.0, 8.0], [0.0, 6.0]])
    cos, sin = np.cos(np.arccos(0.8) / 2 - np.pi / 4), np.sin(np.arccos(0.8) / 2 - np.pi / 4)
    expected = torch.tensor([[3 * cos, -10 * sin], [3 * sin, 10 * cos]], dtype=torch.float64)
    assert_close(tsv_m([subject, style]).dense(), expected, **ONE)


@pytest.mark.parametrize("rank", [None, 1, 2])
def test_tsv_m_equals_the_dense_algorithm(pair: list[LowRankDelta], rank: int | None):
    """SVDs of the matrices, and scipy's polar decomposition."""
    lefts, values, rights = [], [], []
    for update, weight, own in zip(pair, (0.9, 1.2), (2, 3), strict=True):
        left, value, right = np.linalg.svd(update.dense().numpy(), full_matrices=False)
        kept = min(own, rank or own)
        lefts.append(left[:, :kept])
        values.append(weight * value[:kept])
        rights.append(right[:kept])
    left = scipy.linalg.polar(np.concatenate(lefts, 1))[0]
    right = scipy.linalg.polar(np.concatenate(rights))[0]
    expected = torch.from_numpy(left * np.concatenate(values) @ right)
    merged = tsv_m(pair, w_subject=0.9, w_style=1.2, rank=rank)
    assert_close(merged.dense(), expected, **ONE)


def test_polar_is_orthonormal_on_its_shorter_side():
    rng = torch.Generator().manual_seed(0)
    tall = torch.randn(7, 3, generator=rng, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    assert_close(polar(tall).T @ polar(tall), eye, **ONE)
    assert_close(polar(tall.T) @ polar(tall.T).T, eye, **ONE)


# iso_c


def test_iso_c_by_hand():
    subject, style = delta([[3.0, 0.0], [0.0, 0.0]]), delta([[0.0, 0.0], [0.0, -1.0]])
    expected = torch.diag(torch.tensor([2.0, -2.0], dtype=torch.float64))
    assert_close(iso_c([subject, style]).dense(), expected, **ONE)


def test_iso_c_equals_the_dense_algorithm(pair: list[LowRankDelta]):
    total = pair[0].dense() + 0.5 * pair[1].dense()
    left, values, right = torch.linalg.svd(total, full_matrices=False)
    expected = values[:5].mean() * left[:, :5] @ right[:5]
    merged = iso_c(pair, w_style=0.5)
    assert_close(merged.dense(), expected, **ONE)
    spectrum = torch.linalg.svdvals(merged.dense())
    assert_close(spectrum[:5], values[:5].mean().expand(5), **ONE)


# np_lora


def test_np_lora_by_hand():
    subject, style = delta([[6.0, 2.0], [3.0, 0.0]]), delta([[0.0, 0.0], [4.0, 0.0]])
    # the style reads input 0: a third of the subject's column 0 is taken out
    expected = torch.tensor([[4.0, 2.0], [6.0, 0.0]], dtype=torch.float64)
    assert_close(np_lora([subject, style]).dense(), expected, **ONE)


@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
def test_np_lora_equals_its_equation(pair: list[LowRankDelta], mu: float):
    basis = torch.linalg.qr(pair[1].down.T).Q  # as the paper takes it
    kept = torch.eye(D_IN, dtype=torch.float64) - mu / (1 + mu) * basis @ basis.T
    expected = 1.1 * pair[1].dense() + 0.8 * pair[0].dense() @ kept
    merged = np_lora(pair, mu=mu, w_subject=0.8, w_style=1.1)
    assert_close(merged.dense(), expected, **ONE)
    assert merged.rank == 5


def test_np_lora_ends_in_the_null_space_of_the_style(pair: list[LowRankDelta]):
    subject = np_lora(pair, mu=1e14).dense() - pair[1].dense()
    assert_close(subject @ pair[1].dense().T, torch.zeros(D_OUT, D_OUT).double(), **ONE)


def test_np_lora_refuses_a_negative_mu(pair: list[LowRankDelta]):
    with pytest.raises(AdapterError, match=r"mu is -0\.5: it must be at least 0"):
        np_lora(pair, mu=-0.5)


# all of them


@pytest.mark.parametrize("method", [svd_merge, knots, core_space, tsv_m, iso_c, np_lora])
def test_refuse_other_than_two(method: Callable[..., LowRankDelta], pair: list[LowRankDelta]):
    with pytest.raises(AdapterError, match=rf"{method.__name__} merges a subject and a style"):
        method([*pair, pair[0]])


@pytest.mark.parametrize("method", [knots, core_space, tsv_m, iso_c, np_lora])
def test_take_ranks_above_the_layers_size(method: Callable[..., LowRankDelta]):
    wide = [random_delta(0, 13), random_delta(1, 20)]
    dense: list[Tensor] = [method([d.truncate(D_IN) for d in wide]).dense()]
    if method is not core_space:  # whose axes come from the factors
        assert_close(method(wide).dense(), dense[0], rtol=1e-9, atol=1e-9)
    assert torch.isfinite(method(wide).dense()).all()
