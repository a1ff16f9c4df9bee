"""Runs a plan: skips finished jobs, merges, draws, saves, and keeps what each job cost."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from baselines.adapter import AdapterError, LoraAdapter, check_same_layers
from baselines.denoiser import Denoiser
from baselines.formats import load_adapter, save_adapter
from baselines.merging_loss import PairTask
from baselines.policy import Policy
from baselines.registry import MergeMethod, PluginError
from benchmark_data.references import open_image, reference_paths
from benchmark_data.suite import Concept, Suite
from mars2.executor import map_jobs
from mars2.files import write_image
from mars2.job import Job, RunError, plan
from mars2.memory import PeakMemory
from mars2.pipelines import Pipeline, find_model
from mars2.prepare import Plan, find_device
from mars2.quiet import no_bars
from mars2.store import Cost, RunStore

MERGED = "the merge made them, of adapters that are finite"  # ends the refusal of a merged adapter


def unfinished(store: RunStore, jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs of which an image or the line in costs.jsonl is missing."""
    costed = {cost.job for cost in store.costs()}
    return [
        job
        for job in jobs
        if job.id not in costed
        or not all(store.image_path(job.method, job.case_id, seed).is_file() for seed in job.seeds)
    ]


def run(
    run_plan: Plan,
    store: RunStore,
    pipeline: Pipeline,
    *,
    batch_size: int = 1,
    save_adapters: bool = False,
) -> Iterator[Cost]:
    """Do the unfinished jobs of a plan, one at each step of the iteration; yield what each cost.

    A job's images are written before its costs: a job cut short is done again as a whole. Before
    the first image every method is tried, so that one that fails does not fail after hours.

    Raises:
        RunError: An image is black or not finite.
        SuiteError: A reference image that a method is fitted to is missing.
        AdapterError: An adapter that a method or the base model cannot take.
    """
    worker = _Worker(run_plan, store, pipeline, batch_size, save_adapters)
    jobs = unfinished(store, plan(run_plan.spec))
    worker.rehearse(jobs)
    for cost in map_jobs(worker.do, jobs):
        store.append_cost(cost)
        yield cost


def rehearse(run_plan: Plan, store: RunStore) -> None:
    """Merge the first unfinished pair of each method that does not optimise; write nothing.

    Raises:
        AdapterError, PluginError, RunError: What a method raises.
    """
    worker = _Worker(run_plan, store, None, batch_size=1, save=False)
    worker.rehearse(unfinished(store, plan(run_plan.spec)))


def unsaved(run_plan: Plan, store: RunStore) -> list[Job]:
    """Return the finished jobs whose merged adapters are not in the run's folder.

    The base model has none, and no policy.
    """
    jobs = plan(run_plan.spec)
    waiting = {job.id for job in unfinished(store, jobs)}
    return [
        job
        for job in jobs
        if job.id not in waiting
        and job.method_name != "base"
        and run_plan.methods[job.method].kind != "policy"
        and not store.adapter_path(job.method, job.case_id).is_file()
    ]


def save_adapters_of(
    run_plan: Plan, store: RunStore, pipeline: Pipeline | None, jobs: Sequence[Job]
) -> Iterator[Path]:
    """Merge the pairs of finished jobs again, one at each step, and keep the merged adapters.

    Merging is deterministic, so these are the adapters that the images were drawn with.

    Args:
        run_plan: The run.
        store: Its folder.
        pipeline: Needed only if a method is fitted to the pair.
        jobs: As `unsaved` gives them.

    Raises:
        RunError: A merge that is not finite, or a pipeline that is needed.
        SuiteError: A reference image that a method is fitted to is missing.
    """
    worker = _Worker(run_plan, store, pipeline, batch_size=1, save=True)
    for job in jobs:
        yield worker.merge_again(job)


class _Worker:
    """Does jobs, one model loaded for all."""

    def __init__(
        self,
        run_plan: Plan,
        store: RunStore,
        pipeline: Pipeline | None,
        batch_size: int,
        save: bool,
    ) -> None:
        self.plan = run_plan
        self.options: Mapping[str, Mapping[str, Any]] = {
            method.label: method.resolved for method in run_plan.spec.methods
        }
        self.store = store
        self.pipeline = pipeline
        self.batch_size = batch_size
        self.save = save
        # jobs come case by case; a cache of a method would keep the worker, and so the base model
        self.adapter = lru_cache(maxsize=4)(partial(_load_adapter, run_plan))

    def do(self, job: Job) -> Cost:
        """Merge, draw and save the images of one job."""
        with _named(job):
            return self._do(job)

    def rehearse(self, jobs: Sequence[Job]) -> None:
        """Merge the first pair of each method, not of one that optimises; raise what that raises.

        Of a layer method only layers of different shapes: their merges do not know of each other.
        """
        firsts: dict[str, Job] = {}
        for job in jobs:
            firsts.setdefault(job.method, job)
        for job in firsts.values():
            method = self.plan.methods[job.method]
            if method.kind == "fit":
                continue
            with _named(job):
                _, adapters, _ = self._inputs(job)
                options = self.options[job.method]
                if method.kind == "policy":
                    method.policy(adapters, seed=0, **options)
                    continue
                if method.kind == "layer":
                    check_same_layers(adapters)
                    adapters = _one_of_each_shape(adapters)
                method(adapters, seed=0, **options).check_finite(MERGED)

    def merge_again(self, job: Job) -> Path:
        """Merge as `do` does, and save the adapter; return where."""
        with _named(job):
            method, adapters, task = self._inputs(job)
            merged = method(adapters, seed=0, task=task, **self.options[job.method])
            merged.check_finite(MERGED)
            return self._save(job, merged)

    def _inputs(self, job: Job) -> tuple[MergeMethod, list[LoraAdapter], PairTask | None]:
        case = next(
            case for case in self.plan.suite.cases[self.plan.spec.split] if case.id == job.case_id
        )
        method = self.plan.methods[job.method]
        adapters = [self.adapter(case.subject.id), self.adapter(case.style.id)]
        return (
            method,
            adapters,
            self._task(case.subject, case.style) if method.kind == "fit" else None,
        )

    def _save(self, job: Job, merged: LoraAdapter) -> Path:
        path = self.store.adapter_path(job.method, job.case_id)
        if merged.deltas:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_adapter(merged, path)
        return path

    def _do(self, job: Job) -> Cost:
        method, adapters, task = self._inputs(job)
        memory = PeakMemory(self.plan.spec.device)
        memory.reset()
        start = time.perf_counter()
        options = self.options[job.method]
        merged: LoraAdapter | Policy
        if method.kind == "policy":
            merged = method.policy(adapters, seed=0, **options)
        else:
            merged = method(adapters, seed=0, task=task, **options)
        merge_peak = memory.peak()  # waits for the GPU
        merged_at = time.perf_counter()
        if isinstance(merged, LoraAdapter):
            merged.check_finite(MERGED)
        images = self._pipeline().generate(merged, job.prompt, job.seeds)
        peak = memory.peak()
        done = time.perf_counter()
        for seed, image in zip(job.seeds, images, strict=True):
            write_image(self.store.image_path(job.method, job.case_id, seed), image)
        if self.save and isinstance(merged, LoraAdapter):
            self._save(job, merged)
        return Cost(
            job=job.id,
            method=job.method,
            case=job.case_id,
            merge_seconds=merged_at - start,
            generation_seconds=done - merged_at,
            images=len(images),
            merge_peak_bytes=merge_peak,
            peak_bytes=peak,
            memory=memory.kind,
            parameters=merged.parameters(),
            batch_size=self.batch_size,
        )

    def _pipeline(self) -> Pipeline:
        if self.pipeline is None:
            raise RunError("it needs the base model, and none is loaded")
        return self.pipeline

    def _task(self, subject: Concept, style: Concept) -> PairTask:
        return PairTask(
            denoiser=self._pipeline().denoiser(),
            subject_images=self._images(subject),
            subject_prompts=subject.prompts,
            style_images=self._images(style),
            style_prompts=style.prompts,
        )

    def _images(self, concept: Concept) -> list[Image.Image]:
        paths = reference_paths([concept], self.plan.suite.name)
        return [open_image(path) for path in paths]


def _load_adapter(run_plan: Plan, concept: str) -> LoraAdapter:
    adapter = load_adapter(run_plan.adapter_path(concept), name=concept)
    return adapter.to(device=run_plan.spec.device)


def _one_of_each_shape(adapters: Sequence[LoraAdapter]) -> list[LoraAdapter]:
    """Adapters of the same layers, with one layer of each shape."""
    layers = {shape: layer for layer, shape in adapters[0].shapes().items()}.values()
    return [
        replace(adapter, deltas={layer: adapter.deltas[layer] for layer in layers})
        for adapter in adapters
    ]


@contextmanager
def _named(job: Job) -> Iterator[None]:
    """Let errors say in which job they happened."""
    try:
        yield
    except (AdapterError, PluginError, RunError) as error:
        raise type(error)(f"{job.method} on {job.case_id}: {error}") from error
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"{job.method} on {job.case_id}: out of memory: draw fewer images at once "
            "(--batch-size 1); a method that is fitted takes less with "
            f"--method {job.method_name}:gradient_checkpointing=true, if it has that option"
        ) from error


def load_denoiser(suite: Suite, model: str | None, *, dtype: str | None, device: str) -> Denoiser:
    """Return a base model to train on; None: the suite's, and float32 on a CPU, else bfloat16.

    Raises:
        RunError: There is no such model or device.
    """
    place = find_device(device)
    folder = find_model(model or suite.models.base)
    with no_bars():
        return Denoiser.load(
            folder,
            dtype=getattr(torch, dtype or ("float32" if place == "cpu" else "bfloat16")),
            device=place,
            resolution=suite.generation.resolution,
        )
