"""The two nouns: the low-rank update of one layer, and an adapter, which is one update a layer.

All algebra works on the factors: an update is ``up @ down`` and is never built unless asked for.
Sums, multiples and column scalings are exact; only ``truncate`` and ``from_dense`` approximate.
``up`` is what PEFT calls B, ``down`` what it calls A, with alpha / rank folded in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

LISTED = 3
"""Layers that an error message names at most."""


class AdapterError(ValueError):
    """An adapter, or a file of one, that cannot be used as it is."""


@dataclass(frozen=True, eq=False)
class LowRankDelta:
    """The update ``up @ down`` of one layer's weight.

    Factors keep their type; a result of arithmetic is float64 where an operand is, else float32.
    Everything is differentiable in the factors.

    >>> delta = LowRankDelta(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]]))
    >>> (2.0 * delta + delta).dense().tolist()
    [[9.0, 12.0], [18.0, 24.0]]

    Raises:
        AdapterError: If the factors do not fit together.
    """

    up: Tensor
    """``(d_out, rank)``, alpha / rank folded in."""
    down: Tensor
    """``(rank, d_in)``."""

    def __post_init__(self) -> None:
        up, down = self.up, self.down
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or not up.shape[1]:
            raise AdapterError(
                f"factors of shape {tuple(up.shape)} and {tuple(down.shape)} do not fit: they must "
                "be (d_out, rank) and (rank, d_in) with rank at least 1"
            )
        if up.dtype != down.dtype or not up.dtype.is_floating_point or up.device != down.device:
            raise AdapterError(
                f"factors are {up.dtype} on {up.device} and {down.dtype} on {down.device}: they "
                "must have one floating-point type and one device"
            )

    @property
    def rank(self) -> int:
        """Number of columns of ``up``; the matrix itself may have a lower rank."""
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        return self.up.shape[0], self.down.shape[1]

    def dense(self) -> Tensor:
        """The update itself, ``(d_out, d_in)``."""
        exact = self.full_precision()
        return exact.up @ exact.down

    def __add__(self, other: LowRankDelta) -> LowRankDelta:
        """The sum, exact: the factors are concatenated and the ranks add up."""
        if not isinstance(other, LowRankDelta):
            return NotImplemented
        if self.shape != other.shape:
            raise AdapterError(
                f"updates of shape {self.shape} and {other.shape} cannot be added: "
                "they belong to different layers"
            )
        dtype = torch.promote_types(_working_type(self.up), _working_type(other.up))
        one, two = self.to(dtype=dtype), other.to(dtype=dtype)
        return LowRankDelta(torch.cat([one.up, two.up], 1), torch.cat([one.down, two.down], 0))

    def __mul__(self, weight: float) -> LowRankDelta:
        """The update times a number."""
        if not isinstance(weight, int | float):
            return NotImplemented
        exact = self.full_precision()
        return LowRankDelta(exact.up * weight, exact.down)

    __rmul__ = __mul__

    def __neg__(self) -> LowRankDelta:
        return self * -1.0

    def __sub__(self, other: LowRankDelta) -> LowRankDelta:
        """The difference, exact; the ranks add up."""
        return self + -other

    def scale_columns(self, c: Tensor) -> LowRankDelta:
        """The update times ``diag(c)``: ``up @ (down * c)``, exact.

        Args:
            c: One coefficient per input feature, ``(d_in,)``.

        Raises:
            AdapterError: If ``c`` has another shape.
        """
        if tuple(c.shape) != (self.shape[1],):
            raise AdapterError(
                f"coefficients have shape {tuple(c.shape)}, the layer has {self.shape[1]} inputs"
            )
        dtype = torch.promote_types(_working_type(self.up), c.dtype)
        exact = self.to(dtype=dtype)
        return LowRankDelta(exact.up, exact.down * c.to(dtype))

    def truncate(self, rank: int) -> LowRankDelta:
        """The best approximation of at most ``rank``, in the Frobenius and the spectral norm.

        From QR decompositions of the factors and the SVD of a ``(rank, rank)`` matrix, which is the
        SVD of the update (Eckart and Young 1936). Each factor takes the root of the singular
        values. An update of no higher rank comes back as it is.

        Raises:
            AdapterError: If ``rank`` is below 1.
        """
        _check_rank(rank)
        exact = self.full_precision()
        if rank >= self.rank:
            return exact
        left, values, right = exact.svd()
        root = values[:rank].sqrt()
        return LowRankDelta(left[:, :rank] * root, root[:, None] * right[:rank])

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """The thin SVD of the update, from QR decompositions of the factors and a small SVD.

        Returns:
            Left singular vectors ``(d_out, k)``, singular values ``(k,)``, largest first, and right
            singular vectors ``(k, d_in)``; ``k`` is the rank, or the layer's smaller side if that
            is less. Values of no more than rounding may be among them: see ``significant``.
        """
        exact = self.full_precision()
        up_basis, up_part = torch.linalg.qr(exact.up)  # (d_out, k), (k, rank)
        down_basis, down_part = torch.linalg.qr(exact.down.T)  # (d_in, l), (l, rank)
        left, values, right = torch.linalg.svd(up_part @ down_part.T, full_matrices=False)
        return up_basis @ left, values, right @ down_basis.T

    def norm(self) -> Tensor:
        """The Frobenius norm, a scalar; through QR, so that cancelling updates lose no digits."""
        exact = self.full_precision()
        up_part = torch.linalg.qr(exact.up, mode="r").R
        down_part = torch.linalg.qr(exact.down.T, mode="r").R
        norm: Tensor = torch.linalg.matrix_norm(up_part @ down_part.T)
        return norm

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LowRankDelta:
        """The same update with its factors elsewhere or of another type."""
        return LowRankDelta(
            self.up.to(device=device, dtype=dtype), self.down.to(device=device, dtype=dtype)
        )

    def full_precision(self) -> LowRankDelta:
        """The same update, its factors float32 if they were float16 or bfloat16."""
        return self.to(dtype=_working_type(self.up))

    @staticmethod
    def from_dense(matrix: Tensor, rank: int | None = None) -> LowRankDelta:
        """The best approximation of a matrix ``(d_out, d_in)`` of at most ``rank``.

        Args:
            matrix: The update.
            rank: None: the matrix' numerical rank, so that only rounding is lost.

        Raises:
            AdapterError: If it is no matrix or ``rank`` is below 1.
        """
        if matrix.ndim != 2 or not matrix.numel():
            raise AdapterError(f"an update is a matrix, not of shape {tuple(matrix.shape)}")
        left, values, right = torch.linalg.svd(
            matrix.to(_working_type(matrix)), full_matrices=False
        )
        if rank is None:
            rounding = max(matrix.shape) * torch.finfo(values.dtype).eps * values[0]
            rank = max(1, int((values > rounding).sum()))
        _check_rank(rank)
        root = values[:rank].sqrt()
        return LowRankDelta(left[:, :rank] * root, root[:, None] * right[:rank])


class LazyDeltas(Mapping[str, LowRankDelta]):
    """Updates that are made when they are asked for, each time, and not kept.

    An adapter of them needs the memory of the layers in use. Merging such adapters gives such an
    adapter: see ``make_deltas``.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], make: Callable[[str], LowRankDelta]
    ) -> None:
        """Remember how to make them.

        Args:
            shapes: Layer -> ``(d_out, d_in)``.
            make: Layer -> its update; the same at every call.
        """
        self.shapes = {layer: shapes[layer] for layer in sorted(shapes)}
        self._make = make

    def __getitem__(self, layer: str) -> LowRankDelta:
        if layer not in self.shapes:
            raise KeyError(layer)
        return self._make(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, layer: object) -> bool:
        return layer in self.shapes


def make_deltas(
    shapes: Mapping[str, tuple[int, int]],
    make: Callable[[str], LowRankDelta],
    *,
    source: Sequence[LoraAdapter],
) -> Mapping[str, LowRankDelta]:
    """The updates that ``make`` gives for the layers; lazy if an adapter of ``source`` is lazy."""
    if any(adapter.lazy for adapter in source):
        return LazyDeltas(shapes, make)
    return {layer: make(layer) for layer in shapes}


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """An update for each of a network's layers; read-only, layers sorted by name."""

    deltas: Mapping[str, LowRankDelta]
    """Layer -> update; a layer is a module path below the UNet, such as
    ``down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q``."""
    name: str = ""
    """What messages call it."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Where it comes from: how it was trained or merged."""

    def __post_init__(self) -> None:
        if not self.lazy:
            ordered = {layer: self.deltas[layer] for layer in sorted(self.deltas)}
            object.__setattr__(self, "deltas", MappingProxyType(ordered))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, sorted."""
        return tuple(self.deltas)

    @property
    def lazy(self) -> bool:
        """Whether the updates are made when they are asked for."""
        return isinstance(self.deltas, LazyDeltas)

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Layer -> ``(d_out, d_in)``; lazy updates are not made for it."""
        if isinstance(self.deltas, LazyDeltas):
            return dict(self.deltas.shapes)
        return {layer: delta.shape for layer, delta in self.deltas.items()}

    def map(self, change: Callable[[LowRankDelta], LowRankDelta]) -> LoraAdapter:
        """The same adapter with every update changed, its shape kept; lazy if this one is."""
        make = make_deltas(self.shapes(), lambda layer: change(self.deltas[layer]), source=[self])
        return replace(self, deltas=make)

    def parameters(self) -> int:
        """How many numbers are stored."""
        return sum(delta.up.numel() + delta.down.numel() for delta in self.deltas.values())

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LoraAdapter:
        """The same adapter with its factors elsewhere or of another type."""
        return self.map(lambda delta: delta.to(device, dtype))

    def full_precision(self) -> LoraAdapter:
        """The same adapter, its factors float32 where they were float16 or bfloat16."""
        return self.map(lambda delta: delta.full_precision())

    def digest(self) -> str:
        """The sha256 (64 hex) of layer names, types, shapes and factors.

        Neither the name, the metadata nor the device changes it.
        """
        content = hashlib.sha256()
        for layer, delta in self.deltas.items():
            for factor in (delta.up, delta.down):
                header = [layer, str(factor.dtype), list(factor.shape)]
                content.update(json.dumps(header).encode())
                content.update(factor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return content.hexdigest()

    def check_finite(self, remedy: str = "train or download it anew") -> None:
        """Refuse an adapter with values that are not finite; the message ends with the remedy.

        Raises:
            AdapterError: Naming the first such layer.
        """
        for layer, delta in self.deltas.items():
            for factor, values in (("up", delta.up), ("down", delta.down)):
                wrong = int((~torch.isfinite(values)).sum())
                if wrong:
                    of = f" of adapter {self.name!r}" if self.name else ""
                    raise AdapterError(
                        f"layer {layer!r}{of} has {wrong} values in its {factor} factor that are "
                        f"not finite: {remedy}"
                    )


def significant(values: Tensor) -> int:
    """How many singular values ``(k,)``, largest first, are more than rounding; 0 if all are 0."""
    rounding = 4 * len(values) * torch.finfo(values.dtype).eps * values[:1]
    return int((values > rounding).sum())


def check_same_layers(adapters: Sequence[LoraAdapter]) -> None:
    """Refuse adapters that do not update the same layers in the same shapes.

    Raises:
        AdapterError: Naming some of the layers in question.
    """
    first = adapters[0]
    for position, other in enumerate(adapters[1:], start=2):
        names = (first.name or "number 1", other.name or f"number {position}")
        for has, lacks, whose in (
            (first, other, names),
            (other, first, names[::-1]),
        ):
            missing = [layer for layer in has.deltas if layer not in lacks.deltas]
            if missing:
                more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
                raise AdapterError(
                    f"adapter {whose[0]} updates {', '.join(missing[:LISTED])}{more}, adapter "
                    f"{whose[1]} does not: merge adapters of one base model and the same layers"
                )
        others = other.shapes()
        for layer, shape in first.shapes().items():
            if shape != others[layer]:
                raise AdapterError(
                    f"layer {layer!r} is {shape} in adapter {names[0]} but {others[layer]} in "
                    f"adapter {names[1]}: they were made for different base models"
                )


def _working_type(tensor: Tensor) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise AdapterError(f"the rank is {rank}: it must be at least 1")
