"""What fails: which pairs, which of the two parts, and how far from training?

An image fails in one of four ways that say different things of a merge: the style is lost and the
subject kept, the other way round, both are lost, or the judge gave no answer. Each is counted by
method, subject and style, and set against the distance of the pair's concepts to the train split.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmark_data.suite import Suite
from mars2.files import read_image
from mars2.judges import Judge, Question
from mars2.judges.prompts import TEMPLATES, choose
from mars2.report.plots import COLORS
from mars2.stats import Estimate, cluster_mean
from mars2.store import Record, RunStore
from mars2.studies import runs
from mars2.studies.association import spearman
from mars2.studies.embeddings import Embedder, concept_features, nearest
from mars2.studies.result import STYLE, Result, Sheet, Value, estimate, spoken

OUTCOMES = ("both right", "style lost", "subject lost", "both lost", "no answer")
WORST = 6


@dataclass(frozen=True)
class Leak:
    """Who is asked whether an image shows what the style's reference shows, and about how many.

    Attributes:
        judge: Who is asked.
        images: Images of each method, spread over its pairs.
    """

    judge: Judge
    images: int


def study_failures(
    store: RunStore,
    suite: Suite,
    references: Mapping[str, Sequence[Path]],
    *,
    judge: str = "",
    embedder: Embedder | None = None,
    leak: Leak | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Return the study of a scored run.

    Args:
        store: The run.
        suite: Its suite, with the train split.
        references: Concept id -> reference images.
        judge: Part of the id of the judge whose scores are taken; "": the last one's.
        embedder: What distances to the train split are by; None: they are left out.
        leak: Who is asked for the style reference's content; None: nobody.
        resamples: Bootstrap samples of pairs.
        seed: Of the resampling.
        progress: Called with the number of questions that were answered.

    Raises:
        RunError: It has no judge's scores, or an image cannot be read.
    """
    name = runs.choose_judge(store, judge)
    records = runs.judges(store)[name]
    outcomes = _outcomes(records)
    pairs = runs.pairs(store)
    clusters = runs.Clusters.draw(list(pairs), resamples=resamples, seed=seed)
    merges = runs.merges(store) or runs.labels(store)
    table = _by_method(outcomes, runs.labels(store), clusters)
    joint = {key: record.value for (key, metric), record in records.items() if metric == "mars2"}
    merged = {key: value for key, value in joint.items() if key[0] in merges}
    distances = {} if embedder is None else _distances(suite, pairs, embedder)
    concepts = _by_concept(outcomes, merges, pairs, distances)
    relation = _relation(merged, pairs, distances, clusters)
    sheets = [table, concepts, relation]
    worst = _worst(merged, pairs, outcomes, merges)
    sheets.append(worst)
    leaks: Sheet | None = None
    if leak is not None:
        leaks = _leaks(store, references, suite, leak, progress)
        sheets.append(leaks)
    text = _text(table, concepts, relation, worst, leaks, merges, name)
    return Result(
        "failures", "What fails?", text, tuple(sheets),
        {
            "failures": _figure(table, merged, pairs, distances, merges),
            "worst": _pictures(store, worst, pairs, references, outcomes, merges),
        },
        {"run": str(store.folder), "judge": name, "resamples": resamples, "seed": seed,
         "leak": None if leak is None else {"judge": leak.judge.id, "images": leak.images}},
    )  # fmt: skip


def _outcomes(records: Mapping[tuple[runs.Key, str], Record]) -> dict[runs.Key, str]:
    found = {}
    for (key, metric), record in records.items():
        if metric != "mars2_subject" or (key, "mars2_style") not in records:
            continue
        subject, style = record.value, records[key, "mars2_style"].value
        if subject is None or style is None:
            found[key] = "no answer"
        else:
            found[key] = {
                (1.0, 1.0): "both right", (1.0, 0.0): "style lost",
                (0.0, 1.0): "subject lost", (0.0, 0.0): "both lost",
            }[subject, style]  # fmt: skip
    return found


def _by_method(
    outcomes: Mapping[runs.Key, str], methods: Sequence[str], clusters: runs.Clusters
) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    for method in methods:
        own = [(what, key[1]) for key, what in outcomes.items() if key[0] == method]
        shares = [
            clusters.estimate(
                clusters.mean([float(what == kind) for what, _ in own], [case for _, case in own]),
                len(own),
            )
            for kind in OUTCOMES
        ]
        rows.append((method, *shares, len(own)))
    return Sheet(
        "outcomes", "How images fail", ("method", *OUTCOMES, "n"), rows, ("method", *OUTCOMES, "n"),
        ("Shares of a method's images, by the judge's majorities. style lost: the subject is kept. "
         "In brackets: 95 % interval, bootstrap over pairs.",),
    )  # fmt: skip


def _distances(
    suite: Suite, pairs: Mapping[str, tuple[str, str]], embedder: Embedder
) -> dict[str, tuple[str, float]]:
    """Return concept -> the nearest train concept and its distance."""
    features = concept_features(suite, embedder)
    ids = dict.fromkeys(concept for pair in pairs.values() for concept in pair)
    known = suite.concepts
    found = {concept: nearest(known[concept], suite, features) for concept in ids}
    return {concept: near for concept, near in found.items() if near is not None}


def _by_concept(
    outcomes: Mapping[runs.Key, str],
    merges: Sequence[str],
    pairs: Mapping[str, tuple[str, str]],
    distances: Mapping[str, tuple[str, float]],
) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    for place, role in enumerate(("subject", "style")):
        for concept in dict.fromkeys(pair[place] for pair in pairs.values()):
            own = [
                (what, key[1])
                for key, what in outcomes.items()
                if key[0] in merges and pairs[key[1]][place] == concept
            ]
            shares = [
                cluster_mean([float(what == kind) for what, _ in own], [case for _, case in own])
                for kind in OUTCOMES[:4]
            ]
            near, far = distances.get(concept, (None, None))
            rows.append((concept, role, *shares, near, far, len(own)))
    rows.sort(key=lambda row: (row[1] != "subject", _number(row[2])))
    columns = ("concept", "role", *OUTCOMES[:4], "nearest", "distance", "n")
    return Sheet(
        "concepts", "Subjects and styles, the hardest first", columns, rows,
        columns if distances else tuple(c for c in columns if c not in ("nearest", "distance")),
        ("Shares over all merge methods, no controls. nearest, distance: the train concept of the "
         "same role whose reference images are most alike, and 1 less their mean cosine. In "
         "brackets: 95 % interval, bootstrap over the concept's pairs.",),
    )  # fmt: skip


def _number(value: Value) -> float:
    if isinstance(value, Estimate):
        value = value.value
    return value if isinstance(value, int | float) else 2.0


def _spoken(value: Value) -> str:
    return spoken(value) if isinstance(value, Estimate) else str(value)


def _relation(
    joint: Mapping[runs.Key, float | None],
    pairs: Mapping[str, tuple[str, str]],
    distances: Mapping[str, tuple[str, float]],
    clusters: runs.Clusters,
) -> Sheet:
    """Return how the joint share of a pair goes with its concepts' distances."""
    rows: list[tuple[Value, ...]] = []
    if distances:
        cases = [
            case
            for case, pair in pairs.items()
            if all(concept in distances for concept in pair)
            and any(key[1] == case and value is not None for key, value in joint.items())
        ]
        share = np.array(
            [
                np.mean([v for key, v in joint.items() if key[1] == case and v is not None])
                for case in cases
            ]
        )
        weights = clusters.weights[:, [clusters.cases.index(case) for case in cases]]
        for what, places in (("subject", (0,)), ("style", (1,)), ("both, summed", (0, 1))):
            far = np.array(
                [sum(distances[pairs[case][place]][1] for place in places) for case in cases]
            )
            rho = estimate(spearman(far, share, weights), len(cases), len(cases))
            concepts = len({tuple(pairs[case][place] for place in places) for case in cases})
            rows.append((what, rho, concepts, len(cases)))
    return Sheet(
        "distance", "Joint score of a pair against its distance to the train split",
        ("distance of", "rho", "concepts", "pairs"), rows,
        ("distance of", "rho", "concepts", "pairs") if rows else (),
        ("Spearman's correlation over pairs, of the mean over merge methods. Pairs share their "
         "concepts: there are only as many different distances as concepts, and the interval, "
         "bootstrap over pairs, is too narrow for a claim about other concepts.",),
    )  # fmt: skip


def _worst(
    joint: Mapping[runs.Key, float | None],
    pairs: Mapping[str, tuple[str, str]],
    outcomes: Mapping[runs.Key, str],
    merges: Sequence[str],
) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    for case in pairs:
        values = [v for key, v in joint.items() if key[1] == case and v is not None]
        own = [what for key, what in outcomes.items() if key[1] == case and key[0] in merges]
        counts = [own.count(kind) for kind in OUTCOMES[1:4]]
        if values:
            rows.append((case, float(np.mean(values)), *counts, len(values)))
    rows.sort(key=lambda row: _number(row[1]))
    columns = ("pair", "both right", "style lost", "subject lost", "both lost", "n")
    return Sheet(
        "pairs", "Pairs, the worst first", columns, rows, (),
        ("Numbers of images of all merge methods.",),
    )  # fmt: skip


def _leaks(
    store: RunStore,
    references: Mapping[str, Sequence[Path]],
    suite: Suite,
    leak: Leak,
    progress: Callable[[int], None] | None,
) -> Sheet:
    """Return how often an image shows the subject of its style's reference, by method."""
    template = choose(TEMPLATES)["subject"]
    rows: list[tuple[Value, ...]] = []
    for method in runs.labels(store):
        own = [one for one in store.samples() if one.method == method and one.path.is_file()]
        chosen = runs.few(own, leak.images)
        answers: list[float | None] = []
        cases = []
        for sample in chosen:
            image = read_image(sample.path)
            questions = [
                Question("subject", read_image(path), image, "", template)
                for path in references[sample.style]
            ]
            said = leak.judge.ask(questions)
            answers += [None if one.answer is None else float(one.answer) for one in said]
            cases += [sample.case] * len(said)
            if progress is not None:
                progress(len(said))
        rows.append((method, cluster_mean(answers, cases), len(chosen)))
    return Sheet(
        "leaks", "Content of the style's reference in the image", ("method", "leaked", "images"),
        rows, ("method", "leaked", "images"),
        ("leaked: share of yes to the subject's question with an image of the style as reference. "
         "The base model has not seen it: what it shows is the judge's error. In brackets: 95 % "
         "interval, bootstrap over pairs.",),
    )  # fmt: skip


def _text(
    table: Sheet,
    concepts: Sheet,
    relation: Sheet,
    worst: Sheet,
    leaks: Sheet | None,
    merges: Sequence[str],
    judge: str,
) -> str:
    sentences = []
    for row in table.rows:
        if row[0] not in merges:
            continue
        lost = {kind: _number(row[1 + OUTCOMES.index(kind)]) for kind in OUTCOMES[1:4]}
        most = max(lost, key=lambda kind: lost[kind])
        sentences.append(
            f"{row[0]} gets {_spoken(row[1])} of its images right; of what fails most is "
            f"{most!r} ({lost[most]:.2f} of all)."
        )
    for role in ("subject", "style"):
        own = [row for row in concepts.rows if row[1] == role]
        if len(own) > 1:
            hard, easy = own[0], own[-1]
            sentences.append(
                f"The hardest {role} is {hard[0]} ({_number(hard[2]):.2f} right over all merges), "
                f"the easiest {easy[0]} ({_number(easy[2]):.2f})."
            )
    if relation.rows and _number(relation.rows[-1][1]) <= 1:
        sentences.append(
            f"Over {relation.rows[-1][3]} pairs the share right goes with the distance to the "
            f"train split by Spearman {_spoken(relation.rows[-1][1])}; if training coverage were "
            "what limits these merges, it would be clearly negative."
        )
    if leaks is not None:
        floor = next((row for row in leaks.rows if row[0] == "base"), None)
        highest = max(
            (row for row in leaks.rows if row[0] in merges),
            key=lambda row: -1.0 if _number(row[1]) > 1 else _number(row[1]),
        )
        sentences.append(
            f"Of the merges, {highest[0]} shows the style reference's content most often "
            f"({_spoken(highest[1])})"
            + (
                f"; in those of the base model, which cannot have it, {_number(floor[1]):.2f}."
                if floor is not None
                else "."
            )
        )
    limits = (
        f"**What this cannot say.** Right and lost are what {judge.partition(' ')[0]} says, errors "
        "included. With few subjects and styles a hard one may be hard for the judge rather than "
        "for the merge, and a correlation with distance over a handful of concepts is an anecdote: "
        "it takes a suite with many more. Distances are of pictures, and a style's pictures show "
        "subjects, too."
    )
    return " ".join(sentences) + "\n\n" + limits


def _figure(
    table: Sheet,
    joint: Mapping[runs.Key, float | None],
    pairs: Mapping[str, tuple[str, str]],
    distances: Mapping[str, tuple[str, float]],
    merges: Sequence[str],
) -> Figure:
    colors = (COLORS[2], COLORS[0], COLORS[1], "#8a8a8a", "#dddddd")
    with mpl.rc_context(STYLE):
        panels = 1 + 2 * bool(distances)
        figure = Figure(
            figsize=(4.4 + 3.2 * (panels - 1), 0.36 * len(table.rows) + 1.9), layout="constrained"
        )
        axes = figure.subplots(1, panels, squeeze=False)[0]
        start = np.zeros(len(table.rows))
        for kind, color in zip(OUTCOMES, colors, strict=True):
            values = np.array([_number(row[1 + OUTCOMES.index(kind)]) for row in table.rows])
            values = np.where(values > 1, 0, values)
            if values.any():
                axes[0].barh(range(len(start)), values, left=start, color=color, label=kind)
            start += values
        axes[0].set_yticks(range(len(start)), [str(row[0]) for row in table.rows])
        axes[0].invert_yaxis()
        axes[0].set_xlim(0, 1)
        axes[0].grid(visible=False)
        axes[0].set_xlabel("share of images")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
        for place, role in enumerate(("subject", "style")) if distances else ():
            _against_distance(axes[1 + place], place, role, joint, pairs, distances, merges)
        return figure


def _against_distance(
    axes: mpl.axes.Axes,
    place: int,
    role: str,
    joint: Mapping[runs.Key, float | None],
    pairs: Mapping[str, tuple[str, str]],
    distances: Mapping[str, tuple[str, float]],
    merges: Sequence[str],
) -> None:
    concepts = [
        concept
        for concept in dict.fromkeys(pair[place] for pair in pairs.values())
        if concept in distances
    ]
    concepts.sort(key=lambda concept: distances[concept][1])
    far = [distances[concept][1] for concept in concepts]
    for number, method in enumerate(merges):
        shares = [
            cluster_mean(
                [v for key, v in joint.items()
                 if key[0] == method and pairs[key[1]][place] == concept],
                [key[1] for key in joint
                 if key[0] == method and pairs[key[1]][place] == concept],
            ).value
            for concept in concepts
        ]  # fmt: skip
        axes.plot(
            [np.nan if share is None else share for share in shares],
            "o-",
            color=COLORS[number % len(COLORS)],
            label=method,
            linewidth=1,
            markersize=4,
        )
    texts = [f"{concept}\n{x:.2f}" for x, concept in zip(far, concepts, strict=True)]
    axes.set_xticks(range(len(concepts)), texts, fontsize=7, rotation=30)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(f"{role}, by its distance to train")
    axes.set_ylabel("both right")
    axes.legend(fontsize=7)


def _pictures(
    store: RunStore,
    worst: Sheet,
    pairs: Mapping[str, tuple[str, str]],
    references: Mapping[str, Sequence[Path]],
    outcomes: Mapping[runs.Key, str],
    merges: Sequence[str],
) -> Figure:
    """Return the worst pairs: references, and of each merge the first image that fails."""
    cases = [str(row[0]) for row in worst.rows[:WORST]]
    there = {(s.method, s.case, s.seed): s for s in store.samples() if s.path.is_file()}
    with mpl.rc_context({"font.size": 8, "axes.grid": False}):
        columns = 2 + len(merges)
        lines = max(len(cases), 1)
        figure = Figure(figsize=(1.35 * columns, 1.62 * lines))
        axes = figure.subplots(lines, columns, squeeze=False)
        figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.42 / (1.62 * lines), 0.06, 0.2)
        for row, case in enumerate(cases):
            for column, concept in enumerate(pairs[case]):
                paths = references.get(concept, ())
                _show(axes[row, column], paths[0] if paths else None, concept)
            for column, method in enumerate(merges, start=2):
                own = [key for key in there if key[:2] == (method, case)]
                failed = [key for key in own if outcomes.get(key) != "both right"]
                key = next(iter(failed or own), None)
                title = "" if key is None else outcomes.get(key, "not scored")
                head = f"{method}\n{title}" if row == 0 else title
                _show(axes[row, column], None if key is None else there[key].path, head)
        if not cases:
            for axis in axes.ravel():
                axis.set_axis_off()
        return figure


def _show(axes: mpl.axes.Axes, path: Path | None, title: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if path is not None:
        axes.imshow(np.asarray(read_image(path)), interpolation="nearest")
    axes.set_title(title, fontsize=7)
