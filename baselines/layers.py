"""Makes adapters that touch different layers fit together: by zeros, or by what they share."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from baselines.adapter import (
    AdapterError,
    LoraAdapter,
    LowRankDelta,
    check_same_layers,
    make_deltas,
)


def match_layers(
    adapters: Sequence[LoraAdapter], how: str = "error"
) -> tuple[list[LoraAdapter], str]:
    """The adapters with the same layers, and a sentence about what changed; "" if nothing did.

    Args:
        adapters: At least one.
        how: "error" refuses adapters whose layers differ. "union" gives a layer that an adapter
            does not touch an update of zero, of rank 1, which is what it means not to touch it.
            "intersection" drops the layers that not all of them touch.

    Raises:
        AdapterError: If ``how`` is something else, or layers differ and may not, differ in shape,
            or none is shared.
    """
    if how not in ("error", "union", "intersection"):
        raise AdapterError(f"layers is {how!r}: it must be union, intersection or error")
    shapes = {name: shape for adapter in adapters for name, shape in adapter.shapes().items()}
    shared = [layer for layer in shapes if all(layer in a.deltas for a in adapters)]
    if len(shared) == len(shapes):
        check_same_layers(adapters)
        return list(adapters), ""
    if how == "error":
        try:
            check_same_layers(adapters)
        except AdapterError as error:
            raise AdapterError(f"{error}, or say layers=union or layers=intersection") from error
    names = [a.name or f"number {number}" for number, a in enumerate(adapters, start=1)]
    if how == "intersection":
        if not shared:
            raise AdapterError(f"adapters {' and '.join(names)} have no layer in common")
        matched = [_only(adapter, shared) for adapter in adapters]
        lost = ", ".join(
            f"{len(a.deltas) - len(shared)} of {name}"
            for a, name in zip(adapters, names, strict=True)
        )
        said = f"{len(shared)} layers that all files touch are merged; dropped: {lost}"
    else:
        matched = [_filled(adapter, shapes) for adapter in adapters]
        lacking = ", ".join(
            f"{len(shapes) - len(a.deltas)} in {name}"
            for a, name in zip(adapters, names, strict=True)
        )
        said = f"{len(shapes)} layers are merged; taken as an update of zero: {lacking}"
    check_same_layers(matched)
    return matched, said


def _only(adapter: LoraAdapter, layers: Sequence[str]) -> LoraAdapter:
    of_all = adapter.shapes()
    shapes = {layer: of_all[layer] for layer in layers}
    deltas = make_deltas(shapes, lambda layer: adapter.deltas[layer], source=[adapter])
    return replace(adapter, deltas=deltas)


def _filled(adapter: LoraAdapter, shapes: dict[str, tuple[int, int]]) -> LoraAdapter:
    first = next(iter(adapter.deltas.values()), None)
    like = torch.zeros(0) if first is None else first.up.new_zeros(0)

    def make(layer: str) -> LowRankDelta:
        if layer in adapter.deltas:
            return adapter.deltas[layer]
        d_out, d_in = shapes[layer]
        return LowRankDelta(like.new_zeros(d_out, 1), like.new_zeros(1, d_in))

    own = adapter.shapes()
    deltas = make_deltas(shapes | own, make, source=[adapter])
    return replace(adapter, deltas=deltas)
