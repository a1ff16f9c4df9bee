"""The merge method `lorarar` as users call it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.registry import METHODS
from lorarar.checkpoints import Provenance, save_checkpoint
from lorarar.hypernet import HyperNetwork
from lorarar.method import lorarar


@pytest.fixture
def pair(random_adapter: Callable[..., LoraAdapter]) -> list[LoraAdapter]:
    return [random_adapter(1, rank=2), random_adapter(2, rank=3)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "h.safetensors"
    save_checkpoint(HyperNetwork([32, 64], normalize=True, seed=1), path, Provenance())
    return path


def test_merges_as_the_network_does(pair: list[LoraAdapter], checkpoint: Path):
    merged = lorarar(pair, checkpoint=str(checkpoint))
    expected = HyperNetwork([32, 64], normalize=True, seed=1).requires_grad_(False).merge(*pair)
    assert list(merged.deltas) == list(pair[0].deltas)
    for name, delta in merged.deltas.items():
        assert delta.rank == 5
        assert not delta.down.requires_grad
        torch.testing.assert_close(delta.dense(), expected.deltas[name].dense())


def test_kv_weight_replaces_the_checkpoints(pair: list[LoraAdapter], checkpoint: Path):
    plain = lorarar(pair, checkpoint=str(checkpoint))
    summed = lorarar(pair, checkpoint=str(checkpoint), kv_weight=1.0)
    for name, delta in plain.deltas.items():
        factor = 2.0 if name.endswith(("to_k", "to_v")) else 1.0
        torch.testing.assert_close(summed.deltas[name].dense(), factor * delta.dense())


def test_a_changed_checkpoint_is_read_again(pair: list[LoraAdapter], checkpoint: Path):
    before = lorarar(pair, checkpoint=str(checkpoint))
    save_checkpoint(HyperNetwork([32, 64], normalize=True, seed=2), checkpoint, Provenance())
    os.utime(checkpoint, ns=(1, 1))  # whatever the file system's resolution
    after = lorarar(pair, checkpoint=str(checkpoint))
    name = next(name for name in before.deltas if name.endswith("to_q"))
    assert not torch.equal(before.deltas[name].dense(), after.deltas[name].dense())


def test_enters_by_the_door_of_plugins(pair: list[LoraAdapter], checkpoint: Path):
    method = METHODS.get("lorarar")
    assert method.kind == "adapter"
    assert method.paper == "https://arxiv.org/abs/2412.05148"
    options = method.resolve({"checkpoint": str(checkpoint), "kv_weight": "0.25"})
    assert options == {"checkpoint": str(checkpoint), "kv_weight": 0.25}
    merged = method(pair, **options)
    assert list(merged.deltas) == list(pair[0].deltas)


def test_refuses_what_it_cannot_do(pair: list[LoraAdapter], checkpoint: Path, tmp_path: Path):
    with pytest.raises(AdapterError, match="lorarar:checkpoint=FILE"):
        lorarar(pair)
    with pytest.raises(AdapterError, match=r"absent\.safetensors: no such file"):
        lorarar(pair, checkpoint=str(tmp_path / "absent.safetensors"))
    with pytest.raises(AdapterError, match="not 3 adapters"):
        lorarar([*pair, pair[0]], checkpoint=str(checkpoint))
    wide = LoraAdapter({"block.to_q": LowRankDelta(torch.ones(48, 1), torch.ones(1, 48))})
    with pytest.raises(AdapterError, match=r"'block\.to_q' has width 48, .* for 32, 64"):
        lorarar([wide, wide], checkpoint=str(checkpoint))
