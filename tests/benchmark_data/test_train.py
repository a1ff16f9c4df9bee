"""The stages that train the miniature world's SDXL: they run, resume exactly, and load."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from benchmark_data.miniworld.train import autoencoder, base, manifest, references
from benchmark_data.miniworld.train.common import Clock, TrainingError
from benchmark_data.miniworld.world import STYLES, SUBJECTS, TOKEN, WORDS


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


def test_the_encoder_is_the_principal_components(tmp_path: Path) -> None:
    pixels = autoencoder.drawn_images(8, seed=3)
    projection, mean = autoencoder.principal_components(pixels)
    model = autoencoder.build(projection, mean)
    patch = pixels[5, :, 8:12, 20:24].permute(1, 2, 0).reshape(48) / 255  # row 2, column 5
    expected = projection @ (patch - mean)
    with torch.no_grad():
        latents = model.encoder(autoencoder.to_unit(pixels))
    torch.testing.assert_close(latents[5, :, 2, 5], expected, atol=1e-5, rtol=1e-5)
    assert latents.var(dim=(0, 2, 3), correction=0).mean() == pytest.approx(1, abs=1e-3)


def test_every_word_is_one_token() -> None:
    tokenizer = base.build_tokenizer()
    for word in [*WORDS, TOKEN, *(style.phrase for style in STYLES.values())]:
        assert len(tokenizer.tokenize(word)) == 1, word


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
    assert widths == {64, 128}


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
