"""How metrics go with the mean rating: coefficients in every grouping, shares of the ceiling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mars2.stats import Estimate
from mars2.studies import raters
from mars2.studies.association import (
    GROUPINGS,
    Coefficient,
    Floats,
    Grouping,
    always_tie,
    best_epsilon,
    item_weights,
    kendall_c,
)
from mars2.studies.people import between, nanmean, one_left_out
from mars2.studies.ratings import Aligned
from mars2.studies.result import Sheet, Value, estimate

WITHIN: tuple[Grouping, ...] = ("flat", "method", "item")
RATER_RESAMPLES = 200


@dataclass(frozen=True)
class Associations:
    """How metrics go with the mean rating.

    Attributes:
        sheet: The table.
        estimates: Metric, grouping, coefficient -> its value.
        epsilons: Metric, grouping -> the best threshold for ties.
        ties: Metric, grouping -> accuracy of always saying tie.
        undefined: Metric, grouping, coefficient -> groups without a value, and all groups.
    """

    sheet: Sheet
    estimates: Mapping[tuple[str, str, str], Estimate]
    epsilons: Mapping[tuple[str, str], float]
    ties: Mapping[tuple[str, str], float]
    undefined: Mapping[tuple[str, str, str], tuple[int, int]]


def associations(data: Aligned, mean: Floats, weights: Floats, seed: int) -> Associations:
    """Return every coefficient of every metric in every grouping, with its interval."""
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
                found = between(scores, mean, data, coefficient, grouping, weights, epsilon)
                if found is None:
                    continue
                value = estimate(found.values, found.n, items)
                estimates[name, grouping, label] = value
                undefined[name, grouping, label] = found.undefined, found.groups
                by_rater = Estimate(None, None, None, 0)
                if label == "spearman":
                    by_rater = _by_raters(data, scores, grouping, seed)
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
    return Associations(sheet, estimates, epsilons, ties, undefined)


def _by_raters(data: Aligned, scores: Floats, grouping: Grouping, seed: int) -> Estimate:
    """Return the interval of Spearman's correlation if other people had rated other items."""
    count, items = len(data.rated.raters), len(data.items)
    if count < 2:
        return Estimate(None, None, None, 0)
    rng = np.random.default_rng([seed, 2])
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RATER_RESAMPLES)
    weights = item_weights(items, RATER_RESAMPLES, rng)[1:]
    values = []
    for draw in np.unique(drawn, axis=0):
        table = np.repeat(data.rated.table, draw, axis=1)
        rows = weights[(drawn == draw).all(axis=1)]
        found = between(scores, raters.mean_rating(table), data, "spearman", grouping, rows)
        values.append(np.full(len(rows), np.nan) if found is None else found.values)
    together = np.concatenate([[0.0], *values])  # in place of the sample's own value
    return estimate(together, 0, items)


def shares(data: Aligned, weights: Floats) -> Mapping[tuple[str, str], Estimate]:
    """Return each metric's share of the ceiling: both against the mean of the other raters."""
    shares = {}
    for grouping in WITHIN:
        for name, scores in data.scores.items():
            tops, bottoms = [], []
            for rater in range(len(data.rated.raters)):
                own = one_left_out(data, rater, "spearman", grouping, weights)
                others = raters.others_mean(data.rated.table, rater)
                # On the images that this rater rated, too, so that both face the same ones.
                others = np.where(np.isnan(data.rated.table[:, rater]), np.nan, others)
                metric = between(scores, others, data, "spearman", grouping, weights)
                if own is not None and metric is not None:
                    tops.append(metric.values)
                    bottoms.append(own.values)
            if tops:
                with np.errstate(divide="ignore", invalid="ignore"):
                    ratio = nanmean(np.stack(tops)) / nanmean(np.stack(bottoms))
                shares[name, str(grouping)] = estimate(
                    ratio, int((~np.isnan(scores)).sum()), len(data.items)
                )
    return shares


def overview(
    data: Aligned,
    order: Sequence[str],
    found: Associations,
    ceiling: Mapping[str, Estimate],
    shares: Mapping[tuple[str, str], Estimate],
    cluster: Mapping[str, int],
) -> Sheet:
    """Return the table of the metrics, best first, beside the ceiling."""
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


def accuracies(data: Aligned, order: Sequence[str], found: Associations) -> Sheet:
    """Return the table of pairs of images of one item that metrics order as people do."""
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
