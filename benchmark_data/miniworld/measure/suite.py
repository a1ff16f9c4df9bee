"""Measures what a run's scores are worth: against the known truth, and against its other seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark_data.miniworld.measure.classifier import Classifier
from benchmark_data.miniworld.world import STYLES, SUBJECTS
from mars2.files import read_image
from mars2.job import CONTROLS
from mars2.stats import Estimate, cluster_mean
from mars2.store import RunStore

Floats = NDArray[np.float64]
TRUTHS = ("subject", "style", "both")
ASPECTS = {"mars2_subject": "subject", "mars2_style": "style", "mars2": "both"}
RESAMPLES = 500


@dataclass(frozen=True)
class Image:
    """One image of a run: what is true of it, and its scores."""

    method: str
    case: str
    style: str
    seed: int
    truth: Mapping[str, bool]
    scores: Mapping[str, float]


def read_run(store: RunStore, classifier: Classifier) -> list[Image]:
    """Every image of a scored run, with what the classifier reads off it as truth."""
    scores: dict[tuple[str, str, int], dict[str, float]] = {}
    for record in store.records():
        if record.value is not None:
            key = (record.method, record.case, record.seed)
            scores.setdefault(key, {})[record.metric] = record.value
    samples = store.samples()
    images = []
    for start in range(0, len(samples), 128):
        part = samples[start : start + 128]
        reading = classifier.read([read_image(sample.path) for sample in part])
        for row, sample in enumerate(part):
            thing, look = SUBJECTS[sample.subject].thing, STYLES[sample.style].look
            subject = bool(reading.shows(thing, look)[row])
            style = bool(reading.is_in(look)[row])
            truth = {"subject": subject, "style": style, "both": subject and style}
            known = scores.get((sample.method, sample.case, sample.seed), {})
            images.append(
                Image(sample.method, sample.case, sample.style, sample.seed, truth, known)
            )
    return images


def agreement(images: Sequence[Image]) -> dict[str, Estimate]:
    """Share of images on which judge and classifier agree, by score; clusters are pairs."""
    return {
        metric: cluster_mean(
            [
                float((image.scores[metric] > 0.5) == image.truth[aspect])
                if metric in image.scores
                else None
                for image in images
            ],
            [image.case for image in images],
        )
        for metric, aspect in ASPECTS.items()
    }


def style_errors(images: Sequence[Image]) -> dict[str, dict[str, Estimate]]:
    """How the judge errs on each style: what it passes against the classifier, and refuses.

    Shares of all images in a style that have the score; clusters are pairs.
    """
    errors: dict[str, dict[str, Estimate]] = {}
    for style in dict.fromkeys(image.style for image in images):
        shown = [one for one in images if one.style == style and "mars2_style" in one.scores]
        yes = [image.scores["mars2_style"] > 0.5 for image in shown]
        true = [image.truth["style"] for image in shown]
        cases = [image.case for image in shown]
        errors[style] = {
            "passed": cluster_mean(
                [float(said and not right) for said, right in zip(yes, true, strict=True)], cases
            ),
            "refused": cluster_mean(
                [float(right and not said) for said, right in zip(yes, true, strict=True)], cases
            ),
        }
    return errors


def readers_agreement(first: Sequence[Image], second: Sequence[Image]) -> dict[str, Estimate]:
    """Share of images in which two readers find the same truth; clusters are pairs.

    The images are the same, in the same order.
    """
    cases = [image.case for image in first]
    return {
        truth: cluster_mean(
            [
                float(one.truth[truth] == other.truth[truth])
                for one, other in zip(first, second, strict=True)
            ],
            cases,
        )
        for truth in TRUTHS
    }


def clear_agreement(first: Sequence[Image], second: Sequence[Image]) -> dict[str, Estimate]:
    """`agreement` on the images in which two readers find the same truth, by score."""
    return {
        metric: agreement(
            [
                one
                for one, other in zip(first, second, strict=True)
                if one.truth[aspect] == other.truth[aspect]
            ]
        )[metric]
        for metric, aspect in ASPECTS.items()
    }


def correlations(images: Sequence[Image], *, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Pearson correlation over images of every score with every truth, bootstrapped over pairs."""
    metrics = list(dict.fromkeys(name for image in images for name in image.scores))
    cases = list(dict.fromkeys(image.case for image in images))
    rows = [np.flatnonzero([image.case == case for image in images]) for case in cases]
    rng = np.random.default_rng(seed)
    picks = [rng.integers(len(cases), size=len(cases)) for _ in range(RESAMPLES)]
    results: dict[str, dict[str, Estimate]] = {}
    for metric in metrics:
        values = np.array([image.scores.get(metric, np.nan) for image in images])
        results[metric] = {}
        for truth in TRUTHS:
            facts = np.array([float(image.truth[truth]) for image in images])
            whole = _pearson(values, facts)
            resampled = [_pearson(*_taken(values, facts, rows, pick)) for pick in picks]
            known = [one for one in resampled if one is not None]
            low, high = np.quantile(known, [0.025, 0.975]) if known else (None, None)
            results[metric][truth] = Estimate(
                whole,
                None if low is None else float(low),
                None if high is None else float(high),
                int(np.isfinite(values).sum()),
                int(np.isnan(values).sum()),
                len(cases),
            )
    return results


def _taken(
    values: Floats, facts: Floats, rows: Sequence[NDArray[np.int64]], pick: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    chosen = np.concatenate([rows[index] for index in pick])
    return values[chosen], facts[chosen]


def _pearson(values: Floats, facts: Floats) -> float | None:
    """Correlation where both are known; None where one of them does not vary."""
    known = np.isfinite(values)
    values, facts = values[known], facts[known]
    if len(values) < 2 or values.std() == 0 or facts.std() == 0:
        return None
    return float(np.corrcoef(values, facts)[0, 1])


def method_means(images: Sequence[Image], metric: str, seeds: Sequence[int]) -> dict[str, float]:
    """Mean of a score by method, over some seeds."""
    means: dict[str, list[float]] = {}
    for image in images:
        if image.seed in seeds and metric in image.scores:
            means.setdefault(image.method, []).append(image.scores[metric])
    return {method: float(np.mean(values)) for method, values in means.items()}


def rank_agreement(images: Sequence[Image], metric: str = "mars2") -> float | None:
    """Kendall's tau-b of the methods' means (controls aside) over two halves of the seeds."""
    seeds = sorted({image.seed for image in images})
    halves = [seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]]
    first, second = (method_means(images, metric, half) for half in halves)
    return _tau(first, second)


def rank_truth(images: Sequence[Image]) -> dict[str, float | None]:
    """Kendall's tau-b of each score's ranking of the methods (controls aside) with the truth's.

    The truth is the share of a method's images in which subject and style are both right.
    """
    shares: dict[str, list[float]] = {}
    for image in images:
        shares.setdefault(image.method, []).append(float(image.truth["both"]))
    truth = {method: float(np.mean(values)) for method, values in shares.items()}
    seeds = sorted({image.seed for image in images})
    metrics = dict.fromkeys(name for image in images for name in image.scores)
    return {metric: _tau(method_means(images, metric, seeds), truth) for metric in metrics}


def _tau(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    methods = [method for method in first if method not in CONTROLS and method in second]
    a, b = (np.round([means[m] for m in methods], 9) for means in (first, second))
    i, j = np.triu_indices(len(methods), 1)
    signs_a, signs_b = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
    total = np.sqrt((signs_a != 0).sum() * (signs_b != 0).sum())
    return None if total == 0 else float((signs_a * signs_b).sum() / total)


def truths_by_method(images: Sequence[Image]) -> dict[str, dict[str, Estimate]]:
    """Share of images of which a truth holds, by method; clusters are pairs."""
    methods = dict.fromkeys(image.method for image in images)
    return {
        method: {
            truth: cluster_mean(
                [float(image.truth[truth]) for image in images if image.method == method],
                [image.case for image in images if image.method == method],
            )
            for truth in TRUTHS
        }
        for method in methods
    }
