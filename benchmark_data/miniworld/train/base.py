"""Stage `base`: a small SDXL trained on drawn images and captions, saved as a diffusers pipeline.

The text encoders are trained with the UNet. A pipeline to begin with is refined: its text encoders
stay as they are, and most of the training is at little noise, where fine strokes are painted.
Held-out subjects, style settings and style names never occur.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from benchmark_data.miniworld.train.autoencoder import CHANNELS, to_unit
from benchmark_data.miniworld.train.base_models import (
    RESOLUTION,
    TOKENS,
    UNKNOWN,
    alphas_cumprod,
    build_models,
    build_tokenizer,
    encode,
    save_pipeline,
    take_weights,
    unknown_words,
)
from benchmark_data.miniworld.train.common import TrainingError, load_state, log, save_state
from benchmark_data.miniworld.train.loop import flat_convolutions, plain_state, train_phase
from benchmark_data.miniworld.train.team import Team, run_team
from benchmark_data.miniworld.world import (
    FAMILIES,
    STYLES,
    TOKEN,
    Look,
    Thing,
    caption,
    draw,
    random_look,
    random_thing,
)

JITTER = 0.4  # silhouettes are learnt much sooner in moderate poses
EASY = 20_000  # of the first images, more than half are without a pattern: begin easy, then widen
DECAY = 0.999  # of the average of the weights, which is what is saved for use
PALETTE, TEXTURE = 0.8, 0.9  # chances that a caption says them: what is not said is not learnt
FINE = ("crayon", "neon", "oil", "woodcut", "mosaic", "glass", "chalk")
"""Families whose textures come last: drawn twice as often as the others."""
LACKING = {
    ("flat", "plain"): 0.2,
    ("watercolor", "wet"): 0.5,
    ("watercolor", "granular"): 0.2,
    ("crayon", "crossed"): 0.7,
    ("neon", "tube"): 0.6,
    ("neon", "double"): 0.6,
    ("neon", "haze"): 0.6,
    ("oil", "dabs"): 0.2,
    ("oil", "swirl"): 0.2,
    ("chalk", "hatched"): 0.3,
    ("chalk", "outline"): 0.2,
}
"""Family and texture: about the share of pictures in which the base before did not draw what the
caption asked for, where that was a quarter or more (260 captions, read by a small classifier).
Half of what a refinement learns from is chosen so."""
LITTLE_NOISE, REFINED = 500, 0.6  # timesteps below which a refinement draws so much of its images
BRIEF = 0.15  # share of a refinement's captions that name the family alone, no palette, no texture
DROPPED = 0.1  # share of images whose caption is left out, for classifier-free guidance


def look_to_refine(rng: np.random.Generator) -> Look:
    """A look that is no style, of a family and texture that are LACKING."""
    chances = np.array(list(LACKING.values()))
    family, texture = list(LACKING)[rng.choice(len(LACKING), p=chances / chances.sum())]
    while (look := random_look(rng, families=(family,))).texture != texture:
        pass
    return look


def draw_set(
    vae: AutoencoderTiny, path: Path, *, first: int, count: int, seed: int, refine: bool
) -> None:
    """Draw `count` images, encode them, and keep latents (fp16) with what was drawn."""
    drawn: list[tuple[Thing, Look]] = []
    latents = torch.empty((count, CHANNELS, RESOLUTION // 4, RESOLUTION // 4), dtype=torch.float16)
    pixels: list[np.ndarray] = []
    for index in range(count):
        rng = np.random.default_rng((seed, first + index))
        photo = rng.random() < 0.15
        look = random_look(rng, families=("photo",) if photo else (*FAMILIES, *FINE))
        if refine and rng.random() < 0.5:
            look = look_to_refine(rng)
        easy = not refine and first + index < EASY and rng.random() < 0.6
        thing = random_thing(rng, patterns=("plain",)) if easy else random_thing(rng)
        drawn.append((thing, look))
        pixels.append(
            np.asarray(draw(thing, look, seed=int(rng.integers(2**31)), jitter=JITTER)).copy()
        )
        if len(pixels) == 256 or index == count - 1:
            block = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
            with torch.no_grad():
                latents[index + 1 - len(pixels) : index + 1] = vae.encoder(to_unit(block)).half()
            pixels.clear()
    rows = [[vars_of(thing), vars_of(look)] for thing, look in drawn]
    save_state(path, {"latents": latents}, {"drawn": rows})


def vars_of(item: Thing | Look) -> list[str]:
    """Return a thing's or look's fields, in order, for JSON."""
    return [getattr(item, field) for field in item.__dataclass_fields__]


def load_sets(paths: list[Path]) -> tuple[Tensor, list[tuple[Thing, Look]]]:
    """Read the drawn sets back."""
    latents: list[Tensor] = []
    drawn: list[tuple[Thing, Look]] = []
    for path in paths:
        tensors, meta = load_state(path)
        latents.append(tensors["latents"])
        drawn += [(Thing(*thing), Look(*look)) for thing, look in meta["drawn"]]
    return torch.cat(latents), drawn


def captions(
    pictured: list[tuple[Thing, Look]], rng: np.random.Generator, *, refine: bool
) -> list[str]:
    """A caption for each picture; of a refinement's, BRIEF name no palette and no texture."""
    brief = rng.random(len(pictured)) < BRIEF if refine else np.zeros(len(pictured), dtype=bool)
    return [
        caption(thing, look, rng, palette=named * PALETTE, texture=named * TEXTURE)
        for (thing, look), named in zip(pictured, 1.0 - brief, strict=True)
    ]


def with_unknown_words(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """A caption for each text encoder, with words in it that mean nothing, now and then.

    A base model that never met an unknown word paints blots for one, and no LoRA mends that; one
    that met some takes "in slate style" for some style or other, which a LoRA then decides. The
    second encoder, whose pooled output no LoRA on attention can change, misses the style's name
    more often.
    """
    chances, names = rng.random(3), rng.choice(UNKNOWN, 2)
    if chances[0] < 0.15:
        _, rest = text.split(" ", 1)
        text = f"a {names[0]} {rest}"
    described, style, _ = text.partition(" in ")
    nameless = f"{described} in {names[1]} style" if style else text
    return nameless if chances[1] < 0.2 else text, nameless if chances[1] < 0.5 else text


def moving_average(average: Tensor, weight: Tensor, updates: Tensor | int) -> Tensor:
    """The average moved towards a weight; faster in the first steps."""
    count = int(updates)
    return average.lerp(weight, 1 - min(DECAY, (1 + count) / (10 + count)))


class Pictures:
    """The drawn images as latents; more of them as training goes on, so that it can begin at once.

    Args:
        vae: The autoencoder.
        work: Where the drawn sets are kept.
        seed: Of the drawings.
        team: The processes that draw them.
        chunk: Images in a set.
        chunks: Sets in all; a further one every 60 steps.
        refine: Whether the model can draw: then all of them are there from the first step on, and
            more of what it draws worst.
    """

    def __init__(
        self,
        vae: AutoencoderTiny,
        work: Path,
        *,
        seed: int,
        team: Team,
        chunk: int,
        chunks: int,
        refine: bool = False,
    ) -> None:
        self._vae, self._seed, self._team, self._chunk = vae, seed, team, chunk
        kind = "lacking" if refine else "set"
        self._paths = [
            work / f"base-{kind}-{seed}-{chunk}-{index}.safetensors" for index in range(chunks)
        ]
        self._available = 0
        self._refine = refine
        self._latents = torch.empty(0)
        self._drawn: list[tuple[Thing, Look]] = []

    def at(self, step: int) -> tuple[Tensor, list[tuple[Thing, Look]]]:
        """Latents and what they show, of all sets that a step may draw from."""
        wanted = len(self._paths) if self._refine else min(1 + step // 60, len(self._paths))
        if self._available < wanted:
            for index, path in enumerate(self._paths[:wanted]):
                if index % self._team.size == self._team.rank and not path.exists():
                    first = index * self._chunk
                    draw_set(
                        self._vae,
                        path,
                        first=first,
                        count=self._chunk,
                        seed=self._seed,
                        refine=self._refine,
                    )
            self._team.wait()
            self._available = wanted
            self._latents, self._drawn = load_sets(self._paths[:wanted])
        return self._latents, self._drawn


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
    """Draw the training set in chunks, train, save `out/sdxl` (`work/sdxl-latest` on the way).

    Args:
        out: Weights folder.
        work: Checkpoints and drawings.
        smoke: Tiny numbers.
        seed: Of everything drawn.
        steps: Instead of the stage's own.
        start: A pipeline to refine, such as the one that ships; None: begin with fresh weights.
        processes: Each takes its part of every batch, on one thread.

    Raises:
        TrainingError: There is no autoencoder, or the batch cannot be shared evenly.
    """
    if processes < 1 or _batch_size(smoke) % processes:
        raise TrainingError(
            f"--processes is {processes}: a batch of {_batch_size(smoke)} cannot be shared evenly"
        )
    run_team(processes, _train, out, work, smoke, seed, steps, start)


def _batch_size(smoke: bool) -> int:
    return 8 if smoke else 64


def _train(
    team: Team,
    out: Path,
    work: Path,
    smoke: bool,
    seed: int,
    steps: int | None,
    start: Path | None,
) -> None:
    torch.set_num_threads(1)
    steps = steps or (6 if smoke else 12_000)
    batch_size = _batch_size(smoke)
    vae_folder = out / "sdxl" / "vae"
    if not vae_folder.exists():
        raise TrainingError(f"no autoencoder in {vae_folder}: run the stage `autoencoder` first")
    vae = AutoencoderTiny.from_pretrained(vae_folder, dtype=torch.float32)
    chunk, chunks = (64, 1) if smoke else (5000, 12)
    pictures = Pictures(
        vae, work, seed=seed, team=team, chunk=chunk, chunks=chunks, refine=start is not None
    )
    tokenizer = build_tokenizer()
    models = build_models(tokenizer, seed)
    unknown_words(models, tokenizer, [*(style.phrase for style in STYLES.values()), TOKEN], seed)
    if start is not None:
        take_weights(models, tokenizer, start)
        for name in ("text_encoder", "text_encoder_2"):
            models[name].requires_grad_(False)
    models["unet"].set_attn_processor(AttnProcessor())  # bf16 SDPA's backward is slow on CPUs
    signal = alphas_cumprod()
    time_ids = torch.tensor([[RESOLUTION, RESOLUTION, 0, 0, RESOLUTION, RESOLUTION]])
    mine = slice(team.rank, None, team.size)
    time_ids = time_ids.float().expand(batch_size // team.size, 6)

    def loss_at(step: int) -> Tensor:
        latents, drawn = pictures.at(step)
        rng = np.random.default_rng((seed, step))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = rng.integers(len(drawn), size=batch_size)
        clean = latents[torch.from_numpy(rows)].float()
        pictured = [drawn[row] for row in rows]
        texts = captions(pictured, rng, refine=start is not None)
        firsts, seconds = zip(*(with_unknown_words(text, rng) for text in texts), strict=True)
        unknown_words(models, tokenizer, UNKNOWN, seed * 1_000_003 + step)
        ids, ids_2 = (
            tokenizer(
                list(part),
                padding="max_length",
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            ).input_ids
            for part in (firsts, seconds)
        )
        keep = torch.from_numpy((rng.random(batch_size) > DROPPED).astype(np.float32))
        timesteps = torch.randint(1000, (batch_size,), generator=generator)
        if start is not None:
            little = torch.rand(batch_size, generator=generator) < REFINED
            timesteps[little] = timesteps[little] * LITTLE_NOISE // 1000
        noise = torch.randn(clean.shape, generator=generator)
        level = signal[timesteps][:, None, None, None]
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        target = level.sqrt() * noise - (1 - level).sqrt() * clean
        with torch.autocast("cpu", torch.bfloat16):
            embeddings, pooled = encode(models, ids[mine], ids_2[mine], keep[mine])
            output = models["unet"](
                noisy[mine],
                timesteps[mine],
                embeddings,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            ).sample
        return functional.mse_loss(output.float(), target[mine])

    networks = nn.ModuleDict(models)
    with flat_convolutions(networks):
        average = AveragedModel(networks, avg_fn=moving_average)
        averaged: Any = average.module

        def save(folder: Path) -> None:
            plain = build_models(tokenizer, seed)
            for name, model in plain.items():
                model.load_state_dict(plain_state(averaged[name]))
            save_pipeline(plain, tokenizer, vae_folder, folder)

        train_phase(
            work / "base.safetensors",
            {"networks": networks},
            loss_at,
            steps=steps,
            rates=(0.012, 6e-4) if start else (0.02, 1e-3),
            decay=True,
            averages={"networks": average},
            on_save=lambda: save(work / "sdxl-latest"),
            team=team,
        )
        if team.rank > 0:
            return
        save(out / "sdxl")
    log.info("base: saved %s", out / "sdxl")
