"""What holds for whole families of merges: limits for a zero style, and symmetries."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from baselines import METHODS, LoraAdapter, LowRankDelta
from baselines.sparsify import trim

EXACT = {"rank": 1000}
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("ties", "dare", "dare_ties", "magnitude", "della", "breadcrumbs"), EXACT),
    **{name: {} for name in ("direct_sum", "average", "svd_merge", "knots", "core_space")},
    **{name: {} for name in ("tsv_m", "iso_c", "np_lora", "ties_factors", "magnitude_factors")},
}
RANDOM = ("dare", "dare_ties", "della")
FIXED = [name for name in OPTIONS if name not in RANDOM]


def random_delta(seed: int, rank: int, d_out: int = 14, d_in: int = 11) -> LowRankDelta:
    rng = torch.Generator().manual_seed(seed)
    return LowRankDelta(
        torch.randn(d_out, rank, generator=rng, dtype=torch.float64),
        torch.randn(rank, d_in, generator=rng, dtype=torch.float64),
    )


def merge(name: str, deltas: list[LowRankDelta], **options: Any) -> Tensor:
    adapters = [LoraAdapter({"layer": delta}) for delta in deltas]
    return METHODS.get(name)(adapters, **OPTIONS[name], **options).deltas["layer"].dense()


def flat_spectrum(update: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    rank = int((values > 1e-9).sum())
    return values[:rank].mean() * left[:, :rank] @ right[:rank]


def whole(update: Tensor) -> Tensor:
    return update


LIMITS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
    "direct_sum": (whole, {}),
    "average": (lambda update: 0.5 * update, {}),
    "ties": (lambda update: trim(update, 0.5), {}),
    "magnitude": (lambda update: trim(update, 0.5), {}),
    "breadcrumbs": (lambda update: trim(update, 0.5, outliers=0.01), {}),
    "dare": (whole, {"density": 1.0}),
    "dare_ties": (whole, {"density": 1.0}),
    "della": (whole, {"density": 1.0, "epsilon": 0.0}),
    "svd_merge": (whole, {}),
    "knots": (whole, {"density": 1.0}),
    "core_space": (whole, {"density": 1.0}),
    "tsv_m": (whole, {}),
    "iso_c": (flat_spectrum, {}),
    "np_lora": (whole, {}),
    "ties_factors": (lambda update: 0.5 * update, {"density": 1.0}),
    "magnitude_factors": (lambda update: 0.5 * update, {"density": 1.0}),
}
"""What docs/methods.md says of a style that is zero."""


@pytest.mark.parametrize("name", LIMITS)
def test_zero_style_gives_the_documented_limit(name: str):
    subject = random_delta(0, 3)
    nothing = 0.0 * random_delta(1, 2)
    if name.endswith("_factors"):  # a down that is not zero has its part in factor-wise merges
        nothing = LowRankDelta(nothing.up, 0.0 * nothing.down)
    limit, options = LIMITS[name]
    merged = merge(name, [subject, nothing], **options)
    assert_close(merged, limit(subject.dense()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OPTIONS)
def test_two_zero_updates_give_zero(name: str):
    merged = merge(name, [0.0 * random_delta(0, 3), 0.0 * random_delta(1, 2)])
    assert merged.count_nonzero() == 0


@pytest.mark.parametrize("name", FIXED)
def test_permuted_features_give_the_permuted_merge(name: str):
    pair = [random_delta(0, 3), random_delta(1, 2)]
    rows = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    columns = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    permuted = [LowRankDelta(delta.up[rows], delta.down[:, columns]) for delta in pair]
    expected = merge(name, pair)[rows][:, columns]
    assert_close(merge(name, permuted), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in FIXED if name != "np_lora"])
def test_subject_and_style_are_treated_alike(name: str):
    one, two = random_delta(0, 3), random_delta(1, 2)
    assert_close(merge(name, [one, two]), merge(name, [two, one]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [n for n in OPTIONS if not n.endswith("_factors")])
def test_negated_updates_give_the_negated_merge(name: str):
    """No sign is preferred: not by an election, not by the signs that an SVD happens to choose."""
    pair = [random_delta(0, 3), random_delta(1, 2)]
    expected = -merge(name, pair)
    assert_close(merge(name, [-pair[0], -pair[1]]), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OPTIONS)
def test_scaled_updates_give_the_scaled_merge(name: str):
    """Alpha scales what comes out, and decides nothing else."""
    pair = [random_delta(0, 3), random_delta(1, 2)]
    expected = 4.0 * merge(name, pair)
    assert_close(merge(name, [4.0 * pair[0], 4.0 * pair[1]]), expected, rtol=1e-10, atol=1e-10)
