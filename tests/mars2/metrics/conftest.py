"""Images to be scored, and small random CLIP and DINO models in folders."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, ViTConfig, ViTModel

from mars2.metrics import Evaluated
from mars2.store import Sample


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    """``noise(seed, size=(40, 40))``: an RGB picture of coarse random blocks."""

    def make(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
        blocks = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        return Image.fromarray(blocks).resize(size, Image.Resampling.BILINEAR)

    return make


@pytest.fixture(scope="session")
def evaluated() -> Callable[..., Evaluated]:
    """``evaluated(image, subjects, styles, prompt=...)``."""

    def make(image, subjects, styles, *, prompt="a red mug", style="crayon"):
        sample = Sample("direct_sum", "mug_crayon", 0, Path("0.png"), "mug", "crayon", prompt)
        return Evaluated(sample, image, subjects, styles, style, prompt)

    return make


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 2 * weight[0].numel() ** -0.5, generator=generator)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder: 32 pixels, own mean and std, own word tokenizer."""
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    folder.mkdir()
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 12,
            "width": 32,
            "heads": 2,
            "layers": 2,
            "hf_tokenizer_name": "tiny",
            "tokenizer_kwargs": {"strip_sep_token": False},
        },
    }
    preprocess = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "red", "blue", "mug", "fish", "in", "style"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=8,
    ).save_pretrained(folder)
    model = open_clip.CLIP(
        config["embed_dim"],
        config["vision_cfg"],
        config["text_cfg"],
    )
    randomise(model)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT in transformers' layout: 28 pixels, patches of 7."""
    folder = tmp_path_factory.mktemp("dino") / "tiny-vit"
    model = ViTModel(
        ViTConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            image_size=28,
            patch_size=7,
        ),
        add_pooling_layer=False,
    )
    randomise(model)
    model.save_pretrained(folder)
    return folder
