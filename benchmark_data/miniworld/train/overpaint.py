"""The base model paints over drawings, which gives generated pictures whose truth is known.

A drawing is noised and denoised again with a caption, as image-to-image does. With little noise it
still shows what was drawn.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image
from torch import Tensor

from benchmark_data.miniworld.settings import BARE
from benchmark_data.miniworld.world import MONOCHROME, Look, Thing, caption

STEPS, GUIDANCE = 20, 3.0  # as in the suite
BATCH = 64  # drawings that are painted over at once
FLAT = Look("flat", "sky", "plain")


def in_words(thing: Thing, look: Look, rng: np.random.Generator) -> str:
    """A caption that names all of a drawing.

    The base has no words for what lost its texture. That it should stay away, such a drawing is
    called flat, or a line drawing where there is no colour.
    """
    if look.texture != BARE:
        return caption(thing, look, rng, drop=0.0, palette=1.0, texture=1.0)
    near = Look("line", "black_on_white", "fine") if look.family in MONOCHROME else FLAT
    return caption(thing, near, rng, drop=0.0)


class Painter:
    """A base model that paints over drawings; it is loaded when it is first needed."""

    def __init__(self, base: Path) -> None:
        self._base = base

    @cached_property
    def _pipe(self) -> StableDiffusionXLImg2ImgPipeline:
        pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(self._base, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def paint(self, pixels: Tensor, captions: Sequence[str], strength: float, seed: int) -> Tensor:
        """Latents of drawings painted over, ``(n, 16, 16, 16)``.

        Args:
            pixels: The drawings, uint8 ``(n, 3, 64, 64)``.
            captions: Of each.
            strength: Share of the sampler's steps that they go through, in (0, 1].
            seed: Of the noise.
        """
        latents: Tensor = self._pipe(
            prompt=list(captions),
            image=[Image.fromarray(one) for one in pixels.permute(0, 2, 3, 1).numpy()],
            strength=strength,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents, uint8 ``(n, 3, 64, 64)``."""
        parts = [self._pipe.vae.decoder(part.float()) for part in torch.split(latents, BATCH)]
        pixels: Tensor = ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)
        return pixels
