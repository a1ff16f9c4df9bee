"""The settings that PEFT and diffusers keep with a LoRA, and the scale they give a layer."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from baselines.adapter import AdapterError, LoraAdapter

DIFFUSERS_KEY = "lora_adapter_metadata"
"""Where diffusers keeps the LoRA's settings in a file's header, as JSON."""


def read_settings(
    path: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """PEFT's settings of the UNet's LoRA, from the header or the file beside; empty: none said.

    Raises:
        AdapterError: If they are not JSON, or say that the updates are not low-rank.
    """
    found = json_header(path, header, DIFFUSERS_KEY)
    if any(key.startswith("unet.") for key in found):
        found = {k.removeprefix("unet."): v for k, v in found.items() if k.startswith("unet.")}
    config = path.with_name("adapter_config.json")
    if not found and config.is_file() and all(key.startswith("base_model.") for key in tensors):
        try:
            found = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise AdapterError(f"{config} beside it is not JSON: {error}") from error
    if found.get("use_dora"):
        raise AdapterError(
            "the file's settings say DoRA (use_dora), whose updates are not low-rank"
        )
    if found.get("peft_type", "LORA") not in ("LORA", None):
        raise AdapterError(
            f"the file's settings say {found['peft_type']} (peft_type): only LoRA is read"
        )
    return found


def json_header(path: Path, header: Mapping[str, str], key: str) -> dict[str, Any]:
    """The JSON object under a key of the header; empty if there is none.

    Raises:
        AdapterError: If it is something else.
    """
    try:
        found = json.loads(header.get(key, "{}"))
    except ValueError as error:
        raise AdapterError(f"{path}: {key} in its header is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise AdapterError(
            f"{path}: {key} in its header is a {type(found).__name__}, not an object"
        )
    return found


def layer_scale(layer: str, rank: int, alpha: float | None, settings: Mapping[str, Any]) -> float:
    """What the factors' product is multiplied by: 1 where no alpha is said, else alpha / rank.

    With rsLoRA (Kalajdzievski 2023) alpha / sqrt(rank).

    Args:
        layer: Its name, for patterns.
        rank: Of its factors.
        alpha: What the file's tensors say; None: nothing.
        settings: As ``read_settings`` gives them.

    Raises:
        AdapterError: If settings and tensors contradict each other.
    """
    said = _by_pattern(layer, settings, "rank_pattern", "r")
    if said is not None and said != rank:
        raise AdapterError(f"layer {layer!r} has rank {rank}, but the file's settings say {said}")
    from_settings = _by_pattern(layer, settings, "alpha_pattern", "lora_alpha")
    if alpha is not None and from_settings is not None and alpha != from_settings:
        raise AdapterError(
            f"layer {layer!r} has alpha {alpha}, but the file's settings say {from_settings}"
        )
    alpha = from_settings if alpha is None else alpha
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(
    layer: str, settings: Mapping[str, Any], patterns: str, default: str
) -> float | None:
    """The number of the first pattern that is the layer's name or its end, as PEFT matches them."""
    value = settings.get(default)
    try:
        for pattern, number in (settings.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                value = number
                break
        return None if value is None else float(value)
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise AdapterError(
            f"the file's settings {patterns} and {default} cannot be read for layer {layer!r}: "
            f"{error}"
        ) from error


def written_settings(adapter: LoraAdapter) -> dict[str, Any]:
    """What diffusers makes PEFT's LoraConfig of: alpha equal to the rank, layer by layer.

    Without it, older releases of diffusers take the first layer's rank for every layer's alpha.
    """
    ranks = [delta.rank for delta in adapter.deltas.values()]
    common = max(sorted(set(ranks)), key=ranks.count)
    others = {
        f"^{re.escape(layer)}": delta.rank
        for layer, delta in adapter.deltas.items()
        if delta.rank != common
    }
    settings = {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(adapter.layers),
    }
    return {f"unet.{key}": value for key, value in settings.items()}
