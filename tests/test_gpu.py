"""What a GPU refuses: `mars2` on a pretended one (tests/pretended_gpu.py), beside the CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPT = Path(__file__).with_name("pretended_gpu.py")
LORAS = Path(__file__).parents[1] / "benchmark_data" / "miniworld" / "weights" / "loras"
GPU = ("--device", "cuda")
SUITE = ("--suite", "miniworld")
RUN = ("run", *SUITE, "--limit", "1", "--seeds", "0", "--steps", "3", "--no-controls")
METHODS = ("average", "lorarar", "k_lora", "switch")
FITTED = ("ziplora:steps=1", "joint_training:steps=1")  # for each pair

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")


def on_gpu(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def methods(names: tuple[str, ...]) -> list[str]:
    return [part for name in names for part in ("--method", name)]


def test_images_and_scores_are_the_cpus(tmp_path: Path) -> None:
    from mars2.cli import app

    gpu, cpu = tmp_path / "gpu", tmp_path / "cpu"
    single = ("--dtype", "float32", *GPU)
    on_gpu(
        *RUN, *methods(METHODS), "--no-score", "--out", gpu, *single, "--", "score", gpu, *single
    )
    app([*RUN, *methods(METHODS), "--device", "cpu", "--out", str(cpu)], standalone_mode=False)
    images = sorted(path.relative_to(cpu) for path in cpu.rglob("images/*/*/*.png"))
    assert len(images) == len(METHODS)
    for image in images:
        there, here = (np.asarray(Image.open(run / image)).astype(int) for run in (gpu, cpu))
        assert abs(there - here).max() <= 2  # attention is not the same code
    scored, expected = (
        {
            (row["method"], row["metric"], row["judge"]): row["value"]
            for row in map(json.loads, (run / "records.jsonl").read_text().splitlines())
        }
        for run in (gpu, cpu)
    )
    assert len(expected) == len(METHODS) * 8
    assert scored == pytest.approx(expected, abs=1e-3)


def test_half_precision_and_trainings_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    on_gpu(*RUN, *methods(FITTED), "--out", run, *GPU)
    new = tmp_path / "new"
    hypernetwork = new / "hypernetwork.safetensors"
    last = ("--steps", "1", *GPU)
    lora = ("train", "lora", *SUITE, "--concept", "cat_1", "--out", new, *last)
    on_gpu(
        *lora, "--", "train", "hypernet", *SUITE, "--adapters", LORAS, "--out", hypernetwork, *last
    )
    spec = json.loads((run / "run.json").read_text())
    assert (spec["device"], spec["dtype"]) == ("cuda", "float16")
    scores = json.loads((run / "scores.json").read_text())
    assert "float16" in json.dumps(scores)
    assert {path.name for path in new.iterdir()} >= {
        "cat_1.safetensors",
        "hypernetwork.safetensors",
    }


MISTAKES: dict[str, Callable[[torch.Tensor], object]] = {
    "a mask on the CPU": lambda there: there.masked_fill(torch.zeros(2, 2, dtype=torch.bool), 0),
    "a sum with the CPU": lambda there: there + torch.ones(2),
    "a generator of the CPU": lambda there: there.normal_(generator=torch.Generator()),
    "weights on the CPU": lambda there: torch.nn.Linear(2, 2)(there),
    "numpy": lambda there: there.numpy(),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("pretended_gpu")
def test_mistakes_are_refused(mistake: str) -> None:
    there = torch.ones(2, 2).to("cuda")
    assert there.device.type == "cuda"
    assert (there + 1).cpu().tolist() == [[2, 2], [2, 2]]
    with pytest.raises((RuntimeError, TypeError)):
        MISTAKES[mistake](there)
