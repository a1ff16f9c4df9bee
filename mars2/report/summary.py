"""Reduces the records of a store to means with intervals: what tables and plots are made from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mars2.controls import Aspect, Controls, CorrectedShare, correct
from mars2.job import CONTROLS, RunError, RunSpec
from mars2.report.verdicts import is_published, verdicts
from mars2.stats import Estimate, cluster_mean, paired_difference
from mars2.store import Cost, Record, RunStore, Sample

SEED = 0

MARS2 = ("mars2", "mars2_subject", "mars2_style")
BY_REFERENCE: Mapping[str, str] = {
    "mars2_subject": "mars2_subject_yes",
    "mars2_style": "mars2_style_yes",
}
"""Name of the share of an image's references that say yes, by the score whose detail holds it."""
CORRECTED: Mapping[str, tuple[Aspect, ...]] = {
    "subject": ("subject",),
    "style": ("style",),
    "both": ("subject", "style"),
}
"""What is corrected for a judge's errors, and the questions that it comes of."""
HEADINGS: Mapping[str, str] = {
    "mars2": "MARS2",
    "mars2_subject": "subject",
    "mars2_style": "style",
    "mars2_subject_yes": "subject yes",
    "mars2_style_yes": "style yes",
    "clip_i_style": "CLIP-I style",
    "clip_i_subject": "CLIP-I subject",
    "clip_t": "CLIP-T",
    "dino_subject": "DINO subject",
    "dino_style": "DINO style",
}
"""What the scores are called in tables, in the order of the columns; more is better in all."""


@dataclass(frozen=True)
class Source:
    """Where a number comes from: the name of the score, and the judge or metric that gave it."""

    metric: str
    judge: str

    @property
    def heading(self) -> str:
        """What the score is called in a table."""
        return HEADINGS.get(self.metric, self.metric)

    @property
    def is_share(self) -> bool:
        """Whether it is a share, of images or of references, as a judge gives; else a cosine."""
        return self.metric in MARS2 or self.metric in BY_REFERENCE.values()


@dataclass(frozen=True)
class ScoreSummary:
    """One score of one method.

    Attributes:
        average: Mean over all images.
        best_of_n: Mean over cases of the best image of each.
        subjects: Subject id -> mean over its images.
        styles: Style id -> mean over its images.
        difference: To the reference method, image by image; None for that method itself.
        pending: Number of images that this score has not been computed for.
    """

    average: Estimate
    best_of_n: Estimate
    subjects: Mapping[str, Estimate]
    styles: Mapping[str, Estimate]
    difference: Estimate | None
    pending: int


@dataclass(frozen=True)
class CostSummary:
    """What a method took, over its jobs.

    Attributes:
        jobs: Number of jobs (merges).
        merge_seconds: Mean of a merge, any fit to the pair included.
        image_seconds: Mean of an image.
        merge_peak_bytes: Highest memory use while merging; None: not measurable.
        peak_bytes: Highest memory use of a job.
        memory: What was measured, "cuda allocated" or "resident set".
        parameters: Largest number of numbers stored in a merged adapter, or for a policy.
    """

    jobs: int
    merge_seconds: float
    image_seconds: float
    merge_peak_bytes: int | None
    peak_bytes: int | None
    memory: str
    parameters: int


@dataclass(frozen=True)
class MethodSummary:
    """All numbers of one method.

    Attributes:
        label: Its name.
        control: Whether it is no merge, but there to compare with.
        images: Number of images.
        missing: Number of images that are expected, but not there.
        scores: By column.
        cost: What it took, if that is known.
        corrected: Judge -> name in `CORRECTED` -> share of yes, raw and corrected for its errors;
            of judges whose errors are known.
    """

    label: str
    control: bool
    images: int
    missing: int
    scores: Mapping[Source, ScoreSummary]
    cost: CostSummary | None
    corrected: Mapping[str, Mapping[str, CorrectedShare]] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What a store's records come to.

    Attributes:
        suite: Name of the suite, or "".
        suite_revision: 12 hex of its content.
        split: Split of the cases.
        cases: Ids of the pairs.
        subjects: Ids, in the order of the cases.
        styles: Likewise.
        images_per_case: Expected images of a pair and method: lowest and highest number.
        sources: Columns of the tables; the published judge's before another's.
        methods: Methods in the order run, controls last.
        reference: Label of the method that the others are compared with: of those that are no
            control the one with the highest value in the first of `sources`; None: no score.
        references: Concept id -> number of reference images the judge was shown.
        close: Judge -> number of its answers that half precision alone may have decided.
        controls: Judge -> what it answered to known questions, where that is known.
    """

    suite: str
    suite_revision: str
    split: str
    cases: tuple[str, ...]
    subjects: tuple[str, ...]
    styles: tuple[str, ...]
    images_per_case: tuple[int, int]
    sources: tuple[Source, ...]
    methods: tuple[MethodSummary, ...]
    reference: str | None
    references: Mapping[str, int]
    close: Mapping[str, int]
    controls: Mapping[str, Controls] = field(default_factory=dict)

    @property
    def judges(self) -> tuple[str, ...]:
        """Ids of the judges that gave MARS2 scores."""
        return tuple(dict.fromkeys(s.judge for s in self.sources if s.is_share))

    def mars2(self, judge: str) -> tuple[Source, ...]:
        """Return the columns of one judge: joint, subject, style, and the shares of yes."""
        return tuple(s for s in self.sources if s.is_share and s.judge == judge)

    @property
    def similarities(self) -> tuple[Source, ...]:
        """Columns that are no share of images: CLIP, DINO and other metrics."""
        return tuple(s for s in self.sources if not s.is_share)

    def not_told_apart(self) -> list[str]:
        """Return the methods whose paired difference to the reference spans 0, or has no interval.

        Controls are left out.
        """
        if not self.sources:
            return []
        names = []
        for method in self.methods:
            score = method.scores.get(self.sources[0])
            if method.control or score is None or score.difference is None:
                continue
            low, high = score.difference.low, score.difference.high
            if low is None or high is None or low <= 0 <= high:
                names.append(method.label)
        return names


def summarise(store: RunStore, controls: Sequence[Controls] = ()) -> Summary:
    """Return what the records of a store come to; needs no model and no image to be opened.

    Args:
        store: A run, or the results of a scored folder of images.
        controls: What its judges answered to known questions.

    Raises:
        RunError: Controls are of a judge that gave no score.
    """
    samples = store.samples()
    there = [sample for sample in samples if sample.path.is_file()]
    records = store.records()
    values = _values(records)
    sources = _sources(values, samples)
    spec = store.spec
    unmerged = _unmerged(spec) if isinstance(spec, RunSpec) else ()
    labels = sorted(spec.labels, key=lambda label: label in unmerged)
    reference = _best(labels, unmerged, sources, values, there)
    costs = store.costs()
    known = _known_errors(controls, sources)
    shares = _yes_shares(records)
    return Summary(
        suite=spec.suite,
        suite_revision=spec.suite_revision,
        split=spec.split,
        cases=_unique(sample.case for sample in samples),
        subjects=_unique(sample.subject for sample in samples),
        styles=_unique(sample.style for sample in samples),
        images_per_case=_images_per_case(samples),
        sources=sources,
        methods=tuple(
            MethodSummary(
                label=label,
                control=label in unmerged,
                images=sum(sample.method == label for sample in there),
                missing=sum(sample.method == label for sample in samples)
                - sum(sample.method == label for sample in there),
                scores={
                    source: score
                    for source in sources
                    if (score := _score(label, reference, source, values[source], there))
                },
                cost=_cost([cost for cost in costs if cost.method == label]),
                corrected={
                    judge: _corrected(label, errors, shares.get(judge, {}), there)
                    for judge, errors in known.items()
                },
            )
            for label in labels
        ),
        reference=reference,
        references=_references(records, samples),
        close=_close(records, there),
        controls=known,
    )


_Key = tuple[str, str, int]  # method, case, seed
_Values = Mapping[Source, Mapping[_Key, float | None]]


def _values(records: Iterable[Record]) -> _Values:
    values: dict[Source, dict[_Key, float | None]] = {}
    by_reference: dict[Source, dict[_Key, float | None]] = {}
    several = set()  # where some image has several references; else the share is the score itself
    for record in records:
        key = (record.method, record.case, record.seed)
        values.setdefault(Source(record.metric, record.judge), {})[key] = record.value
        if record.metric in BY_REFERENCE:
            source = Source(BY_REFERENCE[record.metric], record.judge)
            by_reference.setdefault(source, {})[key] = record.detail.get("yes_share")
            if len(record.detail.get("answers", ())) > 1:
                several.add(source)
    return values | {s: shares for s, shares in by_reference.items() if s in several}


def _yes_shares(records: Iterable[Record]) -> dict[str, dict[Aspect, dict[_Key, float | None]]]:
    """Return judge -> aspect -> the share of an image's references that say yes."""
    aspects: Mapping[str, Aspect] = {"mars2_subject": "subject", "mars2_style": "style"}
    shares: dict[str, dict[Aspect, dict[_Key, float | None]]] = {}
    for record in records:
        if record.metric in aspects:
            of_judge = shares.setdefault(record.judge, {"subject": {}, "style": {}})
            key = (record.method, record.case, record.seed)
            of_judge[aspects[record.metric]][key] = record.detail.get("yes_share")
    return shares


def _known_errors(controls: Sequence[Controls], sources: Sequence[Source]) -> dict[str, Controls]:
    judges = _unique(source.judge for source in sources if source.is_share)
    for one in controls:
        if one.judge not in judges:
            raise RunError(
                f"the controls are of judge {one.judge!r}, which scored none of these images; "
                f"scored by: {', '.join(map(repr, judges)) or 'none'}"
            )
    twice = next((j for j in judges if sum(one.judge == j for one in controls) > 1), None)
    if twice is not None:
        raise RunError(f"two files of controls are of judge {twice!r}: give one of them")
    return {one.judge: one for one in controls}


def _corrected(
    label: str,
    controls: Controls,
    shares: Mapping[Aspect, Mapping[_Key, float | None]],
    samples: Sequence[Sample],
) -> dict[str, CorrectedShare]:
    corrected = {}
    for name, aspects in CORRECTED.items():
        asked = [
            sample
            for sample in samples
            if sample.method == label
            and all(
                (label, sample.case, sample.seed) in shares.get(aspect, {}) for aspect in aspects
            )
        ]
        corrected[name] = correct(
            [[shares[aspect][label, s.case, s.seed] for aspect in aspects] for s in asked],
            [sample.case for sample in asked],
            [controls.tallies[aspect] for aspect in aspects],
            seed=SEED,
        )
    return corrected


def _sources(values: _Values, samples: Sequence[Sample]) -> tuple[Source, ...]:
    """Return the scores that any expected sample has, in the order of the columns."""
    keys = {(sample.method, sample.case, sample.seed) for sample in samples}
    order = list(HEADINGS)
    return tuple(
        sorted(
            (source for source, scored in values.items() if keys & scored.keys()),
            key=lambda source: (
                not source.is_share,
                source.is_share and not is_published(source.judge),
                source.judge if source.is_share else "",
                order.index(source.metric) if source.metric in order else len(order),
                source.metric,
                source.judge,
            ),
        )
    )


def _unmerged(spec: RunSpec) -> tuple[str, ...]:
    return tuple(method.label for method in spec.methods if method.name in CONTROLS)


def _best(
    labels: Sequence[str],
    unmerged: Sequence[str],
    sources: Sequence[Source],
    values: _Values,
    samples: Sequence[Sample],
) -> str | None:
    if not sources:
        return None
    means = {}
    for label in [name for name in labels if name not in unmerged] or labels:
        scored = _of(label, values[sources[0]], samples)
        mean = cluster_mean([value for _, value in scored], ["" for _ in scored]).value
        if mean is not None:
            means[label] = round(mean, 9)  # float noise decides no tie; the first has it
    return max(means, key=lambda label: means[label]) if means else None


def _of(
    label: str, values: Mapping[_Key, float | None], samples: Sequence[Sample]
) -> list[tuple[Sample, float | None]]:
    """Return the samples of a method that have a record, with their values."""
    return [
        (sample, values[label, sample.case, sample.seed])
        for sample in samples
        if sample.method == label and (label, sample.case, sample.seed) in values
    ]


def _score(
    label: str,
    reference: str | None,
    source: Source,
    values: Mapping[_Key, float | None],
    samples: Sequence[Sample],
) -> ScoreSummary | None:
    scored = _of(label, values, samples)
    if not scored:
        return None
    by_case: dict[str, list[float]] = {}
    for sample, value in scored:
        by_case.setdefault(sample.case, []).extend([] if value is None else [value])
    best = [max(case_values, default=None) for case_values in by_case.values()]
    return ScoreSummary(
        average=_mean(scored),
        best_of_n=cluster_mean(best, list(by_case), seed=SEED),
        subjects={
            subject: _mean([item for item in scored if item[0].subject == subject])
            for subject in _unique(sample.subject for sample, _ in scored)
        },
        styles={
            style: _mean([item for item in scored if item[0].style == style])
            for style in _unique(sample.style for sample, _ in scored)
        },
        difference=_difference(label, reference, values, samples),
        pending=sum(sample.method == label for sample in samples) - len(scored),
    )


def _mean(scored: Sequence[tuple[Sample, float | None]]) -> Estimate:
    return cluster_mean(
        [value for _, value in scored], [sample.case for sample, _ in scored], seed=SEED
    )


def _difference(
    label: str,
    reference: str | None,
    values: Mapping[_Key, float | None],
    samples: Sequence[Sample],
) -> Estimate | None:
    if reference is None or label == reference:
        return None
    ours = _of(label, values, samples)
    pairs = [
        (value, values[reference, sample.case, sample.seed], sample.case)
        for sample, value in ours
        if (reference, sample.case, sample.seed) in values
    ]
    return paired_difference(
        [pair[0] for pair in pairs],
        [pair[1] for pair in pairs],
        [pair[2] for pair in pairs],
        seed=SEED,
    )


def _cost(costs: Sequence[Cost]) -> CostSummary | None:
    if not costs:
        return None
    merge_peaks = [cost.merge_peak_bytes for cost in costs if cost.merge_peak_bytes is not None]
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    return CostSummary(
        jobs=len(costs),
        merge_seconds=sum(cost.merge_seconds for cost in costs) / len(costs),
        image_seconds=sum(cost.generation_seconds for cost in costs)
        / max(1, sum(cost.images for cost in costs)),
        merge_peak_bytes=max(merge_peaks, default=None),
        peak_bytes=max(peaks, default=None),
        memory=costs[0].memory,
        parameters=max(cost.parameters for cost in costs),
    )


def _references(records: Iterable[Record], samples: Sequence[Sample]) -> dict[str, int]:
    """Return how many references the judge was shown of each concept."""
    by_case = {sample.case: sample for sample in samples}
    counts: dict[str, int] = {}
    for record in records:
        sample = by_case.get(record.case)
        if sample is None or record.metric not in ("mars2_subject", "mars2_style"):
            continue
        concept = sample.subject if record.metric == "mars2_subject" else sample.style
        counts[concept] = max(counts.get(concept, 0), len(verdicts(record)))
    order = _unique(s.subject for s in samples) + _unique(s.style for s in samples)
    return {concept: counts[concept] for concept in order if counts.get(concept)}


def _close(records: Iterable[Record], samples: Sequence[Sample]) -> dict[str, int]:
    """Return how many answers of each judge are close, of those that gave any."""
    keys = {(sample.method, sample.case, sample.seed) for sample in samples}
    numbers = {
        (record.judge, record.metric, key): sum(record.detail.get("close", ()))
        for record in records
        if (key := (record.method, record.case, record.seed)) in keys
    }
    counts: dict[str, int] = {}
    for (judge, *_), number in numbers.items():
        if number:
            counts[judge] = counts.get(judge, 0) + number
    return counts


def _images_per_case(samples: Sequence[Sample]) -> tuple[int, int]:
    counts: dict[tuple[str, str], int] = {}
    for sample in samples:
        counts[sample.method, sample.case] = counts.get((sample.method, sample.case), 0) + 1
    return min(counts.values(), default=0), max(counts.values(), default=0)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
