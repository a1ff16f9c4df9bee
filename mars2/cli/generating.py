"""What commands that draw or train do: check the plan, show it, carry it out."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmark_data.suite import Suite
from mars2.cli.measuring import Scoring, check_scoring, fetch_models, find_model
from mars2.cli.progress import progress
from mars2.cli.threads import fit_threads
from mars2.job import Choices, RunError, RunSpec, plan
from mars2.store import RunStore

if TYPE_CHECKING:  # they import torch or much else, which `--help` has no time for
    from baselines.denoiser import Denoiser
    from mars2.prepare import Plan

T = TypeVar("T")


def show_plan(suite: str, choices: Choices, out: Path, scoring: Scoring | None = None) -> None:
    """Check a run, and the scoring if there is one; print its jobs and which of them are done."""
    from mars2.run import rehearse, unfinished

    run_plan = checked_plan(suite, choices, scoring)
    store, run_plan = _open(run_plan, out, write=False)
    spec = run_plan.spec
    jobs = plan(spec)
    rehearse(run_plan, store)
    todo = {job.id for job in unfinished(store, jobs)}
    print(f"suite   {spec.suite} {spec.suite_revision}, split {spec.split}")
    print(f"model   {spec.model} {spec.model_revision}, {spec.dtype} on {spec.device}")
    print(f"images  {len(spec.seeds)} a job, {spec.resolution} pixels, {spec.steps} steps")
    for job in jobs:
        print(f"{job.id}  {'to do' if job.id in todo else 'done '}  {job.case_id}  {job.method}")
    print(f"{len(jobs)} jobs, {len(todo)} to do, {len(todo) * len(spec.seeds)} images")


def checked_plan(suite: str, choices: Choices, scoring: Scoring | None) -> "Plan":
    """Return the plan of a run, the scoring checked as well if there is one; see `prepare`."""
    from benchmark_data.load import load_suite
    from mars2.prepare import prepare

    loaded = load_suite(suite)
    checks: list[Callable[[], object]] = []
    if scoring is not None:
        check_scoring(loaded, scoring)
        settings = scoring.settings(loaded)
        checks = [partial(find_model, name, settings) for name in scoring.names]
    return prepare(suite, loaded, choices, scored=scoring is not None, checks=checks)


def _open(run_plan: "Plan", out: Path, *, write: bool = True) -> "tuple[RunStore, Plan]":
    """Return the store of a run, and its plan with the pairs and seeds that the run has."""
    store = RunStore.create(out, run_plan.spec, write=write)
    for note in store.notes:
        sys.stderr.write(f"mars2: {note}\n")
    run = store.spec
    return store, run_plan.within(run) if isinstance(run, RunSpec) else run_plan


def generate(
    suite: str,
    choices: Choices,
    out: Path,
    *,
    batch_size: int,
    save_adapters: bool = False,
    scoring: Scoring | None = None,
) -> RunStore:
    """Run what is not done yet of a run, and return its store.

    Args:
        suite: Name or path of the suite.
        choices: What to run.
        out: The run's folder.
        batch_size: Images drawn at once.
        save_adapters: Whether merged adapters are kept.
        scoring: How the images will be scored, to be checked before any is drawn.
    """
    return carry_out(
        checked_plan(suite, choices, scoring),
        out,
        batch_size=batch_size,
        save_adapters=save_adapters,
        scoring=scoring,
    )


def carry_out(
    run_plan: "Plan",
    out: Path,
    *,
    batch_size: int,
    save_adapters: bool = False,
    scoring: Scoring | None = None,
) -> RunStore:
    """Do what is not done yet of a plan, and return its store; see `generate`."""
    from mars2.pipelines import SdxlPipeline
    from mars2.run import run, save_adapters_of, unfinished, unsaved

    if scoring is not None:
        fetch_models(run_plan.suite, scoring)
    store, run_plan = _open(run_plan, out)
    planned = plan(run_plan.spec)
    jobs = unfinished(store, planned)
    merges = unsaved(run_plan, store) if save_adapters else []
    pipeline = None
    fit_threads(run_plan.spec.model)
    if jobs or any(run_plan.methods[job.method].kind == "fit" for job in merges):
        pipeline = SdxlPipeline.of_spec(run_plan.spec, batch_size=batch_size)
        with progress(
            "generate", unit="job", total=len(planned), done=len(planned) - len(jobs)
        ) as bar:
            for cost in run(
                run_plan, store, pipeline, batch_size=batch_size, save_adapters=save_adapters
            ):
                bar.set_postfix_str(f"{cost.case} {cost.method}", refresh=False)
                bar.update()
    for _ in save_adapters_of(run_plan, store, pipeline, merges):
        pass
    return store


def load_denoiser(suite: Suite, model: str | None, *, dtype: str | None, device: str) -> "Denoiser":
    """Load the base model to train on, see `mars2.run.load_denoiser`, with fitting threads."""
    from mars2.run import load_denoiser

    fit_threads(model or suite.models.base)
    return load_denoiser(suite, model, dtype=dtype, device=device)


def training_settings(kind: type[T], suite: Suite, table: str, given: Mapping[str, object]) -> T:
    """Return the settings of a training: what was given, else the suite's, else the defaults."""
    options = {
        **suite.training.get(table, {}),
        **{name: value for name, value in given.items() if value is not None},
    }
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise RunError(f"{table} of suite {suite.name} cannot be trained so: {error}") from error
