"""A board as its pages show it: columns, places in words, figures, commands."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from leaderboards.aggregate import concept_means
from leaderboards.entry import SHARES, TRACKS, Entry
from leaderboards.facts import SuiteFacts
from leaderboards.figures import Point, forest, quality_against_time, scatter, strip
from leaderboards.formatting import points, seconds
from leaderboards.records import Records
from leaderboards.stats import cluster_covariance
from leaderboards.table import RANKED_BY, Board, BoardKey, Row

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
    "clip_i_subject": "mean CLIP cosine of the image and the subject's references",
    "clip_i_style": "mean CLIP cosine of the image and the style's references",
    "clip_t": "mean CLIP cosine of the image and the prompt",
    "dino_subject": "mean DINO cosine of the image and the subject's references",
    "dino_style": "mean DINO cosine of the image and the style's references",
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


class BoardView:
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
        title, _, about = facts.title.partition(":") if facts else (board.key.suite, "", "")
        self.title = title
        about = about.strip()
        self.about = about[:1].upper() + about[1:]
        self.current = facts is not None and facts.revision == board.key.revision
        self.published = {
            row.entry.name: published[row.entry.suite.name, row.entry.name] for row in board.rows
        }
        names = dict.fromkeys(name for row in board.rows for name in row.entry.scores)
        order = [*HEADINGS, *sorted(names.keys() - HEADINGS.keys())]
        self.columns = [
            Column(
                name,
                HEADINGS.get(name, name),
                EXPLAINED.get(name, name),
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
        """How many folders below the site's its page lies."""
        return self.folder.count("/") + 1

    @property
    def href(self) -> str:
        """The board's page, from the site's folder."""
        return f"{quote(self.folder)}/index.html"

    @property
    def images(self) -> int:
        """Images of each method."""
        return len(self.cases) * len(self.key.seeds)

    @property
    def strip(self) -> Any:
        """All methods on a line, by their joint scores."""
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
        records = self.published[row.entry.name].records
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
        means = [(row, self.concept_means(row, RANKED_BY, role)) for row in self.board.rows]
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
            records = self.published[row.entry.name].records
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
            f" --batch-size {row.entry.costs.batch_size} --out {out}",
            f"mars2 leaderboard add {out} --dry-run",
        ]

    def references(self) -> list[tuple[str, str, list[str]]]:
        """Role, concept and pictures of what may be shown, from the site's folder."""
        if self.facts is None or not self.current:
            return []
        return [
            (
                role,
                concept,
                [reference_path(self.key.suite, concept, n) for n in range(len(pictures))],
            )
            for role, concepts in (("subject", self.subjects), ("style", self.styles))
            for concept in concepts
            if (pictures := self.facts.references.get(concept))
        ]

    def concept_means(self, row: Row, metric: str, role: str) -> dict[str, float | None]:
        """Return a method's mean score of each subject or style; nothing of a metric it lacks."""
        if metric not in row.entry.scores:
            return {}
        concepts = {case.id: getattr(case, role) for case in self.cases}
        return concept_means(self.published[row.entry.name].records, metric, concepts)


def reference_path(suite: str, concept: str, number: int) -> str:
    """Return where a picture of a concept lies, from the site's folder."""
    return f"{suite}/references/{concept}-{number}.webp"
