"""What every merge method must satisfy; a plugin's own tests call it, as ours do."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.attach import linear_layer
from baselines.dreambooth import attention_layers
from baselines.formats import load_adapter, save_adapter
from baselines.merging_loss import PairTask
from baselines.options import PluginError
from baselines.policy import Policy
from baselines.registry import MergeMethod
from baselines.training import generator_for

_LAYERS = {  # as in a small SDXL UNet: (d_out, d_in)
    f"{block}.attentions.0.transformer_blocks.0.{layer}": shape
    for block, width in (("down_blocks.1", 32), ("mid_block", 64))
    for layer, shape in {
        "attn1.to_q": (width, width),
        "attn1.to_out.0": (width, width),
        "attn2.to_k": (width, 40),
        "attn2.to_v": (width, 40),
    }.items()
}


def check_merge_method(
    method: MergeMethod,
    *,
    adapters: Sequence[LoraAdapter] | None = None,
    task: PairTask | None = None,
    seed: int = 0,
    **options: Any,
) -> None:
    """Run a method on random adapters of different ranks and check what it gives.

    For a policy: see ``check_policy``. For all others: finite, float32 or better, of layers that
    the inputs have and in their shapes; the same bytes for the same seed, whatever the order of the
    layers and, for a layer method, whatever the other layers; inputs left as they are; float16
    inputs taken; saved and loaded exactly.

    Args:
        method: From ``METHODS`` or ``parse_method``.
        adapters: What to merge; None: a random pair, for a fit method of the task's UNet.
        task: What a fit method needs.
        seed: Of the random pair and of the method.
        **options: Of the method.

    Raises:
        PluginError: Naming the property that does not hold.
    """
    if method.kind == "policy":
        check_policy(method, adapters=adapters, seed=seed, **options)
        return
    if adapters is None:
        shapes = _LAYERS if task is None else _attention_shapes(task)
        adapters = [_random_adapter(seed, which, shapes) for which in ("subject", "style")]

    def merge(inputs: Sequence[LoraAdapter]) -> LoraAdapter:
        return method(inputs, seed=seed, task=task, **options)

    def require(holds: bool, failure: str) -> None:
        if not holds:
            raise PluginError(f"method {method.name!r} {failure}")

    before = [adapter.digest() for adapter in adapters]
    merged = merge(adapters)
    require([a.digest() for a in adapters] == before, "changes the adapters that it is given")

    try:
        merged.check_finite()
    except AdapterError as error:
        raise PluginError(f"method {method.name!r} gives values that are not finite") from error
    for layer, delta in merged.deltas.items():
        shapes_in = {a.deltas[layer].shape for a in adapters if layer in a.deltas}
        require(bool(shapes_in), f"invents the layer {layer!r}")
        require(shapes_in == {delta.shape}, f"changes the shape of {layer!r} to {delta.shape}")
        require(
            delta.up.dtype in (torch.float32, torch.float64),
            f"gives {delta.up.dtype} for {layer!r}",
        )

    require(
        merge(adapters).digest() == merged.digest(),
        "gives different bytes for the same seed: draw random numbers from rng or seed, keep "
        "nothing between calls",
    )
    turned = [
        LoraAdapter({layer: a.deltas[layer] for layer in reversed(a.layers)}, a.name)
        for a in adapters
    ]
    require(merge(turned).digest() == merged.digest(), "depends on the order of the layers")
    if method.kind == "layer":
        for layer in reversed(merged.layers):  # backwards: a count of calls does not line up
            delta = merged.deltas[layer]
            alone = merge([LoraAdapter({layer: a.deltas[layer]}, a.name) for a in adapters])
            require(
                _same(alone.deltas[layer], delta),
                f"gives another update for {layer!r} when that layer is merged alone",
            )

    half = [adapter.to(dtype=torch.float16) for adapter in adapters]
    from_half = merge(half)
    require(
        from_half.digest() == merge([a.to(dtype=torch.float32) for a in half]).digest(),
        "gives something else for float16 adapters than for the same values in float32",
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merged.safetensors"
        save_adapter(merged, path)
        require(
            load_adapter(path).digest() == merged.to(dtype=torch.float32).digest(),
            "gives an adapter that does not come back the same from a file",
        )


def check_policy(
    method: MergeMethod,
    *,
    adapters: Sequence[LoraAdapter] | None = None,
    seed: int = 0,
    **options: Any,
) -> None:
    """Make a policy of random adapters of different ranks and check the weights that it gives.

    A finite number for each adapter, in every layer, at every step of 1, 2, 7 and 50; the same for
    the same seed, whatever was asked before and in whatever order, and whatever the order of the
    layers; inputs left as they are; float16 inputs taken.

    Args:
        method: From ``METHODS`` or ``parse_method``.
        adapters: What to weigh; None: a random pair.
        seed: Of the random pair and of the method.
        **options: Of the method.

    Raises:
        PluginError: Naming the property that does not hold.
    """
    if adapters is None:
        adapters = [_random_adapter(seed, which, _LAYERS) for which in ("subject", "style")]

    def require(holds: bool, failure: str) -> None:
        if not holds:
            raise PluginError(f"method {method.name!r} {failure}")

    def make(inputs: Sequence[LoraAdapter]) -> Policy:
        return method.policy(inputs, seed=seed, **options)

    before = [adapter.digest() for adapter in adapters]
    policy = make(adapters)
    questions = [
        (number, layer, step, total)
        for number in range(len(policy.passes))
        for layer in policy.layers
        for total in (1, 2, 7, 50)
        for step in range(total)
    ]

    def answers(of: Policy, asked: Sequence[tuple[int, str, int, int]]) -> dict[Any, Any]:
        return {q: of.weights(q[1], q[2], q[3], number=q[0]) for q in asked}

    expected = answers(policy, questions)
    require([a.digest() for a in adapters] == before, "changes the adapters that it is given")
    require(
        answers(policy, questions[::-1]) == expected,
        "gives other weights when it is asked in another order: keep nothing between calls",
    )
    require(
        answers(make(adapters), questions) == expected,
        "gives other weights for the same seed: draw random numbers from seed",
    )
    turned = [
        LoraAdapter({layer: a.deltas[layer] for layer in reversed(a.layers)}, a.name)
        for a in adapters
    ]
    require(answers(make(turned), questions) == expected, "depends on the order of the layers")
    half = [adapter.to(dtype=torch.float16) for adapter in adapters]
    require(
        answers(make(half), questions)
        == answers(make([a.to(dtype=torch.float32) for a in half]), questions),
        "gives something else for float16 adapters than for the same values in float32",
    )


def _same(one: LowRankDelta, other: LowRankDelta) -> bool:
    return torch.equal(one.up, other.up) and torch.equal(one.down, other.down)


def _attention_shapes(task: PairTask) -> dict[str, tuple[int, int]]:
    unet = task.denoiser.unet
    shapes = {}
    for layer in attention_layers(unet):
        linear = linear_layer(unet, layer)
        shapes[layer] = (linear.out_features, linear.in_features)
    return shapes


def _random_adapter(seed: int, which: str, shapes: dict[str, tuple[int, int]]) -> LoraAdapter:
    """Of rank 3 (subject) or 5 (style), one more in every other layer; updates of norm about 1."""
    deltas = {}
    for position, (layer, (d_out, d_in)) in enumerate(shapes.items()):
        rank = {"subject": 3, "style": 5}[which] + position % 2
        generator = generator_for(seed, "check", which, layer)
        up = torch.randn(d_out, rank, generator=generator) / (d_out * rank) ** 0.5
        deltas[layer] = LowRankDelta(up, torch.randn(rank, d_in, generator=generator) / d_in**0.5)
    return LoraAdapter(deltas, name=which)
