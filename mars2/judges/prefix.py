"""Keys and values of what questions begin with, computed once and shared by many of them."""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

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


def cache_argument(model: Any) -> str:
    """Return what a model calls its cache of keys and values: renamed in transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
