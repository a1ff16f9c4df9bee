"""Writes the tables of docs/methods.md and docs/miniworld.md from what was measured.

That is the first board's entries, the critic's metrics.json, and the files in docs/measured: copies
of what `python -m benchmark_data.miniworld.measure suite` writes, of the reference run (suite.json)
and of all of the board's runs (board.json). Run `python docs/make_tables.py` when they have
changed; a test compares the pages with what this makes. A table stands between two comments,
`<!-- table NAME -->` and `<!-- end of table -->`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmark_data.miniworld.world import FAMILIES
from leaderboards.entry import Interval, read_entries
from leaderboards.formatting import seconds
from leaderboards.records import read_records
from leaderboards.table import Board, Row, make_boards

DOCS = Path(__file__).parent
MEASURED = DOCS / "measured"
CRITIC = DOCS.parent / "benchmark_data" / "miniworld" / "weights" / "critic" / "metrics.json"
RESULTS = DOCS.parent / "leaderboards" / "results"
SHOWN = ("direct_sum", "average", "ziplora", "lorarar", "base", "subject_only", "style_only")
MARS2 = ("mars2", "mars2_subject", "mars2_style")
TRUTHS = ("subject", "style", "both")


def first_board() -> Board:
    """Return the miniature world's board."""
    entries = read_entries(RESULTS / "miniworld")
    folder = RESULTS / "miniworld"
    return make_boards([(one, read_records(folder / one.records.file)) for one in entries])[0]


def percent(interval: Interval) -> str:
    """Return a share with its interval in percent."""
    if interval.value is None or interval.low is None or interval.high is None:
        return ""
    low, high = (f"{100 * end:.0f}" for end in (interval.low, interval.high))
    return f"{100 * interval.value:.0f} % [{low}, {high}]"


def short(value: float | None, digits: int = 2) -> str:
    """Return a share or a similarity, without its leading zero."""
    return "" if value is None else f"{value:.{digits}f}".replace("0.", ".", 1)


def lines(header: str, rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    titles = header.split(" | ")
    all_rows = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in all_rows)


def _scores(row: Row) -> list[str]:
    return [percent(row.entry.scores[name].average) for name in MARS2]


def whole_board(board: Board) -> str:
    """Return all methods with rank, scores and costs."""
    rows = []
    for row in board.rows:
        entry, costs = row.entry, row.entry.costs
        similar = (entry.scores[name].average.value for name in ("dino_subject", "clip_i_style"))
        rows.append(
            [
                "" if row.rank is None else str(row.rank),
                f"`{entry.method.label}`",
                entry.method.track,
                *_scores(row),
                *(short(value, 2) for value in similar),
                seconds(costs.merge_seconds),
                seconds(costs.image_seconds),
                f"{(costs.peak_bytes or 0) / 1e9:.2f} GB",
                f"{costs.parameters / 1e3:.0f} k",
            ]
        )
    return lines(
        "rank | method | track | `mars2` | `mars2_subject` | `mars2_style` | `dino_subject` | "
        "`clip_i_style` | a merge | an image | peak memory | stored",
        rows,
    )


def reference_run(board: Board) -> str:
    """Return the paper's methods and the controls."""
    by_label = {row.entry.method.label: row for row in board.rows}
    rows = []
    for row in (by_label[label] for label in SHOWN):
        entry = row.entry
        similar = (entry.scores[name].average.value for name in ("clip_i_style", "dino_subject"))
        merge = "" if entry.control else seconds(entry.costs.merge_seconds)
        label, cosines = entry.method.label, [short(value, 3) for value in similar]
        rows.append([label, *_scores(row), *cosines, merge])
    return lines(
        "method | `mars2` | `mars2_subject` | `mars2_style` | `clip_i_style` | `dino_subject` | "
        "a merge",
        rows,
    )


def measured(part: str) -> Mapping[str, Any]:
    """Return what was measured of a part."""
    figures: Mapping[str, Any] = json.loads((MEASURED / f"{part}.json").read_text("utf-8"))
    return figures


def estimate(value: Mapping[str, Any], digits: int = 2) -> str:
    """Return a share with its interval; there is none where all is alike."""
    mean, low, high = (short(value[name], digits) for name in ("value", "low", "high"))
    return mean if low == high else f"{mean} [{low}, {high}]"


def truth(_: Board) -> str:
    """Return what the classifier finds in the paper's methods' images."""
    truths = measured("suite")["truth by method"]
    rows = [
        [label, *(estimate(truths[label][name]) for name in TRUTHS)]
        for label in SHOWN
        if label in truths
    ]
    return lines("method | classifier: subject | style | both", rows)


def agreement(_: Board) -> str:
    """Return how each score goes with the classifier, on the reference run and over the board."""
    run, board = measured("suite"), measured("board")
    follows, agrees = run["correlation with the truth"], run["judge agrees with the truth"]
    over_board, order = (
        board[name] for name in ("judge agrees with the truth", "rank agreement with the truth")
    )
    rows = [
        [
            f"`{score}`",
            *(estimate(part[score], 3) if score in part else "" for part in (agrees, over_board)),
            *(estimate(follows[score][name]) for name in TRUTHS),
            short(order[score]),
        ]
        for score in (*MARS2, "clip_i_style", "clip_i_subject", "dino_style", "dino_subject")
    ]
    return lines(
        "score | agrees with the classifier | over all of the board | correlation with subject | "
        "with style | with both | order of the methods on the board: Kendall's tau",
        rows,
    )


def refused_textures(_: Board) -> str:
    """Return how many pictures the critic refuses that differ from a style in texture alone."""
    figures = json.loads(CRITIC.read_text("utf-8"))
    known, held = (figures[split]["style, texture refused"] for split in ("seen", "held out"))
    families = [name for name in FAMILIES if name in known["other texture"]]
    rows = [
        [
            kind,
            *(short(known[kind].get(name)) for name in (*families, "all")),
            short(held[kind]["all"]),
        ]
        for kind in ("other texture", "no texture")
    ]
    return lines(" | ".join((" ", *families, "all", "the five test styles")), rows)


def fading(_: Board) -> str:
    """Return who takes a picture for one in a style, by the contrast of its texture."""
    shares = measured("fading")
    styles = list(shares["critic"])
    rows = [
        [contrast, *(short(shares[who][style][contrast]) for style in styles for who in shares)]
        for contrast in shares["critic"][styles[0]]
    ]
    titles = [f"{style}: {who}" for style in styles for who in shares]
    return lines(" | ".join(("contrast", *titles)), rows)


TABLES: Mapping[str, Mapping[str, Callable[[Board], str]]] = {
    "methods.md": {"whole board": whole_board},
    "miniworld.md": {
        "reference run": reference_run,
        "truth": truth,
        "agreement": agreement,
        "refused textures": refused_textures,
        "fading": fading,
    },
}


def pages() -> dict[Path, str]:
    """Return each page's text with its tables as they have to be.

    Raises:
        ValueError: A page lacks a table's comments.
    """
    board, texts = first_board(), {}
    for name, tables in TABLES.items():
        text = (DOCS / name).read_text(encoding="utf-8")
        for title, make in tables.items():
            head, begin, rest = text.partition(f"<!-- table {title} -->\n")
            _, end, tail = rest.partition("\n<!-- end of table -->")
            if not begin or not end:
                raise ValueError(f"{name} lacks the comments of table {title!r}")
            text = head + begin + make(board) + end + tail
        texts[DOCS / name] = text
    return texts


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
