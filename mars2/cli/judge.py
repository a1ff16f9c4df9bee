"""`mars2 judge`: what there is to know of a judge, and a copy of it for servers."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.cli import threads
from mars2.cli.options import (
    BaseUrl,
    Cache,
    Device,
    JudgeConcurrency,
    JudgeDtype,
    JudgeName,
    JudgeRetries,
    JudgeTemperature,
    JudgeTimeout,
    Layout,
    Prompts,
    SuiteName,
)
from mars2.cli.printing import make_console
from mars2.cli.progress import progress

app = typer.Typer(no_args_is_help=True, help="Examine a judge, or convert it.")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or hub id, in LLaVA-NeXT's layout.")],
    target: Annotated[Path, typer.Argument(help="Folder to be made.")],
) -> None:
    """Write LLaVA-Critic in transformers' layout, which vLLM reads."""
    from mars2.judges.llava_convert import convert as write

    write(source, target)
    print(target)


@app.command()
def info(
    judge: Annotated[str, typer.Argument(help="NAME:MODEL, such as llava_onevision:FOLDER.")],
    layout: Layout = "anyres",
    prompts: Prompts = None,
    dtype: JudgeDtype = None,
    device: Device = "auto",
) -> None:
    """Tell what would be loaded, and the memory it takes; no weight is loaded."""
    from mars2.judges.info import inspect_judge
    from mars2.judges.room import gibibytes

    told = inspect_judge(judge, dtype=dtype, device=device, layout=layout, prompts=prompts)
    free = "unknown" if told.free is None else gibibytes(told.free)
    rows = {
        "model": told.model,
        "architecture": f"{told.architecture}, files in {told.files}",
        "layout": told.layout or "one way only",
        "parameters": f"{told.parameters:,}, stored as {told.stored_dtype}",
        "computes": f"{told.dtype} on {told.device}",
        "memory": f"{gibibytes(told.need.weights)} and about {gibibytes(told.need.working)} to "
        f"work with; {free} free",
        "prompts": told.prompts,
        "published": "yes" if told.published else "no: compare its scores with each other only",
    }
    for name, text in rows.items():
        print(f"{name:<13} {text}")


@app.command()
def check(
    suite: SuiteName = "miniworld",
    judge: JudgeName = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the subjects and styles.  [default: all]")
    ] = None,
    per_concept: Annotated[
        int, typer.Option(min=1, help="Most questions of one truth a subject or style.")
    ] = 12,
    layout: Layout = "anyres",
    prompts: Prompts = None,
    dtype: JudgeDtype = None,
    base_url: BaseUrl = None,
    judge_timeout: JudgeTimeout = 120.0,
    judge_concurrency: JudgeConcurrency = 8,
    judge_retries: JudgeRetries = 5,
    judge_temperature: JudgeTemperature = 0.0,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file of the result.  [default: in the user's cache, where reports find it; "
            "with --split, or fewer questions than usual, none]"
        ),
    ] = None,
    cache: Cache = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all and count the questions; ask none.")
    ] = False,
) -> None:
    """Ask a judge what is known of a suite's references, and how often it errs.

    Reports of runs that this judge scored then correct for it the shares of single answers.
    """
    from benchmark_data.load import load_suite
    from mars2.controls import controls_path, write_controls
    from mars2.judge_check import PER_CONCEPT, check_judge, plan_controls
    from mars2.judges import (
        TEMPLATES,
        ServerSettings,
        identify_judge,
        load_judge,
        load_templates,
    )
    from mars2.judges.prompts import choose
    from mars2.report import print_table
    from mars2.report.tables import controls_table

    loaded = load_suite(suite)
    questions = plan_controls(loaded, split=split, per_concept=per_concept)
    templates = TEMPLATES if prompts is None else load_templates(prompts)
    choose(templates)
    server = ServerSettings(
        base_url or "", judge_timeout, judge_concurrency, judge_retries, judge_temperature
    )
    name = judge or loaded.models.judge
    if dry_run:
        found = identify_judge(name, dtype=dtype, device=device, layout=layout, server=server)
        print(f"suite   {loaded.name} {loaded.revision}")
        print(f"judge   {found or name}")
        for aspect in ("subject", "style"):
            asked_of = [one for one in questions if one.aspect == aspect]
            concepts = len({one.concept for one in asked_of})
            print(f"{aspect:7} {len(asked_of)} questions, of {concepts} {aspect}s")
        return
    threads.fit_threads(name)
    asked = load_judge(name, dtype=dtype, device=device, layout=layout, server=server, cache=cache)
    with progress("check", unit="question", total=len(questions)) as bar:

        def show(answered: int) -> None:
            bar.update(answered)

        controls = check_judge(asked, loaded, templates, questions, progress=show)
    print_table(controls_table(controls), make_console())
    path = out or controls_path(controls.judge, controls.suite_revision)
    whole = not split and per_concept >= PER_CONCEPT
    if out or whole:  # a part must not take the whole's place
        write_controls(controls, path)
        print(path)
