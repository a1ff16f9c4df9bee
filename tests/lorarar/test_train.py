"""Training a hypernetwork lowers the merging loss on its pairs, sees each, and can be killed."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.denoiser import Denoiser
from baselines.formats import load_adapter, save_adapter
from baselines.merging_loss import draw_batch, encode_concept, merging_loss
from baselines.training import generator_for
from lorarar import train
from lorarar.hypernet import HyperNetwork
from lorarar.pairs import TrainingPair
from lorarar.train import HyperTraining, held_out_loss, train_hypernetwork

QUICK = HyperTraining(steps=5, save_every=2)


def mean_loss(denoiser: Denoiser, network: HyperNetwork, pairs: list[TrainingPair]) -> float:
    """Over all pairs, on draws that the training does not make."""
    total = 0.0
    for number, pair in enumerate(pairs):
        adapters = [load_adapter(concept.adapter) for concept in (pair.subject, pair.style)]
        concepts = []
        for concept in (pair.subject, pair.style):
            with Image.open(concept.images[0]) as image:
                concepts.append(encode_concept(denoiser, [image], concept.prompts))
        batch = draw_batch(denoiser, *concepts, 4, torch.Generator().manual_seed(number))
        with torch.no_grad():
            loss = merging_loss(batch, *adapters, network(*adapters), default=0.5)
        total += loss.total.item() / len(pairs)
    return total


def same(first: HyperNetwork, second: HyperNetwork) -> bool:
    ours, other = first.state_dict(), second.state_dict()
    return ours.keys() == other.keys() and all(torch.equal(ours[k], other[k]) for k in ours)


def test_lowers_the_loss_on_its_pairs(tiny_denoiser: Denoiser, pairs: list[TrainingPair]):
    settings = HyperTraining(steps=25, normalize=True, lr=0.01)
    trained = train_hypernetwork(tiny_denoiser, pairs, settings)
    start = HyperNetwork([32, 64], normalize=True).requires_grad_(False)
    assert trained.widths == (32, 64)
    assert trained.kv_weight == 0.5
    assert mean_loss(tiny_denoiser, trained, pairs) < 0.8 * mean_loss(tiny_denoiser, start, pairs)


def test_a_loss_on_other_pairs_is_a_mean_over_them_and_falls(
    tiny_denoiser: Denoiser, pairs: list[TrainingPair]
):
    start = HyperNetwork([32, 64]).requires_grad_(False)
    whole = held_out_loss(tiny_denoiser, start, pairs[:2], draws=2)
    each = [held_out_loss(tiny_denoiser, start, [pair], draws=2) for pair in pairs[:2]]
    assert whole == pytest.approx(sum(each) / 2, rel=1e-6)
    trained = train_hypernetwork(tiny_denoiser, pairs[2:], dataclasses.replace(QUICK, steps=10))
    assert held_out_loss(tiny_denoiser, trained, pairs[:2], draws=2) < whole


def test_a_loss_on_other_pairs_leaves_the_regularizer_out(
    tiny_denoiser: Denoiser, pairs: list[TrainingPair]
):
    """A merge that is its teacher on both halves: the subject twice, all coefficients 1/2."""
    same_twice = TrainingPair(pairs[0].subject, pairs[0].subject)
    network = HyperNetwork([32, 64], kv_weight=0.5).requires_grad_(False)
    network.output.weight.zero_()
    network.output.bias.fill_(0.5)
    assert held_out_loss(tiny_denoiser, network, [same_twice], draws=1) < 1e-9


def test_every_pair_comes_once_a_pass(
    tiny_denoiser: Denoiser, pairs: list[TrainingPair], monkeypatch: pytest.MonkeyPatch
):
    seen = []
    encoded = train._Encoded.get

    def spy(self: train._Encoded, concept: object) -> object:
        seen.append(concept.id)
        return encoded(self, concept)

    monkeypatch.setattr(train._Encoded, "get", spy)
    train_hypernetwork(tiny_denoiser, pairs, dataclasses.replace(QUICK, steps=4, pairs_per_step=2))
    drawn = list(zip(seen[::2], seen[1::2], strict=True))
    expected = sorted((pair.subject.id, pair.style.id) for pair in pairs)
    assert sorted(drawn[:4]) == expected
    assert sorted(drawn[4:]) == expected


def test_the_pairs_of_a_step_are_averaged(
    tiny_denoiser: Denoiser, pairs: list[TrainingPair], monkeypatch: pytest.MonkeyPatch
):
    """The same pair and draws twice a step is the same training as once a step."""
    monkeypatch.setattr(
        train, "generator_for", lambda seed, _label, step, _place: generator_for(seed, step)
    )
    settings = HyperTraining(steps=3, weight_decay=0.0)
    results = []
    for count in (1, 2):
        losses: list[float] = []
        network = train_hypernetwork(
            tiny_denoiser,
            pairs[:1],
            dataclasses.replace(settings, pairs_per_step=count),
            progress=lambda _step, loss, losses=losses: losses.append(loss),
        )
        results.append((network, losses))
    (once, once_losses), (twice, twice_losses) = results
    assert once_losses == twice_losses
    assert same(once, twice)


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_killed_training_goes_on_with_the_same_result(
    tiny_denoiser: Denoiser, pairs: list[TrainingPair], tmp_path: Path, stop: int
):
    whole = train_hypernetwork(tiny_denoiser, pairs, QUICK)

    def kill(step: int, _loss: float) -> None:
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_hypernetwork(
            tiny_denoiser, pairs, QUICK, checkpoint=tmp_path / "state", progress=kill
        )
    steps: list[int] = []
    resumed = train_hypernetwork(
        tiny_denoiser,
        pairs,
        dataclasses.replace(QUICK, adapters_in_memory=2),
        checkpoint=tmp_path / "state",
        progress=lambda step, _loss: steps.append(step),
    )
    assert same(resumed, whole)
    assert steps == list(range({1: 1, 2: 3, 5: 6}[stop], 6))


def test_the_seed_decides(tiny_denoiser: Denoiser, pairs: list[TrainingPair]):
    settings = dataclasses.replace(QUICK, steps=1)
    first = train_hypernetwork(tiny_denoiser, pairs, settings)
    assert same(first, train_hypernetwork(tiny_denoiser, pairs, settings))
    other = train_hypernetwork(tiny_denoiser, pairs, dataclasses.replace(settings, seed=1))
    assert not same(first, other)


def test_refuses_the_state_of_other_pairs(
    tiny_denoiser: Denoiser, pairs: list[TrainingPair], tmp_path: Path
):
    settings = dataclasses.replace(QUICK, steps=1)
    train_hypernetwork(tiny_denoiser, pairs, settings, checkpoint=tmp_path / "state")
    with pytest.raises(AdapterError, match="other settings"):
        train_hypernetwork(tiny_denoiser, pairs[:2], settings, checkpoint=tmp_path / "state")


def test_refuses_a_misfit_among_the_adapters_before_the_first_step(
    tiny_denoiser: Denoiser, pairs: list[TrainingPair], tmp_path: Path
):
    odd = tmp_path / "odd.safetensors"
    save_adapter(LoraAdapter({"mid.to_q": LowRankDelta(torch.ones(4, 1), torch.ones(1, 4))}), odd)
    style = dataclasses.replace(pairs[0].style, adapter=odd)
    steps: list[int] = []
    with pytest.raises(AdapterError, match=r"odd\.safetensors"):
        train_hypernetwork(
            tiny_denoiser,
            [*pairs, TrainingPair(pairs[0].subject, style)],
            QUICK,
            progress=lambda step, _loss: steps.append(step),
        )
    assert not steps


def test_refuses_projections_that_no_layer_has(tiny_denoiser: Denoiser, pairs: list[TrainingPair]):
    settings = dataclasses.replace(QUICK, projections=("to_x",))
    with pytest.raises(AdapterError, match="no layer ends with to_x"):
        train_hypernetwork(tiny_denoiser, pairs, settings)


def test_refuses_no_pairs(tiny_denoiser: Denoiser):
    with pytest.raises(ValueError, match="no pairs"):
        train_hypernetwork(tiny_denoiser, [], QUICK)


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("lr", 0.0), ("adapters_in_memory", 1), ("batch_size", 0)]
)
def test_refuses_settings_out_of_range(field: str, value: float):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        HyperTraining(**{field: value})
