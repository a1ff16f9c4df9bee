"""Boards as static pages: one folder that any host, or a browser from disk, can show.

No server, no request to anyone else, and the same entries give the same bytes. Texts of entries are
strangers': every one is escaped, whatever `leaderboards.check` said.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from leaderboards.check import LICENCES
from leaderboards.downloads import board_tables, csv_bytes
from leaderboards.entry import CONTROLS, TRACKS, Entry, entry_bytes
from leaderboards.facts import SuiteFacts
from leaderboards.formatting import cosine, count, points, seconds, size_in_bytes
from leaderboards.records import Records
from leaderboards.reported import Reported
from leaderboards.shape import as_json
from leaderboards.table import Board, make_boards
from leaderboards.view import EXPLAINED, HEADINGS, BoardView, Published, reference_path

ASSETS = ("style.css", "site.js")


def read_published(entries: Iterable[tuple[Entry, Records]], results: Path) -> list[Published]:
    """Return entries with the content of the files beside them."""
    return [
        Published(
            entry,
            records,
            (results / entry.suite.name / entry.records.file).read_bytes(),
            (results / entry.suite.name / entry.sheet.file).read_bytes(),
        )
        for entry, records in entries
    ]


def build_site(
    published: Sequence[Published],
    suites: Mapping[str, SuiteFacts],
    reported: Reported,
    *,
    links: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """Return the site: path below its folder -> content.

    Args:
        published: All entries.
        suites: Suite -> what it is, of the suites that have entries or reported results.
        reported: Results of papers.
        links: Text -> https:// address, shown at the foot of each page.
    """
    by_name = {(one.entry.suite.name, one.entry.name): one for one in published}
    boards = make_boards([(one.entry, one.records) for one in published])
    shown = dict.fromkeys([*suites, *(board.key.suite for board in boards)])
    pages: dict[str, bytes] = {}
    views: dict[str, list[BoardView]] = {}
    for suite in shown:
        own = [board for board in boards if board.key.suite == suite]
        facts = suites.get(suite)
        own.sort(key=lambda board: _place(board, facts))
        views[suite] = [
            BoardView(board, facts, by_name, folder=_folder(board, number))
            for number, board in enumerate(own)
        ]
    shared = {
        "links": dict(links or {}),
        "tracks": TRACKS,
        "headings": HEADINGS,
        "explained": EXPLAINED,
    }
    render = _Renderer(shared)
    for suite, group in views.items():
        facts = suites.get(suite)
        for view in group:
            pages |= _board_pages(view, render, group, reported)
        if not group:
            pages[f"{quote(suite)}/index.html"] = render(
                "empty.html.j2", 1, suite=suite, facts=facts, reported=reported.of(suite)
            )
    pages["index.html"] = render(
        "index.html.j2", 0, suites=[(s, suites.get(s), views[s], reported.of(s)) for s in views]
    )
    pages["submit.html"] = render("submit.html.j2", 0, licences=LICENCES, controls=CONTROLS)
    pages["reported.csv"] = csv_bytes(
        ["suite", "method", "measure", "value", "source", "url"],
        [
            [source.suite, figure.method, source.measure, figure.value, source.source, source.url]
            for suite in dict.fromkeys(source.suite for source in reported.sources)
            for source, figures in reported.of(suite)
            for figure in figures
        ],
    )
    for name in ASSETS:
        pages[f"assets/{name}"] = (Path(__file__).parent / "templates" / name).read_bytes()
    return pages


def write_site(pages: Mapping[str, bytes], out: Path) -> None:
    """Write pages into a folder; what else is there is left alone."""
    for name, content in sorted(pages.items()):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class _Renderer:
    """Renders templates with what every page needs."""

    def __init__(self, shared: Mapping[str, Any]) -> None:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters |= {
            "points": points,
            "cosine": cosine,
            "seconds": seconds,
            "bytes_": partial(size_in_bytes, none="\u2013"),
            "count": count,
            "href": quote,
        }
        environment.globals |= shared
        self._environment = environment

    def __call__(self, name: str, depth: int, **values: Any) -> bytes:
        """Return a page that lies so many folders below the site's."""
        template = self._environment.get_template(name)
        return template.render(root="../" * depth, **values).encode()


def _board_pages(
    view: BoardView, render: _Renderer, group: Sequence[BoardView], reported: Reported
) -> dict[str, bytes]:
    """Return all files of a board, one of its suite's."""
    folder = view.folder
    main = view is group[0]
    files = {
        f"{folder}/index.html": render(
            "board.html.j2",
            view.depth,
            view=view,
            others=[other for other in group if other is not view],
            main=main,
            reported=reported.of(view.key.suite) if main else [],
            data={
                "cases": [[case.id, case.subject, case.style] for case in view.cases],
                "columns": view.board.rows[0].entry.sheet.columns,
            },
        ),
        **board_tables(view),
    }
    for row in view.board.rows:
        one, name = view.published[row.entry.name], row.entry.name
        files |= {
            f"{folder}/{name}.html": render("method.html.j2", view.depth, view=view, row=row),
            f"{folder}/files/{name}.json": entry_bytes(row.entry),
            f"{folder}/files/{row.entry.records.file}": one.records_file,
            f"{folder}/files/{row.entry.sheet.file}": one.sheet,
        }
    if view.facts is not None and view.current:
        for concept, pictures in view.facts.references.items():
            for number, picture in enumerate(pictures):
                files[reference_path(view.key.suite, concept, number)] = picture
    return files


def _place(board: Board, facts: SuiteFacts | None) -> tuple[Any, ...]:
    """Order of a suite's boards: the present revision, its own judge, then the largest."""
    key = board.key
    return (
        facts is None or key.revision != facts.revision,
        not key.own_judge,
        -len(board.rows),
        repr(key),
    )


def _folder(board: Board, number: int) -> str:
    if number == 0:
        return board.key.suite
    digest = hashlib.sha256(repr(as_json(board.key)).encode()).hexdigest()[:8]
    return f"{board.key.suite}/board-{digest}"
