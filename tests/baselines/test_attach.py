"""Attached updates act as if they were added to the weights, and leave nothing behind."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.attach import adapter_updates, attached
from baselines.denoiser import Denoiser


def network() -> nn.Sequential:
    first = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    return nn.Sequential(first, nn.ReLU())


def delta() -> LowRankDelta:
    # up @ down = [[3, 4], [0, 0], [6, 8]]
    return LowRankDelta(torch.tensor([[1.0], [0.0], [2.0]]), torch.tensor([[3.0, 4.0]]))


def test_adds_the_update_by_hand():
    x = torch.tensor([[1.0, 2.0]])
    net = network()
    with attached(net, adapter_updates(LoraAdapter({"0": delta()}))):
        # W x = [1, 2, 3], dW x = [11, 0, 22]
        assert net(x).tolist() == [[12.0, 2.0, 25.0]]
    assert net(x).tolist() == [[1.0, 2.0, 3.0]]


def test_any_function_can_be_attached_and_blocks_add_up():
    x = torch.tensor([[1.0, 2.0]])
    net = network()
    with (
        attached(net, adapter_updates(LoraAdapter({"0": delta()}))),
        attached(net, {"0": lambda x: x.sum(-1, keepdim=True).expand(-1, 3)}),
    ):
        assert net(x).tolist() == [[15.0, 5.0, 28.0]]


def test_is_removed_after_an_exception():
    x = torch.tensor([[1.0, 2.0]])
    net = network()

    def fails() -> None:
        with attached(net, adapter_updates(LoraAdapter({"0": delta()}))):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails()
    assert net(x).tolist() == [[1.0, 2.0, 3.0]]


def test_is_removed_when_a_later_layer_is_missing():
    net = network()
    updates = adapter_updates(LoraAdapter({"0": delta(), "9": delta()}))
    with pytest.raises(AdapterError, match="no layer '9'"), attached(net, updates):
        pass
    assert net(torch.tensor([[1.0, 2.0]])).tolist() == [[1.0, 2.0, 3.0]]


def test_refuses_another_width():
    wide = LowRankDelta(torch.zeros(3, 1), torch.zeros(1, 5))
    updates = adapter_updates(LoraAdapter({"0": wide}))
    with pytest.raises(AdapterError, match="'0' is 3 x 2 but its update is 3 x 5"):
        attached(network(), updates).__enter__()


def test_refuses_a_function_of_another_width():
    net = network()
    with (
        attached(net, {"0": lambda x: x}),
        pytest.raises(AdapterError, match=r"'0' has shape \(1, 2\)"),
    ):
        net(torch.zeros(1, 2))


def test_refuses_a_layer_that_is_not_linear():
    with pytest.raises(AdapterError, match="'1' is a ReLU"):
        attached(network(), adapter_updates(LoraAdapter({"1": delta()}))).__enter__()


def test_float32_factors_under_a_half_precision_layer_are_not_rounded():
    net = nn.Sequential(nn.Linear(1, 1, bias=False)).to(torch.bfloat16)
    nn.init.zeros_(net[0].weight)
    # 1000 * (1 + 2^-12): bfloat16 factors would round to 1000
    fine = LowRankDelta(torch.full((1, 1), 1000.0), torch.full((1, 1), 1.0 + 2.0**-12))
    coarse = LowRankDelta(torch.full((1, 1), -1000.0), torch.full((1, 1), 1.0))
    both = fine + coarse
    with attached(net, adapter_updates(LoraAdapter({"0": both}))):
        output = net(torch.ones(1, 1, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert output.item() == pytest.approx(1000 * 2.0**-12, rel=2**-7)  # one bfloat16 rounding


def test_equals_dense_weights_throughout_the_unet(
    tiny_denoiser_double: Denoiser, random_adapter: Callable[..., LoraAdapter]
):
    denoiser = tiny_denoiser_double
    adapter = random_adapter(0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn((2, 4, 8, 8), generator=generator, dtype=torch.float64)
    timesteps = torch.tensor([10, 900])
    conditioning = denoiser.encode_prompts(["a dog", "a cat"])
    with torch.no_grad(), attached(denoiser.unet, adapter_updates(adapter)):
        output = denoiser.predict(noisy, timesteps, conditioning)

    fused = copy.copy(denoiser)
    fused.unet = copy.deepcopy(denoiser.unet)
    with torch.no_grad():
        for name, update in adapter.deltas.items():
            fused.unet.get_submodule(name).weight += update.up @ update.down
        expected = fused.predict(noisy, timesteps, conditioning)
        without = denoiser.predict(noisy, timesteps, conditioning)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    assert (output - without).abs().max() > 1e-3


def test_float16_gradients_do_not_vanish(
    tiny_sdxl: Path, random_adapter: Callable[..., LoraAdapter]
) -> None:
    gradients = []
    for dtype in (torch.float32, torch.float16):
        denoiser = Denoiser.load(tiny_sdxl, dtype=dtype, resolution=16)
        adapter = random_adapter(1)
        factors = [delta.down.requires_grad_() for delta in adapter.deltas.values()]
        noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        conditioning = denoiser.encode_prompts(["a cat", "a dog"])
        with attached(denoiser.unet, adapter_updates(adapter)):
            answer = denoiser.predict(noisy, torch.tensor([300, 700]), conditioning)
            # as small as where an image has 4 x 128 x 128 numbers: below what float16 can say
            loss = answer.float().square().mean() * 1e-5
        loss.backward()
        gradients.append(torch.cat([factor.grad.flatten() for factor in factors]))
    exact, half = gradients
    assert half.dtype == torch.float32
    assert half.count_nonzero() > 0.99 * exact.count_nonzero()
    assert torch.cosine_similarity(exact, half, dim=0) > 0.999
    assert half.norm() == pytest.approx(exact.norm().item(), rel=0.01)


def test_answers_without_gradients_keep_the_networks_type(tiny_sdxl: Path) -> None:
    denoiser = Denoiser.load(tiny_sdxl, dtype=torch.float16, resolution=16)
    conditioning = denoiser.encode_prompts(["a cat"])
    with torch.no_grad():
        answer = denoiser.predict(torch.zeros(1, 4, 8, 8), torch.tensor([5]), conditioning)
    assert answer.dtype == torch.float16
