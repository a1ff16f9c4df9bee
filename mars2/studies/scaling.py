"""Does a hypernetwork get better with more train pairs, or with more different ones?

Networks are trained on the first n of all train pairs, in two orders. "Wide" goes through all
subjects and styles before it takes one again; "narrow" takes all pairs of few concepts before it
takes another one: n pairs of about the root of n subjects with as many styles. Subjects and styles
are shuffled by the training's seed, so that small sets lie inside the larger ones of the same seed.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorarar.pairs import TrainingPair
from lorarar.train import HyperTraining
from mars2.job import RunError
from mars2.report.plots import COLORS, MARKERS
from mars2.studies.arms import (
    METRICS,
    SCORE_COLUMNS,
    SHARES,
    WAYS,
    Names,
    Scored,
    ThreeWays,
    bars,
    clear_sign,
    mean_of,
    trainings_sheet,
    variance_sheet,
)
from mars2.studies.result import STYLE, Result, Sheet, Value, spoken
from mars2.studies.trainings import UNTRAINED, Training

Order = Literal["wide", "narrow"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Size:
    """A number of train pairs, and the order that they are the first of.

    Attributes:
        pairs: How many.
        orders: Those that give these pairs: both, where wide and narrow are the same.
        subjects: Number of different subjects.
        styles: Number of different styles.
    """

    pairs: int
    orders: tuple[Order, ...]
    subjects: int
    styles: int

    @property
    def arm(self) -> str:
        """Its name."""
        return "-".join((str(self.pairs), *(self.orders if len(self.orders) == 1 else ())))


def first_pairs(order: Order, subjects: int, styles: int, count: int) -> list[tuple[int, int]]:
    """Return the first pairs of an order, as numbers of subject and style.

    >>> first_pairs("wide", 2, 3, 4), first_pairs("narrow", 2, 3, 4)
    ([(0, 0), (1, 1), (0, 2), (1, 0)], [(0, 0), (0, 1), (1, 0), (1, 1)])
    """
    every = [(subject, style) for subject in range(subjects) for style in range(styles)]
    if order == "narrow":
        return sorted(every, key=lambda pair: (max(pair), min(pair), pair))[:count]
    longer, shorter = max(subjects, styles), min(subjects, styles)
    diagonals = [
        ((place + turn) % shorter, place) for turn in range(shorter) for place in range(longer)
    ]
    wide = diagonals if styles == longer else [(place, other) for other, place in diagonals]
    return wide[:count]


def sizes_of(
    pairs: Sequence[TrainingPair], numbers: Sequence[int], orders: Sequence[Order] = ORDERS
) -> list[Size]:
    """Return what to train on, from few pairs to many, a size in two orders only if they differ.

    Args:
        pairs: All train pairs, every subject with every style.
        numbers: Of pairs; (): 1, 4, 16, ... and all.
        orders: Which.

    Raises:
        RunError: There are not so many pairs, or fewer than two sizes.
    """
    total = len(pairs)
    if not numbers:
        numbers = [4**k for k in range(20) if 4**k < total] + [total]
    wrong = [number for number in numbers if not 0 < number <= total]
    if wrong:
        raise RunError(f"--sizes has {wrong[0]}, but there are 1 to {total} train pairs to take")
    if len(set(numbers)) < 2:
        raise RunError("one size of training set compares with nothing: give two or more, --sizes")
    subjects, styles = (len(own) for own in _concepts(pairs))
    found = []
    for number in sorted(set(numbers)):
        wide, narrow = (first_pairs(order, subjects, styles, number) for order in ORDERS)
        if set(wide) == set(narrow):
            found.append(_size(ORDERS, wide))
        else:
            found += [
                _size((order,), wide if order == "wide" else narrow)
                for order in ORDERS
                if order in orders
            ]
    return found


def _size(orders: tuple[Order, ...], pairs: Sequence[tuple[int, int]]) -> Size:
    subjects, styles = (len(set(own)) for own in zip(*pairs, strict=True))
    return Size(len(pairs), orders, subjects, styles)


def _concepts(pairs: Sequence[TrainingPair]) -> tuple[list[str], list[str]]:
    return (
        list(dict.fromkeys(pair.subject.id for pair in pairs)),
        list(dict.fromkeys(pair.style.id for pair in pairs)),
    )


def plan_scaling(
    pairs: Sequence[TrainingPair],
    sizes: Sequence[Size],
    settings: HyperTraining,
    seeds: Sequence[int],
) -> list[Training]:
    """Return the trainings, the sizes of each seed after one another.

    Args:
        pairs: All train pairs, every subject with every style.
        sizes: Of `sizes_of`.
        settings: Of every training, but for the seed: equal steps, whatever the number of pairs.
        seeds: One training of each size with each.
    """
    subjects, styles = _concepts(pairs)
    by_name = {(pair.subject.id, pair.style.id): pair for pair in pairs}
    trainings = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 0x5CA1E])
        rows, columns = rng.permutation(len(subjects)), rng.permutation(len(styles))
        for size in sizes:
            numbers = first_pairs(size.orders[0], len(subjects), len(styles), size.pairs)
            names = sorted((subjects[rows[i]], styles[columns[j]]) for i, j in numbers)
            own = tuple(by_name[name] for name in names)
            trainings.append(Training(size.arm, own, replace(settings, seed=seed)))
    return trainings


def study_scaling(
    scored: Scored, sizes: Sequence[Size], inputs: Mapping[str, object] | None = None
) -> Result:
    """Return the study of networks trained on sets of several sizes.

    Args:
        scored: The scores of all trainings.
        sizes: What the arms are.
        inputs: For study.json.
    """
    by_arm = {size.arm: size for size in sizes}
    trends = {
        (order, heading): _trend(scored, _line(sizes, order), heading)
        for order in _orders(sizes)
        for heading in METRICS
    }

    def names(arm: str) -> tuple[Value, ...]:
        size = by_arm[arm]
        return size.pairs, "any" if len(size.orders) > 1 else size.orders[0]

    head = ("train pairs", "order")
    sheets = (
        _scores(scored, sizes, names, head),
        _differences(scored, sizes),
        Sheet(
            "trend", "Change of the score with each doubling of the train pairs",
            ("order", "score", *WAYS, "sizes"),
            [(order, heading, *trend.columns, len(_line(sizes, order)))
             for (order, heading), trend in trends.items() if trend],
            ("order", "score", *scored.ways),
            ("Slope of a straight line in log2 of the number of pairs, fitted to each image's "
             "scores. A line may be the wrong curve: see the figure.",),
        ),
        variance_sheet(scored, names, head),
        trainings_sheet(scored, names, head),
    )  # fmt: skip
    return Result(
        "scaling", "Does a hypernetwork get better with more train pairs, or more different ones?",
        _text(scored, sizes, trends), sheets, {"scaling": _figure(scored, sizes)},
        {"judge": scored.judge, **(inputs or {})},
    )  # fmt: skip


def _orders(sizes: Sequence[Size]) -> list[Order]:
    """Return the orders that were trained in, one if they never differ."""
    alone = [order for order in ORDERS if any(size.orders == (order,) for size in sizes)]
    return alone or [ORDERS[0]]


def _line(sizes: Sequence[Size], order: Order) -> list[Size]:
    return [size for size in sizes if order in size.orders]


def _forks(sizes: Sequence[Size]) -> list[tuple[Size, Size]]:
    """Return the sizes that were trained on in both orders, wide and narrow."""
    narrow = {size.pairs: size for size in sizes if size.orders == ("narrow",)}
    return [
        (size, narrow[size.pairs])
        for size in sizes
        if size.orders == ("wide",) and size.pairs in narrow
    ]


def _trend(scored: Scored, line: Sequence[Size], heading: str) -> ThreeWays | None:
    """Return the slope of the scores in log2 of the number of pairs."""
    if len(line) < 2:
        return None
    x = np.log2([size.pairs for size in line])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return scored.combination(
        {size.arm: float(weight) for size, weight in zip(line, weights, strict=True)}, heading
    )


def _scores(scored: Scored, sizes: Sequence[Size], names: Names, head: tuple[str, ...]) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    for size in sizes:
        own = scored.of(size.arm)
        losses = mean_of([one.loss for one in own]), mean_of([one.val_loss for one in own])
        concepts = f"{size.subjects} x {size.styles}"
        order = "" if len(size.orders) > 1 else f" {size.orders[0]}"
        what = f"{size.pairs}{order}, {concepts}"
        cells = scored.cells(size.arm)
        rows.append((what, *names(size.arm), concepts, len(own), *cells, *losses))
    for name in UNTRAINED:
        rows.append((name, *[""] * 3, 0, *scored.cells_of_method(name), None, None))  # noqa: PERF401
    return Sheet(
        "scores", "Scores by number of train pairs",
        ("trained on", *head, "concepts", "trainings", *SCORE_COLUMNS, "loss", "val loss"), rows,
        ("trained on", *scored.shown),
        (scored.note,
         "trained on: number of pairs, and subjects x styles in them; wide: of as many as there "
         f"are; narrow: all pairs of few. {scored.budget}"),
        SHARES,
    )  # fmt: skip


def _differences(scored: Scored, sizes: Sequence[Size]) -> Sheet:
    """Return the table of each size against the next smaller one, and of the orders."""
    compared = [
        (f"{order}: {larger.pairs} - {smaller.pairs} pairs", larger, smaller)
        for order in _orders(sizes)
        for smaller, larger in itertools.pairwise(_line(sizes, order))
    ]
    compared += [(f"{one.pairs} pairs: wide - narrow", one, other) for one, other in _forks(sizes)]
    rows: list[tuple[Value, ...]] = [
        (what, *scored.cells(one.arm, other.arm)) for what, one, other in compared
    ]
    return Sheet(
        "differences", "Differences, image by image", ("difference", *SCORE_COLUMNS), rows,
        ("difference", *scored.shown),
        (f"{len(rows)} comparisons: of so many intervals of 95 %, about one in twenty leaves out 0 "
         "by chance.",),
        SHARES,
    )  # fmt: skip


def _text(
    scored: Scored,
    sizes: Sequence[Size],
    trends: Mapping[tuple[Order, str], ThreeWays | None],
) -> str:
    smallest, largest = sizes[0], sizes[-1]
    first, last = (scored.mean(size.arm, "joint").best() for size in (smallest, largest))
    sentences = [
        f"Subject and style are both right in {spoken(last)} of the images with {largest.pairs} "
        f"train pairs and in {spoken(first)} with "
        f"{'one' if smallest.pairs == 1 else smallest.pairs} ({scored.trainings_in_words}, "
        f"{last.n} images each)."
    ]
    for order in _orders(sizes):
        trend = trends[order, "joint"]
        if trend is not None:
            sentences.append(
                f"In the {order} order each doubling of the pairs changes that by "
                f"{spoken(trend.best(), 3)}"
                f"{'' if clear_sign(trend.best()) else ', which could be nothing'}."
            )
    forks = _forks(sizes)
    if forks:
        tellings = [
            f"{spoken(scored.difference(one.arm, other.arm, 'joint').best())} with {one.pairs} "
            f"({one.subjects} x {one.styles} concepts against {other.subjects} x {other.styles})"
            for one, other in forks
        ]
        sentences.append(
            "At the same number of pairs, many concepts against few make a difference of "
            f"{'; '.join(tellings)}."
        )
    losses = [mean_of(scored.losses(size.arm)) for size in (smallest, largest)]
    if None not in losses:
        sentences.append(
            f"The loss on the val pairs is {losses[1]:.4f} with {largest.pairs} and "
            f"{losses[0]:.4f} with {smallest.pairs}."
        )
    sentences += [
        scored.untrained_in_words(),
        scored.deviations_in_words(largest.arm, f"{largest.pairs} train pairs"),
    ]
    return (
        " ".join(filter(None, sentences))
        + "\n\n**What this cannot say.** "
        + f"{scored.budget} More pairs are each seen less often, and a longer training could turn "
        "the order round. The settings are the suite's, which were chosen with all pairs. The wide "
        "order grows in number and in variety at once; only the difference of wide and narrow at "
        "one number is about variety alone, and where a suite has few concepts the two soon meet. "
        f"{scored.limits_in_words} The joint score moves in steps that a loss has not: the val "
        "loss may fall where no image changes its answer."
    )


def _figure(scored: Scored, sizes: Sequence[Size]) -> Figure:
    losses = any(scored.losses(size.arm) for size in sizes)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * (3 + losses), 3.7), layout="constrained")
        panels = figure.subplots(1, 3 + losses, sharex=True)
        for panel, heading in zip(panels, METRICS, strict=False):
            for place, order in enumerate(_orders(sizes)):
                _draw_scores(panel, scored, _line(sizes, order), heading, place, order)
            for style, name in zip(("--", ":"), UNTRAINED, strict=True):
                level = scored.method(name, heading).value
                if level is not None:
                    panel.axhline(level, color="#8a8a8a", linestyle=style, label=name)
            panel.set_ylim(bottom=0)
            panel.set_title(f"{heading} right", fontweight="bold")
        if losses:
            for place, order in enumerate(_orders(sizes)):
                _draw_losses(panels[-1], scored, _line(sizes, order), place)
            panels[-1].set_title("loss on val pairs", fontweight="bold")
        numbers = sorted({size.pairs for size in sizes})
        for panel in panels:
            panel.set_xscale("log", base=2)
            panel.set_xticks(numbers, [str(number) for number in numbers])
            panel.minorticks_off()
            panel.set_xlabel("train pairs")
        panels[0].set_ylabel("share of the images")
        handles, texts = panels[0].get_legend_handles_labels()
        order_of = sorted(range(len(texts)), key=lambda k: texts[k] in UNTRAINED)
        figure.legend(
            [handles[k] for k in order_of], [texts[k] for k in order_of],
            loc="outside lower center", ncols=4, fontsize=8,
        )  # fmt: skip
        return figure


def _draw_scores(
    panel: Axes, scored: Scored, line: Sequence[Size], heading: str, place: int, order: Order
) -> None:
    """Draw means with their intervals over pairs, and each training as a small mark."""
    x = _moved(line, place)
    y, errors = bars([scored.mean(size.arm, heading).pairs for size in line])
    label = f"{order} (bars: over pairs; small marks: trainings)"
    panel.errorbar(x, y, yerr=errors, color=COLORS[place], marker=MARKERS[place], markersize=5,
                   capsize=2, linewidth=1.5, label=label)  # fmt: skip
    for size, where in zip(line, x, strict=True):
        _marks(panel, where, scored.points(size.arm, heading), place)


def _draw_losses(panel: Axes, scored: Scored, line: Sequence[Size], place: int) -> None:
    x = _moved(line, place)
    y = [mean_of(scored.losses(size.arm)) for size in line]
    panel.plot(x, [np.nan if value is None else value for value in y], color=COLORS[place],
               marker=MARKERS[place], markersize=5, linewidth=1.5)  # fmt: skip
    for size, where in zip(line, x, strict=True):
        _marks(panel, where, scored.losses(size.arm), place)


def _moved(line: Sequence[Size], place: int) -> list[float]:
    """Return where a line's marks stand, so that those of two orders do not lie on each other."""
    return [size.pairs * (1.07 if place else 1 / 1.07) for size in line]


def _marks(panel: Axes, where: float, points: Sequence[float], place: int) -> None:
    panel.plot([where * 1.1] * len(points), points, linestyle="none", marker=MARKERS[place],
               markersize=3, markerfacecolor="none", color=COLORS[place], alpha=0.9)  # fmt: skip
