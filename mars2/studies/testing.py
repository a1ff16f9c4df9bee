"""Tests of one metric against another, and of rankings: permutations, Holm, Williams; numpy."""

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mars2.studies.association import (
    Floats,
    Integers,
    by_rows,
    midranks,
    pearson,
)

_AT_ONCE = 4_000_000
"""Numbers in a table of permutations that is held at once."""


def permutation_test(
    a: Floats,
    b: Floats,
    y: Floats,
    group: Integers,
    *,
    name: Literal["pearson", "spearman"],
    unit: Integers | None = None,
    permutations: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return by how much `a` correlates better with `y` than `b` does, and its two-sided p.

    The scores of the two metrics, brought to one scale, are exchanged image by image: PERM-BOTH of
    Deutsch, Dror and Roth 2021, section 4. That takes images as independent of each other; with a
    `unit`, such as the item, all images of a unit are exchanged together. The scale is mean 0 and
    standard deviation 1 for Pearson's correlation, and ranks for Spearman's. The observed order
    counts among the permutations, so that p is never 0.

    Args:
        a: (n,), of a metric.
        b: (n,), of the other.
        y: (n,), of people.
        group: (n,): correlations are computed in each group and averaged; zeros for "flat".
        name: Which correlation.
        unit: (n,): what is exchanged as a whole; None: each image.
        permutations: Number of random exchanges.
        seed: Of the exchanges.
    """
    order = np.argsort(group, kind="stable")
    a, b, y, group = a[order], b[order], y[order], group[order]
    unit = np.arange(len(a)) if unit is None else unit[order]
    bounds = np.flatnonzero(np.diff(group)) + 1
    parts = [part for part in np.split(np.arange(len(a)), bounds) if len(part) > 1]
    scaled = [_scaled(values, group, name) for values in (a, b)]
    rng = np.random.default_rng(seed)
    units = int(unit.max()) + 1
    differences = []
    step = max(1, _AT_ONCE // len(a))
    for start in range(0, permutations + 1, step):
        rows = min(step, permutations + 1 - start)
        exchanged = rng.random((rows, units))[:, unit] < 0.5  # (rows, n)
        if start == 0:
            exchanged[0] = False
        tables = [np.where(exchanged, scaled[1 - side], scaled[side]) for side in (0, 1)]
        means = [_mean_correlation(table, y, parts, name) for table in tables]
        differences.append(means[0] - means[1])
    difference = np.concatenate(differences)
    if np.isnan(difference[0]):
        return float("nan"), float("nan")
    extreme = np.abs(np.nan_to_num(difference)) >= abs(difference[0]) - 1e-12
    return float(difference[0]), float(extreme.mean())


def _scaled(values: Floats, group: Integers, name: str) -> npt.NDArray[Any]:
    if name == "spearman":
        # Ranks within each group, so that an exchange of two equally good metrics changes nothing.
        ranks = np.empty(len(values))
        for number in np.unique(group):
            own = group == number
            ranks[own] = midranks(values[own], np.ones((1, own.sum())))[0]
        # Twice a mid-rank is whole, and numpy sorts small whole numbers much faster.
        return (2 * ranks).astype(np.uint16) if len(values) < 2**15 else ranks
    spread = values.std()
    return np.asarray((values - values.mean()) / (spread if spread > 0 else 1))


def _mean_correlation(
    table: npt.NDArray[Any],
    y: Floats,
    parts: Sequence[Integers],
    name: Literal["pearson", "spearman"],
) -> Floats:
    """Return the mean over the groups of the correlation of each row (rows, n) with `y`."""
    total, count = np.zeros(len(table)), np.zeros(len(table))
    for part in parts:
        own, truth = table[:, part], np.broadcast_to(y[part], (len(table), len(part)))
        if name == "spearman":
            own = _row_ranks(own)
            truth = np.broadcast_to(_row_ranks(truth[:1]), own.shape)
        values = pearson(own, truth, np.ones_like(own))
        defined = ~np.isnan(values)
        total += np.where(defined, values, 0)
        count += defined
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _row_ranks(table: npt.NDArray[Any]) -> Floats:
    """Return the mid-ranks of each row, (rows, n)."""
    order = np.argsort(table, axis=1, kind="stable")
    ordered = np.take_along_axis(table, order, axis=1)
    place = np.arange(table.shape[1])
    fresh = np.ones(ordered.shape, dtype=bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.maximum.accumulate(np.where(fresh, place, 0), axis=1)
    ends = np.ones(ordered.shape, dtype=bool)
    ends[:, :-1] = fresh[:, 1:]
    last = np.where(ends, place, table.shape[1])
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(table.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=1)
    return ranks


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979); NaN stays, and counts for none.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    tested = sorted((p, number) for number, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for place, (p, number) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - place)))
        adjusted[number] = highest
    return adjusted


def clusters(names: Sequence[str], told_apart: Collection[tuple[str, str]]) -> dict[str, int]:
    """Return the cluster of each metric, from 1: in a cluster no two are told apart.

    Going down the order, a metric that is told apart from one of the current cluster begins the
    next. The last of a cluster and the first of the next need not be told apart.

    Args:
        names: Metrics, best first.
        told_apart: Pairs (better, worse) that a test tells apart.
    """
    numbers: dict[str, int] = {}
    current: list[str] = []
    number = 1
    for name in names:
        if any((other, name) in told_apart for other in current):
            current = []
            number += 1
        current.append(name)
        numbers[name] = number
    return numbers


def williams(a: Floats, b: Floats, y: Floats) -> float:
    """Return the one-sided p that `a` correlates better with `y` than `b` (Williams 1959).

    Of Pearson's correlations, for independent images of normal scores: beside the permutation test
    only, which assumes neither. NaN where it is not defined.
    """
    one = np.ones((1, len(a)))
    r_a, r_b, r_ab = (float(pearson(*pair, one)[0]) for pair in ((a, y), (b, y), (a, b)))
    n = len(a)
    if n <= 3:
        return float("nan")
    # 1 - the multiple correlation's part: the determinant of the three correlations.
    k = 1 - r_a**2 - r_b**2 - r_ab**2 + 2 * r_a * r_b * r_ab
    denominator = 2 * k * (n - 1) / (n - 3) + (r_a + r_b) ** 2 / 4 * (1 - r_ab) ** 3
    if n < 4 or not denominator > 0:
        return float("nan")
    t = (r_a - r_b) * math.sqrt((n - 1) * (1 + r_ab) / denominator)
    return student_tail(t, n - 3)


def student_tail(t: float, degrees: int) -> float:
    """Return the chance that Student's t of so many degrees of freedom exceeds `t`."""
    x = degrees / (degrees + t * t)
    tail = _incomplete_beta(degrees / 2, 0.5, x) / 2
    return tail if t > 0 else 1 - tail


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function, by its continued fraction (DLMF 8.17.22)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    ) / a  # fmt: skip
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(400):
        m = step // 2
        if step == 0:
            factor = 1.0
        elif step % 2 == 0:
            factor = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            factor = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / (1 + factor * d)
        c = 1 + factor / c
        fraction *= c * d
        if abs(1 - c * d) < 1e-15:
            break
    return front * (fraction - 1)


def soft_pairwise_accuracy(
    x: Floats, y: Floats, *, permutations: int = 1000, seed: int = 0
) -> float:
    """Return how alike two scores' certainties are about which method is better, in ``[0, 1]``.

    Thompson et al. 2024 (Improving Statistical Significance in Human Evaluation of Automatic
    Metrics via Soft Pairwise Accuracy): 1 less the mean over pairs of methods of the difference of
    the two one-sided p-values, here of a test that exchanges the methods item by item.

    Args:
        x: (items, methods), means of a metric; without NaN.
        y: Likewise, of people.
        permutations: Random exchanges; the same for both scores.
        seed: Of the exchanges.
    """
    first, second = np.triu_indices(x.shape[1], 1)
    signs = np.random.default_rng(seed).integers(0, 2, (permutations, x.shape[0])) * 2.0 - 1
    chances = []
    for scores in (x, y):
        difference = scores[:, first] - scores[:, second]  # (items, pairs)
        exchanged = np.round(signs @ difference / len(x), 9)
        observed = np.round(difference.mean(axis=0), 9)
        # Half of those that are equal: a metric that ties two methods is undecided, not sure.
        chances.append(
            (exchanged > observed).mean(axis=0) + 0.5 * (exchanged == observed).mean(axis=0)
        )
    return float(1 - np.abs(chances[0] - chances[1]).mean())


FEWEST_METHODS = 7
"""With fewer, a test of a ranking has next to no power, and no p-value is given."""


def ranking_test(x: Floats, y: Floats, *, permutations: int = 5000, seed: int = 0) -> float | None:
    """Return the one-sided p of Kendall's tau-b of two rankings; None for too few methods.

    Args:
        x: (methods,), means of a metric.
        y: (methods,), means of people.
        permutations: Random orders of the methods.
        seed: Of the orders.
    """
    if len(x) < FEWEST_METHODS:
        return None
    rng = np.random.default_rng(seed)
    orders = np.stack([x, *(rng.permutation(x) for _ in range(permutations))])
    values = by_rows("kendall", orders, np.broadcast_to(y, orders.shape))
    return float((values >= values[0] - 1e-12).mean()) if not np.isnan(values[0]) else None
