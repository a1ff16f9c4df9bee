"""A small random LLaVA-OneVision model in both layouts, and transformers' processor as oracle."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from mars2.judges import TEMPLATES

TILE, PATCH = 32, 8
GRID = [[TILE * height, TILE * width] for height in (1, 2, 3) for width in (1, 2, 3)]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": PATCH,
}


def tiny_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [template.text for template in TEMPLATES.values()]
    tokenizer.train_from_iterator(texts + ["Yes", "No", "yes", "no"] * 50, trainer)
    return tokenizer


def tiny_model(vocabulary: int, image_token: int, *, tied: bool) -> torch.nn.Module:
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **TOWER,
            "num_hidden_layers": 2,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": vocabulary,
            "max_position_embeddings": 2048,
            "rope_theta": 50000.0,
        },
        image_token_index=image_token,
        image_grid_pinpoints=GRID,
        tie_word_embeddings=tied,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5
            weight.normal_(0, scale, generator=generator)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
            if "embed_tokens" in name or "lm_head" in name:
                weight.mul_(4)
    return model


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In transformers' layout, lm_head and embeddings apart."""
    folder = tmp_path_factory.mktemp("llava") / "critic"
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer.get_vocab_size(), tokenizer.token_to_id("<image>"), tied=False)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        image_grid_pinpoints=GRID,
    ).save_pretrained(folder)
    return folder


def next_key(key: str) -> str:
    """LLaVA-NeXT's name of one of transformers' keys, written apart from the code under test."""
    if key.startswith("model.vision_tower."):
        return key.replace("model.vision_tower.", "model.vision_tower.vision_tower.vision_model.")
    if key.startswith("model.multi_modal_projector.linear_"):
        number, kind = re.fullmatch(r".*linear_([12])\.(\w+)", key).groups()
        return f"model.mm_projector.{ {'1': 0, '2': 2}[number] }.{kind}"
    return key.replace("model.language_model.", "model.")


def write_llava_next(
    folder: Path, model: torch.nn.Module, tokenizer: Path, *, drop: Sequence[str] = ()
) -> Path:
    """Write a model in LLaVA-NeXT's layout, in two shards."""
    folder.mkdir(parents=True)
    weights = {next_key(key): value.clone() for key, value in model.state_dict().items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    weights = {key: value for key, value in weights.items() if key not in drop}
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({key: weights[key] for key in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    total = sum(weight.nbytes for weight in weights.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    text = model.config.text_config
    config = {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "max_position_embeddings": text.max_position_embeddings,
        "rope_theta": 50000.0,
        "rope_scaling": None,
        "rms_norm_eps": text.rms_norm_eps,
        "tie_word_embeddings": False,
        "vocab_size": 999999,  # the embedding's rows count, not this
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": "(1x1),...,(3x3)",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_newline_position": "one_token",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "tower",
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "a_key_of_next_year": {"x": 1},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tower").mkdir()
    (folder / "tower" / "config.json").write_text(
        json.dumps({"model_type": "siglip", "vision_config": {**TOWER, "num_hidden_layers": 3}})
    )
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return folder


@pytest.fixture(scope="session")
def as_llava_next() -> Callable[..., Path]:
    """``as_llava_next(folder, model, tokenizer, drop=())``: writes LLaVA-NeXT's layout."""
    return write_llava_next


@pytest.fixture(scope="session")
def tiny_llava_next(tmp_path_factory: pytest.TempPathFactory, tiny_llava: Path) -> Path:
    """The same weights in LLaVA-NeXT's layout."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(tiny_llava)
    return write_llava_next(
        tmp_path_factory.mktemp("next") / "critic-next", model, tiny_llava / "tokenizer.json"
    )


Oracle = Callable[[str, Sequence[Image.Image], str], dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def oracle_inputs(tiny_llava: Path) -> Oracle:
    """``oracle_inputs(prompt, images, layout)``: transformers' processor on the whole prompt."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tiny_llava / "tokenizer.json"), pad_token="<|endoftext|>"
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": TILE, "width": TILE},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            image_grid_pinpoints=GRID,
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size={"height": TILE, "width": TILE}),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
    )

    def make(prompt: str, images: Sequence[Image.Image], layout: str) -> dict[str, torch.Tensor]:
        given = list(images) if layout == "anyres" else [list(images)]
        return dict(processor(text=[prompt], images=given, return_tensors="pt"))

    return make


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BILINEAR)


@pytest.fixture(scope="session")
def pictures() -> dict[str, Image.Image]:
    """Square, portrait, landscape, small, wide."""
    sizes = {
        "square": (96, 96),
        "portrait": (40, 90),
        "landscape": (100, 30),
        "small": (20, 24),
        "odd": (61, 47),
    }
    return {name: picture(seed, size) for seed, (name, size) in enumerate(sizes.items())}
