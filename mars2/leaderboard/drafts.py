"""Entries of a leaderboard out of a finished, scored run."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from baselines import METHODS, MergeMethod, PluginError
from leaderboards.draft import UNNAMED, Draft, assemble
from leaderboards.entry import (
    MARS2,
    Costs,
    Generation,
    Judge,
    Method,
    SuiteRef,
    Track,
    split_judge,
)
from leaderboards.facts import CaseFacts, SuiteFacts
from leaderboards.records import DECIMALS, MARKS, ImageRecord, Records
from mars2.files import read_image
from mars2.job import CONTROLS, MethodSpec, Option, RunError, RunSpec, digest, method_label
from mars2.leaderboard.suite_facts import shown_model
from mars2.report.summary import CostSummary, Summary, summarise
from mars2.store import Cost, Record, RunStore
from mars2.wording import listed

OURS = "Apache-2.0"


@dataclass(frozen=True)
class About:
    """What a run does not know of methods that do not come with this package.

    Attributes:
        paper: URL of the paper; "": what the method was registered with.
        url: URL of the code.
        licence: SPDX identifier of the code's licence.
        track: What the methods may use; "": by their kind.
        training: What training they needed, in words.
        notes: Anything else a reader should know.
    """

    paper: str = ""
    url: str = ""
    licence: str = ""
    track: str = ""
    training: str = ""
    notes: str = ""


def make_drafts(
    store: RunStore,
    facts: SuiteFacts,
    *,
    about: About | None = None,
    methods: Sequence[str] = (),
    judge: str | None = None,
) -> list[Draft]:
    """Return an entry for each method of a finished, scored run.

    Args:
        store: The run.
        facts: Its suite.
        about: What only the user knows.
        methods: Labels of the methods wanted; none: all.
        judge: Id of the judge, of a run that several have scored; None: the suite's own.

    Raises:
        RunError: The run is not finished, not scored or not of a suite; or a label is unknown.
    """
    spec = store.spec
    if not isinstance(spec, RunSpec):
        raise RunError(
            f"{store.folder} holds scored images, not a run: an entry needs the method's code, its "
            "options and costs, which only `mars2 run` knows"
        )
    unknown = [label for label in methods if label not in spec.labels]
    if unknown:
        raise RunError(f"the run has no method {listed(unknown)}; it has {listed(spec.labels)}")
    about = about or About()
    chosen = [method for method in spec.methods if not methods or method.label in methods]
    unlicensed = [m.label for m in chosen if not (about.licence or _is_builtin(m))]
    _check_whole(spec, facts, unlicensed)
    _check_images(store)
    records = store.records()
    judge = _choose_judge(records, facts, judge)
    summary = summarise(store)
    return [_draft(store, spec, facts, method, records, judge, summary, about) for method in chosen]


def _check_whole(spec: RunSpec, facts: SuiteFacts, unlicensed: Sequence[str]) -> None:
    """Refuse a part of the suite in one line, before all that is missing is listed."""
    pairs = len({case.id for case in spec.cases} & {case.id for case in facts.cases})
    seeds = len({*spec.seeds} & {*facts.seeds})
    if (pairs, seeds) != (len(facts.cases), len(facts.seeds)):
        raise RunError(
            f"the run has {pairs} of the {len(facts.cases)} pairs and {seeds} of the "
            f"{len(facts.seeds)} seeds of {facts.name}, split {facts.split}; an entry has all: "
            "run it without --limit, --seeds and --split"
            + (f" (and {listed(unlicensed)} will need --licence)" if unlicensed else "")
        )


def _check_images(store: RunStore) -> None:
    missing = [s for s in store.samples() if not s.path.is_file()]
    if missing:
        names = listed(f"{s.method}/{s.case}/{s.seed}" for s in missing)
        raise RunError(
            f"{store.folder} is not finished: images are missing: {names}; give the same "
            "`mars2 run` again"
        )
    costed = {(cost.method, cost.case) for cost in store.costs()}
    without = dict.fromkeys((s.method, s.case) for s in store.samples())
    names = listed("/".join(key) for key in without if key not in costed)
    if names:
        raise RunError(
            f"{store.folder} is not finished: no costs of {names}; give the same `mars2 run` again"
        )


def _choose_judge(records: Sequence[Record], facts: SuiteFacts, wanted: str | None) -> str:
    judges = list(dict.fromkeys(r.judge for r in records if r.metric == "mars2"))
    if not judges:
        raise RunError("the run has no MARS2 scores: score it with `mars2 score` first")
    if wanted is not None:
        if wanted not in judges:
            raise RunError(f"no judge {wanted!r} scored the run; there are {listed(judges)}")
        return wanted
    own = [judge for judge in judges if facts.is_own(_judge(judge, facts))]
    if len(own) == 1 or len(judges) == 1:
        return (own or judges)[0]
    raise RunError(f"several judges scored the run, choose one with --judge: {listed(judges)}")


def _base(spec: RunSpec, facts: SuiteFacts) -> str:
    """Return the name of a run's base model; of the suite's own files, wherever they lie, its."""
    own = facts.base_revision and spec.model_revision == facts.base_revision
    return facts.base if own else shown_model(spec.model)


def _judge(id_: str, facts: SuiteFacts) -> Judge:
    """Return a run's judge: the suite's, if the files are, whatever their folder is called."""
    parts = split_judge(id_)
    name, _, revision = facts.judge.partition("@")
    if revision and parts["revision"] == revision:
        id_ = f"{name}{id_.removeprefix(parts['model'])}"
    judge = Judge(id=id_, own=False, **split_judge(id_))
    return replace(judge, own=facts.is_own(judge))


def _draft(
    store: RunStore,
    spec: RunSpec,
    facts: SuiteFacts,
    method: MethodSpec,
    records: Sequence[Record],
    judge: str,
    summary: Summary,
    about: About,
) -> Draft:
    compact = _compact(store, method.label, records, judge)
    given_by = {
        record.metric: record.judge
        for record in records
        if record.method == method.label and record.metric not in MARS2
    }
    images = [
        read_image(store.image_path(method.label, case.id, spec.seeds[0])) for case in spec.cases
    ]
    costs = [cost for cost in store.costs() if cost.method == method.label]
    cost = next(one.cost for one in summary.methods if one.label == method.label)
    return assemble(
        suite=SuiteRef(facts.name, spec.suite_revision, spec.split),
        method=_method(method, about),
        judge=_judge(judge, facts),
        generation=Generation(
            base=_base(spec, facts),
            base_revision=spec.model_revision,
            adapters=adapters_digest(spec),
            resolution=spec.resolution,
            steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            negative_prompt=spec.negative_prompt,
            dtype=spec.dtype,
            device=spec.device,
        ),
        cases=[CaseFacts(case.id, case.subject, case.style, case.prompt) for case in spec.cases],
        seeds=spec.seeds,
        records=compact,
        given_by=given_by,
        images=images,
        costs=_costs(cast(CostSummary, cost), costs),
        environment=spec.environment,
        notes="" if method.name in CONTROLS else about.notes,
    )


def _compact(store: RunStore, label: str, records: Sequence[Record], judge: str) -> Records:
    """Return the scores of one method; of a metric computed by several models the last one's."""
    found: dict[tuple[str, int], dict[str, Record]] = {}
    metrics: dict[str, None] = {}
    for record in records:
        of_judge = record.metric in MARS2
        if record.method == label and (not of_judge or record.judge == judge):
            found.setdefault((record.case, record.seed), {})[record.metric] = record
            if not of_judge:
                metrics[record.metric] = None
    names = sorted(metrics)
    needed = ("mars2_subject", "mars2_style", *names)
    rows, missing = [], []
    for sample in store.samples():
        if sample.method != label:
            continue
        scores = found.get((sample.case, sample.seed), {})
        lacking = [name for name in needed if name not in scores or scores[name].failed]
        missing += [f"{name} of {label}/{sample.case}/{sample.seed}" for name in lacking]
        if lacking:
            continue
        image = hashlib.sha256(sample.path.read_bytes()).hexdigest()
        if image != scores["mars2_subject"].image:
            raise RunError(f"{sample.path} is not the image that was scored: score it again")
        rows.append(
            ImageRecord(
                sample.case,
                sample.seed,
                image[:16],
                _marks(scores["mars2_subject"]),
                _marks(scores["mars2_style"]),
                {name: _rounded(scores[name].value) for name in names},
            )
        )
    if missing:
        raise RunError(f"the run is not scored whole: {listed(missing)}; give `mars2 score` again")
    return Records(tuple(rows), tuple(names))


def _marks(record: Record) -> str:
    return "".join(MARKS[answer] for answer in record.detail["answers"])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def _method(method: MethodSpec, about: About) -> Method:
    registered = _registered(method)
    builtin = _is_builtin(method)
    told = About() if builtin else about
    paper = (registered and registered.paper) or told.paper
    options = {key: _shown(value, method, key) for key, value in method.options.items()}
    return Method(
        name=method.name,
        label=method_label(method.name, options),
        version=UNNAMED,
        kind=cast(Any, method.kind),
        track=cast(Track, told.track) if told.track else track_of(method),
        summary=registered.summary if registered else "",
        options=options,
        resolved={key: _shown(value, method, key) for key, value in method.resolved.items()},
        files=method.files,
        code=method.source,
        paper=paper or "",
        url=told.url,
        licence=OURS if builtin else told.licence,
        training=told.training or _training(method),
    )


def _is_builtin(method: MethodSpec) -> bool:
    registered = _registered(method)
    ours = ("baselines", "lorarar")
    return registered is not None and registered.function.__module__.split(".")[0] in ours


def track_of(method: MethodSpec) -> Track:
    """Return what a method uses, by its kind; one that reads a file of its own was trained."""
    if method.name in CONTROLS:
        return "control"
    if method.kind in ("fit", "policy"):
        return cast(Track, method.kind)
    return "trained" if method.files else "weights"


def _registered(method: MethodSpec) -> MergeMethod | None:
    try:
        return METHODS.get(method.name)
    except PluginError:  # of a user's file
        return None


def _shown(value: Option, method: MethodSpec, key: str) -> Option:
    return Path(value).name if key in method.files and isinstance(value, str) else value


def _training(method: MethodSpec) -> str:
    """Return what the metadata of a method's checkpoint say of its training."""
    from safetensors import SafetensorError, safe_open

    for key in method.files:
        path = Path(str(method.resolved[key]))
        if path.suffix != ".safetensors" or not path.is_file():
            continue
        try:
            with safe_open(path, "numpy") as file:
                said: Mapping[str, str] = file.metadata() or {}
        except (OSError, SafetensorError):
            continue
        if "steps" in said:
            where = f" on the train split of suite {said['suite']}" if "suite" in said else ""
            return f"{said['steps']} steps{where}"
    return ""


def _costs(cost: CostSummary, costs: Sequence[Cost]) -> Costs:
    return Costs(
        merge_seconds=float(f"{cost.merge_seconds:.4g}"),
        image_seconds=float(f"{cost.image_seconds:.4g}"),
        merge_peak_bytes=cost.merge_peak_bytes,
        peak_bytes=cost.peak_bytes,
        memory=cost.memory,
        parameters=cost.parameters,
        batch_size=max(one.batch_size for one in costs),
    )


def adapters_digest(spec: RunSpec) -> str:
    """Return the digest of all adapters that a run's pairs are merged from."""
    used = [concept for case in spec.cases for concept in (case.subject, case.style)]
    return digest({concept: spec.adapter_digests[concept] for concept in used})
