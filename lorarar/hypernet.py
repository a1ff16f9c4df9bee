"""LoRA.rar's hypernetwork (Shenaj et al. 2024, arXiv 2412.05148): merging coefficients, predicted.

Of every predicted layer it reads column j of the subject's update joined with column j of the
style's, and answers the two coefficients of that column:

    h = U [dW_c[:, j]; dW_s[:, j]] + b,    (m_c[j], m_s[j]) = V relu(h) + c

with an input layer (U, b) for every column length d_out and one shared output layer (V, c). Written
with U = [U_c U_s] and dW = B A, the hidden layer of all columns at once is

    H = (U_c B_c) A_c + (U_s B_s) A_s + b,    (hidden, d_in)

so that dW is never built; the numbers are the same.

Variants, for comparison: one input layer for all widths, shorter columns filled up with zeros;
features of the columns instead of the columns themselves (``lorarar.features``), which serve any
width and so any base model; attention over the columns (``lorarar.attention``); one pair of
coefficients a layer, from the mean of its columns' hidden units; other projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from baselines.adapter import (
    AdapterError,
    LoraAdapter,
    LowRankDelta,
    check_same_layers,
    make_deltas,
)
from baselines.merging_loss import Coefficients
from baselines.training import generator_for
from lorarar.attention import ColumnAttention
from lorarar.features import FEATURES, column_features

Reads = Literal["columns", "features"]
"""What of an update a hypernetwork reads."""
PROJECTIONS = ("to_q", "to_out.0")
"""The attention projections whose coefficients the paper predicts."""


class HyperNetwork(nn.Module):
    """Predicts the coefficients of a pair of adapters, layer by layer.

    Attributes:
        widths: Column lengths d_out that it can read, ascending; none if it reads features, which
            any width has.
        hidden: Size of the hidden layer.
        projections: A layer is predicted if its name ends with one of these.
        normalize: Whether the columns are divided by the root mean square of both updates' entries,
            layer by layer, so that the input's scale does not depend on the LoRAs' strength.
        kv_weight: Weight of both updates in all other layers.
        reads: "columns", or "features" of them.
        single_input: Whether all widths share one input layer.
        attention: What lets the columns of a layer see each other; None: they do not, as in the
            paper.
        whole_matrix: Whether all columns of a layer share their coefficients, those of the mean of
            their hidden units; the paper's have their own.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        hidden: int = 128,
        projections: Sequence[str] = PROJECTIONS,
        normalize: bool = False,
        kv_weight: float = 0.5,
        reads: Reads = "columns",
        single_input: bool = False,
        attention: bool = False,
        whole_matrix: bool = False,
        seed: int = 0,
    ) -> None:
        """Draw the weights from ``seed``; the coefficients start near 1, that is at the plain sum.

        Raises:
            ValueError: If there is no width or no projection, a size is not positive, or the
                variants do not go together.
        """
        super().__init__()
        if reads not in get_args(Reads):
            raise ValueError(f"reads is {reads!r}: it must be columns or features")
        if reads == "features" and (single_input or widths):
            raise ValueError("features have no width and one input layer: leave both out")
        if (reads == "columns" and not widths) or not projections:
            raise ValueError("a hypernetwork needs at least one width and one projection")
        if hidden <= 0 or min(widths, default=1) <= 0:
            raise ValueError(f"hidden is {hidden}, widths are {list(widths)}: give positive sizes")
        self.widths = tuple(sorted(set(widths)))
        self.hidden = hidden
        self.projections = tuple(projections)
        self.normalize = normalize
        self.kv_weight = kv_weight
        self.reads = reads
        self.single_input = single_input
        if reads == "features":
            sizes = {"features": FEATURES}
        elif single_input:
            sizes = {"all": 2 * self.widths[-1]}
        else:
            sizes = {str(width): 2 * width for width in self.widths}
        self.inputs = nn.ModuleDict({name: nn.Linear(size, hidden) for name, size in sizes.items()})
        self.attention = ColumnAttention(hidden, seed=seed) if attention else None
        self.whole_matrix = whole_matrix
        self.output = nn.Linear(hidden, 2)
        self._draw_weights(seed)

    @torch.no_grad()
    def _draw_weights(self, seed: int) -> None:
        """Input layers uniform as torch draws them, without bias; output near 1 everywhere."""
        for name in self.inputs:
            layer = self._input(name)
            bound = layer.in_features**-0.5
            label = int(name) if name.isdigit() else name
            layer.weight.uniform_(-bound, bound, generator=generator_for(seed, label))
            layer.bias.zero_()
        small = 0.1 * self.hidden**-0.5
        self.output.weight.normal_(0.0, small, generator=generator_for(seed, "output"))
        self.output.bias.fill_(1.0)

    def _input(self, name: str) -> nn.Linear:
        layer = self.inputs[name]
        assert isinstance(layer, nn.Linear)
        return layer

    def predicts(self, layer: str) -> bool:
        """Whether ``layer``'s coefficients are predicted rather than constant."""
        return layer.endswith(tuple("." + projection for projection in self.projections))

    def forward(self, subject: LoraAdapter, style: LoraAdapter) -> Coefficients:
        """The coefficients of every predicted layer, each a pair of ``(d_in,)``.

        Raises:
            AdapterError: If the adapters' layers differ, none is predicted, or a layer has a width
                that the hypernetwork lacks.
        """
        self._check(subject, style)
        return {
            layer: self._columns(layer, delta, style.deltas[layer])
            for layer, delta in subject.deltas.items()
            if self.predicts(layer)
        }

    def merge(
        self, subject: LoraAdapter, style: LoraAdapter, *, kv_weight: float | None = None
    ) -> LoraAdapter:
        """The merged adapter, exact and factored; its rank is the sum of the two.

        It is lazy if one of the adapters is. ``kv_weight`` replaces the hypernetwork's own.

        Raises:
            AdapterError: As ``forward``.
        """
        self._check(subject, style)
        weight = self.kv_weight if kv_weight is None else kv_weight

        def merge(layer: str) -> LowRankDelta:
            one, other = subject.deltas[layer], style.deltas[layer]
            if not self.predicts(layer):
                return weight * one + weight * other
            m_subject, m_style = self._columns(layer, one, other)
            return one.scale_columns(m_subject) + other.scale_columns(m_style)

        return LoraAdapter(make_deltas(subject.shapes(), merge, source=[subject, style]))

    def _check(self, subject: LoraAdapter, style: LoraAdapter) -> None:
        check_same_layers([subject, style])
        if not any(map(self.predicts, subject.deltas)):
            raise AdapterError(
                f"the adapters have no layer that ends with {' or '.join(self.projections)}: "
                "the hypernetwork has nothing to predict"
            )

    def _columns(
        self, layer: str, subject: LowRankDelta, style: LowRankDelta
    ) -> tuple[Tensor, Tensor]:
        dtype = self.output.weight.dtype
        subject, style = subject.to(dtype=dtype), style.to(dtype=dtype)
        if self.reads == "features":
            first = self._input("features")
            hidden = first.weight @ column_features(subject, style, normalize=self.normalize)
        else:
            first, hidden = self._read_columns(layer, subject, style)
        hidden = torch.relu(hidden + first.bias[:, None])  # (hidden, d_in)
        if self.attention is not None:
            hidden = self.attention(hidden)
        if self.whole_matrix:
            hidden = hidden.mean(dim=1, keepdim=True).expand_as(hidden)
        both = self.output.weight @ hidden + self.output.bias[:, None]  # (2, d_in)
        return both[0], both[1]

    def _read_columns(
        self, layer: str, subject: LowRankDelta, style: LowRankDelta
    ) -> tuple[nn.Linear, Tensor]:
        """The input layer of this width, and what it gives without its bias, ``(hidden, d_in)``."""
        d_out = subject.shape[0]
        if d_out not in self.widths:
            raise AdapterError(
                f"layer {layer!r} has width {d_out}, but the hypernetwork was trained for "
                f"{', '.join(map(str, self.widths))}: it belongs to another base model"
            )
        first = self._input("all" if self.single_input else str(d_out))
        of_subject, of_style = first.weight.chunk(2, dim=1)  # each (hidden, width)
        hidden = (of_subject[:, :d_out] @ subject.up) @ subject.down
        hidden = hidden + (of_style[:, :d_out] @ style.up) @ style.down
        if self.normalize:
            hidden = hidden / _root_mean_square(subject, style)
        return first, hidden


def _root_mean_square(subject: LowRankDelta, style: LowRankDelta) -> Tensor:
    """Of all entries of both updates, from the factors; never 0."""
    entries = 2 * subject.shape[0] * subject.shape[1]
    mean_square = (subject.norm().square() + style.norm().square()) / entries
    return mean_square.sqrt().clamp_min(torch.finfo(mean_square.dtype).tiny)
