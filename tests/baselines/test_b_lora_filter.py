"""The block filter: one block of each adapter, as they are."""

import pytest
import torch

from baselines import METHODS, AdapterError, LoraAdapter, LowRankDelta

CONTENT = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
STYLE = "up_blocks.0.attentions.1.transformer_blocks.3.attn2.to_k"
ELSEWHERE = ("mid_block.attentions.0.to_q", "up_blocks.0.attentions.10.to_q")


def adapter(value: float, *, without: str = "") -> LoraAdapter:
    layers = [layer for layer in (CONTENT, STYLE, *ELSEWHERE) if layer != without]
    return LoraAdapter(
        {layer: LowRankDelta(torch.full((2, 1), value), torch.ones(1, 3)) for layer in layers},
        name=f"of {value}",
    )


def test_takes_one_block_of_each_by_hand():
    merged = METHODS.get("b_lora_filter")([adapter(1.0), adapter(5.0)], w_style=2.0)
    assert merged.layers == (CONTENT, STYLE)
    assert merged.deltas[CONTENT].dense().unique().tolist() == [1.0]
    assert merged.deltas[STYLE].dense().unique().tolist() == [10.0]


def test_takes_the_blocks_that_are_named():
    merged = METHODS.get("b_lora_filter")(
        [adapter(1.0), adapter(5.0)],
        content_block="mid_block",
        style_block="up_blocks.0.attentions.10",
    )
    assert merged.layers == ELSEWHERE


def test_adapters_need_not_have_the_other_block():
    pair = [adapter(1.0, without=STYLE), adapter(5.0, without=CONTENT)]
    assert METHODS.get("b_lora_filter")(pair).layers == (CONTENT, STYLE)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            [adapter(1.0, without=CONTENT), adapter(5.0)],
            r"subject's adapter 'of 1\.0' has no",
        ),
        ([adapter(1.0), adapter(5.0, without=STYLE)], r"style's adapter 'of 5\.0' has no layer"),
        ([adapter(1.0)], "merges a subject and a style, not 1 adapters"),
        ([LoraAdapter({}), adapter(5.0)], "but such as 'none'"),
    ],
)
def test_refuses(pair: list[LoraAdapter], message: str):
    with pytest.raises(AdapterError, match=message):
        METHODS.get("b_lora_filter")(pair)


@pytest.mark.parametrize("style", ["up_blocks.0.attentions.0", "up_blocks.0", STYLE])
def test_refuses_blocks_that_overlap(style: str):
    content = "up_blocks.0.attentions.0" if style != STYLE else "up_blocks.0.attentions.1"
    with pytest.raises(AdapterError, match="overlap"):
        METHODS.get("b_lora_filter")(
            [adapter(1.0), adapter(5.0)], content_block=content, style_block=style
        )
