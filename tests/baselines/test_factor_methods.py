"""peft's factor-wise merges: equal to peft's own code, and not the merges of the updates."""

import math
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor, nn
from torch.testing import assert_close

from baselines import AdapterError, LowRankDelta
from baselines.methods.dare_factors import dare_factors
from baselines.methods.dare_ties_factors import dare_ties_factors
from baselines.methods.magnitude_factors import magnitude_factors
from baselines.methods.ties_factors import ties_factors

METHODS: dict[str, tuple[Callable[..., LowRankDelta], Callable[..., Tensor]]] = {
    "ties": (ties_factors, merge_utils.ties),
    "dare_linear": (dare_factors, merge_utils.dare_linear),
    "dare_ties": (dare_ties_factors, merge_utils.dare_ties),
    "magnitude_prune": (magnitude_factors, merge_utils.magnitude_prune),
}


def random_delta(seed: int, rank: int, d_out: int = 20, d_in: int = 15) -> LowRankDelta:
    rng = torch.Generator().manual_seed(seed)
    return LowRankDelta(
        torch.randn(d_out, rank, generator=rng), torch.randn(rank, d_in, generator=rng)
    )


def ours(name: str, pair: list[LowRankDelta], seed: int = 9, **options: Any) -> LowRankDelta:
    supplied = {"rng": torch.Generator().manual_seed(seed)} if "dare" in name else {}
    return METHODS[name][0](pair, **supplied, **options)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 0.3), (0.8, -0.4)])
@pytest.mark.parametrize("density", [0.5, 0.23])
@pytest.mark.parametrize("name", METHODS)
def test_equals_pefts_functions_with_the_same_seed(
    name: str, density: float, weights: tuple[float, float]
):
    pair = [random_delta(1, 4), random_delta(2, 4)]
    merged = ours(name, pair, density=density, w_subject=weights[0], w_style=weights[1])
    roots = torch.tensor([math.sqrt(abs(weight)) for weight in weights])
    signed = torch.tensor([math.copysign(math.sqrt(abs(weight)), weight) for weight in weights])
    with torch.random.fork_rng():  # peft draws from the global generator
        torch.random.set_rng_state(torch.Generator().manual_seed(9).get_state())
        down = METHODS[name][1]([delta.down for delta in pair], signed, density)
        up = METHODS[name][1]([delta.up for delta in pair], roots, density)
    assert_close(merged.down, down, rtol=1e-6, atol=1e-6)
    assert_close(merged.up, up, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["ties", "magnitude_prune"])
def test_equals_a_model_merged_by_peft(name: str):
    """The same through ``add_weighted_adapter``, alpha = rank as in the paper's adapters."""
    model = nn.ModuleDict({"to_q": nn.Linear(15, 20, bias=False)})
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"])
    wrapped = peft.PeftModel(model, config, adapter_name="subject")
    wrapped.add_adapter("style", config)
    pair = {"subject": random_delta(1, 4), "style": random_delta(2, 4)}
    layer = wrapped.base_model.model["to_q"]
    with torch.no_grad():
        for adapter, delta in pair.items():
            layer.lora_A[adapter].weight.copy_(delta.down)
            layer.lora_B[adapter].weight.copy_(delta.up)
    wrapped.base_model.add_weighted_adapter(
        list(pair), [0.5, 0.5], "merged", combination_type=name, density=0.5
    )
    theirs = layer.get_delta_weight("merged").detach()
    assert_close(ours(name, list(pair.values())).dense(), theirs, rtol=1e-5, atol=1e-5)


def test_equal_entries_are_chosen_as_peft_chooses():
    """float16 factors have many entries of one size, and the cut goes through such a group."""
    pair = [
        LowRankDelta((2 * d.up).round() / 2, (2 * d.down).round() / 2)
        for d in (random_delta(1, 4), random_delta(2, 4))
    ]
    merged = ours("magnitude_prune", pair, density=0.5)
    half = torch.tensor([math.sqrt(0.5)] * 2)
    for factor, expected in (("up", merged.up), ("down", merged.down)):
        theirs = merge_utils.magnitude_prune([getattr(d, factor) for d in pair], half, 0.5)
        assert_close(expected, theirs, rtol=1e-6, atol=1e-6)


def test_ties_by_hand():
    subject = LowRankDelta(torch.tensor([[2.0], [1.0]]), torch.tensor([[1.0, 3.0]]))
    style = LowRankDelta(torch.tensor([[-4.0], [1.0]]), torch.tensor([[2.0, 5.0]]))
    # kept: ups [2, 0] and [-4, 0], downs [0, 3] and [0, 5]; then [-4, 0] and [0, 4], each / root 2
    merged = ties_factors([subject, style])
    assert_close(merged.dense(), torch.tensor([[0.0, -8.0], [0.0, 0.0]]))


def test_dare_and_magnitude_by_hand():
    """At density 1 both are peft's "linear": cross terms of one's up and the other's down."""
    subject = LowRankDelta(torch.tensor([[2.0]]), torch.tensor([[1.0, 0.0]]))
    style = LowRankDelta(torch.tensor([[4.0]]), torch.tensor([[0.0, 3.0]]))
    # (2 + 4) / root 2 times [1, 3] / root 2, where the average is [1, 6]
    expected = torch.tensor([[3.0, 9.0]])
    for name in ("magnitude_prune", "dare_linear"):
        assert_close(ours(name, [subject, style], density=1.0).dense(), expected)


def test_dare_own_products_are_unbiased():
    subject = random_delta(1, 2, 3, 2)
    nothing = LowRankDelta(torch.zeros(3, 2), torch.zeros(2, 2))
    rng, times = torch.Generator().manual_seed(0), 1000
    total = torch.zeros(3, 2)
    for _ in range(times):
        total += dare_factors([subject, nothing], rng=rng, w_subject=1.0).dense()
    # an entry is a sum of two products, each with a variance of at most (4 - 1) times its square
    size = (3 * subject.up.square() @ subject.down.square()).sqrt()
    assert ((total / times - subject.dense()).abs() < 4 * size / times**0.5).all()


@pytest.mark.parametrize("name", METHODS)
def test_smaller_rank_is_padded_once_it_is_sparse(name: str):
    small, large = random_delta(1, 2), random_delta(2, 5)
    merged = ours(name, [small, large])
    assert merged.rank == 5
    nothing = LowRankDelta(torch.zeros(20, 5), torch.zeros(5, 15))
    alone = ours(name, [small, nothing], density=0.5)
    kept = alone.down.count_nonzero(1)
    assert kept[2:].tolist() == [0, 0, 0]
    if "dare" not in name:
        assert kept.sum() == 15  # half of 2 x 15, not of 5 x 15


@pytest.mark.parametrize("name", METHODS)
def test_refuses_what_it_cannot_merge(name: str):
    with pytest.raises(
        AdapterError, match=r"_factors merges a subject and a style, not 1 adapters"
    ):
        ours(name, [random_delta(0, 2)])
    with pytest.raises(AdapterError, match=r"density is 2\.0"):
        ours(name, [random_delta(0, 2), random_delta(1, 2)], density=2.0)
