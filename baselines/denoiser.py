"""What every trainer needs of an SDXL pipeline: latents, embeddings, noise, the UNet's answer.

diffusers is imported where it is used, so that importing this module stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageOps
from PIL.Image import Image
from torch import Tensor, nn

from baselines.attach import GRADIENT_SCALE, scale_gradient


@dataclass(frozen=True)
class Conditioning:
    """What SDXL's UNet is told about each of n samples."""

    embeddings: Tensor
    """Both text encoders' hidden states, ``(n, tokens, dim)``."""
    pooled: Tensor
    """The second text encoder's pooled output, ``(n, dim)``."""
    time_ids: Tensor
    """Original height and width, crop top and left, target height and width: ``(n, 6)``."""

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Conditioning:
        """The conditioning of ``rows``: a slice or indices, which may repeat."""
        return Conditioning(self.embeddings[rows], self.pooled[rows], self.time_ids[rows])

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of ``parts`` in order."""
        return Conditioning(
            torch.cat([part.embeddings for part in parts]),
            torch.cat([part.pooled for part in parts]),
            torch.cat([part.time_ids for part in parts]),
        )

    def zeros_like(self) -> Conditioning:
        """SDXL's unconditional prompt: zero embeddings, the same sizes and crops."""
        return Conditioning(
            torch.zeros_like(self.embeddings), torch.zeros_like(self.pooled), self.time_ids
        )


class Denoiser:
    """A frozen SDXL pipeline as its trainers see it.

    Attributes:
        unet: The UNet, in evaluation mode, without gradients of its own.
        resolution: Pixels a side of the square images it is trained on.
        train_timesteps: Number of noise levels; timesteps are ``[0, train_timesteps)``.
    """

    unet: nn.Module
    resolution: int
    train_timesteps: int

    def __init__(self, pipe: Any, *, resolution: int) -> None:
        """Wrap ``pipe``, a ``StableDiffusionXLPipeline``, and freeze all its weights.

        Raises:
            ValueError: If the resolution is not a positive multiple of the latents' scale, or the
                scheduler predicts neither noise nor v.
        """
        from diffusers import DDPMScheduler

        scale = int(pipe.vae_scale_factor)
        if resolution <= 0 or resolution % scale:
            raise ValueError(f"resolution is {resolution}: give a positive multiple of {scale}")
        # The pipeline's sampler and the training noise share their betas, whatever the sampler is.
        scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"the scheduler's prediction_type is {scheduler.config.prediction_type!r}: "
                "only 'epsilon' and 'v_prediction' can be trained"
            )
        for module in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
            module.requires_grad_(False)
            module.eval()
        self._pipe = pipe
        self._scheduler = scheduler
        self.unet = pipe.unet
        self.resolution = resolution
        self.train_timesteps = int(scheduler.config.num_train_timesteps)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        resolution: int,
    ) -> Denoiser:
        """Load ``model``, a folder in diffusers' layout or a hub id."""
        from diffusers import StableDiffusionXLPipeline
        from diffusers.utils import logging

        logging.disable_progress_bar()
        # `dtype` must always be passed: a half-precision folder loads in mixed types without it.
        pipe = StableDiffusionXLPipeline.from_pretrained(model, dtype=dtype)
        return cls(pipe.to(device), resolution=resolution)

    @property
    def device(self) -> torch.device:
        """Where the UNet's weights are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type the UNet computes in."""
        return next(self.unet.parameters()).dtype

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of each prompt, for uncropped images of ``resolution``."""
        if isinstance(prompts, str):
            raise TypeError("prompts is one string: give a sequence of prompts")
        embeddings, _, pooled, _ = self._pipe.encode_prompt(
            prompt=list(prompts),
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        side = float(self.resolution)
        time_ids = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=self.device)
        return Conditioning(
            embeddings.to(self.dtype),
            pooled.to(self.dtype),
            time_ids.repeat(len(prompts), 1).to(self.dtype),
        )

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """Latents of the images' central squares, ``(n, c, h, w)``, scaled as the UNet sees them.

        The shorter side is resized to ``resolution``. The mode of the autoencoder's distribution is
        taken, so the result has no randomness. Encoded in float32 at least and returned so, since
        SDXL's autoencoder overflows in float16; ``predict`` casts to the UNet's type.
        """
        vae = self._pipe.vae
        pixels = torch.stack([_pixels(image, self.resolution) for image in images])
        dtype = vae.dtype
        exact = torch.promote_types(dtype, torch.float32)
        if exact != dtype:
            nn.Module.to(vae, exact)  # diffusers' own `to` logs a warning here
        try:
            latents = []
            for image in pixels:  # one at a time: at 1024 pixels a batch may not fit
                encoded = vae.encode(image[None].to(self.device, exact))
                tiny = not hasattr(encoded, "latent_dist")  # AutoencoderTiny has no distribution
                latents.append(encoded.latents if tiny else encoded.latent_dist.mode())
        finally:
            if exact != dtype:
                nn.Module.to(vae, dtype)  # half -> float32 -> half gives the same bits
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return (torch.cat(latents) - shift) * float(vae.config.scaling_factor)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The latents ``(n, c, h, w)`` noised to ``timesteps`` ``(n,)``."""
        noisy: Tensor = self._scheduler.add_noise(latents, noise, timesteps)
        return noisy

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet ought to answer: the noise, or v, as the scheduler's configuration says."""
        if self._scheduler.config.prediction_type == "epsilon":
            return noise
        velocity: Tensor = self._scheduler.get_velocity(latents, noise, timesteps)
        return velocity

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's raw output ``(n, c, h, w)``; differentiable in what is ``attached`` to it.

        It is in the UNet's own type, but for float16 with gradients: then in float32, and they are
        GRADIENT_SCALE times larger inside the UNet than outside.
        """
        output: Tensor = self.unet(
            noisy.to(self.dtype),
            timesteps,
            encoder_hidden_states=conditioning.embeddings,
            added_cond_kwargs={
                "text_embeds": conditioning.pooled,
                "time_ids": conditioning.time_ids,
            },
        ).sample
        if output.dtype == torch.float16 and torch.is_grad_enabled():
            return scale_gradient(output.float(), GRADIENT_SCALE)
        return output

    @contextmanager
    def gradient_checkpointing(self, *, enabled: bool = True) -> Iterator[None]:
        """While open, the UNet trades time for memory in its backward pass (if ``enabled``)."""
        unet: Any = self.unet
        if enabled:
            unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            if enabled:
                unet.disable_gradient_checkpointing()


def _pixels(image: Image, resolution: int) -> Tensor:
    """The central square of ``image``, ``(3, resolution, resolution)`` in [-1, 1]."""
    square = ImageOps.fit(
        image.convert("RGB"), (resolution, resolution), method=PILImage.Resampling.LANCZOS
    )
    array = np.asarray(square, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
