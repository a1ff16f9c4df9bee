"""Adapters fused and taken out exactly; images that start from the same noise for every method."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.formats import save_adapter
from baselines.policy import Policy
from baselines.registry import METHODS
from mars2.job import RunError
from mars2.pipelines import SdxlPipeline, find_model, model_revision, to_image

RESOLUTION = 16


def load(model: Path, *, dtype: str = "float32", batch_size: int = 1) -> SdxlPipeline:
    return SdxlPipeline.load(
        model,
        dtype=dtype,
        device="cpu",
        resolution=RESOLUTION,
        steps=2,
        guidance_scale=4.0,
        negative_prompt="blurry",
        batch_size=batch_size,
    )


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl: Path) -> SdxlPipeline:
    return load(tiny_sdxl)


def weights(pipeline: SdxlPipeline) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipeline.pipe.unet.state_dict().items()}


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.uint8), right[name].view(torch.uint8)) for name in left
    )


def test_fusing_adds_the_dense_update(
    pipeline: SdxlPipeline, random_adapter: Callable[..., LoraAdapter]
) -> None:
    adapter = random_adapter(1)
    before = weights(pipeline)
    with pipeline.fused(adapter):
        inside = weights(pipeline)
    for layer, delta in adapter.deltas.items():
        expected = before[f"{layer}.weight"] + delta.up @ delta.down
        torch.testing.assert_close(inside[f"{layer}.weight"], expected, rtol=1e-5, atol=1e-6)
    touched = {f"{layer}.weight" for layer in adapter.deltas}
    assert all(torch.equal(inside[name], before[name]) for name in before.keys() - touched)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_25_adapters_leave_the_base_bit_for_bit(
    tiny_sdxl: Path, random_adapter: Callable[..., LoraAdapter], dtype: str
) -> None:
    pipeline = load(tiny_sdxl, dtype=dtype)
    before = weights(pipeline)
    for seed in range(25):
        with pipeline.fused(random_adapter(seed, strength=2.0)):
            assert not same_bits(weights(pipeline), before)
    assert same_bits(weights(pipeline), before)


def test_an_exception_takes_the_adapter_out(
    pipeline: SdxlPipeline, random_adapter: Callable[..., LoraAdapter]
) -> None:
    before = weights(pipeline)
    with pytest.raises(KeyboardInterrupt), pipeline.fused(random_adapter(1)):
        raise KeyboardInterrupt
    assert same_bits(weights(pipeline), before)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("down_blocks.9.to_q", "does not have"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", r"shape \(8, 8\)"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    pipeline: SdxlPipeline, random_adapter: Callable[..., LoraAdapter], layer: str, words: str
) -> None:
    before = weights(pipeline)
    delta = LowRankDelta(torch.ones(8, 1), torch.ones(1, 8))
    foreign = LoraAdapter({**random_adapter(1).deltas, layer: delta}, name="mine")
    with pytest.raises(AdapterError, match=words) as caught, pipeline.fused(foreign):
        pass
    assert layer in str(caught.value)
    assert "mine" in str(caught.value)
    assert same_bits(weights(pipeline), before)


def test_images_depend_on_seed_and_adapter(
    pipeline: SdxlPipeline, random_adapter: Callable[..., LoraAdapter]
) -> None:
    plain = [image.tobytes() for image in pipeline.generate(None, "a cat", [0, 1])]
    again = [image.tobytes() for image in pipeline.generate(None, "a cat", [1, 0])]
    merged = [image.tobytes() for image in pipeline.generate(random_adapter(1), "a cat", [0, 1])]
    assert plain == again[::-1]
    assert len({*plain, *merged}) == 4


def test_the_batch_does_not_change_the_noise(tiny_sdxl: Path) -> None:
    seeds = [5, 6, 7]
    single = load(tiny_sdxl).generate(None, "a cat", seeds)
    batched = load(tiny_sdxl, batch_size=2).generate(None, "a cat", seeds)
    for left, right in zip(single, batched, strict=True):
        # the sums of a batched convolution may be ordered otherwise: one grey level
        assert np.abs(np.asarray(left, int) - np.asarray(right, int)).max() <= 1


def test_images_are_those_of_diffusers_own_adapter_loading(
    tiny_sdxl: Path, tmp_path: Path, random_adapter: Callable[..., LoraAdapter]
) -> None:
    adapter = random_adapter(3)
    fused = load(tiny_sdxl).generate(adapter, "a cat", [0, 1])
    save_adapter(adapter, tmp_path / "lora.safetensors")
    other = load(tiny_sdxl)
    other.pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    for left, right in zip(fused, other.generate(None, "a cat", [0, 1]), strict=True):
        assert np.abs(np.asarray(left, int) - np.asarray(right, int)).max() <= 1


def always(pair: list[LoraAdapter], *passes: tuple[float, float]) -> Policy:
    return Policy(tuple(pair), tuple(lambda *at, fixed=fixed: fixed for fixed in passes))


def furthest(left: list[Image.Image], right: list[Image.Image]) -> int:
    return max(
        np.abs(np.asarray(a, int) - np.asarray(b, int)).max()
        for a, b in zip(left, right, strict=True)
    )


def test_a_policy_of_constant_weights_is_the_merge(
    pipeline: SdxlPipeline, random_adapter: Callable[..., LoraAdapter]
) -> None:
    pair = [random_adapter(1), random_adapter(2)]
    before = weights(pipeline)
    for fixed, method in (((1.0, 1.0), "direct_sum"), ((1.0, 0.0), "subject_only")):
        expected = pipeline.generate(METHODS.get(method)(pair), "a cat", [0, 1])
        assert furthest(pipeline.generate(always(pair, fixed), "a cat", [0, 1]), expected) <= 2
        assert furthest(pipeline.generate(None, "a cat", [0, 1]), expected) > 20
    assert same_bits(weights(pipeline), before)


def test_a_policy_is_asked_for_each_step_of_each_batch(
    tiny_sdxl: Path, random_adapter: Callable[..., LoraAdapter]
) -> None:
    pair = [random_adapter(1), random_adapter(2)]
    asked: list[tuple[int, int]] = []

    def noting(layer: str, step: int, total: int) -> tuple[float, float]:
        asked.append((step, total))
        return (1.0, 0.0) if step == 0 else (0.0, 1.0)

    policy = Policy(tuple(pair), (noting,))
    batched = load(tiny_sdxl, batch_size=2)
    images = batched.generate(policy, "a cat", [5, 6, 7])
    layers = len(policy.layers)
    assert asked == 2 * (layers * [(0, 2)] + layers * [(1, 2)])  # two batches, two steps
    assert furthest(load(tiny_sdxl).generate(policy, "a cat", [5, 6, 7]), images) <= 1
    assert [i.tobytes() for i in batched.generate(policy, "a cat", [5, 6, 7])] == [
        i.tobytes() for i in images
    ]


def test_switching_is_drawing_with_one_adapter_and_then_the_other(
    pipeline: SdxlPipeline, random_adapter: Callable[..., LoraAdapter]
) -> None:
    """The adapters changed by hand between the two steps, in a callback of diffusers."""
    pair = [random_adapter(1), random_adapter(2)]
    drawn = pipeline.generate(METHODS.get("switch").policy(pair, tau=1), "a cat", [3])
    fused = pipeline.fused(pair[0])
    fused.__enter__()
    count = pipeline._count

    def change(pipe, step, timestep, state):
        nonlocal fused
        if step == 0:
            fused.__exit__(None, None, None)
            fused = pipeline.fused(pair[1])
            fused.__enter__()
        return count(pipe, step, timestep, state)

    pipeline._count = change
    try:
        expected = pipeline.generate(None, "a cat", [3])
    finally:
        fused.__exit__(None, None, None)
        del pipeline._count
    assert furthest(drawn, expected) <= 2


def test_a_policys_passes_are_averaged(
    pipeline: SdxlPipeline, random_adapter: Callable[..., LoraAdapter]
) -> None:
    pair = [random_adapter(1), random_adapter(2)]
    twice = pipeline.generate(always(pair, (1.0, 0.0), (1.0, 0.0)), "a cat", [0])
    assert furthest(twice, pipeline.generate(pair[0], "a cat", [0])) <= 2
    composite = pipeline.generate(METHODS.get("composite").policy(pair), "a cat", [0])
    both = pipeline.generate(always(pair, (1.0, 0.0), (0.0, 1.0)), "a cat", [0])
    assert furthest(composite, both) == 0
    assert furthest(composite, twice) > 2


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "seed 7 has values that are not finite"), (0.0, "seed 7 is black"), (0.5, "colour")],
)
def test_broken_images_are_refused(value: float, words: str) -> None:
    with pytest.raises(RunError, match=words):
        to_image(np.full((4, 4, 3), value, np.float32), 7)


def test_one_broken_pixel_is_enough() -> None:
    pixels = np.random.default_rng(0).random((4, 4, 3), np.float32)
    assert to_image(pixels, 0).size == (4, 4)
    pixels[1, 2, 0] = np.nan
    with pytest.raises(RunError, match="not finite"):
        to_image(pixels, 0)


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nobody/no-such-model", str(tmp_path / "none")):
        with pytest.raises(
            RunError, match="neither a folder here nor in the hub's cache"
        ) as caught:
            find_model(name)
        assert name in str(caught.value)
    with pytest.raises(RunError, match=r"no model_index\.json"):
        find_model(tmp_path)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ('{"_class_name": "FluxPipeline"}', "is a FluxPipeline, not a StableDiffusionXLPipeline"),
        ('{"_class_name": "StableDiffusionXLPipeline"}', "is no SDXL pipeline diffusers can load"),
    ],
)
def test_a_broken_model_is_refused(tmp_path: Path, index: str, words: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(RunError, match=words):
        load(tmp_path)


def test_the_revision_of_a_folder_is_its_content(tmp_path: Path) -> None:
    def model(name: str, text: str) -> Path:
        folder = tmp_path / name
        (folder / "unet").mkdir(parents=True)
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
        (folder / "unet/weights.safetensors").write_text(text)
        return folder

    first = model_revision(model("a", "1"))
    assert len(first) == 12
    assert model_revision(model("b", "1")) == first
    assert model_revision(model("c", "2")) != first
