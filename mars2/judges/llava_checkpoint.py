"""Reads LLaVA-OneVision checkpoints: transformers' layout, and LLaVA-NeXT's as it lies on the hub.

Both give the same class of transformers. What a folder holds is told by `architectures` in its
config.json: LLaVA-NeXT's `model_type` is "llava", which means another model to transformers.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from mars2.judges.errors import JudgeError
from mars2.judges.sources import architectures_of, read_config
from mars2.judges.weights import (
    StoredWeight,
    load_strictly,
    refuse_keys,
    refuse_quantised,
    stored_weights,
)

TRANSFORMERS = "LlavaOnevisionForConditionalGeneration"
LLAVA_NEXT = "LlavaQwenForCausalLM"

KEY_MAPPING: Mapping[str, str] = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
"""LLaVA-NeXT's keys -> transformers'; `model.image_newline` and `lm_head.weight` are the same."""

SAVED_MAPPING: Mapping[str, str] = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^language_model\.model\.": "model.language_model.",
    r"^(model\.)?vision_tower\.(vision_model\.)?": "model.vision_tower.",
    r"^multi_modal_projector\.": "model.multi_modal_projector.",
    r"^image_newline$": "model.image_newline",
}
"""Keys that transformers saves, and has saved in older versions -> those of its class."""

_VISION_TOWERS: Mapping[str, Mapping[str, int]] = {
    "google/siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
_VISION_KEYS = tuple(_VISION_TOWERS["google/siglip-so400m-patch14-384"])
_VISION_LAYER = r"^model\.vision_tower\.vision_tower\.vision_model\.encoder\.layers\.(\d+)\."

_TEXT_KEYS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "use_sliding_window",
)

_TEXT_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
)

_UNDERSTOOD: Mapping[str, object] = {
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_newline_position": "one_token",
    "mm_vision_select_layer": -2,
    "mm_resampler_type": None,
}
"""Settings of LLaVA-NeXT that transformers' class computes; others would be computed wrongly."""


@dataclass(frozen=True)
class Checkpoint:
    """A model and what belongs to it."""

    model: Any  # LlavaOnevisionForConditionalGeneration, whose annotations do not hold
    image_processor: Any  # LlavaOnevisionImageProcessorPil, likewise
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Described:
    """What a folder holds, told without loading it.

    Attributes:
        architecture: As its config.json names it: `TRANSFORMERS` or `LLAVA_NEXT`.
        config: In transformers' form.
        key_mapping: Patterns of its keys -> those of transformers' class.
    """

    architecture: str
    config: LlavaOnevisionConfig
    key_mapping: Mapping[str, str]


def describe(folder: Path) -> Described:
    """Return what a folder of either layout holds.

    Raises:
        JudgeError: It is another architecture, or its files are missing or do not fit together.
    """
    config = read_config(folder)
    architectures = architectures_of(config)
    refuse_quantised(folder, config)
    try:
        if TRANSFORMERS in architectures:
            own = LlavaOnevisionConfig.from_dict(config)
            return Described(TRANSFORMERS, own, SAVED_MAPPING)
        if LLAVA_NEXT in architectures:
            return Described(LLAVA_NEXT, llava_next_config(folder, config), KEY_MAPPING)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        told = " ".join(str(error).split())
        raise JudgeError(f"{folder / 'config.json'} cannot be understood: {told}") from error
    raise JudgeError(
        f"{folder} holds {', '.join(architectures) or 'no named architecture'}, "
        f"another model than this judge computes: it reads {TRANSFORMERS} (transformers' "
        f"layout) and {LLAVA_NEXT} (LLaVA-NeXT's)"
    )


def load_checkpoint(folder: Path, dtype: torch.dtype) -> Checkpoint:
    """Return the model in a folder of either layout, on the CPU, for inference.

    Raises:
        JudgeError: It is another architecture, or its files are missing or do not fit together.
    """
    described = describe(folder)
    if described.architecture == TRANSFORMERS:
        model = load_strictly(LlavaOnevisionForConditionalGeneration, folder, dtype)
        image_processor = own_image_processor(folder)
        _check_processor(image_processor, model.config, folder)
    else:
        model = load_strictly(
            LlavaOnevisionForConditionalGeneration,
            folder,
            dtype,
            config=described.config,
            key_mapping=described.key_mapping,
        )
        image_processor = siglip_image_processor(described.config)
    return Checkpoint(model.eval().requires_grad_(False), image_processor, load_tokenizer(folder))


def placed_keys(
    folder: Path, described: Described, weights: Mapping[str, StoredWeight]
) -> dict[str, str]:
    """Return the key in transformers' class of each key in a folder's files; no weight is read.

    Raises:
        JudgeError: A key has no place in the model, a place has no key, or a shape differs.
    """
    architecture: Any = LlavaOnevisionForConditionalGeneration
    with torch.device("meta"):
        model = architecture(described.config)
    places = {key: tuple(weight.shape) for key, weight in model.state_dict().items()}
    placed = {key: renamed(key, described.key_mapping) for key in weights}
    missing = places.keys() - placed.values()
    if described.config.tie_word_embeddings:
        missing -= {"lm_head.weight"}
    unexpected = [key for key, place in placed.items() if place not in places]
    refuse_keys(folder, missing=missing, unexpected=unexpected)
    for key, place in placed.items():
        if weights[key].shape != places[place]:
            raise JudgeError(
                f"{weights[key].file}: {key} has shape {weights[key].shape}; the config asks for "
                f"{places[place]}"
            )
    return placed


def renamed(key: str, mapping: Mapping[str, str]) -> str:
    """Return what the first pattern that a key has makes of it."""
    for pattern, replacement in mapping.items():
        key, found = re.subn(pattern, replacement, key)
        if found:
            break
    return key


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder: tokenizer.json, or Qwen2's vocab.json and merges.txt.

    Raises:
        JudgeError: There is none.
    """
    own = (folder / "tokenizer.json").is_file()
    if not own and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise JudgeError(f"{folder} has no tokenizer.json, nor vocab.json and merges.txt")
    try:
        if own:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            tokenizer = Qwen2Tokenizer.from_pretrained(
                folder, local_files_only=True
            ).backend_tokenizer
    except Exception as error:  # tokenizers raises nothing finer
        raise JudgeError(f"the tokenizer in {folder} cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def llava_next_config(folder: Path, config: Mapping[str, Any]) -> LlavaOnevisionConfig:
    """Return transformers' config of a checkpoint in LLaVA-NeXT's layout.

    What its config.json does not tell is read off the weights' shapes; unknown keys are ignored.

    Raises:
        JudgeError: A setting is missing, or one that transformers' class does not compute.
    """
    where = folder / "config.json"
    for key, understood in _UNDERSTOOD.items():
        if config.get(key, understood) != understood:
            raise JudgeError(f"{where}: {key} is {config[key]!r}; only {understood!r} is supported")
    aspect_ratio = str(config.get("image_aspect_ratio"))
    if not re.fullmatch(r"anyres_max_\d+", aspect_ratio):
        raise JudgeError(
            f"{where}: image_aspect_ratio is {aspect_ratio!r}; only anyres_max_N is supported"
        )
    shapes = weight_shapes(folder)
    vision = _vision_config(folder, str(config.get("mm_vision_tower")), shapes)
    given = {key: config[key] for key in _TEXT_KEYS if config.get(key) is not None}
    missing = [key for key in _TEXT_NEEDED if key not in given]
    if missing:
        raise JudgeError(f"{where} does not describe a Qwen2 model: it lacks {missing}")
    if "model.embed_tokens.weight" not in shapes:
        raise JudgeError(f"the weights in {folder} lack model.embed_tokens.weight")
    text = Qwen2Config(**given, vocab_size=shapes["model.embed_tokens.weight"][0])
    return LlavaOnevisionConfig(
        text_config=text,
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        vision_aspect_ratio=aspect_ratio,
        image_grid_pinpoints=_pinpoints(
            config.get("image_grid_pinpoints"), vision["image_size"], where
        ),
        tie_word_embeddings="lm_head.weight" not in shapes,
        architectures=[TRANSFORMERS],
    )


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights in a folder's safetensors files, by key.

    Raises:
        JudgeError: There are no such files, or they cannot be read.
    """
    return {key: weight.shape for key, weight in stored_weights(folder).items()}


def _vision_config(
    folder: Path, tower: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Return the sizes of the vision tower, which LLaVA-NeXT only names: by hub id or folder.

    The checkpoint holds one layer less than the tower: its features are those before the last one.
    """
    if tower in _VISION_TOWERS:
        known: Mapping[str, Any] = _VISION_TOWERS[tower]
    elif (folder / tower / "config.json").is_file():
        own = read_config(folder / tower)
        known = own.get("vision_config", own)
    else:
        raise JudgeError(
            f"{folder / 'config.json'}: mm_vision_tower is {tower!r}; known are "
            f"{', '.join(_VISION_TOWERS)} and folders with a SigLIP model's config.json"
        )
    layers = {int(match[1]) for key in shapes if (match := re.match(_VISION_LAYER, key))}
    missing = [key for key in _VISION_KEYS if key not in known]
    if missing:
        raise JudgeError(f"{folder / tower / 'config.json'} is no SigLIP model's: lacks {missing}")
    return {**{key: known[key] for key in _VISION_KEYS}, "num_hidden_layers": len(layers)}


def _pinpoints(value: object, tile: int, where: Path) -> list[list[int]]:
    """Return grid sizes in pixels as transformers orders them, (height, width).

    LLaVA-NeXT has (width, height), as a list, its text, or the text "(1x1),...,(6x6)", which means
    all grids of 1 to 6 by 1 to 6 tiles.
    """
    if isinstance(value, str) and (grid := re.findall(r"\((\d+)x(\d+)\)", value)):
        (left, top), (right, bottom) = (tuple(map(int, pair)) for pair in (grid[0], grid[-1]))
        value = [
            [tile * width, tile * height]
            for width in range(left, right + 1)
            for height in range(top, bottom + 1)
        ]
    elif isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise JudgeError(f"{where}: image_grid_pinpoints is {value!r}") from error
    if (
        not value
        or not isinstance(value, list | tuple)
        or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
    ):
        raise JudgeError(f"{where}: image_grid_pinpoints is {value!r}, no list of sizes")
    return [[int(height), int(width)] for width, height in value]


def siglip_image_processor(config: Any) -> Any:
    """Return the Pil image processor with LLaVA-NeXT's settings, which lie in its code."""
    side = config.vision_config.image_size
    return LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        image_grid_pinpoints=config.image_grid_pinpoints,
    )


def own_image_processor(folder: Path) -> Any:
    """Return the Pil image processor, which equals LLaVA-NeXT's pixels; torchvision's is not it."""
    if (folder / "preprocessor_config.json").is_file():
        settings = read_config(folder, "preprocessor_config.json")
    else:
        settings = read_config(folder, "processor_config.json").get("image_processor", {})
    for key in ("size", "image_mean", "image_std", "image_grid_pinpoints"):
        if not settings.get(key):
            raise JudgeError(f"the image processor's settings in {folder} have no {key}")
    return LlavaOnevisionImageProcessorPil.from_dict(settings)


def _check_processor(processor: Any, config: Any, folder: Path) -> None:
    side = config.vision_config.image_size
    if (processor.size["height"], processor.size["width"]) != (side, side):
        raise JudgeError(
            f"{folder}: the image processor's size is {dict(processor.size)}, the model's {side}"
        )
    if processor.image_grid_pinpoints != config.image_grid_pinpoints:
        raise JudgeError(f"{folder}: image_grid_pinpoints of model and image processor differ")
