"""The denoiser gives trainers exactly what the SDXL pipeline itself works with."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDPMScheduler, StableDiffusionXLPipeline
from PIL import Image

from baselines.denoiser import Conditioning, Denoiser


@pytest.fixture
def pipe(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    """A pipeline of the test's own, which it may change."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# diffusers 0.42's Euler scheduler calls numpy's array() on a tensor
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_predicts_as_the_pipeline_does(pipe: StableDiffusionXLPipeline):
    start = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    expected = pipe(
        "a red dog", num_inference_steps=3, guidance_scale=1.0, latents=start, output_type="latent"
    ).images

    denoiser = Denoiser(pipe, resolution=16)
    conditioning = denoiser.encode_prompts(["a red dog"])
    scheduler = pipe.scheduler
    scheduler.set_timesteps(3)
    latents = start * scheduler.init_noise_sigma
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, timestep)
            output = denoiser.predict(scaled, timestep[None], conditioning)
            latents = scheduler.step(output, timestep, latents).prev_sample

    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)


def test_prompts_are_encoded_one_by_one_as_in_a_batch(tiny_denoiser: Denoiser):
    both = tiny_denoiser.encode_prompts(["a dog", "a house in crayon style"])
    assert len(both) == 2
    for row, prompt in enumerate(["a dog", "a house in crayon style"]):
        one = tiny_denoiser.encode_prompts([prompt])
        torch.testing.assert_close(both[[row]].embeddings, one.embeddings, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both[[row]].pooled, one.pooled, rtol=1e-5, atol=1e-5)
    assert both.time_ids.tolist() == [[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]] * 2
    assert not torch.equal(both.embeddings[0], both.embeddings[1])


def test_refuses_a_bare_prompt(tiny_denoiser: Denoiser):
    with pytest.raises(TypeError, match="sequence of prompts"):
        tiny_denoiser.encode_prompts("a dog")


def test_conditioning_selects_joins_and_zeroes_rows(tiny_denoiser: Denoiser):
    both = tiny_denoiser.encode_prompts(["a dog", "a cat"])
    swapped = Conditioning.cat([both[1:], both[:1]])
    assert torch.equal(swapped.embeddings, both.embeddings.flip(0))
    assert torch.equal(swapped.pooled, both.pooled.flip(0))
    zeros = both.zeros_like()
    assert not zeros.embeddings.any()
    assert not zeros.pooled.any()
    assert torch.equal(zeros.time_ids, both.time_ids)


def test_latents_are_the_scaled_mode(pipe: StableDiffusionXLPipeline, random_image: Callable):
    image = random_image(0)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    latents = Denoiser(pipe, resolution=16).encode_images([image, image])
    assert latents.shape == (2, 4, 8, 8)
    torch.testing.assert_close(latents, expected.repeat(2, 1, 1, 1), rtol=1e-5, atol=1e-6)


def test_the_central_square_is_encoded(tiny_denoiser: Denoiser, random_image: Callable):
    square = random_image(1)
    wide = Image.new("RGB", (48, 16), "red")
    wide.paste(square, (16, 0))
    tall = Image.new("RGB", (16, 30), "blue")
    tall.paste(square, (0, 7))
    latents = tiny_denoiser.encode_images([square, wide, tall])
    assert torch.equal(latents[1], latents[0])
    assert torch.equal(latents[2], latents[0])


def test_larger_images_are_scaled_down(tiny_denoiser: Denoiser):
    plain = [Image.new("RGB", size, (200, 30, 90)) for size in ((16, 16), (64, 100))]
    first, second = tiny_denoiser.encode_images(plain)
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_tiny_autoencoder(pipe: StableDiffusionXLPipeline, random_image: Callable):
    pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
        scaling_factor=3.0,
    )
    image = random_image(2)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = 3.0 * pipe.vae.encode(pixels).latents
    latents = Denoiser(pipe, resolution=16).encode_images([image])
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-6)


def test_half_precision_autoencoder_encodes_in_float32(
    pipe: StableDiffusionXLPipeline, random_image: Callable
):
    image = random_image(3)
    pipe.vae.half()
    rounded = {name: value.clone() for name, value in pipe.vae.state_dict().items()}
    latents = Denoiser(pipe, resolution=16).encode_images([image])
    assert latents.dtype == torch.float32
    assert pipe.vae.dtype == torch.float16
    assert all(torch.equal(value, rounded[name]) for name, value in pipe.vae.state_dict().items())
    pipe.vae.float()
    assert torch.equal(latents, Denoiser(pipe, resolution=16).encode_images([image]))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_target_follow_the_samplers_betas(
    pipe: StableDiffusionXLPipeline, prediction_type: str
):
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    denoiser = Denoiser(pipe, resolution=16)
    # alpha-bar of a "scaled_linear" schedule, from its definition
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    alpha_bar = np.cumprod(1 - betas)[[0, 500, 999]]
    signal = torch.tensor(np.sqrt(alpha_bar), dtype=torch.float32)[:, None, None, None]
    sigma = torch.tensor(np.sqrt(1 - alpha_bar), dtype=torch.float32)[:, None, None, None]
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn((2, 3, 4, 8, 8), generator=generator)
    timesteps = torch.tensor([0, 500, 999])

    noisy = denoiser.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noisy, signal * latents + sigma * noise, rtol=1e-4, atol=1e-5)
    target = denoiser.target(latents, noise, timesteps)
    expected = noise if prediction_type == "epsilon" else signal * noise - sigma * latents
    torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-5)
    assert denoiser.train_timesteps == 1000


def test_is_imported_without_diffusers():
    code = "import sys, baselines.merging_loss; sys.exit('diffusers' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_freezes_the_pipeline(pipe: StableDiffusionXLPipeline):
    pipe.unet.train()
    Denoiser(pipe, resolution=16)
    assert not pipe.unet.training
    for module in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("resolution", [0, -16, 15])
def test_refuses_resolution(pipe: StableDiffusionXLPipeline, resolution: int):
    with pytest.raises(ValueError, match=f"resolution is {resolution}"):
        Denoiser(pipe, resolution=resolution)


def test_refuses_a_scheduler_that_predicts_the_sample(pipe: StableDiffusionXLPipeline):
    pipe.scheduler = DDPMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="'sample'"):
        Denoiser(pipe, resolution=16)
