"""What is to be run: frozen descriptions of a run, its methods and its jobs. No files or models."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mars2.wording import changes, few, spans

SCHEMA = 1

CONTROLS = ("base", "subject_only", "style_only")
"""Methods that merge nothing: what the others have to be better than."""

Option = str | int | float | bool | None


class RunError(ValueError):
    """A run or a scoring that cannot start or go on because of what it was given."""


class NotReadyError(RunError):
    """Several things keep a run from starting; all are told at once.

    Attributes:
        problems: One line each: what is wrong, and what to do.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(f"{len(problems)} things keep it from starting: {'; '.join(problems)}")
        self.problems = tuple(problems)


def digest(value: object) -> str:
    """Return the sha256 (64 hex) of a value's canonical JSON: sorted keys, no spaces.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Choices:
    """What a user chose of a run; None and empty leave it to the suite.

    Attributes:
        split: Split whose cases are run.
        methods: As on the command line, such as "ziplora:steps=100".
        controls: Whether the three controls are run too.
        model: Folder or hub id of the base model.
        dtype: "float32", "float16" or "bfloat16"; None: float32 on the CPU, else float16.
        device: "auto" or a torch device.
        adapters: Folder of CONCEPT.safetensors.
        seeds: The same for every case.
        steps: Denoising steps.
        limit: Number of pairs.
    """

    split: str = "test"
    methods: Sequence[str] = ()
    controls: bool = True
    model: str | None = None
    dtype: str | None = None
    device: str = "auto"
    adapters: Path | None = None
    seeds: tuple[int, ...] = ()
    steps: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class MethodSpec:
    """A merge method as it is used in one run.

    Attributes:
        name: Name under which the method is registered.
        options: What the user passed.
        resolved: Every option of the method with the value used.
        label: Name in tables and of the image folder, unique in a run.
        kind: "layer", "adapter", "fit" or "policy"; see `baselines.MergeMethod`.
        source: Digest of the method's code.
        files: sha256 of each file that an option names, by option.
    """

    name: str
    options: Mapping[str, Option] = field(default_factory=dict)
    resolved: Mapping[str, Option] = field(default_factory=dict)
    label: str = ""
    kind: str = "layer"
    source: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", method_label(self.name, self.options))

    def content(self) -> dict[str, Option]:
        """Return the resolved options, a file by its digest instead of where it lies."""
        return {**self.resolved, **self.files}


def method_label(name: str, options: Mapping[str, Option]) -> str:
    """Return the label of a method with the options passed, fit for a folder's name.

    >>> method_label("ziplora", {"steps": 100, "lr": 1.0})
    'ziplora:steps=100,lr=1'
    """
    short = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in options.items()
    }
    passed = ",".join(f"{key}={value}" for key, value in short.items())
    return (f"{name}:{passed}" if passed else name).replace("/", "_")


@dataclass(frozen=True)
class PlannedCase:
    """One pair of a run: ids of the case and of its concepts, and the prompt of its images."""

    id: str
    subject: str
    style: str
    prompt: str


@dataclass(frozen=True)
class RunSpec:
    """All that `mars2 run` needs to know, resolved; the content of run.json.

    Attributes:
        suite: Name or path of the suite, as given.
        suite_revision: 12 hex of the suite's content.
        split: Split whose cases are run.
        cases: The pairs, in the suite's order, after `limit`.
        methods: In the order of the tables.
        model: Folder or hub id of the base model, as given.
        model_revision: Digest of the folder's files, or the hub's commit.
        dtype: "float32", "float16" or "bfloat16".
        device: Resolved, "cpu", "cuda" or "cuda:1" (never "auto").
        adapters: Folder of the adapters, as given or from the suite.
        adapter_digests: Concept id -> digest of its adapter's content.
        seeds: The same for every case and method.
        steps: Denoising steps.
        guidance_scale: Weight of classifier-free guidance.
        negative_prompt: What guidance leads away from.
        resolution: Side of the square images, pixels.
        limit: Number of pairs asked for; None: all.
        environment: Versions, git revision, platform and the time of creation; never compared.
    """

    suite: str
    suite_revision: str
    split: str
    cases: tuple[PlannedCase, ...]
    methods: tuple[MethodSpec, ...]
    model: str
    model_revision: str
    dtype: str
    device: str
    adapters: str
    adapter_digests: Mapping[str, str]
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    negative_prompt: str
    resolution: int
    limit: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in (
            ("methods", list(self.labels)),
            ("cases", [case.id for case in self.cases]),
            ("seeds", [str(seed) for seed in self.seeds]),
        ):
            if not values:
                raise RunError(f"a run needs {name}, there are none")
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise RunError(f"{name} given twice: {', '.join(twice)}")

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the methods, in the order of the tables."""
        return tuple(method.label for method in self.methods)

    def to_json(self) -> dict[str, Any]:
        """Return the content of run.json."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunSpec":
        """Read what `to_json` wrote.

        Raises:
            RunError: Another schema, or keys that are missing or unknown.
        """
        fields = read_schema(data, cls)
        return cls(
            **{
                **fields,
                "cases": tuple(PlannedCase(**case) for case in fields["cases"]),
                "methods": tuple(MethodSpec(**method) for method in fields["methods"]),
                "seeds": tuple(fields["seeds"]),
            }
        )

    def differences(self, other: "RunSpec") -> list[str]:
        """Return one line for each thing that forbids `other` to go on in the folder of this run.

        Methods may be added, pairs and seeds too where all methods are there again; fewer pairs or
        seeds are some of those that are there, and files may lie elsewhere with the same content,
        as one GPU may stand for another.
        """
        free = {"methods", "environment", "model", "adapters", "adapter_digests", "suite", "limit"}
        free |= {"device"} if _kind(self.device) == _kind(other.device) else set()
        lines = []
        left_out = [label for label in self.labels if label not in other.labels]
        grown = _grown(self, other)
        free |= {*grown, *_grown(other, self)}
        if grown and left_out:
            nouns = " and ".join(_NOUNS[name] for name in grown)
            named = [f"--method {label}" for label in left_out if label not in CONTROLS]
            remedies = [f"add {' '.join(named)}"] * bool(named)
            remedies += ["leave out --no-controls"] * (len(named) < len(left_out))
            lines.append(
                f"there are more {nouns}, which {few(left_out)} would lack "
                f"({' and '.join(remedies)})"
            )
        for item in dataclasses.fields(self):
            if item.name not in free:
                name = item.name.replace("_", " ")
                lines += changes(name, getattr(self, item.name), getattr(other, item.name))
        before, now = self.adapter_digests, other.adapter_digests
        concepts = [name for name in before if before[name] != now.get(name, before[name])]
        if concepts:
            noun = "concept" if len(concepts) == 1 else "concepts"
            lines.append(f"adapters of {len(concepts)} {noun} differ: {few(concepts)}")
        known = {method.label: method for method in self.methods}
        both = [(known[method.label], method) for method in other.methods if method.label in known]
        for old, new in both:
            lines += changes(new.label, old.content(), new.content())
        return lines

    def recoded(self, other: "RunSpec") -> list[str]:
        """Return the labels of the methods whose code is another one in `other`."""
        now = {method.label: method.source for method in other.methods}
        return [m.label for m in self.methods if now.get(m.label, m.source) != m.source]

    def grown_to(self, other: "RunSpec") -> "RunSpec":
        """Return this run with those methods, pairs and seeds of `other` that it does not have.

        It goes on where `other` would run. A pair that gets more seeds is another job, which draws
        all of them.
        """
        added = tuple(method for method in other.methods if method.label not in self.labels)
        grown = dataclasses.replace(self, methods=self.methods + added, device=other.device)
        names = _grown(self, other)
        if "seeds" in names:
            grown = dataclasses.replace(grown, seeds=other.seeds)
        if "cases" in names:
            grown = dataclasses.replace(
                grown,
                cases=other.cases,
                limit=other.limit,
                adapter_digests={**self.adapter_digests, **other.adapter_digests},
            )
        return grown

    def resizing(self, other: "RunSpec") -> list[str]:
        """Return a line for each way in which `other` asks for more than this run, or for less."""
        lines = []
        unnamed = [label for label in self.labels if label not in other.labels]
        if unnamed:
            lines.append(f"it keeps {few(unnamed)}, too, though not asked for")
        grown = _grown(self, other)
        if "cases" in grown:
            lines.append(f"pairs grow from {len(self.cases)} to {len(other.cases)}")
        if "seeds" in grown:
            lines.append(
                f"seeds grow from {spans(self.seeds)} to {spans(other.seeds)}: pairs that are "
                "there are drawn again, with all of them"
            )
        for name in _grown(other, self):
            there, asked = (len(getattr(spec, name)) for spec in (self, other))
            lines.append(
                f"it keeps all of its {there} {_NOUNS[name]}, though fewer are asked for ({asked})"
            )
        return lines


_NOUNS = {"cases": "pairs", "seeds": "seeds"}


def _kind(device: str) -> str:
    """Return a device without its number."""
    return device.partition(":")[0]


def _grown(one: RunSpec, other: RunSpec) -> list[str]:
    """Return of what `other` has all that `one` has, and more: "cases", "seeds"."""
    return [name for name in _NOUNS if set(getattr(one, name)) < set(getattr(other, name))]


def read_schema(data: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Return the fields of a dataclass from JSON that carries a schema version.

    Raises:
        RunError: Another schema, or keys that are missing or unknown.
    """
    if data.get("schema") != SCHEMA:
        raise RunError(f"schema {data.get('schema')!r} is not {SCHEMA}: written by another version")
    fields = {key: value for key, value in data.items() if key != "schema"}
    expected = {
        item.name: item.default is dataclasses.MISSING
        and item.default_factory is dataclasses.MISSING
        for item in dataclasses.fields(cls)
    }
    unknown = sorted(fields.keys() - expected.keys())
    missing = sorted(name for name, needed in expected.items() if needed and name not in fields)
    if unknown or missing:
        raise RunError(f"keys unknown: {unknown}, missing: {missing}")
    return fields


@dataclass(frozen=True)
class Job:
    """One method on one case: a merge and its images."""

    case_id: str
    method: str
    method_name: str
    options: Mapping[str, Option]
    source: str
    subject_adapter: str
    style_adapter: str
    prompt: str
    seeds: tuple[int, ...]
    suite_revision: str
    model_revision: str
    dtype: str
    device: str
    steps: int
    guidance_scale: float
    negative_prompt: str
    resolution: int

    @property
    def id(self) -> str:
        """16 hex: the digest of all that changes the job's images."""
        return digest(dataclasses.asdict(self))[:16]


def plan(spec: RunSpec) -> list[Job]:
    """Return the jobs of a run, case by case and, within a case, in the order of the methods."""
    return [
        Job(
            case_id=case.id,
            method=method.label,
            method_name=method.name,
            options=method.content(),
            source=method.source,
            subject_adapter=spec.adapter_digests[case.subject],
            style_adapter=spec.adapter_digests[case.style],
            prompt=case.prompt,
            seeds=spec.seeds,
            suite_revision=spec.suite_revision,
            model_revision=spec.model_revision,
            dtype=spec.dtype,
            device=_kind(spec.device),
            steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            negative_prompt=spec.negative_prompt,
            resolution=spec.resolution,
        )
        for case in spec.cases
        for method in spec.methods
    ]


def spread(pairs: Sequence[tuple[str, str]], limit: int | None) -> list[int]:
    """Return the indices of `limit` pairs spread over subjects and styles, ascending.

    Each next pair is the first whose subject and style were taken least often.

    >>> spread([("cat", "ink"), ("cat", "oil"), ("dog", "ink"), ("dog", "oil")], 2)
    [0, 3]

    Raises:
        RunError: The limit is below 1.
    """
    if limit is None:
        return list(range(len(pairs)))
    if limit < 1:
        raise RunError(f"--limit is {limit}; it must be at least 1")
    chosen: list[int] = []
    while len(chosen) < min(limit, len(pairs)):
        chosen.append(
            min(
                (index for index in range(len(pairs)) if index not in chosen),
                key=lambda index: sum(
                    (pairs[index][0] == pairs[other][0]) + (pairs[index][1] == pairs[other][1])
                    for other in chosen
                ),
            )
        )
    return sorted(chosen)
