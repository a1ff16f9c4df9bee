"""Scores a folder's images: finds what has no score yet, asks the metrics, appends records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark_data.references import file_digest
from mars2.files import read_image
from mars2.job import RunError
from mars2.metrics import Evaluated, Identity, Metric
from mars2.references import References
from mars2.store import Record, RunStore, Sample
from mars2.wording import few, listed


@dataclass(frozen=True)
class Progress:
    """How far a metric is: images done of those it has to score.

    Attributes:
        done: Images gone through.
        total: Images to go through.
        failed: Why scores of images could not be computed whole: one reason an image.
    """

    done: int
    total: int
    failed: Sequence[str] = ()


def present_samples(store: RunStore, *, partial: bool = False) -> list[Sample]:
    """Return the samples whose images are there.

    Raises:
        RunError: There are none; or some are missing and need not be partial.
    """
    samples = store.samples()
    present = [sample for sample in samples if sample.path.is_file()]
    missing = [str(sample.path) for sample in samples if not sample.path.is_file()]
    if not present:
        raise RunError(f"{store.folder} has no images to score")
    if missing and not partial:
        raise RunError(
            f"images are missing: {listed(missing)}; finish the run with the same `mars2 run`, or "
            "give --partial to score what is there"
        )
    return present


def unscored(
    store: RunStore, identity: Identity, references: References, *, partial: bool = False
) -> list[Sample]:
    """Return the samples that a metric has no score of yet: what `score` would do.

    Raises:
        RunError: Images are missing.
    """
    known: dict[tuple[str | int, ...], set[str]] = {}
    for (*key, judge, image, inputs), names in _known(store).items():
        if identity.matches(str(judge)):
            known.setdefault((*key, image, inputs), set()).update(names)
    names = set(identity.names)
    return [
        sample
        for sample in present_samples(store, partial=partial)
        if not names
        <= known.get((*_key(sample), file_digest(sample.path), references.inputs(sample)), set())
    ]


def score(
    store: RunStore,
    metric: Metric,
    references: References,
    *,
    partial: bool = False,
    batch_size: int = 32,
) -> Iterator[Progress]:
    """Score what has no record yet, a batch at each step of the iteration; records follow at once.

    A score counts as there if image, judge and all that the image is compared with are the same.
    What failed is not there. Images of a pair follow one another, so that a judge can keep what it
    computed for a reference.

    Raises:
        RunError: Images are missing or cannot be read.
        JudgeError: The judge fails.
    """
    samples = present_samples(store, partial=partial)
    order = {case: number for number, case in enumerate(dict.fromkeys(s.case for s in samples))}
    samples.sort(key=lambda sample: order[sample.case])
    known = _known(store)
    pending = []
    for sample in samples:
        shown = (file_digest(sample.path), references.inputs(sample))
        if not set(metric.names) <= known.get((*_key(sample), metric.id, *shown), set()):
            pending.append((sample, *shown))
    _check_readable([sample.path for sample, _, _ in pending], partial)
    failed: list[str] = []
    for start in range(0, len(pending), batch_size):
        batch = pending[start : start + batch_size]
        scores = metric.score([evaluated(sample, references) for sample, _, _ in batch])
        store.append(
            [
                Record(
                    method=sample.method,
                    case=sample.case,
                    seed=sample.seed,
                    metric=one.metric,
                    value=one.value,
                    image=image,
                    judge=metric.id,
                    detail=one.detail,
                    inputs=inputs,
                    failed=one.failed,
                )
                for (sample, image, inputs), several in zip(batch, scores, strict=True)
                for one in several
            ]
        )
        reasons = [next((one.failed for one in several if one.failed), "") for several in scores]
        failed += [reason for reason in reasons if reason]
        yield Progress(start + len(batch), len(pending), tuple(failed))


def check_images(store: RunStore, *, partial: bool = False) -> None:
    """Read all images, so that a broken one is found before a model is loaded.

    Raises:
        RunError: Images are missing or cannot be read.
    """
    _check_readable([sample.path for sample in present_samples(store, partial=partial)], partial)


def _check_readable(paths: Sequence[Path], partial: bool) -> None:
    """Find all broken images before an hour of judging."""
    broken = []
    for path in paths:
        try:
            read_image(path)
        except RunError as error:
            broken.append(str(error))
    if broken:
        several = len(broken) > 1
        count = f"{len(broken)} images are broken: " if several else ""
        then = "run this again" if partial else "draw anew, or give --partial to score the others"
        raise RunError(
            f"{count}{few(broken, '; ')}. Delete {'them' if several else 'it'}, then {then}"
        )


def _key(sample: Sample | Record) -> tuple[str, str, int]:
    return sample.method, sample.case, sample.seed


def _known(store: RunStore) -> dict[tuple[str | int, ...], set[str]]:
    """Return the names of the scores there are, by sample, judge, image and inputs."""
    known: dict[tuple[str | int, ...], set[str]] = {}
    for record in store.records():
        if record.failed:
            continue
        key = (*_key(record), record.judge, record.image, record.inputs)
        known.setdefault(key, set()).add(record.metric)
    return known


def evaluated(sample: Sample, references: References) -> Evaluated:
    """Return a sample as a metric looks at it: its image beside the references."""
    return Evaluated(
        sample=sample,
        image=read_image(sample.path),
        subject_references=references.images(sample.subject),
        style_references=references.images(sample.style),
        style_phrase=references.phrases[sample.style],
        prompt=sample.prompt,
    )
