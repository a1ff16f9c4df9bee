"""What commands that score do: find images and models, ask, and report, with progress bars."""

import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from benchmark_data.suite import Suite
from mars2.cli.printing import make_console
from mars2.cli.progress import progress
from mars2.cli.threads import fit_threads, size_of
from mars2.job import RunError
from mars2.store import RUN_FILE, SCORES_FOLDER, RunStore
from mars2.wording import few

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")  # anything else is a folder

if TYPE_CHECKING:  # they import torch or much else, which `--help` has no time for
    from mars2.judges import ServerSettings
    from mars2.metrics import Identity, MetricSettings
    from mars2.references import References


@dataclass(frozen=True)
class Scoring:
    """How to score; see the options of `mars2 score`."""

    metrics: str = "mars2,clip,dino"
    judge: str | None = None
    layout: str = "anyres"
    dtype: str | None = None
    prompts: Path | None = None
    clip: str | None = None
    dino: str | None = None
    device: str = "auto"
    batch_size: int = 32
    suite: str | None = None
    base_url: str | None = None
    judge_timeout: float = 120.0
    judge_concurrency: int = 8
    judge_retries: int = 5
    judge_temperature: float = 0.0
    cache: bool = True

    @property
    def names(self) -> list[str]:
        """The metrics asked for."""
        return [name.strip() for name in self.metrics.split(",") if name.strip()]

    @property
    def server(self) -> "ServerSettings":
        """How to ask a judge that is behind a server."""
        from mars2.judges import ServerSettings

        return ServerSettings(
            base_url=self.base_url or "",
            timeout=self.judge_timeout,
            concurrency=self.judge_concurrency,
            retries=self.judge_retries,
            temperature=self.judge_temperature,
        )

    def settings(self, suite: Suite | None) -> "MetricSettings":
        """What the metrics are loaded with: what was asked for, else the suite's, else defaults."""
        from mars2.metrics import MetricSettings

        models = suite and suite.models
        chosen = {
            "judge": self.judge or (models and models.judge),
            "clip": self.clip or (models and models.clip),
            "dino": self.dino or (models and models.dino),
        }
        return MetricSettings(
            **{name: str(model) for name, model in chosen.items() if model},
            layout=self.layout,
            dtype=self.dtype,
            prompts=self.prompts,
            device=self.device,
            server=self.server,
            cache=self.cache,
        )


def check_scoring(suite: Suite | None, scoring: Scoring) -> None:
    """Find what is wrong in how images are to be scored, before they are drawn or any is asked.

    Args:
        suite: The images', if they are of one.
        scoring: How they will be scored.

    Raises:
        PluginError: There is no such metric or judge.
        JudgeError: A layout or a file of prompts that there is not, or a server that is not told or
            not wanted.
    """
    from mars2.judges import JUDGES, load_templates, refuse_server
    from mars2.judges.llava_onevision import check_layout
    from mars2.metrics import METRICS

    for name in scoring.names:
        METRICS.get(name)
    settings = scoring.settings(suite)
    if "mars2" in scoring.names:
        kind = str(settings.judge).partition(":")[0]
        JUDGES.get(kind)
        if kind != "openai":
            refuse_server(kind, scoring.server)
        check_layout(scoring.layout)
        if scoring.prompts is not None:
            load_templates(scoring.prompts)


def fetch_models(suite: Suite, scoring: Scoring) -> None:
    """Find the models that score, and download what is not here: it is needed after the drawing.

    Raises:
        JudgeError: One is not to be had.
    """
    for name in scoring.names:
        find_model(name, scoring.settings(suite), fetch=True)


def find_model(name: str, settings: "MetricSettings", *, fetch: bool = False) -> "Identity | None":
    """Find a metric's model, and return what is known of the metric.

    A model on the hub is let be, and nothing known, unless it is to be fetched, or cannot be.
    """
    from mars2.metrics import identify_metric

    if settings.model_of(name) and (fetch or _is_here(name, settings)):
        return identify_metric(name, settings)
    if name == "clip":
        from mars2.metrics.clip import check_source

        check_source(settings.clip)
    return None


def _is_here(name: str, settings: "MetricSettings") -> bool:
    """Return whether a metric's model need not be fetched from the hub, or cannot be."""
    from huggingface_hub import constants as hub

    kind, _, place = settings.model_of(name).partition(":")
    return bool(
        hub.HF_HUB_OFFLINE
        or kind in ("", "openai", "scripted")
        or not HUB_ID.fullmatch(place or kind)
        or size_of(place or kind) is not None
    )


def open_images(
    folder: Path,
    *,
    suite: str | None,
    split: str | None,
    manifest: Path | None,
    pair: tuple[Path | None, Path | None, str | None],
    out: Path | None,
    partial: bool,
    write: bool = True,
) -> RunStore:
    """Return the store of a run, or of the results of a folder of images.

    Nothing is written of a folder's matching if ``write`` is False.

    Raises:
        RunError: Options that do not go together, or images that cannot be matched.
    """
    from benchmark_data.load import load_suite
    from mars2.image_folder import match_folder, misplaced, read_manifest, single_pair, uneven

    subject_refs, style_refs, style_name = pair
    one_pair = subject_refs is not None or style_refs is not None or style_name is not None
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder")
    if (folder / RUN_FILE).exists():
        if manifest or one_pair or out or split:
            raise RunError(
                f"{folder} is a run and knows its pairs: leave out --manifest, --split, --out, "
                "--subject-refs, --style-refs and --style-name"
            )
        return RunStore.open(folder)
    out = out or folder / SCORES_FOLDER
    if one_pair:
        if subject_refs is None or style_refs is None or style_name is None or manifest:
            raise RunError(
                "for one pair give --subject-refs, --style-refs and --style-name, all three, "
                "and no --manifest"
            )
        shown = single_pair(folder, subject_refs, style_refs, style_name, out=out)
        return RunStore.create(out, shown, write=write)
    if suite is None:
        raise RunError(
            f"{folder} is no run: say which pairs it shows with --suite (and --manifest), or with "
            "--subject-refs, --style-refs and --style-name"
        )
    loaded = load_suite(suite)
    if manifest:
        listed = read_manifest(manifest, folder, suite, loaded, out=out, partial=partial)
        pairs = sorted({image.case for image in listed.images})
        if elsewhere := misplaced(listed.images, loaded):
            sys.stderr.write(
                f"mars2: {manifest} is believed, though folders' names say something else: "
                f"{few(elsewhere)}\n"
            )
    else:
        listed = match_folder(folder, suite, loaded, out=out, split=split, partial=partial)
        pairs = [case.id for case in loaded.cases[listed.split]]
    if others := uneven(listed.images, pairs):
        sys.stderr.write(f"mars2: {others}; the rates are those of the images that are there\n")
    return RunStore.create(out, listed, write=write)


def score(store: RunStore, scoring: Scoring, *, partial: bool = False) -> list[str]:
    """Score what has no score yet, one metric's model in memory at a time.

    Returns:
        Why scores of images could not be computed whole, such as a judge's server that is gone; one
        reason an image and metric.
    """
    from mars2.metrics import identify_metric, load_metric
    from mars2.score import check_images, unscored
    from mars2.score import score as score_images

    references, settings = _scored_with(store, scoring, partial)
    fit_threads(str(settings.judge), settings.clip, settings.dino)
    failed: list[str] = []
    checked = False
    # all models are found before the first is asked for hours
    identities = {name: identify_metric(name, settings) for name in scoring.names}
    for name, identity in identities.items():
        step = None
        if identity and not unscored(store, identity, references, partial=partial):
            continue
        if not checked:
            check_images(store, partial=partial)
            checked = True
        metric = load_metric(name, settings)
        with progress(name, unit="image") as bar:
            for step in score_images(
                store, metric, references, partial=partial, batch_size=scoring.batch_size
            ):
                bar.total = step.total
                bar.update(step.done - bar.n)
        failed += () if step is None else step.failed
    store.tidy()
    return failed


def show_scoring(store: RunStore, scoring: Scoring, *, partial: bool = False) -> None:
    """Check images and metrics; print what there is to score, and what has its scores already."""
    from mars2.score import check_images, present_samples, unscored

    references, settings = _scored_with(store, scoring, partial)
    identities = {name: find_model(name, settings) for name in scoring.names}
    check_images(store, partial=partial)
    samples = present_samples(store, partial=partial)
    cases, methods = ({getattr(s, field) for s in samples} for field in ("case", "method"))
    place = getattr(store.spec, "source", store.folder)
    print(
        f"images  {len(samples)} in {place}: {_count(cases, 'pair')}, {_count(methods, 'method')}"
    )
    for role in ("subject", "style"):
        concepts = {getattr(sample, role) for sample in samples}
        numbers = sorted({len(references.files[concept]) for concept in concepts})
        span = " to ".join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))
        noun = "reference" if span == "1" else "references"
        print(f"beside  {span} {noun} each of {_count(concepts, role)}")
    for name, identity in identities.items():
        there = _is_here(name, settings)
        todo = unscored(store, identity, references, partial=partial) if identity else samples
        line = f"{name:7} {len(todo)} to score, {len(samples) - len(todo)} have scores"
        if name == "mars2":
            shown = (references.files[c] for s in todo for c in (s.subject, s.style))
            line += f"; {sum(map(len, shown))} questions"
        model = identity.id if identity else settings.model_of(name) or name
        print(f"{line}; {model}{'' if there else ', to be fetched from the hub'}")


def _count(things: Collection[str], noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"


def _scored_with(
    store: RunStore, scoring: Scoring, partial: bool
) -> "tuple[References, MetricSettings]":
    """Return what images are compared with and the metrics' settings; find what is wrong first."""
    from benchmark_data.load import load_suite
    from mars2.references import find_references
    from mars2.score import present_samples

    suite = scoring.suite or store.spec.suite
    loaded = load_suite(suite) if suite else None
    check_scoring(loaded, scoring)
    references = find_references(store, scoring.suite)
    present_samples(store, partial=partial)
    return references, scoring.settings(loaded)


def exit_if_failed(failed: Sequence[str]) -> None:
    """End a command with exit code 1 and a line that says why, if scores failed."""
    if failed:
        reason = " ".join(failed[0].split())
        sys.stderr.write(
            f"mars2: {len(failed)} images are not scored whole: {reason}; the same command again "
            "scores just those\n"
        )
        raise typer.Exit(1)


def report(
    store: RunStore,
    suite: str | None = None,
    *,
    controls: Sequence[Path] | None = None,
    brief: bool = False,
) -> None:
    """Write scores.json, report.html and grid.png; print the tables and where the files lie.

    Args:
        store: A run, or the results of a scored folder of images.
        suite: Where the suite lies now; None: where it lay then.
        controls: Files of `mars2 judge check`; None: those in the user's cache, if there are any.
        brief: Print the first table only; the page has them all.
    """
    from benchmark_data.suite import SuiteError
    from mars2.controls import find_controls, read_controls
    from mars2.references import find_references
    from mars2.report import summarise, terminal_table, write_report

    try:
        references = find_references(store, suite).files
    except (RunError, SuiteError) as error:
        sys.stderr.write(f"mars2: the report shows no references: {error}\n")
        references = {}
    known = (
        find_controls(summarise(store).judges, store.spec.suite_revision)
        if controls is None
        else [read_controls(path) for path in controls]
    )
    summary = summarise(store, known)
    paths = write_report(store, summary, references=references)
    terminal_table(summary, make_console(), brief=brief)
    for path in (paths.scores, paths.grid, paths.html):
        print(path)
