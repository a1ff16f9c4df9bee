"""Writes a LLaVA-NeXT checkpoint in transformers' layout, for servers that read no other (vLLM).

Weights are copied file by file, as they are: only their keys change.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
)

from mars2.judges.errors import JudgeError
from mars2.judges.llava_checkpoint import (
    TRANSFORMERS,
    Described,
    describe,
    load_tokenizer,
    placed_keys,
    renamed,
    siglip_image_processor,
)
from mars2.judges.prompts import CHAT_TEMPLATE, IMAGE_MARK
from mars2.judges.sources import find_model
from mars2.judges.weights import StoredWeight, main_dtype, stored_weights

PUBLISHED_KEYS: Mapping[str, str] = {
    r"^model\.vision_tower\.vision_tower\.": "vision_tower.",
    r"^model\.mm_projector\.0\.": "multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "multi_modal_projector.linear_2.",
    r"^model\.image_newline$": "image_newline",
    r"^model\.": "language_model.model.",
    r"^lm_head\.": "language_model.lm_head.",
}
"""LLaVA-NeXT's keys -> those of the models published in transformers' layout, the oldest spelling:
servers and all versions of transformers read it."""
VIDEO_MARK = "<video>"


def convert(source: str, target: Path) -> None:
    """Write a checkpoint in LLaVA-NeXT's layout, folder or hub id, in transformers'.

    The target appears when it is complete. Memory for one file of weights suffices.

    Raises:
        JudgeError: The target exists, or the source is no such checkpoint.
    """
    if target.exists():
        raise JudgeError(f"{target} exists: give the name of a new folder")
    if not target.parent.is_dir():
        raise JudgeError(f"{target.parent} is no folder: make it first")
    found = find_model(source)
    described = describe(found.folder)
    if described.architecture == TRANSFORMERS:
        raise JudgeError(f"{found.id} is in transformers' layout already: use it as it is")
    weights = stored_weights(found.folder)
    placed_keys(found.folder, described, weights)
    tokenizer = load_tokenizer(found.folder)
    mark_images(tokenizer, described.config)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _write_weights(temporary, weights)
        _write_settings(temporary, described, weights, tokenizer)
        temporary.chmod(0o755)  # mkdtemp's folders are private
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def mark_images(tokenizer: Tokenizer, config: Any) -> None:
    """Give a tokenizer the tokens that stand for images and videos, and a config their ids.

    Raises:
        JudgeError: The embedding has no rows for them.
    """
    tokenizer.add_special_tokens([IMAGE_MARK, VIDEO_MARK])
    config.image_token_id = tokenizer.token_to_id(IMAGE_MARK)
    config.video_token_id = tokenizer.token_to_id(VIDEO_MARK)
    rows = config.text_config.vocab_size
    if max(config.image_token_id, config.video_token_id) >= rows:
        raise JudgeError(
            f"{IMAGE_MARK} and {VIDEO_MARK} would be tokens {config.image_token_id} and "
            f"{config.video_token_id}; the embedding has {rows} rows"
        )


def _write_weights(folder: Path, weights: Mapping[str, StoredWeight]) -> None:
    files = sorted({weight.file for weight in weights.values()})
    index: dict[str, str] = {}
    total = 0
    for number, path in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        own = [key for key, weight in weights.items() if weight.file == path]
        with safe_open(path, framework="pt") as file:
            tensors = {renamed(key, PUBLISHED_KEYS): file.get_tensor(key) for key in own}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)  # safetensors' files are private; a server may be another user
        index |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2) + "\n"
    )


def _write_settings(
    folder: Path, described: Described, weights: Mapping[str, StoredWeight], tokenizer: Tokenizer
) -> None:
    config = described.config
    config.dtype = main_dtype(weights)
    config.save_pretrained(folder)
    end = tokenizer.token_to_id("<|im_end|>")
    # nothing of the source's: a repetition penalty in it would change answers
    GenerationConfig(eos_token_id=end, pad_token_id=end).save_pretrained(folder)
    side = config.vision_config.image_size
    LlavaOnevisionProcessor(
        image_processor=siglip_image_processor(config),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
        ),
        video_processor=LlavaOnevisionVideoProcessor(size={"height": side, "width": side}),
        num_image_tokens=(side // config.vision_config.patch_size) ** 2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_aspect_ratio=config.vision_aspect_ratio,
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
    ).save_pretrained(folder)
