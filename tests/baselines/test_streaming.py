"""Lazy adapters: the same results, a layer at a time; files written a tensor at a time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from baselines import METHODS, AdapterError, LoraAdapter, LowRankDelta
from baselines.adapter import LazyDeltas, check_same_layers, make_deltas
from baselines.formats import load_adapter, read_lora, save_adapter, spooled
from baselines.layers import match_layers
from baselines.training import save_tensors, stream_tensors


def lazy(adapter: LoraAdapter, asked: list[str] | None = None) -> LoraAdapter:
    """The same adapter, its layers made when asked for, and noted."""

    def make(layer: str) -> LowRankDelta:
        if asked is not None:
            asked.append(layer)
        return adapter.deltas[layer]

    return LoraAdapter(LazyDeltas(adapter.shapes(), make), adapter.name, adapter.metadata)


def test_a_lazy_adapter_is_the_same_adapter(random_adapter: Callable[..., LoraAdapter]):
    adapter = random_adapter(1)
    made = lazy(adapter)
    assert made.lazy
    assert not adapter.lazy
    assert made.layers == adapter.layers
    assert made.shapes() == adapter.shapes()
    assert made.parameters() == adapter.parameters()
    assert made.digest() == adapter.digest()
    half = made.to(dtype=torch.float16)
    assert half.lazy
    assert half.digest() == adapter.to(dtype=torch.float16).digest()
    assert half.full_precision().lazy
    assert "nowhere" not in made.deltas
    with pytest.raises(KeyError):
        made.deltas["nowhere"]


@pytest.mark.parametrize("name", ["direct_sum", "ties", "dare", "np_lora", "subject_only"])
def test_lazy_adapters_merge_alike_and_when_asked(
    name: str, random_adapter: Callable[..., LoraAdapter]
):
    pair = [random_adapter(1), random_adapter(2)]
    asked: list[str] = []
    merged = METHODS.get(name)([lazy(adapter, asked) for adapter in pair], seed=3)
    assert not asked
    assert merged.lazy
    layer = merged.layers[5]
    expected = METHODS.get(name)(pair, seed=3)
    assert torch.equal(merged.deltas[layer].up, expected.deltas[layer].up)
    assert set(asked) == {layer}
    assert merged.digest() == expected.digest()


def test_layers_are_compared_and_matched_without_being_made(
    random_adapter: Callable[..., LoraAdapter],
):
    whole = random_adapter(1)
    first, *_, last = whole.layers
    parts = [
        LoraAdapter({k: v for k, v in whole.deltas.items() if k != lacks}, name=lacks)
        for lacks in (first, last)
    ]
    asked: list[str] = []
    made = [lazy(part, asked) for part in parts]
    with pytest.raises(AdapterError, match="merge adapters of one base model"):
        check_same_layers(made)
    for how in ("union", "intersection"):
        matched, said = match_layers(made, how)
        expected, also = match_layers(parts, how)
        assert said == also
        assert len(asked) <= 2  # the type of what is filled in
        assert all(adapter.lazy for adapter in matched)
        assert [a.digest() for a in matched] == [a.digest() for a in expected]
        asked.clear()


def test_a_file_is_read_layer_by_layer(tmp_path: Path, random_adapter: Callable[..., LoraAdapter]):
    path = tmp_path / "half.safetensors"
    save_adapter(random_adapter(1), path, dtype=torch.float16)
    adapter = read_lora(path).adapter(lazy=True)
    assert adapter.lazy
    assert adapter.digest() == load_adapter(path).digest()


@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lazy_and_spooled_adapters_give_the_same_file(
    tmp_path: Path, random_adapter: Callable[..., LoraAdapter], spelling, dtype: torch.dtype
):
    deltas = random_adapter(1).deltas
    mixed = LoraAdapter({k: (d + d if "attn1" in k else d) for k, d in deltas.items()})
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    save_adapter(mixed, paths[0], dtype=dtype, spelling=spelling)
    asked: list[str] = []
    save_adapter(lazy(mixed), paths[1], dtype=dtype, spelling=spelling)
    with spooled(lazy(mixed, asked), dtype=dtype, folder=tmp_path) as spool:
        assert asked == list(mixed.layers)  # once
        assert spool.digest() == mixed.to(dtype=dtype).digest()
        save_adapter(spool, paths[2], dtype=dtype, spelling=spelling)
    assert len({path.read_bytes() for path in paths}) == 1
    assert asked == list(mixed.layers)
    assert sorted(tmp_path.iterdir()) == paths
    assert load_adapter(paths[0]).layers == mixed.layers


def test_a_spool_refuses_what_its_type_cannot_hold(tmp_path: Path):
    large = LoraAdapter({"a": LowRankDelta(torch.full((2, 1), 1e6), torch.ones(1, 2))}, "big")
    opened = spooled(large, dtype=torch.float16, folder=tmp_path)
    with pytest.raises(AdapterError, match="'a' of adapter 'big' has 2 values"), opened:
        pass
    assert list(tmp_path.iterdir()) == []


def test_streamed_bytes_are_those_of_safetensors(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(3, 5, generator=generator),
        "b": torch.randn(2, 3, generator=generator).T,
        "c": torch.tensor(2.5),
        "d": torch.randn(0, 4),
    }
    header = {"format": "pt", "text": 'ä "quoted"'}
    save_tensors(tmp_path / "whole", tensors, header)
    stream_tensors(tmp_path / "streamed", tensors.items, header)
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "whole").read_bytes()
    loaded = load_file(tmp_path / "streamed")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    before = (tmp_path / "streamed").read_bytes()

    def broken():
        yield "a", tensors["a"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_tensors(tmp_path / "streamed", broken, header)
    assert (tmp_path / "streamed").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_deltas_are_lazy_if_a_source_is():
    one = LoraAdapter({"a": LowRankDelta(torch.ones(2, 1), torch.ones(1, 3))})
    made = make_deltas(one.shapes(), lambda layer: one.deltas[layer], source=[one, lazy(one)])
    assert isinstance(made, LazyDeltas)
    assert isinstance(make_deltas(one.shapes(), lambda name: one.deltas[name], source=[one]), dict)
