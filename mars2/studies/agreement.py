"""Do judges agree with each other, and with what is known?

Answers of several judges to the same questions about a run's images, and their answers about
references, of which the truth is known (`mars2 judge check`). Agreement is given with what chance
would give (kappa), with the shares of yes that it comes from, and with what it does to the ranking
of the methods: two judges may agree on most images because most are a plain no.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mars2.controls import Controls
from mars2.job import RunError
from mars2.report.plots import COLORS, MARKERS
from mars2.stats import Estimate, paired_difference
from mars2.store import Record, RunStore
from mars2.studies import runs
from mars2.studies.association import Floats, by_rows
from mars2.studies.result import STYLE, Result, Sheet, Value, spoken

ASPECTS = ("subject", "style")


@dataclass(frozen=True)
class _Pairs:
    """Answers of two judges to the same questions: yes 1, no 0, neither None."""

    first: tuple[float | None, ...]
    second: tuple[float | None, ...]
    cases: tuple[str, ...]
    incomparable: int


def study_agreement(
    store: RunStore,
    names: Sequence[str],
    controls: Sequence[Controls] = (),
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Result:
    """Return the study of the judges that scored a run.

    Args:
        store: The run, scored by each judge.
        names: Part of the id of each judge; (): all that scored it.
        controls: What judges answered to known questions; those of other judges are left out.
        resamples: Bootstrap samples of pairs.
        seed: Of the resampling.

    Raises:
        RunError: Fewer than two judges scored it.
    """
    known = runs.judges(store)
    chosen = [runs.choose_judge(store, name) for name in names] if names else list(known)
    if len(dict.fromkeys(chosen)) < 2:
        raise RunError(
            f"{store.folder} was scored by {'; '.join(known)}: an agreement takes two judges; "
            "score it with another one by `mars2 score --judge`, or the same with another --layout"
        )
    short = _short(chosen)
    clusters = runs.Clusters.draw(
        [sample.case for sample in store.samples()], resamples=resamples, seed=seed
    )
    rows: list[tuple[Value, ...]] = []
    ranking_rows: list[tuple[Value, ...]] = []
    sentences = []
    methods = runs.labels(store)
    for a, b in itertools.combinations(chosen, 2):
        for aspect in ASPECTS:
            for level in ("answer", "image"):
                pairs = _pairs(known[a], known[b], aspect, level)
                found = _compare(pairs, clusters)
                rows.append((f"{short[a]} / {short[b]}", aspect, level, *found))
                if level == "answer":
                    sentences.append(_said(aspect, short[a], short[b], found))
        for metric in ("mars2", "mars2_subject", "mars2_style"):
            found = _rankings(known[a], known[b], metric, methods, clusters)
            ranking_rows.append((f"{short[a]} / {short[b]}", metric, *found))
            if metric == "mars2":
                same = "the same" if found[2] == found[3] else "another"
                sentences.append(
                    f"Over {len(methods)} methods the two rankings have Kendall's tau-b "
                    f"{spoken(found[0])}, with {same} method at the top ({found[2]}, {found[3]})."
                )
    truth = _truth([one for one in controls if one.judge in chosen], short)
    sheets = (
        Sheet(
            "answers", "Judge against judge",
            ("judges", "aspect", "of", "agreement", "kappa", "alike on yes", "alike on no",
             "yes first", "yes second", "difference", "only first yes", "only second yes",
             "unscored", "incomparable", "n"),
            rows,
            ("judges", "aspect", "of", "agreement", "kappa", "difference", "only first yes",
             "only second yes", "n"),
            ("agreement: share of answers, or of images by majority, that are alike; kappa: less "
             "what their shares of yes give by chance (Cohen 1960); difference: of the shares of "
             "yes, the second less the first. Grouping: all images; in brackets 95 % interval, "
             "bootstrap over pairs.",),
        ),
        Sheet(
            "rankings", "What it does to the ranking of the methods",
            ("judges", "score", "tau_b", "concordance", "top_first", "top_second", "methods"),
            ranking_rows,
            ("judges", "score", "tau_b", "concordance", "top_first", "top_second"),
            ("tau_b: Kendall's, of the methods' means; concordance: Kendall's W of the rankings.",),
        ),
        truth,
    )  # fmt: skip
    if truth.rows:
        worst = min(truth.rows, key=lambda row: _value(row[4]))
        sentences.append(
            f"On questions of known answer the least certain is {worst[0]} on {worst[1]}: "
            f"sensitivity {spoken(_known(worst[2]))}, specificity {spoken(_known(worst[3]))}."
        )
    else:
        sentences.append(
            "How often either is right is not known here: `mars2 judge check` asks them what is."
        )
    text = (
        " ".join(sentences)
        + "\n\n"
        + (
            "**What this cannot say.** Judges that agree may err alike: only the known questions, "
            "which are about references and not about generated images, tell of errors. Kappa "
            "falls with the share of yes even if judges err as rarely: compare it within an aspect."
        )
    )
    return Result(
        "agreement", "Do judges agree?", text, sheets,
        {"agreement": _figure(store, known, chosen, short, clusters)},
        {"run": str(store.folder), "judges": chosen, "resamples": resamples, "seed": seed},
    )  # fmt: skip


def _pairs(
    first: Mapping[tuple[runs.Key, str], Record],
    second: Mapping[tuple[runs.Key, str], Record],
    aspect: str,
    level: str,
) -> _Pairs:
    """Return the answers, or the majorities, of both to the same images and references."""
    metric = f"mars2_{aspect}"
    answers: tuple[list[float | None], list[float | None]] = ([], [])
    cases: list[str] = []
    incomparable = 0
    for (key, name), record in first.items():
        other = second.get((key, name))
        if name != metric or other is None:
            continue
        if (record.image, record.inputs) != (other.image, other.inputs):
            incomparable += 1
            continue
        for values, one in zip(answers, (record, other), strict=True):
            values += _answers(one) if level == "answer" else [one.value]
        cases += [key[1]] * (len(answers[0]) - len(cases))
    return _Pairs(tuple(answers[0]), tuple(answers[1]), tuple(cases), incomparable)


def _answers(record: Record) -> list[float | None]:
    return [None if answer is None else float(answer) for answer in record.detail["answers"]]


def _compare(pairs: _Pairs, clusters: runs.Clusters) -> tuple[Value, ...]:
    """Return agreement, kappa and the rest of a line, from the four counts of each resample."""
    scored = [
        (x, y, case)
        for x, y, case in zip(pairs.first, pairs.second, pairs.cases, strict=True)
        if x is not None and y is not None
    ]
    cases = [case for _, _, case in scored]
    n, lost = len(scored), len(pairs.first) - len(scored)
    counts = {
        cell: clusters.sums([float((x, y) == cell) for x, y, _ in scored], cases)
        for cell in itertools.product((1.0, 0.0), repeat=2)
    }
    yes, only_first, only_second, no = counts.values()
    with np.errstate(divide="ignore", invalid="ignore"):
        total = yes + only_first + only_second + no
        agreed = (yes + no) / total
        first, second = (yes + only_first) / total, (yes + only_second) / total
        chance = first * second + (1 - first) * (1 - second)
        kappa = np.where(chance < 1 - 1e-12, (agreed - chance) / (1 - chance), np.nan)
        differ = only_first + only_second
        values = (
            agreed, kappa, 2 * yes / (2 * yes + differ), 2 * no / (2 * no + differ),
            first, second, second - first,
        )  # fmt: skip
    estimates = [clusters.estimate(one, n, lost) for one in values]
    return (*estimates, int(only_first[0]), int(only_second[0]), lost, pairs.incomparable, n)


def _rankings(
    first: Mapping[tuple[runs.Key, str], Record],
    second: Mapping[tuple[runs.Key, str], Record],
    metric: str,
    methods: Sequence[str],
    clusters: runs.Clusters,
) -> tuple[Estimate, float | None, str, str, int]:
    both = [key for key in first if key[1] == metric and key in second]
    tables = [
        runs.by_method({key: found[key, metric].value for key, _ in both}, methods, clusters)
        for found in (first, second)
    ]
    tau = clusters.estimate(by_rows("kendall", tables[0], tables[1]), len(methods))
    tops = [
        "-" if np.isnan(table[0]).all() else methods[int(np.nanargmax(table[0]))]
        for table in tables
    ]
    return (tau, concordance(np.stack([table[0] for table in tables])), *tops, len(methods))  # type: ignore[return-value]


def concordance(scores: Floats) -> float | None:
    """Return Kendall's W, in ``[0, 1]``, of some rankings, corrected for ties; None if undefined.

    Kendall and Babington Smith 1939.

    Args:
        scores: (rankings, methods); more is better.

    >>> concordance(np.array([[1.0, 2, 3], [10, 20, 30]]))
    1.0
    """
    count, n = scores.shape
    difference = np.sign(np.round(scores[:, :, None] - scores[:, None, :], 9))
    ranks = difference.sum(axis=2) / 2 + (n + 1) / 2  # (rankings, methods)
    ties = 0.0
    for row in ranks:
        sizes = np.unique(row, return_counts=True)[1]
        ties += float((sizes**3 - sizes).sum())
    squares = float(((ranks.sum(axis=0) - count * (n + 1) / 2) ** 2).sum())
    most = count**2 * (n**3 - n) - count * ties
    return 12 * squares / most if most > 0 else None


def _truth(controls: Sequence[Controls], short: Mapping[str, str]) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    for one in controls:
        for aspect in ASPECTS:
            sensitivity, specificity = one.sensitivity(aspect), one.specificity(aspect)  # type: ignore[arg-type]
            accuracy = None
            if sensitivity.value is not None and specificity.value is not None:
                accuracy = (sensitivity.value + specificity.value) / 2
            differences: Value = None
            if one is not controls[0]:
                shares = [_right_by_concept(other, aspect) for other in (one, controls[0])]
                same = [concept for concept in shares[0] if concept in shares[1]]
                differences = paired_difference(
                    [shares[0][concept] for concept in same],
                    [shares[1][concept] for concept in same],
                    same,
                )
            rows.append((short[one.judge], aspect, sensitivity, specificity, accuracy, differences))
    return Sheet(
        "truth", "Judges on questions of known answer",
        ("judge", "aspect", "sensitivity", "specificity", "balanced", "against the first"), rows,
        ("judge", "aspect", "sensitivity", "specificity", "balanced", "against the first")
        if rows
        else (),
        ("sensitivity: share of yes where images show the same; specificity: share of no where "
         "they do not; balanced: their mean; against the first: difference of the shares of right "
         "answers, concept by concept. In brackets: 95 % interval, bootstrap over concepts.",),
    )  # fmt: skip


def _right_by_concept(controls: Controls, aspect: str) -> dict[str, float]:
    right: dict[str, list[int]] = {}
    for tally in controls.tallies[aspect]:  # type: ignore[index]
        own = right.setdefault(tally.concept, [0, 0])
        own[0] += tally.yes if tally.truth else tally.no
        own[1] += tally.yes + tally.no
    return {concept: good / total for concept, (good, total) in right.items() if total}


def _said(aspect: str, a: str, b: str, found: Sequence[Value]) -> str:
    agreed, kappa, difference = (_known(found[k]) for k in (0, 1, 6))
    sentence = (
        f"On the {aspect} {a} and {b} give the same answer in {spoken(agreed)} of "
        f"{found[-1]} questions, kappa {spoken(kappa)}"
    )
    if (
        difference.low is not None
        and difference.high is not None
        and (difference.low > 0 or difference.high < 0)
    ):
        more = b if difference.low > 0 else a
        sentence += f"; {more} says yes more often (difference {spoken(difference)})"
    return sentence + "."


def _known(value: Value) -> Estimate:
    return value if isinstance(value, Estimate) else Estimate(None, None, None, 0)


def _value(value: Value) -> float:
    return value if isinstance(value, float) else 2.0


def _short(judges: Sequence[str]) -> dict[str, str]:
    """Return names without the parts that all judges' ids share, behind the model."""
    parts = {judge: judge.split(" ") for judge in judges}
    shared = set.intersection(*(set(words[1:]) for words in parts.values()))
    named = {j: " ".join(w for w in words if w not in shared) for j, words in parts.items()}
    models = {words[0] for words in parts.values()}
    if len(models) == 1 and all(len(name.split(" ")) > 1 for name in named.values()):
        return {judge: name.split(" ", 1)[1] for judge, name in named.items()}
    return named


def _figure(
    store: RunStore,
    known: Mapping[str, Mapping[tuple[runs.Key, str], Record]],
    chosen: Sequence[str],
    short: Mapping[str, str],
    clusters: runs.Clusters,
) -> Figure:
    methods = runs.labels(store)
    names = {"mars2": "MARS2", "mars2_subject": "subject", "mars2_style": "style"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 0.42 * len(methods) + 1.5), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for panel, (metric, title) in zip(panels, names.items(), strict=True):
            for place, judge in enumerate(chosen):
                color = COLORS[place % len(COLORS)]
                scores = {k: r.value for (k, m), r in known[judge].items() if m == metric}
                table = runs.by_method(scores, methods, clusters)
                for row in range(len(methods)):
                    own = clusters.estimate(table[:, row], 0)
                    y = row + (place - (len(chosen) - 1) / 2) * 0.6 / len(chosen)
                    if own.value is None:
                        continue
                    if own.low is not None and own.high is not None:
                        panel.hlines(y, own.low, own.high, color=color, linewidth=2)
                    panel.plot(
                        own.value, y, MARKERS[place % len(MARKERS)], color=color, markersize=5,
                        label=short[judge] if row == 0 else None,
                    )  # fmt: skip
            panel.set_title(title, fontweight="bold")
            panel.set_xlim(-0.02, 1.02)
            panel.set_xlabel("share of images")
            panel.set_yticks(range(len(methods)), methods)
            panel.set_ylim(len(methods) - 0.5, -0.5)
        handles, texts = panels[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper center", ncols=len(chosen))
        return figure
