"""Metric against metric, by permutation tests; and how each one ranks the methods."""

from collections.abc import Sequence

import numpy as np

from mars2.stats import Estimate
from mars2.studies import testing
from mars2.studies.association import Floats, grouped
from mars2.studies.correlations import Associations
from mars2.studies.ratings import Aligned
from mars2.studies.result import Sheet, Value, estimate, p_value

SIGNIFICANT = 0.05


def comparisons(
    data: Aligned, mean: Floats, weights: Floats, order: Sequence[str], permutations: int, seed: int
) -> tuple[Sheet, dict[str, int], set[tuple[str, str]]]:
    """Return the tests of every two metrics, clusters, and which one is told apart from which."""
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
                    permutations=permutations, seed=seed,
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


def systems(
    data: Aligned,
    mean: Floats,
    order: Sequence[str],
    weights: Floats,
    found: Associations,
    permutations: int,
    seed: int,
) -> Sheet:
    """Return the table of how each metric ranks the methods."""
    rows: list[tuple[Value, ...]] = []
    methods = len(data.methods)
    for name in order if methods > 1 else ():
        both = ~np.isnan(data.scores[name]) & ~np.isnan(mean)
        tables = [_by_item(values, both, data) for values in (data.scores[name], mean)]
        whole = ~np.isnan(tables[0]).any(axis=1)
        soft = p = None
        if whole.sum() > 1:
            soft = testing.soft_pairwise_accuracy(
                *(table[whole] for table in tables), permutations=permutations,
                seed=seed,
            )  # fmt: skip
            p = testing.ranking_test(*(table[whole].mean(axis=0) for table in tables), seed=seed)
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
