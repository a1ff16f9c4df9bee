"""Measures the base model: does it draw what its captions say?"""

from pathlib import Path

import numpy as np
from PIL.Image import Image

from benchmark_data.miniworld.measure.classifier import Classifier
from benchmark_data.miniworld.measure.sheet import save_sheet
from benchmark_data.miniworld.train.drawings import thing_numbers
from benchmark_data.miniworld.world import (
    ATTRIBUTES,
    FAMILIES,
    caption,
    random_look,
    random_thing,
    survives,
)
from mars2.pipelines import Pipeline
from mars2.stats import Estimate, cluster_mean

EACH = 4  # images a caption


def measure_base(
    pipeline: Pipeline, classifier: Classifier, folder: Path, *, images: int, seed: int
) -> dict[str, Estimate]:
    """Shares of images in which an attribute of the caption is recognised; captions are clusters.

    Colours and pattern count where the look lets them be told. "setting": the very look, where the
    caption names family, palette and texture; one image for every four of the others. A sheet of
    the first image of many captions goes to ``folder/base.png``.
    """
    rng = np.random.default_rng((seed, 31))
    values: dict[str, list[float | None]] = {name: [] for name in (*ATTRIBUTES, "family")}
    clusters: list[int] = []
    shown: list[Image] = []
    for number in range(images // EACH):
        family = FAMILIES[number % len(FAMILIES)]
        thing, look = random_thing(rng), random_look(rng, families=(family,))
        drawn = pipeline.generate(None, caption(thing, look, rng, drop=0.0), range(EACH))
        shown.append(drawn[0])
        reading = classifier.read(drawn)
        wanted = dict(zip(ATTRIBUTES, thing_numbers(thing), strict=True))
        for name in ATTRIBUTES:
            told = name in survives(look) and (name != "second" or bool(thing.second))
            right = reading.of(name) == wanted[name]
            values[name] += [float(one) if told else None for one in right]
        values["family"] += [float(one) for one in reading.of("family") == FAMILIES.index(family)]
        clusters += [number] * EACH
    save_sheet(shown[: 12 * len(FAMILIES)], folder / "base.png", columns=len(FAMILIES))
    results = {name: cluster_mean(each, clusters) for name, each in values.items()}
    styled = [family for family in FAMILIES if family != "photo"]
    right: list[float] = []
    for number in range(images // EACH):
        look = random_look(rng, families=(styled[number % len(styled)],))
        text = caption(random_thing(rng), look, rng, drop=0.0, palette=1.0, texture=1.0)
        reading = classifier.read(pipeline.generate(None, text, [number]))
        right += map(float, reading.is_in(look))
    return {**results, "setting": cluster_mean(right, range(len(right)))}
