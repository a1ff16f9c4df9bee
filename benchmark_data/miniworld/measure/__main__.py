"""Prints how good the miniature world's models are, with intervals, and writes pictures to look at.

`python -m benchmark_data.miniworld.measure base loras suite --run runs/miniworld`
"""

import argparse
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark_data.load import load_suite
from benchmark_data.miniworld.measure.base import measure_base
from benchmark_data.miniworld.measure.classifier import (
    DRAWINGS,
    FAMILY_OF_LOOK,
    STEPS,
    Classifier,
    accuracies,
    calibrated,
    drawings,
    load_classifier,
    random_pictures,
)
from benchmark_data.miniworld.measure.fading import measure_fading, save_fading
from benchmark_data.miniworld.measure.loras import measure_loras
from benchmark_data.miniworld.measure.sheet import save_sheet
from benchmark_data.miniworld.measure.suite import (
    agreement,
    clear_agreement,
    correlations,
    rank_agreement,
    rank_truth,
    read_run,
    readers_agreement,
    style_errors,
    truths_by_method,
)
from benchmark_data.miniworld.settings import BARE, PALETTES, SEPARABLE, TEXTURES
from benchmark_data.miniworld.train import clip, critic_measure, dino
from benchmark_data.miniworld.train.common import write_json
from benchmark_data.miniworld.train.degrade import degrade
from benchmark_data.miniworld.world import (
    FAMILIES,
    GONE,
    STYLES,
    THERE,
    Look,
    Thing,
    draw,
    random_thing,
)
from mars2.pipelines import SdxlPipeline
from mars2.stats import Estimate
from mars2.store import RunStore

PACKAGE = Path(__file__).parents[1]
STYLE_DRAWINGS = 100
FEWEST = 60  # drawings that a classifier learns from
PARTS = ("classifier", "base", "loras", "critic", "fading", "clip", "dino", "suite")


def main() -> None:
    """Measure what is asked for; figures go to ``OUT/PART.json`` as well."""
    parser = argparse.ArgumentParser(prog="python -m benchmark_data.miniworld.measure")
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--weights", type=Path, default=PACKAGE / "weights", help="weights folder")
    parser.add_argument("--work", type=Path, default=Path("training"), help="drawings, classifier")
    parser.add_argument("--out", type=Path, default=Path("runs/measure"), help="figures, pictures")
    parser.add_argument(
        "--run", type=Path, action="append", help="scored run folder, for the part `suite`; repeat"
    )
    parser.add_argument("--images", type=int, default=1000, help="of the part `base`, in all")
    parser.add_argument("--each", type=int, default=20, help="images of the part `loras`, a prompt")
    parser.add_argument(
        "--guidance", type=float, help="of the parts `base` and `loras`; default: the suite's"
    )
    parser.add_argument("--seed", type=int, default=0)
    classifier = parser.add_argument_group("the classifier", "fewer of each: sooner, and rougher")
    classifier.add_argument("--networks", type=int, choices=(1, 2), default=2)
    classifier.add_argument("--drawings", type=int, default=DRAWINGS, help="a network learns from")
    classifier.add_argument("--steps", type=int, default=STEPS, help="a network learns for")
    chosen = parser.parse_args()
    if "suite" in chosen.parts and chosen.run is None:
        parser.error("the part `suite` needs --run")
    if chosen.drawings < FEWEST or chosen.steps < 1:
        parser.error(
            f"--drawings is {chosen.drawings} and --steps {chosen.steps}: give at least {FEWEST} "
            "and 1"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    chosen.work.mkdir(parents=True, exist_ok=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for part in chosen.parts:
        figures = _plain(_measure(part, chosen))
        write_json(chosen.out / f"{part}.json", figures)
        print(f"\n{part}")
        _show(figures)


def _measure(part: str, chosen: argparse.Namespace) -> Mapping[str, Any]:
    weights, seed = chosen.weights, chosen.seed
    if part == "critic":
        return critic_measure.measure(weights / "critic", groups=100, seed=seed)
    if part == "clip":
        return clip.measure(weights / "clip", groups=60, seed=seed)
    if part == "dino":
        return dino.measure(weights / "dino", groups=100, seed=seed)
    base = weights / "sdxl"
    alone = [
        load_classifier(chosen.work, base, seed=number, steps=chosen.steps, count=chosen.drawings)
        for number in range(seed, seed + chosen.networks)
    ]
    together = Classifier(*(network for one in alone for network in one.networks))
    classifier = calibrated(together, seed=seed)
    if part == "classifier":
        _save_textures(chosen.out / "textures.png")
        return _classifier(classifier, seed + 1)  # on drawings that neither has learnt from
    if part == "fading":
        save_fading(chosen.out / "fading.png")
        reader = critic_measure.Reader(weights / "critic")
        return measure_fading(reader.p_yes, classifier, each=STYLE_DRAWINGS, seed=seed)
    if part == "suite":
        runs = [RunStore.open(run) for run in chosen.run]
        readers = (classifier, *(calibrated(one, seed=seed) for one in alone))
        images, *each = (
            [image for run in runs for image in read_run(run, reader)] for reader in readers
        )
        of_two: dict[str, Any] = {}
        if len(each) == 2:
            of_two["the classifier's two networks agree"] = readers_agreement(*each)
            of_two["judge agrees where the two networks do"] = clear_agreement(*each)
        return {
            **of_two,
            "truth by method": truths_by_method(images),
            "judge agrees with the truth": agreement(images),
            "judge errs on the style": style_errors(images),
            "rank agreement of the seeds' halves": rank_agreement(images),
            "rank agreement with the truth": rank_truth(images),
            "correlation with the truth": correlations(images, seed=seed),
        }
    generation = load_suite("miniworld").generation
    pipeline = SdxlPipeline.load(
        base,
        dtype="float32",
        device="cpu",
        resolution=generation.resolution,
        steps=generation.steps,
        guidance_scale=(generation.guidance_scale if chosen.guidance is None else chosen.guidance),
        batch_size=10,
    )
    if part == "base":
        return measure_base(pipeline, classifier, chosen.out, images=chosen.images, seed=seed)
    return measure_loras(
        pipeline,
        classifier,
        weights / "loras",
        chosen.out,
        images=chosen.each,
        seed=seed,
    )


def _classifier(classifier: Classifier, seed: int) -> dict[str, object]:
    """Accuracy on new drawings, clean and damaged, and in each of the suite's styles."""
    pixels, truth = drawings(1000, seed=seed + 1)
    clean = pixels.float() / 127.5 - 1
    damaged = degrade(clean, torch.Generator().manual_seed(seed))
    rng = np.random.default_rng((seed, 78))
    styles = {}
    for name, style in STYLES.items():
        poses = rng.integers(2**31, size=STYLE_DRAWINGS)
        shown = [draw(random_thing(rng), style.look, seed=int(pose)) for pose in poses]
        styles[name] = float(classifier.read(shown).is_in(style.look).mean())
    faded, truth_of_faded = drawings(2000, seed=seed + 1, faded=True)
    read = classifier.read_pixels(faded.float() / 127.5 - 1)
    found = read.of("look") == truth_of_faded[:, -1].numpy()
    families = FAMILY_OF_LOOK[truth_of_faded[:, -1]]
    pictures = random_pictures(2000, seed=seed + 1, faded=True)
    contrasts = np.array([one.contrast for one in pictures])
    kinds = {
        "lost": contrasts == 0,
        "faint": (contrasts > 0) & (contrasts <= GONE[1]),
        "there": contrasts >= THERE[0],
    }
    by_contrast = {
        kind: {
            name: float(found[chosen & (families == FAMILIES.index(name))].mean())
            for name in SEPARABLE
        }
        for kind, chosen in kinds.items()
    }
    return {
        "clean": accuracies(classifier.read_pixels(clean), truth),
        "damaged": accuracies(classifier.read_pixels(damaged), truth),
        "the very setting of each style": styles,
        "a texture that is lost, faint, or there yet, by family": by_contrast,
    }


def _save_textures(path: Path) -> None:
    """Write a sheet of the families that can be bare: a column each, a row a texture, bare last."""
    cat = Thing("cat", "blue", "pink", "stripes", "yellow")
    rows = zip(*((*TEXTURES[family], BARE) for family in SEPARABLE), strict=True)
    drawn = [
        draw(cat, Look(family, next(iter(PALETTES[family])), texture), seed=3, jitter=0.4)
        for row in rows
        for family, texture in zip(SEPARABLE, row, strict=True)
    ]
    save_sheet(drawn, path, columns=len(SEPARABLE))


def _plain(value: Any) -> Any:
    """Figures as JSON takes them: estimates as mappings, numbers rounded."""
    if isinstance(value, Estimate):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _show(figures: Mapping[str, Any], indent: str = "  ") -> None:
    for name, value in figures.items():
        if not isinstance(value, Mapping):
            print(f"{indent}{name}: {value}")
        elif "n_clusters" in value:
            interval = "" if value["low"] is None else f" [{value['low']}, {value['high']}]"
            print(f"{indent}{name}: {value['value']}{interval}, n {value['n']}")
        else:
            print(f"{indent}{name}")
            _show(value, indent + "  ")


if __name__ == "__main__":
    main()
