"""What the studies of a run share: its methods, scores by image, and weights of its pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mars2.job import CONTROLS, RunError, RunSpec, spread
from mars2.stats import Estimate
from mars2.store import Record, RunStore, Sample
from mars2.studies.association import Floats, item_weights
from mars2.studies.result import estimate

Key = tuple[str, str, int]
"""Method, case and seed."""


def labels(store: RunStore) -> tuple[str, ...]:
    """Return the methods' labels, in the run's order."""
    return store.spec.labels


def merges(store: RunStore) -> tuple[str, ...]:
    """Return the labels of the methods that merge, which controls do not."""
    if not isinstance(store.spec, RunSpec):
        return store.spec.labels
    return tuple(one.label for one in store.spec.methods if one.name not in CONTROLS)


def pairs(store: RunStore) -> dict[str, tuple[str, str]]:
    """Return case -> subject and style."""
    return {sample.case: (sample.subject, sample.style) for sample in store.samples()}


def judges(store: RunStore) -> dict[str, dict[tuple[Key, str], Record]]:
    """Return by judge the records of the MARS2 scores, by image and name of the score.

    Raises:
        RunError: There are none.
    """
    found: dict[str, dict[tuple[Key, str], Record]] = {}
    for record in store.records():
        if record.metric in ("mars2", "mars2_subject", "mars2_style"):
            key = (record.method, record.case, record.seed)
            found.setdefault(record.judge, {})[key, record.metric] = record
    if not found:
        raise RunError(f"{store.folder} has no judge's scores: run `mars2 score` on it")
    return found


def choose_judge(store: RunStore, name: str) -> str:
    """Return the id of the one judge of a store whose id holds a text; "": of the last one.

    Raises:
        RunError: There is none, or several.
    """
    known = list(judges(store))
    fitting = [judge for judge in known if name in judge]
    if not name:
        return known[-1]
    if len(fitting) != 1:
        raise RunError(
            f"{name!r} is part of the ids of {len(fitting)} judges that scored {store.folder}, "
            f"which are: {'; '.join(known)}. Score it with another one by `mars2 score --judge`"
        )
    return fitting[0]


@dataclass(frozen=True)
class Clusters:
    """Pairs drawn again with replacement, whole.

    Attributes:
        cases: Their ids.
        weights: (1 + resamples, cases), the first row ones.
    """

    cases: tuple[str, ...]
    weights: Floats

    @classmethod
    def draw(cls, cases: Sequence[str], *, resamples: int, seed: int) -> "Clusters":
        """Return the cases with their weights."""
        ids = tuple(dict.fromkeys(cases))
        return cls(ids, item_weights(len(ids), resamples, np.random.default_rng(seed)))

    def sums(self, values: Sequence[float], cases: Sequence[str]) -> Floats:
        """Return (rows,): the sum of the values in each resample."""
        by_case = np.zeros(len(self.cases))
        places = {case: k for k, case in enumerate(self.cases)}
        np.add.at(by_case, [places[case] for case in cases], values)
        return np.asarray((self.weights * by_case).sum(axis=1))

    def mean(self, values: Sequence[float | None], cases: Sequence[str]) -> Floats:
        """Return (rows,): the mean of the values that are not None in each resample."""
        there = [(v, c) for v, c in zip(values, cases, strict=True) if v is not None]
        own = [case for _, case in there]
        total = self.sums([value for value, _ in there], own)
        count = self.sums([1.0] * len(there), own)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(count > 0, total / count, np.nan))

    def estimate(self, values: Floats, n: int, n_unscored: int = 0) -> Estimate:
        """Return the value of the first row with the interval of the others."""
        return estimate(values, n, len(self.cases), n_unscored=n_unscored)


def by_method(
    scores: Mapping[Key, float | None], methods: Sequence[str], clusters: Clusters
) -> Floats:
    """Return (rows, methods): the mean score of each method in each resample."""
    columns = []
    for method in methods:
        own = [(value, key[1]) for key, value in scores.items() if key[0] == method]
        columns.append(clusters.mean([value for value, _ in own], [case for _, case in own]))
    return np.stack(columns, axis=1)


def few(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return up to `count` samples, spread over subjects and styles, the first seeds first."""
    by_case: dict[str, list[Sample]] = {}
    for sample in samples:
        by_case.setdefault(sample.case, []).append(sample)
    own = list(by_case.values())
    chosen = [
        own[k] for k in spread([(one[0].subject, one[0].style) for one in own], max(count, 1))
    ]
    turns = max((len(one) for one in chosen), default=0)
    ordered = [one[turn] for turn in range(turns) for one in chosen if turn < len(one)]
    return ordered[:count]
