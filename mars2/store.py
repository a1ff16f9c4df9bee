"""A run on disk: run.json, images, costs and records.

A folder of someone else's images is scored into the same layout, with `ImagesSpec` in images.json
instead of run.json.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mars2.files import JsonLines, read_json, write_json
from mars2.job import SCHEMA, RunError, RunSpec, read_schema
from mars2.wording import few

RUN_FILE = "run.json"
IMAGES_FILE = "images.json"
SCORES_FOLDER = "mars2-scores"  # in a folder of images, where its results are written
_ELSEWHERE = "choose another --out, or leave it out for a folder beside the images"


@dataclass(frozen=True)
class Sample:
    """One image to be scored; `subject` and `style` are concept ids."""

    method: str
    case: str
    seed: int
    path: Path
    subject: str
    style: str
    prompt: str | None


@dataclass(frozen=True)
class Record:
    """One score of one image: a line of records.jsonl.

    Attributes:
        method: Label of the method.
        case: Id of the case.
        seed: Seed, or number of the image in its folder.
        metric: Name of the score, such as "mars2_subject".
        value: None when unscored.
        image: sha256 of the image's file.
        judge: Id of the metric or judge that gave the score.
        detail: What the score came from (answers, raw text, ...); a JSON text in the file, so that
            every line has the same columns for pandas and `datasets`.
        inputs: 12 hex of what was shown beside the image: references, style phrase, prompt.
        failed: Why something the score needs could not be had (a judge's server was gone, ...), or
            ""; such a score is computed again by the next scoring.
    """

    method: str
    case: str
    seed: int
    metric: str
    value: float | None
    image: str
    judge: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    inputs: str = ""
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the line of records.jsonl."""
        if self.value is not None and not math.isfinite(self.value):
            raise RunError(
                f"{self.metric} of {self.method}/{self.case}/{self.seed} is {self.value}; "
                "a score is finite or None"
            )
        value = None if self.value is None else float(self.value)
        detail = json.dumps(dict(self.detail), sort_keys=True, ensure_ascii=False)
        return {**dataclasses.asdict(self), "value": value, "detail": detail}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "Record":
        """Read what `to_json` wrote."""
        return cls(**{**line, "detail": json.loads(line["detail"])})


@dataclass(frozen=True)
class Cost:
    """What one finished job took: a line of costs.jsonl.

    Attributes:
        job: Id of the job.
        method: Label of the method.
        case: Id of the case.
        merge_seconds: Merging, any fit included, or making a policy; without reading files.
        generation_seconds: Fusing, drawing and decoding all images of the job.
        images: Number of images.
        merge_peak_bytes: Peak memory while merging, base model included; None: not measurable.
        peak_bytes: Peak memory of the whole job.
        memory: What the peaks are: "cuda allocated" or "resident set".
        parameters: Numbers stored in the merged adapter, or in all that a policy weighs; 0 for
            the base model.
        batch_size: Images drawn at once.
    """

    job: str
    method: str
    case: str
    merge_seconds: float
    generation_seconds: float
    images: int
    merge_peak_bytes: int | None
    peak_bytes: int | None
    memory: str
    parameters: int
    batch_size: int


@dataclass(frozen=True)
class FoundImage:
    """An image of a folder that is no run; `file` is relative to the folder of the results."""

    method: str
    case: str
    seed: int
    file: str
    subject: str
    style: str
    prompt: str | None = None


@dataclass(frozen=True)
class ImagesSpec:
    """A folder of images that was scored; the content of images.json.

    Attributes:
        source: The folder, as given.
        images: What was found, sorted.
        suite: Name or path of the suite of the concepts; "" if reference folders say what they are.
        suite_revision: 12 hex of the suite's content.
        split: Split of the suite, or "".
        references: Concept id -> files, only where reference folders were given.
        phrases: Concept id -> style phrase, likewise.
    """

    source: str
    images: tuple[FoundImage, ...]
    suite: str = ""
    suite_revision: str = ""
    split: str = ""
    references: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    phrases: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the methods, in the order found."""
        return tuple(dict.fromkeys(image.method for image in self.images))

    def to_json(self) -> dict[str, Any]:
        """Return the content of images.json."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ImagesSpec":
        """Read what `to_json` wrote."""
        fields = read_schema(data, cls)
        return cls(
            **{
                **fields,
                "images": tuple(FoundImage(**image) for image in fields["images"]),
                "references": {key: tuple(files) for key, files in fields["references"].items()},
            }
        )


class RunStore:
    """A run folder, or the results of a scored folder of images.

    Attributes:
        folder: Where it lies.
        spec: What was run (`RunSpec`), or which images were scored (`ImagesSpec`).
        notes: What a user should know who goes on with a run: of what it gets more, ...
    """

    def __init__(self, folder: Path, spec: RunSpec | ImagesSpec, notes: Sequence[str] = ()) -> None:
        self.folder = folder
        self.spec = spec
        self.notes = tuple(notes)
        self._records = JsonLines(folder / "records.jsonl")
        self._unlisted = JsonLines(folder / "unlisted.jsonl")
        self._costs = JsonLines(folder / "costs.jsonl")

    @classmethod
    def create(cls, folder: Path, spec: RunSpec | ImagesSpec, *, write: bool = True) -> "RunStore":
        """Return the store of a new run, or of the same run to go on with.

        An existing run may get further methods, pairs and seeds, and keeps those that it has; a
        folder of images is looked through anew.

        Args:
            folder: Where it lies, or will.
            spec: What is to be run, or which images are to be scored.
            write: False: only check, and leave the disk as it is.

        Raises:
            RunError: The folder holds a run that differs, or files of something else.
        """
        name = RUN_FILE if isinstance(spec, RunSpec) else IMAGES_FILE
        notes: list[str] = []
        if isinstance(spec, RunSpec):
            if (folder / RUN_FILE).exists():
                spec, notes = _continued(folder, spec)
            elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise RunError(f"{folder} exists and is no run folder; choose another --out")
        elif not (folder / IMAGES_FILE).exists():
            if (folder / RUN_FILE).exists():
                raise RunError(f"{folder} is a run's folder, with images of its own; {_ELSEWHERE}")
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise RunError(f"{folder} exists and holds no results of scoring; {_ELSEWHERE}")
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / name, spec.to_json())
        return cls(folder, spec, notes)

    @classmethod
    def open(cls, folder: Path) -> "RunStore":
        """Return the store in a folder; of a folder of images, that of its results.

        Raises:
            RunError: There is none, or it cannot be read.
        """
        if (folder / RUN_FILE).exists():
            return cls(folder, _read_run(folder / RUN_FILE))
        for place in (folder, folder / SCORES_FOLDER):
            if (place / IMAGES_FILE).exists():
                try:
                    spec = ImagesSpec.from_json(read_json(place / IMAGES_FILE))
                except (RunError, TypeError) as error:
                    raise RunError(f"{place / IMAGES_FILE}: {error}") from error
                return cls(place, spec)
        raise RunError(
            f"{folder} holds no {RUN_FILE} of `mars2 run` and no results of `mars2 score`"
        )

    def image_path(self, method: str, case: str, seed: int) -> Path:
        """Return where a run's image lies, whether or not it exists."""
        return self.folder / "images" / method / case / f"{seed}.png"

    def adapter_path(self, method: str, case: str) -> Path:
        """Return where a run's merged adapter lies, whether or not it was saved."""
        return self.folder / "adapters" / method / f"{case}.safetensors"

    def samples(self) -> list[Sample]:
        """Return all expected samples, by method, case and seed; their files may be missing."""
        if isinstance(self.spec, ImagesSpec):
            return [
                Sample(
                    image.method,
                    image.case,
                    image.seed,
                    Path(os.path.normpath(self.folder / image.file)),
                    image.subject,
                    image.style,
                    image.prompt,
                )
                for image in self.spec.images
            ]
        return [
            Sample(
                method,
                case.id,
                seed,
                self.image_path(method, case.id, seed),
                case.subject,
                case.style,
                case.prompt,
            )
            for method in self.spec.labels
            for case in self.spec.cases
            for seed in self.spec.seeds
        ]

    def append(self, records: Sequence[Record]) -> None:
        """Write records behind those there are, and have them on disk when this returns."""
        self._records.append(record.to_json() for record in records)

    def records(self) -> list[Record]:
        """Return the records, in the order written; of a score given again the last one.

        A score is given again when the image or what it was compared with has changed. Those of
        images that are listed no more are among them.
        """
        last: dict[tuple[str, str, int, str, str], Record] = {}
        for line in (*self._unlisted.read(), *self._records.read()):
            record = Record.from_json(line)
            key = (record.method, record.case, record.seed, record.metric, record.judge)
            last.pop(key, None)
            last[key] = record
        return list(last.values())

    def tidy(self) -> None:
        """Write the records anew, without scores given again, if there are any.

        Those of images that are listed no more go to unlisted.jsonl, and come back from there.
        """
        samples = {(sample.method, sample.case, sample.seed) for sample in self.samples()}
        listed: list[dict[str, Any]] = []
        unlisted: list[dict[str, Any]] = []
        for record in self.records():
            there = (record.method, record.case, record.seed) in samples
            (listed if there else unlisted).append(record.to_json())
        if unlisted != self._unlisted.read():
            self._records.replace([*listed, *unlisted])  # all are in one file, if this is killed
            self._unlisted.replace(unlisted)
        if listed != self._records.read():
            self._records.replace(listed)

    def append_cost(self, cost: Cost) -> None:
        """Write the cost of a finished job; its images are complete from here on."""
        self._costs.append([dataclasses.asdict(cost)])

    def costs(self) -> list[Cost]:
        """Return the costs of the finished jobs, in the order they finished; a pair's last ones.

        A pair is drawn again by another job if its run has grown in seeds.
        """
        last: dict[tuple[str, str], Cost] = {}
        for line in self._costs.read():
            cost = Cost(**line)
            last.pop((cost.method, cost.case), None)
            last[cost.method, cost.case] = cost
        return list(last.values())


def _continued(folder: Path, spec: RunSpec) -> tuple[RunSpec, list[str]]:
    """Return the run in a folder with the methods, pairs and seeds of `spec` added, and notes.

    A method that has drawn nothing yet, such as one whose code failed, is taken as it is now.
    """
    there = _read_run(folder / RUN_FILE)
    now = {method.label: method for method in spec.methods}
    drawn = {path.parents[1].name for path in folder.glob("images/*/*/*.png")}
    there = dataclasses.replace(
        there,
        methods=tuple(
            method if method.label in drawn else now.get(method.label, method)
            for method in there.methods
        ),
    )
    differences = there.differences(spec)
    if differences:
        raise RunError(
            f"{folder} holds a run with other settings: {few(differences, '; ')}. Choose another "
            f"--out, or give the old settings again ({folder / RUN_FILE} has them all)"
        )
    recoded = there.recoded(spec)
    if recoded:
        images = few([str(folder / "images" / label) for label in recoded])
        raise RunError(
            f"the code of {few(recoded)} has changed since the run in {folder} drew its images: "
            f"delete {images}, and the same command draws them anew; or choose another --out"
        )
    notes = [f"the run in {folder}: {line}" for line in there.resizing(spec)]
    return there.grown_to(spec), notes


def _read_run(path: Path) -> RunSpec:
    try:
        return RunSpec.from_json(read_json(path))
    except (RunError, TypeError) as error:
        raise RunError(f"{path}: {error}") from error
