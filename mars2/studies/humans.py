"""Do people agree with the metrics? Ratings of images against automatic scores of the same images.

Every correlation says among which images it was computed, over how many, and where it lies if other
items, or other people, had been drawn. A metric can go with people over all images because both
tell good methods from bad ones, and yet order no two images of one method; so all groupings are
given side by side, with what people reach among each other as the ceiling.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mars2.report.plots import COLORS
from mars2.stats import LEVEL, Estimate
from mars2.studies import raters, testing
from mars2.studies.association import (
    GROUPINGS,
    Coefficient,
    Floats,
    Grouped,
    Grouping,
    Integers,
    always_tie,
    best_epsilon,
    grouped,
    item_weights,
    kendall_c,
)
from mars2.studies.choices import study_choices
from mars2.studies.power import study_power
from mars2.studies.ratings import (
    Aligned,
    align,
    read_choices,
    read_ratings,
    read_scores,
)
from mars2.studies.result import STYLE, Result, Sheet, Value, estimate, p_value, spoken

WITHIN: tuple[Grouping, ...] = ("flat", "method", "item")
GROUPING_WORDS: Mapping[str, str] = {
    "flat": "all images",
    "method": "images of one method",
    "item": "images of one item",
    "system": "means of methods",
}
CORRELATIONS: tuple[Coefficient, ...] = ("pearson", "spearman", "kendall")
RATER_RESAMPLES = 200
MOST_HALVES = 10
SIGNIFICANT = 0.05

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How the numbers are computed.

    Attributes:
        resamples: Bootstrap samples of items.
        permutations: Exchanges of a permutation test.
        seed: Of both.
        lower: Metrics of which less is better.
    """

    resamples: int = 1000
    permutations: int = 1000
    seed: int = 0
    lower: tuple[str, ...] = ()


def study_humans(
    ratings: Path,
    metrics: Path,
    *,
    pairs: Path | None = None,
    settings: Settings = Settings(),
    progress: Progress | None = None,
) -> Result:
    """Return the study of ratings, and of choices if given, against metrics.

    Args:
        ratings: Long table of what people said, see `ratings`.
        metrics: Long table of what metrics said, or a run's folder.
        pairs: Long table of choices.
        settings: How it is computed.
        progress: Called with what is done next.

    Raises:
        RunError: A file cannot be read, or they have no image in common.
    """
    tell = progress or (lambda text: None)
    scored = read_scores(metrics)
    unknown = [name for name in settings.lower if name not in {one.name for one in scored}]
    if unknown:
        from mars2.job import RunError

        raise RunError(
            f"{metrics} has no metric {', '.join(unknown)}; it has "
            f"{', '.join(dict.fromkeys(one.name for one in scored))}"
        )
    parts = []
    for aspect, rated in read_ratings(ratings).items():
        tell(aspect)
        parts.append(_study(align(aspect, rated, scored, settings.lower), settings))
    sheets = _gathered([part.sheets for part in parts])
    texts = [part.text for part in parts]
    if pairs is not None:
        tell("choices")
        sheet_list, text = study_choices(
            read_choices(pairs), scored, lower=settings.lower, resamples=settings.resamples,
            seed=settings.seed,
        )  # fmt: skip
        sheets += sheet_list
        texts.append(text)
    inputs = {
        "inputs": {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "run"
            for path in (ratings, metrics, pairs)
            if path is not None
        },
        **vars(settings),
        "level": LEVEL,
    }
    return Result(
        "humans",
        "Do people agree with the metrics?",
        "\n\n".join([*texts, _limits()]),
        tuple(sheets),
        {"humans": _figure(parts)},
        inputs,
    )


@dataclass(frozen=True)
class _Part:
    """The study of one aspect."""

    aspect: str
    metrics: tuple[str, ...]
    rho: Mapping[tuple[str, str], Estimate]
    ceiling: Mapping[str, Estimate]
    sheets: tuple[Sheet, ...]
    text: str


def _study(data: Aligned, settings: Settings) -> _Part:
    rng = np.random.default_rng(settings.seed)
    weights = item_weights(len(data.items), settings.resamples, rng)
    mean = raters.mean_rating(data.rated.table)
    association = _associations(data, mean, weights, settings)
    ceilings = _ceilings(data, weights, settings)
    rho: dict[tuple[str, str], Estimate] = {
        (name, grouping): association.estimates[name, grouping, "spearman"]
        for name in data.scores
        for grouping in GROUPINGS
    }
    order = sorted(data.scores, key=lambda name: -(rho[name, "flat"].value or 0))
    shares = _shares(data, weights)
    comparisons, cluster, told_apart = _comparisons(data, mean, weights, order, settings)
    power, power_text = study_power(data, order, settings.seed)
    sheets = (
        _counts(data),
        _rater_agreement(data, weights),
        ceilings.sheet,
        _overview(data, order, association, ceilings.spearman, shares, cluster),
        _accuracies(data, order, association),
        association.sheet,
        comparisons,
        _systems(data, mean, order, weights, association, settings),
        power,
    )
    text = " ".join(
        [*_said(data, order, rho, ceilings.spearman, told_apart, association), power_text]
    )
    return _Part(data.aspect, tuple(order), rho, ceilings.spearman, sheets, text)


def _counts(data: Aligned) -> Sheet:
    there = ~np.isnan(data.rated.table)
    facts: list[tuple[str, int]] = [
        ("images rated", len(data.rated.images)),
        ("items", len(data.items)),
        ("methods", len(data.methods)),
        ("raters", len(data.rated.raters)),
        ("ratings", int(there.sum())),
        ("cells without a rating", int((~there).sum())),
        ("lines without a score", data.rated.empty),
        ("images of one rater only", int((there.sum(axis=1) == 1).sum())),
    ]
    for name in data.scores:
        facts += [
            (f"{name}: asked, no score", data.unscored[name]),
            (f"{name}: no line", data.missing[name]),
            (f"{name}: scored, not rated", data.unrated[name]),
        ]
    rows = [(data.aspect, what, number) for what, number in facts if number or ":" not in what]
    return Sheet(
        "counts", "What was rated", ("aspect", "what", "number"), rows, ("what", "number"),
        ("Nothing is filled in: a cell without a rating is in no mean.",),
    )  # fmt: skip


def _rater_agreement(data: Aligned, weights: Floats) -> Sheet:
    table, items = data.rated.table, len(data.items)
    pairs = int(((~np.isnan(table)).sum(axis=1) > 1).sum())
    rows: list[tuple[Value, ...]] = []

    def add(what: str, values: Floats, n: int) -> None:
        rows.append((data.aspect, what, "flat", estimate(values, n, items), n))

    for level in raters.LEVELS:
        alpha = raters.krippendorff(table, data.owner, weights, level)
        add(f"Krippendorff's alpha, {level}", alpha, pairs)
    add("Fleiss' kappa", *raters.fleiss(table, data.owner, weights))
    single, average, n = raters.intraclass(table, data.owner, weights)
    add("ICC(A,1)", single, n)
    add("ICC(A,k)", average, n)
    for number, name in enumerate(data.rated.raters):
        found = _one_left_out(data, number, "spearman", "flat", weights)
        if found is not None:
            add(f"{name} against the others, Spearman", found.values, found.n)
    return Sheet(
        "raters", "How far people agree", ("aspect", "statistic", "grouping", "value", "images"),
        rows, ("statistic", "value", "images"),
        ("In brackets: 95 % interval, bootstrap over items. Kappa is over images of the commonest "
         "number of ratings, ICC over images that all rated.",),
    )  # fmt: skip


def _one_left_out(
    data: Aligned, rater: int, name: Coefficient, grouping: Grouping, weights: Floats
) -> Grouped | None:
    """Return how a rater goes with the mean of the others; None for no image in common."""
    own, others = data.rated.table[:, rater], raters.others_mean(data.rated.table, rater)
    return _between(own, others, data, name, grouping, weights)


def _between(
    x: Floats, y: Floats, data: Aligned, name: Coefficient, grouping: Grouping, weights: Floats,
    epsilon: float = 0.0,
) -> Grouped | None:  # fmt: skip
    """Return a coefficient over the images that both scores have; None for fewer than two."""
    both = ~np.isnan(x) & ~np.isnan(y)
    if both.sum() < 2:
        return None
    _, method = np.unique(data.method[both], return_inverse=True)
    return grouped(name, grouping, x[both], y[both], data.owner[both], method, weights, epsilon)


@dataclass(frozen=True)
class _Ceilings:
    sheet: Sheet
    spearman: Mapping[str, Estimate]


def _ceilings(data: Aligned, weights: Floats, settings: Settings) -> _Ceilings:
    items, count = len(data.items), len(data.rated.raters)
    rng = np.random.default_rng([settings.seed, 1])
    splits = raters.halves(count, MOST_HALVES, rng) if count > 1 else []
    rows: list[tuple[Value, ...]] = []
    spearman: dict[str, Estimate] = {}
    for grouping in GROUPINGS:
        for name in CORRELATIONS:
            alone = [_one_left_out(data, k, name, grouping, weights) for k in range(count)]
            left_out = _averaged([one for one in alone if one is not None], items)
            if name == "spearman":
                spearman[grouping] = left_out
            reliability = bound = Estimate(None, None, None, 0)
            if name != "kendall":  # the formula is for correlations
                halved = [_halved(data, half, name, grouping, weights) for half in splits]
                values = [raters.spearman_brown(one.values) for one in halved if one is not None]
                if values:
                    stepped = _nanmean(np.stack(values))
                    n = next(one.n for one in halved if one is not None)
                    reliability = estimate(stepped, n, items)
                    bound = estimate(np.sqrt(np.maximum(stepped, 0)), n, items)
            rows.append((data.aspect, grouping, name, left_out, left_out.n, reliability, bound))
    sheet = Sheet(
        "ceiling", "What people reach among themselves",
        ("aspect", "grouping", "coefficient", "one_against_others", "n", "reliability", "bound"),
        rows, ("grouping", "coefficient", "one_against_others", "reliability", "bound", "n"),
        ("one_against_others: mean over raters of a rater's correlation with the mean of the "
         "others. reliability: two halves of the raters, stepped up to all of them "
         "(Spearman-Brown). bound: its root, which no score can exceed against this mean rating "
         "but by chance.",),
    )  # fmt: skip
    return _Ceilings(sheet, spearman)


def _halved(
    data: Aligned, half: Integers, name: Coefficient, grouping: Grouping, weights: Floats
) -> Grouped | None:
    table = data.rated.table
    rest = np.setdiff1d(np.arange(table.shape[1]), half)
    means = raters.mean_rating(table[:, half]), raters.mean_rating(table[:, rest])
    return _between(*means, data, name, grouping, weights)


def _averaged(parts: Sequence[Grouped], items: int) -> Estimate:
    if not parts:
        return Estimate(None, None, None, 0)
    values = _nanmean(np.stack([part.values for part in parts]))
    return estimate(values, max(part.n for part in parts), items)


def _nanmean(table: Floats) -> Floats:
    """Return the mean of each column without its NaN; NaN where there is nothing else."""
    there = ~np.isnan(table)
    count = there.sum(axis=0)
    total = np.where(there, table, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class _Associations:
    sheet: Sheet
    estimates: Mapping[tuple[str, str, str], Estimate]
    epsilons: Mapping[tuple[str, str], float]
    ties: Mapping[tuple[str, str], float]
    undefined: Mapping[tuple[str, str, str], tuple[int, int]]


def _associations(
    data: Aligned, mean: Floats, weights: Floats, settings: Settings
) -> _Associations:
    items = len(data.items)
    estimates: dict[tuple[str, str, str], Estimate] = {}
    epsilons: dict[tuple[str, str], float] = {}
    ties: dict[tuple[str, str], float] = {}
    undefined: dict[tuple[str, str, str], tuple[int, int]] = {}
    rows: list[tuple[Value, ...]] = []
    for name, scores in data.scores.items():
        both = ~np.isnan(scores) & ~np.isnan(mean)
        x, y = scores[both], mean[both]
        groups = {"flat": None, "method": data.method[both], "item": data.owner[both]}
        for grouping in GROUPINGS:
            kinds: list[tuple[str, Coefficient, float]] = [
                ("pearson", "pearson", 0), ("spearman", "spearman", 0), ("kendall", "kendall", 0),
                ("accuracy", "accuracy", 0),
            ]  # fmt: skip
            if grouping != "system":
                epsilon, _ = best_epsilon(x, y, groups[grouping])
                epsilons[name, grouping] = epsilon
                ties[name, grouping] = always_tie(y, groups[grouping])
                kinds.append(("accuracy at epsilon", "accuracy", epsilon))
            for label, coefficient, epsilon in kinds:
                found = _between(scores, mean, data, coefficient, grouping, weights, epsilon)
                if found is None:
                    continue
                value = estimate(found.values, found.n, items)
                estimates[name, grouping, label] = value
                undefined[name, grouping, label] = found.undefined, found.groups
                by_rater = Estimate(None, None, None, 0)
                if label == "spearman":
                    by_rater = _by_raters(data, scores, grouping, settings)
                accuracy = coefficient == "accuracy" and grouping != "system"
                rows.append(
                    (
                        data.aspect, name, grouping, label, value, found.n, items,
                        by_rater.low, by_rater.high,
                        ties[name, grouping] if accuracy else None,
                        epsilon if accuracy else None, found.groups, found.undefined,
                    )
                )  # fmt: skip
        tau = kendall_c(x, y, data.owner[both], weights)
        value = estimate(tau, len(x), items)
        rows.append(
            (data.aspect, name, "flat", "kendall tau-c", value, len(x), items, *[None] * 4, 1, 0)
        )
    sheet = Sheet(
        "correlations", "Every metric against the mean rating, in every grouping",
        ("aspect", "metric", "grouping", "coefficient", "value", "n", "items", "rater_low",
         "rater_high", "always_tie", "epsilon", "groups", "undefined"), rows,
    )  # fmt: skip
    return _Associations(sheet, estimates, epsilons, ties, undefined)


def _by_raters(data: Aligned, scores: Floats, grouping: Grouping, settings: Settings) -> Estimate:
    """Return the interval of Spearman's correlation if other people had rated other items."""
    count, items = len(data.rated.raters), len(data.items)
    if count < 2:
        return Estimate(None, None, None, 0)
    rng = np.random.default_rng([settings.seed, 2])
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RATER_RESAMPLES)
    weights = item_weights(items, RATER_RESAMPLES, rng)[1:]
    values = []
    for draw in np.unique(drawn, axis=0):
        table = np.repeat(data.rated.table, draw, axis=1)
        rows = weights[(drawn == draw).all(axis=1)]
        found = _between(scores, raters.mean_rating(table), data, "spearman", grouping, rows)
        values.append(np.full(len(rows), np.nan) if found is None else found.values)
    together = np.concatenate([[0.0], *values])  # in place of the sample's own value
    return estimate(together, 0, items)


def _shares(data: Aligned, weights: Floats) -> Mapping[tuple[str, str], Estimate]:
    """Return each metric's share of the ceiling: both against the mean of the other raters."""
    shares = {}
    for grouping in WITHIN:
        for name, scores in data.scores.items():
            tops, bottoms = [], []
            for rater in range(len(data.rated.raters)):
                own = _one_left_out(data, rater, "spearman", grouping, weights)
                others = raters.others_mean(data.rated.table, rater)
                # On the images that this rater rated, too, so that both face the same ones.
                others = np.where(np.isnan(data.rated.table[:, rater]), np.nan, others)
                metric = _between(scores, others, data, "spearman", grouping, weights)
                if own is not None and metric is not None:
                    tops.append(metric.values)
                    bottoms.append(own.values)
            if tops:
                with np.errstate(divide="ignore", invalid="ignore"):
                    ratio = _nanmean(np.stack(tops)) / _nanmean(np.stack(bottoms))
                shares[name, str(grouping)] = estimate(
                    ratio, int((~np.isnan(scores)).sum()), len(data.items)
                )
    return shares


def _overview(
    data: Aligned,
    order: Sequence[str],
    found: _Associations,
    ceiling: Mapping[str, Estimate],
    shares: Mapping[tuple[str, str], Estimate],
    cluster: Mapping[str, int],
) -> Sheet:
    nothing = Estimate(None, None, None, 0)
    rows: list[tuple[Value, ...]] = []
    for name in order:
        values = [found.estimates.get((name, group, "spearman"), nothing) for group in WITHIN]
        rows.append(
            (
                data.aspect, name, cluster.get(name), *values,
                shares.get((name, "flat"), nothing),
                values[0].n,
            )
        )  # fmt: skip
    loo = [ceiling.get(group, nothing) for group in WITHIN]
    rows.append((data.aspect, "one person", None, *loo, None, loo[0].n))
    columns = (
        "aspect", "metric", "cluster", "rho flat", "rho method", "rho item", "share", "images",
    )  # fmt: skip
    return Sheet(
        "overview", f"Metrics against people: {data.aspect}", columns, rows, columns[1:],
        ("rho: Spearman's correlation with the mean rating over all images (flat), the mean over "
         "methods of that within each, the mean over items of that within each; the last line: one "
         "person against the mean of the others. share: of that ceiling for rho flat, both against "
         "the mean of the other raters.",
         "cluster: metrics of one number are not told apart over all images (the larger p of two "
         "permutation tests, Holm, 5 %). In brackets: 95 % interval, bootstrap over items."),
    )  # fmt: skip


def _accuracies(data: Aligned, order: Sequence[str], found: _Associations) -> Sheet:
    nothing = Estimate(None, None, None, 0)
    rows: list[tuple[Value, ...]] = []
    for name in order:
        values = [
            found.estimates.get((name, "item", kind), nothing)
            for kind in ("accuracy", "accuracy at epsilon")
        ]
        ties, epsilon = (known.get((name, "item")) for known in (found.ties, found.epsilons))
        rows.append((data.aspect, name, *values, ties, epsilon, len(data.items)))
    columns = ("aspect", "metric", "accuracy", "at epsilon", "always tie", "epsilon", "items")
    return Sheet(
        "accuracy", f"Pairs of images of one item: {data.aspect}", columns, rows, columns[1:],
        ("accuracy: share of the pairs that the metric orders, or ties, as people do (acc_eq of "
         "Deutsch et al. 2023), mean over items. at epsilon: where differences up to the best "
         "threshold count as ties; it is chosen on the same pairs, which flatters. always tie: "
         "what a metric reaches that says nothing.",),
    )  # fmt: skip


def _comparisons(
    data: Aligned, mean: Floats, weights: Floats, order: Sequence[str], settings: Settings
) -> tuple[Sheet, dict[str, int], set[tuple[str, str]]]:
    rows: list[tuple[Value, ...]] = []
    cluster: dict[str, int] = {}
    told_apart: set[tuple[str, str]] = set()
    pairs = [(a, b) for place, a in enumerate(order) for b in order[place + 1 :]]
    for name, grouping in (("spearman", "flat"), ("spearman", "item"), ("pearson", "flat")):
        own: list[tuple[Estimate, float, float, float]] = []
        for a, b in pairs:
            both = ~np.isnan(data.scores[a]) & ~np.isnan(data.scores[b]) & ~np.isnan(mean)
            x, other, y = (values[both] for values in (data.scores[a], data.scores[b], mean))
            _, unit = np.unique(data.owner[both], return_inverse=True)
            group = np.zeros(len(y), dtype=int) if grouping == "flat" else unit
            values = [
                grouped(name, grouping, scores, y, data.owner[both], data.method[both], weights)  # type: ignore[arg-type]
                for scores in (x, other)
            ]
            tests = [
                testing.permutation_test(
                    x, other, y, group, name=name, unit=exchanged,  # type: ignore[arg-type]
                    permutations=settings.permutations, seed=settings.seed,
                )[1]
                for exchanged in (None, unit)
            ]  # fmt: skip
            difference = estimate(
                values[0].values - values[1].values, int(both.sum()), len(data.items)
            )
            williams = testing.williams(x, other, y) if name == "pearson" else float("nan")
            own.append((difference, tests[0], tests[1], williams))
        adjusted = [
            testing.holm([one[1] for one in own]),
            testing.holm([one[2] for one in own]),
        ]
        both_p = [max(p) for p in zip(*adjusted, strict=True)]
        if (name, grouping) == ("spearman", "flat"):
            told_apart = {
                pair
                for pair, p, one in zip(pairs, both_p, own, strict=True)
                if p <= SIGNIFICANT and (one[0].value or 0) > 0
            }
            cluster = testing.clusters(order, told_apart)
        for (a, b), one, *holm in zip(pairs, own, *adjusted, strict=True):
            rows.append((data.aspect, name, grouping, a, b, one[0], one[0].n, *one[1:], *holm))
    sheet = Sheet(
        "comparisons", "Metric against metric",
        ("aspect", "coefficient", "grouping", "metric", "other", "difference", "n",
         "p_images", "p_items", "p_williams", "p_images_holm", "p_items_holm"), rows,
    )  # fmt: skip
    return sheet, cluster, told_apart


def _systems(
    data: Aligned,
    mean: Floats,
    order: Sequence[str],
    weights: Floats,
    found: _Associations,
    settings: Settings,
) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    methods = len(data.methods)
    for name in order if methods > 1 else ():
        both = ~np.isnan(data.scores[name]) & ~np.isnan(mean)
        tables = [_by_item(values, both, data) for values in (data.scores[name], mean)]
        whole = ~np.isnan(tables[0]).any(axis=1)
        soft = p = None
        if whole.sum() > 1:
            soft = testing.soft_pairwise_accuracy(
                *(table[whole] for table in tables), permutations=settings.permutations,
                seed=settings.seed,
            )  # fmt: skip
            p = testing.ranking_test(
                *(table[whole].mean(axis=0) for table in tables), seed=settings.seed
            )
        values = [
            found.estimates.get((name, "system", kind))
            for kind in ("accuracy", "kendall", "pearson")
        ]
        rows.append((data.aspect, name, *values, soft, p, methods, int(whole.sum())))
    return Sheet(
        "systems", f"Rankings of the methods: {data.aspect}",
        ("aspect", "metric", "accuracy", "kendall", "pearson", "soft accuracy", "p", "methods",
         "items"), rows,
        ("metric", "accuracy", "kendall", "soft accuracy", "p", "methods") if rows else (),
        ("accuracy: share of pairs of methods that the metric's means order as people's. soft: "
         "1 less the mean difference of both certainties (Thompson et al. 2024), over items with "
         f"all methods. p: of Kendall's tau, with {testing.FEWEST_METHODS} methods or more only.",),
        {"p": p_value},
    )  # fmt: skip


def _by_item(values: Floats, both: "np.typing.NDArray[np.bool_]", data: Aligned) -> Floats:
    """Return (items, methods): means of the images; NaN where there is none."""
    shape = (len(data.items), len(data.methods))
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (data.owner[both], data.method[both]), values[both])
    np.add.at(count, (data.owner[both], data.method[both]), 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _said(
    data: Aligned,
    order: Sequence[str],
    rho: Mapping[tuple[str, str], Estimate],
    ceiling: Mapping[str, Estimate],
    told_apart: Collection[tuple[str, str]],
    found: _Associations,
) -> list[str]:
    """Return what the numbers of an aspect say, in sentences."""
    best = order[0]
    sentences = [
        f"**{data.aspect.capitalize()}.** {len(data.rated.raters)} people rated "
        f"{len(data.rated.images)} images ({len(data.items)} items, {len(data.methods)} methods). "
        f"Over all images {best} goes with them best: Spearman {spoken(rho[best, 'flat'])}, "
        f"n = {rho[best, 'flat'].n}; one person reaches {spoken(ceiling['flat'])} against the mean "
        "of the others."
    ]
    alike = [name for name in order[1:] if (best, name) not in told_apart]
    if alike:
        sentences.append(f"Not told apart from it: {', '.join(alike)}.")
    for grouping in ("method", "item"):
        leader = max(order, key=lambda name: rho[name, grouping].value or -1)
        if leader != best and rho[leader, grouping].value is not None:
            sentences.append(
                f"Among {GROUPING_WORDS[grouping]} {leader} leads instead "
                f"({spoken(rho[leader, grouping])} against {spoken(rho[best, grouping])}): part of "
                "the first's lead is that it tells "
                + ("methods" if grouping == "method" else "items")
                + " apart, not images."
            )
    poor = [name for name in order if _no_better_than_ties(found, name)]
    if poor:
        sentences.append(
            f"Pairs of one item are ordered no better than by saying nothing, even at the best "
            f"threshold: {', '.join(poor)} (always tie: {found.ties[poor[0], 'item']:.2f})."
        )
    gone, groups = found.undefined.get((best, "item", "spearman"), (0, 0))
    if gone:
        sentences.append(
            f"In {gone} of {groups} items a correlation is not defined, because people or {best} "
            "tie all images there; it is left out."
        )
    return sentences


def _no_better_than_ties(found: _Associations, name: str) -> bool:
    value = found.estimates.get((name, "item", "accuracy at epsilon"))
    return (
        value is not None
        and value.value is not None
        and value.value <= found.ties[name, "item"] + 0.01
    )


def _limits() -> str:
    return (
        "**What this cannot say.** Correlations hold for these methods and items: with methods "
        "closer to each other they fall. They tell whether a metric orders images as these people "
        "do, not whether either is right, and a metric that shares a bias with the raters looks "
        "good. Intervals are over items; those over people (rater_low, rater_high in "
        "correlations.csv) rest on the few raters there are. The best epsilon is chosen on the "
        "data that it is tested on. Where p over exchanged images and over exchanged items differ, "
        "images of an item are not independent, and the larger one is to be believed."
    )


def _gathered(parts: Sequence[tuple[Sheet, ...]]) -> list[Sheet]:
    """Return the tables: one a kind with all aspects in it, and one shown an aspect."""
    sheets: list[Sheet] = []
    for alike in zip(*parts, strict=True):
        first = alike[0]
        if len(alike) == 1 or not first.shown:
            rows = [row for sheet in alike for row in sheet.rows]
            sheets.append(Sheet(**{**vars(first), "rows": rows}))
            continue
        if first.name in ("overview", "accuracy", "systems", "power"):
            sheets += [
                Sheet(**{**vars(sheet), "name": f"{sheet.name}-{sheet.rows[0][0]}"})
                for sheet in alike
                if sheet.rows
            ]
        else:
            rows = [row for sheet in alike for row in sheet.rows]
            shown = ("aspect", *first.shown)
            sheets.append(Sheet(**{**vars(first), "rows": rows, "shown": shown}))
    return sheets


def _figure(parts: Sequence[_Part]) -> Figure:
    with mpl.rc_context(STYLE):
        height = max(len(part.metrics) for part in parts)
        figure = Figure(figsize=(5.2 * len(parts) + 1.4, 0.55 * height + 1.7), layout="constrained")
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for panel, part in zip(panels, parts, strict=True):
            for place, grouping in enumerate(WITHIN):
                color = COLORS[place]
                top = part.ceiling[grouping]
                if top.value is not None:
                    panel.axvline(top.value, color=color, linestyle="--", linewidth=1.2)
                    if top.low is not None and top.high is not None:
                        panel.axvspan(top.low, top.high, color=color, alpha=0.08, linewidth=0)
                for row, name in enumerate(part.metrics):
                    value = part.rho[name, grouping]
                    if value.value is None:
                        continue
                    y = row + (place - 1) * 0.22
                    if value.low is not None and value.high is not None:
                        panel.hlines(y, value.low, value.high, color=color, linewidth=2)
                    label = GROUPING_WORDS[grouping] if row == 0 else None
                    panel.plot(value.value, y, "osD"[place], color=color, markersize=5, label=label)
            panel.axvline(0, color="#8a8a8a", linewidth=0.8)
            panel.set_yticks(range(len(part.metrics)), part.metrics)
            panel.set_ylim(len(part.metrics) - 0.5, -0.5)
            panel.set_title(part.aspect, fontweight="bold")
            panel.set_xlabel("Spearman's correlation with the mean rating\n(dashed: one person)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        return figure
