"""Adds low-rank updates to a network's linear layers while a with-block is open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta

GRADIENT_SCALE = 2.0**16
"""How much larger gradients are on their way through a float16 network.

As they are they vanish: a loss is a mean over all of an image, and below 6e-8 there is nothing.
`Denoiser.predict` makes them larger where they enter the network, `LowRankUpdate` smaller where
they reach its factors (loss scaling: Micikevicius et al. 2018, Mixed Precision Training, 3.2).
"""


class _Scaled(torch.autograd.Function):
    """The same numbers, with another gradient."""

    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * context.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``, whose gradient is multiplied by ``factor``."""
    scaled: Tensor = _Scaled.apply(x, factor)
    return scaled


@dataclass(frozen=True)
class LowRankUpdate:
    """The function x -> up @ down @ x of one layer; differentiable in x and in both factors.

    It is computed in the factors' type and returned in x's: float32 factors keep their precision
    under a half-precision network. In a float16 one their gradients are divided by GRADIENT_SCALE.
    """

    delta: LowRankDelta

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., d_in)`` to ``(..., d_out)``."""
        down, up = self.delta.down, self.delta.up
        if x.dtype == torch.float16 and torch.is_grad_enabled():
            down, up = (scale_gradient(factor, 1 / GRADIENT_SCALE) for factor in (down, up))
        hidden = functional.linear(x.to(down.dtype), down)
        return functional.linear(hidden, up).to(x.dtype)


def adapter_updates(adapter: LoraAdapter) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each layer's update as a function of the layer's input, for ``attached``.

    The factors must be on the network's device (``adapter.to(device=...)``).
    """
    return {layer: LowRankUpdate(delta) for layer, delta in adapter.deltas.items()}


@contextmanager
def attached(unet: nn.Module, updates: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While open, each named layer returns ``layer(x) + updates[name](x)``, differentiably.

    Nested blocks add up. With gradient checkpointing the backward pass has to run inside the block,
    because it computes the layers again. The network's weights are never touched.

    Raises:
        AdapterError: If a layer is missing, is not linear, or has another width than its update.
    """
    with ExitStack() as hooks:
        for name, update in updates.items():
            layer = linear_layer(unet, name)
            if isinstance(update, LowRankUpdate):
                check_width(unet, name, update.delta)
            hooks.enter_context(layer.register_forward_hook(_adding(name, update)))
        yield


def linear_layer(network: nn.Module, name: str) -> nn.Linear:
    """The linear layer of that name.

    Raises:
        AdapterError: If there is none.
    """
    try:
        layer = network.get_submodule(name)
    except AttributeError as error:
        raise AdapterError(
            f"the network has no layer {name!r}: the adapter was made for another base model"
        ) from error
    if not isinstance(layer, nn.Linear):
        raise AdapterError(
            f"layer {name!r} is a {type(layer).__name__}: only linear layers can carry an update"
        )
    return layer


def check_width(network: nn.Module, name: str, delta: LowRankDelta) -> None:
    """Refuse an update that the linear layer of that name cannot carry.

    Raises:
        AdapterError: If there is no such layer, or it has another shape.
    """
    layer = linear_layer(network, name)
    expected = (layer.out_features, layer.in_features)
    if tuple(delta.shape) != expected:
        raise AdapterError(
            f"layer {name!r} is {expected[0]} x {expected[1]} but its update is "
            f"{delta.shape[0]} x {delta.shape[1]}: the adapter was made for another base model"
        )


def _adding(
    name: str, update: Callable[[Tensor], Tensor]
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(_layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        change = update(arguments[0])
        if change.shape != output.shape:
            raise AdapterError(
                f"the update of layer {name!r} has shape {tuple(change.shape)}, "
                f"but the layer's output has shape {tuple(output.shape)}"
            )
        return output + change

    return hook
