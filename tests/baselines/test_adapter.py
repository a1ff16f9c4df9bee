"""Factored algebra against the dense formulas, and adapters as values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from baselines.adapter import (
    AdapterError,
    LoraAdapter,
    LowRankDelta,
    check_same_layers,
    significant,
)

algebra = settings(deadline=None, max_examples=60, derandomize=True, database=None)
SIZES = st.integers(1, 9)
SEEDS = st.integers(0, 2**32 - 1)
WEIGHTS = st.floats(-1e3, 1e3, allow_subnormal=False)


def draw(
    seed: int, d_out: int, d_in: int, rank: int, dtype: torch.dtype = torch.float64
) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    return LowRankDelta(
        torch.randn(d_out, rank, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(rank, d_in, generator=generator, dtype=torch.float64).to(dtype),
    )


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    """Equal to 1e-12 of the largest number that went into it."""
    bound = 1e-12 * max(scale, float(expected.abs().max()))
    assert_close(actual, expected, rtol=0.0, atol=bound)


@algebra
@given(SIZES, SIZES, SIZES, SIZES, SEEDS, WEIGHTS, WEIGHTS)
def test_linear_combinations_equal_the_dense_ones(d_out, d_in, r1, r2, seed, a, b):
    one, two = draw(seed, d_out, d_in, r1), draw(seed + 1, d_out, d_in, r2)
    expected = a * (one.up @ one.down) - (two.up @ two.down) * b
    combined = a * one - two * b
    size = 1 + abs(a) * float(one.norm()) + abs(b) * float(two.norm())
    assert_equal(combined.dense(), expected, size)
    assert combined.rank == r1 + r2
    assert combined.shape == (d_out, d_in)
    assert_equal((-one).dense(), -(one.up @ one.down), float(one.norm()))


@algebra
@given(SIZES, SIZES, SIZES, SEEDS)
def test_scaling_columns_is_a_product_with_a_diagonal(d_out, d_in, rank, seed):
    delta = draw(seed, d_out, d_in, rank)
    c = torch.randn(d_in, generator=torch.Generator().manual_seed(seed ^ 1), dtype=torch.float64)
    expected = (delta.up @ delta.down) @ torch.diag(c)
    assert_equal(delta.scale_columns(c).dense(), expected, float(delta.norm()))
    assert delta.scale_columns(c).rank == rank


@algebra
@given(SIZES, SIZES, SIZES, st.integers(1, 12), SEEDS)
def test_truncation_is_the_truncated_svd(d_out, d_in, rank, kept, seed):
    delta = draw(seed, d_out, d_in, rank)
    dense = (delta.up @ delta.down).numpy()
    left, values, right = np.linalg.svd(dense, full_matrices=False)
    expected = (left[:, :kept] * values[:kept]) @ right[:kept]
    truncated = delta.truncate(kept)
    assert truncated.rank <= max(kept, 1)
    assert truncated.rank <= rank
    # the error is unique even where two singular values nearly coincide and the matrix is not
    error = np.linalg.norm(truncated.dense().numpy() - dense)
    assert error == pytest.approx(np.linalg.norm(expected - dense), abs=1e-12 * (1 + values[0]))


@algebra
@given(SIZES, SIZES, SIZES, SEEDS)
def test_norm_and_from_dense(d_out, d_in, rank, seed):
    delta = draw(seed, d_out, d_in, rank)
    dense = delta.up @ delta.down
    assert_close(float(delta.norm()), float(np.linalg.norm(dense.numpy())), rtol=1e-12, atol=0)
    back = LowRankDelta.from_dense(dense)
    assert_equal(back.dense(), dense, float(delta.norm()))
    assert back.rank <= min(rank, d_out, d_in)


def test_truncates_to_the_svd_by_hand():
    diagonal = torch.diag(torch.tensor([3.0, 5.0, 1.0], dtype=torch.float64))
    delta = LowRankDelta(diagonal, torch.eye(3, dtype=torch.float64))
    assert_close(delta.truncate(1).dense().diagonal().tolist(), [0.0, 5.0, 0.0])
    assert_close(delta.truncate(2).dense().diagonal().tolist(), [3.0, 5.0, 0.0])
    assert_close(LowRankDelta.from_dense(diagonal, 2).dense(), delta.truncate(2).dense())


def test_svd_is_that_of_the_update():
    rng = torch.Generator().manual_seed(0)
    for d_out, d_in, rank in ((7, 5, 3), (3, 5, 4), (4, 4, 9)):
        up = torch.randn(d_out, rank, generator=rng, dtype=torch.float64)
        down = torch.randn(rank, d_in, generator=rng, dtype=torch.float64)
        left, values, right = LowRankDelta(up, down).svd()
        kept = min(d_out, d_in, rank)
        assert left.shape == (d_out, kept)
        assert_close(left * values @ right, up @ down, rtol=1e-12, atol=1e-12)
        assert_close(values, torch.linalg.svdvals(up @ down)[:kept], rtol=1e-12, atol=1e-12)
        assert_close(left.T @ left, torch.eye(kept, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_counts_singular_values_that_are_more_than_rounding():
    assert significant(torch.tensor([3.0, 1.0, 1e-9, 0.0])) == 2
    assert significant(torch.tensor([1e-20, 1e-21])) == 2
    assert significant(torch.zeros(3)) == 0
    rng = torch.Generator().manual_seed(1)
    delta = LowRankDelta(torch.randn(6, 3, generator=rng), torch.randn(3, 5, generator=rng))
    assert significant((delta - delta + delta).svd()[1]) == 3


def test_norm_of_a_difference_keeps_its_digits():
    delta = draw(0, 20, 30, 4)
    near = LowRankDelta(delta.up * (1 + 1e-9), delta.down)
    expected = 1e-9 * float(delta.norm())
    # the difference itself is known to eps / 1e-9
    assert_close(float((near - delta).norm()), expected, rtol=1e-6, atol=0)


def test_from_dense_of_zero_and_of_low_rank():
    assert LowRankDelta.from_dense(torch.zeros(3, 4)).rank == 1
    assert LowRankDelta.from_dense(draw(1, 8, 9, 2, torch.float32).dense()).rank == 2
    assert LowRankDelta.from_dense(torch.ones(3, 4), 10).shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype):
    delta = draw(2, 5, 6, 3, dtype)
    up, down = delta.up.float(), delta.down.float()
    assert delta.up.dtype == dtype
    assert torch.equal(delta.dense(), up @ down)
    for result in (
        2.0 * delta,
        delta + delta,
        delta.truncate(2),
        delta.truncate(5),
        delta.scale_columns(torch.ones(6, dtype=dtype)),
        LowRankDelta.from_dense(delta.dense().to(dtype)),
        delta.full_precision(),
    ):
        assert result.up.dtype == result.down.dtype == torch.float32
    assert delta.norm().dtype == torch.float32
    assert_close((0.5 * delta).dense(), 0.5 * (up @ down), rtol=1e-5, atol=1e-6)


def test_float64_wins_over_float32():
    mixed = draw(0, 2, 3, 1) + draw(1, 2, 3, 1, torch.float32)
    assert mixed.up.dtype == torch.float64
    scaled = draw(1, 2, 3, 1, torch.float32).scale_columns(torch.ones(3, dtype=torch.float64))
    assert scaled.down.dtype == torch.float64


def test_is_differentiable():
    delta = draw(3, 4, 5, 2)
    c = torch.ones(5, dtype=torch.float64, requires_grad=True)

    def loss(up: torch.Tensor, down: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        d = LowRankDelta(up, down)
        return (d.scale_columns(c) - 0.5 * d).dense().sin().sum()

    up, down = delta.up.requires_grad_(), delta.down.requires_grad_()
    assert torch.autograd.gradcheck(loss, (up, down, c))


@pytest.mark.parametrize(
    ("up", "down", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), r"\(2, 3\) and \(2, 4\) do not fit"),
        (torch.ones(2, 0), torch.ones(0, 4), "rank at least 1"),
        (torch.ones(2), torch.ones(2, 4), "do not fit"),
        (torch.ones(2, 1).double(), torch.ones(1, 4), "one floating-point type"),
        (torch.ones(2, 1).int(), torch.ones(1, 4).int(), "one floating-point type"),
    ],
)
def test_refuses_factors_that_do_not_fit(up: torch.Tensor, down: torch.Tensor, message: str):
    with pytest.raises(AdapterError, match=message):
        LowRankDelta(up, down)


def test_refuses_wrong_operands():
    delta = draw(0, 4, 5, 2)
    with pytest.raises(AdapterError, match="different layers"):
        delta + draw(0, 4, 6, 2)
    with pytest.raises(AdapterError, match="has 5 inputs"):
        delta.scale_columns(torch.ones(4))
    with pytest.raises(AdapterError, match="rank is 0"):
        delta.truncate(0)
    with pytest.raises(AdapterError, match="rank is -1"):
        LowRankDelta.from_dense(torch.ones(2, 2), -1)
    with pytest.raises(AdapterError, match="is a matrix"):
        LowRankDelta.from_dense(torch.ones(2))
    with pytest.raises(TypeError):
        delta * "2"  # type: ignore[operator]  # what is tested
    with pytest.raises(TypeError):
        delta + 1.0  # type: ignore[operator]  # what is tested


def adapter(seed: int = 0, layers: str = "ba", rank: int = 2, name: str = "") -> LoraAdapter:
    return LoraAdapter(
        {layer: draw(seed + i, 3, 4, rank, torch.float32) for i, layer in enumerate(layers)}, name
    )


def test_adapter_is_sorted_and_read_only():
    given_layers = {"b": draw(0, 3, 4, 2), "a": draw(1, 3, 4, 2)}
    made = LoraAdapter(given_layers, metadata={"steps": "3"})
    given_layers["c"] = draw(2, 3, 4, 2)
    assert made.layers == ("a", "b") == tuple(made.deltas)
    with pytest.raises(TypeError):
        made.deltas["c"] = draw(2, 3, 4, 2)  # type: ignore[index]  # what is tested
    with pytest.raises(TypeError):
        made.metadata["x"] = "y"  # type: ignore[index]  # what is tested
    assert made.parameters() == 2 * (3 * 2 + 2 * 4)
    assert made.to(dtype=torch.float16).deltas["a"].up.dtype == torch.float16
    assert made.to(dtype=torch.float16).metadata == {"steps": "3"}
    assert made.to(dtype=torch.float16).full_precision().deltas["a"].up.dtype == torch.float32


def test_digest_is_of_the_content():
    assert adapter().digest() == adapter(name="other").digest()
    turned = LoraAdapter({layer: adapter().deltas[layer] for layer in ("a", "b")})
    assert turned.digest() == adapter().digest()
    different = [
        adapter(1),
        adapter(rank=3),
        LoraAdapter({f"x{layer}": delta for layer, delta in adapter().deltas.items()}),
        adapter().to(dtype=torch.float64),
        adapter().to(dtype=torch.bfloat16),
        LoraAdapter({}),
    ]
    digests = {item.digest() for item in (adapter(), *different)}
    assert len(digests) == 1 + len(different)
    up = adapter().deltas["a"].up.clone()
    up[2, 1] = torch.nextafter(up[2, 1], torch.tensor(9.0))
    changed = {**adapter().deltas, "a": LowRankDelta(up, adapter().deltas["a"].down)}
    assert LoraAdapter(changed).digest() != adapter().digest()


def test_digest_does_not_depend_on_memory_layout():
    delta = draw(0, 3, 4, 2)
    strided = LowRankDelta(delta.up.T.contiguous().T, delta.down)
    assert not strided.up.is_contiguous()
    assert LoraAdapter({"a": strided}).digest() == LoraAdapter({"a": delta}).digest()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["up", "down"])
def test_names_the_layer_that_is_not_finite(value: float, factor: str):
    good = adapter(name="dog").deltas
    good_factors = {"up": good["b"].up.clone(), "down": good["b"].down.clone()}
    good_factors[factor][1, 1] = value
    bad = LoraAdapter({"a": good["a"], "b": LowRankDelta(**good_factors)}, "dog")
    adapter().check_finite()
    with pytest.raises(AdapterError, match=f"layer 'b' of adapter 'dog' has 1 .*{factor} factor"):
        bad.check_finite()


def test_names_layers_that_differ():
    check_same_layers([adapter(0), adapter(1, rank=3), adapter(2)])
    with pytest.raises(AdapterError, match="adapter style updates c, d, e and 1 more, adapter sub"):
        check_same_layers([adapter(name="subject"), adapter(layers="abcdef", name="style")])
    with pytest.raises(AdapterError, match="adapter number 1 updates a, adapter number 3"):
        check_same_layers([adapter(), adapter(1), adapter(layers="b")])
    other = LoraAdapter({"a": draw(0, 3, 4, 1), "b": draw(0, 3, 5, 1)})
    with pytest.raises(AdapterError, match=r"layer 'b' is \(3, 4\) .* \(3, 5\) in adapter number"):
        check_same_layers([adapter(), other])
