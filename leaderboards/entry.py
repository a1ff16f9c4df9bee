"""One published result: a method on a suite, as a JSON file with records and pictures beside it.

`leaderboards/results/SUITE/METHOD@VERSION.json` is an `Entry`; beside it lie
`METHOD@VERSION.records.parquet` (what the judge said of each image) and `METHOD@VERSION.webp` (an
image of each pair). Reading is strict: a stranger wrote the file.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from leaderboards.shape import (
    Count,
    EntryError,
    Number,
    Problem,
    Text,
    as_json,
    json_schema,
    load_json,
    read,
)
from leaderboards.stats import Estimate

SCHEMA: Final = 1
ENTRY_BYTES = 256 * 1024
RECORDS_BYTES = 200 * 1000
SHEET_BYTES = 300 * 1000
"""Most bytes of an entry's files."""
CONTROLS = ("base", "subject_only", "style_only")
"""Methods that merge nothing; every board needs them."""
MARS2 = ("mars2", "mars2_subject", "mars2_style")
SHARES = (*MARS2, "mars2_subject_yes", "mars2_style_yes")
"""Scores that come of the judge's answers, in ``[0, 1]``."""

Track = Literal["control", "weights", "policy", "fit", "trained", "reference"]
TRACKS: Mapping[Track, str] = {
    "weights": "weights only: merges from the two LoRA files alone",
    "policy": "policy: weighs both LoRAs anew at each denoising step",
    "fit": "fit: optimises for each pair, with the base model",
    "trained": "trained: needs a network trained beforehand",
    "reference": "reference: looks at reference images while it draws",
    "control": "control: merges nothing",
}

Name = Annotated[str, Text(64, r"[A-Za-z0-9][A-Za-z0-9_.+-]*", 1)]
Id = Annotated[str, Text(120, r"[A-Za-z0-9][A-Za-z0-9_.-]*", 1)]
Hex = Annotated[str, Text(64, r"[0-9a-f]{8,64}", 8)]
Sha256 = Annotated[str, Text(64, r"[0-9a-f]{64}", 64)]
Line = Annotated[str, Text(300)]
Paragraph = Annotated[str, Text(2000)]
Url = Annotated[str, Text(300, r"(https://[A-Za-z0-9.-]+(/[A-Za-z0-9._~/%?#=&+@:,-]*)?)?")]
FileName = Annotated[str, Text(120, r"[A-Za-z0-9][A-Za-z0-9_.+@-]*", 1)]
Number_ = Annotated[float, Number(-1e12, 1e12)]
Option = (
    bool | Annotated[int, Number(-(10**12), 10**12)] | Number_ | Annotated[str, Text(300)] | None
)
Value = Annotated[float, Number(-1000, 1000)]
Tally = Annotated[int, Number(0, 10**6)]
Seconds = Annotated[float, Number(0, 10**7)]
Bytes = Annotated[int, Number(0, 10**14)]


@dataclass(frozen=True)
class SuiteRef:
    """On what it was measured."""

    name: Name
    revision: Hex
    """12 hex of the suite's content."""
    split: Id


@dataclass(frozen=True)
class Method:
    """What was measured."""

    name: Name
    """Under which it is registered."""
    label: Annotated[str, Text(200, "", 1)]
    """Its name with the options passed, as in a run's tables."""
    version: Hex
    """8 hex of all that makes its images, see `Entry.version`."""
    kind: Literal["layer", "adapter", "fit", "policy", "images"]
    track: Track
    """What it may use; methods are ranked within a track, too."""
    summary: Line
    """What it does, in a sentence."""
    options: Annotated[Mapping[Name, Option], Count(64)]
    """What was passed; of a file its name only."""
    resolved: Annotated[Mapping[Name, Option], Count(64)]
    """Every option with the value used; of a file its name only."""
    files: Annotated[Mapping[Name, Sha256], Count(64)]
    """sha256 of each file that an option names."""
    code: Hex
    """Digest of the method's code."""
    paper: Url
    """Where its algorithm is described, or ""."""
    url: Url
    """Where its code is, or ""."""
    licence: Line
    """SPDX identifier of the code's licence."""
    training: Line
    """What training it needed before it met a pair, in words, or ""."""


@dataclass(frozen=True)
class Judge:
    """Who judged; all of it is in `id`, the rest are its parts."""

    id: Annotated[str, Text(300, "", 1)]
    model: Annotated[str, Text(200, "", 1)]
    revision: Line
    layout: Line
    """How it saw two images; "" where there is one way only."""
    dtype: Line
    prompts: Annotated[str, Text(40, r"[a-z]+@[0-9a-f]{12}", 1)]
    """Form of the questions and digest of their wording."""
    own: bool
    """Whether it is the suite's own judge; entries of others form boards of their own."""


@dataclass(frozen=True)
class Generation:
    """How the images were drawn."""

    base: Annotated[str, Text(200, "", 1)]
    """Base model."""
    base_revision: Hex
    adapters: Sha256
    """Digest of the digests of all adapters merged."""
    resolution: Annotated[int, Number(8, 8192)]
    steps: Annotated[int, Number(1, 10000)]
    guidance_scale: Annotated[float, Number(0, 1000)]
    negative_prompt: Line
    dtype: Line
    device: Line


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, by bootstrap over pairs."""

    value: Value | None
    low: Value | None
    high: Value | None
    n: Tally
    n_unscored: Tally
    n_clusters: Tally

    @classmethod
    def of(cls, estimate: Estimate) -> "Interval":
        """Return an estimate, rounded as in the file."""
        value, low, high = (
            None if end is None else round(end, 9)
            for end in (estimate.value, estimate.low, estimate.high)
        )
        return cls(value, low, high, estimate.n, estimate.n_unscored, estimate.n_clusters)


@dataclass(frozen=True)
class Aggregate:
    """One score over all images."""

    judge: Annotated[str, Text(300, "", 1)]
    """Id of the judge or metric that gave it."""
    average: Interval
    """Mean over images."""
    best_of_n: Interval
    """Mean over pairs of the best image of each."""


@dataclass(frozen=True)
class CaseScores:
    """The scores of one pair."""

    id: Id
    subject: Id
    style: Id
    prompt: Line
    scores: Annotated[Mapping[Name, Value | None], Count(40, 1)]
    """Score -> mean over the pair's scored images."""
    unscored: Annotated[Mapping[Name, Tally], Count(40)]
    """Score -> number of its images without one, where that is not 0."""


@dataclass(frozen=True)
class Costs:
    """What the method took on `Generation.device`, over its pairs."""

    merge_seconds: Seconds
    """Mean of a merge, any fit to the pair included."""
    image_seconds: Seconds
    """Mean of an image."""
    merge_peak_bytes: Bytes | None
    peak_bytes: Bytes | None
    memory: Line
    """What the peaks are, such as "resident set"."""
    parameters: Annotated[int, Number(0, 10**12)]
    """Numbers stored in a merged adapter, or in all that a policy weighs."""
    batch_size: Annotated[int, Number(1, 10**6)]
    """Images drawn at once."""


@dataclass(frozen=True)
class Attachment:
    """A file beside the entry."""

    file: FileName
    sha256: Sha256
    bytes: Annotated[int, Number(1, 10**6)]


@dataclass(frozen=True)
class Sheet:
    """A picture with one image of each pair, in the order of `Entry.cases`, row by row."""

    file: FileName
    sha256: Sha256
    bytes: Annotated[int, Number(1, 10**6)]
    seed: Annotated[int, Number(0, 2**63)]
    columns: Annotated[int, Number(1, 1000)]
    side: Annotated[int, Number(8, 1024)]
    """Pixels a side of each image."""


@dataclass(frozen=True)
class Entry:
    """A method's result on a suite."""

    schema: Literal[1]
    suite: SuiteRef
    method: Method
    judge: Judge
    generation: Generation
    seeds: Annotated[tuple[Annotated[int, Number(0, 2**63)], ...], Count(1000, 1)]
    scores: Annotated[Mapping[Name, Aggregate], Count(40, 1)]
    cases: Annotated[tuple[CaseScores, ...], Count(1000, 1)]
    costs: Costs
    environment: Annotated[Mapping[Name, Line], Count(40, 1)]
    """Package versions, git revision, platform and time of the run."""
    records: Attachment
    sheet: Sheet
    notes: Paragraph

    @property
    def version(self) -> str:
        """8 hex of what makes the method's images and scores: another code is another version."""
        made = [
            self.method.name,
            self.method.code,
            as_json({**self.method.resolved, **self.method.files}),
            self.generation.base_revision,
            self.judge.id,
        ]
        text = json.dumps(made, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """``METHOD@VERSION``: the name of its files."""
        return f"{self.method.name}@{self.method.version}"

    @property
    def control(self) -> bool:
        """Whether it is there to compare with, and has no rank."""
        return self.method.track == "control"


def entry_bytes(entry: Entry) -> bytes:
    """Return the content of the entry's file."""
    text = json.dumps(as_json(entry), indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def read_entry(path: Path) -> Entry:
    """Return the entry in a file; types, ranges and names are checked, not what they say.

    Raises:
        EntryError: It is none; all problems are in the error.
    """
    data = load_json(path, most_bytes=ENTRY_BYTES)
    if data.get("schema") != SCHEMA or isinstance(data["schema"], bool):
        told = repr(data.get("schema", "nothing"))[:40]
        expected = f"{SCHEMA} (a newer one needs a newer mars2)"
        raise EntryError([Problem(str(path), "schema", expected, told)])
    return read(Entry, data, file=str(path))


def find_entries(place: Path) -> list[Path]:
    """Return the entries in a folder of results, or that of a file, sorted.

    Raises:
        EntryError: There is no such place.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise EntryError(
            f"{place} is no entry and no folder of entries: "
            "name one, or run this in a clone of the project"
        )
    return sorted(place.rglob("*.json"))


def read_entries(place: Path) -> list[Entry]:
    """Return all entries in a folder of results, sorted by suite and name.

    Raises:
        EntryError: One cannot be read; the problems of all are in the error.
    """
    entries: list[Entry] = []
    problems: list[Problem] = []
    for path in find_entries(place):
        try:
            entries.append(read_entry(path))
        except EntryError as error:
            problems += error.problems
    if problems:
        raise EntryError(problems)
    return sorted(entries, key=lambda entry: (entry.suite.name, entry.name))


def split_judge(id_: str) -> dict[str, str]:
    """Return the parts of a judge's id: model, revision, layout, dtype, prompts; "" if not in it.

    >>> split_judge("critic@5f24 anyres float32 prompts short@607adca4b41b")["revision"]
    '5f24'
    """
    said, _, prompts = id_.partition(" prompts ")
    name, *settings = said.split(" ")
    model, at, revision = name.rpartition("@")
    dtypes = [word for word in settings if re.fullmatch(r"b?float\d+", word)]
    return {
        "model": model if at else name,
        "revision": revision if at else "",
        "layout": " ".join(word for word in settings if word not in dtypes),
        "dtype": " ".join(dtypes),
        "prompts": prompts,
    }


def entry_schema() -> dict[str, Any]:
    """Return the JSON Schema of an entry, which lies in `leaderboards/schema/entry-1.json`."""
    return json_schema(Entry, id_=f"entry-{SCHEMA}.json", title="An entry of a MARS2 leaderboard")
