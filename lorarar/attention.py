"""Attention over the columns of a layer: a hypernetwork with it sees the whole matrix.

LoRA.rar's network treats every column by itself, the same wherever it stands. This asks whether
that loses anything: after the hidden layer every column looks at all others of its layer, once.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.training import generator_for


class ColumnAttention(nn.Module):
    """H + V softmax(K^T Q / root(hidden)), one head; it starts as H, its output layer at zero.

    Permuting the columns permutes the result.
    """

    def __init__(self, hidden: int, *, seed: int) -> None:
        """Draw the weights from ``seed``."""
        super().__init__()
        self.queries_keys_values = nn.Linear(hidden, 3 * hidden, bias=False)
        self.output = nn.Linear(hidden, hidden)
        with torch.no_grad():
            self.queries_keys_values.weight.normal_(
                0.0, hidden**-0.5, generator=generator_for(seed, "attention")
            )
            self.output.weight.zero_()
            self.output.bias.zero_()

    def forward(self, hidden: Tensor) -> Tensor:
        """``(hidden, d_in)`` to the same."""
        columns = hidden.T[None]  # (1, d_in, hidden)
        query, key, value = self.queries_keys_values(columns).chunk(3, dim=-1)
        seen = functional.scaled_dot_product_attention(query, key, value)
        summed: Tensor = columns + self.output(seen)
        return summed[0].T
