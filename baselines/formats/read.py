"""Reads LoRA files, as PEFT, diffusers, kohya and ComfyUI spell them.

Anything in a file that is not understood is an error: a layer that is dropped silently is a wrong
result in a table.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from baselines.adapter import AdapterError, LazyDeltas, LoraAdapter, LowRankDelta
from baselines.formats import keys, layout
from baselines.formats.settings import json_header, layer_scale, read_settings
from baselines.training import load_tensors

METADATA_KEY = "adapter_metadata"
"""Where we keep an adapter's metadata, as JSON."""
EMPTY_KEY = "adapter_is_empty"
"""Marks a file that is meant to have no layers; a file that has none otherwise is an error."""


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """One layer's factors as they are in a file, but for convolutions, which are flattened."""

    up: Tensor
    """``(d_out, rank)``."""
    down: Tensor
    """``(rank, d_in)``; for a convolution d_in is channels * side * side."""
    scale: float
    """The update is scale * up @ down."""

    @property
    def rank(self) -> int:
        """Of the factors."""
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> LowRankDelta:
        """The update with its scale folded in; float32, or float64 where a factor is."""
        double = torch.float64 in (self.up.dtype, self.down.dtype)
        dtype = torch.float64 if double else torch.float32  # float8 is promoted by no other rule
        up, down = self.up.to(dtype), self.down.to(dtype)
        return LowRankDelta(up if self.scale == 1.0 else self.scale * up, down)


@dataclass(frozen=True, eq=False)
class LoraFile:
    """All that a LoRA file says."""

    path: Path
    layers: Mapping[str, StoredLayer]
    """Layer of the UNet -> factors, sorted."""
    spellings: Mapping[str, int]
    """Who writes such keys -> number of keys."""
    text_encoders: Mapping[str, int]
    """Text encoder, as the file names it -> number of keys; they are not read any further."""
    header: Mapping[str, str]
    """The file's own metadata."""
    metadata: Mapping[str, str]
    """What ``save_adapter`` wrote of the adapter's."""

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Types of the UNet's factors as stored, each once, by name."""
        found = {f.dtype for stored in self.layers.values() for f in (stored.up, stored.down)}
        return tuple(sorted(found, key=str))

    def adapter(
        self, name: str = "", *, ignore_text_encoder: bool = False, lazy: bool = False
    ) -> LoraAdapter:
        """The UNet's updates, with alpha folded in.

        Args:
            name: The adapter's name; "" takes the file's.
            ignore_text_encoder: Leave text encoders' LoRAs out instead of refusing the file.
            lazy: Convert and check a layer when it is asked for, and keep the factors as stored.

        Raises:
            AdapterError: If the text encoders' would be dropped unasked, or values are not finite.
        """
        left_out = ", ".join(f"{part} ({n} tensors)" for part, n in self.text_encoders.items())
        if left_out and not ignore_text_encoder:
            raise AdapterError(
                f"{self.path}: the file holds a LoRA of the text encoder, too: {left_out}. Only "
                "the UNet's is merged; to leave the rest out, write the UNet's to a file of its "
                "own: mars2 merge FILE --method subject_only --ignore-text-encoder -o NEW"
            )
        metadata = dict(self.metadata) | ({"left_out": left_out} if left_out else {})
        name = name or self.path.stem

        def make(layer: str) -> LowRankDelta:
            delta = self.layers[layer].delta()
            try:
                LoraAdapter({layer: delta}, name=name).check_finite()
            except AdapterError as error:
                raise AdapterError(f"{self.path}: {error}") from error
            return delta

        deltas: Mapping[str, LowRankDelta]
        if lazy:
            shapes = {layer: stored.shape for layer, stored in self.layers.items()}
            deltas = LazyDeltas(shapes, make)
        else:
            deltas = {layer: make(layer) for layer in self.layers}
        return LoraAdapter(deltas, name=name, metadata=metadata)


@dataclass
class _Pieces:
    """What a file says about one layer."""

    factors: dict[str, Tensor] = field(default_factory=dict)
    """Under "down", "up" and "mid"."""
    keys: list[str] = field(default_factory=list)
    alpha: float | None = None


def load_adapter(path: Path, *, name: str = "", ignore_text_encoder: bool = False) -> LoraAdapter:
    """Read a LoRA of SDXL's UNet; half precision becomes float32, alpha is folded in.

    An ``adapter_config.json`` beside a file that PEFT saved (keys in ``base_model.model.``) is read
    for alpha, too. Convolutions are kept as matrices ``(d_out, channels * side * side)``.

    Args:
        path: A safetensors file.
        name: The adapter's name; "" takes the file's.
        ignore_text_encoder: Leave a text encoder's LoRA in the file out, and say so in the
            adapter's metadata ("left_out"), instead of refusing the file.

    Raises:
        AdapterError: If the file is missing, damaged, or has anything that is not understood, does
            not fit together, or is not finite. The message names the key or layer.
    """
    return read_lora(path).adapter(name, ignore_text_encoder=ignore_text_encoder)


def read_lora(path: Path) -> LoraFile:
    """Read all that a LoRA file says, the text encoders' part only by name.

    Raises:
        AdapterError: As ``load_adapter``, except for text encoders and values not finite.
    """
    path = Path(path)
    tensors, header = load_tensors(path)
    metadata = json_header(path, header, METADATA_KEY)
    try:
        layers, spellings, text_encoders = _sort_by_layer(tensors)
        if not layers and EMPTY_KEY not in header:
            raise AdapterError(
                "the file holds no LoRA at all"
                if not text_encoders
                else f"the file holds a LoRA of {', '.join(text_encoders)} and none of the UNet"
            )
        settings = read_settings(path, header, tensors)
        stored = {}
        for layer in sorted(layers):
            pieces = layers[layer]
            factors = _factors(layer, pieces)
            scale = layer_scale(layer, factors.rank, pieces.alpha, settings)
            stored[layer] = replace(factors, scale=scale)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from error
    text = {str(key): str(value) for key, value in metadata.items()}
    return LoraFile(path, stored, spellings, text_encoders, header, text)


def _sort_by_layer(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, _Pieces], Counter[str], Counter[str]]:
    """The tensors by layer, every key understood; keys by spelling; keys by text encoder."""
    layers: dict[str, _Pieces] = {}
    spellings: Counter[str] = Counter()
    text_encoders: Counter[str] = Counter()
    for name, tensor in tensors.items():
        part = keys.text_encoder_part(name)
        if part:
            text_encoders[part] += 1
            continue
        key = keys.parse(name)
        if key.piece != "alpha":
            spellings[key.spelling] += 1
        pieces = layers.setdefault(key.layer, _Pieces())
        pieces.keys.append(name)
        if key.piece == "alpha":
            if tensor.numel() != 1 or pieces.alpha is not None:
                raise AdapterError(f"{name!r} has to be the layer's one number alpha")
            pieces.alpha = float(tensor)
            continue
        if key.piece in pieces.factors:
            raise AdapterError(
                f"layer {key.layer!r} is there twice, as {pieces.keys[0]!r} and as {name!r}: save "
                "one adapter a file"
            )
        if not tensor.is_floating_point():
            raise AdapterError(f"{name!r} is {tensor.dtype}: quantised files are not read")
        pieces.factors[key.piece] = tensor
    return layers, spellings, text_encoders


def _factors(layer: str, pieces: _Pieces) -> StoredLayer:
    """The two factors as matrices that fit together; scale 1."""
    for factor, other in (("down", "up"), ("up", "down")):
        if factor not in pieces.factors:
            raise AdapterError(
                f"layer {layer!r} has no {factor} factor: {pieces.keys[0]!r} has no partner"
                + ("" if other in pieces.factors else ", nor a factor at all")
            )
    down, up, mid = pieces.factors["down"], pieces.factors["up"], pieces.factors.get("mid")
    if mid is not None:
        down = _with_middle(layer, down, mid)
    _check_shapes(layer, up, down)
    up, down = up.flatten(1), down.flatten(1)
    if up.shape[1] != down.shape[0]:
        raise AdapterError(
            f"layer {layer!r} has a down factor of rank {down.shape[0]} and an up factor of rank "
            f"{up.shape[1]}"
        )
    return StoredLayer(up, down, 1.0)


def _with_middle(layer: str, down: Tensor, mid: Tensor) -> Tensor:
    """The down factor of a LoCon in Tucker's form: a 1 x 1 and a larger convolution made one.

    ``(rank, channels, 1, 1)`` and ``(rank, rank, side, side)`` to ``(rank, channels, side, side)``,
    exact: the update's matrix has no more than that rank.
    """
    if down.ndim != 4 or mid.ndim != 4 or down.shape[2:] != (1, 1) or mid.shape[1] != len(down):
        raise AdapterError(
            f"layer {layer!r} has a down factor of shape {tuple(down.shape)} and a middle one of "
            f"shape {tuple(mid.shape)}, which do not fit: expected (rank, channels, 1, 1) and "
            "(rank, rank, side, side)"
        )
    dtype = torch.float64 if torch.float64 in (down.dtype, mid.dtype) else torch.float32
    return torch.einsum("abij,bc->acij", mid.to(dtype), down[:, :, 0, 0].to(dtype))


def _check_shapes(layer: str, up: Tensor, down: Tensor) -> None:
    """Refuse factors that are not those of this layer's kind."""
    shapes = f"layer {layer!r} has factors of shape {tuple(down.shape)} and {tuple(up.shape)}"
    side = layout.kernel(layer)
    pointwise = side == 1 or layer.endswith((".proj_in", ".proj_out"))  # SD 1's are convolutions
    matrices = down.ndim == 2 and up.ndim == 2
    if side is None and not pointwise:
        if not matrices:
            convolution = ", which looks like a convolution" if down.ndim == 4 else ""
            raise AdapterError(f"{shapes}{convolution}: expected matrices, the layer is linear")
    elif not (pointwise and matrices):
        side = side or 1
        fits = down.ndim == up.ndim == 4 and down.shape[2:] == (side, side)
        if not fits or up.shape[2:] != (1, 1):
            raise AdapterError(
                f"{shapes}, but it is a convolution of {side} x {side}: expected "
                f"(rank, channels, {side}, {side}) and (d_out, rank, 1, 1)"
            )
