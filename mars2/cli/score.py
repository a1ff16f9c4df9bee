"""`mars2 score`: score a run or a folder of images. `mars2 report`: put scores together again."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.cli import measuring
from mars2.cli.options import (
    BaseUrl,
    BatchSize,
    Cache,
    Clip,
    ControlFiles,
    Device,
    Dino,
    JudgeConcurrency,
    JudgeDtype,
    JudgeName,
    JudgeRetries,
    JudgeTemperature,
    JudgeTimeout,
    Layout,
    Metrics,
    Prompts,
)
from mars2.store import RunStore


def score(
    folder: Annotated[
        Path, typer.Argument(help="A run's folder, or images in SUBJECT_STYLE/ folders.")
    ],
    suite: Annotated[
        str | None,
        typer.Option(help="Suite that says which pairs there are.  [default: the run's]"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the pairs.  [default: the one that matches]")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="CSV of image, subject, style [, method, seed, prompt], by concept id; without a "
            "seed images are numbered by their names."
        ),
    ] = None,
    subject_refs: Annotated[
        Path | None, typer.Option(help="For one pair: folder of the subject's reference images.")
    ] = None,
    style_refs: Annotated[
        Path | None, typer.Option(help="For one pair: folder of the style's reference images.")
    ] = None,
    style_name: Annotated[
        str | None, typer.Option(help="For one pair: the style in words, such as 'oil painting'.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results, for images that are no run.  "
            "[default: FOLDER/mars2-scores]"
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score what is there though images are missing.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check all and say what there is to do; score nothing."),
    ] = False,
    metrics: Metrics = "mars2,clip,dino",
    judge: JudgeName = None,
    layout: Layout = "anyres",
    dtype: JudgeDtype = None,
    prompts: Prompts = None,
    base_url: BaseUrl = None,
    judge_timeout: JudgeTimeout = 120.0,
    judge_concurrency: JudgeConcurrency = 8,
    judge_retries: JudgeRetries = 5,
    judge_temperature: JudgeTemperature = 0.0,
    clip: Clip = None,
    dino: Dino = None,
    cache: Cache = True,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    controls: ControlFiles = None,
) -> None:
    """Score images by MARS2, CLIP and DINO, what has no score yet."""
    scoring = measuring.Scoring(
        metrics=metrics,
        judge=judge,
        layout=layout,
        dtype=dtype,
        prompts=prompts,
        base_url=base_url,
        judge_timeout=judge_timeout,
        judge_concurrency=judge_concurrency,
        judge_retries=judge_retries,
        judge_temperature=judge_temperature,
        clip=clip,
        dino=dino,
        cache=cache,
        device=device,
        batch_size=batch_size,
        suite=suite,
    )
    store = measuring.open_images(
        folder,
        suite=suite,
        split=split,
        manifest=manifest,
        pair=(subject_refs, style_refs, style_name),
        out=out,
        partial=partial,
        write=not dry_run,
    )
    if dry_run:
        measuring.show_scoring(store, scoring, partial=partial)
        return
    failed = measuring.score(store, scoring, partial=partial)
    measuring.report(store, suite, controls=controls)
    measuring.exit_if_failed(failed)


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or a folder of scored images.")],
    controls: ControlFiles = None,
) -> None:
    """Make table and report again from the scores of a folder."""
    measuring.report(RunStore.open(folder), controls=controls)
