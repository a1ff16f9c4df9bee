"""Drawings made to look generated: blotchy, blurred, bent, noisy, a little off in colour.

A judge trained on clean drawings alone is fooled by what a small diffusion model paints.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

MARGIN = 3  # pixels by which pictures are shifted at most


def degrade(images: Tensor, generator: torch.Generator, *, share: float = 1.0) -> Tensor:
    """Images in [-1, 1], ``(n, 3, 64, 64)``, a ``share`` of them damaged in a random way each."""
    n, _, height, width = images.shape

    def uniform(low: float, high: float, chance: float = 1.0) -> Tensor:
        values = low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)
        return values * (torch.rand(n, 1, 1, 1, generator=generator) < chance)

    def lumps(side: int) -> Tensor:
        coarse = torch.randn(n, 3, side, side, generator=generator)
        return functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)

    chosen = torch.rand(n, 1, 1, 1, generator=generator) < share
    damaged = _bent(images, lumps(5)[:, :2] * uniform(0.2, 1.3, 0.5))
    damaged = _blurred(damaged, uniform(0.3, 1.3, 0.6).flatten())
    damaged = damaged + lumps(16) * uniform(0.02, 0.16, 0.5) + lumps(7) * uniform(0.02, 0.16, 0.3)
    gain = 1 + 0.05 * torch.randn(n, 3, 1, 1, generator=generator)
    shift = 0.05 * torch.randn(n, 3, 1, 1, generator=generator)
    mean = damaged.mean((2, 3), keepdim=True)
    contrast = 1 - uniform(-0.15, 0.35, 0.5)
    damaged = (mean + (damaged - mean) * contrast) * gain + shift
    noise = torch.randn(images.shape, generator=generator)
    damaged = damaged + noise * uniform(0.01, 0.12, 0.5)
    return torch.where(chosen, damaged, images).clamp(-1, 1)


def _bent(images: Tensor, offsets: Tensor) -> Tensor:
    """Every pixel fetched from ``offsets`` pixels away, ``(n, 2, h, w)``."""
    height, width = images.shape[-2:]
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width)[None, :].expand(height, width)
    grid = torch.stack([x, y], -1) + offsets.permute(0, 2, 3, 1) * (2 / width)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=True)


def _blurred(images: Tensor, radii: Tensor) -> Tensor:
    """Blurred by a Gaussian of its own radius in pixels each; radius 0 leaves an image alone."""
    n, channels, height, width = images.shape
    steps = torch.arange(-4, 5)
    kernels = torch.exp(-0.5 * (steps / radii.clamp(min=1e-2)[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    rows = images.reshape(1, n * channels, height, width)
    for shape, padding in (((-1, 1, 1, 9), (4, 4, 0, 0)), ((-1, 1, 9, 1), (0, 0, 4, 4))):
        padded = functional.pad(rows, padding, mode="replicate")
        rows = functional.conv2d(padded, kernels.view(shape), groups=n * channels)
    return rows.view(n, channels, height, width)


def shifted(images: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Images ``(n, 3, h, w)``, each moved up and left by so many pixels; borders are repeated.

    Raises:
        ValueError: if an offset exceeds MARGIN.
    """
    if any(max(abs(y), abs(x)) > MARGIN for y, x in offsets):
        raise ValueError(f"offsets are {offsets}: MARGIN is {MARGIN}")
    height, width = images.shape[-2:]
    padded = functional.pad(images, (MARGIN,) * 4, mode="replicate")
    parts = [
        image[:, MARGIN + y : MARGIN + y + height, MARGIN + x : MARGIN + x + width]
        for image, (y, x) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(parts)


@torch.no_grad()
def autoencoded(
    encoder: nn.Module,
    decoder: nn.Module,
    pixels: Tensor,
    generator: torch.Generator,
    *,
    noise: float = 0.25,
) -> Tensor:
    """What the autoencoder makes of uint8 images whose latents carry up to so much noise; uint8."""
    outputs = []
    for part in torch.split(pixels, 64):
        latents = encoder(part.float() / 127.5 - 1)
        level = noise * torch.rand(len(part), 1, 1, 1, generator=generator)
        latents = latents + level * torch.randn(latents.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = decoder(latents)
        outputs.append(((decoded.float().clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8))
    return torch.cat(outputs)


def nothing(count: int, generator: torch.Generator) -> Tensor:
    """Images in [-1, 1] that show nothing but lumps of colour, ``(count, 3, 64, 64)``."""
    image = 0.5 * torch.randn(count, 3, 1, 1, generator=generator).expand(count, 3, 64, 64)
    for side in (3, 8, 24):
        coarse = torch.randn(count, 3, side, side, generator=generator)
        lumps = functional.interpolate(coarse, (64, 64), mode="bilinear", align_corners=False)
        image = image + 0.4 * torch.rand(count, 1, 1, 1, generator=generator) * lumps
    return image.clamp(-1, 1)
