"""What ships runs: every method's merge of shipped LoRAs, fused here and loaded by diffusers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from baselines import load_adapter, save_adapter
from baselines.merging_loss import PairTask
from baselines.registry import parse_method
from benchmark_data.load import load_suite, open_references
from mars2.pipelines import SdxlPipeline


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(
        load_suite("miniworld").models.base, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_every_pair_of_the_suite_ships() -> None:
    suite = load_suite("miniworld")
    assert {split: len(cases) for split, cases in suite.cases.items()} == {
        "train": 120,
        "val": 4,
        "test": 25,
    }
    for concept in suite.concepts.values():
        assert load_adapter(Path(str(suite.adapters)) / f"{concept.id}.safetensors").deltas


@pytest.mark.parametrize("name", ["direct_sum", "average", "ziplora:steps=2", "lorarar"])
def test_the_saved_merge_draws_the_fused_image(
    pipe: StableDiffusionXLPipeline, tmp_path: Path, name: str
) -> None:
    suite = load_suite("miniworld")
    case = next(case for case in suite.cases["test"] if case.id == "teapot_2_broadway")
    ours = SdxlPipeline(pipe, resolution=64, steps=4, guidance_scale=3.0)
    adapters = [
        load_adapter(Path(str(suite.adapters)) / f"{concept.id}.safetensors")
        for concept in (case.subject, case.style)
    ]
    method, passed = parse_method(name)
    task = PairTask(
        denoiser=ours.denoiser(),
        subject_images=open_references(case.subject),
        subject_prompts=case.subject.prompts,
        style_images=open_references(case.style),
        style_prompts=case.style.prompts,
    )
    options = {**suite.method_options.get(method.name, {}), **passed}
    merged = method(adapters, task=task if method.kind == "fit" else None, **options)
    without, fused = (ours.generate(adapter, case.prompt, [0])[0] for adapter in (None, merged))

    save_adapter(merged, tmp_path / "merged.safetensors")
    pipe.load_lora_weights(tmp_path / "merged.safetensors")
    try:
        loaded = ours.generate(None, case.prompt, [0])[0]
    finally:
        pipe.unload_lora_weights()
    difference = np.abs(np.asarray(loaded, int) - np.asarray(fused, int))
    assert difference.max() <= 2  # of 255: float32 sums in another order, rounded to bytes
    assert np.abs(np.asarray(without, int) - np.asarray(fused, int)).max() > 40
