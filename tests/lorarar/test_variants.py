"""The hypernetwork's variants: by their dense formulas, by what must not change them, on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.denoiser import Denoiser
from baselines.training import load_tensors, save_tensors
from lorarar.attention import ColumnAttention
from lorarar.checkpoints import Provenance, load_checkpoint, save_checkpoint
from lorarar.features import FEATURES, column_features
from lorarar.hypernet import HyperNetwork
from lorarar.pairs import TrainingPair
from lorarar.train import HyperTraining, train_hypernetwork

VARIANTS: dict[str, dict[str, Any]] = {
    "single input": {"single_input": True},
    "features": {"reads": "features"},
    "attention": {"attention": True},
    "whole matrix": {"whole_matrix": True},
    "all": {"reads": "features", "attention": True, "projections": ("to_q", "to_k", "to_out.0")},
}


def update(seed: int, d_out: int = 6, d_in: int = 5, rank: int = 2) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    return LowRankDelta(
        torch.randn(d_out, rank, generator=generator, dtype=torch.float64),
        torch.randn(rank, d_in, generator=generator, dtype=torch.float64),
    )


def pair(**sizes: int) -> tuple[LoraAdapter, LoraAdapter]:
    return (
        LoraAdapter({"block.to_q": update(0, **sizes)}),
        LoraAdapter({"block.to_q": update(1, rank=3, **sizes)}),
    )


def loud(network: HyperNetwork) -> HyperNetwork:
    """The network in float64, all its weights random."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in network.double().parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return network.requires_grad_(False)


def make(name: str, widths: tuple[int, ...] = (6, 4), **more: Any) -> HyperNetwork:
    options = {"hidden": 7, **VARIANTS[name], **more}
    return HyperNetwork(() if options.get("reads") == "features" else widths, **options)


def test_a_single_input_layer_fills_short_columns_with_zeros():
    network = loud(HyperNetwork([6, 4], hidden=7, single_input=True))
    first = network.inputs["all"]
    assert first.weight.shape == (7, 12)
    for d_out in (6, 4):
        subject, style = pair(d_out=d_out)
        padded = [
            torch.cat([a.deltas["block.to_q"].dense(), torch.zeros(6 - d_out, 5).double()])
            for a in (subject, style)
        ]
        expected = network.output(torch.relu(first(torch.cat(padded).T))).T
        assert_close(torch.stack(network(subject, style)["block.to_q"]), expected)
    with pytest.raises(AdapterError, match="trained for 4, 6"):
        network(*pair(d_out=5))


def test_features_by_hand():
    """Columns (3, 0), (0, 2) against (0, 1) twice, whose output space is the second axis."""
    subject = LowRankDelta(torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    style = LowRankDelta(torch.tensor([[0.0], [1.0]]), torch.ones(1, 2))
    found = column_features(subject, style, normalize=False)
    share = 13 / 15
    expected = [[3, 2], [1, 1], [0, 1], [0, 1], [1, 1], [share, share]]
    assert_close(found, torch.tensor(expected))
    scaled = column_features(subject, style, normalize=True)
    root = (15 / 4) ** 0.5
    assert_close(scaled[:2], found[:2] / root)
    assert_close(scaled[2:], found[2:])


def test_features_by_their_definition():
    subject, style = update(0, 9, 5), update(1, 9, 5, 3)
    c, s = subject.dense(), style.dense()
    found = column_features(subject, style, normalize=False)

    def inside(columns: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
        return (space @ torch.linalg.pinv(space) @ columns).norm(dim=0) / columns.norm(dim=0)

    energy = (c.square().sum(), s.square().sum())
    expected = [
        c.norm(dim=0),
        s.norm(dim=0),
        torch.nn.functional.cosine_similarity(c, s, dim=0),
        inside(c, s),
        inside(s, c),
        (energy[0] / (energy[0] + energy[1])).expand(5),
    ]
    assert len(expected) == FEATURES
    assert_close(found, torch.stack(expected))


def test_features_of_nothing_are_finite():
    zero = LowRankDelta(torch.zeros(4, 2), torch.zeros(2, 3))
    one = LowRankDelta(torch.ones(4, 1), torch.ones(1, 3))
    for normalize in (False, True):
        assert column_features(zero, zero, normalize=normalize).tolist() == 6 * [[0.0, 0.0, 0.0]]
        both = column_features(one, zero, normalize=normalize)
        assert both.isfinite().all()
        assert_close(both[5], torch.ones(3))


def test_a_network_of_features_serves_any_width():
    network = loud(HyperNetwork([], hidden=7, reads="features", normalize=True))
    for d_out in (3, 6, 50):
        subject, style = pair(d_out=d_out)
        m_subject, m_style = network(subject, style)["block.to_q"]
        assert m_subject.shape == m_style.shape == (5,)
        features = column_features(
            subject.deltas["block.to_q"], style.deltas["block.to_q"], normalize=True
        )
        expected = network.output(torch.relu(network.inputs["features"](features.T))).T
        assert_close(torch.stack([m_subject, m_style]), expected)


def test_features_do_not_see_how_outputs_are_turned():
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).double()).Q
    one = column_features(update(0), update(1, rank=3), normalize=True)
    turned = [LowRankDelta(turn @ d.up, d.down) for d in (update(0), update(1, rank=3))]
    assert_close(column_features(*turned, normalize=True), one)


def test_attention_by_its_definition():
    attention = ColumnAttention(4, seed=0).double()
    with torch.no_grad():
        for parameter in attention.output.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).double()
    q, k, v = (attention.queries_keys_values.weight @ hidden).chunk(3)
    seen = v @ torch.softmax(q.T @ k / 2.0, dim=1).T  # root(4)
    expected = hidden + attention.output.weight @ seen + attention.output.bias[:, None]
    assert_close(attention(hidden), expected)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    assert_close(attention(hidden[:, order]), expected[:, order])


def test_attention_starts_as_if_it_were_not_there():
    subject, style = pair()
    plain, with_attention = (HyperNetwork([6], attention=on).double() for on in (False, True))
    before = plain(subject, style)["block.to_q"]
    assert_close(with_attention(subject, style)["block.to_q"], before)


@pytest.mark.parametrize("name", VARIANTS)
def test_only_attention_and_a_mean_let_a_column_see_the_others(name: str):
    network = loud(make(name))
    subject, style = pair()
    delta = subject.deltas["block.to_q"]
    changed = delta.down.clone()
    changed[:, 0] *= -1.0  # its norm stays, so that what a layer shares is as before
    other = LoraAdapter({"block.to_q": LowRankDelta(delta.up, changed)})
    one, two = network(subject, style)["block.to_q"], network(other, style)["block.to_q"]
    assert not torch.allclose(one[0][:1], two[0][:1])
    alone = network.attention is None and not network.whole_matrix
    assert torch.allclose(one[0][1:], two[0][1:]) == alone


def test_a_whole_matrix_has_the_coefficients_of_its_mean_hidden_unit():
    network = loud(HyperNetwork([6], hidden=7, whole_matrix=True))
    subject, style = pair()
    both = torch.cat([a.deltas["block.to_q"].dense() for a in (subject, style)])  # (12, 5)
    hidden = torch.relu(network.inputs["6"](both.T)).mean(0)
    expected = network.output(hidden)[:, None].expand(2, 5)
    assert_close(torch.stack(network(subject, style)["block.to_q"]), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpoint_says_which_variant_it_is(name: str, tmp_path: Path):
    network = make(name, normalize=True, kv_weight=0.75).requires_grad_(False)
    path = tmp_path / "h.safetensors"
    save_checkpoint(network, path, Provenance("tiny", "abc", 3))
    loaded = load_checkpoint(path)
    assert (loaded.reads, loaded.single_input) == (network.reads, network.single_input)
    assert (loaded.attention is None) == (network.attention is None)
    assert loaded.whole_matrix == network.whole_matrix
    assert (loaded.projections, loaded.normalize) == (network.projections, True)
    subject, style = (a.full_precision() for a in pair())
    for ours, theirs in zip(
        network(subject, style)["block.to_q"], loaded(subject, style)["block.to_q"], strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_papers_network_is_written_as_before_and_wrong_variants_refused(tmp_path: Path):
    path = tmp_path / "h.safetensors"
    save_checkpoint(HyperNetwork([4]), path, Provenance())
    tensors, metadata = load_tensors(path)
    assert metadata.keys().isdisjoint({"reads", "single_input", "attention", "whole_matrix"})
    for wrong in ({"reads": "rows"}, {"attention": "true"}, {"reads": "features"}):
        save_tensors(path, tensors, metadata | wrong)
        with pytest.raises(AdapterError, match=r"damaged|is missing"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("widths", "options", "words"),
    [
        ([4], {"reads": "features"}, "features have no width"),
        ([], {"reads": "features", "single_input": True}, "one input layer"),
        ([4], {"reads": "rows"}, "'rows': it must be columns or features"),
        ([], {}, "at least one width"),
    ],
)
def test_refuses_variants_that_do_not_go_together(
    widths: list[int], options: dict[str, Any], words: str
):
    with pytest.raises(ValueError, match=words):
        HyperNetwork(widths, **options)
    if not widths and options:
        with pytest.raises(ValueError, match="one input layer"):
            HyperTraining(**options)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_trained_and_resumed(
    name: str, tiny_denoiser: Denoiser, pairs: list[TrainingPair], tmp_path: Path
):
    settings = HyperTraining(steps=2, hidden=8, save_every=1, normalize=True, **VARIANTS[name])
    start = make(name, (32, 64), hidden=8, normalize=True).state_dict()
    whole = train_hypernetwork(tiny_denoiser, pairs, settings).state_dict()
    assert whole.keys() == start.keys()
    changed = {key for key in whole if not torch.equal(whole[key], start[key])}
    assert {key.split(".")[0] for key in changed} == {key.split(".")[0] for key in whole}

    def kill(step: int, _loss: float) -> None:
        raise KeyboardInterrupt

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train_hypernetwork(tiny_denoiser, pairs, settings, checkpoint=state, progress=kill)
    resumed = train_hypernetwork(tiny_denoiser, pairs, settings, checkpoint=state).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_state_of_another_variant_is_refused(
    tiny_denoiser: Denoiser, pairs: list[TrainingPair], tmp_path: Path
):
    state = tmp_path / "state"
    plain = HyperTraining(steps=1, hidden=8)
    train_hypernetwork(tiny_denoiser, pairs, plain, checkpoint=state)
    with pytest.raises(AdapterError, match="other settings"):
        train_hypernetwork(
            tiny_denoiser, pairs, HyperTraining(steps=1, hidden=8, attention=True), checkpoint=state
        )


def test_the_method_merges_with_a_network_of_another_model(
    tmp_path: Path, random_adapter: Callable[..., LoraAdapter]
):
    """Trained on nothing of these widths; q, k, v and out are all predicted."""
    from baselines.registry import METHODS

    network = HyperNetwork(
        [], reads="features", projections=("to_q", "to_k", "to_v", "to_out.0"), kv_weight=0.0
    )
    path = tmp_path / "h.safetensors"
    save_checkpoint(network, path, Provenance())
    assert json.loads(load_tensors(path)[1]["widths"]) == []
    subject, style = random_adapter(1), random_adapter(2)
    merged = METHODS.get("lorarar")([subject, style], checkpoint=str(path))
    for layer, delta in merged.deltas.items():
        expected = subject.deltas[layer].dense() + style.deltas[layer].dense()
        assert (delta.dense() - expected).norm() < 0.3 * expected.norm()  # starts near the sum
