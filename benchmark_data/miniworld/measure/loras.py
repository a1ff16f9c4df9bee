"""Measures single LoRAs: do they draw their own subject, their own style?"""

from pathlib import Path

import numpy as np
from PIL.Image import Image

from baselines.formats import load_adapter
from benchmark_data.miniworld.measure.classifier import Classifier
from benchmark_data.miniworld.measure.sheet import save_sheet
from benchmark_data.miniworld.world import (
    PHOTO,
    STYLES,
    SUBJECTS,
    Look,
    random_thing,
    style_prompt,
    subject_prompt,
)
from mars2.pipelines import Pipeline
from mars2.stats import Estimate, cluster_mean

THINGS = 5  # that a style is asked for, none of them in its references
FLAT = Look("flat", "sky", "plain")  # a held-out prompt of a subject; the setting does not matter


def measure_loras(
    pipeline: Pipeline, classifier: Classifier, loras: Path, folder: Path, *, images: int, seed: int
) -> dict[str, dict[str, Estimate]]:
    """Shares of images that show the concept, by concept and over all (clusters: concepts).

    "own": the subject on its own prompt, as a photo. "held out": the subject in flat style; the
    style on prompts of things that its references do not show. "content": whether the style LoRA
    kept the thing of the prompt. Sheets go to ``folder/subjects.png`` and ``folder/styles.png``.
    """
    rights: dict[str, dict[str, list[float]]] = {}
    sheets: dict[str, list[Image]] = {"subjects": [], "styles": []}
    for subject in SUBJECTS.values():
        adapter = load_adapter(loras / f"{subject.id}.safetensors")
        own = pipeline.generate(adapter, subject_prompt(subject), range(images))
        flat = pipeline.generate(adapter, f"{subject_prompt(subject)} in flat style", range(images))
        sheets["subjects"] += [*own[:4], *flat[:4]]
        rights[subject.id] = {
            "own": list(map(float, classifier.read(own).shows(subject.thing, PHOTO))),
            "held out": list(map(float, classifier.read(flat).shows(subject.thing, FLAT))),
        }
    rng = np.random.default_rng((seed, 32))
    for style in STYLES.values():
        adapter = load_adapter(loras / f"{style.id}.safetensors")
        rights[style.id] = {"held out": [], "content": []}
        for number in range(THINGS):
            thing = random_thing(rng)
            drawn = pipeline.generate(adapter, style_prompt(thing, style), range(images // THINGS))
            reading = classifier.read(drawn)
            rights[style.id]["held out"] += map(float, reading.is_in(style.look))
            rights[style.id]["content"] += map(float, reading.shows(thing, style.look))
            sheets["styles"] += drawn[:2] if number < 4 else []
    for name, shown in sheets.items():
        save_sheet(shown, folder / f"{name}.png", columns=8)
    results = {
        concept: {name: cluster_mean(each, range(len(each))) for name, each in parts.items()}
        for concept, parts in rights.items()
    }
    for role, concepts in (("all subjects", SUBJECTS), ("all styles", STYLES)):
        names = rights[next(iter(concepts))]
        results[role] = {
            name: cluster_mean(
                [value for concept in concepts for value in rights[concept][name]],
                [concept for concept in concepts for _ in rights[concept][name]],
            )
            for name in names
        }
    return results
