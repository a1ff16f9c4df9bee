"""The tables of a report as data; `terminal` prints them, `html` puts them on a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from mars2.controls import Aspect, Controls
from mars2.report.formatting import EMPTY, count, seconds, signed, size_in_bytes, superscript, words
from mars2.report.summary import (
    BY_REFERENCE,
    CORRECTED,
    MethodSummary,
    ScoreSummary,
    Source,
    Summary,
)
from mars2.report.verdicts import PUBLISHED_JUDGE, is_published
from mars2.stats import LEVEL, RESAMPLES, Estimate
from mars2.wording import listed

FEW_PAIRS = 20  # below it, intervals by the bootstrap are clearly too narrow


@dataclass(frozen=True)
class Cell:
    """A number, its interval in brackets (or ""), and whether it is the best of its column."""

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row; where `group` changes from one row to the next, a line is drawn."""

    label: str
    cells: tuple[Cell, ...]
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table: `corner` heads the column of the rows' labels, `notes` are printed below."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def mars2_table(summary: Summary, judge: str) -> Table:
    """Return the headline table of one judge: joint, subject, style, best of N, differences."""
    sources = summary.mars2(judge)
    joint = sources[0]
    images = summary.images_per_case[1]
    columns = [source.heading for source in sources]
    cells = {
        method.label: [
            cell(_average(method, source), source, best=method in _leaders(summary, source))
            for source in sources
        ]
        for method in summary.methods
    }
    notes = [
        f"MARS2: share of images whose subject and style are both right, in %; {size(summary)}."
    ]
    by_reference = [s.heading for s in sources if s.metric in BY_REFERENCE.values()]
    if by_reference:
        notes.append(
            f"{', '.join(by_reference)}: mean share of an image's references that say yes."
        )
    if images > 1:
        columns.append(f"best of {images}")
        notes.append(f"best of {images}: share of pairs with at least one right image.")
        for method in summary.methods:
            score = method.scores.get(joint)
            cells[method.label].append(cell(score.best_of_n if score else None, joint))
    if joint == summary.sources[0] and summary.reference and len(summary.methods) > 1:
        columns.append("vs. best")
        notes.append(
            f"vs. best: difference to {summary.reference} in points, on the same pairs and seeds; "
            "where its interval contains 0, the two are not told apart."
        )
        apart = []
        for method in summary.methods:
            score = method.scores.get(joint)
            cells[method.label].append(difference_cell(score, joint))
            if score and score.difference and not score.difference.n:
                apart.append(method.label)
        if apart:
            notes.append(f"vs. best: {EMPTY} where no pair and seed is in both ({listed(apart)}).")
    if any(method.cost for method in summary.methods):
        columns += ["merge", "image"]
        for method in summary.methods:
            cost = method.cost
            cells[method.label] += [
                Cell(seconds(cost.merge_seconds) if cost else EMPTY),
                Cell(seconds(cost.image_seconds) if cost else EMPTY),
            ]
    return Table(
        "MARS2",
        "method",
        tuple(columns),
        _method_rows(summary, cells),
        (
            *notes,
            interval_note(summary),
            judge_note(judge),
            *_close_note(summary, judge),
            *_reference_note(summary),
            *_gaps(summary, sources),
        ),
    )


def corrected_table(summary: Summary, judge: str) -> Table | None:
    """Return the shares of yes, raw and corrected for the judge's errors; None if not known."""
    controls = summary.controls.get(judge)
    if controls is None:
        return None
    source = Source("mars2_subject_yes", judge)
    columns, cells = [], {method.label: list[Cell]() for method in summary.methods}
    for name in CORRECTED:
        columns += [f"{name} yes", f"{name} corrected"]
        for method in summary.methods:
            share = method.corrected[judge][name]
            cells[method.label] += [cell(share.raw, source), cell(share.corrected, source)]
    return Table(
        "Corrected for the judge's errors",
        "method",
        tuple(columns),
        _method_rows(summary, cells),
        (
            "yes: mean share of an image's references that say yes, in %; both: that its subject's "
            "and its style's do. corrected: the share of images that would truly show it if the "
            "judge erred on them as it does on references (Rogan and Gladen 1978), clipped to 0 "
            "and 100; generated images are harder. both takes the errors of the two questions as "
            "independent.",
            "MARS2 and its parts are majorities, and not corrected: how often answers about one "
            "image err together is not known.",
            *(_errors_note(controls, aspect) for aspect in controls.tallies),
            interval_note(summary)
            + " corrected: over the concepts of the known questions, too."
            * (len(summary.cases) > 1),
        ),
    )


def _errors_note(controls: Controls, aspect: Aspect) -> str:
    source = Source("mars2_subject_yes", controls.judge)
    told = []
    for name, estimate in (
        ("sensitivity", controls.sensitivity(aspect)),
        ("specificity", controls.specificity(aspect)),
    ):
        number = cell(estimate, source)
        text = f"{name} {number.text} {number.interval}".strip()
        told.append(f"{text} of {estimate.n}" if estimate.n else f"{name} not known")
    less = "" if controls.correctable(aspect) else "; that tells nothing, so nothing is corrected"
    return (
        f"The judge's {aspect} question on the references of {controls.suite} "
        f"{controls.suite_revision}: {', '.join(told)}{less}."
    )


def controls_table(controls: Controls) -> Table:
    """Return how often a judge errs: a row a question and what is compared."""
    source = Source("mars2_subject_yes", controls.judge)
    rows = []
    for aspect, tallies in controls.tallies.items():
        for compared in dict.fromkeys(tally.compared for tally in tallies):
            same = compared == "itself"
            estimate = (
                controls.sensitivity(aspect) if same else controls.specificity(aspect, compared)
            )
            number = cell(estimate, source)
            rows.append(
                Row(
                    f"{aspect}, {'another image of it' if same else compared}",
                    (
                        Cell("yes" if same else "no"),
                        Cell(number.text, number.interval),
                        Cell(str(estimate.n)),
                        Cell(str(estimate.n_unscored)),
                        Cell(str(estimate.n_clusters)),
                    ),
                    aspect,
                )
            )
    pooled = []
    for aspect in controls.tallies:
        sensitivity, specificity = controls.sensitivity(aspect), controls.specificity(aspect)
        words_ = [cell(one, source) for one in (sensitivity, specificity)]
        pooled.append(
            f"{aspect}: sensitivity {words_[0].text} {words_[0].interval}, specificity "
            f"{words_[1].text} {words_[1].interval}"
            + ("." if controls.correctable(aspect) else "; shares cannot be corrected by that.")
        )
    return Table(
        "Questions whose answer is known",
        "compared",
        ("right answer", "right", "answers", "unscored", "concepts"),
        tuple(rows),
        (
            *pooled,
            f"[low, high]: {LEVEL:.0%} interval, bootstrap over subjects or styles "
            f"({RESAMPLES} resamples); it has no width where all are alike.",
            f"References of {controls.suite} {controls.suite_revision}, compared with each other: "
            "generated images are harder.",
            judge_note(controls.judge),
        ),
    )


def similarity_table(summary: Summary) -> Table | None:
    """Return the table of CLIP, DINO and whatever is no share of images; None if there is none."""
    sources = summary.similarities
    if not sources:
        return None
    judges = list(dict.fromkeys(source.judge for source in sources))
    marks = {judge: superscript(number) for number, judge in enumerate(judges, start=1)}
    cells = {
        method.label: [
            cell(_average(method, source), source, best=method in _leaders(summary, source))
            for source in sources
        ]
        for method in summary.methods
    }
    return Table(
        "Similarities",
        "method",
        tuple(f"{source.heading} {marks[source.judge]}" for source in sources),
        _method_rows(summary, cells),
        (
            *(f"{marks[judge]} {judge}" for judge in judges),
            "Cosines: a copy of the style image is best in CLIP-I style, a photo of the subject in "
            "DINO subject; neither is a good merge.",
            interval_note(summary),
            *_gaps(summary, sources),
        ),
    )


def concept_table(summary: Summary, source: Source) -> Table:
    """Return one score by subject and by style: a row a concept, a column a method."""
    rows = []
    for role, concepts in (("subject", summary.subjects), ("style", summary.styles)):
        for concept in concepts:
            cells = []
            for method in summary.methods:
                score = method.scores.get(source)
                by_concept = {} if score is None else getattr(score, f"{role}s")
                cells.append(cell(by_concept.get(concept), source))
            rows.append(Row(words(concept), tuple(cells), role))
    names = {"mars2": "MARS2", "mars2_subject": "Subject accuracy", "mars2_style": "Style accuracy"}
    return Table(
        f"{names.get(source.metric, source.heading)} by subject and by style",
        "",
        tuple(method.label for method in summary.methods),
        tuple(rows),
        (interval_note(summary),),
    )


def cost_table(summary: Summary) -> Table | None:
    """Return what each method took; None if nothing is known."""
    costs = [method.cost for method in summary.methods if method.cost is not None]
    if not costs:
        return None
    cells = {}
    for method in summary.methods:
        cost = method.cost
        cells[method.label] = [
            Cell(text)
            for text in (
                [EMPTY] * 6
                if cost is None
                else [
                    str(cost.jobs),
                    seconds(cost.merge_seconds),
                    seconds(cost.image_seconds),
                    size_in_bytes(cost.merge_peak_bytes),
                    size_in_bytes(cost.peak_bytes),
                    count(cost.parameters),
                ]
            )
        ]
    memory = ", ".join(dict.fromkeys(cost.memory for cost in costs))
    return Table(
        "Costs",
        "method",
        ("merges", "a merge", "an image", "peak, merging", "peak, all", "stored"),
        _method_rows(summary, cells),
        (
            "Mean times; merging includes any fit to the pair. Highest memory of any job "
            f"({memory}), base model included. Stored: numbers kept of a merged adapter, "
            "or of all that a policy weighs while it draws.",
        ),
    )


def _method_rows(summary: Summary, cells: dict[str, list[Cell]]) -> tuple[Row, ...]:
    return tuple(
        Row(method.label, tuple(cells[method.label]), "control" if method.control else "method")
        for method in summary.methods
    )


def _average(method: MethodSummary, source: Source) -> Estimate | None:
    score = method.scores.get(source)
    return None if score is None else score.average


def _leaders(summary: Summary, source: Source) -> list[MethodSummary]:
    """Return the methods, controls left out, with the highest value of a column.

    None leads where all are equal.
    """
    values = {
        method.label: round(average.value, 9)
        for method in summary.methods
        if not method.control
        and (average := _average(method, source)) is not None
        and average.value is not None
    }
    if len(set(values.values())) < 2:
        return []
    return [m for m in summary.methods if values.get(m.label) == max(values.values())]


def _gaps(summary: Summary, sources: Sequence[Source]) -> list[str]:
    """Return a line each on unscored images, images not scored yet, and missing ones."""
    parts = []
    unscored = [
        f"{method.label} {score.average.n_unscored} ({source.heading})"
        for source in sources
        if source.metric not in BY_REFERENCE.values()
        for method in summary.methods
        if (score := method.scores.get(source)) and score.average.n_unscored
    ]
    if unscored:
        parts.append(f"Unscored images, in no mean: {', '.join(unscored)}.")
        if any("(CLIP-T)" in one for one in unscored):
            parts.append("CLIP-T needs prompts: a run has them, or a --manifest's column prompt.")
    pending = [
        f"{method.label} {waiting}"
        for method in summary.methods
        if method.images and (waiting := max(_pending(method, source) for source in sources))
    ]
    if pending:
        parts.append(f"Images not scored yet: {', '.join(pending)}.")
    missing = [f"{method.label} {method.missing}" for method in summary.methods if method.missing]
    if missing:
        parts.append(f"Images missing: {', '.join(missing)}.")
    return parts


def _pending(method: MethodSummary, source: Source) -> int:
    score = method.scores.get(source)
    return method.images if score is None else score.pending


def _reference_note(summary: Summary) -> list[str]:
    if not summary.references:
        return []
    parts = [f"{words(concept)} {number}" for concept, number in summary.references.items()]
    return [
        f"References shown to the judge: {', '.join(parts)}; right means more than half say yes."
    ]


def _close_note(summary: Summary, judge: str) -> list[str]:
    number = summary.close.get(judge, 0)
    if not number:
        return []
    return [
        f"Close answers: {number}, decided by a margin that half precision alone may move; on "
        "another machine they may turn."
    ]


def judge_note(judge: str) -> str:
    """Return a line that names the judge, and says if it is not the published one."""
    if is_published(judge):
        return f"Judge: {judge}; the published one, asked with the questions of that digest."
    return (
        f"Judge: {judge}. Not the published judge ({PUBLISHED_JUDGE}): compare these numbers with "
        "each other, not with published ones."
    )


def interval_note(summary: Summary) -> str:
    """Return a line that says what the brackets are."""
    pairs = len(summary.cases)
    if pairs < 2:
        return "One pair: no intervals."
    note = f"[low, high]: {LEVEL:.0%} interval, bootstrap over pairs ({RESAMPLES} resamples)."
    if pairs < FEW_PAIRS:
        note += (
            f" Of only {pairs} pairs it is too narrow; one of no width says that all pairs agree, "
            "not that the score is certain."
        )
    return note


def size(summary: Summary) -> str:
    """Return how much was measured, such as "4 pairs x 8 images a method"."""
    low, high = summary.images_per_case
    images = f"{low}" if low == high else f"{low} to {high}"
    pairs = len(summary.cases)
    return f"{pairs} pair{'s' * (pairs != 1)} x {images} image{'s' * (high != 1)} a method"


def cell(estimate: Estimate | None, source: Source, *, best: bool = False) -> Cell:
    """Return a mean with its interval: a share in %, another score with three decimals."""
    if estimate is None or estimate.value is None:
        return Cell(EMPTY)
    form = "{:.0%}" if source.is_share else "{:.3f}"
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        ends = form.format(estimate.low), form.format(estimate.high)
        interval = f"[{ends[0].rstrip('%')}, {ends[1].rstrip('%')}]"
    return Cell(form.format(estimate.value), interval, best)


def difference_cell(score: ScoreSummary | None, source: Source) -> Cell:
    """Return a paired difference, with signs: points if the score is a share."""
    if score is None or score.difference is None or score.difference.value is None:
        return Cell(EMPTY)
    value, low, high = (
        None if number is None else signed(number, points=source.is_share)
        for number in (score.difference.value, score.difference.low, score.difference.high)
    )
    return Cell(str(value), "" if low is None else f"[{low}, {high}]")
