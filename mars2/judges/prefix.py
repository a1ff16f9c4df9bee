"""Keys and values of what questions begin with, computed once and shared by many of them."""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Prefix:
    """What a model computed of the beginning of a question; never changed.

    Attributes:
        cache: Keys and values, of one row.
        positions: How many positions it has.
    """

    cache: DynamicCache
    positions: int

    def rows(self, count: int) -> DynamicCache:
        """Return a cache to go on with, that of `count` rows with this beginning.

        Nothing is copied: the rows are views of one, and a cache that grows makes new tensors.
        """
        rows = copy.copy(self.cache)
        rows.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in rows.layers:
            layer.keys = layer.keys.expand(count, -1, -1, -1)
            layer.values = layer.values.expand(count, -1, -1, -1)
        return rows

    def mask(self, length: int) -> Tensor:
        """Return what is added to attention's scores of rows that go on for so many positions.

        (1, 1, length, positions + length), the same for all rows: zero where a position looks, at
        the prefix and back in its own row. Left to itself, transformers makes truth values for each
        row, which torch turns into such numbers again in every layer.
        """
        keys = self.cache.layers[0].keys
        shape = (length, self.positions + length)
        mask = torch.full(shape, -torch.inf, dtype=keys.dtype, device=keys.device)
        return mask.triu_(self.positions + 1)[None, None]


def cache_argument(model: Any) -> str:
    """Return what a model calls its cache of keys and values: renamed in transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
