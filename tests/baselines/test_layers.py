"""Adapters that touch different layers."""

import pytest
import torch

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.layers import match_layers


def adapter(name: str, **ranks: int) -> LoraAdapter:
    generator = torch.Generator().manual_seed(len(name))
    deltas = {
        layer: LowRankDelta(
            torch.randn(3, rank, generator=generator), torch.randn(rank, 4, generator=generator)
        )
        for layer, rank in ranks.items()
    }
    return LoraAdapter(deltas, name)


CAT, INK = adapter("cat", a=2, b=1), adapter("inks", b=3, c=1, d=2)


def test_union_takes_what_is_missing_as_zero():
    (cat, ink), said = match_layers([CAT, INK], "union")
    assert cat.layers == ink.layers == ("a", "b", "c", "d")
    assert cat.deltas["a"] is CAT.deltas["a"]
    assert cat.name == "cat"
    for layer in ("c", "d"):
        assert cat.deltas[layer].shape == (3, 4)
        assert not cat.deltas[layer].dense().any()
    assert not ink.deltas["a"].dense().any()
    assert said == "4 layers are merged; taken as an update of zero: 2 in cat, 1 in inks"


def test_intersection_drops_what_is_not_shared():
    (cat, ink), said = match_layers([CAT, INK], "intersection")
    assert cat.layers == ink.layers == ("b",)
    assert cat.deltas["b"] is CAT.deltas["b"]
    assert said == "1 layers that all files touch are merged; dropped: 1 of cat, 2 of inks"
    with pytest.raises(AdapterError, match="cat and x have no layer in common"):
        match_layers([CAT, adapter("x", z=1)], "intersection")


@pytest.mark.parametrize("how", ["error", "union", "intersection"])
def test_adapters_that_fit_are_left_as_they_are(how: str):
    assert match_layers([CAT, CAT], how) == ([CAT, CAT], "")
    assert match_layers([CAT], how) == ([CAT], "")


def test_refusals():
    with pytest.raises(AdapterError, match=r"cat updates a, adapter inks does not.*layers=union"):
        match_layers([CAT, INK], "error")
    with pytest.raises(AdapterError, match="layers is 'all': it must be union"):
        match_layers([CAT, INK], "all")
    wide = LoraAdapter({"b": LowRankDelta(torch.ones(5, 1), torch.ones(1, 4))}, "wide")
    for how in ("union", "intersection"):
        with pytest.raises(AdapterError, match=r"'b' is \(3, 4\) in adapter cat but \(5, 4\)"):
            match_layers([CAT, wide], how)


def test_an_adapter_without_layers_is_all_zeros():
    (cat, none), _ = match_layers([CAT.to(dtype=torch.float64), LoraAdapter({}, "none")], "union")
    assert none.layers == cat.layers
    assert sum(float(delta.norm()) for delta in none.deltas.values()) == 0.0
