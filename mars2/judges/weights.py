"""Reads what lies in a folder's safetensors files, and loads a model from it, strictly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mars2.judges.errors import JudgeError
from mars2.quiet import no_bars

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
HALF: Mapping[str, str] = {"llava_onevision": "float16", "qwen_vl": "bfloat16"}
"""A judge's dtype on a GPU: as published; as stored, where float16 may not hold its numbers."""
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def resolve(judge: str, dtype: str | None, device: str) -> tuple[str, str]:
    """Return the dtype's name and the device that a judge is loaded with.

    Args:
        judge: Name in `HALF`.
        dtype: Name in `DTYPES`; None: the judge's `HALF` on a GPU, else float32.
        device: As torch names it; "auto": a GPU if there is one.

    Raises:
        JudgeError: There is no such dtype.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype is None:
        dtype = "float32" if device == "cpu" else HALF[judge]
    if dtype not in DTYPES:
        raise JudgeError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
    return dtype, device


@dataclass(frozen=True)
class StoredWeight:
    """A tensor in a file, as the file's header tells.

    Attributes:
        shape: Its shape.
        dtype: As safetensors names it, such as "F16".
        file: Where it lies.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path


def stored_weights(folder: Path) -> dict[str, StoredWeight]:
    """Return all weights in a folder's safetensors files, by key; only headers are read.

    `inv_freq` is left out: old files hold it, every model computes it.

    Raises:
        JudgeError: There are no such files, or they cannot be read.
    """
    weights: dict[str, StoredWeight] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - no mapping
                    stored = file.get_slice(key)
                    weights[key] = StoredWeight(
                        tuple(stored.get_shape()), str(stored.get_dtype()), path
                    )
        except (OSError, SafetensorError) as error:
            raise JudgeError(f"{path} cannot be read: {error}") from error
    if not weights:
        raise JudgeError(f"{folder} has no weights in safetensors files")
    return {key: weight for key, weight in weights.items() if not key.endswith("inv_freq")}


def count_parameters(weights: Mapping[str, StoredWeight]) -> int:
    """Return how many numbers some weights have."""
    return sum(math.prod(weight.shape) for weight in weights.values())


def main_dtype(weights: Mapping[str, StoredWeight]) -> str:
    """Return torch's name of the dtype of most numbers, such as "bfloat16"."""
    counts: dict[str, int] = {}
    for weight in weights.values():
        counts[weight.dtype] = counts.get(weight.dtype, 0) + math.prod(weight.shape)
    most = max(counts, key=lambda dtype: counts[dtype])
    return _DTYPE_NAMES.get(most, most)


def load_strictly(
    architecture: Any,
    folder: Path,
    dtype: torch.dtype,
    *,
    config: Any = None,
    key_mapping: Mapping[str, str] | None = None,
) -> Any:
    """Return a model of transformers, on the CPU, whose weights all came from a folder.

    Args:
        architecture: Its class.
        folder: Where config and weights lie.
        dtype: Of the model.
        config: Of the model; None: the folder's.
        key_mapping: Patterns of the files' keys -> the model's.

    Raises:
        JudgeError: Weights are missing, of other shapes, or unknown.
    """
    try:
        with no_bars():
            model, info = architecture.from_pretrained(
                folder,
                config=config,
                key_mapping=None if key_mapping is None else dict(key_mapping),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise JudgeError(f"the model in {folder} cannot be loaded: {error}") from error
    unexpected = [key for key in info["unexpected_keys"] if not key.endswith("inv_freq")]
    refuse_keys(folder, missing=info["missing_keys"], unexpected=unexpected)
    return model


def refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that a model's numbers are stored as they are computed with.

    Raises:
        JudgeError: They are packed, by a library that is not used here.
    """
    if settings := config.get("quantization_config"):
        how = settings.get("quant_method", settings) if isinstance(settings, dict) else settings
        raise JudgeError(
            f"{folder} holds a quantised model ({how}): give the one that it was made of, or ask "
            "it on a server (--judge openai:MODEL)"
        )


def refuse_keys(folder: Path, *, missing: Any, unexpected: Any) -> None:
    """Check that no key is missing or unknown.

    Raises:
        JudgeError: One is.
    """
    for kind, keys in (("lack", missing), ("have unknown", unexpected)):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise JudgeError(f"the weights in {folder} {kind} {len(keys)} keys, such as {some}")
