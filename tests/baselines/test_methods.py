"""The direct sum, the average and the controls: by hand and by their defining equations."""

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from baselines import METHODS, AdapterError, LoraAdapter, LowRankDelta
from baselines.methods.average import average
from baselines.methods.direct_sum import direct_sum


def delta(column: list[float], row: list[float]) -> LowRankDelta:
    return LowRankDelta(torch.tensor(column)[:, None], torch.tensor(row)[None])


SUBJECT = delta([1.0, 2.0], [1.0, 0.0])  # [[1, 0], [2, 0]]
STYLE = delta([0.0, 1.0], [3.0, 4.0])  # [[0, 0], [3, 4]]


def test_direct_sum_by_hand():
    assert direct_sum([SUBJECT, STYLE]).dense().tolist() == [[1.0, 0.0], [5.0, 4.0]]
    weighted = direct_sum([SUBJECT, STYLE], w_subject=2.0, w_style=-1.0)
    assert weighted.dense().tolist() == [[2.0, 0.0], [1.0, -4.0]]


def test_average_by_hand():
    assert average([SUBJECT, STYLE]).dense().tolist() == [[0.5, 0.0], [2.5, 2.0]]
    assert average([SUBJECT, STYLE], weight=0.75).dense().tolist() == [[0.75, 0.0], [2.25, 1.0]]
    assert average([SUBJECT, STYLE], weight=0.0).dense().tolist() == STYLE.dense().tolist()


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("direct_sum", (1.0, 1.0)),
        ("direct_sum", (0.7, 1.3)),
        ("average", (0.5, 0.5)),
        ("average", (0.2, 0.8)),
    ],
)
def test_sum_of_updates_of_every_layer(
    text: str, weights: tuple[float, float], random_adapter: Callable[..., LoraAdapter]
):
    subject = random_adapter(0, rank=3, dtype=torch.float64)
    style = random_adapter(1, rank=5, dtype=torch.float64)
    options = {"direct_sum": {"w_subject": weights[0], "w_style": weights[1]}}.get(
        text, {"weight": weights[0]}
    )
    merged = METHODS.get(text)([subject, style], **options)
    assert merged.layers == subject.layers
    for layer, update in merged.deltas.items():
        one, two = subject.deltas[layer], style.deltas[layer]
        expected = weights[0] * one.up @ one.down + weights[1] * two.up @ two.down
        assert_close(update.dense(), expected, rtol=1e-12, atol=1e-12)
        assert update.rank == 8


def test_is_not_the_sum_of_factors():
    """What peft calls linear adds the factors, and with them one's up times the other's down."""
    factors = LowRankDelta(SUBJECT.up + STYLE.up, SUBJECT.down + STYLE.down)
    assert not torch.allclose(direct_sum([SUBJECT, STYLE]).dense(), factors.dense())


def test_controls(random_adapter: Callable[..., LoraAdapter]):
    pair = [random_adapter(0, rank=3), random_adapter(1, rank=5)]
    assert METHODS.get("base")(pair).layers == ()
    assert METHODS.get("subject_only")(pair).digest() == pair[0].digest()
    assert METHODS.get("style_only")(pair).digest() == pair[1].digest()


def test_refuse_what_they_cannot_merge():
    for method in (direct_sum, average):
        with pytest.raises(AdapterError, match="a subject and a style, not 3 adapters"):
            method([SUBJECT, STYLE, STYLE])
    for weight in (-0.1, 1.1):
        with pytest.raises(AdapterError, match=rf"weight is {weight}, it must be in \[0, 1\]"):
            average([SUBJECT, STYLE], weight=weight)
    with pytest.raises(AdapterError, match="there is only one"):
        METHODS.get("style_only")([LoraAdapter({"a": SUBJECT})])
