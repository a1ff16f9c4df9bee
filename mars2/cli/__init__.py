"""The command `mars2`: one file a group of commands.

Nothing heavy is imported before a command needs it, so that `mars2 --help` answers at once.
"""

import sys
from typing import NoReturn

import typer

from mars2.cli import cache, data, demo, inspect_file, judge, ls, merge, run, score, study, train

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
app.command()(run.run)
app.command()(score.score)
app.command()(score.report)
app.command()(demo.demo)
app.command()(merge.merge)
app.command()(inspect_file.inspect)
app.add_typer(train.app, name="train")
app.add_typer(data.app, name="data")
app.add_typer(judge.app, name="judge")
app.add_typer(study.app, name="study")
app.add_typer(cache.app, name="cache")
app.add_typer(ls.app, name="ls")


def main() -> None:
    """Run the command line; a public error is one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, RuntimeError) as error:
        if not any(kind.__name__ in PUBLIC_ERRORS for kind in type(error).__mro__):
            raise
        _fail(str(error))
    except OSError as error:  # a disk that is full, a folder that may not be written, ...
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; choose another place, or see to this one")


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"mars2: {' '.join(message.split())}\n")
    sys.exit(2)
