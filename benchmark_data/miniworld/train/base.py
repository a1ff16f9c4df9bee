"""Stage `base`: a small SDXL trained on drawn images and captions, saved as a diffusers pipeline.

The architecture is SDXL's own (two CLIP text encoders, `text_time` conditioning, attention at two
widths), so that every tool that reads SDXL reads it. The text encoders are trained with the UNet.
Held-out subjects, style settings and style names never occur.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from benchmark_data.miniworld.train.autoencoder import to_unit
from benchmark_data.miniworld.train.common import (
    Clock,
    TrainingError,
    learning_rate,
    load_state,
    log,
    pack,
    replace_folder,
    save_state,
    unpack,
    write_json,
)
from benchmark_data.miniworld.world import (
    STYLES,
    TOKEN,
    WORDS,
    Look,
    Thing,
    caption,
    draw,
    random_look,
    random_thing,
)

RESOLUTION = 64
TOKENS = 20
JITTER = 0.4  # silhouettes are learnt much sooner in moderate poses
EASY = 20_000  # of the first images, more than half are without a pattern: begin easy, then widen


def build_tokenizer() -> CLIPTokenizer:
    """Return a word-level CLIP tokenizer: base captions' words, style names, the rare token."""
    words = sorted(set(WORDS) | {style.phrase for style in STYLES.values()})
    words += [f"extra{index}" for index in range(8)]
    vocabulary: dict[str, int] = {}
    merges: list[tuple[str, str]] = []

    def add(piece: str) -> None:
        vocabulary.setdefault(piece, len(vocabulary))

    letters = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789.,-'"} | set(_bytes(TOKEN)))
    for letter in letters:
        add(letter)
        add(letter + "</w>")
    for word in [*words, TOKEN]:
        # from the end of the word: every piece carries the end mark, so no two words compete
        pieces = _bytes(word)
        right = pieces[-1] + "</w>"
        for left in reversed(pieces[:-1]):
            if (left, right) not in merges:
                merges.append((left, right))
            right = left + right
            add(right)
    for special in ("<|startoftext|>", "<|endoftext|>"):
        add(special)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def _bytes(word: str) -> list[str]:
    """Spell a word in the visible alphabet of byte-level BPE."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in visible}
    for offset, byte in enumerate(b for b in range(256) if b not in alphabet):
        alphabet[byte] = chr(256 + offset)
    return [alphabet[byte] for byte in word.encode()]


def build_models(tokenizer: CLIPTokenizer, seed: int) -> dict[str, Any]:
    """Return the UNet and both text encoders, freshly initialised from `seed`."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
    }
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        first = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=64,
                intermediate_size=256,
                num_hidden_layers=3,
                num_attention_heads=4,
                hidden_act="quick_gelu",
                projection_dim=64,
                **ids,
            )
        )
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=96,
                intermediate_size=384,
                num_hidden_layers=4,
                num_attention_heads=6,
                hidden_act="gelu",
                projection_dim=96,
                **ids,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=RESOLUTION // 4,
            in_channels=12,
            out_channels=12,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64, 128),
            layers_per_block=1,
            transformer_layers_per_block=1,
            attention_head_dim=(2, 4, 8),  # diffusers reads this as the number of heads
            cross_attention_dim=64 + 96,
            norm_num_groups=16,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 96,
        )
    return {"unet": unet, "text_encoder": first, "text_encoder_2": second}


def build_scheduler() -> EulerDiscreteScheduler:
    """Return the sampler: v-prediction, scaled-linear betas, trailing spacing."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        interpolation_type="linear",
    )


def alphas_cumprod() -> Tensor:
    """Return the 1,000 signal levels of the scheduler."""
    levels: Tensor = build_scheduler().alphas_cumprod
    return levels


def save_pipeline(
    models: dict[str, Any], tokenizer: CLIPTokenizer, vae: Path, folder: Path
) -> None:
    """Save everything as a `StableDiffusionXLPipeline` folder in fp16."""

    def write(target: Path) -> None:
        pipe = StableDiffusionXLPipeline(
            vae=AutoencoderTiny.from_pretrained(vae, dtype=torch.float32),
            text_encoder=models["text_encoder"],
            text_encoder_2=models["text_encoder_2"],
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=models["unet"],
            scheduler=build_scheduler(),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
        pipe.to(dtype=torch.float16)
        pipe.save_pretrained(target)
        for path in target.rglob("config.json"):  # diffusers notes where a part was loaded from
            config = json.loads(path.read_text())
            config.pop("_name_or_path", None)
            write_json(path, config)

    replace_folder(folder, write)


class Ema:
    """Exponential moving average of weights; the average is what is saved for use."""

    def __init__(self, models: dict[str, Any], decay: float) -> None:
        self.decay = decay
        self.average = {
            f"{name}.{key}": value.detach().clone().float()
            for name, model in models.items()
            for key, value in model.state_dict().items()
        }

    def update(self, models: dict[str, Any], step: int) -> None:
        """Move the average towards the weights; faster in the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, model in models.items():
                for key, value in model.state_dict().items():
                    average = self.average[f"{name}.{key}"]
                    if average.dtype.is_floating_point and value.dtype.is_floating_point:
                        average.lerp_(value.float(), 1 - decay)
                    else:
                        average.copy_(value)

    def copy_to(self, models: dict[str, Any]) -> None:
        """Write the average into models of the same shapes."""
        for name, model in models.items():
            model.load_state_dict(
                {key: self.average[f"{name}.{key}"] for key in model.state_dict()}
            )


def draw_set(vae: AutoencoderTiny, path: Path, *, first: int, count: int, seed: int) -> None:
    """Draw `count` images, encode them, and keep latents (fp16) with what was drawn."""
    drawn: list[tuple[Thing, Look]] = []
    latents = torch.empty((count, 12, RESOLUTION // 4, RESOLUTION // 4), dtype=torch.float16)
    pixels: list[np.ndarray] = []
    for index in range(count):
        rng = np.random.default_rng((seed, first + index))
        photo = rng.random() < 0.15
        look = random_look(rng, families=("photo",)) if photo else random_look(rng)
        easy = first + index < EASY and rng.random() < 0.6
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


def encode(models: dict[str, Any], ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return SDXL's text conditioning; rows with keep = 0 are unconditional, that is zeros."""
    first = models["text_encoder"](ids, output_hidden_states=True)
    second = models["text_encoder_2"](ids, output_hidden_states=True)
    embeddings = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    pooled = second.text_embeds
    return embeddings * keep[:, None, None], pooled * keep[:, None]


def run(out: Path, work: Path, *, smoke: bool, seed: int, steps: int | None) -> None:
    """Draw the training set in chunks, train, save `out/sdxl` (and samples on the way)."""
    torch.set_num_threads(1)
    steps = steps or (6 if smoke else 8000)
    chunk, chunks = (64, 1) if smoke else (5000, 12)
    batch_size = 8 if smoke else 64
    vae_folder = out / "sdxl" / "vae"
    if not vae_folder.exists():
        raise TrainingError(f"no autoencoder in {vae_folder}: run the stage `autoencoder` first")
    vae = AutoencoderTiny.from_pretrained(vae_folder, dtype=torch.float32)
    sets = [work / f"base-set-{seed}-{chunk}-{index}.safetensors" for index in range(chunks)]
    tokenizer = build_tokenizer()
    models = build_models(tokenizer, seed)
    models["unet"].set_attn_processor(AttnProcessor())  # bf16 SDPA's backward is slow on CPUs
    ema = Ema(models, 0.999)
    parameters = [p for model in models.values() for p in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99))
    signal = alphas_cumprod()
    checkpoint = work / "base.safetensors"
    start = 0
    if checkpoint.exists():
        tensors, meta = load_state(checkpoint)
        unpack(tensors, models, {"optimizer": optimizer})
        ema.average = {
            key.removeprefix("ema/"): value
            for key, value in tensors.items()
            if key.startswith("ema/")
        }
        start = int(meta["step"])
        log.info("base: going on at step %d of %d", start, steps)

    def save(step: int) -> None:
        tensors = pack(models, {"optimizer": optimizer})
        tensors |= {f"ema/{key}": value for key, value in ema.average.items()}
        save_state(checkpoint, tensors, {"step": step})
        averaged = build_models(tokenizer, seed)
        ema.copy_to(averaged)
        save_pipeline(averaged, tokenizer, vae_folder, work / "sdxl-latest")

    time_ids = torch.tensor([[RESOLUTION, RESOLUTION, 0, 0, RESOLUTION, RESOLUTION]])
    time_ids = time_ids.float().expand(batch_size, 6)
    available: list[Path] = []
    latents = torch.empty(0)
    drawn: list[tuple[Thing, Look]] = []
    saving, report = Clock(300), Clock(30)
    losses: list[float] = []
    for step in range(start, steps):
        # the first steps learn from what is drawn so far: a chunk more every 60 steps
        wanted = min(1 + step // 60, chunks)
        if len(available) < wanted:
            while len(available) < wanted:
                path = sets[len(available)]
                if not path.exists():
                    first = len(available) * chunk
                    draw_set(vae, path, first=first, count=chunk, seed=seed)
                available.append(path)
            latents, drawn = load_sets(available)
        rng = np.random.default_rng((seed, step))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = rng.integers(len(drawn), size=batch_size)
        clean = latents[torch.from_numpy(rows)].float()
        pictured = [drawn[row] for row in rows]
        texts = [caption(thing, look, rng) for thing, look in pictured]
        ids = tokenizer(
            texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).input_ids
        keep = torch.from_numpy((rng.random(batch_size) > 0.1).astype(np.float32))
        timesteps = torch.randint(0, 1000, (batch_size,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        level = signal[timesteps][:, None, None, None]
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        target = level.sqrt() * noise - (1 - level).sqrt() * clean
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings, pooled = encode(models, ids, keep)
            output = models["unet"](
                noisy,
                timesteps,
                embeddings,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            ).sample
        loss = functional.mse_loss(output.float(), target)
        if not torch.isfinite(loss):
            raise TrainingError(f"base: the loss is {loss.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(models, step)
        losses.append(loss.item())
        if report.due():
            mean = float(np.mean(losses[-100:]))
            log.info("base: step %d of %d, v-MSE %.4f", step, steps, mean)
        if saving.due():
            save(step + 1)
    save(steps)
    ema.copy_to(models)
    save_pipeline(models, tokenizer, vae_folder, out / "sdxl")
    log.info("base: saved %s", out / "sdxl")
