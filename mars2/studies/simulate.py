"""Whether the intervals and tests of the studies hold what they promise, in studies made up.

``python -m mars2.studies.simulate --studies 1000`` makes up a thousand studies of which all is
known, and tells how often a 95 % interval holds the truth and how often a test at 5 % finds a
difference where there is none.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mars2.studies import raters
from mars2.studies.association import Coefficient, Floats, Grouping, Integers, grouped, item_weights
from mars2.studies.pairwise import bradley_terry
from mars2.studies.result import estimate
from mars2.studies.testing import permutation_test

METHODS = 5
RATERS = 3
LARGE = 4000
"""Items of the study that gives the truth."""


@dataclass(frozen=True)
class Made:
    """A study made up: every method's image of every item, rated 1 to 5 and scored twice."""

    owner: Integers
    method: Integers
    ratings: Floats
    good: Floats
    other: Floats


def make(items: int, rng: np.random.Generator, *, by_item: float = 0.0) -> Made:
    """Return a study.

    Both metrics are as good as each other: what is right of an image, and noise.

    Args:
        items: Number of items.
        rng: Of everything.
        by_item: Share of the metrics' noise, in ``[0, 1]``, that all images of an item have in
            common.
    """
    owner = np.repeat(np.arange(items), METHODS)
    method = np.tile(np.arange(METHODS), items)
    quality = (
        np.linspace(-0.8, 0.8, METHODS)[method]
        + rng.normal(0, 0.6, items)[owner]
        + rng.normal(0, 0.7, len(owner))
    )
    felt = quality[:, None] + rng.normal(0, 0.6, (len(owner), RATERS))
    ratings = np.clip(np.round(3 + felt), 1, 5)
    scores = []
    for _ in range(2):
        shared, own = rng.normal(0, 1, items)[owner], rng.normal(0, 1, len(owner))
        scores.append(quality + by_item**0.5 * shared + (1 - by_item) ** 0.5 * own)
    return Made(owner, method, ratings, *scores)


Statistic = Callable[[Made, Floats], Floats]


def _association(name: Coefficient, grouping: Grouping) -> Statistic:
    def compute(made: Made, weights: Floats) -> Floats:
        mean = made.ratings.mean(axis=1)
        found = grouped(name, grouping, made.good, mean, made.owner, made.method, weights)
        return found.values

    return compute


def _alpha(made: Made, weights: Floats) -> Floats:
    return raters.krippendorff(made.ratings, made.owner, weights, "ordinal")


def _icc(made: Made, weights: Floats) -> Floats:
    return raters.intraclass(made.ratings, made.owner, weights)[0]


def _strength(made: Made, weights: Floats) -> Floats:
    """Return how much stronger the first method is than the second, by the first rater's order."""
    table = made.ratings[:, 0].reshape(-1, METHODS)
    differences = table[:, :, None] - table[:, None, :]
    wins = np.where(differences > 0, 1.0, np.where(differences < 0, 0.0, 0.5))
    wins[:, np.arange(METHODS), np.arange(METHODS)] = 0
    strengths = bradley_terry(np.tensordot(weights, wins, axes=1))
    return strengths[:, 1] - strengths[:, 0]


STATISTICS: Mapping[str, Statistic] = {
    "Spearman, flat": _association("spearman", "flat"),
    "Spearman, method": _association("spearman", "method"),
    "Spearman, item": _association("spearman", "item"),
    "Pearson, flat": _association("pearson", "flat"),
    "Kendall tau-b, flat": _association("kendall", "flat"),
    "pair accuracy, item": _association("accuracy", "item"),
    "Krippendorff's alpha, ordinal": _alpha,
    "ICC(A,1)": _icc,
    "Bradley-Terry, difference": _strength,
}


def coverage(
    name: str, *, studies: int, items: int = 60, resamples: int = 500, seed: int = 0
) -> float:
    """Return the share of studies whose 95 % interval of a statistic holds its true value."""
    statistic = STATISTICS[name]
    large = make(LARGE, np.random.default_rng([seed, 0]))
    truth = statistic(large, np.ones((1, LARGE)))[0]
    held = 0
    for number in range(studies):
        rng = np.random.default_rng([seed, 1, number])
        values = statistic(make(items, rng), item_weights(items, resamples, rng))
        found = estimate(values, items, items)
        held += (
            found.low is not None and found.high is not None and (found.low <= truth <= found.high)
        )
    return held / studies


def rejections(
    *, studies: int, units: str, by_item: float = 0.0, items: int = 60, permutations: int = 199,
    seed: int = 0,
) -> float:  # fmt: skip
    """Return how often the permutation test tells two equally good metrics apart at 5 %.

    Args:
        studies: Number of studies made up.
        units: What is exchanged: "images" (PERM-BOTH) or "items".
        by_item: Share of the metrics' noise that images of an item have in common.
        items: Of a study.
        permutations: Of a test; 1 less than a multiple of 20 makes it exact, with the order
            observed counted.
        seed: Of everything.
    """
    found = 0
    for number in range(studies):
        made = make(items, np.random.default_rng([seed, 2, number]), by_item=by_item)
        group = np.zeros(len(made.owner), dtype=int)
        _, p = permutation_test(
            made.good, made.other, made.ratings.mean(axis=1), group, name="spearman",
            unit=None if units == "images" else made.owner, permutations=permutations,
            seed=number,
        )  # fmt: skip
        found += p <= 0.05
    return found / studies


def main() -> None:
    """Print how often intervals hold and tests reject."""
    parser = argparse.ArgumentParser(prog="python -m mars2.studies.simulate", description=__doc__)
    parser.add_argument("--studies", type=int, default=1000, help="studies made up")
    parser.add_argument("--items", type=int, default=60, help="items of a study")
    chosen = parser.parse_args()
    for name in STATISTICS:
        share = coverage(name, studies=chosen.studies, items=chosen.items)
        sys.stdout.write(f"95 % interval of {name:<32} holds the truth in {share:.1%}\n")
    for by_item in (0.0, 0.5):
        for units in ("images", "items"):
            share = rejections(
                studies=chosen.studies, units=units, by_item=by_item, items=chosen.items,
                permutations=199,
            )  # fmt: skip
            sys.stdout.write(
                f"null rejected at 5 %, {units} exchanged, {by_item:.0%} of the noise by item: "
                f"{share:.1%}\n"
            )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
