"""Keeps a judge's answers between runs, and asks the judge only what is not known yet.

Answers are found by content: all that the judge is shown and told, and which judge it is in which
setting. They lie in one SQLite file, which several processes may read and write at a time.
"""

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import RLock, Timer

from benchmark_data.references import cache_root
from mars2.judges import Judge, JudgeError, Question, StreamingJudge, Verdict
from mars2.judges.images import image_digest, preprocessor

FILE = "answers-1.sqlite3"
"""Its number counts the layouts of the table; a new field of `Verdict` with a default is none."""

DAY = 24 * 60 * 60  # seconds
WAIT = 60.0
"""Seconds to wait for another process that writes."""

AT_ONCE = 64
"""Answers that are written together, at most."""
KEEP_AFTER = 1.0
"""Seconds after which answers are written, however few: what is lost if the process is killed."""

_LOG = logging.getLogger(__name__)
_VARIABLES = 500  # values in one statement; SQLite allows 999 in old versions
_TABLE = """
    CREATE TABLE IF NOT EXISTS answers (
        key TEXT PRIMARY KEY, judge TEXT NOT NULL, verdict TEXT NOT NULL, used INTEGER NOT NULL
    ) WITHOUT ROWID
"""


def answer_key(judge: str, question: Question, images: Mapping[int, str]) -> str:
    """Return the sha256 of all that an answer depends on.

    Args:
        judge: Its id, which has revision, layout and type of numbers in it.
        question: What is asked.
        images: The images' digests, by `id` of the image.
    """
    template = question.template
    content = [
        judge,
        preprocessor(),
        [template.id, template.version, template.form, question.aspect, question.text],
        images[id(question.reference)],
        images[id(question.test)],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class KeptAnswers:
    """What is kept of one judge; `used` is when last, in seconds since 1970."""

    judge: str
    answers: int
    used: int


class AnswerCache:
    """Verdicts by key, in a file.

    A connection is opened for each call and closed at its end, so that an instance may be used
    after a fork, sent to a worker and called by several threads.

    Args:
        path: The file; made when first needed. None: in the user's cache, see `cache_root`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_root() / "judges" / FILE

    def check(self) -> None:
        """Make the file if there is none.

        Raises:
            JudgeError: It cannot be made, or is something else.
        """
        with self._open():
            pass

    def find(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """Return the verdicts that there are, by key, and note that they were used."""
        found: dict[str, Verdict] = {}
        now = int(time.time())
        with self._open() as connection:
            for part in _parts(keys):
                marks = ",".join("?" * len(part))
                rows = connection.execute(
                    f"SELECT key, verdict, used FROM answers WHERE key IN ({marks})", part
                ).fetchall()
                found |= {key: _verdict(text) for key, text, _ in rows}
                stale = [(now, key) for key, _, used in rows if used < now - DAY]
                if stale:  # so that reading seldom writes
                    connection.executemany("UPDATE answers SET used = ? WHERE key = ?", stale)
        return found

    def keep(self, judge: str, verdicts: Mapping[str, Verdict]) -> None:
        """Keep the verdicts that come of what the judge said; a failure is none, and not kept."""
        now = int(time.time())
        rows = [
            (key, judge, json.dumps(asdict(verdict), ensure_ascii=False), now)
            for key, verdict in verdicts.items()
            if not verdict.failed
        ]
        if rows:
            with self._open() as connection:
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", rows)

    def kept(self) -> list[KeptAnswers]:
        """Return what is kept, a judge each, by id."""
        if not self.path.exists():
            return []
        with self._open() as connection:
            rows = connection.execute(
                "SELECT judge, COUNT(*), MAX(used) FROM answers GROUP BY judge ORDER BY judge"
            ).fetchall()
        return [KeptAnswers(*row) for row in rows]

    def size(self) -> int:
        """Return the bytes it takes on disk, what SQLite keeps beside the file included."""
        return sum(
            path.stat().st_size
            for path in sorted(self.path.parent.glob(f"{self.path.name}*"))
            if path.is_file()
        )

    def prune(self, days: float | None) -> int:
        """Drop the answers that were not used for so many days, and return how many.

        Args:
            days: None: drop all.
        """
        if not self.path.exists():
            return 0
        before = int(time.time() - days * DAY) if days is not None else None
        with self._open() as connection:
            if before is None:
                dropped = connection.execute("DELETE FROM answers").rowcount
            else:
                dropped = connection.execute(
                    "DELETE FROM answers WHERE used < ?", (before,)
                ).rowcount
            connection.commit()
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return dropped

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Give a connection; what was written in the block is there as a whole, or not at all."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=WAIT)) as connection:
                _write_ahead(connection)
                connection.execute(_TABLE)
                with connection:
                    yield connection
        except (OSError, sqlite3.Error) as error:
            raise JudgeError(
                f"the answers kept in {self.path} cannot be used ({error}): give --no-cache, name "
                "another folder in MARS2_CACHE, or delete the file if it is broken"
            ) from error


class _Unwritten:
    """Verdicts on their way to the file: written AT_ONCE together, or some time after the first.

    That time passes in a thread: who waits for the next answer does not see it pass.
    """

    def __init__(self, write: Callable[[Mapping[str, Verdict]], None]) -> None:
        self._write = write
        self._lock = RLock()
        self._verdicts: dict[str, Verdict] = {}
        self._timer: Timer | None = None

    def add(self, key: str, verdict: Verdict) -> None:
        """Take one more."""
        with self._lock:
            self._verdicts[key] = verdict
            if len(self._verdicts) >= AT_ONCE:
                self.write()
            elif self._timer is None:
                self._timer = Timer(KEEP_AFTER, self.write)
                self._timer.daemon = True
                self._timer.start()

    def write(self) -> None:
        """Write what there is."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            verdicts, self._verdicts = self._verdicts, {}
            self._write(verdicts)


class CachedJudge:
    """Answers as another judge does, which is asked only what the cache does not have.

    Args:
        judge: Who is asked.
        cache: Where its answers are kept.
    """

    def __init__(self, judge: Judge, cache: AnswerCache) -> None:
        self.judge = judge
        self.cache = cache
        self.id = judge.id
        self.published = judge.published

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return a verdict for each question, in their order; of equal questions one is asked.

        Raises:
            JudgeError: The judge fails, or the cache cannot be read. One that cannot be written is
                logged only: the answers are there.
        """
        shown = {id(image): image for q in questions for image in (q.reference, q.test)}
        images = {key: image_digest(image) for key, image in shown.items()}
        keys = [answer_key(self.id, question, images) for question in questions]
        verdicts = self.cache.find(list(dict.fromkeys(keys)))
        new = {
            key: question
            for key, question in zip(keys, questions, strict=True)
            if key not in verdicts
        }
        unwritten = _Unwritten(self._keep)
        asked = list(new)
        try:
            with closing(self._asked(list(new.values()))) as answers:
                for number, verdict in answers:
                    verdicts[asked[number]] = verdict
                    unwritten.add(asked[number], verdict)
        finally:
            unwritten.write()
        return [verdicts[key] for key in keys]

    def _asked(self, questions: Sequence[Question]) -> Generator[tuple[int, Verdict], None, None]:
        """Give number and verdict of each question, as they come or in parts."""
        if isinstance(self.judge, StreamingJudge):
            yield from self.judge.verdicts(questions)
            return
        for start in range(0, len(questions), AT_ONCE):
            yield from enumerate(self.judge.ask(questions[start : start + AT_ONCE]), start)

    def _keep(self, verdicts: Mapping[str, Verdict]) -> None:
        try:
            self.cache.keep(self.id, verdicts)
        except JudgeError as error:
            _LOG.warning("answers are not kept: %s", error)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Let readers and a writer not wait for each other: SQLite's WAL mode, which the file keeps.

    Changing to it needs the file alone, and does not wait by itself. A file system without shared
    memory stays with the mode it has, which is as safe.
    """
    end = time.monotonic() + WAIT
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _verdict(text: str) -> Verdict:
    """Read a verdict, whatever fields the version that wrote it has beside ours."""
    ours = {field.name for field in fields(Verdict)}
    return Verdict(**{name: value for name, value in json.loads(text).items() if name in ours})


def _parts(keys: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), _VARIABLES):
        yield list(keys[start : start + _VARIABLES])
