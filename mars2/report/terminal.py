"""Prints the tables of a report on a terminal."""

import re
from dataclasses import replace

import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.text import Text

from mars2.report.summary import Summary
from mars2.report.tables import (
    Cell,
    Table,
    concept_table,
    corrected_table,
    cost_table,
    mars2_table,
    similarity_table,
)


def terminal_table(summary: Summary, console: Console, *, brief: bool = False) -> None:
    """Print the tables: MARS2, corrections, similarities, the first score by concept, costs.

    Args:
        summary: What to print.
        console: Where.
        brief: Print MARS2 by the first judge only.
    """
    if not summary.sources:
        console.print("no scores yet: run `mars2 score` on this folder")
    if brief:
        for judge in summary.judges[:1]:
            print_table(mars2_table(summary, judge), console)
        return
    tables: list[Table | None] = []
    for judge in summary.judges:
        tables += [mars2_table(summary, judge), corrected_table(summary, judge)]
    tables.append(similarity_table(summary))
    tables += [concept_table(summary, source) for source in summary.sources[:1]]
    tables.append(cost_table(summary))
    said: set[str] = set()
    for table in tables:
        if table is not None:
            print_table(table, console, said)


def print_table(table: Table, console: Console, said: set[str] | None = None) -> None:
    """Print a table with its notes, less those `said` before.

    Where the terminal is narrow, intervals stand below their numbers; what is still too wide is
    printed in parts, each with some of the columns.
    """
    said = set() if said is None else said
    drawn = _rich(table, stacked=False)
    parts = [drawn] if _fits(drawn, console) else _parts(table, console)
    for part in parts:
        console.print(part)
    for note in table.notes:
        if note not in said:
            console.print(Text(note, style="dim"))
            said.add(note)
    console.print()


def _fits(drawn: rich.table.Table, console: Console) -> bool:
    unbounded = console.options.update(width=10_000)
    return console.measure(drawn, options=unbounded).maximum <= console.width


def _parts(table: Table, console: Console) -> list[rich.table.Table]:
    """Return stacked tables that together have all columns; each fits if one column does."""
    parts = []
    start, count = 0, len(table.columns)
    while start < count:
        end = count
        drawn = _rich(_of_columns(table, start, end), stacked=True)
        while end > start + 1 and not _fits(drawn, console):
            end -= 1
            drawn = _rich(_of_columns(table, start, end), stacked=True)
        parts.append(drawn)
        start = end
    return parts


def _of_columns(table: Table, start: int, end: int) -> Table:
    return replace(
        table,
        title=table.title if start == 0 else f"{table.title} (more columns)",
        columns=table.columns[start:end],
        rows=tuple(replace(row, cells=row.cells[start:end]) for row in table.rows),
    )


def _rich(table: Table, *, stacked: bool) -> rich.table.Table:
    """Return a table for a terminal; a `stacked` one is narrow, intervals below the numbers."""
    drawn = rich.table.Table(
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 0 if stacked else 1),
        pad_edge=False,
    )
    drawn.add_column(table.corner, no_wrap=True)
    for column in table.columns:
        heading = _broken(column, ":,_") if stacked else column
        drawn.add_column(heading, justify="right", overflow="fold")
    for index, row in enumerate(table.rows):
        last = index + 1 == len(table.rows) or table.rows[index + 1].group != row.group
        drawn.add_row(
            Text(_broken(row.label, ":,") if stacked else row.label),
            *(_rich_cell(item, stacked=stacked) for item in row.cells),
            end_section=last,
        )
    return drawn


def _rich_cell(item: Cell, *, stacked: bool) -> Text:
    number, interval = item.text, item.interval
    if stacked and interval:  # seconds have none
        number, interval = (re.sub(r"\b0\.", ".", part) for part in (number, interval))
        interval = interval.replace(" ", "")
    text = Text(number, style="bold" if item.best else "")
    if interval:
        text.append(("\n" if stacked else " ") + interval, style="dim not bold")
    return text


def _broken(label: str, behind: str) -> str:
    """Return a label with a line break behind each of some characters."""
    return re.sub(f"([{behind}])", "\\1\n", label)
