"""The command `mars2`: one file a group of commands.

Nothing heavy is imported before a command needs it, so that `mars2 --help` answers at once.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from mars2 import __version__
from mars2.cli import (
    cache,
    data,
    demo,
    inspect_file,
    judge,
    leaderboard,
    ls,
    merge,
    push,
    rate,
    run,
    score,
    study,
    study_training,
    train,
)
from mars2.quiet import VERBOSE_VARIABLE, silence_libraries

INTERRUPTED = 130  # typer's exit code after Ctrl-C
PUBLIC_ERRORS = (
    "AdapterError",
    "PluginError",
    "SuiteError",
    "RunError",
    "JudgeError",
    "EntryError",
)
"""By name: their modules import torch."""

app = typer.Typer(
    name="mars2",
    help="Benchmark of methods that merge a subject LoRA with a style LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_debugged: list[bool] = [False]
"""Whether the command that runs was asked for tracebacks."""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mars2 {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="MARS2_DEBUG", help="Show the traceback of every error."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            envvar=VERBOSE_VARIABLE,
            help="Show warnings and progress of the libraries underneath.",
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Benchmark of methods that merge a subject LoRA with a style LoRA."""
    _debugged[0] = debug
    if verbose:
        os.environ[VERBOSE_VARIABLE] = "1"
    silence_libraries()


app.command()(run.run)
app.command()(score.score)
app.command()(score.report)
app.command()(demo.demo)
app.command()(rate.rate)
app.command()(merge.merge)
app.command()(inspect_file.inspect)
app.command()(push.push)
app.add_typer(train.app, name="train")
app.add_typer(data.app, name="data")
app.add_typer(judge.app, name="judge")
app.add_typer(leaderboard.app, name="leaderboard")
app.add_typer(study.app, name="study")
study.app.command()(study_training.scaling)
study.app.command()(study_training.columns)
app.add_typer(cache.app, name="cache")
app.add_typer(ls.app, name="ls")


def main() -> None:
    """Run the command line; a public error is one line on stderr and exit code 2.

    With ``--debug`` its traceback stands above that line.
    """
    _debugged[0] = False
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            sys.stderr.write("mars2: interrupted; the same command goes on\n")
        raise
    except (ValueError, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            _fail(
                "out of memory on the GPU: give it less at once (--batch-size, or "
                "--gradient-checkpointing where a command has it) or free it of other work; the "
                "same command goes on"
            )
        if not any(kind.__name__ in PUBLIC_ERRORS for kind in type(error).__mro__):
            raise
        _fail(str(error), getattr(error, "problems", ()))
    except OSError as error:  # a disk that is full, a folder that may not be written, ...
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; choose another place, or see to this one")


def _fail(message: str, problems: Sequence[str] = ()) -> NoReturn:
    """End with a message on one line, or, where there are several problems, a line for each."""
    if _debugged[0]:
        traceback.print_exc()
    lines = [f"{len(problems)} things are to be done first", *problems] if problems else [message]
    sys.stderr.write("mars2: " + "\n  - ".join(" ".join(line.split()) for line in lines) + "\n")
    sys.exit(2)
