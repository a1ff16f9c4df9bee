"""LoRA.rar's hypernetwork (Shenaj et al. 2024, arXiv 2412.05148): merging coefficients, predicted.

Of every predicted layer it reads column j of the subject's update joined with column j of the
style's, and answers the two coefficients of that column:

    h = U [dW_c[:, j]; dW_s[:, j]] + b,    (m_c[j], m_s[j]) = V relu(h) + c

with an input layer (U, b) for every column length d_out and one shared output layer (V, c). Written
with U = [U_c U_s] and dW = B A, the hidden layer of all columns at once is

    H = (U_c B_c) A_c + (U_s B_s) A_s + b,    (hidden, d_in)

so that dW is never built; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta, check_same_layers
from baselines.merging_loss import Coefficients, merge_with_coefficients
from baselines.training import generator_for

PROJECTIONS = ("to_q", "to_out.0")
"""The attention projections whose coefficients the paper predicts."""


class HyperNetwork(nn.Module):
    """Predicts the coefficients of a pair of adapters, layer by layer.

    Attributes:
        widths: Column lengths d_out it has an input layer for, ascending.
        hidden: Size of the hidden layer.
        projections: A layer is predicted if its name ends with one of these.
        normalize: Whether the columns are divided by the root mean square of both updates' entries,
            layer by layer, so that the input's scale does not depend on the LoRAs' strength.
        kv_weight: Weight of both updates in all other layers.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        hidden: int = 128,
        projections: Sequence[str] = PROJECTIONS,
        normalize: bool = False,
        kv_weight: float = 0.5,
        seed: int = 0,
    ) -> None:
        """Draw the weights from ``seed``; the coefficients start near 1, that is at the plain sum.

        Raises:
            ValueError: If there is no width or no projection, or a size is not positive.
        """
        super().__init__()
        if not widths or not projections:
            raise ValueError("a hypernetwork needs at least one width and one projection")
        if hidden <= 0 or min(widths) <= 0:
            raise ValueError(f"hidden is {hidden}, widths are {list(widths)}: give positive sizes")
        self.widths = tuple(sorted(set(widths)))
        self.hidden = hidden
        self.projections = tuple(projections)
        self.normalize = normalize
        self.kv_weight = kv_weight
        self.inputs = nn.ModuleDict({str(w): nn.Linear(2 * w, hidden) for w in self.widths})
        self.output = nn.Linear(hidden, 2)
        self._draw_weights(seed)

    @torch.no_grad()
    def _draw_weights(self, seed: int) -> None:
        """Input layers uniform as torch draws them, without bias; output near 1 everywhere."""
        for width in self.widths:
            layer = self._input(width)
            bound = (2 * width) ** -0.5
            layer.weight.uniform_(-bound, bound, generator=generator_for(seed, width))
            layer.bias.zero_()
        small = 0.1 * self.hidden**-0.5
        self.output.weight.normal_(0.0, small, generator=generator_for(seed, "output"))
        self.output.bias.fill_(1.0)

    def _input(self, width: int) -> nn.Linear:
        layer = self.inputs[str(width)]
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
        check_same_layers([subject, style])
        coefficients = {
            layer: self._columns(layer, delta, style.deltas[layer])
            for layer, delta in subject.deltas.items()
            if self.predicts(layer)
        }
        if not coefficients:
            raise AdapterError(
                f"the adapters have no layer that ends with {' or '.join(self.projections)}: "
                "the hypernetwork has nothing to predict"
            )
        return coefficients

    def merge(
        self, subject: LoraAdapter, style: LoraAdapter, *, kv_weight: float | None = None
    ) -> LoraAdapter:
        """The merged adapter, exact and factored; its rank is the sum of the two.

        ``kv_weight`` replaces the hypernetwork's own.
        """
        weight = self.kv_weight if kv_weight is None else kv_weight
        return merge_with_coefficients(subject, style, self(subject, style), default=weight)

    def _columns(
        self, layer: str, subject: LowRankDelta, style: LowRankDelta
    ) -> tuple[Tensor, Tensor]:
        d_out = subject.shape[0]
        if d_out not in self.widths:
            raise AdapterError(
                f"layer {layer!r} has width {d_out}, but the hypernetwork was trained for "
                f"{', '.join(map(str, self.widths))}: it belongs to another base model"
            )
        first = self._input(d_out)
        weight = first.weight  # (hidden, 2 d_out)
        subject, style = subject.to(dtype=weight.dtype), style.to(dtype=weight.dtype)
        hidden = (weight[:, :d_out] @ subject.up) @ subject.down  # (hidden, d_in)
        hidden = hidden + (weight[:, d_out:] @ style.up) @ style.down
        if self.normalize:
            hidden = hidden / _root_mean_square(subject, style)
        hidden = torch.relu(hidden + first.bias[:, None])
        both = self.output.weight @ hidden + self.output.bias[:, None]  # (2, d_in)
        return both[0], both[1]


def _root_mean_square(subject: LowRankDelta, style: LowRankDelta) -> Tensor:
    """Of all entries of both updates, from the factors; never 0."""
    entries = 2 * subject.shape[0] * subject.shape[1]
    mean_square = (subject.norm().square() + style.norm().square()) / entries
    return mean_square.sqrt().clamp_min(torch.finfo(mean_square.dtype).tiny)
