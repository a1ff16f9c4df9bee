"""Keeps what was computed last, up to a total size."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

A = TypeVar("A")
V = TypeVar("V")

IMAGES_AT_ONCE = 8
"""Images that go through a vision tower together."""


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

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()

    def of(
        self, given: Mapping[str, A], compute: Callable[[list[A]], list[V]], at_once: int
    ) -> dict[str, V]:
        """Return the values of what is given, by key; what is not kept is computed, and kept.

        Args:
            given: What to compute a value of, by key.
            compute: Returns a value for each of some.
            at_once: Most that it is given together.
        """
        known = {key: self.get(key) for key in given}
        values = {key: value for key, value in known.items() if value is not None}
        new = [key for key in given if key not in values]
        for start in range(0, len(new), at_once):
            part = new[start : start + at_once]
            for key, value in zip(part, compute([given[key] for key in part]), strict=True):
                values[key] = value
                self.put(key, value)
        return values
