"""`mars2 run`: merge, generate, score."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.cli import generating, measuring
from mars2.cli.options import (
    BaseUrl,
    BatchSize,
    Cache,
    Clip,
    Device,
    Dino,
    Dtype,
    JudgeConcurrency,
    JudgeName,
    JudgeRetries,
    JudgeTemperature,
    JudgeTimeout,
    Layout,
    Metrics,
    Model,
    Prompts,
    SuiteName,
    parse_dtype,
    parse_seeds,
)
from mars2.job import Choices


def run(
    out: Annotated[Path, typer.Option(help="Folder of the run; the same run is gone on with.")],
    suite: SuiteName = "miniworld",
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Merge method, such as ziplora, ziplora:steps=100,lr=0.01 or ./mine.py:halves; "
            "repeat it for several.  [default: direct_sum, average, ziplora, lorarar]"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split whose pairs are run.")] = "test",
    controls: Annotated[
        bool, typer.Option(help="Run base, subject_only and style_only too.")
    ] = True,
    model: Model = None,
    dtype: Dtype = None,
    device: Device = "auto",
    adapters: Annotated[
        Path | None, typer.Option(help="Folder of CONCEPT.safetensors.  [default: the suite's]")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Such as 0-9 or 0,3,5.  [default: the suite's]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps.  [default: the suite's]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many pairs, spread over the split.")
    ] = None,
    batch_size: BatchSize = 4,
    save_adapters: Annotated[
        bool,
        typer.Option(
            "--save-adapters",
            help="Keep the merged adapters in the run's folder; policies have none.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and list the jobs; run nothing.")
    ] = False,
    score: Annotated[bool, typer.Option(help="Score the images and write the report.")] = True,
    metrics: Metrics = "mars2,clip,dino",
    judge: JudgeName = None,
    layout: Layout = "anyres",
    prompts: Prompts = None,
    base_url: BaseUrl = None,
    judge_timeout: JudgeTimeout = 120.0,
    judge_concurrency: JudgeConcurrency = 8,
    judge_retries: JudgeRetries = 5,
    judge_temperature: JudgeTemperature = 0.0,
    clip: Clip = None,
    dino: Dino = None,
    cache: Cache = True,
) -> None:
    """Merge the pairs of a suite, generate, score and report."""
    choices = Choices(
        split=split,
        methods=tuple(method or ()),
        controls=controls,
        model=model,
        dtype=parse_dtype(dtype),
        device=device,
        adapters=adapters,
        seeds=parse_seeds(seeds),
        steps=steps,
        limit=limit,
    )
    scoring = measuring.Scoring(
        metrics=metrics,
        judge=judge,
        layout=layout,
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
    )
    checked = scoring if score else None
    if dry_run:
        generating.show_plan(suite, choices, out, checked)
        return
    store = generating.generate(
        suite,
        choices,
        out,
        batch_size=batch_size,
        save_adapters=save_adapters,
        scoring=checked,
    )
    if score:
        failed = measuring.score(store, scoring)
        measuring.report(store)
        measuring.exit_if_failed(failed)
    else:
        print(f"{out / 'images'}: METHOD/PAIR/SEED.png; `mars2 score {out}` scores them")
