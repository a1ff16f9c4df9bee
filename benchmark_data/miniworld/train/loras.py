"""Stage `loras`: one LoRA a subject and style, through `baselines.dreambooth`, as for real SDXL.

Two processes may run it side by side: each takes the concepts that the other has not claimed.
"""

import os
from pathlib import Path

import torch

from baselines.denoiser import Denoiser
from baselines.dreambooth import LoraTraining, train_lora
from baselines.formats import save_adapter
from benchmark_data.load import load_suite, open_references
from benchmark_data.miniworld.train.common import TrainingError, log, options_of
from benchmark_data.suite import Concept


def claim(path: Path) -> bool:
    """Return whether this process is the one to make `path`."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def run(out: Path, work: Path, *, smoke: bool, seed: int, steps: int | None) -> None:
    """Train what is missing in `out/loras`."""
    torch.set_num_threads(1)
    base = out / "sdxl"
    if not (base / "unet").exists():
        raise TrainingError(f"no pipeline in {base}: run the stage `base` first")
    suite = load_suite("miniworld")
    denoiser = Denoiser.load(
        base, dtype=torch.float32, device="cpu", resolution=suite.generation.resolution
    )
    concepts: list[Concept] = [*suite.subjects.values(), *suite.styles.values()]
    concepts.sort(key=lambda concept: ("test", "train", "val").index(concept.split))
    for concept in concepts[:2] if smoke else concepts:
        target = out / "loras" / f"{concept.id}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        claimed = work / f"lora-{concept.id}.claim"
        if target.exists() or not claim(claimed):
            continue
        options = options_of(suite.training[f"{concept.role}_lora"], steps, smoke)
        adapter = train_lora(
            denoiser,
            open_references(concept),
            concept.prompts,
            LoraTraining(**options, seed=seed),
            checkpoint=work / f"lora-{concept.id}.safetensors",
        )
        save_adapter(adapter, target, dtype=torch.float16)
        claimed.unlink()
        norm = sum(float(delta.norm()) ** 2 for delta in adapter.deltas.values()) ** 0.5
        loss = adapter.metadata.get("loss", "?")
        log.info("lora %s: |dW| %.2f, loss %s", concept.id, norm, loss)
