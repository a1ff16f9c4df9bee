"""What a study gives: tables, figures and a paragraph; and how they are shown and written."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mars2.report.formatting import EMPTY
from mars2.report.tables import Cell, Row, Table
from mars2.stats import LEVEL, Estimate
from mars2.studies.association import Floats

Value = str | int | float | None | Estimate
"""What stands in a table; an estimate takes several columns of a CSV file."""

MOST_UNDEFINED = 0.05
"""Largest share of resamples without a value of which an interval is still given."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mars2",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8a8a8a",
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
"""Of the figures, given to matplotlib's `rc_context`."""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        name: Of its CSV file.
        title: What it shows.
        columns: Their names; the first one heads the labels of the rows.
        rows: A value a column.
        shown: Columns that a terminal shows; (): none of the table, which is in its file only.
        notes: What has to be known to read it.
        formats: Column -> how its numbers are spelled on a terminal; else three decimals.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Value, ...]]
    shown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    formats: Mapping[str, Callable[[float], str]] = field(default_factory=dict)

    def table(self) -> Table:
        """Return what a terminal shows."""
        places = [self.columns.index(name) for name in self.shown]
        rows = [
            Row(
                self._text(self.shown[0], row[places[0]]),
                tuple(
                    Cell(self._text(name, row[place]), self._interval(name, row[place]))
                    for name, place in zip(self.shown[1:], places[1:], strict=True)
                ),
            )
            for row in self.rows
        ]
        return Table(self.title, self.shown[0], self.shown[1:], tuple(rows), self.notes)

    def csv(self) -> str:
        """Return the text of the CSV file; estimates have columns for interval and n."""
        estimates = [
            any(isinstance(row[place], Estimate) for row in self.rows)
            for place in range(len(self.columns))
        ]
        names: list[str] = []
        for name, several in zip(self.columns, estimates, strict=True):
            names += [name, f"{name}_low", f"{name}_high", f"{name}_n"] if several else [name]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for row in self.rows:
            line: list[object] = []
            for value, several in zip(row, estimates, strict=True):
                if isinstance(value, Estimate):
                    line += [*map(_plain, (value.value, value.low, value.high)), value.n]
                else:
                    line += [_plain(value), *([""] * 3 if several else [])]
            writer.writerow(line)
        return text.getvalue()

    def markdown(self) -> str:
        """Return what a terminal shows as a Markdown table."""
        table = self.table()
        lines = [f"**{table.title}**", "", "| " + " | ".join((table.corner, *table.columns)) + " |"]
        lines.append("|---" * (1 + len(table.columns)) + "|")
        for row in table.rows:
            cells = [f"{cell.text} {cell.interval}".strip() for cell in row.cells]
            line = [text.replace("|", "\\|") for text in (row.label, *cells)]
            lines.append("| " + " | ".join(line) + " |")
        return "\n".join([*lines, "", *(f"{note}\n" for note in table.notes)])

    def _text(self, name: str, value: Value) -> str:
        if isinstance(value, Estimate):
            value = value.value
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return EMPTY
        if isinstance(value, str):
            return value
        if name in self.formats:
            return self.formats[name](value)
        return str(value) if isinstance(value, int) else f"{value:.3f}"

    def _interval(self, name: str, value: Value) -> str:
        if not isinstance(value, Estimate) or value.low is None or value.high is None:
            return ""
        return f"[{self._text(name, value.low)}, {self._text(name, value.high)}]"


@dataclass(frozen=True)
class Result:
    """What a study gives.

    Attributes:
        study: Its name.
        title: What it asks.
        text: What the numbers mean and what they cannot say, in paragraphs.
        sheets: Tables.
        figures: By the name of their files.
        inputs: What it was made from, for study.json: paths, digests, settings.
    """

    study: str
    title: str
    text: str
    sheets: tuple[Sheet, ...]
    figures: Mapping[str, Figure]
    inputs: Mapping[str, object]


def write(result: Result, folder: Path) -> list[Path]:
    """Write a study's files and return where: each one is whole, or as it was before.

    Tables as CSV, figures as PNG and SVG, what it says with both as README.md, and study.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context({key: STYLE[key] for key in ("svg.fonttype", "svg.hashsalt")}):
        for name, figure in result.figures.items():
            for kind in ("png", "svg"):
                data = io.BytesIO()
                metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
                figure.savefig(
                    data, format=kind, dpi=160, bbox_inches="tight", metadata=metadata,
                    facecolor="white",
                )  # fmt: skip
                written.append(_replace(folder / f"{name}.{kind}", data.getvalue()))
    for sheet in result.sheets:
        written += [_replace(folder / f"{sheet.name}.csv", sheet.csv().encode())]
    inputs = json.dumps({"study": result.study, **result.inputs}, indent=2, ensure_ascii=False)
    written.append(_replace(folder / "study.json", f"{inputs}\n".encode()))
    return [*written, _replace(folder / "README.md", _page(result).encode())]


def _page(result: Result) -> str:
    parts = [f"# {result.title}", result.text]
    parts += [f"![{name}]({name}.png)" for name in result.figures]
    parts += [sheet.markdown() for sheet in result.sheets if sheet.shown]
    rest = [f"`{sheet.name}.csv`: {sheet.title}" for sheet in result.sheets]
    return "\n\n".join([*parts, "All tables:", "\n".join(f"- {line}" for line in rest)]) + "\n"


def _replace(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
    return path


def _plain(value: str | float | None) -> str | float | int:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return round(float(value), 9) if isinstance(value, float) else value


def estimate(
    values: Floats, n: int, n_clusters: int = 0, *, n_unscored: int = 0, level: float = LEVEL
) -> Estimate:
    """Return the first value with the percentile interval of the others.

    Without an interval where there are fewer than two clusters, or where more than `MOST_UNDEFINED`
    of the resamples have no value.

    Args:
        values: (1 + resamples,): of the sample, then of its resamples; NaN: undefined.
        n: Number of images, or whatever it is over.
        n_clusters: Number of items that were drawn.
        n_unscored: Images without a score.
        level: Share of the resamples inside the interval, in ``(0, 1)``.
    """
    point = None if np.isnan(values[0]) else float(values[0])
    drawn = values[1:][~np.isnan(values[1:])]
    enough = len(drawn) > 0 and len(drawn) >= (1 - MOST_UNDEFINED) * (len(values) - 1)
    if point is None or n_clusters < 2 or not enough:
        return Estimate(point, None, None, n, n_unscored, n_clusters)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(point, float(low), float(high), n, n_unscored, n_clusters)


def p_value(value: float) -> str:
    """Return a p-value as it is spelled in tables.

    >>> p_value(0.0004), p_value(0.04)
    ('<0.001', '0.040')
    """
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def spoken(value: Estimate, digits: int = 2) -> str:
    """Return an estimate in a sentence.

    >>> spoken(Estimate(0.5921, 0.55, 0.63, 800))
    '0.59 [0.55, 0.63]'
    """
    if value.value is None:
        return "undefined"
    text = f"{value.value:.{digits}f}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
