"""Writes docs/reference.md: every command with its help, every method, metric, judge and suite.

Run `python docs/make_reference.py`; a test compares the file with what this makes.
"""

import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "TERMINAL_WIDTH": "100"}

import typer

from baselines import METHODS
from benchmark_data.load import load_suite, suite_names
from mars2.cli import app
from mars2.judges import JUDGES
from mars2.metrics import METRICS


def first_line(value: object) -> str:
    """Return the first line of an object's docstring."""
    return (value.__doc__ or "").strip().splitlines()[0]


def commands(command: Any, path: str) -> list[str]:
    """Return the help of a command and of all below it, as Markdown."""
    if hasattr(command, "commands"):
        parts = [f"### `{path}`\n\n{command.help or ''}\n"]
        if path == "mars2":
            parts = [
                "\n".join(["Of every command, before its name:", "", *options(command)]) + "\n"
            ]
        for name in sorted(command.commands):
            parts += commands(command.commands[name], f"{path} {name}")
        return parts
    lines = [f"### `{path}`", "", (command.help or "").strip(), ""]
    return ["\n".join([*lines, *options(command)]) + "\n"]


def options(command: Any) -> list[str]:
    """Return the lines of a table of a command's arguments and options."""
    lines = ["| argument or option | default | meaning |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        if parameter.param_type_name == "argument":
            names = f"`{parameter.name.upper()}`" if parameter.name else ""
        default = parameter.default if isinstance(parameter.default, str | int | float) else ""
        default = "" if isinstance(default, bool) or default == "" else f"`{default}`"
        text = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
        lines.append(f"| {names} | {default} | {text} |")
    return lines


def reference() -> str:
    """Return the whole page."""
    METHODS.load_entry_points("mars2.merge_methods")
    lines = [
        "# Reference",
        "",
        "Made by `python docs/make_reference.py`; do not edit by hand.",
        "",
        "## Commands",
        "",
        *commands(typer.main.get_command(app), "mars2"),
        "## Merge methods",
        "",
        "| method | kind | options | what it gives |",
        "|---|---|---|---|",
    ]
    for name in METHODS.names():
        method = METHODS.get(name)
        options = ", ".join(f"`{key}={p.default}`" for key, p in method.parameters.items())
        paper = f" ([paper]({method.paper}))" if method.paper else ""
        lines.append(f"| `{name}` | {method.kind} | {options} | {method.summary}{paper} |")
    lines += ["", "## Metrics", "", "| metric | what it gives |", "|---|---|"]
    lines += [f"| `{name}` | {first_line(METRICS.get(name))} |" for name in METRICS.names()]
    lines += ["", "## Judges", "", "| judge | what it is |", "|---|---|"]
    lines += [f"| `{name}` | {first_line(JUDGES.get(name))} |" for name in JUDGES.names()]
    lines += ["", "## Suites", "", "| suite | revision | test pairs | train pairs | title |"]
    lines += ["|---|---|---|---|---|"]
    for name in suite_names():
        suite = load_suite(name)
        test, train = len(suite.cases["test"]), len(suite.cases["train"])
        lines.append(f"| `{name}` | `{suite.revision}` | {test} | {train} | {suite.title} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    target = Path(__file__).with_name("reference.md")
    target.write_text(reference())
    sys.stdout.write(f"wrote {target}\n")
