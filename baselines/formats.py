"""LoRA files: safetensors in PEFT's and diffusers' spellings <-> ``LoraAdapter``.

Read, with alpha folded in (PEFT and diffusers, then three older spellings of diffusers):

    [base_model.model.][unet.]LAYER.lora_A[.NAME].weight     and lora_B
    [unet.]LAYER.lora.down.weight                            and up
    [unet.]LAYER.lora_linear_layer.down.weight               and up
    [unet.]....attn1.processor.to_q_lora.down.weight         and up; to_out_lora is to_out.0

The first is written, with ``unet.`` in front. Anything else in a file is an error: a layer that is
dropped silently is a wrong result in a table.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.training import load_tensors, save_tensors

DIFFUSERS_KEY = "lora_adapter_metadata"
"""Where diffusers keeps the LoRA's settings in a file's header, as JSON."""
METADATA_KEY = "adapter_metadata"
"""Where we keep an adapter's metadata, as JSON."""
EMPTY_KEY = "adapter_is_empty"
"""Marks a file that is meant to have no layers; a file that has none otherwise is an error."""

UNET_BLOCKS = ("down_blocks", "mid_block", "up_blocks", "time_embedding", "add_embedding")
"""What a layer's path begins with in SDXL's UNet; needed where ``unet.`` is not in front."""

_FACTORS = (
    re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])(\.[^.]+)?\.weight"),
    re.compile(r"(?P<layer>.+)\.(lora|lora_linear_layer)\.(?P<factor>down|up)\.weight"),
    re.compile(r"(?P<layer>.+\.processor\.to_(q|k|v|out)_lora)\.(?P<factor>down|up)\.weight"),
)
_ALPHA = re.compile(r"(?P<layer>.+?)(\.lora|\.lora_linear_layer)?\.alpha")
_PROCESSOR = re.compile(r"(?P<block>.+)\.processor\.to_(?P<projection>q|k|v|out)_lora")
_FOREIGN = (  # what a key contains -> what it looks like; the first that fits is named
    (r"^lora_(unet|te)", "kohya's or ComfyUI's spelling; convert the file with diffusers: "
     "pipe.load_lora_weights(FILE), then pipe.save_lora_weights"),
    (r"lora_magnitude_vector|dora_scale", "DoRA, whose updates are not low-rank"),
    (r"lokr_|hada_|oft_", "LyCORIS (LoKr, LoHa, OFT), whose updates are not low-rank"),
    (r"text_encoder|text_model|lora_te", "a LoRA of the text encoder; only the UNet's are merged: "
     "train without the text encoder"),
    (r"^(base_model\.model\.)?transformer\.", "a LoRA of a diffusion transformer, not of SDXL"),
    (r"lora_B.*\.bias$", "a LoRA with biases"),
)  # fmt: skip


@dataclass
class _Layer:
    """What a file says about one layer."""

    factors: dict[str, Tensor] = field(default_factory=dict)
    """Under "down" and "up"."""
    keys: list[str] = field(default_factory=list)
    alpha: float | None = None


def load_adapter(path: Path, *, name: str = "") -> LoraAdapter:
    """Read a LoRA of SDXL's UNet; half precision becomes float32, alpha is folded in.

    An ``adapter_config.json`` beside a file that PEFT saved (keys in ``base_model.model.``) is read
    for alpha, too.

    Args:
        path: A safetensors file.
        name: The adapter's name; "" takes the file's.

    Raises:
        AdapterError: If the file is missing, damaged, or has anything that is not understood, does
            not fit together, or is not finite. The message names the key or layer.
    """
    path = Path(path)
    tensors, header = load_tensors(path)
    metadata = _json_header(path, header, METADATA_KEY)
    try:
        layers = _read_layers(tensors)
        if not layers and EMPTY_KEY not in header:
            raise AdapterError("the file holds no LoRA at all")
        settings = _settings(path, header, tensors)
        deltas = {layer: _delta(layer, parts, settings) for layer, parts in layers.items()}
        adapter = LoraAdapter(
            deltas,
            name=name or path.stem,
            metadata={str(key): str(value) for key, value in metadata.items()},
        )
        adapter.check_finite()
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from error
    return adapter


def save_adapter(adapter: LoraAdapter, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write an adapter, atomically, so that diffusers' ``pipe.load_lora_weights`` takes it.

    The factors are written as they are; the header says alpha = rank for every layer, that is
    scale 1. An adapter without layers can be read back by ``load_adapter`` only.

    Args:
        adapter: With finite values.
        path: Written over if it exists; its folder is made if need be.
        dtype: Of the factors in the file. float32 keeps float32 exactly.

    Raises:
        AdapterError: If values are not finite, or not in ``dtype``.
    """
    stored = adapter.to(dtype=dtype)
    stored.check_finite()
    tensors = {}
    for layer, delta in stored.deltas.items():
        tensors[f"unet.{layer}.lora_A.weight"] = delta.down
        tensors[f"unet.{layer}.lora_B.weight"] = delta.up
    header = {"format": "pt", METADATA_KEY: json.dumps(dict(adapter.metadata), sort_keys=True)}
    if stored.deltas:
        header[DIFFUSERS_KEY] = json.dumps(_peft_settings(stored), sort_keys=True)
    else:
        header[EMPTY_KEY] = "true"
    save_tensors(Path(path), tensors, header)


def _peft_settings(adapter: LoraAdapter) -> dict[str, Any]:
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


def _read_layers(tensors: Mapping[str, Tensor]) -> dict[str, _Layer]:
    """The tensors by layer, every key understood."""
    layers: dict[str, _Layer] = {}
    for key, tensor in tensors.items():
        match = _spelling(key)
        layer = _layer_name(key, match["layer"])
        parts = layers.setdefault(layer, _Layer())
        parts.keys.append(key)
        spelled = match.groupdict().get("factor")
        if spelled is None:
            if tensor.numel() != 1 or parts.alpha is not None:
                raise AdapterError(f"{key!r} has to be the layer's one number alpha")
            parts.alpha = float(tensor)
            continue
        factor = {"A": "down", "B": "up"}.get(spelled, spelled)
        if factor in parts.factors:
            raise AdapterError(
                f"layer {layer!r} is there twice, as {parts.keys[0]!r} and as {key!r}: save one "
                "adapter a file"
            )
        if tensor.ndim != 2:
            what = "a convolution" if tensor.ndim == 4 else "no linear layer"
            raise AdapterError(
                f"{key!r} has shape {tuple(tensor.shape)}, which looks like {what}: only linear "
                "layers are merged"
            )
        parts.factors[factor] = tensor
    return layers


def _spelling(key: str) -> re.Match[str]:
    """The match of a key with "layer" and, unless it is an alpha, "factor" among its groups."""
    for pattern in (*_FACTORS, _ALPHA):
        if match := pattern.fullmatch(key):
            return match
    raise _not_understood(key)


def _layer_name(key: str, path: str) -> str:
    """The module path below the UNet, whatever the spelling."""
    bare = path.removeprefix("base_model.model.")
    layer = bare.removeprefix("unet.")
    if layer == bare and layer.partition(".")[0] not in UNET_BLOCKS:
        raise _not_understood(key)
    processor = _PROCESSOR.fullmatch(layer)
    if processor:
        projection = {"out": "to_out.0"}.get(
            processor["projection"], f"to_{processor['projection']}"
        )
        layer = f"{processor['block']}.{projection}"
    return layer


def _not_understood(key: str) -> AdapterError:
    looks = next((what for pattern, what in _FOREIGN if re.search(pattern, key)), None)
    return AdapterError(
        f"key {key!r} is not understood"
        + (f": it looks like {looks}" if looks else ": expected a LoRA of SDXL's UNet in PEFT's or "
           "diffusers' spelling, such as unet.LAYER.lora_A.weight")
    )  # fmt: skip


def _delta(layer: str, parts: _Layer, settings: Mapping[str, Any]) -> LowRankDelta:
    for factor, other in (("down", "up"), ("up", "down")):
        if factor not in parts.factors:
            raise AdapterError(
                f"layer {layer!r} has no {factor} factor: {parts.keys[0]!r} has no partner"
                + ("" if other in parts.factors else ", nor a factor at all")
            )
    down, up = parts.factors["down"], parts.factors["up"]
    if not (down.is_floating_point() and up.is_floating_point()):
        raise AdapterError(f"layer {layer!r} is {up.dtype}: quantised files are not read")
    if up.shape[1] != down.shape[0]:
        raise AdapterError(
            f"layer {layer!r} has a down factor of rank {down.shape[0]} and an up factor of rank "
            f"{up.shape[1]}"
        )
    dtype = torch.promote_types(torch.promote_types(up.dtype, down.dtype), torch.float32)
    scale = _scale(layer, down.shape[0], parts.alpha, settings)
    up, down = up.to(dtype), down.to(dtype)
    return LowRankDelta(up if scale == 1.0 else scale * up, down)


def _scale(layer: str, rank: int, alpha: float | None, settings: Mapping[str, Any]) -> float:
    """What the factors' product is multiplied by: 1 where no alpha is said, else alpha / rank.

    With rsLoRA (Kalajdzievski 2023) alpha / sqrt(rank).
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


def _settings(
    path: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """PEFT's settings of the UNet's LoRA, from the header or the file beside; empty: none said."""
    found = _json_header(path, header, DIFFUSERS_KEY)
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
    return found


def _json_header(path: Path, header: Mapping[str, str], key: str) -> dict[str, Any]:
    """The JSON object under a key of the header; empty if there is none."""
    try:
        found = json.loads(header.get(key, "{}"))
    except ValueError as error:
        raise AdapterError(f"{path}: {key} in its header is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise AdapterError(
            f"{path}: {key} in its header is a {type(found).__name__}, not an object"
        )
    return found
