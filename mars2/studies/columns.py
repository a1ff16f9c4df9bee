"""Do columns need coefficients of their own, and alone? LoRA.rar's network against its variants.

The paper's hypernetwork answers each column by itself, for queries and outputs, with an input layer
for each width. Each variant changes one of these and is trained as long on the same pairs in the
same order; only then are the scores of the networks about what was changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorarar.hypernet import PROJECTIONS
from lorarar.pairs import TrainingPair
from lorarar.train import HyperTraining
from mars2.job import RunError
from mars2.report.formatting import count, seconds
from mars2.report.plots import COLORS
from mars2.studies.arms import (
    METRICS,
    SCORE_COLUMNS,
    SHARES,
    Scored,
    bars,
    clear_sign,
    mean_of,
    trainings_sheet,
    variance_sheet,
)
from mars2.studies.result import STYLE, Result, Sheet, Value, spoken
from mars2.studies.trainings import UNTRAINED, Training

PAPER = "columns"


@dataclass(frozen=True)
class Variant:
    """A hypernetwork that differs from the paper's in one thing.

    Attributes:
        about: What it asks: "coefficients", "projections" or "input".
        told: What it is, in words.
        options: Of `HyperTraining`, where they are not the paper's.
    """

    about: str
    told: str
    options: Mapping[str, Any] = field(default_factory=dict)


VARIANTS: Mapping[str, Variant] = {
    PAPER: Variant("the paper's", "a column by itself; q and out; an input layer a width"),
    "attention": Variant("coefficients", "columns see each other", {"attention": True}),
    "whole-matrix": Variant(
        "coefficients", "one pair of coefficients a layer", {"whole_matrix": True}
    ),
    "q": Variant("projections", "q alone is predicted", {"projections": ("to_q",)}),
    "out": Variant("projections", "out alone is predicted", {"projections": ("to_out.0",)}),
    "k+v": Variant("projections", "k and v are predicted", {"projections": ("to_k", "to_v")}),
    "q+k+v+out": Variant(
        "projections", "all are predicted", {"projections": ("to_q", "to_k", "to_v", "to_out.0")}
    ),
    "single-input": Variant("input", "one input layer for all widths", {"single_input": True}),
    "features": Variant("input", "six features of a column, no width", {"reads": "features"}),
}
"""Name -> what it is; the paper's first."""


def plan_columns(
    pairs: Sequence[TrainingPair],
    names: Sequence[str],
    settings: HyperTraining,
    seeds: Sequence[int],
) -> list[Training]:
    """Return the trainings, the variants of each seed after one another, the paper's first.

    Args:
        pairs: What all are trained on.
        names: Of `VARIANTS`; (): all. The paper's is always among them.
        settings: Of every training, but for the variant and the seed.
        seeds: One training of each variant with each.

    Raises:
        RunError: There is no such variant.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise RunError(f"there is no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    chosen = [name for name in VARIANTS if not names or name in names or name == PAPER]
    plain = replace(
        settings,
        projections=PROJECTIONS,
        reads="columns",
        single_input=False,
        attention=False,
        whole_matrix=False,
    )
    return [
        Training(name, tuple(pairs), replace(plain, **VARIANTS[name].options, seed=seed))
        for seed in seeds
        for name in chosen
    ]


def study_columns(scored: Scored, inputs: Mapping[str, object] | None = None) -> Result:
    """Return the study of the variants of the hypernetwork.

    Args:
        scored: The scores of all trainings.
        inputs: For study.json.
    """
    arms = scored.arms()
    rows: list[tuple[Value, ...]] = [(arm, len(scored.of(arm)), *scored.cells(arm)) for arm in arms]
    rows += [(name, 0, *scored.cells_of_method(name)) for name in UNTRAINED]
    others = [arm for arm in arms if arm != PAPER]
    head = ("variant",)
    sheets = (
        Sheet(
            "scores", "Scores of the variants", (*head, "trainings", *SCORE_COLUMNS), rows,
            (*head, *scored.shown), (scored.note,), SHARES,
        ),
        Sheet(
            "budget", "What the variants are and take",
            (*head, "what it is", "loss", "val loss", "seconds", "parameters"),
            [(arm, VARIANTS[arm].told, *_costs(scored, arm)) for arm in arms],
            (*head, "what it is", "val loss", "seconds", "parameters"),
            (f"{scored.budget} val loss: merging loss on the suite's val pairs, without the "
             "regularizer. seconds: median of a step times the steps, on this machine with all "
             "that it did. Means over the trainings.",),
            {"seconds": seconds, "parameters": lambda value: count(int(value))},
        ),
        Sheet(
            "differences", f"Against the paper's network ({PAPER}), image by image",
            (*head, "about", *SCORE_COLUMNS),
            [(arm, VARIANTS[arm].about, *scored.cells(arm, PAPER)) for arm in others],
            (*head, *scored.shown),
            (f"{len(others)} comparisons: of so many intervals of 95 %, about one in twenty leaves "
             "out 0 by chance.",),
            SHARES,
        ),
        variance_sheet(scored, lambda arm: (arm,), head),
        trainings_sheet(scored, lambda arm: (arm,), head),
    )  # fmt: skip
    return Result(
        "columns", "Do columns need coefficients of their own, and alone?", _text(scored, others),
        sheets, {"columns": _figure(scored)}, {"judge": scored.judge, **(inputs or {})},
    )  # fmt: skip


def _costs(scored: Scored, arm: str) -> tuple[Value, ...]:
    own = scored.of(arm)
    return (
        mean_of([one.loss for one in own]),
        mean_of([one.val_loss for one in own]),
        mean_of([one.seconds for one in own]),
        own[0].parameters,
    )


def _text(scored: Scored, others: Sequence[str]) -> str:
    paper = scored.mean(PAPER, "joint").best()
    sentences = [
        f"The paper's network, whose columns are independent, has subject and style right in "
        f"{spoken(paper)} of the images ({scored.trainings_in_words}, {paper.n} images)."
    ]
    clear: list[str] = []
    for about, opening in (
        ("coefficients", "Coefficients that are not each column's own"),
        ("projections", "Predicting other projections"),
        ("input", "Reading the columns otherwise"),
    ):
        told = []
        for arm in (one for one in others if VARIANTS[one].about == about):
            gap = scored.difference(arm, PAPER, "joint").best()
            told.append(f"{arm} by {spoken(gap)}")
            if clear_sign(gap):
                clear.append(arm)
        if told:
            verb = "change" if about == "coefficients" else "changes"
            sentences.append(f"{opening} {verb} that: {'; '.join(told)}.")
    if others:
        sentences.append(f"Of these {len(others)} intervals {_clear(clear)} out 0.")
    sentences += [
        scored.untrained_in_words(),
        scored.deviations_in_words(PAPER, "the paper's network"),
    ]
    return (
        " ".join(filter(None, sentences))
        + "\n\n**What this cannot say.** "
        + f"{scored.budget} That is an equal number of steps, not of seconds or of parameters, "
        "which stand beside it: a larger network may need more steps. Learning rate and "
        "regularizer are the suite's, which were chosen for the paper's network, so that a variant "
        "that does worse may only be tuned worse. That attention gains nothing would not show that "
        "columns are independent: only that this way of looking at each other was of no use within "
        f"these steps. {scored.limits_in_words} A difference that could be nothing is no proof of "
        "equality: its interval tells how large it may be."
    )


def _clear(arms: Sequence[str]) -> str:
    if not arms:
        return "none leaves"
    many = "those of" if len(arms) > 1 else "that of"
    return f"{many} {' and '.join(arms)} {'leave' if len(arms) > 1 else 'leaves'}"


def _figure(scored: Scored) -> Figure:
    """Scores with their intervals over pairs, a panel a score, a line a variant."""
    arms = scored.arms()
    losses = any(scored.losses(arm) for arm in arms)
    with mpl.rc_context(STYLE):
        size = (2.9 * (3 + losses) + 0.8, 0.4 * len(arms) + 1.5)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, 3 + losses, sharey=True)
        colors = [COLORS[1] if arm == PAPER else COLORS[0] for arm in arms]
        for panel, heading in zip(panels, METRICS, strict=False):
            x, errors = bars([scored.mean(arm, heading).pairs for arm in arms])
            for row, arm in enumerate(arms):
                panel.errorbar(x[row], row, xerr=errors[:, row : row + 1], fmt="o", markersize=6,
                               color=colors[row], capsize=2, linewidth=1.5)  # fmt: skip
                _marks(panel, row, scored.points(arm, heading), colors[row])
            panel.axvline(x[0], color=COLORS[1], linewidth=1, alpha=0.6)
            for style, name in zip(("--", ":"), UNTRAINED, strict=True):
                level = scored.method(name, heading).value
                if level is not None:
                    panel.axvline(level, color="#8a8a8a", linestyle=style, label=name)
            panel.set_xlim(left=0)
            panel.set_xlabel("share of the images")
            panel.set_title(f"{heading} right", fontweight="bold")
        if losses:
            for row, arm in enumerate(arms):
                panels[-1].plot(mean_of(scored.losses(arm)), row, "o", color=colors[row])
                _marks(panels[-1], row, scored.losses(arm), colors[row])
            panels[-1].set_xlabel("merging loss")
            panels[-1].set_title("loss on val pairs", fontweight="bold")
        panels[0].set_yticks(range(len(arms)), arms)
        panels[0].set_ylim(len(arms) - 0.4, -0.6)
        handles, texts = panels[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=2, fontsize=8,
                      title="bars: over pairs; small marks: trainings",
                      title_fontsize=8)  # fmt: skip
        return figure


def _marks(panel: Axes, row: int, points: Sequence[float], color: str) -> None:
    panel.plot(points, [row + 0.25] * len(points), linestyle="none", marker="o", markersize=3,
               markerfacecolor="none", color=color)  # fmt: skip
