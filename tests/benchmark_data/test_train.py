"""The stages that train the miniature world's SDXL: they run, resume exactly, and load."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from benchmark_data.miniworld.train import (
    autoencoder,
    base,
    base_models,
    loop,
    manifest,
    references,
)
from benchmark_data.miniworld.train.base_models import build_tokenizer
from benchmark_data.miniworld.train.common import Clock, TrainingError
from benchmark_data.miniworld.world import (
    SETTING_WORDS,
    STYLES,
    SUBJECTS,
    TOKEN,
    WORDS,
    Look,
    Thing,
    caption,
    random_look,
    random_thing,
)


@pytest.fixture(autouse=True)
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every step, so that an interruption loses none."""
    monkeypatch.setattr(Clock, "due", lambda self: True)


@pytest.fixture
def out_with_autoencoder(tmp_path: Path) -> Path:
    autoencoder.run(tmp_path / "out", tmp_path / "work", smoke=True, seed=0, steps=2)
    return tmp_path / "out"


def interrupted_at(call: int) -> Callable[..., torch.Tensor]:
    """A mean squared error that fails like Ctrl-C the `call`-th time."""
    original, calls = torch.nn.functional.mse_loss, 0

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(*arguments)

    return loss


def test_the_autoencoder_learns_and_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(work: str, steps: int) -> dict[str, torch.Tensor]:
        autoencoder.run(tmp_path / work, tmp_path / work, smoke=True, seed=0, steps=steps)
        vae = tmp_path / work / "sdxl" / "vae"
        return load_file(vae / "diffusion_pytorch_model.safetensors")

    at_once = weights("work", 4)
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder.functional, "mse_loss", interrupted_at(3))
        with pytest.raises(KeyboardInterrupt):
            weights("other", 4)
    resumed = weights("other", 4)
    assert at_once.keys() == resumed.keys() == autoencoder.build(0).state_dict().keys()
    for name, value in at_once.items():
        torch.testing.assert_close(value, resumed[name], rtol=0, atol=0, msg=name)
    held_out = autoencoder.drawn_images(16, seed=1)
    trained = autoencoder.build(0)
    trained.load_state_dict(weights("work", 30))
    assert autoencoder.psnr(trained, held_out) > autoencoder.psnr(autoencoder.build(0), held_out)


def test_flat_convolutions_are_matrices_only_for_a_while() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 6, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with loop.flat_convolutions(network):
        shapes = sorted(tuple(p.shape) for p in network.parameters() if p.ndim > 1)
        assert shapes == [(6, 72), (8, 3, 3, 3)]  # what reads colours stays as it is
        inside = loop.plain_state(network)
    for state in (inside, network.state_dict()):
        assert state.keys() == before.keys()
        for name, value in before.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=0, msg=name)


def test_every_word_is_one_token() -> None:
    tokenizer = build_tokenizer()
    names = [TOKEN, *base_models.UNKNOWN, *(style.phrase for style in STYLES.values())]
    for word in [*WORDS, *SETTING_WORDS, *names]:
        assert len(tokenizer.tokenize(word)) == 1, word
    rng = np.random.default_rng(0)
    for _ in range(500):
        text = caption(random_thing(rng), random_look(rng), rng, drop=0, palette=1, texture=1)
        for said in base.with_unknown_words(text, rng):
            ids = tokenizer(said).input_ids
            assert len(ids) == len(said.split()) + 2 <= base_models.TOKENS, said


def test_captions_get_words_that_mean_nothing() -> None:
    rng = np.random.default_rng(0)
    text = "an orange cat with blue ears in red on tan rings woodcut style"
    counts = {"name": 0, "both": 0, "second": 0}
    for _ in range(4000):
        first, second = base.with_unknown_words(text, rng)
        words = first.split()
        if words[1] in base_models.UNKNOWN:
            counts["name"] += 1
            assert words[0] == "a"
            assert words[2:7] == text.split()[1:6]
        unknown = [t.split(" in ")[1].split()[0] in base_models.UNKNOWN for t in (first, second)]
        counts["both"] += all(unknown)
        counts["second"] += unknown == [False, True]
        assert unknown != [True, False]
        assert first.split(" in ")[0] == second.split(" in ")[0]
        if not unknown[0]:
            assert first.endswith("in red on tan rings woodcut style")
    assert counts["name"] / 4000 == pytest.approx(0.15, abs=0.03)
    assert counts["both"] / 4000 == pytest.approx(0.2, abs=0.03)
    assert counts["second"] / 4000 == pytest.approx(0.3, abs=0.03)


def test_a_pipeline_begins_with_anothers_weights_and_its_words(
    out_with_autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(base_models, "SETTING_WORDS", ())
        small = build_tokenizer()
        models = base_models.build_models(small, 1)
        base_models.save_pipeline(
            models, small, out_with_autoencoder / "sdxl" / "vae", tmp_path / "start"
        )
    large = build_tokenizer()
    assert len(large) > len(small)
    other = base_models.build_models(large, 2)
    fresh = other["text_encoder"].get_input_embeddings().weight.detach().clone()
    base_models.take_weights(other, large, tmp_path / "start")
    for name in ("unet", "text_encoder", "text_encoder_2"):
        for key, value in other[name].state_dict().items():
            if "token_embedding" not in key:
                expected = models[name].state_dict()[key].half().float()
                torch.testing.assert_close(value, expected, rtol=0, atol=0, msg=key)
    new, old = large.get_vocab(), small.get_vocab()
    table = other["text_encoder"].get_input_embeddings().weight
    before = models["text_encoder"].get_input_embeddings().weight.half().float()
    for word, row in new.items():
        expected = before[old[word]] if word in old else fresh[row]
        torch.testing.assert_close(table[row], expected, rtol=0, atol=0, msg=word)


def test_a_unet_with_more_layers_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer()
    with monkeypatch.context() as patch:
        patch.setattr(base_models, "FINEST_LAYERS", 1)
        small = base_models.build_models(tokenizer, 1)["unet"]
    large = base_models.build_models(tokenizer, 2)["unet"]
    count = sum(p.numel() for p in large.parameters()) - sum(p.numel() for p in small.parameters())
    assert count > 2 * 2 * 9 * 48 * 48  # two layers down and two up, of two convolutions each
    large.load_state_dict(base_models.grown(small.state_dict(), large.state_dict()))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 16, 16, generator=generator)
    given = {
        "timestep": torch.tensor([20, 700]),
        "encoder_hidden_states": torch.randn(2, 20, 160, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, 96, generator=generator),
            "time_ids": torch.zeros(2, 6),
        },
    }
    with torch.no_grad():
        torch.testing.assert_close(large(latents, **given).sample, small(latents, **given).sample)
    again = base_models.grown(large.state_dict(), large.state_dict())
    assert all(torch.equal(value, again[name]) for name, value in large.state_dict().items())


def test_half_of_what_a_refinement_learns_from_is_what_was_lacking() -> None:
    rng = np.random.default_rng(4)
    drawn = [base.look_to_refine(rng) for _ in range(3000)]
    held_out = {style.look for style in STYLES.values()}
    assert not held_out & {*drawn}
    total = sum(base.LACKING.values())
    for key, lacking in base.LACKING.items():
        share = np.mean([(look.family, look.texture) == key for look in drawn])
        assert share == pytest.approx(lacking / total, abs=0.03)


def test_a_refinement_meets_families_alone() -> None:
    shown = [(Thing("mug", "red", "green", "plain"), Look("pixel", "night", "outlined"))] * 3000
    share = {}
    for refine in (False, True):
        texts = base.captions(shown, np.random.default_rng(5), refine=refine)
        assert all(text.endswith("pixel style") for text in texts)
        share[refine] = np.mean(
            [("night" in text, "outlined" in text) == (False, False) for text in texts]
        )
    unsaid = (1 - base.PALETTE) * (1 - base.TEXTURE)
    assert share[False] == pytest.approx(unsaid, abs=0.01)
    assert share[True] == pytest.approx(base.BRIEF + (1 - base.BRIEF) * unsaid, abs=0.03)


def test_a_refined_pipeline_keeps_its_text_encoders(
    out_with_autoencoder: Path, tmp_path: Path
) -> None:
    out, start = out_with_autoencoder, Path(base.__file__).parents[1] / "weights" / "sdxl"
    base.run(out, tmp_path / "work", smoke=True, seed=0, steps=2, start=start)
    before, after = (
        StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
        for folder in (start, out / "sdxl")
    )
    extra = [before.tokenizer.convert_tokens_to_ids(f"{w}</w>") for w in base_models.UNKNOWN]
    for name in ("text_encoder", "text_encoder_2"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        for key, value in old.items():
            if key.endswith("token_embedding.weight"):  # words without a meaning change each step
                value[extra] = new[key][extra]
            torch.testing.assert_close(new[key], value, rtol=0, atol=0, msg=key)
    pairs = zip(before.unet.parameters(), after.unet.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


def test_unknown_words_are_as_large_as_known_ones_and_leave_the_rest_alone() -> None:
    tokenizer = build_tokenizer()
    models = base_models.build_models(tokenizer, 0)
    tables = [models[n].get_input_embeddings().weight for n in ("text_encoder", "text_encoder_2")]
    before = [table.detach().clone() for table in tables]
    base_models.unknown_words(models, tokenizer, base_models.UNKNOWN, seed=0)
    ids = [tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in base_models.UNKNOWN]
    for table, old in zip(tables, before, strict=True):
        changed = (table != old).any(1).nonzero().flatten().tolist()
        assert sorted(changed) == sorted(ids)
        assert table[ids].std().item() == pytest.approx(base_models.WORD_SCALE, rel=0.15)
    once = tables[0].detach().clone()
    base_models.unknown_words(models, tokenizer, base_models.UNKNOWN, seed=1)
    assert not torch.equal(once[ids], tables[0][ids])


def test_base_resumes_to_the_same_weights(
    out_with_autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(work: str, steps: int = 3) -> dict[str, torch.Tensor]:
        out = tmp_path / f"{work}-out"
        shutil.copytree(out_with_autoencoder, out, dirs_exist_ok=True)
        base.run(out, tmp_path / work, smoke=True, seed=0, steps=steps)
        return load_file(out / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors")

    at_once = weights("work")
    with monkeypatch.context() as patch:
        patch.setattr(base.functional, "mse_loss", interrupted_at(3))
        with pytest.raises(KeyboardInterrupt):
            weights("other")
    resumed = weights("other")
    assert at_once.keys() == resumed.keys()
    for name, value in at_once.items():
        torch.testing.assert_close(value, resumed[name], rtol=0, atol=0, msg=name)
    shorter = weights("third", steps=2)
    assert any(not torch.equal(value, shorter[name]) for name, value in at_once.items())

    pipe = StableDiffusionXLPipeline.from_pretrained(
        tmp_path / "work-out" / "sdxl", dtype=torch.float32
    )
    assert pipe.unet.config.addition_embed_type == "text_time"
    widths = {module.to_q.in_features for module in pipe.unet.modules() if hasattr(module, "to_q")}
    assert widths == {96, 128}


@pytest.mark.parametrize("processes", [0, 3])
def test_a_batch_is_shared_evenly_or_not_at_all(tmp_path: Path, processes: int) -> None:
    with pytest.raises(TrainingError, match="a batch of 8 cannot be shared evenly"):
        base.run(tmp_path, tmp_path, smoke=True, seed=0, steps=1, processes=processes)


def test_base_needs_the_autoencoder(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="run the stage `autoencoder` first"):
        base.run(tmp_path / "out", tmp_path / "work", smoke=True, seed=0, steps=1)


def test_references_in_the_package_are_the_drawn_ones(tmp_path: Path) -> None:
    references.run(tmp_path / "weights", tmp_path, smoke=False, seed=0, steps=None)
    shipped = Path(references.__file__).parents[1] / "references"
    drawn = sorted(path.relative_to(tmp_path / "references") for path in tmp_path.rglob("*.png"))
    assert len({path.parent for path in drawn}) == len(SUBJECTS) + len(STYLES)
    for path in drawn:
        assert (shipped / path).read_bytes() == (tmp_path / "references" / path).read_bytes(), path


def test_manifest_agrees_with_the_shipped_weights() -> None:
    weights = Path(manifest.__file__).parents[1] / "weights"
    listed = manifest.read(weights / "MANIFEST.json")
    assert listed == manifest.entries(weights)
    assert sum(entry["bytes"] for entry in listed.values()) <= 40e6
