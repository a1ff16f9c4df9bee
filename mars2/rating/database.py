"""Keeps a rating study: questions, links and answers, in one SQLite file that survives a kill.

An answer is on disk before it is acknowledged (write-ahead log, synchronised at each commit). It is
known by rater, position and aspect, so that the same answer sent twice is one answer.
"""

import dataclasses
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmark_data.references import file_digest
from mars2.job import RunError
from mars2.rating.questions import ANSWERS, Design, Example, Plan, Task

SCHEMA = 1
LONGEST_NAME = 80
LONGEST_NOTE = 2000

_TABLES = """
CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE seats (
    rater INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE,
    name TEXT, visit TEXT UNIQUE, joined TEXT
);
CREATE TABLE images (id TEXT PRIMARY KEY, path TEXT NOT NULL UNIQUE, digest TEXT NOT NULL);
CREATE TABLE tasks (
    rater INTEGER NOT NULL, position INTEGER NOT NULL, content TEXT NOT NULL,
    PRIMARY KEY (rater, position)
);
CREATE TABLE answers (
    rater INTEGER NOT NULL, position INTEGER NOT NULL, aspect TEXT NOT NULL, answer TEXT NOT NULL,
    seconds REAL NOT NULL, changes INTEGER NOT NULL DEFAULT 0, at TEXT NOT NULL,
    PRIMARY KEY (rater, position, aspect)
);
CREATE TABLE notes (
    rater INTEGER NOT NULL, position INTEGER NOT NULL, note TEXT NOT NULL, at TEXT NOT NULL,
    PRIMARY KEY (rater, position)
);
"""


class AnswerError(ValueError):
    """What was sent is no answer to one of the rater's questions."""


@dataclass(frozen=True)
class Seat:
    """A rater's place in a study.

    Attributes:
        rater: Number, from 0.
        token: Secret part of the rater's own link.
        name: What the rater calls themself; "": nobody sits here, or a nameless one.
        joined: When somebody came in by the common link; "": nobody did.
    """

    rater: int
    token: str
    name: str
    joined: str

    @property
    def code(self) -> str:
        """The rater's name in the exported files.

        >>> Seat(0, "secret", "Ada", "").code
        'r01'
        """
        return f"r{self.rater + 1:02}"


@dataclass(frozen=True)
class Answer:
    """What a rater said about one aspect of one task.

    Attributes:
        position: Of the task, from 0.
        aspect: What was asked about.
        answer: Of the answers of the task's mode.
        seconds: From the task's appearing to the first answer.
        changes: How often the rater thought better of it.
        at: Time of the last change, UTC.
    """

    position: int
    aspect: str
    answer: str
    seconds: float
    changes: int
    at: str


class RatingDatabase:
    """One study's file. Methods may be called from several threads.

    Attributes:
        path: The file.
        design: What the study is.
        join_token: Secret part of the link that all raters may use.
        left_out: Pairs and seeds that a method has no image of.
    """

    def __init__(self, path: Path, run: Path) -> None:
        self.path = path
        self._run = run
        self._lock = threading.Lock()
        self._connection = _connect(path)
        study = self._study()
        self.design = _design(study["design"])
        self.join_token = str(study["join_token"])
        self.left_out = int(study["left_out"])
        self._images = {
            str(key): (self._placed(place), str(digest))
            for key, place, digest in self._rows("SELECT id, path, digest FROM images")
        }
        self._names = {place: key for key, (place, _) in self._images.items()}
        self._tasks: list[list[Task]] = [[] for _ in range(self.design.raters)]
        for rater, content in self._rows(
            "SELECT rater, content FROM tasks ORDER BY rater, position"
        ):
            self._tasks[rater].append(self._task(json.loads(content)))
        self.examples = tuple(self._example(one) for one in study["examples"])

    @staticmethod
    def exists(path: Path) -> bool:
        """Return whether a study was begun in a file."""
        if not path.is_file():
            return False
        try:
            with closing(_connect(path)) as connection:
                found = connection.execute(
                    "SELECT count(*) FROM sqlite_master WHERE name = 'study'"
                ).fetchone()
        except sqlite3.DatabaseError as error:
            raise RunError(f"{path} is no rating study: {error}; choose another --out") from error
        return bool(found[0])

    @classmethod
    def create(cls, path: Path, run: Path, plan: Plan) -> "RatingDatabase":
        """Write a new study, whole or not at all, and open it.

        Args:
            path: The file, which has no study yet.
            run: Folder of the run; images inside it may move with it.
            plan: The questions.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # it holds the raters' links and names
        shown = [
            file
            for own in plan.tasks
            for task in own
            for file in (*task.images, *task.subject, *task.style)
        ]
        shown += [file for one in plan.examples for file in (one.image, *one.references)]
        places = {_place(file, run): file for file in dict.fromkeys(shown)}
        images = {
            place: (secrets.token_urlsafe(12), file_digest(file)) for place, file in places.items()
        }
        names = {file: images[_place(file, run)][0] for file in dict.fromkeys(shown)}
        content = {
            "schema": SCHEMA,
            "design": dataclasses.asdict(plan.design),
            "join_token": secrets.token_urlsafe(18),
            "left_out": plan.left_out,
            "examples": [_stored(example, names) for example in plan.examples],
        }
        with closing(_connect(path)) as connection, _transaction(connection):
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.executemany(
                "INSERT INTO study VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in content.items()],
            )
            connection.executemany(
                "INSERT INTO images VALUES (?, ?, ?)",
                [(key, place, digest) for place, (key, digest) in images.items()],
            )
            connection.executemany(
                "INSERT INTO seats (rater, token) VALUES (?, ?)",
                [(rater, secrets.token_urlsafe(18)) for rater in range(plan.design.raters)],
            )
            connection.executemany(
                "INSERT INTO tasks VALUES (?, ?, ?)",
                [
                    (rater, position, json.dumps(_stored(task, names)))
                    for rater, own in enumerate(plan.tasks)
                    for position, task in enumerate(own)
                ],
            )
        return cls(path, run)

    def check_images(self) -> None:
        """Refuse to go on if an image is not the one that the study began with.

        Raises:
            RunError: It was changed, or is gone.
        """
        for place, digest in self._images.values():
            there = place.is_file()
            if not there or file_digest(place) != digest:
                raise RunError(
                    f"{place} {'was changed' if there else 'is gone'} since the rating study "
                    f"{self.path} began: put it back, or begin another study with --out"
                )

    def close(self) -> None:
        """Close the file; what was acknowledged is in it anyway."""
        with self._lock:
            self._connection.close()

    def image(self, key: str) -> Path | None:
        """Return the file of an image, by what the browser calls it."""
        return self._images[key][0] if key in self._images else None

    def image_key(self, path: Path) -> str:
        """Return what the browser calls a file: random, and the same throughout a study."""
        return self._names[path]

    def tasks(self, rater: int) -> Sequence[Task]:
        """Return a rater's tasks, in the order shown."""
        return self._tasks[rater]

    def seats(self) -> list[Seat]:
        """Return all places."""
        rows = self._rows("SELECT rater, token, name, joined FROM seats ORDER BY rater")
        return [Seat(rater, token, name or "", joined or "") for rater, token, name, joined in rows]

    def seat(self, token: str) -> Seat | None:
        """Return the place that a link leads to, if any."""
        rows = self._rows("SELECT rater, token, name, joined FROM seats WHERE token = ?", (token,))
        return next((Seat(row[0], row[1], row[2] or "", row[3] or "") for row in rows), None)

    def join(self, name: str, visit: str) -> Seat | None:
        """Return a place for somebody who came by the common link; None: all are taken.

        A place whose own link was used already counts as taken.

        Args:
            name: What the rater wants to be called.
            visit: Random text of the form that was sent; sent again, it gives the same place.
        """
        name = " ".join(name.split())[:LONGEST_NAME]
        with self._lock, _transaction(self._connection):
            known = self._connection.execute(
                "SELECT token FROM seats WHERE visit = ?", (visit,)
            ).fetchone()
            if known is None:
                known = self._connection.execute(
                    "UPDATE seats SET name = ?, visit = ?, joined = ? WHERE rater = ("
                    "SELECT min(rater) FROM seats WHERE joined IS NULL "
                    "AND rater NOT IN (SELECT rater FROM answers)) RETURNING token",
                    (name, visit, _now()),
                ).fetchone()
        return None if known is None else self.seat(known[0])

    def record(self, rater: int, position: int, aspect: str, answer: str, seconds: float) -> None:
        """Write an answer, or what it was changed to; it is on disk when this returns.

        Raises:
            AnswerError: The rater was asked no such thing.
        """
        task = self._asked(rater, position)
        if aspect not in task.aspects or answer not in ANSWERS[task.mode]:
            raise AnswerError(f"{answer!r} is no answer about {aspect!r} to question {position}")
        self._write(
            "INSERT INTO answers (rater, position, aspect, answer, seconds, at) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "answer = excluded.answer, at = excluded.at, changes = changes + 1 "
            "WHERE answer != excluded.answer",
            (rater, position, aspect, answer, seconds, _now()),
        )

    def note(self, rater: int, position: int, note: str) -> None:
        """Write a rater's note on a task; an empty one takes it back.

        Raises:
            AnswerError: There is no such task, or the note is too long.
        """
        self._asked(rater, position)
        if len(note) > LONGEST_NOTE:
            raise AnswerError(f"a note has at most {LONGEST_NOTE} characters")
        self._write(
            "INSERT INTO notes VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET note = excluded.note, at = excluded.at",
            (rater, position, note, _now()),
        )

    def answers(self, rater: int) -> list[Answer]:
        """Return what a rater answered, in the order of the questions."""
        rows = self._rows(
            "SELECT position, aspect, answer, seconds, changes, at FROM answers WHERE rater = ? "
            "ORDER BY position, aspect",
            (rater,),
        )
        return [Answer(*row) for row in rows]

    def notes(self, rater: int) -> dict[int, str]:
        """Return a rater's notes, by position."""
        rows = self._rows(
            "SELECT position, note FROM notes WHERE rater = ? AND note != '' ORDER BY position",
            (rater,),
        )
        return dict(rows)

    def _asked(self, rater: int, position: int) -> Task:
        if not 0 <= position < len(self._tasks[rater]):
            raise AnswerError(f"there is no question {position}")
        return self._tasks[rater][position]

    def _write(self, statement: str, values: Sequence[Any]) -> None:
        with self._lock:
            self._connection.execute(statement, values)  # a transaction of its own

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _study(self) -> dict[str, Any]:
        try:
            study = {
                key: json.loads(value) for key, value in self._rows("SELECT key, value FROM study")
            }
        except sqlite3.DatabaseError as error:
            raise RunError(f"{self.path} is no rating study: {error}") from error
        if study.get("schema") != SCHEMA:
            raise RunError(
                f"{self.path} has schema {study.get('schema')!r}, not {SCHEMA}: another version "
                "wrote it"
            )
        return study

    def _placed(self, place: str) -> Path:
        return self._run / place  # an absolute one stays

    def _task(self, data: dict[str, Any]) -> Task:
        files = {key: self._files(data[key]) for key in ("images", "subject", "style")}
        lists = {key: tuple(data[key]) for key in ("aspects", "methods")}
        return Task(**{**data, **files, **lists})

    def _example(self, data: dict[str, Any]) -> Example:
        (image,) = self._files([data["image"]])
        return Example(**{**data, "image": image, "references": self._files(data["references"])})

    def _files(self, keys: Sequence[str]) -> tuple[Path, ...]:
        return tuple(self._images[key][0] for key in keys)


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file; without an isolation level, each statement is committed as it ends."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        yield


def _design(data: Mapping[str, Any]) -> Design:
    return Design(**{**data, "methods": tuple(data["methods"]), "aspects": tuple(data["aspects"])})


def _stored(value: Task | Example, names: Mapping[Path, str]) -> dict[str, Any]:
    """Return the fields of a task or example, files by their keys."""

    def named(item: Any) -> Any:
        if isinstance(item, Path):
            return names[item]
        return [named(one) for one in item] if isinstance(item, tuple) else item

    return {item.name: named(getattr(value, item.name)) for item in dataclasses.fields(value)}


def _place(file: Path, run: Path) -> str:
    """Return a path relative to the run's folder if it is inside, else absolute."""
    file, run = file.resolve(), run.resolve()
    return str(file.relative_to(run) if file.is_relative_to(run) else file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
