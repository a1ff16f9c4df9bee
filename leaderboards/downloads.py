"""The tables of a board as CSV and JSON."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from leaderboards.entry import Interval
from leaderboards.shape import as_json
from leaderboards.table import Row
from leaderboards.view import BoardView


def board_tables(view: BoardView) -> dict[str, bytes]:
    """Return a board's tables: path below the site's folder -> content."""
    metrics = [column.metric for column in view.columns]
    rows = [_table_row(view, row) for row in view.board.rows]
    header = ["rank", "track_rank", "name", "label", "track", "licence", "code"]
    for metric in metrics:
        header += [
            metric,
            f"{metric}_low",
            f"{metric}_high",
            f"{metric}_n",
            f"{metric}_unscored",
        ]
    header += ["merge_seconds", "image_seconds", "peak_bytes", "parameters"]
    differences = [
        [a.entry.name, name, d.value, d.low, d.high, d.n, d.n_unscored]
        for a in view.board.rows
        for name, d in a.differences.items()
    ]
    concepts = [
        [row.entry.name, metric, role, concept, mean]
        for row in view.board.rows
        for metric in metrics
        for role in ("subject", "style")
        for concept, mean in view.concept_means(row, metric, role).items()
    ]
    titles = {
        "board": header,
        "differences": ["name", "other", "difference", "low", "high", "n", "unscored"],
        "concepts": ["name", "metric", "role", "concept", "mean"],
    }
    contents = {"board": rows, "differences": differences, "concepts": concepts}
    files = {}
    for name, content in contents.items():
        files[f"{view.folder}/{name}.csv"] = csv_bytes(titles[name], content)
        listed = [dict(zip(titles[name], line, strict=True)) for line in content]
        told = as_json({"board": view.key, "rows": listed})
        text = json.dumps(told, ensure_ascii=False, allow_nan=False)
        files[f"{view.folder}/{name}.json"] = f"{text}\n".encode()
    return files


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Return a CSV file."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return target.getvalue().encode()


def _table_row(view: BoardView, row: Row) -> list[Any]:
    entry = row.entry
    line: list[Any] = [
        row.rank,
        row.track_rank,
        entry.name,
        entry.method.label,
        entry.method.track,
    ]
    line += [entry.method.licence, entry.method.code]
    for column in view.columns:
        score = entry.scores.get(column.metric)
        one = Interval(None, None, None, 0, 0, 0) if score is None else score.average
        line += [one.value, one.low, one.high, one.n, one.n_unscored]
    costs = entry.costs
    return [
        *line,
        costs.merge_seconds,
        costs.image_seconds,
        costs.peak_bytes,
        costs.parameters,
    ]


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"
    return "" if value is None else value
