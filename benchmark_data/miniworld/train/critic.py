"""Stage `critic`: a small LLaVA-OneVision model that says whether subjects, or styles, agree."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from benchmark_data.miniworld.train.common import (
    TrainingError,
    load_state,
    log,
    replace_folder,
    save_state,
    write_json,
)
from benchmark_data.miniworld.train.critic_measure import measure
from benchmark_data.miniworld.train.critic_model import build_tokenizer, save_critic
from benchmark_data.miniworld.train.critic_phases import GOING_ON, SMOKE, Critic, Scale
from benchmark_data.miniworld.train.critic_pictures import Pictures
from benchmark_data.miniworld.train.critic_questions import question, style_name
from benchmark_data.miniworld.train.degrade import autoencoded
from benchmark_data.miniworld.train.drawings import GROUP, Bank, load_bank
from benchmark_data.miniworld.train.painted import load_painted
from benchmark_data.miniworld.train.team import Team, run_team

DECODED = 0.3  # share of the drawings that also go through the autoencoder
PAINTED = (12288, 3072)  # drawings that the base model paints over, truly and half
BARE, FAINT = 1440, 2880  # drawings without texture, and with a faint one


def load_decoded(bank: Bank, groups: int, vae: Path, work: Path, seed: int) -> Tensor | None:
    """A share of the first ``groups`` through the autoencoder, made once; None without one."""
    count = round(DECODED * groups * GROUP)
    path = work / f"critic-decoded-{seed}-{count}.safetensors"
    if not path.exists():
        if not vae.exists():
            log.info("critic: no autoencoder in %s, so only drawings are learnt from", vae)
            return None
        generator = torch.Generator().manual_seed(seed)
        model: Any = AutoencoderTiny.from_pretrained(vae)
        pixels = autoencoded(model.encoder, model.decoder, bank.pixels[:count], generator)
        save_state(path, {"pixels": pixels}, {})
        log.info("critic: %d drawings went through the autoencoder", count)
    return load_state(path)[0]["pixels"]


def run(
    out: Path,
    work: Path,
    *,
    smoke: bool,
    seed: int,
    steps: int | None,
    start: Path | None = None,
    processes: int = 1,
) -> None:
    """Train the critic, save it to `out/critic`, and measure it.

    While it learns to answer, what it is so far goes to `work/critic-latest`.

    Args:
        out: Weights folder.
        work: Checkpoints and drawings.
        smoke: Tiny numbers.
        seed: Of everything drawn.
        steps: Instead of the phases' own; shared among them in the usual proportion.
        start: A critic's folder to go on from, for fewer steps.
        processes: Each draws and takes its part of every batch, on one thread.

    Raises:
        TrainingError: The batches cannot be shared evenly, or ``start`` is no critic of this shape.
    """
    torch.set_num_threads(1)
    scale = SMOKE if smoke else GOING_ON if start else Scale()
    if steps is not None:
        share = steps / (scale.seeing + scale.comparing + scale.answering)
        seeing, comparing, answering = (
            max(1, round(amount * share)) if amount else 0
            for amount in (scale.seeing, scale.comparing, scale.answering)
        )
        scale = replace(scale, seeing=seeing, comparing=comparing, answering=answering)
    if processes < 1 or scale.sequences % processes or scale.pairs % (4 * processes):
        raise TrainingError(
            f"--processes is {processes}: batches of {scale.sequences} sequences and "
            f"{scale.pairs} pairs cannot be shared evenly"
        )
    if start is not None and not (start / "config.json").exists():
        raise TrainingError(f"--start is {start}: no critic is there (no config.json)")
    load_pictures(out, work, scale, smoke, seed)  # drawn and painted once, for all processes
    run_team(processes, _train, out, work, scale, smoke, seed, start)
    results = measure(
        out / "critic", groups=2 if smoke else 100, seed=seed, pairs=20 if smoke else 600
    )
    write_json(out / "critic" / "metrics.json", results)
    log.info("critic: %s", results["held out"])


def load_pictures(out: Path, work: Path, scale: Scale, smoke: bool, seed: int) -> Pictures:
    """What a critic learns from: drawn, decoded and painted over, or read from ``work``."""
    bank = load_bank(work, groups=scale.groups, invented=scale.invented, seed=seed)
    base, painted = out / "sdxl", None
    decoded = load_decoded(bank, scale.groups, base / "vae", work, seed)
    if (base / "unet").exists():
        first = len(decoded) if decoded is not None else 0
        true, half = (8, 8) if smoke else PAINTED
        bare, faint = (36, 36) if smoke else (BARE, FAINT)
        painted = load_painted(
            base,
            bank,
            work,
            first=first,
            true=true,
            half=half,
            bare=bare,
            faint=faint,
            seed=seed,
        )
    else:
        log.info("critic: no base model in %s, so nothing is painted over", base)
    return Pictures(bank, decoded, painted)


def _train(
    team: Team, out: Path, work: Path, scale: Scale, smoke: bool, seed: int, start: Path | None
) -> None:
    torch.set_num_threads(1)
    pictures = load_pictures(out, work, scale, smoke, seed)
    begun: Any = start and LlavaOnevisionForConditionalGeneration.from_pretrained(
        start, dtype=torch.float32
    )
    critic = Critic(pictures, scale, work, seed, begun, team)
    critic.see()
    critic.compare()
    rng = np.random.default_rng(seed)
    texts = [question("")] * 200 + [question(style_name(rng)) for _ in range(400)]
    tokenizer = build_tokenizer(texts)

    def save(folder: Path) -> None:
        replace_folder(folder, lambda new: save_critic(critic.model, tokenizer, new))

    critic.answer(tokenizer, lambda: save(work / "critic-latest"))
    if team.rank == 0:
        save(out / "critic")
