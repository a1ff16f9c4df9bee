"""Does the judge's answer hang on the wording, the order or the picture's quality?

The same images are asked about again and again, each time with one thing changed. Two baselines say
how to read the rest: identical repeats (what the judge changes for no reason) and a reference of
something else (what it must change). A judge that always says yes is perfectly robust.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mars2.judges import Judge, Verdict
from mars2.judges.prompts import Aspect
from mars2.references import References
from mars2.report.plots import COLORS
from mars2.stats import Estimate
from mars2.store import RunStore
from mars2.studies import runs
from mars2.studies.asking import ASPECTS, Asker, Plan, drawn
from mars2.studies.result import STYLE, Result, Sheet, Value, spoken
from mars2.studies.robustness import (
    ENOUGH,
    Answers,
    components_sheets,
    families_sheet,
    family_names,
    rankings_sheet,
    shares_of_yes,
    truth_sheet,
    variants_sheet,
)

BASELINES = ("repeat", "wrong reference")


def study_prompts(
    store: RunStore,
    plan: Plan,
    load: Callable[[], Judge],
    references: References,
    *,
    others: Mapping[str, Callable[[], Judge]] | None = None,
    batch_size: int = 64,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Return the study of a judge on a run's images.

    Args:
        store: The run.
        plan: What is asked.
        load: What loads the judge. Kept answers are not used for repeats.
        references: Of the run's concepts.
        others: What loads the plan's other judges, by name; each is loaded when the one before has
            been asked everything, and has been let go.
        batch_size: Questions put to a judge together.
        resamples: Bootstrap samples of pairs.
        seed: Of the resampling.
        progress: Called with the number of questions answered since the last call.

    Raises:
        JudgeError: A judge fails.
    """
    asker = Asker({"": load, **(others or {})}, references, batch_size, progress)
    truths = asker.known(plan)
    answers: dict[tuple[str, Aspect], list[Verdict]] = {}
    for variant in sorted((*plan.variants, *plan.crossed), key=lambda one: bool(one.judge)):
        for number, aspect in enumerate(ASPECTS):
            if variant.draw:
                rng = np.random.default_rng([seed, 2, variant.draw, number])
                answers[variant.name, aspect] = drawn(answers["usual", aspect], rng)
            else:
                answers[variant.name, aspect] = asker.about(plan.samples, variant, aspect)
    if not any(one.p_yes is not None for aspect in ASPECTS for one in answers["usual", aspect]):
        plan = replace(plan, variants=tuple(one for one in plan.variants if not one.draw))
    clusters = runs.Clusters.draw(
        [sample.case for sample in plan.samples], resamples=resamples, seed=seed
    )
    variants = variants_sheet(plan, answers, clusters)
    families = families_sheet(plan, answers, clusters)
    rankings = rankings_sheet(plan, answers)
    sources, decisions = components_sheets(plan, answers, clusters, seed)
    truth = truth_sheet(plan, truths, seed)
    sheets = (families, variants, rankings, sources, decisions, truth)
    return Result(
        "prompts", "Does the judge's answer hang on how it is asked?",
        _text(plan, asker.ids[""], families, variants, rankings, decisions, truth), sheets,
        {"prompts": _figure(plan, variants, answers)},
        {"run": str(store.folder), "judge": asker.ids[""], "images": len(plan.samples),
         "questions": plan.questions, "resamples": resamples, "seed": seed,
         "others": {name: id_ for name, id_ in asker.ids.items() if name}},
    )  # fmt: skip


def _number(value: Value) -> float:
    if isinstance(value, Estimate):
        value = value.value
    return float(value) if isinstance(value, int | float) else float("nan")


def _spoken(value: Value) -> str:
    return spoken(value) if isinstance(value, Estimate) else "-"


def _text(
    plan: Plan,
    judge: str,
    families: Sheet,
    variants: Sheet,
    rankings: Sheet,
    decisions: Sheet,
    truth: Sheet,
) -> str:
    sentences = [
        f"{judge.partition(' ')[0]} was asked {plan.questions} questions about "
        f"{len(plan.samples)} images."
    ]
    by_name = {str(row[0]): row for row in families.rows}
    for aspect in ASPECTS:
        own = [row for row in variants.rows if str(row[0]).startswith(f"{aspect}: ")]
        floor, wrong = (next(row for row in own if row[1] == family) for family in BASELINES)
        changed = [row for row in own if row[1] not in (*BASELINES, "usual")]
        worst = max(changed, key=lambda row: np.nan_to_num(_number(row[3]), nan=-1.0))
        unread = [str(row[0]).partition(": ")[2] for row in changed if _number(row[2]) < 0.9]
        wording = by_name[f"{aspect}: wording"]
        sentences.append(
            f"On the {aspect}, identical repeats flip {_number(floor[3]):.0%} of the answers, and "
            f"a wrong reference {_spoken(wrong[3])} of them (the usual share of yes is "
            f"{_number(own[0][5]):.2f}). Over {wording[1]} wordings all answers are alike in "
            f"{_spoken(wording[2])} of the images, alpha {_spoken(wording[3])}; what changes most "
            f"is {str(worst[0]).partition(': ')[2]} (flips {_spoken(worst[3])})."
        )
        if unread:
            sentences.append(
                f"Fewer than 90 % of the answers can be read for: {', '.join(unread)}."
            )
        tops = [
            str(row[0]).partition(": ")[2]
            for row in families.rows
            if str(row[0]).startswith(aspect) and row[7] and "wrong" not in str(row[0])
        ]
        sentences.append(
            f"Another method comes out on top under some change of: {', '.join(tops)}."
            if tops
            else "No change of how it is asked puts another method on top."
        )
        enough = [
            row for row in decisions.rows
            if row[0] == aspect and _number(row[4]) >= ENOUGH
        ]  # fmt: skip
        if enough:
            least = min(
                enough, key=lambda row: (_number(row[1]) * _number(row[2]), _number(row[1]))
            )
            sentences.append(
                f"Phi reaches {ENOUGH} with {least[1]} wording(s) and {least[2]} reference(s) "
                f"({_spoken(least[4])})."
            )
        elif decisions.rows:
            sentences.append(f"No number of wordings and references tried brings phi to {ENOUGH}.")
    harmed = [
        str(row[0]) for row in truth.rows
        if _number(row[3]) <= 0.05 and _number(row[2]) < 0
    ]  # fmt: skip
    if harmed:
        sentences.append(f"Known questions are answered worse, at 5 %, by: {', '.join(harmed)}.")
    limits = (
        "**What this cannot say.** Robust is not right: only the wrong reference and the known "
        "questions tell a judge that looks from one that does not. Wordings are ours, and a "
        "sample of nothing; a judge tuned on one wording may well fail at all others, which says "
        "little of judges that were trained on many. One reference is shown a question, so flips "
        "here are of answers and not of majorities."
    )
    return " ".join(sentences) + "\n\n" + limits


def _figure(plan: Plan, variants: Sheet, answers: Answers) -> Figure:
    families = family_names(plan)
    methods = list(dict.fromkeys(sample.method for sample in plan.samples))
    palette = {
        family: "#8a8a8a" if family in BASELINES
        else COLORS[[f for f in families if f not in BASELINES].index(family) % len(COLORS)]
        for family in families
    }  # fmt: skip
    with mpl.rc_context({**STYLE, "font.size": 9}):
        names = [one.name for one in plan.variants]
        figure = Figure(figsize=(11.5, 0.52 * len(names) + 1.6), layout="constrained")
        panels = figure.subplots(2, 2, width_ratios=(1, 1.25))
        for line, aspect in enumerate(ASPECTS):
            rows = [row for row in variants.rows if str(row[0]).startswith(f"{aspect}: ")][1:]
            left, right = panels[line]
            for k, row in enumerate(rows):
                value, color = row[3], palette[str(row[1])]
                if not isinstance(value, Estimate) or value.value is None:
                    continue
                left.barh(k, value.value, color=color, alpha=0.75)
                if value.low is not None and value.high is not None:
                    left.hlines(k, value.low, value.high, color="#222222", linewidth=1)
            left.set_yticks(range(len(rows)), [str(row[0]).partition(": ")[2] for row in rows])
            left.set_ylim(len(rows) - 0.5, -0.5)
            left.set_xlim(0, 1)
            left.set_xlabel("share of answers that flip" if line else "")
            left.set_title(f"{aspect}: against the usual way", fontweight="bold")
            table = np.stack([shares_of_yes(plan, answers[name, aspect]) for name in names])
            image = right.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=1)
            right.grid(visible=False)
            right.set_yticks(range(len(names)), names)
            right.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
            right.set_title(f"{aspect}: share of yes; dot: the top method", fontweight="bold")
            for k, row in enumerate(table):
                if not np.isnan(row).all() and np.nanmax(row) > np.nanmin(row):
                    right.plot(int(np.nanargmax(row)), k, "o", color="#d55e00", markersize=4)
            figure.colorbar(image, ax=right)
        return figure
