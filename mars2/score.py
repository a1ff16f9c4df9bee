"""Scores a folder's images: finds what has no score yet, asks the metrics, appends records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmark_data.load import load_suite
from benchmark_data.suite import Concept, Suite
from mars2.files import file_digest, read_image
from mars2.image_folder import listed
from mars2.job import RunError, digest
from mars2.metrics import Evaluated, Metric
from mars2.store import ImagesSpec, Record, RunStore, Sample


@dataclass(frozen=True)
class Progress:
    """How far the scoring is: images done of those this metric has to score."""

    metric: str
    done: int
    total: int


class References:
    """The reference images of the concepts in a store, and what its styles are called.

    Attributes:
        files: Concept id -> reference images.
        phrases: Style id -> phrase in the judge's question.
    """

    def __init__(self, files: Mapping[str, Sequence[Path]], phrases: Mapping[str, str]) -> None:
        self.files = files
        self.phrases = phrases
        self._images: dict[str, list[Image.Image]] = {}
        self._digests: dict[str, list[str]] = {}

    def images(self, concept: str) -> list[Image.Image]:
        """Return a concept's reference images, RGB."""
        if concept not in self._images:
            self._images[concept] = [read_image(path) for path in self.files[concept]]
        return self._images[concept]

    def inputs(self, sample: Sample) -> str:
        """Return 12 hex of all that a sample is compared with."""
        for concept in (sample.subject, sample.style):
            if concept not in self._digests:
                self._digests[concept] = [file_digest(path) for path in self.files[concept]]
        return digest(
            [
                self._digests[sample.subject],
                self._digests[sample.style],
                self.phrases[sample.style],
                sample.prompt,
            ]
        )[:12]


def find_references(store: RunStore, suite: str | None = None) -> References:
    """Return the references of a store's concepts, from its suite or from the folders given.

    Args:
        store: A run, or a scored folder of images.
        suite: Where the suite lies now; None: where it lay then.

    Raises:
        RunError: The suite has changed since, or a reference image is not there.
    """
    if isinstance(store.spec, ImagesSpec) and store.spec.references:
        files = {
            concept: [store.folder / file for file in files]
            for concept, files in store.spec.references.items()
        }
        return References(files, store.spec.phrases)
    loaded = load_suite(suite or store.spec.suite)
    if loaded.revision != store.spec.suite_revision:
        raise RunError(
            f"{store.folder} was made with revision {store.spec.suite_revision} of suite "
            f"{store.spec.suite}, this is {loaded.name} {loaded.revision}: give the suite it was "
            "made with by --suite, or make it again in a new folder"
        )
    concepts = dict.fromkeys(
        concept for sample in store.samples() for concept in (sample.subject, sample.style)
    )
    known = {**loaded.subjects, **loaded.styles}
    return References(
        {concept: reference_paths(known[concept], loaded) for concept in concepts},
        {style: loaded.styles[style].phrase for style in concepts if style in loaded.styles},
    )


def reference_paths(concept: Concept, suite: Suite) -> list[Path]:
    """Return the files of a concept's reference images.

    Raises:
        RunError: One is not there.
    """
    missing = [
        reference.file
        for reference in concept.references
        if reference.path is None or not reference.path.is_file()
    ]
    if missing:
        raise RunError(
            f"reference images of {concept.role} {concept.id} are missing: {listed(missing)}; "
            f"get them with `mars2 data fetch {suite.name}`"
        )
    return [reference.path for reference in concept.references if reference.path is not None]


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


def score(
    store: RunStore,
    metrics: Sequence[Metric],
    references: References,
    *,
    partial: bool = False,
    batch_size: int = 8,
) -> Iterator[Progress]:
    """Score what has no record yet, a batch at each step of the iteration.

    A score counts as there if image, judge and all that the image is compared with are the same.
    Images of a pair follow one another, so that a judge can keep what it computed for a reference.

    Raises:
        RunError: Images are missing or cannot be read.
        JudgeError: The judge fails.
    """
    samples = present_samples(store, partial=partial)
    order = {case: number for number, case in enumerate(dict.fromkeys(s.case for s in samples))}
    samples.sort(key=lambda sample: order[sample.case])
    images = {sample.path: file_digest(sample.path) for sample in samples}
    inputs = {sample: references.inputs(sample) for sample in samples}
    known = _known(store)
    pending = {
        metric.id: [
            sample
            for sample in samples
            if not set(metric.names)
            <= known.get((_key(sample), metric.id, images[sample.path], inputs[sample]), set())
        ]
        for metric in metrics
    }
    for path in dict.fromkeys(sample.path for todo in pending.values() for sample in todo):
        read_image(path)  # a broken one is found before an hour of judging
    for metric in metrics:
        todo = pending[metric.id]
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            scores = metric.score([_evaluated(sample, references) for sample in batch])
            store.append(
                [
                    Record(
                        method=sample.method,
                        case=sample.case,
                        seed=sample.seed,
                        metric=one.metric,
                        value=one.value,
                        image=images[sample.path],
                        judge=metric.id,
                        detail=one.detail,
                        inputs=inputs[sample],
                    )
                    for sample, several in zip(batch, scores, strict=True)
                    for one in several
                ]
            )
            yield Progress(metric.id, start + len(batch), len(todo))


def _key(sample: Sample | Record) -> tuple[str, str, int]:
    return sample.method, sample.case, sample.seed


def _known(store: RunStore) -> dict[tuple[tuple[str, str, int], str, str, str], set[str]]:
    known: dict[tuple[tuple[str, str, int], str, str, str], set[str]] = {}
    for record in store.records():
        key = (_key(record), record.judge, record.image, record.inputs)
        known.setdefault(key, set()).add(record.metric)
    return known


def _evaluated(sample: Sample, references: References) -> Evaluated:
    return Evaluated(
        sample=sample,
        image=read_image(sample.path),
        subject_references=references.images(sample.subject),
        style_references=references.images(sample.style),
        style_phrase=references.phrases[sample.style],
        prompt=sample.prompt,
    )
