"""Writes report.html: one page with all tables, plots and pictures in it, and no network needed."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mars2.job import RunSpec
from mars2.report.formatting import words
from mars2.report.grid import Grid
from mars2.report.pictures import Album
from mars2.report.plots import interval_plot, trade_off_plot
from mars2.report.summary import MARS2, Source, Summary
from mars2.report.tables import (
    FEW_PAIRS,
    cell,
    concept_table,
    corrected_table,
    cost_table,
    mars2_table,
    similarity_table,
    size,
)
from mars2.report.verdicts import PUBLISHED_JUDGE, is_published, questions
from mars2.store import ImagesSpec, RunStore


def write_html(
    store: RunStore,
    summary: Summary,
    grid: Grid,
    references: Mapping[str, Sequence[Path]],
    path: Path,
) -> None:
    """Write the page, atomically: the same bytes for the same store.

    Raises:
        RunError: An image cannot be read.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"words": words, "breakable": breakable}
    album = Album(store, summary, references)
    mars2 = [
        source
        for source in summary.sources
        if source.metric in MARS2 and source.judge == summary.judges[0]
    ]
    by_metric = {source.metric: source for source in mars2}
    page = environment.get_template("report.html.j2").render(
        title=_title(store.spec),
        summary=summary,
        size=size(summary),
        findings=findings(summary),
        headlines=[
            table
            for judge in summary.judges
            for table in (mars2_table(summary, judge), corrected_table(summary, judge))
            if table is not None
        ],
        similarity=similarity_table(summary),
        intervals=interval_plot(summary, mars2 or summary.sources[:3]) if summary.sources else None,
        trade_off=(
            trade_off_plot(summary, by_metric["mars2_subject"], by_metric["mars2_style"])
            if {"mars2_subject", "mars2_style"} <= by_metric.keys()
            else None
        ),
        grid=grid,
        reference_rows=album.reference_rows(grid),
        grid_rows=album.grid_rows(grid),
        concepts=[concept_table(summary, source) for source in mars2 or summary.sources[:1]],
        costs=cost_table(summary),
        examples=album.examples(),
        questions=questions(summary.judges[0]) if summary.judges else {},
        limits=limits(summary),
        facts=_facts(store.spec),
        methods=_methods(store.spec),
        spec=json.dumps(store.spec.to_json(), indent=2, ensure_ascii=False),
    )
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def breakable(label: str) -> Markup:
    """Return a label as HTML that may be broken behind ":", "," and "_".

    >>> breakable("a:b<c")
    Markup('a:<wbr>b&lt;c')
    """
    return Markup("").join(
        part if part not in (":", ",", "_") else Markup("{}<wbr>").format(part)
        for part in re.split("([:,_])", label)
    )


def findings(summary: Summary) -> list[str]:
    """Return in sentences what the first column says: who leads, and who is not told apart."""
    best = next((m for m in summary.methods if m.label == summary.reference), None)
    if best is None:
        return []
    source = summary.sources[0]
    number = cell(best.scores[source].average, source)
    told = f"{number.text} {number.interval}".strip()
    if source.metric == "mars2":
        told = f"{told} of its images are right in subject and style"
    else:
        told = f"{source.heading} {told}"
    others = [m for m in summary.methods if not m.control and m.label != best.label]
    same = summary.not_told_apart()
    values = _merges(summary, source)
    first = [label for label, value in values.items() if value == values[best.label]]
    named = f"{', '.join(first[:-1])} and {first[-1]}" if len(first) > 1 else best.label
    lines = [f"{'Best' if len(summary.methods) > 1 else 'Scored'}: {named}, {told}."]
    if others and len(set(values.values())) == 1:
        lines = [f"No method is the best, each comes to the same: {told}."]
    elif others and len(summary.cases) < 2:
        lines.append("One pair tells no two methods apart.")
    elif same:
        lines.append(f"Not told apart from it on these pairs: {', '.join(same)}.")
    elif others:
        lines.append("Its difference to every other method excludes 0.")
    controls = {
        m.label: average.value
        for m in summary.methods
        if m.control
        and source in m.scores
        and (average := m.scores[source].average).value is not None
    }
    if controls and not best.control:
        tops = [label for label in controls if controls[label] == max(controls.values())]
        text = cell(
            next(m for m in summary.methods if m.label == tops[0]).scores[source].average, source
        )
        lines.append(
            f"The best control, with no merge at all, is {tops[0]}: {text.text}."
            if len(tops) == 1
            else f"The best controls, with no merge at all, are {', '.join(tops)}: "
            f"{text.text} each."
        )
    return lines


def _merges(summary: Summary, source: Source) -> dict[str, float]:
    """Return a score of the reference method and of all that are no controls, less float noise."""
    return {
        method.label: round(average.value, 9)
        for method in summary.methods
        if (method.label == summary.reference or not method.control)
        and source in method.scores
        and (average := method.scores[source].average).value is not None
    }


def limits(summary: Summary) -> list[str]:
    """Return in sentences what the numbers of a summary cannot say."""
    lines = [
        f"The judge {judge} is not the published one ({PUBLISHED_JUDGE}): its figures cannot be "
        "set beside published ones."
        for judge in summary.judges
        if not is_published(judge)
    ]
    if summary.judges:
        lines.append(
            "A judge errs, and the intervals know nothing of its errors. Its style question names "
            "the style, so an image that only follows the prompt may pass: see the controls."
        )
    if summary.controls:
        lines.append(
            "Corrected shares know of its errors on reference images. On generated ones, which are "
            "neither quite the subject nor quite another, it errs more often, as where the truth "
            "is known: they promise too much."
        )
    pairs = len(summary.cases)
    if pairs < FEW_PAIRS:
        lines.append(
            f"{pairs} pair{'s' * (pairs != 1)} {'are' if pairs != 1 else 'is'} few: an interval "
            "from so few is too narrow, has no width where all pairs agree, and is not given for "
            "a single one."
        )
    if len(summary.subjects) < pairs or len(summary.styles) < pairs:
        lines.append(
            "Pairs are drawn again as if each stood alone, but they share subjects and styles: "
            "for other subjects or styles the uncertainty is larger."
        )
    if summary.reference:
        means = _merges(summary, summary.sources[0])
        best = [label for label in means if means[label] == means[summary.reference]]
        if len(best) > 1:
            lines.append(
                f"{', '.join(best)} come out equal: the others are compared with "
                f"{summary.reference} because it stands first."
            )
        elif len(means) > 1:
            lines.append(
                f"{summary.reference} was picked as the best on the very images it is compared on, "
                "which flatters it."
            )
    counts = {summary.references[name] for name in summary.subjects if name in summary.references}
    if len(counts) > 1:
        lines.append(
            f"Subjects have {min(counts)} to {max(counts)} references and more than half of "
            "them must say yes: an even number is a harder bar than the odd one below it."
        )
    if any(s.average.n_unscored for method in summary.methods for s in method.scores.values()):
        lines.append(
            "Some scores could not be given; they are counted, and in no mean. If the images they "
            "belong to are harder than others, the means are too high."
        )
    lacking = [m.label for m in summary.methods if m.missing]
    if lacking:
        lines.append(
            f"Images are missing of {', '.join(lacking)}: methods are seen on different images, "
            "and only the paired differences compare like with like."
        )
    return lines


def _title(spec: RunSpec | ImagesSpec) -> str:
    suite = Path(spec.suite).stem if spec.suite.endswith(".toml") else spec.suite
    if isinstance(spec, RunSpec):
        return f"{suite}, {spec.split} pairs"
    name = Path(spec.source).name or spec.source
    return f"{name} on {suite}" if suite else name


def _facts(spec: RunSpec | ImagesSpec) -> list[tuple[str, str]]:
    """Return names and values of what was run, as text."""
    if isinstance(spec, ImagesSpec):
        facts = {
            "folder": spec.source,
            "suite": spec.suite,
            "suite revision": spec.suite_revision,
            "split": spec.split,
            "images": len(spec.images),
        }
    else:
        facts = {
            "suite": spec.suite,
            "suite revision": spec.suite_revision,
            "split": spec.split,
            "base model": spec.model,
            "model revision": spec.model_revision,
            "adapters": spec.adapters,
            "computed in": f"{spec.dtype} on {spec.device}",
            "resolution": f"{spec.resolution} pixels",
            "denoising steps": spec.steps,
            "guidance scale": spec.guidance_scale,
            "negative prompt": spec.negative_prompt,
            "seeds": ", ".join(map(str, spec.seeds)),
            **spec.environment,
        }
    return [(name, str(value)) for name, value in facts.items() if value not in ("", None)]


def _methods(spec: RunSpec | ImagesSpec) -> list[dict[str, Any]]:
    if isinstance(spec, ImagesSpec):
        return []
    return [
        {
            "label": method.label,
            "kind": method.kind,
            "options": ", ".join(f"{key} = {value}" for key, value in method.resolved.items()),
            "source": method.source,
        }
        for method in spec.methods
    ]
