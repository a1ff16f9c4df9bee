"""Draws images with diffusers' SDXL pipeline, an adapter fused in and taken out again exactly.

A policy's adapters are not fused: they are attached for the time of the drawing, and weighed anew
at every step, which the pipeline's own callback counts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.denoiser import Denoiser
from baselines.policy import Policy, speaking
from benchmark_data.references import file_digest
from mars2.files import read_json
from mars2.job import RunError, RunSpec, digest


class Pipeline(Protocol):
    """What a run needs of a text-to-image model."""

    def generate(
        self, adapter: LoraAdapter | Policy | None, prompt: str, seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Return an RGB image a seed, drawn with an adapter's updates added or by a policy."""
        ...

    def denoiser(self) -> Denoiser:
        """Return the model as methods that fit to a pair see it."""
        ...


class SdxlPipeline:
    """Stable Diffusion XL, or any pipeline of its classes and layout.

    The noise of seed s is drawn on the CPU by a generator seeded s, an image at a time: neither the
    method nor the size of the batch changes where an image starts from.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        resolution: int,
        steps: int,
        guidance_scale: float,
        negative_prompt: str = "",
        batch_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise RunError(f"the batch size is {batch_size}; it must be at least 1")
        if steps < 1:
            raise RunError(f"the number of steps is {steps}; it must be at least 1")
        self.pipe = pipe
        self.resolution = resolution
        self.steps = steps
        self.guidance_scale = guidance_scale
        self.negative_prompt = negative_prompt
        self.batch_size = batch_size
        self._denoiser: Denoiser | None = None
        self._step = 0
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.eval().requires_grad_(requires_grad=False)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: str,
        device: str,
        resolution: int,
        steps: int,
        guidance_scale: float,
        negative_prompt: str = "",
        batch_size: int = 1,
    ) -> "SdxlPipeline":
        """Return the pipeline in a folder or of a hub id, on its device.

        Args:
            model: Folder in diffusers' layout, or hub id.
            dtype: "float32", "float16" or "bfloat16".
            device: A torch device.
            resolution: Side of the images, pixels.
            steps: Denoising steps.
            guidance_scale: Weight of classifier-free guidance.
            negative_prompt: What guidance leads away from.
            batch_size: Images drawn at once.

        Raises:
            RunError: There is no such model, or it is no SDXL pipeline.
        """
        from diffusers import StableDiffusionXLPipeline
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        folder = find_model(model)
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        level = diffusers_logging.get_verbosity()
        diffusers_logging.set_verbosity_error()  # it warns of every VAE but AutoencoderKL
        try:
            pipe = StableDiffusionXLPipeline.from_pretrained(
                folder, dtype=getattr(torch, dtype), add_watermarker=False
            )
        except (OSError, ValueError) as error:
            raise RunError(f"{model} is no SDXL pipeline diffusers can load: {error}") from error
        finally:
            diffusers_logging.set_verbosity(level)
        if torch.device(device).type != "cpu":
            pipe.vae.enable_slicing()  # SDXL's takes 3 GiB an image in float32, which it needs
        return cls(
            pipe.to(device),
            resolution=resolution,
            steps=steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            batch_size=batch_size,
        )

    @classmethod
    def of_spec(cls, spec: RunSpec, *, batch_size: int = 1) -> "SdxlPipeline":
        """Return the pipeline of a run.

        Raises:
            RunError: As `load`.
        """
        return cls.load(
            spec.model,
            dtype=spec.dtype,
            device=spec.device,
            resolution=spec.resolution,
            steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            negative_prompt=spec.negative_prompt,
            batch_size=batch_size,
        )

    def denoiser(self) -> Denoiser:
        """Return the pipeline as trainers see it; it shares this pipeline's weights."""
        if self._denoiser is None:
            self._denoiser = Denoiser(self.pipe, resolution=self.resolution)
        return self._denoiser

    @contextmanager
    def fused(self, adapter: LoraAdapter | None) -> Iterator[None]:
        """Add an adapter's updates to the UNet's weights while open, then put the weights back.

        The sum is taken in float32 and cast to the weights' type. On leaving, by an exception too,
        the weights are bit for bit what they were.

        Raises:
            AdapterError: A layer that the UNet does not have, or of another shape.
        """
        pairs = [] if adapter is None else self._matching_weights(adapter)
        saved = [weight.detach().clone() for weight, _ in pairs]
        try:
            with torch.no_grad():
                for weight, delta in pairs:
                    update = delta.to(weight.device, torch.float32).dense()
                    weight.copy_(weight.float() + update.view(weight.shape))  # copy_ casts
            yield
        finally:
            with torch.no_grad():
                for (weight, _), original in zip(pairs, saved, strict=True):
                    weight.copy_(original)

    @contextmanager
    def speaking(self, policy: Policy) -> Iterator[None]:
        """While open, the UNet answers as the policy says for the step being drawn.

        The total is the number of the pipeline's timesteps, which schedulers of second order have
        more of than asked for. The UNet's weights are never touched.

        Raises:
            AdapterError: A layer that the UNet does not have, of another shape, or not linear.
        """
        placed = policy.to(self.pipe.unet.device)
        with speaking(self.pipe.unet, placed, lambda: (self._step, self.pipe.num_timesteps)):
            yield

    def _matching_weights(self, adapter: LoraAdapter) -> list[tuple[Tensor, LowRankDelta]]:
        pairs = []
        modules = dict(self.pipe.unet.named_modules())
        for layer, delta in adapter.deltas.items():
            weight = getattr(modules.get(layer), "weight", None)
            if weight is None:
                raise AdapterError(
                    f"adapter {adapter.name!r} updates {layer}, which this UNet does not have: "
                    "it was trained for another base model"
                )
            matrix = weight.flatten(1) if weight.ndim > 1 else weight  # a convolution's, as read
            if tuple(matrix.shape) != tuple(delta.shape):
                raise AdapterError(
                    f"adapter {adapter.name!r} updates {layer} with shape {tuple(delta.shape)}, "
                    f"this UNet's is {tuple(matrix.shape)}: it was trained for another base model"
                )
            pairs.append((weight, delta))
        return pairs

    def generate(
        self, adapter: LoraAdapter | Policy | None, prompt: str, seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Return an RGB image a seed, in their order.

        Raises:
            AdapterError: The adapter does not fit the UNet.
            PluginError: A policy gives wrong weights.
            RunError: An image is black, of one colour or not finite.
        """
        with self.speaking(adapter) if isinstance(adapter, Policy) else self.fused(adapter):
            return [
                image
                for start in range(0, len(seeds), self.batch_size)
                for image in self._draw(prompt, seeds[start : start + self.batch_size])
            ]

    @torch.no_grad()
    def _draw(self, prompt: str, seeds: Sequence[int]) -> list[Image.Image]:
        unet = self.pipe.unet
        side = self.resolution // self.pipe.vae_scale_factor
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        latents = torch.cat(
            [
                torch.randn((1, unet.config.in_channels, side, side), generator=generator)
                for generator in generators
            ]
        )
        self._step = 0
        pixels = self.pipe(
            prompt=[prompt] * len(seeds),
            negative_prompt=[self.negative_prompt] * len(seeds) if self.negative_prompt else None,
            width=self.resolution,
            height=self.resolution,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            generator=generators,  # for schedulers that draw noise at each step
            latents=latents.to(unet.dtype),
            output_type="np",
            callback_on_step_end=self._count,
        ).images  # (n, height, width, 3) in [0, 1]
        return [to_image(image, seed) for image, seed in zip(pixels, seeds, strict=True)]

    def _count(
        self, _pipe: Any, step: int, _timestep: Any, state: dict[str, Any]
    ) -> dict[str, Any]:
        """Note that a step is done; diffusers calls it."""
        self._step = step + 1
        return state


def to_image(pixels: np.ndarray, seed: int) -> Image.Image:
    """Return an RGB image of pixels ``(height, width, 3)`` in ``[0, 1]``.

    Raises:
        RunError: They are not finite, or all the same.
    """
    if not np.isfinite(pixels).all():
        raise RunError(
            f"the image of seed {seed} has values that are not finite: try --dtype float32 or "
            "bfloat16, or an adapter with smaller updates"
        )
    values = (pixels * 255).round().astype(np.uint8)
    if values.min() == values.max():
        raise RunError(
            f"the image of seed {seed} is {'black' if values.max() == 0 else 'of one colour'}: "
            "the model broke down; try --dtype float32 or bfloat16, or an adapter with smaller "
            "updates"
        )
    return Image.fromarray(values)


def find_model(model: str | Path) -> Path:
    """Return the folder of a pipeline; a hub id is downloaded into the hub's cache.

    Raises:
        RunError: There is no such folder, and no such model on the hub or, offline, in its cache;
            or it is no SDXL pipeline.
    """
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise RunError(f"{folder} is no diffusers pipeline: it has no model_index.json")
        kind = read_json(folder / "model_index.json").get("_class_name")
        if kind != "StableDiffusionXLPipeline":
            raise RunError(f"{folder} is a {kind}, not a StableDiffusionXLPipeline")
        return folder
    from diffusers import StableDiffusionXLPipeline
    from huggingface_hub import constants

    try:
        return Path(
            StableDiffusionXLPipeline.download(
                str(model), local_files_only=constants.HF_HUB_OFFLINE
            )
        )
    except (OSError, ValueError) as error:
        where = (
            "neither a folder here nor in the hub's cache (HF_HUB_OFFLINE is set)"
            if constants.HF_HUB_OFFLINE
            else "no folder here, and the hub, if it can be reached, does not give it"
        )
        raise RunError(f"no model {str(model)!r}: {where}") from error


def model_revision(model: str | Path) -> str:
    """Return what tells this model from its other versions: a hub commit, or 12 hex of all files.

    Raises:
        RunError: As `find_model`.
    """
    folder = find_model(model)
    if not Path(model).is_dir():
        return folder.name  # the hub's cache names snapshots by commit
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in {".json", ".safetensors", ".txt", ".bin"}
    )
    return digest({path.relative_to(folder).as_posix(): file_digest(path) for path in files})[:12]
