"""What a scored folder comes to: tables, scores.json, the picture grid and a self-contained page.

Only records and images are read; no model is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mars2.report.grid import choose, write_grid
from mars2.report.html import write_html
from mars2.report.scores import write_scores
from mars2.report.summary import MethodSummary, ScoreSummary, Source, Summary, summarise
from mars2.report.terminal import print_table, terminal_table
from mars2.store import RunStore

__all__ = [
    "MethodSummary",
    "ReportPaths",
    "ScoreSummary",
    "Source",
    "Summary",
    "print_table",
    "summarise",
    "terminal_table",
    "write_report",
    "write_scores",
]


@dataclass(frozen=True)
class ReportPaths:
    """Where a report was written."""

    scores: Path
    html: Path
    grid: Path


def write_report(
    store: RunStore, summary: Summary, *, references: Mapping[str, Sequence[Path]]
) -> ReportPaths:
    """Write scores.json, report.html and grid.png into the store's folder.

    Args:
        store: A run, or the results of a scored folder of images.
        summary: Of the store.
        references: Concept id -> reference images, in the order the judge was shown them; of a
            concept that is not in it none is shown.

    Raises:
        RunError: An image cannot be read.
    """
    paths = ReportPaths(
        scores=store.folder / "scores.json",
        html=store.folder / "report.html",
        grid=store.folder / "grid.png",
    )
    write_scores(summary, paths.scores)
    grid = choose(store, summary)
    write_grid(grid, references, paths.grid)
    write_html(store, summary, grid, references, paths.html)
    return paths
