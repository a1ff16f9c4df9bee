"""How often a judge errs, from questions whose truth is known, and shares corrected for it.

The correction is that of Rogan and Gladen (1978, American Journal of Epidemiology 107): of a share
of yes p, a sensitivity and a specificity, (p + specificity - 1) / (sensitivity + specificity - 1).
It holds for single questions. It is not applied to majorities over several references: how often
answers about one image err together is not known. But the truth about an image is the same for all
its references, so that the corrected share of single answers estimates what the majority is for:
the share of images that show the subject, or the style.
"""

import hashlib
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from benchmark_data.references import cache_root
from mars2.files import read_json, write_json
from mars2.job import RunError
from mars2.stats import LEVEL, RESAMPLES, Estimate, cluster_mean

SCHEMA = 1

Aspect = Literal["subject", "style"]
Compared = Literal["itself", "same class", "another class", "another style"]
"""What a reference is compared with: another image of the same concept, or something else."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tally:
    """Answers to the questions that have images of one concept as references.

    Attributes:
        concept: Its id.
        compared: What the test images show; of "itself" the truth is yes, else no.
        yes: Number of answers that are yes.
        no: Number of answers that are no.
        unscored: Number of answers that are neither.
    """

    concept: str
    compared: Compared
    yes: int
    no: int
    unscored: int = 0

    @property
    def truth(self) -> bool:
        """What the right answer is."""
        return self.compared == "itself"


@dataclass(frozen=True)
class Controls:
    """What a judge answered to questions whose truth is known.

    Attributes:
        judge: Its id, as in records: model, setting and questions.
        suite: Name of the suite whose references were shown.
        suite_revision: 12 hex of its content.
        tallies: Aspect -> answers, a tally a concept and kind of comparison.
    """

    judge: str
    suite: str
    suite_revision: str
    tallies: Mapping[Aspect, tuple[Tally, ...]]

    def sensitivity(self, aspect: Aspect) -> Estimate:
        """Return the share of yes where yes is right; clusters are concepts."""
        return _share([t for t in self.tallies[aspect] if t.truth], of=True)

    def specificity(self, aspect: Aspect, compared: Compared | None = None) -> Estimate:
        """Return the share of no where no is right, or only where it is compared with something."""
        return _share(
            [t for t in self.tallies[aspect] if not t.truth and compared in (None, t.compared)],
            of=False,
        )

    def correctable(self, aspect: Aspect) -> bool:
        """Return whether sensitivity and specificity are known and add up to more than 1."""
        return _discernment(self.tallies[aspect]) is not None

    def to_json(self) -> dict[str, Any]:
        """Return the content of a file."""
        return {"schema": SCHEMA, **asdict(self)}


def _share(tallies: Sequence[Tally], *, of: bool) -> Estimate:
    values: list[float | None] = []
    clusters: list[str] = []
    for tally in tallies:
        own = [float(of)] * tally.yes + [float(not of)] * tally.no + [None] * tally.unscored
        values += own
        clusters += [tally.concept] * len(own)
    return cluster_mean(values, clusters)


@dataclass(frozen=True)
class CorrectedShare:
    """A share of yes as the judge gives it, and corrected for its errors; both in ``[0, 1]``.

    `corrected` has no value where sensitivity and specificity are not known or add up to 1 or less.
    """

    raw: Estimate
    corrected: Estimate


def correct(
    shares: Sequence[Sequence[float | None]],
    clusters: Sequence[Hashable],
    tallies: Sequence[Sequence[Tally]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> CorrectedShare:
    """Return the share of images with a yes to one question, or to each of several, corrected.

    For several questions the correction is the mean over images of the product of the questions'
    corrections: without bias if, the truth given, the errors of the questions do not depend on each
    other. Values are clipped to ``[0, 1]``. The interval is a percentile bootstrap over both: the
    clusters of images and, independently, the concepts of the controls; a resample in which
    sensitivity and specificity add up to 1 or less could mean any share, and widens the interval to
    both sides.

    Args:
        shares: For each image and question the share of its references that say yes, or None.
        clusters: The cluster of each image.
        tallies: Of each question's controls.
        seed: Of the resampling.
        resamples: Number of bootstrap samples.
        level: Share of the bootstrap distribution inside the interval, in ``(0, 1)``.
    """
    both = [
        None if any(share is None for share in own) else math.prod(s for s in own if s is not None)
        for own in shares
    ]
    raw = cluster_mean(both, clusters, seed=seed, resamples=resamples, level=level)
    errors = [_discernment(own) for own in tallies]
    known = [error for error in errors if error is not None]
    unknown = CorrectedShare(raw, Estimate(None, None, None, raw.n, raw.n_unscored, raw.n_clusters))
    if raw.value is None or len(known) < len(errors):
        return unknown
    scored = [number for number, value in enumerate(both) if value is not None]
    values = np.array([shares[number] for number in scored], dtype=np.float64)  # (n, questions)
    names = list(dict.fromkeys(clusters[number] for number in scored))
    owners = np.array([names.index(clusters[number]) for number in scored])

    everything = np.ones((1, len(names)))
    value = _corrected(values, owners, everything, [np.array([error]) for error in known])[0]
    low = high = None
    concepts = [list(dict.fromkeys(tally.concept for tally in own)) for own in tallies]
    if min(len(names), *(len(own) for own in concepts)) > 1:
        drawn = _drawn(len(names), resamples, np.random.default_rng([seed, 0]))
        resampled = [
            _resampled(own, _drawn(len(ids), resamples, np.random.default_rng([seed, number])), ids)
            for number, (own, ids) in enumerate(zip(tallies, concepts, strict=True), start=1)
        ]
        means = _corrected(values, owners, drawn, resampled)
        low = float(np.quantile(np.nan_to_num(means, nan=0.0), (1 - level) / 2))
        high = float(np.quantile(np.nan_to_num(means, nan=1.0), (1 + level) / 2))
    return CorrectedShare(
        raw, Estimate(float(value), low, high, raw.n, raw.n_unscored, raw.n_clusters)
    )


def _corrected(
    values: Floats,  # (n, questions)
    owners: npt.NDArray[np.int_],  # (n,): number of the cluster
    weights: Floats,  # (resamples, clusters)
    errors: Sequence[Floats],  # a question: (resamples, 2), false positive rate and discernment
) -> Floats:
    """Return the corrected shares (resamples,), clipped; NaN where a judge does not discern.

    The mean of prod(y - f) over images is expanded into the means of the products of the y.
    """
    count = values.shape[1]
    sizes = np.bincount(owners, minlength=weights.shape[1])
    total = np.zeros(len(weights))
    for size in range(count + 1):
        for chosen in itertools.combinations(range(count), size):
            product = values[:, list(chosen)].prod(axis=1)
            sums = np.bincount(owners, product, minlength=weights.shape[1])
            mean = (weights * sums).sum(axis=1) / (weights * sizes).sum(axis=1)
            others = [-errors[number][:, 0] for number in range(count) if number not in chosen]
            total += mean * np.prod(others, axis=0)
    discernment = np.prod([error[:, 1] for error in errors], axis=0)
    usable = np.all([error[:, 1] > 0 for error in errors], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(usable, np.clip(total / discernment, 0, 1), np.nan)


def _discernment(tallies: Sequence[Tally]) -> tuple[float, float] | None:
    """Return false positive rate and sensitivity + specificity - 1, if that is more than 0."""
    ids = list(dict.fromkeys(tally.concept for tally in tallies))
    false_positives, discernment = _resampled(tallies, np.ones((1, len(ids))), ids)[0]
    return (float(false_positives), float(discernment)) if discernment > 0 else None


def _resampled(tallies: Sequence[Tally], weights: Floats, ids: Sequence[str]) -> Floats:
    """Return false positive rate and sensitivity + specificity - 1 of each resample of concepts.

    Args:
        tallies: Of one question.
        weights: How often each concept is drawn, (resamples, concepts).
        ids: The concepts.

    Returns:
        (resamples, 2); NaN where a resample has no answers of one kind.
    """
    shares = []
    for truth in (False, True):
        yes, answers = np.zeros(len(ids)), np.zeros(len(ids))
        for tally in tallies:
            if tally.truth == truth:
                yes[ids.index(tally.concept)] += tally.yes
                answers[ids.index(tally.concept)] += tally.yes + tally.no
        with np.errstate(divide="ignore", invalid="ignore"):
            shares.append((weights * yes).sum(axis=1) / (weights * answers).sum(axis=1))
    false_positives, sensitivity = shares
    return np.stack([false_positives, sensitivity - false_positives], axis=1)


def _drawn(count: int, resamples: int, rng: np.random.Generator) -> Floats:
    """Return how often each of some clusters is drawn, (resamples, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def controls_path(judge: str, suite_revision: str) -> Path:
    """Return where the controls of a judge on a suite lie in the user's cache."""
    name = hashlib.sha256(f"{judge}\n{suite_revision}".encode()).hexdigest()[:16]
    return cache_root() / "controls" / f"{name}.json"


def write_controls(controls: Controls, path: Path) -> None:
    """Write the controls of a judge, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, controls.to_json())


def read_controls(path: Path) -> Controls:
    """Return the controls in a file of `mars2 judge check`.

    Raises:
        RunError: It is no such file.
    """
    data = read_json(path)
    if data.pop("schema", None) != SCHEMA:
        raise RunError(f"{path} is no file of `mars2 judge check` that this version reads")
    try:
        tallies = {
            aspect: tuple(_checked(Tally(**tally)) for tally in data["tallies"][aspect])
            for aspect in get_args(Aspect)
        }
        return Controls(**{**data, "tallies": tallies})
    except (TypeError, KeyError, ValueError) as error:
        raise RunError(f"{path} is no file of `mars2 judge check`: {error}") from error


def _checked(tally: Tally) -> Tally:
    counts = (tally.yes, tally.no, tally.unscored)
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(f"answers about {tally.concept!r} are counted as {counts}")
    if tally.compared not in get_args(Compared):
        raise ValueError(f"{tally.concept!r} is compared with {tally.compared!r}")
    return tally


def find_controls(judges: Sequence[str], suite_revision: str) -> list[Controls]:
    """Return the controls in the user's cache of some judges on a suite.

    Raises:
        RunError: A file cannot be read.
    """
    paths = [controls_path(judge, suite_revision) for judge in judges]
    return [read_controls(path) for path in paths if path.is_file()]
