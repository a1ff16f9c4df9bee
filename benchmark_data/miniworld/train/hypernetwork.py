"""Stage `hypernetwork`: LoRA.rar's hypernetwork, trained by `lorarar.train` on the train pairs."""

from pathlib import Path

import torch

from baselines.denoiser import Denoiser
from benchmark_data.load import load_suite
from benchmark_data.miniworld.train.common import Clock, log, options_of
from lorarar.checkpoints import Provenance, save_checkpoint
from lorarar.pairs import training_pairs
from lorarar.train import HyperTraining, train_hypernetwork


def run(out: Path, work: Path, *, smoke: bool, seed: int, steps: int | None) -> None:
    """Train on all pairs of the split `train` and save `out/hypernetwork.safetensors`."""
    torch.set_num_threads(1)
    suite = load_suite("miniworld")
    denoiser = Denoiser.load(
        out / "sdxl", dtype=torch.float32, device="cpu", resolution=suite.generation.resolution
    )
    settings = HyperTraining(**options_of(suite.training["hypernetwork"], steps, smoke), seed=seed)
    report = Clock(20)

    def progress(step: int, loss: float) -> None:
        if report.due():
            log.info("hypernetwork: step %d, loss %.4f", step, loss)

    network = train_hypernetwork(
        denoiser,
        training_pairs(suite, out / "loras"),
        settings,
        checkpoint=work / "hypernetwork.safetensors",
        progress=progress,
    )
    provenance = Provenance(suite.name, suite.revision, settings.steps)
    save_checkpoint(network, out / "hypernetwork.safetensors", provenance)
