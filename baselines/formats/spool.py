"""Keeps a merge's layers in a temporary file, so that none is made twice and few are in memory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from baselines.adapter import LazyDeltas, LoraAdapter, LowRankDelta
from baselines.training import tensor_bytes


@contextmanager
def spooled(adapter: LoraAdapter, *, dtype: torch.dtype, folder: Path) -> Iterator[LoraAdapter]:
    """While open, the adapter in ``dtype``, read layer by layer from a temporary file.

    Args:
        adapter: Each of its layers is made once.
        dtype: Of the factors, in the file and after.
        folder: Where the file lies; it has the size of the factors, and no name.

    Raises:
        AdapterError: If values are not finite, or not in ``dtype``.
    """
    places: dict[str, tuple[int, tuple[int, int], tuple[int, int]]] = {}
    with tempfile.TemporaryFile(dir=folder) as file:
        for layer in adapter.layers:
            delta = adapter.deltas[layer].to(dtype=dtype)
            LoraAdapter({layer: delta}, name=adapter.name).check_finite()
            shapes = [(factor.shape[0], factor.shape[1]) for factor in (delta.up, delta.down)]
            places[layer] = (file.tell(), shapes[0], shapes[1])
            file.write(tensor_bytes(delta.up))
            file.write(tensor_bytes(delta.down))

        def read(layer: str) -> LowRankDelta:
            start, up, down = places[layer]
            file.seek(start)
            return LowRankDelta(_read(up), _read(down))

        def _read(shape: tuple[int, int]) -> Tensor:
            content = bytearray(shape[0] * shape[1] * dtype.itemsize)
            file.readinto(content)
            return torch.frombuffer(content, dtype=dtype).reshape(shape)

        whole = {layer: (up[0], down[1]) for layer, (_, up, down) in places.items()}
        yield replace(adapter, deltas=LazyDeltas(whole, read))
