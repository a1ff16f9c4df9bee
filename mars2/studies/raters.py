"""How far people agree with each other, for many resamples of the items at once; numpy.

A resample is a row of weights, as in `association`.
"""

from typing import Literal, get_args

import numpy as np

from mars2.studies.association import Floats, Integers

Level = Literal["nominal", "ordinal", "interval"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""What the differences of two scores mean, from none to all of them."""

MOST_SCORES = 128
"""Most different scores of which Krippendorff's alpha is computed."""


def krippendorff(table: Floats, owner: Integers, weights: Floats, level: Level) -> Floats:
    """Return Krippendorff's alpha (2011, Computing Krippendorff's Alpha-Reliability) a row.

    Args:
        table: (images, raters); NaN: not rated.
        owner: (images,), the item of each image.
        weights: (rows, items).
        level: What differences count.

    Returns:
        (rows,); NaN where no two raters rated the same image, or all gave the same score.
    """
    scores = np.unique(table[~np.isnan(table)])
    count = len(scores)
    if not 0 < count <= MOST_SCORES:
        return np.full(len(weights), np.nan)
    counts = (table[:, :, None] == scores).sum(axis=1).astype(float)  # (images, scores)
    rated = counts.sum(axis=1)
    counts, owner, rated = counts[rated > 1], owner[rated > 1], rated[rated > 1]
    pairs = counts[:, :, None] * counts[:, None, :] / (rated - 1)[:, None, None]
    own = np.arange(count)
    pairs[:, own, own] -= counts / (rated - 1)[:, None]
    by_item = np.zeros((weights.shape[1], count, count))
    np.add.at(by_item, owner, pairs)
    coincidences = np.tensordot(weights, by_item, axes=1)  # (rows, scores, scores)
    marginals = coincidences.sum(axis=2)  # (rows, scores)
    distance = _distance(scores, marginals, level)
    total = marginals.sum(axis=1)
    observed = (coincidences * distance).sum(axis=(1, 2))
    expected = (marginals[:, :, None] * marginals[:, None, :] * distance).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = 1 - (total - 1) * observed / expected
        return np.where(expected > 0, alpha, np.nan)


def _distance(scores: Floats, marginals: Floats, level: Level) -> Floats:
    """Return the squared difference of two scores, (rows or 1, scores, scores)."""
    if level == "nominal":
        return 1.0 - np.eye(len(scores))[None]
    if level == "interval":
        return np.asarray((scores[:, None] - scores)[None] ** 2)
    place = np.cumsum(marginals, axis=1) - marginals / 2
    return np.asarray((place[:, :, None] - place[:, None, :]) ** 2)


def fleiss(table: Floats, owner: Integers, weights: Floats) -> tuple[Floats, int]:
    """Return Fleiss' kappa (1971) a row, and the number of images it is over.

    It is defined for images of equally many ratings: those of the commonest number above 1.
    """
    rated = (~np.isnan(table)).sum(axis=1)
    several = rated[rated > 1]
    if not len(several):
        return np.full(len(weights), np.nan), 0
    number = int(np.bincount(several).argmax())
    chosen = rated == number
    scores = np.unique(table[~np.isnan(table)])
    counts = (table[chosen][:, :, None] == scores).sum(axis=1).astype(float)
    drawn = weights[:, owner[chosen]]
    own = (counts * (counts - 1)).sum(axis=1) / (number * (number - 1))
    total = drawn.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = (drawn * own).sum(axis=1) / total
        by_chance = ((drawn @ counts / (total * number)[:, None]) ** 2).sum(axis=1)
        kappa = (observed - by_chance) / (1 - by_chance)
    return np.where(by_chance < 1 - 1e-12, kappa, np.nan), int(chosen.sum())


def intraclass(table: Floats, owner: Integers, weights: Floats) -> tuple[Floats, Floats, int]:
    """Return ICC(A,1) and ICC(A,k) (McGraw and Wong 1996) a row, and the number of images.

    Absolute agreement, images and raters at random, one rating (A,1) or the mean of all (A,k);
    over the images that every rater rated.
    """
    chosen = ~np.isnan(table).any(axis=1)
    k = table.shape[1]
    nothing = np.full(len(weights), np.nan)
    if chosen.sum() < 2 or k < 2:
        return nothing, nothing, int(chosen.sum())
    rated, drawn = table[chosen], weights[:, owner[chosen]]  # (n, k), (rows, n)
    rated = rated - rated.mean()
    n = drawn.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = drawn @ rated / n[:, None]  # (rows, k)
        grand = columns.mean(axis=1)
        own = rated.mean(axis=1)
        rows = k * (drawn * (own - grand[:, None]) ** 2).sum(axis=1)
        across = n * ((columns - grand[:, None]) ** 2).sum(axis=1)
        squares = drawn @ (rated**2).sum(axis=1) - 2 * grand * (drawn @ rated.sum(axis=1))
        total = squares + k * n * grand**2
        mean_rows = rows / (n - 1)
        mean_columns = across / (k - 1)
        mean_error = np.maximum(total - rows - across, 0) / ((n - 1) * (k - 1))
        spread = (mean_columns - mean_error) / n
        single = (mean_rows - mean_error) / (mean_rows + (k - 1) * mean_error + k * spread)
        average = (mean_rows - mean_error) / (mean_rows + spread)
    return single, average, int(chosen.sum())


def others_mean(table: Floats, rater: int) -> Floats:
    """Return (images,): the mean of the other raters; NaN where there is none."""
    return mean_rating(np.delete(table, rater, axis=1))


def mean_rating(table: Floats) -> Floats:
    """Return (images,): the mean of the ratings there are; NaN where there is none."""
    there = ~np.isnan(table)
    count = there.sum(axis=1)
    total = np.where(there, table, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def spearman_brown(correlation: Floats, times: float = 2) -> Floats:
    """Return the reliability of a mean of `times` as many ratings.

    >>> float(spearman_brown(np.array([0.5]))[0].round(4))
    0.6667
    """
    return np.asarray(times * correlation / (1 + (times - 1) * correlation))


def halves(raters: int, most: int, rng: np.random.Generator) -> list[Integers]:
    """Return up to `most` different halves of the raters, each without its complement."""
    found: dict[tuple[int, ...], None] = {}
    for _ in range(20 * most):
        half = rng.permutation(raters)[: raters // 2]
        complement = np.setdiff1d(np.arange(raters), half)
        key = tuple(sorted(half))
        if 2 * len(half) == raters:
            key = min(key, tuple(sorted(complement)))
        found.setdefault(tuple(int(number) for number in key))
        if len(found) == most:
            break
    return [np.array(key) for key in sorted(found)]
