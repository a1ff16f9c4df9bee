"""`mars2 data`: the reference images of a suite."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.job import RunError

app = typer.Typer(no_args_is_help=True, help="List and fetch the reference images of a suite.")

SuiteArgument = Annotated[str, typer.Argument(help="Name of a suite or a TOML file.")]


@app.command()
def fetch(
    suite: SuiteArgument,
    root: Annotated[
        Path | None, typer.Option(help="Where to put them.  [default: the user's cache]")
    ] = None,
) -> None:
    """Download a suite's reference images, verify them, and say what has to be got by hand."""
    from benchmark_data.fetch import fetch as fetch_suite
    from benchmark_data.load import load_suite

    result = fetch_suite(load_suite(suite), root=root, progress=print)
    print(f"{len(result.fetched)} fetched, {len(result.present)} were there")
    for line in result.manual:
        print(f"by hand: {line}")
    if result.failed:
        raise RunError(f"not fetched: {'; '.join(map(str, result.failed))}")


@app.command("list")
def list_references(suite: SuiteArgument) -> None:
    """List a suite's subjects and styles with their reference images, and which are there."""
    from benchmark_data.load import load_suite

    loaded = load_suite(suite)
    for concept in loaded.concepts.values():
        there = sum(
            reference.path is not None and reference.path.is_file()
            for reference in concept.references
        )
        print(
            f"{concept.role:<8} {concept.split:<6} {concept.id:<24} "
            f"{there} of {len(concept.references)} images  {concept.phrase}"
        )
