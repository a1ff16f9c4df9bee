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

from mars2.job import RunError
from mars2.report.plots import COLORS
from mars2.stats import LEVEL, Estimate
from mars2.studies import contests, correlations, people, raters
from mars2.studies.association import (
    GROUPINGS,
    item_weights,
)
from mars2.studies.choices import study_choices
from mars2.studies.correlations import WITHIN
from mars2.studies.power import study_power
from mars2.studies.ratings import (
    Aligned,
    align,
    read_choices,
    read_ratings,
    read_scores,
)
from mars2.studies.result import STYLE, Result, Sheet, spoken

GROUPING_WORDS: Mapping[str, str] = {
    "flat": "all images",
    "method": "images of one method",
    "item": "images of one item",
    "system": "means of methods",
}

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
    association = correlations.associations(data, mean, weights, settings.seed)
    ceilings = people.ceilings(data, weights, settings.seed)
    nothing = Estimate(None, None, None, 0)
    rho: dict[tuple[str, str], Estimate] = {
        (name, grouping): association.estimates.get((name, grouping, "spearman"), nothing)
        for name in data.scores
        for grouping in GROUPINGS
    }
    if all(rho[name, "flat"].value is None for name in data.scores):
        images, items = len(data.rated.images), len(data.items)
        raise RunError(
            f"{data.aspect}: the ratings are of {images} image{'s' * (images != 1)} of {items} "
            f"item{'s' * (items != 1)}, which is too few for any correlation; rate more first"
        )
    order = sorted(data.scores, key=lambda name: -(rho[name, "flat"].value or 0))
    shares = correlations.shares(data, weights)
    comparisons, cluster, told_apart = contests.comparisons(
        data, mean, weights, order, settings.permutations, settings.seed
    )
    power, power_text = study_power(data, order, settings.seed)
    sheets = (
        people.counts(data),
        people.rater_agreement(data, weights),
        ceilings.sheet,
        correlations.overview(data, order, association, ceilings.spearman, shares, cluster),
        correlations.accuracies(data, order, association),
        association.sheet,
        comparisons,
        contests.systems(
            data, mean, order, weights, association, settings.permutations, settings.seed
        ),
        power,
    )
    text = " ".join(
        [*_said(data, order, rho, ceilings.spearman, told_apart, association), power_text]
    )
    return _Part(data.aspect, tuple(order), rho, ceilings.spearman, sheets, text)


def _said(
    data: Aligned,
    order: Sequence[str],
    rho: Mapping[tuple[str, str], Estimate],
    ceiling: Mapping[str, Estimate],
    told_apart: Collection[tuple[str, str]],
    found: correlations.Associations,
) -> list[str]:
    """Return what the numbers of an aspect say, in sentences."""
    best = order[0]
    number = len(data.rated.raters)
    value = rho[best, "flat"].value
    leads = (
        f"Over all images {best} goes with them best"
        if value is not None and value > 0
        else f"No metric goes with them over all images; the highest is {best}"
    )
    agreement = (
        "no image was rated by two people, so how well people agree is not known"
        if ceiling["flat"].value is None
        else f"one person reaches {spoken(ceiling['flat'])} against the mean of the others"
    )
    sentences = [
        f"**{data.aspect.capitalize()}.** {number} {'person' if number == 1 else 'people'} rated "
        f"{len(data.rated.images)} images ({len(data.items)} items, {len(data.methods)} methods). "
        f"{leads}: Spearman {spoken(rho[best, 'flat'])}, n = {rho[best, 'flat'].n}; {agreement}."
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


def _no_better_than_ties(found: correlations.Associations, name: str) -> bool:
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
