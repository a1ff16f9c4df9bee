"""Tables of how robust a judge is: what its answers to the same images have in common."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from mars2.judges import Verdict
from mars2.judges.prompts import Aspect
from mars2.stats import Estimate
from mars2.studies import raters, runs
from mars2.studies.agreement import concordance
from mars2.studies.asking import ASPECTS, Plan
from mars2.studies.association import Floats, by_rows
from mars2.studies.result import Sheet, Value, estimate, p_value
from mars2.studies.variance import components, dependability

ENOUGH = 0.8
"""The dependability that is usually asked for."""
COMPONENT_RESAMPLES = 200

Answers = Mapping[tuple[str, Aspect], Sequence[Verdict]]
"""Variant and aspect -> a verdict an image."""


def _yes(verdicts: Sequence[Verdict]) -> list[float | None]:
    return [None if one.answer is None else float(one.answer) for one in verdicts]


def _gaps(one: Sequence[Verdict], other: Sequence[Verdict]) -> list[float | None]:
    """Return the differences of the chances of yes; of the answers, where no chance is given."""
    gaps: list[float | None] = []
    for a, b in zip(one, other, strict=True):
        if a.p_yes is not None and b.p_yes is not None:
            gaps.append(abs(a.p_yes - b.p_yes))
        elif a.answer is not None and b.answer is not None:
            gaps.append(float(a.answer != b.answer))
        else:
            gaps.append(None)
    return gaps


def variants_sheet(plan: Plan, answers: Answers, clusters: runs.Clusters) -> Sheet:
    """Return each way to ask against the usual one."""
    cases = [sample.case for sample in plan.samples]
    rows: list[tuple[Value, ...]] = []
    for aspect in ASPECTS:
        usual = answers["usual", aspect]
        base = _yes(usual)
        for variant in plan.variants:
            own = answers[variant.name, aspect]
            yes = _yes(own)
            flips = [
                None if a is None or b is None else float(a != b)
                for a, b in zip(base, yes, strict=True)
            ]
            shifts = [
                None if a is None or b is None else b - a for a, b in zip(base, yes, strict=True)
            ]
            n = sum(one is not None for one in flips)
            values = [
                clusters.estimate(clusters.mean(column, cases), n, len(own) - n)
                for column in (
                    [float(one is not None) for one in yes], flips, _gaps(usual, own), yes, shifts,
                )
            ]  # fmt: skip
            rows.append((f"{aspect}: {variant.name}", variant.family, *values, n))
    columns = ("variant", "family", "read", "flips", "gap", "yes", "shift", "n")
    return Sheet(
        "variants", "Each way to ask against the usual one", columns, rows, columns,
        ("read: share of answers that are yes or no; flips: share of images whose answer is "
         "another than the usual one; gap: mean absolute difference of the chance of yes (ProSA's "
         "PSS, against the usual way); shift: of the share of yes. Grouping: all images, one "
         "reference each; in brackets 95 % interval, bootstrap over pairs.",),
    )  # fmt: skip


def _of_family(plan: Plan, family: str) -> list[str]:
    return ["usual", *(one.name for one in plan.variants if one.family == family)]


def family_names(plan: Plan) -> list[str]:
    """Return the kinds of change, in the plan's order."""
    return [f for f in dict.fromkeys(one.family for one in plan.variants) if f != "usual"]


def shares_of_yes(plan: Plan, verdicts: Sequence[Verdict]) -> Floats:
    """Return each method's share of yes, NaN if it has no answer."""
    methods = list(dict.fromkeys(sample.method for sample in plan.samples))
    found = []
    for method in methods:
        own = [
            yes
            for sample, yes in zip(plan.samples, _yes(verdicts), strict=True)
            if sample.method == method and yes is not None
        ]
        found.append(float(np.mean(own)) if own else np.nan)
    return np.array(found)


def families_sheet(plan: Plan, answers: Answers, clusters: runs.Clusters) -> Sheet:
    """Return how alike the answers of each kind of change are, and the rankings they give."""
    cases = [sample.case for sample in plan.samples]
    owner = np.array([clusters.cases.index(case) for case in cases])
    methods = list(dict.fromkeys(sample.method for sample in plan.samples))
    rows: list[tuple[Value, ...]] = []
    for aspect in ASPECTS:
        for family in family_names(plan):
            names = _of_family(plan, family)
            table = np.array(
                [
                    [np.nan if v is None else v for v in _yes(answers[name, aspect])]
                    for name in names
                ]
            ).T  # (images, variants)
            alpha = raters.krippendorff(table, owner, clusters.weights, "nominal")
            same: list[float | None] = [
                None if np.isnan(row).any() else float((row == row[0]).all()) for row in table
            ]
            pairs = [
                _gaps(answers[a, aspect], answers[b, aspect])
                for a, b in itertools.combinations(names, 2)
            ]
            gap = [
                float(np.mean(own)) if (own := [g for g in column if g is not None]) else None
                for column in zip(*pairs, strict=True)
            ]
            shares = np.stack([shares_of_yes(plan, answers[name, aspect]) for name in names])
            whole = shares[~np.isnan(shares).any(axis=1)]
            tops = [methods[int(np.argmax(row))] for row in whole]
            tau = [float(by_rows("kendall", row[None], whole[:1])[0]) for row in whole[1:]]
            lowest = min((t for t in tau if not np.isnan(t)), default=None)
            rows.append(
                (
                    f"{aspect}: {family}", len(names) - 1,
                    clusters.estimate(clusters.mean(same, cases), sum(s is not None for s in same)),
                    clusters.estimate(alpha, len(table)),
                    clusters.estimate(clusters.mean(gap, cases), len(table)),
                    concordance(whole) if len(whole) > 1 else None,
                    lowest, sum(top != tops[0] for top in tops[1:]), len(table),
                )
            )  # fmt: skip
    columns = (
        "family",
        "variants",
        "all alike",
        "alpha",
        "PSS",
        "W",
        "lowest tau",
        "other top",
        "n",
    )
    return Sheet(
        "families", "How robust the judge is, by what is changed", columns, rows, columns,
        ("all alike: share of images with one answer from the usual way and all variants of the "
         "family; alpha: Krippendorff's over them, nominal; PSS: mean absolute difference of the "
         "chance of yes over pairs of variants. W: Kendall's of the methods' rankings by share of "
         "yes; lowest tau: of a variant's ranking with the usual one; other top: variants with "
         "another method at the top. Read `all alike` with alpha: where nearly all answers are "
         "no, few differ and alpha is low for all that.",
         "repeat is the noise floor. wrong reference is no perturbation but what a judge must "
         "notice: the less alike, the better."),
    )  # fmt: skip


def rankings_sheet(plan: Plan, answers: Answers) -> Sheet:
    """Return each method's share of yes and the ranking, by the way to ask."""
    methods = list(dict.fromkeys(sample.method for sample in plan.samples))
    rows: list[tuple[Value, ...]] = []
    for aspect in ASPECTS:
        for variant in plan.variants:
            shares = shares_of_yes(plan, answers[variant.name, aspect])
            order = np.argsort(-np.nan_to_num(shares, nan=-1), kind="stable")
            rows.append(
                (aspect, variant.name, *shares.tolist(), " > ".join(methods[k] for k in order))
            )
    return Sheet(
        "rankings", "Share of yes of each method, by how it is asked",
        ("aspect", "variant", *methods, "ranking"), rows,
    )  # fmt: skip


def _cells(plan: Plan, answers: Answers, aspect: Aspect) -> tuple[Floats, tuple[str, ...]]:
    """Return the chances of yes by image, wording [and reference], and the facets' names."""
    worded = [one.name for one in plan.variants if one.family in ("usual", "wording")]

    def values(name: str) -> list[float]:
        return [
            one.p_yes if one.p_yes is not None else np.nan if one.answer is None else one.answer
            for one in answers[name, aspect]
        ]

    first = np.array([values(name) for name in worded]).T  # (images, wordings)
    if not plan.crossed:
        return first, ("wording",)
    second = np.array(
        [
            values("second reference" if name == "usual" else f"{name}, second reference")
            for name in worded
        ]
    ).T
    return np.stack([first, second], axis=2), ("wording", "reference")


def components_sheets(
    plan: Plan, answers: Answers, clusters: runs.Clusters, seed: int
) -> tuple[Sheet, Sheet]:
    """Return where differences come from, and how many wordings and references are enough."""
    rows: list[tuple[Value, ...]] = []
    decisions: list[tuple[Value, ...]] = []
    for aspect in ASPECTS:
        table, facets = _cells(plan, answers, aspect)
        whole = np.asarray(~np.isnan(table).any(axis=tuple(range(1, table.ndim))))
        table = table[whole]
        owner = np.array(
            [
                clusters.cases.index(s.case)
                for s, kept in zip(plan.samples, whole, strict=True)
                if kept
            ]
        )
        if len(table) < 2 or table.shape[1] < 2:
            continue
        rng = np.random.default_rng([seed, 1])
        tables = [table]
        for _ in range(COMPONENT_RESAMPLES):
            drawn = rng.integers(0, len(clusters.cases), len(clusters.cases))
            places = np.concatenate([np.flatnonzero(owner == case) for case in drawn])
            if len(places) > 1:
                tables.append(table[places])
        found = [components(one) for one in tables]
        names = ("image", *facets)
        total = np.array([max(sum(one.values()), 1e-300) for one in found])
        for effect in found[0]:
            label = " x ".join(names[axis] for axis in sorted(effect))
            label += ", error" if len(effect) == table.ndim else ""
            variance = np.array([one[effect] for one in found])
            n = len(table)
            rows.append(
                (f"{aspect}: {label}", estimate(variance, n, len(clusters.cases)),
                 estimate(variance / total, n, len(clusters.cases)), n)
            )  # fmt: skip
        for numbers in itertools.product(
            (1, 2, 3, 5, 8), *([(1, 2, 4)] if len(facets) > 1 else [])
        ):
            both = np.array(
                [[np.nan if v is None else v for v in dependability(one, numbers)] for one in found]
            )
            values = [estimate(both[:, k], len(table), len(clusters.cases)) for k in (0, 1)]
            filled = (*numbers, *([1] if len(facets) == 1 else []))
            decisions.append((aspect, *filled, *values, len(table)))
    sources = Sheet(
        "components", "Where differences of the chance of yes come from",
        ("source", "variance", "share", "images"), rows,
        ("source", "variance", "share", "images") if rows else (),
        ("Variance components of images crossed with wordings (and the first two references): the "
         "more is due to the image, the better. Below 0 is given as 0. In brackets: 95 % interval, "
         "bootstrap over pairs.",),
    )  # fmt: skip
    plans = Sheet(
        "decisions", "How many wordings and references a question should have",
        ("aspect", "wordings", "references", "generalizability", "phi", "images"), decisions,
        ("aspect", "wordings", "references", "generalizability", "phi", "images")
        if decisions
        else (),
        (f"For the mean over so many of each. phi {ENOUGH} is a usual demand; generalizability is "
         "about the order of images alone. Repeats of one wording add nothing to a judge that does "
         "not draw its answers.",),
    )  # fmt: skip
    return sources, plans


def truth_sheet(plan: Plan, truths: Mapping[str, Sequence[Verdict]], seed: int) -> Sheet:
    """Return the share of right answers to known questions by wording, against the usual one."""
    rows: list[tuple[Value, ...]] = []
    for aspect in ASPECTS:
        own = [k for k, control in enumerate(plan.controls) if control.aspect == aspect]
        truth = [plan.controls[k].compared == "itself" for k in own]
        concepts = [plan.controls[k].concept for k in own]
        base: list[float] = []
        for name, verdicts in truths.items() if own else ():
            right = [float(verdicts[k].answer is t) for k, t in zip(own, truth, strict=True)]
            clusters = runs.Clusters.draw(concepts, resamples=1000, seed=seed)
            values: list[Estimate] = [
                clusters.estimate(clusters.mean(list(right), concepts), len(right))
            ]
            p: float | None = None
            if not base:
                base = right
            else:
                change = [a - b for a, b in zip(right, base, strict=True)]
                values.append(clusters.estimate(clusters.mean(list(change), concepts), len(own)))
                p = sign_test(np.array(change), seed)
            rows.append((f"{aspect}: {name}", *values, *([None] if len(values) == 1 else []), p,
                         len(own)))  # fmt: skip
    columns = ("wording", "right", "change", "p", "n")
    return Sheet(
        "truth", "Right answers to questions of known answer", columns, rows,
        columns if rows else (),
        ("Between references; an answer that is neither yes nor no counts as wrong. p: two-sided, "
         "by exchanging the two answers question by question. In brackets: 95 % interval, "
         "bootstrap over concepts.",),
        {"p": p_value},
    )  # fmt: skip


def sign_test(differences: Floats, seed: int = 0, permutations: int = 2000) -> float:
    """Return the two-sided p of a mean difference, by random signs."""
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (permutations, len(differences))) * 2 - 1
    drawn = np.abs((signs * differences).sum(axis=1))
    return float((1 + (drawn >= abs(differences.sum()) - 1e-9).sum()) / (permutations + 1))
