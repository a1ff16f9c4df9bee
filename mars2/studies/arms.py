"""Scores of trained networks: means over the trainings of an arm, and which variance is which.

Scores of networks vary for two reasons. Other test pairs would give other scores, and so would
other trainings: other initial weights, other orders of the steps, and other train pairs where they
are drawn. An interval over pairs leaves the trainings as they are, one over trainings leaves the
pairs; the third draws both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mars2.stats import Estimate, cluster_mean, crossed_mean
from mars2.store import RunStore
from mars2.studies.association import Floats
from mars2.studies.result import Sheet, Value, spoken
from mars2.studies.runs import choose_judge, judges
from mars2.studies.trainings import UNTRAINED, Trained
from mars2.studies.variance import components

METRICS = {"joint": "mars2", "subject": "mars2_subject", "style": "mars2_style"}
"""Heading -> name of the score."""

WAYS = ("over both", "over pairs", "over trainings")
SCORE_COLUMNS = tuple(f"{heading} {way}" for heading in METRICS for way in WAYS)
"""Of a table with all scores and all intervals."""
SHARES: Mapping[str, Callable[[float], str]] = dict.fromkeys(SCORE_COLUMNS, "{:.2f}".format)
"""How they are spelled."""

Image = tuple[str, int, int]
"""Test pair, seed of the image, seed of the training."""
Values = Mapping[Image, float | None]
Names = Callable[[str], tuple[Value, ...]]
"""The first columns of an arm's rows."""


@dataclass(frozen=True)
class ThreeWays:
    """A mean with its interval over three things that could have been drawn otherwise.

    Attributes:
        pairs: The test pairs, with the trainings that there are.
        trainings: The trainings, with the pairs that there are.
        both: Pairs and trainings, independently.
    """

    pairs: Estimate
    trainings: Estimate
    both: Estimate

    def best(self) -> Estimate:
        """Return the estimate over both, or over the pairs if there is one training."""
        return self.both if self.both.low is not None else self.pairs

    @property
    def columns(self) -> tuple[Estimate, Estimate, Estimate]:
        """Return what stands in a table: both, pairs, trainings."""
        return self.both, self.pairs, self.trainings


class Scored:
    """The scores of a run of trained networks.

    Attributes:
        judge: Id of who judged.
        trained: The networks.
    """

    def __init__(
        self,
        store: RunStore,
        trained: Sequence[Trained],
        *,
        judge: str = "",
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        """Read the scores.

        Raises:
            RunError: The run has no scores, or none of this judge or of one of the networks.
        """
        self.judge = choose_judge(store, judge)
        self.trained = tuple(trained)
        self._draws = {"resamples": resamples, "seed": seed}
        records = judges(store)[self.judge]
        by_method: dict[tuple[str, str], dict[tuple[str, int], float | None]] = {}
        for ((method, case, number), metric), record in records.items():
            by_method.setdefault((method, metric), {})[case, number] = record.value
        self._by_method = by_method

    def arms(self) -> list[str]:
        """Return the names of the arms, in order."""
        return list(dict.fromkeys(one.training.arm for one in self.trained))

    def of(self, arm: str) -> list[Trained]:
        """Return the trainings of an arm."""
        return [one for one in self.trained if one.training.arm == arm]

    def values(self, arm: str, heading: str) -> Values:
        """Return the scores of an arm, by image."""
        return {
            (case, number, one.training.settings.seed): value
            for one in self.of(arm)
            for (case, number), value in self._by_method.get(
                (one.training.label, METRICS[heading]), {}
            ).items()
        }

    def network(self, one: Trained, heading: str) -> Estimate:
        """Return the mean score of one network, with its interval over pairs."""
        own = self._by_method.get((one.training.label, METRICS[heading]), {})
        return cluster_mean(list(own.values()), [case for case, _ in own], **self._draws)

    def method(self, name: str, heading: str) -> Estimate:
        """Return the mean score of a method without training."""
        own = self._by_method.get((name, METRICS[heading]), {})
        return cluster_mean(list(own.values()), [case for case, _ in own], **self._draws)

    def three_ways(self, values: Values) -> ThreeWays:
        """Return the mean of scores, or of differences, of images with its three intervals."""
        own = list(values.values())
        cases = [case for case, _, _ in values]
        trainings = [training for _, _, training in values]
        return ThreeWays(
            cluster_mean(own, cases, **self._draws),
            cluster_mean(own, trainings, **self._draws),
            crossed_mean(own, cases, trainings, **self._draws),
        )

    def mean(self, arm: str, heading: str) -> ThreeWays:
        """Return the mean score of an arm."""
        return self.three_ways(self.values(arm, heading))

    def difference(self, one: str, other: str, heading: str) -> ThreeWays:
        """Return the mean of `one` - `other` over images of the same pair, seed and training."""
        return self.combination({one: 1.0, other: -1.0}, heading)

    def combination(self, weights: Mapping[str, float], heading: str) -> ThreeWays:
        """Return the mean of a weighted sum of arms, image by image; unscored if one of them is."""
        tables = {arm: self.values(arm, heading) for arm in weights}
        first = next(iter(tables.values()))
        shared = [image for image in first if all(image in own for own in tables.values())]
        summed: dict[Image, float | None] = {}
        for image in shared:
            parts = [(weight, tables[arm][image]) for arm, weight in weights.items()]
            summed[image] = (
                None
                if any(value is None for _, value in parts)
                else sum(weight * value for weight, value in parts if value is not None)
            )
        return self.three_ways(summed)

    def cells(self, arm: str, against: str = "") -> tuple[Estimate, ...]:
        """Return the scores of an arm, or its differences from another, by `SCORE_COLUMNS`."""
        return tuple(
            cell
            for heading in METRICS
            for cell in (
                self.difference(arm, against, heading) if against else self.mean(arm, heading)
            ).columns
        )

    def cells_of_method(self, name: str) -> tuple[Estimate | None, ...]:
        """Return the scores of a method without training, which vary by pairs only."""
        return tuple(
            cell for heading in METRICS for cell in (*[self.method(name, heading)] * 2, None)
        )

    def points(self, arm: str, heading: str) -> list[float]:
        """Return the mean score of each training of an arm."""
        means = [self.network(one, heading).value for one in self.of(arm)]
        return [value for value in means if value is not None]

    def losses(self, arm: str) -> list[float]:
        """Return the loss on the val pairs of each training of an arm."""
        return [one.val_loss for one in self.of(arm) if one.val_loss is not None]

    @property
    def trainings(self) -> int:
        """Number of seeds that were trained with."""
        return len({one.training.settings.seed for one in self.trained})

    @property
    def ways(self) -> tuple[str, ...]:
        """Of `WAYS` those that a terminal shows: with one training there is only one."""
        return WAYS if self.trainings > 1 else WAYS[1:2]

    @property
    def shown(self) -> tuple[str, ...]:
        """Of `SCORE_COLUMNS` those that a terminal shows."""
        return (
            *(f"joint {way}" for way in self.ways),
            *(f"{heading} {self.ways[0]}" for heading in list(METRICS)[1:]),
        )

    @property
    def note(self) -> str:
        """What has to be known to read the three intervals of a mean."""
        count = self.trainings
        text = (
            "95 % intervals, bootstrap. Over pairs: other test pairs, these trainings. Over "
            "trainings: other trainings, these pairs. Over both: both drawn, independently."
        )
        if count < 2:
            return f"{text} With one training there is only the one over pairs."
        if count < 4:
            held = 1 - 2 ** (1 - count)
            text += (
                f" With {count} trainings the one over trainings is no more than their range, "
                f"which holds the middle of all possible trainings {held:.0%} of the time, and the "
                "one over both is too narrow where trainings differ as much as pairs do."
            )
        return text

    @property
    def budget(self) -> str:
        """What every training had."""
        settings = self.trained[0].training.settings
        pairs = "pair" if settings.pairs_per_step == 1 else "pairs"
        return (
            f"Every network had {settings.steps} steps of {settings.pairs_per_step} {pairs} and "
            f"{settings.batch_size} images of each concept."
        )

    @property
    def trainings_in_words(self) -> str:
        """How many trainings a mean is over."""
        return "one training" if self.trainings == 1 else f"means of {self.trainings} trainings"

    @property
    def limits_in_words(self) -> str:
        """What the intervals cannot say."""
        few = {1: "one training tells nothing of others"}.get(
            self.trainings, f"{self.trainings} trainings tell little of others"
        )
        return (
            "An interval over pairs is about other test pairs for these networks, one over "
            f"trainings about other networks for these pairs{'' if self.trainings > 9 else '; '}"
            f"{'' if self.trainings > 9 else few}."
        )

    def untrained_in_words(self) -> str:
        """Return how the best method without training does."""
        levels = {name: self.method(name, "joint") for name in UNTRAINED}
        best = max(levels, key=lambda name: levels[name].value or 0.0)
        return f"{best}, which needs no training, has {spoken(levels[best])}."

    def deviations_in_words(self, arm: str, name: str) -> str:
        """Return what the joint score of an arm, called `name`, varies by; "": it is not known."""
        found = self.deviations(arm, "joint")
        if found is None:
            return ""
        return (
            f"With {name} a pair's score has a standard deviation of {found[0]:.2f} between test "
            f"pairs and of {found[1]:.2f} between trainings."
        )

    def deviations(self, arm: str, heading: str) -> tuple[float, float, float] | None:
        """Return the standard deviations between pairs, between trainings, and of the rest.

        Of the mean score of a pair and training: the rest is what a training does to one pair but
        not to another, and the images' own. None: fewer than two of either, or cells without score.
        """
        cells: dict[tuple[str, int], list[float]] = {}
        for (case, _, training), value in self.values(arm, heading).items():
            own = cells.setdefault((case, training), [])
            if value is not None:
                own.append(value)
        cases = list(dict.fromkeys(case for case, _ in cells))
        trainings = list(dict.fromkeys(training for _, training in cells))
        if min(len(cases), len(trainings)) < 2 or not all(
            cells.get((case, training)) for case in cases for training in trainings
        ):
            return None
        table = np.array([[np.mean(cells[case, t]) for t in trainings] for case in cases])
        found = components(table)
        first, second, rest = (found[frozenset(axes)] for axes in ((0,), (1,), (0, 1)))
        return first**0.5, second**0.5, rest**0.5


def variance_sheet(scored: Scored, names: Names, head: tuple[str, ...]) -> Sheet:
    """Return the table of what the scores of each arm vary by.

    Args:
        scored: The scores.
        names: Arm -> the first columns of its rows.
        head: Their headings.
    """
    rows: list[tuple[Value, ...]] = []
    for arm in scored.arms():
        found = [scored.deviations(arm, heading) or (None, None, None) for heading in METRICS]
        rows.append((*names(arm), *(one for own in found for one in own)))
    parts = ("sd of pairs", "sd of trainings", "sd of the rest")
    columns = tuple(f"{heading}, {part}" for heading in METRICS for part in parts)
    return Sheet(
        "variance", "What a pair's mean score varies by", (*head, *columns), rows,
        (*head, *columns[:3]) if scored.trainings > 1 else (),
        ("Standard deviations (variance components) of the score of one pair and one training, "
         "mean over its images. The rest: what a training does to one pair and not to another, "
         "and the images' own noise.",),
        dict.fromkeys(columns, "{:.2f}".format),
    )  # fmt: skip


def trainings_sheet(scored: Scored, names: Names, head: tuple[str, ...]) -> Sheet:
    """Return the table of the trainings, which is in its file only."""
    rows: list[tuple[Value, ...]] = [
        (
            *names(one.training.arm), one.training.settings.seed, one.training.settings.steps,
            len(one.training.pairs),
            *(scored.network(one, heading) for heading in METRICS),
            one.loss, one.val_loss, one.seconds, one.parameters,
        )
        for one in scored.trained
    ]  # fmt: skip
    columns = (*head, "seed", "steps", "train pairs", *METRICS, "loss", "val loss", "seconds",
               "parameters")  # fmt: skip
    return Sheet("trainings", "Each training", columns, rows)


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None: there are none."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def clear_sign(value: Estimate) -> int:
    """Return 1 or -1 if an interval lies above or below 0, 0 if it does not or there is none.

    >>> clear_sign(Estimate(0.2, 0.1, 0.3, 10)), clear_sign(Estimate(0.2, -0.1, 0.3, 10))
    (1, 0)
    """
    if value.low is None or value.high is None:
        return 0
    return int(value.low > 0) - int(value.high < 0)


def bars(estimates: Sequence[Estimate]) -> tuple[list[float], Floats]:
    """Return values, NaN: none, and (2, n): how far their intervals go down and up."""
    y = [np.nan if one.value is None else one.value for one in estimates]
    ends = [
        (value, value) if one.low is None or one.high is None else (one.low, one.high)
        for one, value in zip(estimates, y, strict=True)
    ]
    return y, np.array([[v - low, high - v] for (low, high), v in zip(ends, y, strict=True)]).T
