"""ZipLoRA's merging loss, which ZipLoRA minimises for a pair and LoRA.rar's training over pairs.

A merge multiplies the columns of each update by coefficients, one per input feature:

    dW = dW_c diag(m_c) + dW_s diag(m_s)

The loss asks the merged network to answer as the subject's LoRA does on the subject's images and as
the style's does on the style's, and the two coefficient vectors to be orthogonal
(Shah et al. 2023, arXiv 2311.13600, equation 3):

    ||eps(merged; x_c, p_c) - eps(subject; x_c, p_c)||^2
    + ||eps(merged; x_s, p_s) - eps(style; x_s, p_s)||^2 + weight * sum over layers |cos(m_c, m_s)|

Here the squared norms are means over all elements, so that the balance with the regularizer does
not depend on the resolution. Updates stay factored: dW is never built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from baselines.adapter import AdapterError, LoraAdapter, check_same_layers
from baselines.attach import LowRankUpdate, adapter_updates, attached
from baselines.denoiser import Conditioning, Denoiser

Regularizer = Literal["abs_cos", "abs_dot", "mean_abs_product"]

Coefficients = Mapping[str, tuple[Tensor, Tensor]]
"""Layer -> (m_subject, m_style), each ``(d_in,)``."""


@dataclass(frozen=True)
class PairTask:
    """What a method that optimises for a pair may use, and no more: no test prompt or image."""

    denoiser: Denoiser
    subject_images: Sequence[Image]
    """The subject's reference images."""
    subject_prompts: Sequence[str]
    """For each image, the prompt its LoRA was trained with."""
    style_images: Sequence[Image]
    """The style's reference images."""
    style_prompts: Sequence[str]
    """For each image, the prompt its LoRA was trained with."""


@dataclass(frozen=True)
class EncodedConcept:
    """A subject's or style's images and their prompts, encoded once."""

    latents: Tensor
    """``(n, c, h, w)``."""
    conditioning: Conditioning
    """Of each image's prompt, ``(n, ...)``."""


@dataclass(frozen=True)
class TaskBatch:
    """n noised subject rows and then n noised style rows, with the same noise and timesteps."""

    denoiser: Denoiser
    noisy: Tensor
    """``(2 n, c, h, w)``."""
    timesteps: Tensor
    """``(2 n,)``."""
    conditioning: Conditioning
    """``(2 n, ...)``."""
    target: Tensor
    """What the UNet ought to answer, ``(2 n, c, h, w)``: the noise, or v."""


@dataclass(frozen=True)
class Loss:
    """The merging loss and its parts, scalars."""

    total: Tensor
    """``subject + style + weight * regularizer``."""
    subject: Tensor
    """Mean squared error against the subject's LoRA."""
    style: Tensor
    """Mean squared error against the style's LoRA."""
    regularizer: Tensor
    """Sum over layers, not yet weighted."""


def encode_concept(
    denoiser: Denoiser, images: Sequence[Image], prompts: Sequence[str]
) -> EncodedConcept:
    """Encode a concept's images, each with its prompt, for ``draw_batch``.

    Raises:
        ValueError: If there is no image, or not a prompt for each.
    """
    if not images or len(images) != len(prompts):
        raise ValueError(
            f"{len(images)} images and {len(prompts)} prompts: give at least one image, and a "
            "prompt for each"
        )
    return EncodedConcept(denoiser.encode_images(images), denoiser.encode_prompts(prompts))


def draw_batch(
    denoiser: Denoiser,
    subject: EncodedConcept,
    style: EncodedConcept,
    size: int,
    generator: torch.Generator,
) -> TaskBatch:
    """Draw ``size`` images of each concept, timesteps and noise from ``generator``, on the CPU."""
    timesteps = torch.randint(denoiser.train_timesteps, (size,), generator=generator)
    noise = torch.randn((size, *subject.latents.shape[1:]), generator=generator)
    rows = [
        torch.randint(len(concept.latents), (size,), generator=generator)
        for concept in (subject, style)
    ]
    latents = torch.cat([subject.latents[rows[0]], style.latents[rows[1]]])
    both_timesteps = timesteps.repeat(2).to(latents.device)
    both_noises = noise.repeat(2, 1, 1, 1).to(latents)
    noisy = denoiser.add_noise(latents, both_noises, both_timesteps)
    target = denoiser.target(latents, both_noises, both_timesteps)
    conditioning = Conditioning.cat(
        [subject.conditioning[rows[0].tolist()], style.conditioning[rows[1].tolist()]]
    )
    return TaskBatch(denoiser, noisy, both_timesteps, conditioning, target)


def merge_with_coefficients(
    subject: LoraAdapter, style: LoraAdapter, coefficients: Coefficients, *, default: float = 1.0
) -> LoraAdapter:
    """The merge dW_c diag(m_c) + dW_s diag(m_s) of every layer, exact and factored.

    Its rank is the sum of the two; it is differentiable in the coefficients and the factors.

    Args:
        subject: The subject's adapter.
        style: The style's adapter, with the same layers.
        coefficients: Of any of the layers.
        default: The weight of both updates in layers without coefficients.

    Raises:
        AdapterError: If the layers differ, or coefficients are for a layer that is not there or
            have a wrong width.
    """
    check_same_layers([subject, style])
    for layer, pair in coefficients.items():
        if layer not in subject.deltas:
            raise AdapterError(f"coefficients for layer {layer!r}, which the adapters do not have")
        d_in = subject.deltas[layer].shape[1]
        for coefficient in pair:
            if tuple(coefficient.shape) != (d_in,):
                raise AdapterError(
                    f"layer {layer!r} has {d_in} input features but coefficients of shape "
                    f"{tuple(coefficient.shape)}"
                )
    merged = {}
    for layer, delta in subject.deltas.items():
        if layer in coefficients:
            m_subject, m_style = coefficients[layer]
            scaled = delta.scale_columns(m_subject)
            merged[layer] = scaled + style.deltas[layer].scale_columns(m_style)
        else:
            merged[layer] = default * delta + default * style.deltas[layer]
    return LoraAdapter(merged)


def regularize(coefficients: Coefficients, regularizer: Regularizer = "abs_cos") -> Tensor:
    """How far the pairs of coefficient vectors are from orthogonal, summed over layers.

    "abs_dot" is |m_c . m_s| as ZipLoRA's paper writes it; "mean_abs_product" the mean of
    |m_c * m_s| over features, as the re-implementation mkshing/ziplora-pytorch has it; "abs_cos"
    the absolute cosine, as LoRA.rar's released code has it.

    Raises:
        ValueError: If the regularizer is unknown.
    """
    if regularizer == "abs_cos":
        terms = [functional.cosine_similarity(a, b, dim=0).abs() for a, b in coefficients.values()]
    elif regularizer == "abs_dot":
        terms = [(a @ b).abs() for a, b in coefficients.values()]
    elif regularizer == "mean_abs_product":
        terms = [(a * b).abs().mean() for a, b in coefficients.values()]
    else:
        raise ValueError(
            f"regularizer is {regularizer!r}: it must be one of {', '.join(get_args(Regularizer))}"
        )
    return torch.stack(terms).sum()


def merging_loss(
    batch: TaskBatch,
    subject: LoraAdapter,
    style: LoraAdapter,
    coefficients: Coefficients,
    *,
    regularizer: Regularizer = "abs_cos",
    weight: float = 0.01,
    default: float = 1.0,
    backward: bool = False,
) -> Loss:
    """The merging loss on one batch: one forward of both teachers, one of the merged network.

    Args:
        batch: Subject rows and style rows.
        subject: The subject's adapter, on the denoiser's device.
        style: The style's adapter, with the same layers.
        coefficients: Of at least one layer; gradients flow into them.
        regularizer: See ``regularize``.
        weight: Of the regularizer; lambda in the paper.
        default: The weight of both updates in layers without coefficients.
        backward: Run the backward pass of the total before returning. Gradient checkpointing needs
            this, since the merged updates are attached only inside this function.

    Raises:
        AdapterError: If adapters, coefficients and network do not fit together.
    """
    denoiser = batch.denoiser
    merged = merge_with_coefficients(subject, style, coefficients, default=default)
    teachers = {
        layer: _Halves(LowRankUpdate(delta), LowRankUpdate(style.deltas[layer]))
        for layer, delta in subject.deltas.items()
    }
    with torch.no_grad(), attached(denoiser.unet, teachers):
        expected = denoiser.predict(batch.noisy, batch.timesteps, batch.conditioning)
    with attached(denoiser.unet, adapter_updates(merged)):
        answer = denoiser.predict(batch.noisy, batch.timesteps, batch.conditioning)
        exact = torch.promote_types(answer.dtype, torch.float32)
        errors = (answer.to(exact) - expected.to(exact)).square()
        of_subject, of_style = (half.mean() for half in errors.chunk(2))
        penalty = regularize(coefficients, regularizer)
        total = of_subject + of_style + weight * penalty
        if backward:
            total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return Loss(total, of_subject, of_style, penalty)


@dataclass(frozen=True)
class _Halves:
    """The subject's update on the first half of the rows, the style's on the second."""

    subject: LowRankUpdate
    style: LowRankUpdate

    def __call__(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2)
        return torch.cat([self.subject(first), self.style(second)])
