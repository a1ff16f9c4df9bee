"""Keeps what was computed last, up to a total size."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Values by key; when they grow too large, those longest not asked for are dropped.

    Args:
        capacity: Largest sum of the sizes; the newest value is kept even if it alone is larger.
        size: Size of a value.
    """

    def __init__(self, capacity: int, size: Callable[[V], int]) -> None:
        self._capacity = capacity
        self._size = size
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """Return the value of a key, or None."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Keep a value."""
        self._values[key] = value
        self._values.move_to_end(key)
        total = sum(map(self._size, self._values.values()))
        while total > self._capacity and len(self._values) > 1:
            _, dropped = self._values.popitem(last=False)
            total -= self._size(dropped)
