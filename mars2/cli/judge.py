"""`mars2 judge`: what a judge is, and a copy of it for servers."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.cli.options import Device, JudgeDtype, Layout, Prompts

app = typer.Typer(no_args_is_help=True, help="Look at a judge, or convert it.")


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
    """Tell what would be loaded, and the memory it takes; no weight is read."""
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
