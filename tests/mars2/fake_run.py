"""Builds run folders by hand, images and records included, for tests of what is made of them."""

import colorsys
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mars2.files import write_image
from mars2.job import MethodSpec, PlannedCase, RunSpec
from mars2.store import Cost, Record, RunStore

JUDGE = "critic@0123456789ab anyres float32 prompts short@abcdef012345"
CLIP = "miniature-clip@00ff00ff00ff size=64 mean=0.48,0.46,0.41"
DINO = "miniature-dino@ff00ff00ff00 resize 73 bicubic, crop 64, imagenet"
SUBJECTS = ("striped_cat", "spotted_teapot", "blue_fish", "bear_plushie")
STYLES = ("neon", "line_drawing", "stained_glass", "oil_painting")
METHODS = (
    MethodSpec("base"),
    MethodSpec("subject_only"),
    MethodSpec("style_only"),
    MethodSpec("direct_sum", {}, {"weight": 1.0}, source="aa11" * 4),
    MethodSpec("average", {}, {"weight": 0.5}, source="bb22" * 4),
    MethodSpec(
        "ziplora", {"steps": 100}, {"steps": 100, "lr": 0.01}, kind="fit", source="cc33" * 4
    ),
    MethodSpec("lorarar", {}, {"checkpoint": "hypernetwork.safetensors"}, source="dd44" * 4),
)
SKILL = {  # chances that subject and style are right
    "base": (0.05, 0.3),
    "subject_only": (0.95, 0.1),
    "style_only": (0.1, 0.95),
    "direct_sum": (0.6, 0.6),
    "average": (0.5, 0.35),
    "ziplora:steps=100": (0.8, 0.75),
    "lorarar": (0.85, 0.7),
}

Value = Callable[[str, str, int], tuple[list[bool | None], list[bool | None]]]
"""The judge's answers about subject and style for (method, case, seed)."""


def picture(subject: str, style: str, variant: int, size: int) -> Image.Image:
    """A disc with stripes on a ground; colors by subject and style, moved by the variant."""
    hue, ground = (hashlib.sha256(name.encode()).digest()[0] / 256 for name in (subject, style))
    rng = np.random.default_rng(variant)
    image = Image.new("RGB", (size, size), _color(ground, 0.25, 0.45 + 0.5 * ground))
    draw = ImageDraw.Draw(image)
    x, y = (rng.uniform(0.15, 0.35, 2) * size).round()
    draw.ellipse((x, y, x + size / 2, y + size / 2), _color(hue, 0.8, 0.9), _color(0, 0, 0.1), 2)
    for part in (0.15, 0.3):
        draw.line(
            (x, y + part * size, x + size / 2, y + part * size), _color(hue + 0.5, 0.7, 0.7), 3
        )
    return image


def _color(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def make_spec(
    *,
    methods: Sequence[MethodSpec] = METHODS,
    subjects: Sequence[str] = SUBJECTS[:2],
    styles: Sequence[str] = STYLES[:2],
    seeds: Sequence[int] = (0, 1, 2, 3),
    size: int = 64,
) -> RunSpec:
    """A run of all pairs."""
    return RunSpec(
        suite="miniworld",
        suite_revision="0a1b2c3d4e5f",
        split="test",
        cases=tuple(
            PlannedCase(f"{subject}_{style}", subject, style, f"a {subject} in {style} style")
            for subject in subjects
            for style in styles
        ),
        methods=tuple(methods),
        model="package:miniworld/weights/sdxl",
        model_revision="cafe" * 3,
        dtype="float32",
        device="cpu",
        adapters="weights/loras",
        adapter_digests={name: name for name in (*subjects, *styles)},
        seeds=tuple(seeds),
        steps=20,
        guidance_scale=5.0,
        negative_prompt="",
        resolution=size,
        environment={"mars2": "0.1.0", "torch": "2.14.1", "created": "2026-01-02T03:04:05+00:00"},
    )


def fill(
    store: RunStore,
    *,
    answers: Value | None = None,
    metrics: Sequence[str] = ("mars2", "clip", "dino"),
    size: int = 64,
    without_images: Sequence[str] = (),
    judge: str = JUDGE,
) -> None:
    """Write images, records and costs of all samples, by default by the methods' skills."""
    answers = answers or skilled
    records: list[Record] = []
    for sample in store.samples():
        if sample.method in without_images:
            continue
        rng = _rng("noise", sample.method, sample.case, sample.seed)
        write_image(
            sample.path, picture(sample.subject, sample.style, int(rng.integers(1000)), size)
        )
        key = (sample.method, sample.case, sample.seed)
        if "mars2" in metrics:
            records += mars2_records(*key, *answers(*key), judge=judge)
        skill = SKILL.get(sample.method, (0.5, 0.5))
        for name, level, given_by in (
            ("clip_i_style", skill[1], CLIP),
            ("clip_i_subject", skill[0], CLIP),
            ("clip_t", 0.1, CLIP),
            ("dino_style", skill[1], DINO),
            ("dino_subject", skill[0], DINO),
        ):
            if name.split("_")[0] in metrics:
                value = float(0.3 + 0.5 * level + 0.05 * rng.normal())
                records.append(Record(*key, name, value, "sha", given_by, {"references": 1}))
    store.append(records)
    for method in store.spec.labels:
        for case in dict.fromkeys(sample.case for sample in store.samples()):
            if method not in without_images:
                store.append_cost(_cost(method, case, len(store.spec.seeds)))


def skilled(method: str, case: str, seed: int) -> tuple[list[bool | None], list[bool | None]]:
    """Answers at random by the skill of the method; a few are neither yes nor no."""
    rng = _rng("skill", case, seed)
    hard = rng.uniform(-0.15, 0.15)
    subject, style = SKILL[method]
    right = rng.random(2) < (subject + hard, style + hard)
    subject_answers: list[bool | None] = [bool(right[0] ^ (rng.random() < 0.15)) for _ in range(4)]
    style_answers: list[bool | None] = [bool(right[1])]
    if method == "average" and seed == 3:
        style_answers = [None]
    return subject_answers, style_answers


def mars2_records(
    method: str,
    case: str,
    seed: int,
    subject: Sequence[bool | None],
    style: Sequence[bool | None],
    *,
    judge: str = JUDGE,
) -> list[Record]:
    """The three records that mars2.metrics.mars2 gives for these answers."""
    rng = _rng("p", method, case, seed)
    values = _majority(subject), _majority(style)
    both = 0.0 if 0.0 in values else None if None in values else 1.0
    records = [
        Record(method, case, seed, "mars2", both, "sha", judge,
               {"subject": values[0], "style": values[1]})
    ]  # fmt: skip
    for aspect, given, value in (("subject", subject, values[0]), ("style", style, values[1])):
        scored = [answer for answer in given if answer is not None]
        chances = [float(rng.uniform(0.5, 1)) for _ in given]
        detail = {
            "references": len(given),
            "answers": list(given),
            "p_yes": [
                None if answer is None else (p if answer else 1 - p)
                for answer, p in zip(given, chances, strict=True)
            ],
            "margins": [None] * len(given),
            "raw": [
                {True: "Yes", False: "No", None: "I cannot say <b>anything</b> & more"}[answer]
                for answer in given
            ],
            "yes_share": sum(scored) / len(scored) if scored else None,
        }
        records.append(Record(method, case, seed, f"mars2_{aspect}", value, "sha", judge, detail))
    return records


def _majority(answers: Sequence[bool | None]) -> float | None:
    yes, no = answers.count(True), answers.count(False)
    if 2 * yes > len(answers):
        return 1.0
    return 0.0 if 2 * no >= len(answers) else None


def references(folder: Path, concepts: Sequence[str], *, size: int = 64) -> dict[str, list[Path]]:
    """Write reference images, four a subject and one a style, and return where."""
    found: dict[str, list[Path]] = {}
    for concept in concepts:
        count = 4 if concept in SUBJECTS else 1
        found[concept] = [folder / f"{concept}-{number}.png" for number in range(count)]
        for number, path in enumerate(found[concept]):
            subject, style = (concept, "photo") if concept in SUBJECTS else ("sun", concept)
            write_image(path, picture(subject, style, number, size))
    return found


def _cost(method: str, case: str, images: int) -> Cost:
    merge = {"ziplora:steps=100": 31.4, "lorarar": 0.03}.get(method, 0.0021)
    stored = 0 if method == "base" else 49_152 if "_only" in method else 98_304
    return Cost(
        f"{method}/{case}", method, case, merge, 0.9 * images, images,
        410_000_000, 650_000_000, "resident set", stored, 4,
    )  # fmt: skip


def _rng(*key: object) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(repr(key).encode()).digest()))
