"""Builds entries of a small suite by hand, for tests of what is made of them."""

import colorsys
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from leaderboards.draft import UNNAMED, Draft, assemble
from leaderboards.entry import Costs, Generation, Judge, Method, SuiteRef
from leaderboards.facts import CaseFacts, SuiteFacts
from leaderboards.records import ImageRecord, Records

SUBJECTS = ("cat", "mug", "rocket")
STYLES = ("neon", "ink", "waxwork")
CASES = tuple(
    CaseFacts(f"{subject}_{style}", subject, style, f"a {subject} in {style} style")
    for subject in SUBJECTS
    for style in STYLES
)
SEEDS = (0, 1, 2, 3)
PROMPTS = "short@abcdef012345"
JUDGE = Judge(
    f"critic@0123456789ab anyres float32 prompts {PROMPTS}",
    "critic", "0123456789ab", "anyres", "float32", PROMPTS, True,
)  # fmt: skip
SUITE = SuiteRef("tiny", "0a1b2c3d4e5f", "test")
GENERATION = Generation("package:sdxl", "cafe" * 3, "ab" * 32, 64, 20, 3.0, "", "float32", "cpu")
FACTS = SuiteFacts(
    "tiny", "Three subjects, three styles", "0a1b2c3d4e5f", "test", CASES, SEEDS,
    "package:sdxl", 64, 20, 3.0, "", "critic@0123456789ab", "anyres", PROMPTS, "ab" * 32,
    "Apache-2.0", dict.fromkeys(SUBJECTS, 3) | dict.fromkeys(STYLES, 1),
    base_revision="cafe" * 3,
)  # fmt: skip
SKILL: Mapping[str, tuple[float, float]] = {  # chances that subject and style are right
    "base": (0.05, 0.1),
    "subject_only": (0.95, 0.05),
    "style_only": (0.05, 0.95),
    "average": (0.55, 0.5),
    "ties": (0.5, 0.55),
    "ziplora": (0.95, 0.9),
    "k_lora": (0.9, 0.95),
    "lorarar": (0.9, 0.9),
}
TRACKS = {"ziplora": "fit", "k_lora": "policy", "lorarar": "trained"} | dict.fromkeys(
    ("base", "subject_only", "style_only"), "control"
)
KINDS = {"ziplora": "fit", "k_lora": "policy"}


def draft(
    name: str,
    skill: tuple[float, float] = (0.5, 0.5),
    *,
    texts: Mapping[str, str] | None = None,
    label: str | None = None,
    judge: Judge = JUDGE,
    suite: SuiteRef = SUITE,
    cases: Sequence[CaseFacts] = CASES,
    seeds: tuple[int, ...] = SEEDS,
    track: str | None = None,
    notes: str = "",
) -> Draft:
    """An entry of a method with these chances that subject and style are right."""
    rows = []
    for case in cases:
        for seed in seeds:
            hard = _rng("hard", case.id, seed).uniform(-0.05, 0.05)
            rng = _rng("skill", name, case.id, seed)
            right = rng.random(2) < (skill[0] + hard, skill[1] + hard)
            rows.append(
                ImageRecord(
                    case.id,
                    seed,
                    hashlib.sha256(f"{name}{label}{case.id}{seed}".encode()).hexdigest()[:16],
                    _answers(bool(right[0]), 3, rng),
                    _answers(bool(right[1]), 1, rng),
                    {
                        "clip_t": round(0.3 + 0.02 * float(rng.normal()), 6),
                        "dino_subject": round(0.4 + 0.3 * skill[0] + 0.05 * float(rng.normal()), 6),
                    },
                )
            )
    track = track or TRACKS.get(name, "weights")
    trained = track == "trained"
    merge = {"fit": 31.4, "trained": 0.03}.get(track, round(0.002 + len(name) / 1000, 4))
    told = {
        "summary": "Merge two updates.",
        "paper": "https://arxiv.org/abs/2412.05148",
        "licence": "Apache-2.0",
        **(texts or {}),
    }
    return assemble(
        suite=suite,
        method=Method(
            name=name,
            label=label or name,
            version=UNNAMED,
            kind=KINDS.get(name, "layer"),
            track=track,
            summary=told["summary"],
            options={},
            resolved={"weight": 0.5, "checkpoint": "net.bin"} if trained else {"weight": 0.5},
            files={"checkpoint": "dd" * 32} if trained else {},
            code=hashlib.sha256(name.encode()).hexdigest(),
            paper=told["paper"],
            url="",
            licence=told["licence"],
            training="600 steps" if trained else "",
        ),
        judge=judge,
        generation=GENERATION,
        cases=cases,
        seeds=seeds,
        records=Records(tuple(rows), ("clip_t", "dino_subject")),
        given_by={"clip_t": "clip@00", "dino_subject": "dino@00"},
        images=[picture(case, name) for case in cases],
        costs=Costs(merge, 0.3, 10**9, 11 * 10**8, "resident set", 107520, 4),
        environment={"mars2": "0.1.0", "numpy": "2.4.6", "torch": "2.14.1"},
        notes=notes,
    )


def board(skills: Mapping[str, tuple[float, float]] = SKILL) -> list[Draft]:
    """Entries of several methods, the controls among them."""
    return [draft(name, skill) for name, skill in skills.items()]


def write(results: Path, drafts: Sequence[Draft]) -> list[Path]:
    """Write entries, and return where they lie."""
    return [one.write(results) for one in drafts]


def picture(case: CaseFacts, method: str, size: int = 48) -> Image.Image:
    """A disc on a ground, colors by subject and style, moved by the method."""
    hue, ground, move = (
        hashlib.sha256(text.encode()).digest()[0] / 256
        for text in (case.subject, case.style, method + case.id)
    )
    image = Image.new("RGB", (size, size), _color(ground, 0.3, 0.9))
    x = (0.1 + 0.4 * move) * size
    ImageDraw.Draw(image).ellipse((x, size / 4, x + size / 2, 3 * size / 4), _color(hue, 0.8, 0.8))
    return image


def _answers(right: bool, references: int, rng: np.random.Generator) -> str:
    marks = ["y" if right else "n"] * references
    if references > 2 and rng.random() < 0.2:
        marks[0] = "n" if right else "y"  # a minority
    return "".join(marks)


def _color(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _rng(*key: object) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(repr(key).encode()).digest()))
