"""What people who rated the same images say among each other: counts, agreement, the ceiling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mars2.stats import Estimate
from mars2.studies import raters
from mars2.studies.association import (
    GROUPINGS,
    Coefficient,
    Floats,
    Grouped,
    Grouping,
    Integers,
    grouped,
)
from mars2.studies.ratings import Aligned
from mars2.studies.result import Sheet, Value, estimate

CORRELATIONS: tuple[Coefficient, ...] = ("pearson", "spearman", "kendall")
MOST_HALVES = 10


def counts(data: Aligned) -> Sheet:
    """Return the table of what was rated, and what is missing."""
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


def rater_agreement(data: Aligned, weights: Floats) -> Sheet:
    """Return the table of how far people agree, a row of weights a resample of the items."""
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
        found = one_left_out(data, number, "spearman", "flat", weights)
        if found is not None:
            add(f"{name} against the others, Spearman", found.values, found.n)
    return Sheet(
        "raters", "How far people agree", ("aspect", "statistic", "grouping", "value", "images"),
        rows, ("statistic", "value", "images"),
        ("In brackets: 95 % interval, bootstrap over items. Kappa is over images of the commonest "
         "number of ratings, ICC over images that all rated.",),
    )  # fmt: skip


def one_left_out(
    data: Aligned, rater: int, name: Coefficient, grouping: Grouping, weights: Floats
) -> Grouped | None:
    """Return how a rater goes with the mean of the others; None for no image in common."""
    own, others = data.rated.table[:, rater], raters.others_mean(data.rated.table, rater)
    return between(own, others, data, name, grouping, weights)


def between(
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
class Ceilings:
    """What people reach among themselves.

    Attributes:
        sheet: The table.
        spearman: Grouping -> one person against the mean of the others.
    """

    sheet: Sheet
    spearman: Mapping[str, Estimate]


def ceilings(data: Aligned, weights: Floats, seed: int) -> Ceilings:
    """Return what one person, and half of the people, say about the others."""
    items, count = len(data.items), len(data.rated.raters)
    rng = np.random.default_rng([seed, 1])
    splits = raters.halves(count, MOST_HALVES, rng) if count > 1 else []
    rows: list[tuple[Value, ...]] = []
    spearman: dict[str, Estimate] = {}
    for grouping in GROUPINGS:
        for name in CORRELATIONS:
            alone = [one_left_out(data, k, name, grouping, weights) for k in range(count)]
            left_out = _averaged([one for one in alone if one is not None], items)
            if name == "spearman":
                spearman[grouping] = left_out
            reliability = bound = Estimate(None, None, None, 0)
            if name != "kendall":  # the formula is for correlations
                halved = [_halved(data, half, name, grouping, weights) for half in splits]
                values = [raters.spearman_brown(one.values) for one in halved if one is not None]
                if values:
                    stepped = nanmean(np.stack(values))
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
    return Ceilings(sheet, spearman)


def _halved(
    data: Aligned, half: Integers, name: Coefficient, grouping: Grouping, weights: Floats
) -> Grouped | None:
    table = data.rated.table
    rest = np.setdiff1d(np.arange(table.shape[1]), half)
    means = raters.mean_rating(table[:, half]), raters.mean_rating(table[:, rest])
    return between(*means, data, name, grouping, weights)


def _averaged(parts: Sequence[Grouped], items: int) -> Estimate:
    if not parts:
        return Estimate(None, None, None, 0)
    values = nanmean(np.stack([part.values for part in parts]))
    return estimate(values, max(part.n for part in parts), items)


def nanmean(table: Floats) -> Floats:
    """Return the mean of each column without its NaN; NaN where there is nothing else."""
    there = ~np.isnan(table)
    count = there.sum(axis=0)
    total = np.where(there, table, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
