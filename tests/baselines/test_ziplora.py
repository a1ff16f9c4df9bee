"""ZipLoRA lowers the merging loss, repeatably, and gives a normal adapter."""

from collections.abc import Callable

import pytest
import torch
from PIL.Image import Image

from baselines.adapter import AdapterError, LoraAdapter
from baselines.denoiser import Denoiser
from baselines.merging_loss import (
    PairTask,
    draw_batch,
    encode_concept,
    merge_with_coefficients,
    merging_loss,
)
from baselines.methods.ziplora import ziplora
from baselines.registry import METHODS


@pytest.fixture(scope="module")
def task(tiny_denoiser: Denoiser, random_image: Callable[..., Image]) -> PairTask:
    return PairTask(
        tiny_denoiser,
        [random_image(0), random_image(1)],
        ["a dog", "a dog"],
        [random_image(2)],
        ["oil style"],
    )


@pytest.fixture(scope="module")
def pair(random_adapter: Callable[..., LoraAdapter]) -> list[LoraAdapter]:
    return [random_adapter(20, rank=3, strength=0.6), random_adapter(21, rank=5, strength=0.6)]


def recovered(
    merged: LoraAdapter, pair: list[LoraAdapter]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The coefficients that a merge was made with: what its down factor has over the adapters'."""
    coefficients = {}
    for name, delta in merged.deltas.items():
        rank = pair[0].deltas[name].rank
        coefficients[name] = (
            delta.down[0] / pair[0].deltas[name].down[0],
            delta.down[rank] / pair[1].deltas[name].down[0],
        )
    return coefficients


def test_lowers_the_loss_on_draws_it_has_not_seen(task: PairTask, pair: list[LoraAdapter]):
    merged = ziplora(pair, task, seed=0, steps=30, lr=0.03, batch_size=2)
    batch = draw_batch(
        task.denoiser,
        encode_concept(task.denoiser, task.subject_images, task.subject_prompts),
        encode_concept(task.denoiser, task.style_images, task.style_prompts),
        8,
        torch.Generator().manual_seed(99),
    )
    ones = {
        name: (torch.ones(delta.shape[1]), torch.ones(delta.shape[1]))
        for name, delta in merged.deltas.items()
    }
    with torch.no_grad():
        before = merging_loss(batch, *pair, ones)
        after = merging_loss(batch, *pair, recovered(merged, pair))
    assert after.subject + after.style < 0.8 * (before.subject + before.style)
    assert after.regularizer < before.regularizer


def test_one_step_of_adam_by_its_definition(task: PairTask, pair: list[LoraAdapter]):
    """Adam's first step moves every coefficient by lr, against its gradient's sign."""
    merged = ziplora(pair, task, seed=0, steps=1, lr=0.05, weight_decay=0.0)
    moves = torch.cat([m - 1 for both in recovered(merged, pair).values() for m in both])
    # a few gradients are so small that Adam's epsilon shows
    assert (moves.abs() - 0.05).abs().median() < 1e-4
    assert moves.abs().max() < 0.0501


def test_starts_at_init(task: PairTask, pair: list[LoraAdapter]):
    merged = ziplora(pair, task, seed=0, steps=1, lr=1e-12, weight_decay=0.0, init=0.7)
    expected = merge_with_coefficients(*pair, {}, default=0.7)
    for name, delta in merged.deltas.items():
        torch.testing.assert_close(delta.dense(), expected.deltas[name].dense())
        assert delta.rank == 8
        assert not delta.down.requires_grad


def test_the_seed_decides(task: PairTask, pair: list[LoraAdapter]):
    def down(seed: int) -> torch.Tensor:
        merged = ziplora(pair, task, seed=seed, steps=2)
        return torch.cat([delta.down.flatten() for delta in merged.deltas.values()])

    assert torch.equal(down(1), down(1))
    assert not torch.equal(down(1), down(2))


def test_is_registered_with_its_options(task: PairTask, pair: list[LoraAdapter]):
    method = METHODS.get("ziplora")
    assert method.kind == "fit"
    assert method.resolve({"steps": "7", "regularizer": "abs_dot"}) == {
        "steps": 7,
        "lr": 0.01,
        "weight_decay": 1e-4,
        "lambda_": 0.01,
        "batch_size": 1,
        "init": 1.0,
        "regularizer": "abs_dot",
        "gradient_checkpointing": False,
    }
    merged = method(pair, seed=0, task=task, steps=1)
    assert list(merged.deltas) == list(pair[0].deltas)


def test_refuses_what_it_cannot_merge(task: PairTask, pair: list[LoraAdapter]):
    with pytest.raises(AdapterError, match="not 3 adapters"):
        ziplora([*pair, pair[0]], task, seed=0)
    with pytest.raises(AdapterError, match="steps is 0"):
        ziplora(pair, task, seed=0, steps=0)
    with pytest.raises(AdapterError, match="lower lr"):
        ziplora(pair, task, seed=0, steps=4, lr=1e30)
