"""`mars2 merge`: merge LoRA files by a method that needs nothing but weights."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.cli.options import parse_dtype
from mars2.job import RunError


def merge(
    files: Annotated[list[Path], typer.Argument(help="LoRA files; the subject's, the style's.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The merged LoRA's file.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output if it is there.")
    ] = False,
    method: Annotated[str, typer.Option(help="Such as direct_sum or average.")] = "direct_sum",
    seed: Annotated[int, typer.Option(help="For methods that draw random numbers.")] = 0,
    layers: Annotated[
        str,
        typer.Option(
            help="If the files touch different layers: error; union (what a file lacks is an "
            "update of zero); intersection (only what all files touch)."
        ),
    ] = "error",
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Truncate to this rank.  [default: what the method gives]"),
    ] = None,
    spelling: Annotated[
        str,
        typer.Option("--format", help="diffusers, or kohya, which ComfyUI and web UIs read, too."),
    ] = "diffusers",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16 or bfloat16.  [default: the files']"),
    ] = None,
    ignore_text_encoder: Annotated[
        bool,
        typer.Option(
            "--ignore-text-encoder",
            help="Leave text encoders' LoRAs out, instead of refusing the file.",
        ),
    ] = False,
) -> None:
    """Merge LoRA files into one that other tools load.

    One file and --method subject_only convert a file.
    """
    from mars2.merge import merge_files

    if output.exists() and not overwrite:
        raise RunError(f"{output} is there already: give another --output, or --overwrite")
    for line in merge_files(
        files,
        output,
        method=method,
        seed=seed,
        layers=layers,
        rank=rank,
        spelling=spelling,
        dtype=parse_dtype(dtype),
        ignore_text_encoder=ignore_text_encoder,
    ):
        print(line)
