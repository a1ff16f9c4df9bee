"""Stage `autoencoder`: a linear encoder found by PCA of 4x4 patches, and a small trained decoder.

`AutoencoderTiny` without encoder blocks represents the linear encoder exactly: two strided
convolutions move a 4x4x3 patch into 48 channels, the last one projects them on the principal
components. Only the decoder is trained.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from benchmark_data.miniworld.train.common import (
    Clock,
    TrainingError,
    learning_rate,
    load_state,
    log,
    pack,
    replace_folder,
    save_state,
    unpack,
)
from benchmark_data.miniworld.world import draw, random_look, random_thing

CHANNELS = 12
PATCH = 4


def drawn_images(count: int, *, seed: int, jitter: float = 1.0) -> Tensor:
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


def principal_components(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return projection ``(CHANNELS, 48)`` and mean ``(48,)`` of 4x4 patches scaled to [0, 1].

    A patch is ordered (row, column, colour). The projection gives latents of unit variance overall.
    """
    patches = functional.pixel_unshuffle(pixels.double() / 255, PATCH)  # (n, 3*16, h, w)
    n, _, height, width = patches.shape
    patches = patches.reshape(n, 3, PATCH * PATCH, height, width).permute(0, 3, 4, 2, 1)
    rows = patches.reshape(-1, 48)
    mean = rows.mean(0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    values, vectors = torch.linalg.eigh(covariance)
    order = values.argsort(descending=True)[:CHANNELS]
    projection = vectors[:, order].T  # (CHANNELS, 48)
    # the sign of an eigenvector is arbitrary: make it the same everywhere
    sign = projection.gather(1, projection.abs().argmax(1, keepdim=True)).sign()
    scale = values[order].mean().rsqrt()
    return (projection * sign * scale).float(), mean.float()


def build(projection: Tensor, mean: Tensor) -> AutoencoderTiny:
    """Return the autoencoder with its exact linear encoder and an untrained decoder."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(4, 2, 0),
        latent_channels=CHANNELS,
        upsampling_scaling_factor=2,
        scaling_factor=1.0,
        force_upcast=False,
    )
    first, second, third, last = (
        layer for layer in model.encoder.layers if isinstance(layer, torch.nn.Conv2d)
    )
    with torch.no_grad():
        for layer in (first, second, third, last):
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
        for colour in range(3):
            first.weight[colour, colour, 1, 1] = 1
        # (row, column) of a 2x2 block -> channel (row * 2 + column) * 3 + colour
        for row in range(2):
            for column in range(2):
                for colour in range(3):
                    second.weight[(row * 2 + column) * 3 + colour, colour, 1 + row, 1 + column] = 1
        for row in range(2):
            for column in range(2):
                for inner in range(12):
                    block = row * 2 + column
                    third.weight[block * 12 + inner, inner, 1 + row, 1 + column] = 1
        # position of pixel (r, c) of a 4x4 patch in those 48 channels
        for r in range(PATCH):
            for c in range(PATCH):
                outer = (r // 2) * 2 + c // 2
                inner = (r % 2) * 2 + c % 2
                for colour in range(3):
                    last.weight[:, outer * 12 + inner * 3 + colour, 1, 1] = projection[
                        :, (r * PATCH + c) * 3 + colour
                    ]
        last.bias = torch.nn.Parameter(-projection @ mean)
    model.encoder.requires_grad_(False)
    return model


def psnr(model: AutoencoderTiny, pixels: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of decoding what was encoded."""
    with torch.no_grad():
        output = model(to_unit(pixels)).sample.clamp(-1, 1)
    error = functional.mse_loss(output, to_unit(pixels)) / 4
    return float(-10 * error.log10())


def run(out: Path, work: Path, *, smoke: bool, seed: int, steps: int | None) -> None:
    """Find the encoder, train the decoder, save `out/sdxl/vae`."""
    steps = steps or (8 if smoke else 2000)
    count = 64 if smoke else 12_000
    batch_size = 8 if smoke else 32
    cache = work / f"autoencoder-images-{count}-{seed}.safetensors"
    if not cache.exists():
        save_state(cache, {"pixels": drawn_images(count, seed=seed)}, {})
    pixels = load_state(cache)[0]["pixels"]
    held_out = drawn_images(32 if smoke else 256, seed=seed + 1)
    projection, mean = principal_components(pixels[:4000])
    model = build(projection, mean)
    optimizer = torch.optim.AdamW(
        [p for p in model.decoder.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0
    )
    checkpoint = work / "autoencoder.safetensors"
    start = 0
    if checkpoint.exists():
        tensors, meta = load_state(checkpoint)
        unpack(tensors, {"model": model}, {"optimizer": optimizer})
        start = int(meta["step"])
        log.info("autoencoder: going on at step %d", start)

    def export() -> None:
        replace_folder(
            out / "sdxl" / "vae", lambda folder: model.save_pretrained(folder, max_shard_size="1GB")
        )

    if start == 0:
        export()  # the encoder is final from the start: the base can be trained meanwhile
    save, report = Clock(60), Clock(20)
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak=2e-3, warmup=50)
        rows = torch.from_numpy(
            np.random.default_rng((seed, step)).integers(count, size=batch_size)
        )
        images = to_unit(pixels[rows])
        with torch.no_grad():
            latents = model.encoder(images)
        with torch.autocast("cpu", torch.bfloat16):
            output = model.decoder(latents)
        output = output.float()
        loss = functional.mse_loss(output, images) + 0.1 * functional.l1_loss(output, images)
        if not torch.isfinite(loss):
            raise TrainingError(f"autoencoder: the loss is {loss.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        if report.due():
            log.info("autoencoder: step %d of %d, loss %.5f", step, steps, loss.item())
        if save.due():
            save_state(
                checkpoint,
                pack({"model": model}, {"optimizer": optimizer}),
                {"step": step + 1},
            )
    save_state(
        checkpoint, pack({"model": model}, {"optimizer": optimizer}), {"step": max(start, steps)}
    )
    export()
    log.info("autoencoder: %.2f dB on held-out drawings", psnr(model, held_out))
