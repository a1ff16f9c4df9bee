"""`mars2 data`: the reference images of a suite."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.cli.progress import progress

app = typer.Typer(no_args_is_help=True, help="List and fetch the reference images of a suite.")

SuiteArgument = Annotated[str, typer.Argument(help="Name of a suite or a TOML file.")]


@app.command()
def fetch(
    suite: SuiteArgument,
    root: Annotated[
        Path | None, typer.Option(help="Where to put them.  [default: the user's cache]")
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="A line for each image, not only for each source.")
    ] = False,
) -> None:
    """Download a suite's reference images, verify them, and say what has to be got by hand.

    Exit code 1 if some could not be downloaded.
    """
    from benchmark_data.fetch import fetch as fetch_suite
    from benchmark_data.load import load_suite

    with progress("fetch", unit="image", shown=not each) as bar:
        shown = set()

        def show(line: str) -> None:
            bar.update()
            shown.add(line)
            if each:
                print(line)

        result = fetch_suite(load_suite(suite), root=root, progress=show)
    by_hand = [f"by hand: {line}" for line in result.manual]
    others = [line for line in result.failed if line not in shown]
    for told in [*others, *by_hand] if each else result.sources:
        print(told)
    counts = f"{len(result.fetched)} fetched, {len(result.present)} were there"
    print(f"{counts}, {len(result.manual)} to get by hand, {len(result.failed)} failed")
    if (result.manual or result.failed) and not each:
        print("`mars2 data fetch --each` tells of each image where to get it and where to put it")
    if result.failed:
        raise typer.Exit(1)


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
