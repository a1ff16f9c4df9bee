"""Writes LoRA files, as diffusers (PEFT) or kohya spell them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.formats import layout
from baselines.formats.base_model import STABLE_DIFFUSION_1, guess_base_model
from baselines.formats.read import EMPTY_KEY, METADATA_KEY
from baselines.formats.settings import DIFFUSERS_KEY, written_settings
from baselines.training import stream_tensors

Spelling = Literal["diffusers", "kohya"]


def save_adapter(
    adapter: LoraAdapter,
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    spelling: Spelling = "diffusers",
) -> None:
    """Write an adapter, atomically, so that diffusers' ``pipe.load_lora_weights`` takes it.

    In diffusers' spelling the factors are written as they are, and the header says alpha = rank for
    every layer, that is scale 1. In kohya's, every layer has a tensor alpha, the same for all: see
    ``_one_alpha``. An adapter without layers can be read back by ``load_adapter`` only. A layer is
    written at a time; each of a lazy adapter is made several times: see ``spooled``.

    Args:
        adapter: With finite values.
        path: Written over if it exists; its folder is made if need be.
        dtype: Of the factors in the file. float32 keeps float32 exactly.
        spelling: "diffusers" is PEFT's spelling behind ``unet.``. "kohya" is also what ComfyUI and
            the web UIs read; blocks are numbered as in SDXL's original code, as kohya's trainer
            does for SDXL, or by diffusers' names where the layers may be another network's.

    Raises:
        AdapterError: If values are not finite, or not in ``dtype``, or a layer has no name in the
            spelling.
    """
    check_spelling(spelling)
    stored = adapter.to(dtype=dtype)
    stored.check_finite()
    header = {"format": "pt", METADATA_KEY: json.dumps(dict(adapter.metadata), sort_keys=True)}
    if not stored.deltas:
        header[EMPTY_KEY] = "true"
    elif spelling == "diffusers":
        header[DIFFUSERS_KEY] = json.dumps(written_settings(stored), sort_keys=True)
    spell = _diffusers if spelling == "diffusers" else _kohya
    stream_tensors(Path(path), lambda: spell(stored), header)


def check_spelling(spelling: str) -> Spelling:
    """The spelling, if it is one that is written.

    Raises:
        AdapterError: It is not.
    """
    for known in get_args(Spelling):
        if spelling == known:
            return cast(Spelling, known)
    raise AdapterError(f"the spelling is {spelling!r}: it must be diffusers or kohya")


def _diffusers(adapter: LoraAdapter) -> Iterator[tuple[str, Tensor]]:
    for layer, up, down in _factors(adapter):
        yield f"unet.{layer}.lora_A.weight", down
        yield f"unet.{layer}.lora_B.weight", up


def _kohya(adapter: LoraAdapter) -> Iterator[tuple[str, Tensor]]:
    """All alphas first: they are float32, and a file's tensors must lie at multiples of their size.

    Raises:
        AdapterError: If a layer has no name in the spelling.
    """
    original = layout.has_sdxl_layout(adapter.layers)
    alpha = max((delta.rank for delta in adapter.deltas.values()), default=0)
    stems = {}
    for layer in adapter.layers:
        name = (layout.to_original(layer) if original else None) or layer
        flat = name.replace(".", "_")
        if layout.unflatten(flat) != name:
            raise AdapterError(f"layer {layer!r} has no name in kohya's spelling: write diffusers'")
        stems[layer] = f"lora_unet_{flat}"
    for stem in stems.values():
        yield f"{stem}.alpha", torch.tensor(float(alpha))
    for layer, up, down in _factors(_one_alpha(adapter, alpha)):
        yield f"{stems[layer]}.lora_down.weight", down
        yield f"{stems[layer]}.lora_up.weight", up


def _one_alpha(adapter: LoraAdapter, alpha: int) -> LoraAdapter:
    """The factors that give the same updates once a reader has multiplied them by alpha / rank.

    A file whose layers have different alphas is read wrongly by diffusers (0.42): it looks for the
    attention layers' under names that no module has, and takes the most frequent one. So all layers
    get the highest rank as alpha. A layer of lower rank is filled up with zeros to alpha / 2^k, and
    its up factor divided by 2^k, which is exact.
    """

    def filled(delta: LowRankDelta) -> LowRankDelta:
        rank = alpha
        while rank % 2 == 0 and rank // 2 >= delta.rank:
            rank //= 2
        more = rank - delta.rank
        return LowRankDelta(
            pad(delta.up * (rank / alpha), (0, more)), pad(delta.down, (0, 0, 0, more))
        )

    return adapter.map(filled)


def _factors(adapter: LoraAdapter) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each layer with its up and down, four axes for a convolution."""
    base = guess_base_model(adapter.shapes())
    for layer, delta in adapter.deltas.items():
        side = layout.kernel(layer)
        if base == STABLE_DIFFUSION_1 and layer.endswith((".proj_in", ".proj_out")):
            side = 1  # convolutions there, linear in SDXL
        if side is None:
            yield layer, delta.up, delta.down
            continue
        if delta.shape[1] % (side * side):
            raise AdapterError(
                f"layer {layer!r} is a convolution of {side} x {side}, which cannot have "
                f"{delta.shape[1]} inputs"
            )
        down = delta.down.reshape(delta.rank, -1, side, side)
        yield layer, delta.up[:, :, None, None], down
