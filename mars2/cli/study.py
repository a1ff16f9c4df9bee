"""`mars2 study`: is the measure right, and what do the methods do?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mars2.studies import STUDIES

app = typer.Typer(
    invoke_without_command=True,
    help="Make a study: tables (CSV), figures (PNG, SVG) and what they mean, in a folder.",
)

Out = Annotated[
    Path | None, typer.Option(help="Folder of the study.  [default: beside what is studied]")
]
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap samples of an interval.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the resampling.")]
Run = Annotated[Path, typer.Argument(help="Folder of a run, or of scored images.")]


@app.callback()
def study(context: typer.Context) -> None:
    """List the studies."""
    if context.invoked_subcommand is None:
        for name, question in STUDIES.items():
            print(f"{name:<10} {question}")


@app.command()
def humans(
    ratings: Annotated[
        Path,
        typer.Option(help="CSV or parquet of item, method, rater, aspect, score [, seed]."),
    ],
    metrics: Annotated[
        Path,
        typer.Option(
            help="CSV or parquet of item, method, metric, score [, aspect, seed]; or a run's "
            "folder."
        ),
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="CSV or parquet of item, method_a, method_b, rater, aspect, choice (a, b, tie, "
            "both_bad) [, shown_left, seed]."
        ),
    ] = None,
    lower: Annotated[
        str, typer.Option(help="Metrics of which less is better, with commas between.")
    ] = "",
    out: Out = None,
    resamples: Resamples = 1000,
    permutations: Annotated[
        int, typer.Option(min=1, help="Exchanges of a permutation test.")
    ] = 1000,
    seed: Seed = 0,
) -> None:
    """Compare metrics with people: agreement, ceiling, correlations in every grouping, tests."""
    import sys

    from mars2.studies.humans import Settings, study_humans

    names = tuple(name.strip() for name in lower.split(",") if name.strip())
    result = study_humans(
        ratings,
        metrics,
        pairs=pairs,
        settings=Settings(resamples, permutations, seed, names),
        progress=lambda text: print(text, file=sys.stderr),
    )
    _show(result, out or ratings.parent / "study-humans")


if TYPE_CHECKING:
    from mars2.studies.result import Result


def _show(result: "Result", folder: Path) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from mars2.report import print_table
    from mars2.studies.result import write

    console = Console()
    said: set[str] = set()
    for sheet in result.sheets:
        if sheet.shown:
            print_table(sheet.table(), console, said)
    for paragraph in result.text.split("\n\n"):
        console.print(Markdown(paragraph))
        console.print()
    write(result, folder)
    print(folder)
