"""The battery passes every built-in method, and fails a method for each property it breaks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from PIL.Image import Image

from baselines import METHODS, LoraAdapter, LowRankDelta, PairTask, PluginError, check_merge_method
from baselines.denoiser import Denoiser
from baselines.registry import adapter_method, layer_method

BUILT_INS = (
    *("direct_sum", "average", "ziplora", "base", "subject_only", "style_only"),
    *("ties", "dare", "dare_ties", "magnitude", "della", "breadcrumbs"),
    *("ties_factors", "dare_factors", "dare_ties_factors", "magnitude_factors"),
    *("svd_merge", "knots", "core_space", "tsv_m", "iso_c", "np_lora", "b_lora_filter"),
    *("lora_soups", "joint_training"),
    *("k_lora", "est_lora", "switch", "composite"),
)
OPTIONS: dict[str, dict[str, Any]] = {
    "ziplora": {"steps": 2},
    "lora_soups": {"steps": 2},
    "joint_training": {"steps": 2},
    # blocks of the battery's pair
    "b_lora_filter": {"content_block": "mid_block", "style_block": "down_blocks.1.attentions.0"},
}


@pytest.fixture(autouse=True)
def _restored_methods() -> Iterator[None]:
    yield
    for name in METHODS.names():
        if name.startswith("broken"):
            METHODS.unregister(name)


@pytest.mark.parametrize("name", BUILT_INS)
def test_every_built_in_method_passes(
    name: str, tiny_denoiser: Denoiser, random_image: Callable[..., Image]
):
    method = METHODS.get(name)
    task = None
    if method.kind == "fit":
        task = PairTask(
            tiny_denoiser, [random_image(0)], ["a dog"], [random_image(1)], ["oil style"]
        )
    check_merge_method(method, task=task, **OPTIONS.get(name, {}))


def test_no_built_in_method_is_left_out():
    shipped = {n for n in METHODS.names() if METHODS.get(n).function.__module__[:9] == "baselines"}
    assert shipped == set(BUILT_INS)


def test_random_methods_pass():
    @layer_method("broken_not")
    def drop(deltas: Sequence[LowRankDelta], *, rng: torch.Generator) -> LowRankDelta:
        kept = torch.rand(deltas[0].shape[1], generator=rng) < 0.5
        return (deltas[0] + deltas[1]).scale_columns(2.0 * kept)

    check_merge_method(METHODS.get("broken_not"), seed=3)


def test_takes_given_adapters():
    same = LoraAdapter({"mine": LowRankDelta(torch.ones(2, 1), torch.ones(1, 2))})
    check_merge_method(METHODS.get("direct_sum"), adapters=[same, same])


calls = 0


def not_finite(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
    return float("nan") * deltas[0]


def in_place(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
    deltas[0].up.mul_(2.0)
    return deltas[0]


def stateful(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
    global calls
    calls += 1
    return float(calls) * deltas[0]


def global_generator(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
    return deltas[0].scale_columns(torch.rand(deltas[0].shape[1]))


def one_rank(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
    return LowRankDelta(deltas[0].up + deltas[1].up, deltas[0].down + deltas[1].down)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (not_finite, PluginError, "not finite"),
        (in_place, PluginError, "changes the adapters that it is given"),
        (stateful, PluginError, "different bytes for the same seed"),
        (global_generator, PluginError, "different bytes for the same seed"),
        (one_rank, PluginError, "RuntimeError: The size"),  # ranks differ in the battery's pair
    ],
)
def test_fails_a_broken_layer_method(
    function: Callable[..., LowRankDelta], error: type[Exception], message: str
):
    layer_method("broken")(function)
    with pytest.raises(error, match=message):
        check_merge_method(METHODS.get("broken"))


def test_fails_a_layer_method_that_remembers_other_layers():
    seen: list[LowRankDelta] = []

    @layer_method("broken")
    def depends_on_the_first(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
        if len(seen) == 8:  # the battery's pair has eight layers
            seen.clear()
        seen.append(deltas[0])
        return len(seen) * deltas[0]

    with pytest.raises(PluginError, match="when that layer is merged alone"):
        check_merge_method(METHODS.get("broken"))


def invents(adapters: Sequence[LoraAdapter]) -> LoraAdapter:
    return LoraAdapter({**adapters[0].deltas, "new": next(iter(adapters[0].deltas.values()))})


def reshapes(adapters: Sequence[LoraAdapter]) -> LoraAdapter:
    return LoraAdapter(
        {layer: LowRankDelta(d.up, d.down[:, :-1]) for layer, d in adapters[0].deltas.items()}
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [(invents, "invents the layer 'new'"), (reshapes, "changes the shape of 'down_blocks.1")],
)
def test_fails_a_broken_adapter_method(function: Callable[..., LoraAdapter], message: str):
    adapter_method("broken")(function)
    with pytest.raises(PluginError, match=message):
        check_merge_method(METHODS.get("broken"))
