"""K-LoRA, EST-LoRA, LoRA-Switch and LoRA-Composite by hand and by their equations."""

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from baselines import METHODS, AdapterError, LoraAdapter, LowRankDelta

SUBJECT, STYLE = (1.0, 0.0), (0.0, 1.0)


def diagonal(*values: float) -> LowRankDelta:
    """The update diag(values), of that rank."""
    return LowRankDelta(torch.diag(torch.tensor(values)), torch.eye(len(values)))


def row(*values: float) -> LowRankDelta:
    """An update of rank 1: a first row and nothing else."""
    up = torch.zeros(len(values), 1)
    up[0] = 1.0
    return LowRankDelta(up, torch.tensor([values]))


def spoken(name: str, subject: LowRankDelta, style: LowRankDelta, total: int, **options: object):
    """Who speaks in a network of one layer, step by step."""
    pair = [LoraAdapter({"a": subject}), LoraAdapter({"a": style})]
    policy = METHODS.get(name).policy(pair, **options)
    letters = {SUBJECT: "c", STYLE: "s"}
    return "".join(letters[policy.weights("a", step, total)] for step in range(total))


def test_k_lora_by_hand():
    """k = 1: the largest entries 3 and 2; the subject speaks while s(t) = 1.5 t / 4 + .5 <= 1.5."""
    subject, style = row(3.0, 1.0, 1.0), row(2.0, -2.0, 2.0)
    assert spoken("k_lora", subject, style, 4, balance=False) == "cccs"  # s: .5 .875 1.25 1.625
    # gamma = 5 / 6: scale .417 .729 1.042 1.354
    assert spoken("k_lora", subject, style, 4) == "cccc"
    assert spoken("k_lora", subject, style, 4, alpha=4.0) == "ccss"  # .417 1.25 2.08 2.92


def test_k_lora_sums_as_many_entries_as_the_product_of_the_ranks():
    """Ranks 2 and 2: four entries each, 5 + 1 against 2 + 2 + 2 + 2."""
    subject = diagonal(5.0, 1.0)
    style = LowRankDelta(2.0 * torch.eye(2), torch.ones(2, 2) - torch.tensor([[0.0, 2.0], [0, 0]]))
    assert style.dense().abs().sum() == 8.0
    options = {"alpha": 1.0, "beta": 0.5, "balance": False}
    # 6 >= 8 s while s <= .75: .5 .6 .7 .8
    assert spoken("k_lora", subject, style, 10, **options) == "ccc" + 7 * "s"


def test_est_lora_by_hand():
    """Energies 11 and 12: the subject speaks while s(t) <= 11 / 12."""
    subject, style = row(3.0, 1.0, 1.0), row(2.0, -2.0, 2.0)
    assert spoken("est_lora", subject, style, 4, balance=False) == "ccss"
    # balanced, one layer: energies are equal, 1 >= s
    assert spoken("est_lora", subject, style, 4) == "ccss"
    assert spoken("est_lora", subject, style, 4, beta=0.0, alpha=1.0) == "cccc"


@pytest.mark.parametrize("name", ["k_lora", "est_lora"])
def test_choices_by_their_equation(name: str, random_adapter: Callable[..., LoraAdapter]):
    subject = random_adapter(1, rank=2, dtype=torch.float64)
    style = random_adapter(2, rank=3, strength=0.2, dtype=torch.float64)
    policy = METHODS.get(name).policy([subject, style])

    def importance(adapter: LoraAdapter, layer: str) -> float:
        update = adapter.deltas[layer].dense()
        if name == "est_lora":
            return float(torch.linalg.matrix_norm(update) ** 2)
        return sum(sorted(update.abs().flatten().tolist())[-6:])

    def total(adapter: LoraAdapter) -> float:
        power = 2 if name == "est_lora" else 1
        return sum(float((d.dense().abs() ** power).sum()) for d in adapter.deltas.values())

    gamma = total(subject) / total(style)
    chosen = set()
    for layer in subject.layers:
        for step in range(8):
            s = gamma * (1.5 * step / 8 + 0.5)
            wins = importance(subject, layer) >= s * importance(style, layer)
            assert policy.weights(layer, step, 8) == (SUBJECT if wins else STYLE)
            chosen.add((step, wins))
    assert len(chosen) > 8  # layers do not all turn at once


@pytest.mark.parametrize("name", ["k_lora", "est_lora"])
def test_balance_forgets_how_strong_an_adapter_is(
    name: str, random_adapter: Callable[..., LoraAdapter]
):
    subject, style = random_adapter(1), random_adapter(2)
    louder = LoraAdapter({layer: 8.0 * d for layer, d in style.deltas.items()})
    one = METHODS.get(name).policy([subject, style])
    other = METHODS.get(name).policy([subject, louder])
    for layer in subject.layers:
        assert [one.weights(layer, t, 5) for t in range(5)] == [
            other.weights(layer, t, 5) for t in range(5)
        ]
    unbalanced = METHODS.get(name).policy([subject, louder], balance=False)
    assert {unbalanced.weights(layer, 0, 5) for layer in subject.layers} == {STYLE}


@pytest.mark.parametrize("name", ["k_lora", "est_lora"])
def test_a_zero_style_leaves_the_subject_alone(name: str):
    assert spoken(name, row(1.0, 2.0), 0.0 * row(1.0, 1.0), 6) == "cccccc"
    assert spoken(name, 0.0 * row(1.0, 2.0), row(1.0, 1.0), 6) == "ssssss"


def test_switch_takes_turns():
    pair = row(1.0), row(1.0)
    assert spoken("switch", *pair, 12) == "cccccssssscc"
    assert spoken("switch", *pair, 6, tau=1) == "cscscs"
    assert spoken("switch", *pair, 6, tau=2, first="style") == "ssccss"
    adapters = [LoraAdapter({"a": delta}) for delta in pair]
    policy = METHODS.get("switch").policy(adapters, w_subject=0.8, w_style=0.5, tau=1)
    assert [policy.weights("a", step, 2) for step in range(2)] == [(0.8, 0.0), (0.0, 0.5)]


def test_composite_gives_each_its_own_pass():
    policy = METHODS.get("composite").policy(
        [LoraAdapter({"a": row(1.0)}), LoraAdapter({"a": row(1.0)})], w_style=0.8
    )
    assert [policy.weights("a", 3, 9, number=number) for number in range(2)] == [
        (1.0, 0.0),
        (0.0, 0.8),
    ]
    assert len(policy.passes) == 2


def test_composite_is_the_mean_of_each_ones_guidance():
    """Guidance of mean answers is the mean of guided answers, as the docstring says."""
    generator = torch.Generator().manual_seed(0)
    plain, prompted = torch.randn(2, 2, 5, generator=generator, dtype=torch.float64)
    each = [u + 4.0 * (c - u) for u, c in zip(plain, prompted, strict=True)]
    mean = plain.mean(0) + 4.0 * (prompted.mean(0) - plain.mean(0))
    assert_close(mean, (each[0] + each[1]) / 2)


@pytest.mark.parametrize("name", ["k_lora", "est_lora", "switch", "composite"])
def test_needs_a_pair(name: str):
    with pytest.raises(AdapterError, match=f"{name} merges a subject and a style, not 1"):
        METHODS.get(name).policy([LoraAdapter({"a": row(1.0)})])


def test_refuses_other_layers_and_turns():
    pair = [LoraAdapter({"a": row(1.0)}), LoraAdapter({"b": row(1.0)})]
    for name in ("k_lora", "est_lora"):
        with pytest.raises(AdapterError, match="same layers"):
            METHODS.get(name).policy(pair)
    with pytest.raises(AdapterError, match="tau is 0"):
        METHODS.get("switch").policy(pair, tau=0)
