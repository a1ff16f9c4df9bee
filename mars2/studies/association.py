"""How two scores of the same images go together, for many resamples of the items at once; numpy.

A resample is a row of weights: how often each item was drawn. A coefficient takes the scores once
and all rows together, which makes a thousand resamples as cheap as a few. Pairs of an image with
its own copy are never counted: they would be ties that nobody observed.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int_]

Coefficient = Literal["pearson", "spearman", "kendall", "accuracy"]
COEFFICIENTS: tuple[Coefficient, ...] = get_args(Coefficient)
Grouping = Literal["flat", "method", "item", "system"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
"""Over all images; over the images of a method, then the mean over methods; over the images of an
item, then the mean over items; over the means of methods."""

_BLOCK = 1024
"""Images whose pairs with all others are looked at together."""


def settled(values: Floats) -> Floats:
    """Return values rounded to nine decimals of their largest, so that noise breaks no ties.

    >>> float(settled(np.array([0.1 + 0.2]))[0])
    0.3
    """
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    return np.round(values, 9 - int(np.floor(np.log10(largest)))) if largest > 0 else values


def item_weights(count: int, resamples: int, rng: np.random.Generator) -> Floats:
    """Return (1 + resamples, count): a row of ones, the sample itself, then drawn items."""
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.concatenate([np.ones((1, count)), drawn])


def pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Return Pearson's correlation a row of weights; NaN where a score does not vary.

    Args:
        x: (n,) or, if it differs from row to row, (rows, n).
        y: Likewise.
        weights: (rows, n).
    """
    x, y = x - x.mean(), y - y.mean()
    total = weights.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sums = [(weights * values).sum(axis=1) for values in (x, y, x * x, y * y, x * y)]
        x_variance = sums[2] - sums[0] ** 2 / total
        y_variance = sums[3] - sums[1] ** 2 / total
        # A score that is constant in a row leaves only rounding errors of its square.
        varies = (x_variance > 1e-12 * sums[2]) & (y_variance > 1e-12 * sums[3])
        value = (sums[4] - sums[0] * sums[1] / total) / np.sqrt(x_variance * y_variance)
        return np.where(varies, np.clip(value, -1, 1), np.nan)


def midranks(values: Floats, weights: Floats) -> Floats:
    """Return (rows, n): each value's mean rank among the values that a row has drawn."""
    _, group = np.unique(settled(values), return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)  # (rows, distinct values)
    return (np.cumsum(sizes, axis=1) - sizes / 2 + 0.5)[:, group]


def spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Return Spearman's correlation, Pearson's of the mid-ranks, a row of weights (rows, n)."""
    return pearson(midranks(x, weights), midranks(y, weights), weights)


@dataclass(frozen=True)
class PairCounts:
    """Numbers of pairs of images by how two scores order them; each (rows,).

    Attributes:
        concordant: Both scores order them, alike.
        discordant: Both order them, oppositely.
        x_tied: Only the first score ties them.
        y_tied: Only the second does.
        both_tied: Both do.
    """

    concordant: Floats
    discordant: Floats
    x_tied: Floats
    y_tied: Floats
    both_tied: Floats

    @property
    def total(self) -> Floats:
        """Number of pairs."""
        return self.concordant + self.discordant + self.x_tied + self.y_tied + self.both_tied

    def kendall(self) -> Floats:
        """Return Kendall's tau-b; NaN where a score ties all."""
        both = self.concordant + self.discordant
        product = (both + self.y_tied) * (both + self.x_tied)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = (self.concordant - self.discordant) / np.sqrt(product)
        return np.where(product > 0, value, np.nan)

    def accuracy(self) -> Floats:
        """Return the share of pairs ordered or tied alike: acc_eq of Deutsch et al. 2023."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.total > 0, (self.concordant + self.both_tied) / self.total, np.nan)


def pair_counts(
    x: Floats, y: Floats, owner: Integers, weights: Floats, epsilon: float = 0.0
) -> PairCounts:
    """Return the numbers of pairs; `x` ties two images that it sets apart by at most `epsilon`.

    Args:
        x: (n,), of a metric.
        y: (n,), of people.
        owner: (n,), the item of each image.
        weights: (rows, items).
        epsilon: In units of `x`, at least 0.
    """
    order = np.argsort(owner, kind="stable")
    x, y, owner = settled(x)[order], settled(y)[order], owner[order]
    there, starts, sizes = np.unique(owner, return_index=True, return_counts=True)
    tables = np.zeros((5, len(there), len(there)))  # pairs of items, by what the scores do
    last = np.cumsum(sizes)
    first = 0
    while first < len(there):  # some items at a time, with all others
        end = max(first + 1, int(np.searchsorted(last, starts[first] + _BLOCK, "right")))
        rows = slice(starts[first], last[end - 1])
        by_x, by_y = x[rows, None] - x, y[rows, None] - y
        by_x[np.abs(by_x) <= epsilon + 1e-12 * max(1.0, epsilon)] = 0
        product = np.sign(by_x) * np.sign(by_y)
        masks = [product > 0, product < 0, (by_x == 0) & (by_y != 0), (by_x != 0) & (by_y == 0)]
        for table, mask in zip(tables, masks, strict=False):
            columns = np.add.reduceat(mask, starts, axis=1, dtype=np.int32)
            table[first:end] = np.add.reduceat(columns, starts[first:end] - starts[first], axis=0)
        first = end
    tables[4] = np.outer(sizes, sizes) - np.diag(sizes)
    drawn = weights[:, there]
    alike, opposite, x_tied, y_tied, total = (
        ((drawn @ table) * drawn).sum(axis=1) / 2 for table in tables
    )
    rest = total - (alike + opposite + x_tied + y_tied)
    return PairCounts(alike, opposite, x_tied, y_tied, rest)


def kendall_c(x: Floats, y: Floats, owner: Integers, weights: Floats) -> Floats:
    """Return Stuart's tau-c a row of weights; NaN where a score ties all images."""
    distinct = min(len(np.unique(settled(x))), len(np.unique(settled(y))))
    if distinct < 2:
        return np.full(len(weights), np.nan)
    counts = pair_counts(x, y, owner, weights)
    n = weights[:, owner].sum(axis=1)
    difference = counts.concordant - counts.discordant
    return np.asarray(2 * distinct * difference / (n**2 * (distinct - 1)))


def coefficient(
    name: Coefficient,
    x: Floats,
    y: Floats,
    owner: Integers,
    weights: Floats,
    epsilon: float = 0.0,
) -> Floats:
    """Return one coefficient over images a row of weights (rows, items); NaN where undefined."""
    if name == "pearson":
        return pearson(x, y, weights[:, owner])
    if name == "spearman":
        return spearman(x, y, weights[:, owner])
    counts = pair_counts(x, y, owner, weights, epsilon)
    return counts.kendall() if name == "kendall" else counts.accuracy()


@dataclass(frozen=True)
class Grouped:
    """A coefficient within groups of images, and its mean over them.

    Attributes:
        values: (rows,); NaN where no group defines it.
        groups: Number of groups.
        undefined: Number of groups, of the sample itself, in which a score does not vary.
        n: Number of images, or of methods for "system".
    """

    values: Floats
    groups: int
    undefined: int
    n: int


def grouped(
    name: Coefficient,
    grouping: Grouping,
    x: Floats,
    y: Floats,
    owner: Integers,
    method: Integers,
    weights: Floats,
    epsilon: float = 0.0,
) -> Grouped:
    """Return a coefficient in a grouping, a row of weights.

    Correlations of groups are averaged as they are; a group that does not define one is left out
    and counted.

    Args:
        name: Which coefficient.
        grouping: Among which images it is computed.
        x: (n,), of a metric.
        y: (n,), of people.
        owner: (n,), number of the item.
        method: (n,), number of the method.
        weights: (rows, items), the first row all ones.
        epsilon: Up to which difference `x` ties two images; for means of methods always 0.
    """
    if grouping == "flat":
        values = coefficient(name, x, y, owner, weights, epsilon)
        return Grouped(values, 1, int(np.isnan(values[0])), len(x))
    if grouping == "system":
        count = int(method.max()) + 1
        means = [_means(scores, owner, method, weights, count) for scores in (x, y)]
        values = by_rows(name, means[0], means[1])
        return Grouped(values, 1, int(np.isnan(values[0])), count)
    if grouping == "method":
        parts = [
            coefficient(name, x[own], y[own], owner[own], weights, epsilon)
            for own in (method == number for number in np.unique(method))
        ]
        values = _mean_of_defined(np.stack(parts, axis=1))
        return Grouped(values, len(parts), int(sum(np.isnan(part[0]) for part in parts)), len(x))
    items, sizes = np.unique(owner, return_counts=True)
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(sizes)
    own_values = np.full(len(items), np.nan)
    for size in np.unique(sizes[sizes > 1]):
        which = sizes == size
        rows = order[(ends[which] - size)[:, None] + np.arange(size)]  # (items, images of each)
        own_values[which] = by_rows(name, x[rows], y[rows], epsilon)
    defined = ~np.isnan(own_values)
    drawn = weights[:, items[defined]]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (drawn * own_values[defined]).sum(axis=1) / drawn.sum(axis=1)
    return Grouped(values, len(items), int((~defined).sum()), len(x))


def by_rows(name: Coefficient, x: Floats, y: Floats, epsilon: float = 0.0) -> Floats:
    """Return a coefficient of each row of two tables (rows, n) of few columns; NaN as elsewhere.

    Args:
        name: Which coefficient.
        x: (rows, n).
        y: (rows, n).
        epsilon: Up to which difference `x` ties two values, for "kendall" and "accuracy".
    """
    if name == "pearson":
        sizes = [np.abs(values).max(axis=1, initial=0) for values in (x, y)]
        x, y = (values - values.mean(axis=1, keepdims=True) for values in (settled(x), settled(y)))
        product = (x**2).sum(axis=1) * (y**2).sum(axis=1)
        limit = (1e-10 * sizes[0] * sizes[1]) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            value = (x * y).sum(axis=1) / np.sqrt(product)
            return np.where(product > limit, np.clip(value, -1, 1), np.nan)
    differences = [values[:, :, None] - values[:, None, :] for values in (settled(x), settled(y))]
    if name in ("kendall", "accuracy"):
        differences[0][np.abs(differences[0]) <= epsilon + 1e-12 * max(1.0, epsilon)] = 0
    signs = [np.sign(np.round(values, 12)) for values in differences]  # (rows, n, n)
    if name == "spearman":
        return by_rows("pearson", *(sign.sum(axis=2) for sign in signs))
    upper = np.triu_indices(x.shape[1], 1)
    by_x, by_y = (sign[:, upper[0], upper[1]] for sign in signs)
    undefined = np.isnan(by_x + by_y).any(axis=1)
    if name == "accuracy":
        return np.where(undefined, np.nan, (by_x == by_y).mean(axis=1))
    product = (by_x != 0).sum(axis=1) * (by_y != 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(product > 0, (by_x * by_y).sum(axis=1) / np.sqrt(product), np.nan)


def best_epsilon(x: Floats, y: Floats, group: Integers | None = None) -> tuple[float, float]:
    """Return the epsilon with the highest accuracy, the smallest of those, and that accuracy.

    Args:
        x: (n,), of a metric.
        y: (n,), of people.
        group: (n,): only pairs in a group count, each group alike; None: all pairs.
    """
    x, y = settled(x), settled(y)
    gaps, gains, base = [], [], 0.0
    groups = (
        [np.arange(len(x))]
        if group is None
        else [np.flatnonzero(group == number) for number in np.unique(group)]
    )
    groups = [own for own in groups if len(own) > 1]
    if not groups:
        return 0.0, float("nan")
    for own in groups:
        first, second = np.triu_indices(len(own), 1)
        by_x, by_y = x[own][first] - x[own][second], y[own][first] - y[own][second]
        right = np.sign(by_x) * np.sign(by_y) > 0
        share = 1 / (len(first) * len(groups))
        gaps.append(np.abs(by_x))
        gains.append(share * ((by_y == 0).astype(float) - right))
        base += share * float(right.sum())
    gap, gain = np.concatenate(gaps), np.concatenate(gains)
    order = np.argsort(gap, kind="stable")
    gap, total = np.round(gap[order], 12), base + np.cumsum(gain[order])
    last = np.append(np.flatnonzero(np.diff(gap) > 0), len(gap) - 1)  # of the pairs of one gap
    epsilons, accuracies = gap[last], total[last]
    if epsilons[0] > 0:
        epsilons, accuracies = np.append(0.0, epsilons), np.append(base, accuracies)
    best = int(np.argmax(np.round(accuracies, 12)))
    return float(epsilons[best]), float(accuracies[best])


def always_tie(y: Floats, group: Integers | None = None) -> float:
    """Return the accuracy of a metric that ties every pair: the share of pairs people tie."""
    return best_epsilon(np.zeros(len(y)), y, group)[1]


def _means(
    scores: Floats, owner: Integers, method: Integers, weights: Floats, count: int
) -> Floats:
    """Return the mean of each method a row of weights, (rows, methods)."""
    drawn = weights[:, owner]
    onehot = np.eye(count)[method]  # (n, methods)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((drawn * scores) @ onehot / (drawn @ onehot))


def _mean_of_defined(values: Floats) -> Floats:
    """Return the mean of the columns that are no NaN, a row."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
