"""Sums a LoRA file up: what is in it, block by block."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from baselines.formats import layout
from baselines.formats.base_model import guess_base_model
from baselines.formats.read import METADATA_KEY, LoraFile, StoredLayer

_BLOCK = re.compile(
    r"((down|up)_blocks\.\d+|mid_block)(\.(attentions|resnets|downsamplers|upsamplers)\.\d+)?"
)
_OURS = (METADATA_KEY, "format")
_KINDS = {".to_q": "q", ".to_k": "k", ".to_v": "v", ".to_out.0": "out", ".time_emb_proj": "time"}
_ORDER = ("q", "k", "v", "out", "ff", "proj", "time", "conv", "other")


@dataclass(frozen=True)
class BlockSummary:
    """What a file says about the layers of one block."""

    block: str
    kinds: Mapping[str, int]
    """Kind of layer (q, k, v, out, ff, proj, time, conv, other) -> how many."""
    ranks: tuple[int, ...]
    """Those that occur, sorted."""
    scales: tuple[float, ...]
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA; those that occur, sorted."""
    norm: float | None
    """Frobenius norm of all the block's updates, scale included; None: values are not finite."""
    largest: str
    """The layer with the largest norm, below the block; "" if values are not finite."""

    @property
    def layers(self) -> int:
        """How many."""
        return sum(self.kinds.values())


@dataclass(frozen=True)
class FileSummary:
    """What is in a LoRA file."""

    base_model: str
    spellings: Mapping[str, int]
    text_encoders: Mapping[str, int]
    dtypes: tuple[str, ...]
    """Of the factors, sorted."""
    parameters: int
    """Numbers in the UNet's factors."""
    blocks: tuple[BlockSummary, ...]
    total: BlockSummary
    metadata: Mapping[str, str]
    """What the file's header says; an adapter's own metadata first."""


def describe(file: LoraFile) -> FileSummary:
    """Sum a file up; blocks in the order of the network."""
    blocks: dict[str, list[str]] = {}
    for layer in sorted(file.layers, key=_place):
        blocks.setdefault(_block(layer), []).append(layer)
    norms = {layer: _norm(stored) for layer, stored in file.layers.items()}
    return FileSummary(
        base_model=guess_base_model(
            {name: (len(s.up), s.down.shape[1]) for name, s in file.layers.items()}
        ),
        spellings=file.spellings,
        text_encoders=file.text_encoders,
        dtypes=tuple(str(dtype).removeprefix("torch.") for dtype in file.dtypes),
        parameters=sum(s.up.numel() + s.down.numel() for s in file.layers.values()),
        blocks=tuple(
            _summary(block, layers, file.layers, norms) for block, layers in blocks.items()
        ),
        total=_summary("", list(file.layers), file.layers, norms),
        metadata={**file.metadata, **{k: v for k, v in file.header.items() if k not in _OURS}},
    )


def _summary(
    block: str,
    layers: Sequence[str],
    stored: Mapping[str, StoredLayer],
    norms: Mapping[str, float | None],
) -> BlockSummary:
    kinds = Counter(_kind(layer) for layer in layers)
    finite = {layer: norm for layer in layers if (norm := norms[layer]) is not None}
    whole = len(finite) == len(layers)
    largest = max(finite, key=lambda layer: finite[layer]) if whole and finite else ""
    return BlockSummary(
        block=block,
        kinds={kind: kinds[kind] for kind in _ORDER if kind in kinds},
        ranks=tuple(sorted({stored[layer].rank for layer in layers})),
        scales=tuple(sorted({stored[layer].scale for layer in layers})),
        norm=sum(norm**2 for norm in finite.values()) ** 0.5 if whole else None,
        largest=largest.removeprefix(block).removeprefix("."),
    )


def _norm(stored: StoredLayer) -> float | None:
    delta = stored.delta()
    if not (torch.isfinite(delta.up).all() and torch.isfinite(delta.down).all()):
        return None
    return float(delta.norm())


def _block(layer: str) -> str:
    match = _BLOCK.match(layer)
    return match[0] if match else layer.partition(".")[0]


def _kind(layer: str) -> str:
    if layout.kernel(layer):
        return "conv"
    if ".ff." in layer:
        return "ff"
    if layer.endswith((".proj_in", ".proj_out")):
        return "proj"
    return next((kind for end, kind in _KINDS.items() if layer.endswith(end)), "other")


def _place(layer: str) -> tuple[int, list[tuple[int, str]]]:
    """Sorts layers as the network runs; numbers by value."""
    order = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block", "up_blocks")
    words = layer.split(".")
    first = order.index(words[0]) if words[0] in order else len(order)
    return first, [(int(word), "") if word.isdigit() else (-1, word) for word in words]
