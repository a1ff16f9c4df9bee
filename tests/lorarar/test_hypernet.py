"""The hypernetwork equals its dense formula, column by column."""

from collections.abc import Callable

import pytest
import torch

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.merging_loss import merge_with_coefficients
from lorarar.hypernet import HyperNetwork


def random_pair(
    d_out: int, d_in: int, dtype: torch.dtype, *, seed: int = 0
) -> tuple[LoraAdapter, LoraAdapter]:
    """Two one-layer adapters of ranks 8 and 5, entries of order 0.1."""
    generator = torch.Generator().manual_seed(seed)
    adapters = []
    for rank in (8, 5):
        up = torch.randn(d_out, rank, generator=generator, dtype=dtype)
        down = torch.randn(rank, d_in, generator=generator, dtype=dtype)
        adapters.append(LoraAdapter({"block.to_q": LowRankDelta(0.1 * up, rank**-0.5 * down)}))
    return adapters[0], adapters[1]


def dense_coefficients(
    network: HyperNetwork, subject: torch.Tensor, style: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula as the paper has it: one column of both dense updates at a time."""
    scale = torch.ones((), dtype=subject.dtype)
    if network.normalize:
        scale = torch.cat([subject, style]).square().mean().sqrt()
    columns = torch.cat([subject, style]).T / scale  # (d_in, 2 d_out)
    first = network.inputs[str(subject.shape[0])]
    both = network.output(torch.relu(first(columns)))  # (d_in, 2)
    return both[:, 0], both[:, 1]


def loud(network: HyperNetwork) -> HyperNetwork:
    """The network with an output layer whose answers vary much."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        network.output.weight.normal_(generator=generator)
        for layer in network.inputs.values():
            layer.bias.normal_(generator=generator)
    return network


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("d_out", "d_in"), [(640, 640), (1280, 1280), (640, 2048)])
def test_equals_the_dense_formula_in_float32(d_out: int, d_in: int, normalize: bool):
    network = loud(HyperNetwork([640, 1280], normalize=normalize))
    subject, style = random_pair(d_out, d_in, torch.float32)
    with torch.no_grad():
        coefficients = network(subject, style)["block.to_q"]
        expected = dense_coefficients(
            network, subject.deltas["block.to_q"].dense(), style.deltas["block.to_q"].dense()
        )
    for ours, dense in zip(coefficients, expected, strict=True):
        assert ours.shape == (d_in,)
        assert dense.std() > 0.1
        # relative to the size of the coefficients
        assert (ours - dense).norm() < 1e-5 * dense.norm()


@pytest.mark.parametrize("normalize", [False, True])
def test_equals_the_dense_formula_in_float64(normalize: bool):
    network = loud(HyperNetwork([6, 4], hidden=9, normalize=normalize)).double()
    subject, style = random_pair(6, 7, torch.float64)
    coefficients = network(subject, style)["block.to_q"]
    expected = dense_coefficients(
        network, subject.deltas["block.to_q"].dense(), style.deltas["block.to_q"].dense()
    )
    for ours, dense in zip(coefficients, expected, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)


def test_has_the_published_number_of_parameters():
    network = HyperNetwork([1280, 640])
    assert network.widths == (640, 1280)
    assert sum(parameter.numel() for parameter in network.parameters()) == 492_034


def test_starts_near_the_plain_sum():
    network = HyperNetwork([64], normalize=True)
    m_subject, m_style = network(*random_pair(64, 50, torch.float32))["block.to_q"]
    for coefficients in (m_subject, m_style):
        torch.testing.assert_close(coefficients, torch.ones(50), rtol=0, atol=0.2)
        assert coefficients.std() > 0


def test_normalized_input_ignores_the_common_strength():
    network = loud(HyperNetwork([64], normalize=True))
    subject, style = random_pair(64, 50, torch.float32)
    louder = [
        LoraAdapter({name: 3.0 * delta for name, delta in adapter.deltas.items()})
        for adapter in (subject, style)
    ]
    one, other = network(subject, style), network(*louder)
    torch.testing.assert_close(one["block.to_q"][0], other["block.to_q"][0])
    plain = loud(HyperNetwork([64], normalize=False))
    assert not torch.allclose(
        plain(subject, style)["block.to_q"][0], plain(*louder)["block.to_q"][0], rtol=1e-2
    )


def test_normalized_input_of_two_empty_updates_is_finite():
    zero = LoraAdapter({"block.to_q": LowRankDelta(torch.zeros(4, 1), torch.zeros(1, 3))})
    coefficients = HyperNetwork([4], normalize=True)(zero, zero)["block.to_q"]
    assert coefficients[0].tolist() == [1.0, 1.0, 1.0]


def test_merges_predicted_layers_and_keeps_constants_elsewhere(
    random_adapter: Callable[..., LoraAdapter],
):
    subject, style = random_adapter(1), random_adapter(2)
    network = loud(HyperNetwork([32, 64], kv_weight=0.25)).requires_grad_(False)
    coefficients = network(subject, style)
    names = list(subject.deltas)
    assert list(coefficients) == [n for n in names if n.endswith((".to_q", ".to_out.0"))]
    merged = network.merge(subject, style)
    expected = merge_with_coefficients(subject, style, coefficients, default=0.25)
    for name in names:
        dense = merged.deltas[name].dense()
        torch.testing.assert_close(dense, expected.deltas[name].dense())
        if name.endswith(("to_k", "to_v")):
            both = subject.deltas[name].dense() + style.deltas[name].dense()
            torch.testing.assert_close(dense, 0.25 * both)
    name = next(name for name in names if name.endswith("to_k"))
    summed = network.merge(subject, style, kv_weight=1.0).deltas[name].dense()
    torch.testing.assert_close(summed, 4.0 * merged.deltas[name].dense())


def test_other_projections_can_be_predicted(random_adapter: Callable[..., LoraAdapter]):
    network = HyperNetwork([32, 64], projections=["to_k"])
    coefficients = network(random_adapter(1), random_adapter(2))
    assert coefficients
    assert all(name.endswith(".to_k") for name in coefficients)


def test_a_name_that_only_ends_alike_is_not_predicted():
    network = HyperNetwork([4])
    assert network.predicts("attn1.to_q")
    assert not network.predicts("attn1.add_to_q".replace("add_", "not"))
    assert not network.predicts("attn1.to_out.10")


def test_the_seed_decides():
    def weight(seed: int) -> torch.Tensor:
        return HyperNetwork([8], seed=seed).inputs["8"].weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


def test_refuses_a_width_it_lacks():
    network = HyperNetwork([640, 1280])
    with pytest.raises(AdapterError, match=r"'block\.to_q' has width 320, .* for 640, 1280"):
        network(*random_pair(320, 320, torch.float32))


def test_refuses_adapters_without_a_predicted_layer():
    other = LoraAdapter({"block.to_k": LowRankDelta(torch.ones(4, 1), torch.ones(1, 4))})
    with pytest.raises(AdapterError, match="nothing to predict"):
        HyperNetwork([4])(other, other)


def test_refuses_adapters_of_different_layers():
    subject, _ = random_pair(4, 4, torch.float32)
    other = LoraAdapter({"other.to_q": subject.deltas["block.to_q"]})
    with pytest.raises(AdapterError, match="the same layers"):
        HyperNetwork([4])(subject, other)


@pytest.mark.parametrize(
    ("widths", "hidden", "projections"),
    [([], 8, ["to_q"]), ([4], 0, ["to_q"]), ([0], 8, ["to_q"]), ([4], 8, [])],
)
def test_refuses_sizes_without_sense(widths: list[int], hidden: int, projections: list[str]):
    with pytest.raises(ValueError):
        HyperNetwork(widths, hidden=hidden, projections=projections)
