"""SDXL's attention layers, from its UNet's real configuration, and random adapters of them."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from baselines import LoraAdapter, LowRankDelta
from baselines.dreambooth import attention_layers

RANK = 64
CONFIG: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@lru_cache(maxsize=1)
def meta_unet() -> nn.Module:
    """Return SDXL's UNet without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**CONFIG)


def sdxl_layers(every: int = 1) -> dict[str, tuple[int, int]]:
    """Return the attention layers of one of ``every`` transformer blocks; 70 blocks have 560."""
    return one_of(layers_of(meta_unet()), every)


def one_of(layers: dict[str, tuple[int, int]], every: int) -> dict[str, tuple[int, int]]:
    """Return the layers of one of ``every`` transformer blocks, 8 a block."""
    blocks = sorted({name.split(".attn")[0] for name in layers})[::every]
    return {name: shape for name, shape in layers.items() if name.split(".attn")[0] in blocks}


def layers_of(unet: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the attention layers of a UNet with their (d_out, d_in)."""
    shapes = {}
    for name in attention_layers(unet):
        d_out, d_in = unet.get_submodule(name).weight.shape
        shapes[name] = (d_out, d_in)
    return shapes


def random_adapter(layers: dict[str, tuple[int, int]], rank: int, seed: int) -> LoraAdapter:
    """Return an adapter of random factors for layers of the given (d_out, d_in)."""
    generator = torch.Generator().manual_seed(seed)
    return LoraAdapter(
        {
            name: LowRankDelta(
                torch.randn(d_out, rank, generator=generator),
                torch.randn(rank, d_in, generator=generator) / d_in,
            )
            for name, (d_out, d_in) in layers.items()
        }
    )


def cpu_seconds(function: Callable[[], Any], repeats: int = 1) -> float:
    """Return the shortest CPU time of some calls, which a busy machine changes little."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best
