"""Policies: what they weigh, how the UNet answers with them, and what is refused."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from baselines import (
    METHODS,
    AdapterError,
    LoraAdapter,
    LowRankDelta,
    PluginError,
    Policy,
    check_policy,
    policy_method,
)
from baselines.denoiser import Denoiser
from baselines.policy import speaking

CONDITIONS = {"ones": (1.0, 1.0), "subject": (1.0, 0.0), "mixed": (0.25, -2.0), "none": (0.0, 0.0)}


@pytest.fixture(autouse=True)
def _restored_methods() -> Iterator[None]:
    yield
    for name in METHODS.names():
        if name.startswith("tried"):
            METHODS.unregister(name)


class TwoLayers(nn.Module):
    """y = second(first(x)), answered as diffusers' UNets answer: the first of a tuple."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(3, 4, bias=False)
        self.second = nn.Linear(4, 2, bias=False)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, generator=generator)
        self.double()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.second(self.first(x)),)


def delta(seed: int, d_out: int, d_in: int, rank: int) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    return LowRankDelta(
        torch.randn(d_out, rank, generator=generator, dtype=torch.float64),
        torch.randn(rank, d_in, generator=generator, dtype=torch.float64),
    )


SUBJECT = LoraAdapter({"first": delta(1, 4, 3, 2), "second": delta(2, 2, 4, 1)}, "cat")
STYLE = LoraAdapter({"first": delta(3, 4, 3, 1), "second": delta(4, 2, 4, 2)}, "ink")
X = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)


def by_definition(network: TwoLayers, weights: dict[str, tuple[float, float]]) -> torch.Tensor:
    """The answer with both updates built and added to the weights."""
    matrix = {
        name: getattr(network, name).weight
        + weights[name][0] * SUBJECT.deltas[name].dense()
        + weights[name][1] * STYLE.deltas[name].dense()
        for name in ("first", "second")
    }
    return X @ matrix["first"].T @ matrix["second"].T


@pytest.mark.parametrize("weights", CONDITIONS.values(), ids=CONDITIONS.keys())
def test_every_layer_adds_the_weighted_updates(weights: tuple[float, float]):
    network = TwoLayers()
    policy = Policy((SUBJECT, STYLE), (lambda layer, step, total: weights,))
    with speaking(network, policy, lambda: (0, 1)):
        answer = network(X)[0]
    assert_close(answer, by_definition(network, {"first": weights, "second": weights}))


def test_weights_follow_layer_and_clock():
    network = TwoLayers()
    asked = []

    def weights(layer: str, step: int, total: int) -> tuple[float, float]:
        asked.append((layer, step, total))
        return (1.0, 0.0) if layer == "first" else (0.0, step / total)

    now = (0, 4)
    with speaking(network, Policy((SUBJECT, STYLE), (weights,)), lambda: now):
        for step in range(4):
            now = (step, 4)
            expected = by_definition(network, {"first": (1.0, 0.0), "second": (0.0, step / 4)})
            assert_close(network(X)[0], expected)
    assert asked == [(layer, step, 4) for step in range(4) for layer in ("first", "second")]


def test_several_passes_give_their_mean():
    network = TwoLayers()
    passes = (lambda *at: (1.0, 0.0), lambda *at: (0.0, 1.0), lambda *at: (0.5, 2.0))
    with speaking(network, Policy((SUBJECT, STYLE), passes), lambda: (0, 1)):
        [answer] = network(X)
    alone = [by_definition(network, dict.fromkeys(("first", "second"), p())) for p in passes]
    assert_close(answer, (alone[0] + alone[1] + alone[2]) / 3)


def test_the_network_is_as_before_also_after_an_error():
    network = TwoLayers()
    before = network(X)[0]

    def broken(layer: str, step: int, total: int) -> tuple[float, float]:
        raise KeyboardInterrupt

    policy = Policy((SUBJECT, STYLE), (broken, broken))
    with pytest.raises(KeyboardInterrupt), speaking(network, policy, lambda: (0, 1)):
        network(X)
    assert torch.equal(network(X)[0], before)
    assert "forward" not in vars(network)
    assert not network.first._forward_hooks


def test_a_unets_answer_keeps_its_kind(
    tiny_denoiser: Denoiser, random_adapter: Callable[..., LoraAdapter]
):
    pair = (random_adapter(1), random_adapter(2))
    conditioning = tiny_denoiser.encode_prompts(["a cat"])
    noisy, at = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(7)
    noisy = noisy[:, : tiny_denoiser.unet.config.in_channels]

    def answer(*passes: tuple[float, float]) -> torch.Tensor:
        policy = Policy(pair, tuple(lambda *a, w=w: w for w in passes))
        with torch.no_grad(), speaking(tiny_denoiser.unet, policy, lambda: (0, 1)):
            return tiny_denoiser.predict(noisy, at, conditioning)  # it reads `.sample`

    both = answer((1.0, 0.0), (0.0, 1.0))
    assert_close(both, (answer((1.0, 0.0)) + answer((0.0, 1.0))) / 2)
    assert not torch.allclose(both, answer((0.5, 0.5)), atol=1e-4)


def test_layers_that_one_adapter_lacks():
    network = TwoLayers()
    part = LoraAdapter({"second": STYLE.deltas["second"]})
    policy = Policy((SUBJECT, part), (lambda layer, step, total: (1.0, 1.0),))
    with speaking(network, policy, lambda: (0, 1)):
        answer = network(X)[0]
    assert_close(answer, by_definition(network, {"first": (1.0, 0.0), "second": (1.0, 1.0)}))
    assert policy.layers == ("first", "second")
    assert policy.parameters() == SUBJECT.parameters() + part.parameters()


def test_foreign_adapters_are_refused():
    for layer, update, words in (
        ("third", delta(0, 4, 3, 1), "no layer 'third'"),
        ("first", delta(0, 3, 3, 1), "first' is 4 x 3 but its update is 3 x 3"),
    ):
        policy = Policy((SUBJECT, LoraAdapter({layer: update})), (lambda *at: (1.0, 1.0),))
        with (
            pytest.raises(AdapterError, match=words),
            speaking(TwoLayers(), policy, lambda: (0, 1)),
        ):
            pass


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((1.0,), r"\(1.0,\).* a finite number for each of the 2"),
        ((1.0, 2.0, 3.0), "each of the 2 adapters"),
        ((1.0, float("nan")), "finite"),
        (1.0, "gave 1.0 for layer 'first' at step 3 of 9, not a weight for each adapter"),
        (None, "gave None"),
        (("a", "b"), "not a weight"),
    ],
)
def test_wrong_weights_are_refused(given: Any, words: str):
    policy = Policy((SUBJECT, STYLE), (lambda layer, step, total: given,), "mine")
    with pytest.raises(PluginError, match=words) as caught:
        policy.weights("first", 3, 9)
    assert "'mine'" in str(caught.value)


def test_a_method_gives_a_policy_and_no_merge():
    @policy_method("tried", paper="https://example.org")
    def tried(
        adapters: Sequence[LoraAdapter], *, seed: int, w: float = 2.0
    ) -> Callable[[str, int, int], tuple[float, float]]:
        """Weigh."""
        assert [a.name for a in adapters] == ["cat", "ink"]
        return lambda layer, step, total: (w, float(seed))

    method = METHODS.get("tried")
    assert (method.kind, list(method.parameters)) == ("policy", ["w"])
    policy = method.policy([SUBJECT, STYLE], seed=5, w="3")
    assert policy.weights("first", 0, 1) == (3.0, 5.0)
    assert policy.name == "tried"
    half = method.policy([SUBJECT.to(dtype=torch.float16), STYLE])
    assert half.adapters[0].deltas["first"].up.dtype == torch.float32
    with pytest.raises(PluginError, match="'tried' weighs the adapters anew"):
        method([SUBJECT, STYLE])
    with pytest.raises(PluginError, match="no option 'v'"):
        method.policy([SUBJECT, STYLE], v=1)
    with pytest.raises(PluginError, match="given no adapter"):
        method.policy([])
    with pytest.raises(PluginError, match="'average' merges adapters: it is no policy"):
        METHODS.get("average").policy([SUBJECT, STYLE])


@pytest.mark.parametrize("made", [[], 3, [3]])
def test_a_method_that_gives_something_else_is_refused(made: Any):
    policy_method("tried")(lambda_returning(made))
    with pytest.raises(PluginError, match="'tried' must give weights"):
        METHODS.get("tried").policy([SUBJECT, STYLE])


def lambda_returning(made: Any) -> Callable[..., Any]:
    def tried(adapters: Sequence[LoraAdapter]) -> Any:
        return made

    return tried


# --- the battery


def counts_calls(adapters: Sequence[LoraAdapter]) -> Any:
    calls = []

    def weights(layer: str, step: int, total: int) -> tuple[float, float]:
        calls.append(layer)
        return (len(calls), 0.0)

    return weights


tries = 0


def counts_tries(adapters: Sequence[LoraAdapter]) -> Any:
    global tries
    tries += 1
    kept = tries
    return lambda layer, step, total: (kept, 0.0)


def changes_adapters(adapters: Sequence[LoraAdapter]) -> Any:
    for update in adapters[0].deltas.values():
        update.up.zero_()
    return lambda layer, step, total: (1.0, 0.0)


def only_late(adapters: Sequence[LoraAdapter]) -> Any:
    return lambda layer, step, total: (1.0, float("inf") if step == 6 else 0.0)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (counts_calls, "in another order"),
        (counts_tries, "for the same seed"),
        (changes_adapters, "changes the adapters"),
        (only_late, "at step 6 of 7"),
    ],
)
def test_the_battery_names_what_does_not_hold(function: Callable[..., Any], words: str):
    policy_method("tried")(function)
    with pytest.raises(PluginError, match=words):
        check_policy(METHODS.get("tried"))


def test_the_battery_passes_a_seeded_policy_on_given_adapters():
    @policy_method("tried")
    def tried(adapters: Sequence[LoraAdapter], *, seed: int) -> Any:
        first = torch.rand(1, generator=torch.Generator().manual_seed(seed)).item()
        return lambda layer, step, total: (first, step / total)

    check_policy(METHODS.get("tried"), adapters=[SUBJECT, STYLE], seed=3)
