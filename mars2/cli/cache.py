"""`mars2 cache`: the answers of judges that are kept between runs."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from mars2.job import RunError

app = typer.Typer(no_args_is_help=True, help="Show and prune the kept answers of judges.")

DAYS = 90.0


@app.command()
def info() -> None:
    """Say where the judges' answers are kept, how many, and when each judge's were last used."""
    from mars2.judges.cached import AnswerCache
    from mars2.report.formatting import size_in_bytes

    cache = AnswerCache()
    kept = cache.kept()
    total = sum(one.answers for one in kept)
    print(f"{cache.path}: {total} answers, {size_in_bytes(cache.size())}")
    for one in kept:
        day = datetime.fromtimestamp(one.used, tz=UTC).date()
        print(f"{one.answers:>9}  last used {day}  {one.judge}")


@app.command()
def prune(
    older_than: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="DAYS", help=f"Those not used for so many days.  [default: {DAYS:.0f}]"
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Drop kept answers of judges; what is scored stays in the runs' own folders."""
    from mars2.judges.cached import AnswerCache

    if every and older_than is not None:
        raise RunError("give either --older-than or --all")
    cache = AnswerCache()
    dropped = cache.prune(None if every else DAYS if older_than is None else older_than)
    left = sum(one.answers for one in cache.kept())
    print(f"{cache.path}: {dropped} answers dropped, {left} left")
