"""LoRA Soups learns a number a layer and LoRA by the training loss; joint training starts anew."""

from collections.abc import Callable

import pytest
import torch
from PIL.Image import Image
from torch.nn import functional

from baselines.adapter import AdapterError, LoraAdapter
from baselines.attach import adapter_updates, attached
from baselines.denoiser import Denoiser
from baselines.dreambooth import LoraTraining, train_lora
from baselines.merging_loss import PairTask, draw_batch, encode_concept
from baselines.methods.joint_training import joint_training
from baselines.methods.lora_soups import lora_soups
from baselines.registry import METHODS


@pytest.fixture(scope="module")
def task(tiny_denoiser: Denoiser, random_image: Callable[..., Image]) -> PairTask:
    return PairTask(
        tiny_denoiser,
        [random_image(0), random_image(1)],
        ["a dog", "a puppy"],
        [random_image(2)],
        ["oil style"],
    )


@pytest.fixture(scope="module")
def pair(random_adapter: Callable[..., LoraAdapter]) -> list[LoraAdapter]:
    return [random_adapter(20, rank=3, strength=0.6), random_adapter(21, rank=5, strength=0.6)]


def learnt(merged: LoraAdapter, pair: list[LoraAdapter]) -> torch.Tensor:
    """The two numbers of every layer, ``(layers, 2)``; all columns must agree."""
    rows = []
    for name, delta in merged.deltas.items():
        rank = pair[0].deltas[name].rank
        of_subject = delta.down[:rank] / pair[0].deltas[name].down
        of_style = delta.down[rank:] / pair[1].deltas[name].down
        for ratios in (of_subject, of_style):
            torch.testing.assert_close(ratios, ratios[:1, :1].expand_as(ratios))
        rows.append(torch.stack([of_subject[0, 0], of_style[0, 0]]))
    return torch.stack(rows)


def loss_on(task: PairTask, adapter: LoraAdapter, seed: int, size: int) -> torch.Tensor:
    batch = draw_batch(
        task.denoiser,
        encode_concept(task.denoiser, task.subject_images, task.subject_prompts),
        encode_concept(task.denoiser, task.style_images, task.style_prompts),
        size,
        torch.Generator().manual_seed(seed),
    )
    with torch.no_grad(), attached(task.denoiser.unet, adapter_updates(adapter)):
        answer = task.denoiser.predict(batch.noisy, batch.timesteps, batch.conditioning)
    return functional.mse_loss(answer, batch.target)


def test_soups_lower_the_training_loss_on_draws_they_have_not_seen(
    task: PairTask, pair: list[LoraAdapter]
):
    merged = lora_soups(pair, task, seed=0, steps=20, lr=0.05, batch_size=2)
    before = loss_on(task, METHODS.get("direct_sum")(pair), 99, 8)
    assert loss_on(task, merged, 99, 8) < 0.97 * before


def test_the_target_is_the_noise_that_was_added(task: PairTask):
    encoded = encode_concept(task.denoiser, task.subject_images, task.subject_prompts)
    batch = draw_batch(task.denoiser, encoded, encoded, 2, torch.Generator().manual_seed(0))
    for row in range(4):
        noise = batch.target[row : row + 1]
        time = batch.timesteps[row : row + 1]
        made = [task.denoiser.add_noise(x[None], noise, time) for x in encoded.latents]
        assert any(torch.equal(one, batch.noisy[row : row + 1]) for one in made)


def test_one_step_of_adam_by_its_definition(task: PairTask, pair: list[LoraAdapter]):
    """Adam's first step moves every number by lr."""
    numbers = learnt(lora_soups(pair, task, seed=0, steps=1, lr=0.05, init=0.7), pair)
    assert numbers.shape == (len(pair[0].layers), 2)
    torch.testing.assert_close(
        (numbers - 0.7).abs(), torch.full_like(numbers, 0.05), rtol=1e-3, atol=1e-4
    )


def test_the_seed_decides_and_the_merge_is_the_weighted_sum(
    task: PairTask, pair: list[LoraAdapter]
):
    merged = lora_soups(pair, task, seed=1, steps=2)
    assert lora_soups(pair, task, seed=1, steps=2).digest() == merged.digest()
    assert lora_soups(pair, task, seed=2, steps=2).digest() != merged.digest()
    for (a, b), name in zip(learnt(merged, pair).tolist(), merged.layers, strict=True):
        expected = a * pair[0].deltas[name] + b * pair[1].deltas[name]
        torch.testing.assert_close(merged.deltas[name].dense(), expected.dense())
        assert merged.deltas[name].rank == 8
        assert not merged.deltas[name].down.requires_grad


def test_soups_refuse_what_they_cannot_merge(task: PairTask, pair: list[LoraAdapter]):
    with pytest.raises(AdapterError, match="not 3 adapters"):
        lora_soups([*pair, pair[0]], task, seed=0)
    with pytest.raises(AdapterError, match="lr is 0"):
        lora_soups(pair, task, seed=0, lr=0.0)
    with pytest.raises(AdapterError, match="lower lr"):
        lora_soups(pair, task, seed=0, steps=4, lr=1e30)


def test_joint_training_is_dreambooth_on_both(task: PairTask, pair: list[LoraAdapter]):
    merged = METHODS.get("joint_training")(pair, task=task, steps=2, lr=1e-3, seed=4)
    expected = train_lora(
        task.denoiser,
        [*task.subject_images, *task.style_images],
        ["a dog", "a puppy", "oil style"],
        LoraTraining(rank=5, lr=1e-3, steps=2, seed=4),
    )
    assert merged.digest() == expected.digest()
    one = joint_training(pair, task, seed=4, steps=1, rank=2)
    assert {delta.rank for delta in one.deltas.values()} == {2}
    with pytest.raises(AdapterError, match="joint_training: steps is 0: it must be positive"):
        joint_training(pair, task, seed=0, steps=0)
    with pytest.raises(AdapterError, match="not 1"):
        joint_training(pair[:1], task, seed=0)
