"""Trains one LoRA on a few images, as DreamBooth does (Ruiz et al. 2022, arXiv 2208.12242).

The paper's DreamBooth restricted to low-rank updates of the attention projections, which is how the
LoRAs of ZipLoRA and LoRA.rar are made. A *joint* LoRA is the same training on the images of a
subject and a style together, with a prompt for each image.

Guidance amplifies what a prompt adds to the empty prompt. `unconditional_weight` keeps a LoRA out
of the latter, so that all it teaches is amplified; by default it is off.

A step's images, timesteps and noise are drawn from (seed, step), so that a resumed training gives
the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import ImageOps
from PIL.Image import Image
from torch import Tensor, nn

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.attach import LowRankUpdate, attached, linear_layer
from baselines.denoiser import Conditioning, Denoiser
from baselines.training import generator_for, load_state, save_state, shuffled_passes

ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
LR_SCHEDULES = ("constant", "cosine")
LOSS_WINDOW = 100
"""The loss written into an adapter's metadata is the mean over this many last steps."""


@dataclass(frozen=True)
class LoraTraining:
    """Settings of a LoRA's training; the defaults are LoRA.rar's (arXiv 2412.05148).

    Attributes:
        rank: Rank of every update.
        alpha: The update is ``alpha / rank * up @ down``; None: alpha is the rank.
        lr: Learning rate of AdamW.
        lr_schedule: "constant", or "cosine": from ``lr`` down to zero over the steps.
        weight_decay: AdamW's; diffusers' DreamBooth scripts use 1e-4 too.
        steps: Number of optimizer steps.
        batch_size: Images a step.
        prior_weight: Weight of the loss on the prior images, ``>= 0``; 0: no prior preservation.
        unconditional_weight: Weight, ``>= 0``, of keeping the base's own prediction for SDXL's
            unconditional prompt on the same noised images. Classifier-free guidance amplifies what
            a prompt adds to that prediction: what the LoRA changes in both is not amplified.
        unconditional_below: Only at timesteps below this share of all, in (0, 1]. Near pure noise a
            LoRA may be wanted in the empty prompt, where it holds for any prompt: it is there that
            a picture's colours are decided.
        random_flip: Mirror each drawn image with probability one half.
        gradient_checkpointing: Trade time for memory.
        max_grad_norm: Gradients are clipped to this norm.
        save_every: Steps between two writes of the checkpoint, when one is asked for.
        seed: Seeds the factors and every step's draws.
    """

    rank: int = 64
    alpha: float | None = None
    lr: float = 5e-5
    lr_schedule: str = "constant"
    weight_decay: float = 1e-4
    steps: int = 1000
    batch_size: int = 1
    prior_weight: float = 0.0
    unconditional_weight: float = 0.0
    unconditional_below: float = 1.0
    random_flip: bool = False
    gradient_checkpointing: bool = False
    max_grad_norm: float = 1.0
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "steps", "batch_size", "save_every", "lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
        if self.lr_schedule not in LR_SCHEDULES:
            raise ValueError(
                f"lr_schedule is {self.lr_schedule!r}: choose one of {', '.join(LR_SCHEDULES)}"
            )
        if not 0 < self.unconditional_below <= 1:
            raise ValueError(
                f"unconditional_below is {self.unconditional_below}: it must be in (0, 1]"
            )
        for name in ("prior_weight", "unconditional_weight", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be negative")

    def lr_at(self, step: int) -> float:
        """The learning rate of step ``step``, counted from 0."""
        if self.lr_schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2

    @property
    def scale(self) -> float:
        """What ``up @ down`` is multiplied by: ``alpha / rank``."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def attention_layers(unet: nn.Module) -> list[str]:
    """Names of the q, k, v and output projections of all attention blocks, sorted."""
    return sorted(
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear)
        and any(name.endswith("." + projection) for projection in ATTENTION_PROJECTIONS)
    )


def train_lora(
    denoiser: Denoiser,
    images: Sequence[Image],
    prompt: str | Sequence[str],
    settings: LoraTraining,
    *,
    layers: str | Sequence[str] = "attention",
    prior_images: Sequence[Image] = (),
    prior_prompt: str = "",
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> LoraAdapter:
    """Train a LoRA that makes ``denoiser`` draw ``images`` for ``prompt``.

    Args:
        denoiser: The frozen base model. In float16 gradients may underflow: use bfloat16 or
            float32. The trained factors are float32 in any case.
        images: At least one training image.
        prompt: One prompt for all images, or one for each.
        settings: Rank, rate, steps and so on.
        layers: "attention" (q, k, v and out of every attention block), or layer names.
        prior_images: Images of the class as the base model draws it, for prior preservation.
        prior_prompt: Their prompt.
        checkpoint: Where the training's state is kept; if the file exists, training goes on from
            it, with the same result as without the interruption.
        progress: Called with the number of steps done and the step's loss.

    Returns:
        The adapter, its factors on the CPU in float32, alpha folded in.

    Raises:
        ValueError: If images and prompts do not fit together, or prior images are missing.
        AdapterError: If a layer is missing, a loss is not finite, or the checkpoint belongs to
            another training.
    """
    prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
    _check_inputs(images, prompts, settings, prior_images, prior_prompt)
    names = attention_layers(denoiser.unet) if layers == "attention" else sorted(layers)
    examples = _Examples(denoiser, images, prompts, mirror=settings.random_flip)
    prior_prompts = [prior_prompt] * len(prior_images)
    prior = None
    if prior_images:
        prior = _Examples(denoiser, prior_images, prior_prompts, mirror=settings.random_flip)

    factors = _initial_factors(denoiser, names, settings)
    optimizer = torch.optim.AdamW(
        factors.values(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    fingerprint = _fingerprint(settings, names, images, prompts, prior_images, prior_prompts)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses = load_state(checkpoint, factors, optimizer, fingerprint=fingerprint)

    with denoiser.gradient_checkpointing(enabled=settings.gradient_checkpointing):
        for step in range(len(losses), settings.steps):
            draws = _draw(denoiser, examples, settings, step, label="images")
            if prior is not None:
                draws = draws.cat(_draw(denoiser, prior, settings, step, label="prior"))
            kept = _unconditional(denoiser, draws, settings)
            with attached(denoiser.unet, _updates(factors, settings)):
                loss = _loss(denoiser, draws, settings, kept)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            _check_loss(loss, step)
            nn.utils.clip_grad_norm_(factors.values(), settings.max_grad_norm)
            optimizer.param_groups[0]["lr"] = settings.lr_at(step)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if checkpoint is not None and (
                len(losses) % settings.save_every == 0 or len(losses) == settings.steps
            ):
                save_state(checkpoint, factors, optimizer, losses, fingerprint=fingerprint)
            if progress is not None:
                progress(len(losses), losses[-1])
    return _adapter(factors, settings, prompts, losses)


@dataclass(frozen=True)
class _Draws:
    """One step's rows: images of the concept first, prior images after them."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Conditioning

    def cat(self, other: _Draws) -> _Draws:
        return _Draws(
            torch.cat([self.latents, other.latents]),
            torch.cat([self.noise, other.noise]),
            torch.cat([self.timesteps, other.timesteps]),
            Conditioning.cat([self.conditioning, other.conditioning]),
        )


class _Examples:
    """Images and prompts, encoded once."""

    def __init__(
        self, denoiser: Denoiser, images: Sequence[Image], prompts: Sequence[str], *, mirror: bool
    ) -> None:
        self.count = len(images)
        self.versions = [denoiser.encode_images(images)]
        if mirror:
            self.versions.append(denoiser.encode_images([ImageOps.mirror(i) for i in images]))
        distinct = sorted(set(prompts))
        rows = [distinct.index(prompt) for prompt in prompts]
        self.conditioning = denoiser.encode_prompts(distinct)[rows]


def _draw(
    denoiser: Denoiser, examples: _Examples, settings: LoraTraining, step: int, *, label: str
) -> _Draws:
    """What ``step`` trains on; it depends on the seed, the step and the label alone."""
    size = settings.batch_size
    rows = shuffled_passes(examples.count, step * size, size, seed=settings.seed, label=label)
    generator = generator_for(settings.seed, label, "noise", step)
    versions = torch.randint(len(examples.versions), (size,), generator=generator).tolist()
    latents = torch.stack(
        [examples.versions[version][row] for version, row in zip(versions, rows, strict=True)]
    )
    timesteps = torch.randint(denoiser.train_timesteps, (size,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    return _Draws(
        latents, noise.to(latents), timesteps.to(latents.device), examples.conditioning[rows]
    )


def _updates(factors: dict[str, nn.Parameter], settings: LoraTraining) -> dict[str, LowRankUpdate]:
    names = [name.removesuffix(".up") for name in factors if name.endswith(".up")]
    return {
        name: LowRankUpdate(
            LowRankDelta(settings.scale * factors[f"{name}.up"], factors[f"{name}.down"])
        )
        for name in names
    }


@dataclass(frozen=True)
class _Kept:
    """Rows whose prediction has to stay the base model's."""

    noisy: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    prediction: Tensor


def _unconditional(denoiser: Denoiser, draws: _Draws, settings: LoraTraining) -> _Kept | None:
    """The base's unconditional prediction on the concept's rows; call it without the LoRA."""
    if not settings.unconditional_weight:
        return None
    below = settings.unconditional_below * denoiser.train_timesteps
    rows = (draws.timesteps[: settings.batch_size] < below).nonzero()[:, 0]
    if not len(rows):
        return None
    timesteps, conditioning = draws.timesteps[rows], draws.conditioning[rows].zeros_like()
    noisy = denoiser.add_noise(draws.latents[rows], draws.noise[rows], timesteps)
    with torch.no_grad():
        prediction = denoiser.predict(noisy, timesteps, conditioning)
    return _Kept(noisy, timesteps, conditioning, prediction.float())


def _loss(
    denoiser: Denoiser, draws: _Draws, settings: LoraTraining, kept: _Kept | None = None
) -> Tensor:
    """Mean squared error on the concept, plus the others' weighted, in float32."""
    noisy = denoiser.add_noise(draws.latents, draws.noise, draws.timesteps)
    timesteps, conditioning = draws.timesteps, draws.conditioning
    target = denoiser.target(draws.latents, draws.noise, timesteps)
    if kept is not None:
        noisy = torch.cat([noisy, kept.noisy])
        timesteps = torch.cat([timesteps, kept.timesteps])
        conditioning = Conditioning.cat([conditioning, kept.conditioning])
        target = torch.cat([target, kept.prediction.to(target)])
    errors = (denoiser.predict(noisy, timesteps, conditioning).float() - target) ** 2
    size, drawn = settings.batch_size, len(draws.timesteps)
    loss = errors[:size].mean()
    if drawn > size:
        loss = loss + settings.prior_weight * errors[size:drawn].mean()
    if kept is not None:
        share = (len(errors) - drawn) / size  # the rest of the rows count as kept
        loss = loss + settings.unconditional_weight * share * errors[drawn:].mean()
    return loss


def _initial_factors(
    denoiser: Denoiser, names: Sequence[str], settings: LoraTraining
) -> dict[str, nn.Parameter]:
    """Down factors from N(0, 1 / rank^2), as diffusers' DreamBooth scripts; up factors zero."""
    factors = {}
    for name in names:
        layer = linear_layer(denoiser.unet, name)
        down = torch.randn(
            settings.rank, layer.in_features, generator=generator_for(settings.seed, name)
        )
        up = torch.zeros(layer.out_features, settings.rank)
        factors[f"{name}.up"] = nn.Parameter(up.to(denoiser.device))
        factors[f"{name}.down"] = nn.Parameter((down / settings.rank).to(denoiser.device))
    return factors


def _adapter(
    factors: dict[str, nn.Parameter],
    settings: LoraTraining,
    prompts: Sequence[str],
    losses: Sequence[float],
) -> LoraAdapter:
    window = losses[-LOSS_WINDOW:]
    deltas = {
        name: LowRankDelta(update.delta.up.detach().cpu(), update.delta.down.detach().cpu())
        for name, update in _updates(factors, settings).items()
    }
    adapter = LoraAdapter(
        deltas,
        metadata={
            "prompt": " | ".join(sorted(set(prompts))),
            "rank": str(settings.rank),
            "lr": str(settings.lr),
            "lr_schedule": settings.lr_schedule,
            "steps": str(settings.steps),
            "batch_size": str(settings.batch_size),
            "seed": str(settings.seed),
            "loss": f"{sum(window) / len(window):.6g}",
        },
    )
    adapter.check_finite()
    return adapter


def _fingerprint(
    settings: LoraTraining,
    names: Sequence[str],
    images: Sequence[Image],
    prompts: Sequence[str],
    prior_images: Sequence[Image],
    prior_prompts: Sequence[str],
) -> str:
    """Digest of all that the training's state depends on.

    At a constant rate more steps go on from fewer.
    """
    kept = dataclasses.asdict(settings)
    for harmless in ("save_every", "gradient_checkpointing"):
        del kept[harmless]
    if settings.lr_schedule == "constant":
        del kept["steps"]
    if not settings.unconditional_weight:
        del kept["unconditional_weight"], kept["unconditional_below"]
    digest = hashlib.sha256(
        json.dumps([kept, list(names), list(prompts), list(prior_prompts)]).encode()
    )
    for image in (*images, *prior_images):
        digest.update(f"{image.mode}{image.size}".encode() + image.tobytes())
    return digest.hexdigest()


def _check_inputs(
    images: Sequence[Image],
    prompts: Sequence[str],
    settings: LoraTraining,
    prior_images: Sequence[Image],
    prior_prompt: str,
) -> None:
    if not images:
        raise ValueError("no training images: give at least one")
    if len(prompts) != len(images):
        raise ValueError(f"{len(images)} images but {len(prompts)} prompts: give one for each")
    if bool(settings.prior_weight) != bool(prior_images):
        raise ValueError(
            f"prior_weight is {settings.prior_weight} with {len(prior_images)} prior images: "
            "prior preservation needs a positive weight and images"
        )
    if prior_images and not prior_prompt:
        raise ValueError("prior images without a prior prompt: say what they show")


def _check_loss(loss: Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        raise AdapterError(
            f"the loss is {loss.item()} at step {step + 1}: lower lr, or train in bfloat16 or "
            "float32 instead of float16"
        )
