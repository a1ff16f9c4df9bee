"""Draws depend on (seed, step) alone; a saved training goes on where it was."""

from pathlib import Path

import pytest
import torch

from baselines.adapter import AdapterError
from baselines.training import (
    generator_for,
    load_state,
    load_tensors,
    save_state,
    save_tensors,
    shuffled_passes,
)


def test_streams_differ_by_every_label():
    keys = [(0,), (1,), (0, 1), (0, "1"), (0, 1, 2), (0, 12)]
    draws = {torch.randn(1, generator=generator_for(*key)).item() for key in keys}
    assert len(draws) == len(keys)
    assert torch.equal(
        torch.randn(4, generator=generator_for(3, "a", 7)),
        torch.randn(4, generator=generator_for(3, "a", 7)),
    )


def test_every_index_comes_once_a_pass_however_it_is_cut():
    whole = shuffled_passes(5, 0, 15, seed=1, label="x")
    for start in (0, 5, 10):
        assert sorted(whole[start : start + 5]) == [0, 1, 2, 3, 4]
    assert whole[:5] != whole[5:10]
    assert [i for k in range(5) for i in shuffled_passes(5, 3 * k, 3, seed=1, label="x")] == whole


def test_tensors_come_back_with_their_metadata(tmp_path: Path):
    path = tmp_path / "new" / "file.safetensors"
    save_tensors(path, {"b": torch.arange(6.0).reshape(2, 3).T}, {"key": "value"})
    tensors, metadata = load_tensors(path)
    assert tensors["b"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert metadata == {"key": "value"}
    assert [entry.name for entry in path.parent.iterdir()] == ["file.safetensors"]


def test_files_are_as_readable_as_others(tmp_path: Path):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {})
    (tmp_path / "b.txt").write_text("")
    modes = [(tmp_path / name).stat().st_mode for name in ("a.safetensors", "b.txt")]
    assert modes[0] == modes[1]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.safetensors"
    save_tensors(path, {"a": torch.zeros(1)}, {})

    def fails(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", fails)
    with pytest.raises(OSError, match="disk full"):
        save_tensors(path, {"a": torch.ones(1)}, {})
    assert load_tensors(path)[0]["a"].item() == 0.0
    assert len(list(tmp_path.iterdir())) == 1


def test_unreadable_files_are_named(tmp_path: Path):
    with pytest.raises(AdapterError, match=r"absent\.safetensors: no such file"):
        load_tensors(tmp_path / "absent.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not this")
    with pytest.raises(AdapterError, match=r"bad\.safetensors: not a readable"):
        load_tensors(tmp_path / "bad.safetensors")


def run(path: Path, first: int, last: int) -> list[float]:
    """Steps ``[first, last)`` of AdamW on a quadratic; ``b`` gets its first gradient at step 4."""
    a, b = torch.nn.Parameter(torch.tensor([3.0])), torch.nn.Parameter(torch.tensor([5.0]))
    parameters = {"a": a, "b": b}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    losses = load_state(path, parameters, optimizer, fingerprint="f") if first else []
    assert len(losses) == first
    for step in range(first, last):
        loss = (a**2).sum() + ((b - 1) ** 2).sum() * (step >= 4)
        if step < 4:
            loss = (a**2).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        save_state(path, parameters, optimizer, losses, fingerprint="f")
    return [a.item(), b.item(), *losses]


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path):
    whole = run(tmp_path / "whole", 0, 12)
    run(tmp_path / "parts", 0, 3)  # b has no optimizer state yet
    run(tmp_path / "parts", 3, 7)
    assert run(tmp_path / "parts", 7, 12) == whole
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_refuses_the_state_of_another_training(tmp_path: Path):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter])
    save_state(tmp_path / "s", {"a": parameter}, optimizer, [], fingerprint="one")
    with pytest.raises(AdapterError, match="other settings"):
        load_state(tmp_path / "s", {"a": parameter}, optimizer, fingerprint="two")
