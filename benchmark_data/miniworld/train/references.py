"""Stage `references`: draws the reference photographs of subjects and pictures of styles."""

from pathlib import Path

import numpy as np

from benchmark_data.miniworld.train.base import JITTER
from benchmark_data.miniworld.train.common import log, replace_folder
from benchmark_data.miniworld.world import (
    CATEGORIES,
    STYLES,
    SUBJECTS,
    Look,
    Thing,
    draw,
    random_look,
    random_thing,
)

SUBJECT_REFERENCES = 4
STYLE_REFERENCES = 3


def style_things(style: str) -> list[Thing]:
    """Return what a style's references show: another category each.

    With one thing in all of them, its LoRA learns the thing with the style.
    """
    rng = np.random.default_rng(list(style.encode()))
    first = list(STYLES).index(style)
    return [
        random_thing(
            rng,
            categories=(CATEGORIES[(first + 5 * number) % len(CATEGORIES)],),
            patterns=("plain", "stripes"),
        )
        for number in range(STYLE_REFERENCES)
    ]


def concept_images(concept: str) -> list[tuple[Thing, Look, int]]:
    """Return what a concept's references show: thing, look and pose seed of each."""
    rng = np.random.default_rng(list(concept.encode()))
    if concept in SUBJECTS:
        thing = SUBJECTS[concept].thing
        return [
            (thing, random_look(rng, families=("photo",)), int(rng.integers(2**31)))
            for _ in range(SUBJECT_REFERENCES)
        ]
    look = STYLES[concept].look
    return [(thing, look, int(rng.integers(2**31))) for thing in style_things(concept)]


def run(out: Path, work: Path, *, smoke: bool, seed: int, steps: int | None) -> None:
    """Write `references/CONCEPT/N.png` beside the weights folder; the same bytes every time."""
    del work, smoke, seed, steps  # the references are part of the suite: nothing varies
    root = out.parent / "references"
    for concept in [*SUBJECTS, *STYLES]:

        def write(folder: Path, concept: str = concept) -> None:
            for index, (thing, look, pose) in enumerate(concept_images(concept)):
                image = draw(thing, look, seed=pose, jitter=JITTER)
                image.save(folder / f"{index}.png", optimize=False)

        replace_folder(root / concept, write)
    log.info("references: %d concepts in %s", len(SUBJECTS) + len(STYLES), root)
