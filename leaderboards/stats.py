"""Means with cluster-bootstrap intervals, and paired differences of two methods; pure numpy.

Images of one pair share a subject, a style and two adapters, so they are not independent: whole
clusters (pairs) are drawn again, not images.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        value: Mean of the scored values; None: there are none.
        low: Lower end of the interval; None: fewer than two clusters.
        high: Upper end, likewise.
        n: Number of values in the mean.
        n_unscored: Number of values that are None; they are in no mean.
        n_clusters: Number of clusters with at least one value.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_unscored: int = 0
    n_clusters: int = 0


def cluster_mean(
    values: Sequence[float | None],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Return the mean of the values that are not None, with its percentile bootstrap interval.

    Clusters are drawn with replacement, as many as there are; the mean of each resample is the mean
    over all values in it, so that a cluster weighs by its number of values (Efron and Tibshirani
    1993, sections 8.6 and 13.3).

    Args:
        values: One score each; None: unscored.
        clusters: The cluster of each value.
        seed: Of the resampling; the same input gives the same interval.
        resamples: Number of bootstrap samples.
        level: Share of the bootstrap distribution inside the interval, in ``(0, 1)``.

    Raises:
        ValueError: Lengths differ, a value is not finite, `resamples` or `level` is out of range.

    >>> cluster_mean([1.0, None, 0.0], ["a", "a", "a"])
    Estimate(value=0.5, low=None, high=None, n=2, n_unscored=1, n_clusters=1)
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values, but {len(clusters)} clusters")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1")
    members: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        if value is not None:
            members.setdefault(cluster, []).append(value)
    n = sum(len(group) for group in members.values())
    n_unscored = len(values) - n
    if n == 0:
        return Estimate(None, None, None, 0, n_unscored)
    sums = np.array([sum(group) for group in members.values()], dtype=np.float64)  # (clusters,)
    if not np.isfinite(sums).all():
        raise ValueError("a value is not finite; an image without a score is None")
    sizes = np.array([len(group) for group in members.values()], dtype=np.float64)
    value = float(sums.sum() / n)
    if len(members) < 2:
        return Estimate(value, None, None, n, n_unscored, len(members))
    low, high = _percentiles(sums, sizes, seed=seed, resamples=resamples, level=level)
    return Estimate(value, low, high, n, n_unscored, len(members))


def crossed_mean(
    values: Sequence[float | None],
    rows: Sequence[Hashable],
    columns: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Return the mean of the values that are not None, rows and columns both drawn again.

    For values that two things have in common, such as the pair and the training: rows and columns
    are drawn with replacement independently of each other, and a value counts as often as the
    product (Owen 2007, The pigeonhole bootstrap). One less than there are is drawn, so that the
    variance of a few is not understated (Rao and Wu 1988). What rows and columns do not explain
    counts about three times, so that the interval is too wide where that is most of it; with few
    columns that differ it is too narrow, as no quantile can go beyond the extremes.

    Args:
        values: One score each; None: unscored.
        rows: The row of each value.
        columns: The column of each value.
        seed: Of the resampling; the same input gives the same interval.
        resamples: Number of bootstrap samples; one that draws no value at all is left out.
        level: Share of the bootstrap distribution inside the interval, in ``(0, 1)``.

    Raises:
        ValueError: As `cluster_mean`.
    """
    if len(values) != len(columns):
        raise ValueError(f"{len(values)} values, but {len(columns)} columns")
    found = cluster_mean(values, rows, seed=seed, resamples=1, level=level)
    there = [place for place, value in enumerate(values) if value is not None]
    sides = [{side[k]: None for k in there} for side in (rows, columns)]
    smaller = min(map(len, sides))
    if smaller < 2:
        return Estimate(found.value, None, None, found.n, found.n_unscored, smaller)
    row, column = ({key: k for k, key in enumerate(side)} for side in sides)
    sums = np.zeros((len(row), len(column)))
    sizes = np.zeros_like(sums)
    for place in there:
        cell = row[rows[place]], column[columns[place]]
        sums[cell] += values[place]
        sizes[cell] += 1
    rng = np.random.default_rng(seed)
    drawn = [
        rng.multinomial(len(side) - 1, np.full(len(side), 1 / len(side)), size=resamples)
        for side in sides
    ]  # (resamples, rows) and (resamples, columns)
    totals, counts = (np.einsum("br,rc,bc->b", drawn[0], own, drawn[1]) for own in (sums, sizes))
    means = totals[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(found.value, float(low), float(high), found.n, found.n_unscored, smaller)


def paired_difference(
    a: Sequence[float | None],
    b: Sequence[float | None],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Return the mean of ``a - b`` over values of the same case and seed, with its interval.

    A position where either is None counts as unscored.

    Raises:
        ValueError: As `cluster_mean`.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values of the one, {len(b)} of the other: they are not paired")
    differences = [None if x is None or y is None else x - y for x, y in zip(a, b, strict=True)]
    return cluster_mean(differences, clusters, seed=seed, resamples=resamples, level=level)


def cluster_covariance(
    a: Sequence[float | None], b: Sequence[float | None], clusters: Sequence[Hashable]
) -> npt.NDArray[np.float64] | None:
    """Return the covariance ``(2, 2)`` of the means of two scores of the same images.

    The cluster sandwich: each cluster's sum of deviations from the mean, squared and summed, with
    the factor ``g / (g - 1)`` for g clusters (Liang and Zeger 1986). An image without one of the
    two is left out. None: fewer than two clusters.

    Raises:
        ValueError: Lengths differ.
    """
    members: dict[Hashable, list[tuple[float, float]]] = {}
    for x, y, cluster in zip(a, b, clusters, strict=True):
        if x is not None and y is not None:
            members.setdefault(cluster, []).append((x, y))
    if len(members) < 2:
        return None
    pairs = np.array([pair for group in members.values() for pair in group])  # (images, 2)
    mean = pairs.mean(axis=0)
    sums = np.array([np.sum(np.array(group) - mean, axis=0) for group in members.values()])
    count = len(members)
    # Not by matrix product, as below.
    products = (sums[:, :, None] * sums[:, None, :]).sum(axis=0)
    covariance: npt.NDArray[np.float64] = products * count / (count - 1) / len(pairs) ** 2
    return covariance


def _percentiles(
    sums: npt.NDArray[np.float64],  # (clusters,)
    sizes: npt.NDArray[np.float64],  # (clusters,)
    *,
    seed: int,
    resamples: int,
    level: float,
) -> tuple[float, float]:
    drawn = _drawn(len(sums), seed, resamples)
    # Not by matrix product: its rounding depends on the BLAS, these sums do not.
    means = (drawn * sums).sum(axis=1) / (drawn * sizes).sum(axis=1)  # (resamples,)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _drawn(count: int, seed: int, resamples: int) -> npt.NDArray[np.int64]:
    """Return how often each cluster is in each resample, ``(resamples, clusters)``; read-only.

    Kept, because a board of m methods compares m (m - 1) / 2 pairs by the same draws.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn.setflags(write=False)
    return drawn
