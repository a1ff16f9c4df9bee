"""What an entry's records come to: used to make an entry, and again to check it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leaderboards.entry import Interval
from leaderboards.records import Records
from leaderboards.stats import cluster_mean


@dataclass(frozen=True)
class CaseMean:
    """The mean of one pair's scored images, and how many of them have no score."""

    value: float | None
    unscored: int


def average(records: Records, metric: str) -> Interval:
    """Return the mean over all images."""
    return Interval.of(cluster_mean(records.values(metric), records.cases))


def best_of_n(records: Records, metric: str) -> Interval:
    """Return the mean over pairs of the best image of each."""
    grouped = _grouped(records, metric)
    best = [max((x for x in values if x is not None), default=None) for values in grouped.values()]
    return Interval.of(cluster_mean(best, list(grouped)))


def case_means(records: Records, metric: str) -> dict[str, CaseMean]:
    """Return the mean of each pair."""
    means = {}
    for case, values in _grouped(records, metric).items():
        scored = [value for value in values if value is not None]
        mean = round(sum(scored) / len(scored), 9) if scored else None
        means[case] = CaseMean(mean, len(values) - len(scored))
    return means


def concept_means(
    records: Records, metric: str, concepts: Mapping[str, str]
) -> dict[str, float | None]:
    """Return the mean over the images of each concept.

    Args:
        records: Of one method.
        metric: Which score.
        concepts: Case -> its subject, or its style.
    """
    grouped: dict[str, list[float]] = {concept: [] for concept in concepts.values()}
    for row, value in zip(records.rows, records.values(metric), strict=True):
        if value is not None and row.case in concepts:
            grouped[concepts[row.case]].append(value)
    return {concept: _mean(values) for concept, values in grouped.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _grouped(records: Records, metric: str) -> dict[str, list[float | None]]:
    grouped: dict[str, list[float | None]] = {}
    for row, value in zip(records.rows, records.values(metric), strict=True):
        grouped.setdefault(row.case, []).append(value)
    return grouped
