"""Policies: which adapter speaks in which layer at which denoising step, while images are drawn.

A policy method gives one or more functions ``weights(layer, step, total_steps)``, each a weight an
adapter. With one of them, every layer answers

    W x + w_c dW_c x + w_s dW_s x,

both updates attached at once and weighed anew at every step. With several, the UNet is run once
with each and its answer is the mean of theirs. Neither the UNet's weights nor the pipeline's code
is changed: see ``speaking``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from baselines.adapter import LoraAdapter
from baselines.attach import LowRankUpdate, attached, check_width, linear_layer
from baselines.options import PluginError

LayerWeights = Callable[[str, int, int], Sequence[float]]
"""(layer, step in ``[0, total_steps)``, total_steps) -> a weight for each adapter."""

Clock = Callable[[], tuple[int, int]]
"""Gives the denoising step that is being computed, and how many there are."""


@dataclass(frozen=True, eq=False)
class Policy:
    """Adapters, and how they are weighed in each layer at each step."""

    adapters: tuple[LoraAdapter, ...]
    """In the method's order: the subject's, the style's."""
    passes: tuple[LayerWeights, ...]
    """The UNet is run once with each; its answer is the mean."""
    name: str = ""
    """The method's, for messages."""

    def __post_init__(self) -> None:
        if not self.passes or not all(callable(weights) for weights in self.passes):
            raise PluginError(
                f"policy {self.name!r} must give weights(layer, step, total_steps), or several "
                "such functions, not " + (repr(self.passes) if self.passes else "none")
            )

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that any of the adapters updates, sorted."""
        return tuple(sorted({layer for adapter in self.adapters for layer in adapter.deltas}))

    def weights(
        self, layer: str, step: int, total_steps: int, *, number: int = 0
    ) -> tuple[float, ...]:
        """The weight of each adapter in pass ``number``.

        Raises:
            PluginError: If the method gives something else than a finite number for each.
        """
        given = self.passes[number](layer, step, total_steps)
        try:
            weights = tuple(float(weight) for weight in given)
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"policy {self.name!r} gave {given!r} for layer {layer!r} at step {step} of "
                f"{total_steps}, not a weight for each adapter"
            ) from error
        if len(weights) != len(self.adapters) or not all(map(math.isfinite, weights)):
            raise PluginError(
                f"policy {self.name!r} gave the weights {weights} for layer {layer!r} at step "
                f"{step} of {total_steps}: it must give a finite number for each of the "
                f"{len(self.adapters)} adapters"
            )
        return weights

    def parameters(self) -> int:
        """How many numbers are kept while images are drawn: those of all the adapters."""
        return sum(adapter.parameters() for adapter in self.adapters)

    def to(self, device: str | torch.device) -> Policy:
        """The same policy with its adapters' factors elsewhere."""
        return replace(self, adapters=tuple(adapter.to(device) for adapter in self.adapters))


@contextmanager
def speaking(unet: nn.Module, policy: Policy, clock: Clock) -> Iterator[None]:
    """While open, the UNet answers as the policy says for the clock's step.

    The adapters' factors must be on the UNet's device. Weights depend on nothing but the layer and
    the step, so that the rows of a batch, guided or not, are all treated alike.

    Raises:
        AdapterError: If a layer is missing, is not linear, or has another width than its update.
        PluginError: From the UNet's call, if the policy gives wrong weights.
    """
    current = _Pass()
    updates = {layer: _Speakers(unet, layer, policy, clock, current) for layer in policy.layers}
    with attached(unet, updates), _averaged(unet, len(policy.passes), current):
        yield


@dataclass
class _Pass:
    """Which of a policy's passes is being computed."""

    number: int = 0


class _Speakers:
    """The weighted sum of all adapters' updates of one layer."""

    def __init__(
        self, unet: nn.Module, layer: str, policy: Policy, clock: Clock, current: _Pass
    ) -> None:
        self.layer = layer
        self.policy = policy
        self.clock = clock
        self.current = current
        self.d_out = linear_layer(unet, layer).out_features
        self.updates = [
            LowRankUpdate(adapter.deltas[layer]) if layer in adapter.deltas else None
            for adapter in policy.adapters
        ]
        for update in self.updates:
            if update is not None:
                check_width(unet, layer, update.delta)

    def __call__(self, x: Tensor) -> Tensor:
        step, total_steps = self.clock()
        weights = self.policy.weights(self.layer, step, total_steps, number=self.current.number)
        change: Tensor | None = None
        for weight, update in zip(weights, self.updates, strict=True):
            if weight == 0.0 or update is None:
                continue  # silent adapters cost no time
            term = update(x) if weight == 1.0 else weight * update(x)
            change = term if change is None else change + term
        return x.new_zeros((*x.shape[:-1], self.d_out)) if change is None else change


@contextmanager
def _averaged(unet: Any, count: int, current: _Pass) -> Iterator[None]:
    """While open, the UNet is run ``count`` times a call and answers the mean."""
    if count == 1:
        yield
        return
    shadowed = vars(unet).get("forward")  # a forward of the instance's own, if it has one
    plain = unet.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        answers = []
        for number in range(count):
            current.number = number
            answers.append(plain(*arguments, **named))
        samples = torch.stack([answer[0] for answer in answers])
        exact = torch.promote_types(samples.dtype, torch.float32)
        mean = samples.to(exact).mean(0).to(samples.dtype)
        return (mean,) if isinstance(answers[0], tuple) else type(answers[0])(sample=mean)

    unet.forward = forward
    try:
        yield
    finally:
        if shadowed is None:
            del unet.forward
        else:
            unet.forward = shadowed
