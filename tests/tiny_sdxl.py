"""Builds a random SDXL pipeline of small width in diffusers' folder layout, for tests.

The classes and the layout are SDXL's own: three UNet levels, attention in the two lower ones
(widths 32 and 64, as 640 and 1280 in SDXL), two text encoders, a KL autoencoder. The weights are
drawn from a seeded generator, so that the same bytes come out on every call.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

RESOLUTION = 16
"""Pixels a side of the images the pipeline draws; its latents have half as many."""
ATTENTION_WIDTHS = (32, 64)


def build_tiny_sdxl(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write the pipeline to ``folder`` and return it; quick (about a second) and deterministic."""
    tokenizer = _tokenizer()
    unet = UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(1, 2, 4),
        norm_num_groups=8,
        cross_attention_dim=40,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=0.5,
    )
    text_encoder = CLIPTextModel(_text_config(tokenizer, hidden=16, projection=16))
    text_encoder_2 = CLIPTextModelWithProjection(_text_config(tokenizer, hidden=24, projection=24))
    generator = torch.Generator().manual_seed(seed)
    for module in (unet, vae, text_encoder, text_encoder_2):
        _draw_weights(module, generator)
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def _tokenizer() -> CLIPTokenizer:
    """A byte-level tokenizer without merges: a token a byte."""
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=48
    )


def _text_config(tokenizer: CLIPTokenizer, *, hidden: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def _draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every matrix from N(0, 1 / fan_in); vectors keep their ones and zeros."""
    for parameter in module.parameters():
        if parameter.ndim >= 2:
            fan_in = parameter[0].numel()
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
        elif parameter.std(unbiased=False) > 0:
            parameter.zero_()  # biases that torch draws at random
