"""What a method that merges a subject with a style asks of its arguments."""

from collections.abc import Sequence
from typing import TypeVar

from baselines.adapter import AdapterError, LowRankDelta

T = TypeVar("T")


def subject_and_style(method: str, items: Sequence[T]) -> tuple[T, T]:
    """The two updates, or adapters, that ``method`` merges.

    Raises:
        AdapterError: If there are not two.
    """
    if len(items) != 2:
        raise AdapterError(f"{method} merges a subject and a style, not {len(items)} adapters")
    return items[0], items[1]


def same_precision(deltas: Sequence[LowRankDelta]) -> list[LowRankDelta]:
    """The updates in one type: float64 if one of them is, else float32."""
    exact = [delta.full_precision() for delta in deltas]
    types = {delta.up.dtype for delta in exact}
    return [delta.to(dtype=max(types, key=lambda dtype: dtype.itemsize)) for delta in exact]
