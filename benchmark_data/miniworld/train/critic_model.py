"""The critic's network, tokenizer and processor: LLaVA-Critic's classes, much smaller.

A SigLIP tower of 64-pixel images in 8-pixel patches, two linear layers, a Qwen2 language model.
One image gives 64 features; the flat layout ("anyres") spends 136 tokens on it, the nested
one ("pad") 65.
"""

from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
)

from benchmark_data.miniworld.train.common import TrainingError

SIZE, PATCH = 64, 8
GRID = SIZE // PATCH
VISION_WIDTH, TEXT_WIDTH = 192, 160
VOCABULARY = 640
PAD, START, END, IMAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"
ANSWERS = ("Yes", "No", "yes", "no")

Layout = Literal["anyres", "pad"]


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the texts in which every answer is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, START, END, IMAGE, "<video>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [*texts, *(f"{a}\n" for a in ANSWERS for _ in range(999))], trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, IMAGE, "<video>"],
        model_max_length=2048,
    )
    for answer in ANSWERS:
        if len(fast(answer).input_ids) != 1:
            raise TrainingError(f"the answer {answer!r} is not one token: {fast.tokenize(answer)}")
    return fast


def build_model(seed: int) -> LlavaOnevisionForConditionalGeneration:
    """An untrained critic in float32; token ids are those of `build_tokenizer`."""
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": SIZE,
            "patch_size": PATCH,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 3 * VISION_WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": VOCABULARY,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        image_token_index=3,
        video_token_index=4,
        image_grid_pinpoints=[[SIZE, SIZE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        return LlavaOnevisionForConditionalGeneration(config).float()


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionProcessor:
    """The processor that goes with `build_model`."""
    size = {"height": SIZE, "width": SIZE}
    half = [0.5] * 3
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(
            size=size, image_grid_pinpoints=[[SIZE, SIZE]], image_mean=half, image_std=half
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size, image_mean=half, image_std=half),
        num_image_tokens=GRID * GRID,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


def image_features(model: LlavaOnevisionForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What the language model sees of images in [-1, 1]: ``(n, patches, TEXT_WIDTH)``."""
    inner = model.model
    hidden = inner.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    features: Tensor = inner.multi_modal_projector(hidden)
    return features


def image_tokens(features: Tensor, newline: Tensor, layout: Layout) -> Tensor:
    """One image's tokens as the processor lays them out: ``(n, tokens, TEXT_WIDTH)``.

    A 64-pixel image is its own only tile, so "anyres" is the image twice, the second time with a
    newline after every row of patches.
    """
    n, patches, width = features.shape
    side = isqrt(patches)
    if layout == "pad":
        return torch.cat([features, newline.expand(n, 1, width)], 1)
    rows = features.view(n, side, side, width)
    rows = torch.cat([rows, newline.expand(n, side, 1, width)], 2)
    return torch.cat([features, rows.reshape(n, -1, width)], 1)


def save_critic(
    model: LlavaOnevisionForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> None:
    """Write model (float16) and processor as transformers' ``from_pretrained`` reads them."""
    half = build_model(0)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
