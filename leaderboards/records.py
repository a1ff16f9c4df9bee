"""What the judge said of each image, in a small parquet file: what an entry is recomputed from."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leaderboards.entry import MARS2, RECORDS_BYTES, SHARES
from leaderboards.shape import EntryError, Problem, shown
from leaderboards.votes import both, majority, yes_share

ROWS = 100_000
UNPACKED_BYTES = 64 * 1024 * 1024
MARKS: Mapping[bool | None, str] = {True: "y", False: "n", None: "?"}
ANSWERS = {mark: answer for answer, mark in MARKS.items()}
DECIMALS = 6
_FIRST = ("case", "seed", "image", "subject", "style")


@dataclass(frozen=True)
class ImageRecord:
    """All scores of one image.

    Attributes:
        case: Id of the pair.
        seed: Seed of the image.
        image: First 16 hex of the sha256 of its file.
        subject: The judge's answers, a letter a reference of the subject: y, n or ? for neither.
        style: The same of the style.
        scores: Other metric -> value, to six decimals; None: unscored.
    """

    case: str
    seed: int
    image: str
    subject: str
    style: str
    scores: Mapping[str, float | None]

    def value(self, metric: str) -> float | None:
        """Return a score; those of MARS2 come of the answers."""
        if metric not in SHARES:
            return self.scores[metric]
        subject = [ANSWERS[mark] for mark in self.subject]
        style = [ANSWERS[mark] for mark in self.style]
        if metric == "mars2":
            return both(majority(subject), majority(style))
        answers = subject if metric.startswith("mars2_subject") else style
        return yes_share(answers) if metric.endswith("_yes") else majority(answers)


@dataclass(frozen=True)
class Records:
    """All images of one method, by case and seed.

    Attributes:
        rows: The images.
        metrics: Names of the scores that come of no answers, sorted.
    """

    rows: tuple[ImageRecord, ...]
    metrics: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All scores; the shares of yes only where some image has several references."""
        several = [
            name
            for name, answers in (("subject", "subject"), ("style", "style"))
            if any(len(getattr(row, answers)) > 1 for row in self.rows)
        ]
        return (*MARS2, *(f"mars2_{name}_yes" for name in several), *self.metrics)

    def values(self, metric: str) -> list[float | None]:
        """Return a score of each image."""
        return [row.value(metric) for row in self.rows]

    @property
    def cases(self) -> list[str]:
        """The pair of each image."""
        return [row.case for row in self.rows]


def records_bytes(records: Records) -> bytes:
    """Return a parquet file; the same records give the same bytes with the same pyarrow."""
    columns: dict[str, Any] = {
        "case": pa.array([row.case for row in records.rows], pa.string()),
        "seed": pa.array([row.seed for row in records.rows], pa.int64()),
        "image": pa.array([row.image for row in records.rows], pa.string()),
        "subject": pa.array([row.subject for row in records.rows], pa.string()),
        "style": pa.array([row.style for row in records.rows], pa.string()),
    }
    for metric in records.metrics:
        values = [row.scores[metric] for row in records.rows]
        rounded = [None if value is None else round(value, DECIMALS) for value in values]
        columns[metric] = pa.array(rounded, pa.float64())
    target = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        target,
        compression="zstd",
        use_dictionary=["case", "subject", "style"],
        write_statistics=False,
        store_schema=False,
    )
    return target.getvalue()


def read_records(path: Path) -> Records:
    """Return the records in a file, checked: columns, types, answers and numbers.

    Raises:
        EntryError: It is too large or something else.
    """
    name = str(path)
    if path.is_symlink() or not path.is_file():
        raise EntryError([Problem(name, "", "a plain file", "none, or a link")])
    size = path.stat().st_size
    if size > RECORDS_BYTES:
        raise EntryError([Problem(name, "", f"at most {RECORDS_BYTES} bytes", str(size))])
    return parse_records(path.read_bytes(), file=name)


def parse_records(content: bytes, *, file: str) -> Records:
    """Return the records in a file's content; see `read_records`.

    Raises:
        EntryError: It is something else.
    """
    try:
        parquet = pq.ParquetFile(io.BytesIO(content))
        meta = parquet.metadata
        unpacked = sum(
            meta.row_group(group).column(column).total_uncompressed_size
            for group in range(meta.num_row_groups)
            for column in range(meta.num_columns)
        )
        if meta.num_rows > ROWS or unpacked > UNPACKED_BYTES:
            told = f"{meta.num_rows} rows, {unpacked} bytes"
            raise EntryError(
                [Problem(file, "", f"at most {ROWS} rows, {UNPACKED_BYTES} bytes", told)]
            )
        columns = parquet.read().to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise EntryError([Problem(file, "", "a parquet file", shown(str(error)))]) from error
    types = {field.name: str(field.type) for field in parquet.schema_arrow}
    problems = _column_problems(types, parquet.schema_arrow.names, file)
    if problems:
        raise EntryError(problems)
    metrics = tuple(name for name in parquet.schema_arrow.names if name not in _FIRST)
    problems = [
        Problem(file, f"row {number}, {name}", expected, shown(columns[name][number]))
        for name in columns
        for number in range(meta.num_rows)
        if (expected := _unlike(name, columns[name][number]))
    ]
    if problems:
        raise EntryError(problems[:20])
    return Records(
        tuple(
            ImageRecord(
                **{name: columns[name][number] for name in _FIRST},
                scores={metric: columns[metric][number] for metric in metrics},
            )
            for number in range(meta.num_rows)
        ),
        metrics,
    )


def _column_problems(types: Mapping[str, str], names: Sequence[str], file: str) -> list[Problem]:
    if len(set(names)) < len(names):
        return [Problem(file, "columns", "each once", shown(names))]
    expected = dict.fromkeys(_FIRST, "string") | {"seed": "int64"}
    problems = [
        Problem(file, f"column {name}", kind, types.get(name, "nothing"))
        for name, kind in expected.items()
        if types.get(name) != kind
    ]
    for name in types.keys() - expected.keys():
        if not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,63}", name) or name in SHARES:
            problems.append(Problem(file, "columns", "names of metrics", shown(name)))
        elif types[name] != "double":
            problems.append(Problem(file, f"column {name}", "double", types[name]))
    return problems


def _unlike(name: str, value: Any) -> str:
    """Return what a cell must be, if it is something else."""
    if name == "seed":
        return "" if value is not None and 0 <= value < 2**63 else "a seed"
    if name in _FIRST:
        pattern, expected = {
            "case": (r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}", "the id of a pair"),
            "image": (r"[0-9a-f]{16}", "16 hex digits"),
        }.get(name, (r"[yn?]{1,100}", "answers y, n or ?"))
        return "" if value is not None and re.fullmatch(pattern, value) else expected
    fits = value is None or (math.isfinite(value) and abs(value) <= 1000)
    return "" if fits else "a number from -1000 to 1000"
