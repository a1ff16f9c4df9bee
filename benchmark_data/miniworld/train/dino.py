"""Stage `dino`: a small ViT, self-distilled on drawings without labels, in transformers' layout.

Caron et al. 2021: a student that sees large and small crops predicts what a teacher, the student's
moving average, says of the large crops; centring and sharpening keep it from collapsing. Colours
are hardly changed among the crops, since here they tell one subject from another; the ground is
exchanged in most of them, since otherwise ground alone is learnt (same-subject top-1 at chance).
"""

import copy
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTModel

from benchmark_data.miniworld.train.common import log, replace_folder, write_json
from benchmark_data.miniworld.train.degrade import degrade, nothing
from benchmark_data.miniworld.train.drawings import (
    REFERENCE,
    TEST,
    draw_groups,
    load_bank,
    make_bank,
)
from benchmark_data.miniworld.train.loop import train_phase
from benchmark_data.miniworld.world import Split
from mars2.metrics.dino import MEAN, STD

SIZE, SMALL = 64, 32
PROTOTYPES = 512
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05
LARGE_CROPS, SMALL_CROPS = 2, 3


def build_model(seed: int) -> ViTModel:
    """An untrained ViT."""
    config = ViTConfig(
        image_size=SIZE,
        patch_size=16,
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=6,
        num_attention_heads=5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        model = ViTModel(config, add_pooling_layer=False)
    model.set_attn_implementation("eager")
    return model


class Projection(nn.Module):
    """The projection to prototypes, section 3.1 of the paper: MLP, unit sphere, unit weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes_head = nn.Parameter(torch.randn(PROTOTYPES, 64))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(n, PROTOTYPES)``."""
        features = functional.normalize(self.mlp(features), dim=-1)
        return features @ functional.normalize(self.prototypes_head, dim=-1).T


class Network(nn.Module):
    """Backbone and projection."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.backbone = build_model(seed)
        with torch.random.fork_rng():
            torch.random.manual_seed(seed + 1)
            self.projection = Projection(self.backbone.config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``(n, PROTOTYPES)`` of normalised pixels of either size."""
        output = self.backbone(pixels, interpolate_pos_encoding=pixels.shape[-1] != SIZE)
        logits: Tensor = self.projection(output.last_hidden_state[:, 0].float())
        return logits


def crops(images: Tensor, size: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """A random square of a share of the area in ``[low, high]``, perhaps mirrored, of each."""
    n = len(images)
    share = (low + (high - low) * torch.rand(n, generator=generator)).sqrt()
    mirrored = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    places = (torch.rand(2, n, generator=generator) * 2 - 1) * (1 - share)
    zero = torch.zeros(n)
    rows = [torch.stack([share * mirrored, zero, places[0]], 1)]
    rows += [torch.stack([zero, share, places[1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), [n, 3, size, size], align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def exchange_ground(images: Tensor, roles: Tensor, generator: torch.Generator) -> Tensor:
    """Images in [-1, 1], three in four on lumps of colour; role 0 ``(n, CELLS, CELLS)``: ground."""
    n = len(images)
    thing = (roles > 0).float()[:, None]
    wide = functional.max_pool2d(thing, 3, stride=1, padding=1)
    thing = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.5, wide, thing)
    ground = functional.interpolate(thing, images.shape[-2:], mode="nearest") == 0
    ground &= torch.rand(n, 1, 1, 1, generator=generator) < 0.75
    return torch.where(ground, nothing(n, generator), images)


def normalised(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the metric gives them to the ViT."""
    return ((images + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def distillation_loss(student: list[Tensor], teacher: list[Tensor], centre: Tensor) -> Tensor:
    """Mean cross-entropy over pairs of different crops (equation 3); logits ``(n, k)`` each."""
    losses = []
    for i, taught in enumerate(teacher):
        target = ((taught - centre) / TEACHER_TEMPERATURE).softmax(-1)
        losses += [
            -(target * (said / STUDENT_TEMPERATURE).log_softmax(-1)).sum(-1).mean()
            for j, said in enumerate(student)
            if i != j
        ]
    return torch.stack(losses).mean()


def class_tokens(model: ViTModel, pixels: Tensor) -> Tensor:
    """Unit features of uint8 images, ``(n, hidden)``."""
    with torch.no_grad():
        hidden = model(normalised(pixels.float() / 127.5 - 1)).last_hidden_state
    return functional.normalize(hidden[:, 0], dim=-1)


def measure(folder: Path, *, groups: int, seed: int, choices: int = 5) -> dict[str, object]:
    """How often a picture's nearest photo is one of the same subject, against chance.

    Held-out subjects: pictures of the test split in photo look and in its styles against one photo
    of each of its subjects. "seen": the same with ``choices`` things of the training's kind.
    """
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    model.train(False)
    results: dict[str, object] = {"chance": 1 / choices}
    splits: tuple[tuple[str, Split], ...] = (("seen", "train"), ("held out", "test"))
    for title, split in splits:
        bank = make_bank(draw_groups(10**6, groups, seed=seed, split=split)[0])
        features = class_tokens(model, bank.pixels)
        rng = np.random.default_rng((seed, 9))
        keys = bank.things @ (16 ** np.arange(5))
        photos = np.flatnonzero(bank.kinds == REFERENCE)
        counts = {"photo": [0, 0], "any look": [0, 0]}
        for row in np.flatnonzero((bank.kinds == TEST) | (bank.kinds == REFERENCE)):
            own = photos[(keys[photos] == keys[row]) & (photos != row)]
            others = photos[keys[photos] != keys[row]]
            if not len(own) or len(np.unique(keys[others])) < choices - 1:
                continue
            _, first = np.unique(keys[rng.permutation(others)], return_index=True)
            wrong = rng.permutation(others[first])[: choices - 1]
            options = np.concatenate([[rng.choice(own)], wrong])
            right = int((features[options] @ features[row]).argmax() == 0)
            kind = "photo" if bank.kinds[row] == REFERENCE else "any look"
            counts[kind][0] += right
            counts[kind][1] += 1
        results[title] = {
            kind: {"top_1": round(right / n, 4) if n else None, "n": n}
            for kind, (right, n) in counts.items()
        }
    return results


def run(out: Path, work: Path, *, smoke: bool, seed: int, steps: int | None) -> None:
    """Train on the drawings that the critic learns from, save the teacher to `out/dino`."""
    torch.set_num_threads(1)
    steps = steps or (24 if smoke else 900)
    batch = 16 if smoke else 96
    bank = load_bank(work, groups=12 if smoke else 5000, seed=seed)
    student = Network(seed)
    teacher = copy.deepcopy(student).requires_grad_(False)
    state = nn.Module()
    state.register_buffer("centre", torch.zeros(PROTOTYPES))

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng((seed, 6, step))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = rng.integers(len(bank.kinds), size=batch)
        clean = bank.pixels[rows].float() / 127.5 - 1

        def view(size: int, low: float, high: float) -> Tensor:
            damaged = degrade(
                exchange_ground(clean, bank.roles[rows], generator), generator, share=0.6
            )
            return normalised(crops(damaged, size, low, high, generator))

        momentum = 1 - (1 - 0.98) * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 1 - momentum)
        large = torch.cat([view(SIZE, 0.5, 1.0) for _ in range(LARGE_CROPS)])
        small = torch.cat([view(SMALL, 0.25, 0.6) for _ in range(SMALL_CROPS)])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                taught = teacher(large).float()
            said = torch.cat([student(large), student(small)]).float()
        centre = state.get_buffer("centre")
        if step == 0:
            centre.copy_(taught.mean(0))
        loss = distillation_loss(
            list(torch.split(said, batch)),
            list(torch.split(taught, batch)),
            state.get_buffer("centre"),
        )
        centre.lerp_(taught.mean(0), 0.1)
        return loss

    modules: dict[str, nn.Module] = {"student": student, "teacher": teacher, "state": state}
    train_phase(
        work / "dino.safetensors", modules, loss_at, steps=steps, rates=(0.008, 6e-4), decay=True
    )
    half = teacher.backbone.to(torch.float16)
    replace_folder(out / "dino", lambda folder: half.save_pretrained(folder))
    results = measure(out / "dino", groups=10 if smoke else 100, seed=seed)
    write_json(out / "dino" / "metrics.json", results)
    log.info("dino: %s", results)
