"""Stage `autoencoder`: SDXL's kind of autoencoder, small; 64 x 64 x 3 to 16 x 16 x 16 and back.

Encoder and decoder are trained together, with noise on the latents: a base model's latents are
never exact, and a decoder that has only seen exact ones paints their errors in full.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from benchmark_data.miniworld.train.common import load_state, log, replace_folder, save_state
from benchmark_data.miniworld.train.loop import flat_convolutions, train_phase
from benchmark_data.miniworld.world import draw, random_look, random_thing

CHANNELS = 16
WIDTH = 32
NOISE = 0.2  # of the latents in training: up to this standard deviation, where theirs is 1


def drawn_images(count: int, *, seed: int, jitter: float = 0.7) -> Tensor:
    """Draw random things in random looks: uint8 ``(count, 3, 64, 64)``."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((count, 64, 64, 3), np.uint8)
    for index in range(count):
        image = draw(
            random_thing(rng), random_look(rng), seed=int(rng.integers(2**31)), jitter=jitter
        )
        pixels[index] = np.asarray(image)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def to_unit(pixels: Tensor) -> Tensor:
    """Map uint8 pixels to ``[-1, 1]``."""
    return pixels.float().div(127.5).sub(1)


def build(seed: int) -> AutoencoderTiny:
    """Return an untrained autoencoder; most of its layers are where the picture is smallest."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return AutoencoderTiny(
            encoder_block_out_channels=(WIDTH,) * 3,
            decoder_block_out_channels=(WIDTH,) * 3,
            num_encoder_blocks=(0, 1, 3),
            num_decoder_blocks=(6, 3, 0),
            latent_channels=CHANNELS,
            upsampling_scaling_factor=2,
            scaling_factor=1.0,
            force_upcast=False,
        )


def loss_of(model: AutoencoderTiny, images: Tensor, generator: torch.Generator) -> Tensor:
    """Error of decoding noisy latents of images in [-1, 1]; latents are held to unit variance."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = model.encoder(images).float()
        level = NOISE * torch.rand(len(images), 1, 1, 1, generator=generator)
        noisy = latents + level * torch.randn(latents.shape, generator=generator)
        output = model.decoder(noisy)
    output = output.float()
    mean, square = latents.mean((0, 2, 3)), latents.square().mean((0, 2, 3))
    unit = (square - 1).square().mean() + mean.square().mean()
    error = functional.mse_loss(output, images) + 0.1 * functional.l1_loss(output, images)
    loss: Tensor = error + 0.01 * unit
    return loss


def psnr(model: AutoencoderTiny, pixels: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of decoding what was encoded."""
    with torch.no_grad():
        output = torch.cat([model(to_unit(part)).sample for part in torch.split(pixels, 64)])
    error = functional.mse_loss(output.clamp(-1, 1), to_unit(pixels)) / 4
    return float(-10 * error.log10())


def run(out: Path, work: Path, *, smoke: bool, seed: int, steps: int | None) -> None:
    """Train the autoencoder, save `out/sdxl/vae`."""
    torch.set_num_threads(1)
    steps = steps or (8 if smoke else 2400)
    count, batch_size = (64, 8) if smoke else (16_000, 32)
    cache = work / f"autoencoder-images-{count}-{seed}.safetensors"
    if not cache.exists():
        save_state(cache, {"pixels": drawn_images(count, seed=seed)}, {})
    pixels = load_state(cache)[0]["pixels"]
    held_out = drawn_images(32 if smoke else 512, seed=seed + 1)
    model = build(seed)

    def loss_at(step: int) -> Tensor:
        rows = np.random.default_rng((seed, step)).integers(count, size=batch_size)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return loss_of(model, to_unit(pixels[torch.from_numpy(rows)]), generator)

    with flat_convolutions(model):
        train_phase(
            work / "autoencoder.safetensors",
            {"autoencoder": model},
            loss_at,
            steps=steps,
            rates=(0.02, 2e-3),
            decay=True,
        )
    replace_folder(
        out / "sdxl" / "vae", lambda folder: model.save_pretrained(folder, max_shard_size="1GB")
    )
    log.info("autoencoder: %.2f dB on held-out drawings", psnr(model, held_out))
