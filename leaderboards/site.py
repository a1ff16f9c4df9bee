"""Boards as static pages: one folder that any host, or a browser from disk, can show.

No server, no request to anyone else, and the same entries give the same bytes. Texts of entries are
strangers': every one is escaped, whatever `leaderboards.check` said.
"""

import csv
import hashlib
import io
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from leaderboards.aggregate import concept_means
from leaderboards.check import LICENCES
from leaderboards.entry import CONTROLS, SHARES, TRACKS, Entry, Interval, entry_bytes
from leaderboards.facts import SuiteFacts
from leaderboards.figures import Point, forest, quality_against_time, scatter, strip
from leaderboards.records import Records
from leaderboards.reported import Reported
from leaderboards.shape import as_json
from leaderboards.stats import cluster_covariance
from leaderboards.table import RANKED_BY, Board, BoardKey, Row, make_boards

ASSETS = ("style.css", "site.js")
HEADINGS: Mapping[str, str] = {
    "mars2": "MARS2",
    "mars2_subject": "Subject",
    "mars2_style": "Style",
    "mars2_subject_yes": "Subject yes",
    "mars2_style_yes": "Style yes",
    "clip_i_subject": "CLIP-I subject",
    "clip_i_style": "CLIP-I style",
    "clip_t": "CLIP-T",
    "dino_subject": "DINO subject",
    "dino_style": "DINO style",
}
"""What the scores are called, in the order they are shown."""
EXPLAINED: Mapping[str, str] = {
    "mars2": "share of images whose subject and style the judge both recognises",
    "mars2_subject": "share of images whose subject the judge recognises",
    "mars2_style": "share of images whose style the judge recognises",
    "mars2_subject_yes": "share of the subject's references that the judge says yes to",
    "mars2_style_yes": "share of the style's references that the judge says yes to",
}
CODES: Mapping[tuple[float | None, float | None], str] = {
    (1.0, 1.0): "b",
    (1.0, 0.0): "s",
    (0.0, 1.0): "t",
    (0.0, 0.0): "n",
}
"""What is right in an image, a letter: both, subject only, style (t) only, neither; else u."""


@dataclass(frozen=True)
class Published:
    """An entry with what lies beside it.

    Attributes:
        entry: The result.
        records: Its records, read.
        records_file: Their file's content.
        sheet: Its contact sheet's content.
    """

    entry: Entry
    records: Records
    records_file: bytes
    sheet: bytes


@dataclass(frozen=True)
class Column:
    """A column of the table: `group` is what it is shown with."""

    metric: str
    heading: str
    explained: str
    group: str
    share: bool


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
    views: dict[str, list[_BoardView]] = {}
    for suite in shown:
        own = [board for board in boards if board.key.suite == suite]
        facts = suites.get(suite)
        own.sort(key=lambda board: _place(board, facts))
        views[suite] = [
            _BoardView(board, facts, by_name, folder=_folder(board, number))
            for number, board in enumerate(own)
        ]
    shared = {"links": dict(links or {}), "tracks": TRACKS, "headings": HEADINGS}
    render = _Renderer(shared)
    for suite, group in views.items():
        facts = suites.get(suite)
        for view in group:
            pages |= view.pages(render, group, reported)
        if not group:
            pages[f"{quote(suite)}/index.html"] = render(
                "empty.html.j2", 1, suite=suite, facts=facts, reported=reported.of(suite)
            )
    pages["index.html"] = render(
        "index.html.j2", 0, suites=[(s, suites.get(s), views[s], reported.of(s)) for s in views]
    )
    pages["submit.html"] = render("submit.html.j2", 0, licences=LICENCES, controls=CONTROLS)
    pages["reported.csv"] = _csv(
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
            "cosine": _cosine,
            "seconds": seconds,
            "bytes_": bytes_,
            "count": _count,
            "href": quote,
        }
        environment.globals |= shared
        self._environment = environment

    def __call__(self, name: str, depth: int, **values: Any) -> bytes:
        """Return a page that lies so many folders below the site's."""
        template = self._environment.get_template(name)
        return template.render(root="../" * depth, **values).encode()


class _BoardView:
    """A board as its pages show it."""

    def __init__(
        self,
        board: Board,
        facts: SuiteFacts | None,
        published: Mapping[tuple[str, str], Published],
        *,
        folder: str,
    ) -> None:
        self.board = board
        self.key: BoardKey = board.key
        self.facts = facts
        self.folder = folder
        self.title = facts.title.partition(":")[0] if facts else board.key.suite
        self.current = facts is not None and facts.revision == board.key.revision
        self._published = {
            row.entry.name: published[row.entry.suite.name, row.entry.name] for row in board.rows
        }
        names = dict.fromkeys(name for row in board.rows for name in row.entry.scores)
        order = [*HEADINGS, *sorted(names.keys() - HEADINGS.keys())]
        self.columns = [
            Column(
                name,
                HEADINGS.get(name, name),
                EXPLAINED.get(name, "mean cosine" if name in HEADINGS else name),
                "judge" if name in SHARES else "similarity",
                name in SHARES,
            )
            for name in order
            if name in names and not name.endswith("_yes")
        ]
        highest = max(
            (
                row.entry.scores[RANKED_BY].average.high
                or row.entry.scores[RANKED_BY].average.value
                or 0.0
                for row in board.rows
            ),
            default=1.0,
        )
        self.top = next(top for top in (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0) if highest <= top + 1e-9)
        self.cases = board.rows[0].entry.cases
        self.subjects = list(dict.fromkeys(case.subject for case in self.cases))
        self.styles = list(dict.fromkeys(case.style for case in self.cases))
        self.first = [row for row in board.ranked if row.rank == 1]
        self.tracks = [
            track
            for track in TRACKS
            if track != "control" and any(row.entry.method.track == track for row in board.rows)
        ]

    @property
    def depth(self) -> int:
        return self.folder.count("/") + 1

    @property
    def href(self) -> str:
        """The board's page, from the site's folder."""
        return f"{quote(self.folder)}/index.html"

    @property
    def images(self) -> int:
        return len(self.cases) * len(self.key.seeds)

    @property
    def strip(self) -> Any:
        return strip(
            [
                (row.entry.scores[RANKED_BY].average.value or 0.0, row.entry.method.track)
                for row in reversed(self.board.rows)
            ],
            top=self.top,
        )

    def page(self, row: Row) -> str:
        """A method's page, from the board's folder."""
        return quote(f"{row.entry.name}.html")

    def scale(self, value: float | None) -> str:
        """Percent of the joint score's bar."""
        return "" if value is None else f"{100 * min(value / self.top, 1):.1f}"

    def codes(self, row: Row) -> str:
        """What the judge said of the image of each pair on the contact sheet, a letter each."""
        records = self._published[row.entry.name].records
        verdicts = {
            record.case: CODES.get(
                (record.value("mars2_subject"), record.value("mars2_style")), "u"
            )
            for record in records.rows
            if record.seed == row.entry.sheet.seed
        }
        return "".join(verdicts.get(case.id, "u") for case in self.cases)

    def heat(self, role: str) -> list[tuple[Row, list[tuple[float | None, float]]]]:
        """Joint MARS2 of each subject or style, and its share of the highest; a row a method."""
        concepts: list[str] = getattr(self, f"{role}s")
        means = [(row, self._concepts(row, RANKED_BY, role)) for row in self.board.rows]
        top = max((value or 0.0 for _, of_row in means for value in of_row.values()), default=0.0)
        return [
            (row, [(x := of_row.get(concept), (x or 0.0) / (top or 1.0)) for concept in concepts])
            for row, of_row in means
        ]

    def told(self, row: Row) -> str:
        """A method's result in a line."""
        score = row.entry.scores[RANKED_BY].average
        return f"{row.entry.method.label}: MARS2 {points(score.value)} %"

    def placed(self, row: Row) -> str:
        """A method's place in words."""
        if row.rank is None:
            what = "it is a control" if row.entry.control else "the judge gave it no score"
            return f"Not ranked: {what}."
        ranked = self.board.ranked
        own = sum(one.entry.method.track == row.entry.method.track for one in ranked)
        told = [f"Rank {row.rank} of {len(ranked)}, and {row.track_rank} of {own} in its track."]
        better, tied = len(row.better), len(row.tied)
        verb = "method is" if better == 1 else "methods are"
        told.append(f"{better} {verb} better." if better else "No method is better.")
        if tied:
            told.append(f"{tied} cannot be told apart from it.")
        return " ".join(told)

    def scatter(self) -> Any:
        """Style against subject."""
        found = []
        for row in self.board.rows:
            subject = row.entry.scores["mars2_subject"].average.value
            style = row.entry.scores["mars2_style"].average.value
            if subject is None or style is None:
                continue
            records = self._published[row.entry.name].records
            covariance = cluster_covariance(
                records.values("mars2_style"), records.values("mars2_subject"), records.cases
            )
            found.append(
                Point(
                    row.entry.method.label,
                    self.page(row),
                    f"track-{row.entry.method.track}",
                    style,
                    subject,
                    covariance=None
                    if covariance is None
                    else (
                        float(covariance[0, 0]),
                        float(covariance[0, 1]),
                        float(covariance[1, 1]),
                    ),
                    told=f"{row.entry.method.label}: style {points(style)} %, subject "
                    f"{points(subject)} %",
                )
            )
        return scatter(found, title="Subject against style, each method a point")

    def quality(self) -> Any:
        """Joint score against merge time; controls merge nothing and are left out."""
        found = []
        for row in self.board.ranked:
            score, taken = row.entry.scores[RANKED_BY].average, row.entry.costs.merge_seconds
            if score.value is None or taken <= 0:
                continue
            found.append(
                Point(
                    row.entry.method.label,
                    self.page(row),
                    f"track-{row.entry.method.track}",
                    taken,
                    score.value,
                    score.low,
                    score.high,
                    told=f"{self.told(row)}, {seconds(taken)} a merge",
                )
            )
        return quality_against_time(
            found, title="MARS2 against the time of a merge, each method a point", top=self.top
        )

    def forest(self, row: Row) -> Any:
        """A method's paired differences to all others."""
        lines = [
            (other.entry.method.label, self.page(other), d.value, d.low, d.high)
            for other in self.board.rows
            if other.entry.name != row.entry.name
            and (d := row.differences[other.entry.name]).value is not None
            and d.low is not None
            and d.high is not None
        ]
        most = max((abs(end) for line in lines for end in line[2:]), default=0.1)
        most = max(math.ceil(most * 10) / 10, 0.1)
        return forest(lines, title=f"MARS2 of {row.entry.method.label} less others'", most=most)

    def reproduce(self, row: Row) -> list[str]:
        """The commands that measure a method again."""
        method = row.entry.method
        passed = ",".join(f"{key}={value}" for key, value in method.options.items())
        text = f"{method.name}:{passed}" if passed else method.name
        out = f"runs/{method.name}"
        adapters = "" if self.facts is None or self.facts.adapters else " --adapters adapters"
        return [
            f"mars2 run --suite {self.key.suite} --method {shlex.quote(text)}{adapters}"
            f" --out {out}",
            f"mars2 leaderboard add {out} --dry-run",
        ]

    def references(self) -> list[tuple[str, str, list[str]]]:
        """Role, concept and pictures of what may be shown, from the site's folder."""
        if self.facts is None or not self.current:
            return []
        return [
            (role, concept, [self._reference(concept, n) for n in range(len(pictures))])
            for role, concepts in (("subject", self.subjects), ("style", self.styles))
            for concept in concepts
            if (pictures := self.facts.references.get(concept))
        ]

    def _reference(self, concept: str, number: int) -> str:
        return f"{quote(self.key.suite)}/references/{quote(concept)}-{number}.webp"

    def pages(
        self, render: _Renderer, group: Sequence["_BoardView"], reported: Reported
    ) -> dict[str, bytes]:
        """All files of the board."""
        folder = self.folder
        main = self is group[0]
        files = {
            f"{folder}/index.html": render(
                "board.html.j2",
                self.depth,
                view=self,
                others=[view for view in group if view is not self],
                main=main,
                reported=reported.of(self.key.suite) if main else [],
                data={
                    "cases": [[case.id, case.subject, case.style] for case in self.cases],
                    "columns": self.board.rows[0].entry.sheet.columns,
                },
            ),
            **self._tables(),
        }
        for row in self.board.rows:
            one, name = self._published[row.entry.name], row.entry.name
            files |= {
                f"{folder}/{name}.html": render("method.html.j2", self.depth, view=self, row=row),
                f"{folder}/files/{name}.json": entry_bytes(row.entry),
                f"{folder}/files/{row.entry.records.file}": one.records_file,
                f"{folder}/files/{row.entry.sheet.file}": one.sheet,
            }
        if self.facts is not None and self.current:
            for concept, pictures in self.facts.references.items():
                for number, picture in enumerate(pictures):
                    files[f"{self.key.suite}/references/{concept}-{number}.webp"] = picture
        return files

    def _tables(self) -> dict[str, bytes]:
        metrics = [column.metric for column in self.columns]
        rows = [self._table_row(row) for row in self.board.rows]
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
            for a in self.board.rows
            for name, d in a.differences.items()
        ]
        concepts = [
            [row.entry.name, metric, role, concept, mean]
            for row in self.board.rows
            for metric in metrics
            for role in ("subject", "style")
            for concept, mean in self._concepts(row, metric, role).items()
        ]
        titles = {
            "board": header,
            "differences": ["name", "other", "difference", "low", "high", "n", "unscored"],
            "concepts": ["name", "metric", "role", "concept", "mean"],
        }
        contents = {"board": rows, "differences": differences, "concepts": concepts}
        files = {}
        for name, content in contents.items():
            files[f"{self.folder}/{name}.csv"] = _csv(titles[name], content)
            listed = [dict(zip(titles[name], line, strict=True)) for line in content]
            told = as_json({"board": self.key, "rows": listed})
            text = json.dumps(told, ensure_ascii=False, allow_nan=False)
            files[f"{self.folder}/{name}.json"] = f"{text}\n".encode()
        return files

    def _table_row(self, row: Row) -> list[Any]:
        entry = row.entry
        line: list[Any] = [
            row.rank,
            row.track_rank,
            entry.name,
            entry.method.label,
            entry.method.track,
        ]
        line += [entry.method.licence, entry.method.code]
        for column in self.columns:
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

    def _concepts(self, row: Row, metric: str, role: str) -> dict[str, float | None]:
        if metric not in row.entry.scores:
            return {}
        concepts = {case.id: getattr(case, role) for case in self.cases}
        return concept_means(self._published[row.entry.name].records, metric, concepts)


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


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return target.getvalue().encode()


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"
    return "" if value is None else value


def points(share: float | None) -> str:
    """Return a share in percent, without the sign.

    >>> points(0.0426)
    '4.3'
    """
    return "\u2013" if share is None else f"{100 * share:.1f}"


def _cosine(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3f}".replace("-", "\u2212")


def seconds(value: float) -> str:
    """Return a time with two or three digits and its unit.

    >>> seconds(0.00213), seconds(31.44), seconds(4000)
    ('2.1 ms', '31 s', '67 min')
    """
    if value < 0.9995:
        return f"{1000 * value:.2g} ms" if value < 0.0995 else f"{1000 * value:.0f} ms"
    if value < 9.95:
        return f"{value:.1f} s"
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"


def bytes_(value: int | None) -> str:
    """Return an amount of memory.

    >>> bytes_(1_099_390_976)
    '1.02 GiB'
    """
    if value is None:
        return "\u2013"
    if value < 2**30:
        return f"{value / 2**20:.0f} MiB"
    return f"{value / 2**30:.2f} GiB" if value < 10 * 2**30 else f"{value / 2**30:.0f} GiB"


def _count(value: int) -> str:
    """Return a number of numbers in short."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)
