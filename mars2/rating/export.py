"""Writes what people answered as the files that `mars2 study humans` reads, and more beside them.

Raters are r01, r02, ...; what they called themselves is in raters.csv only.
"""

import csv
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from mars2.rating.database import Answer, RatingDatabase
from mars2.rating.questions import Task

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "ratings.csv": ("item", "method", "rater", "aspect", "score", "seed", "timestamp"),
    "pairs.csv": (
        "item",
        "method_a",
        "method_b",
        "rater",
        "aspect",
        "choice",
        "shown_left",
        "seed",
        "timestamp",
    ),
    "checks.csv": ("rater", "question", "mode", "aspect", "truth", "answer", "right", "timestamp"),
    "raters.csv": (
        "rater",
        "name",
        "exported",
        "questions",
        "answered",
        "checks",
        "checks_right",
        "median_seconds",
        "changed",
        "left_share",
    ),
    "notes.csv": ("rater", "question", "item", "methods", "seed", "note"),
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export(database: RatingDatabase, folder: Path, *, min_checks: float = 0.0) -> dict[str, int]:
    """Write the files of a study, each replaced whole, and return how many lines each has.

    Without lines there is no file.

    Args:
        database: The study; raters may be at work.
        folder: Where the files go.
        min_checks: Raters with a smaller share of right answers to attention checks are left out
            of ratings.csv and pairs.csv, in ``[0, 1]``; one who has met no check is not.
    """
    lines: dict[str, list[dict[str, object]]] = {name: [] for name in COLUMNS}
    for seat in database.seats():
        tasks, answers = database.tasks(seat.rater), database.answers(seat.rater)
        checks = [
            _check(seat.code, tasks[one.position], one)
            for one in answers
            if one.aspect in tasks[one.position].truth
        ]
        right = sum(bool(check["right"]) for check in checks)
        trusted = not checks or right >= min_checks * len(checks)
        lines["checks.csv"] += checks
        lines["raters.csv"].append(
            {
                "rater": seat.code,
                "name": harmless(seat.name),
                "exported": int(trusted),
                "checks": len(checks),
                "checks_right": right,
                **_pace(tasks, answers),
            }
        )
        for position, note in database.notes(seat.rater).items():
            task = tasks[position]
            lines["notes.csv"].append(
                {
                    "rater": seat.code,
                    "question": position + 1,
                    "item": task.case,
                    "methods": " ".join(task.methods),
                    "seed": "" if task.seed is None else task.seed,
                    "note": harmless(note),
                }
            )
        for answer in answers if trusted else ():
            task = tasks[answer.position]
            if task.methods and task.mode == "yes_no":
                lines["ratings.csv"].append(_rating(seat.code, task, answer))
            elif task.methods:
                lines["pairs.csv"].append(_choice(seat.code, task, answer, database.design.methods))
    for name, own in lines.items():
        _write(folder / name, COLUMNS[name], own)
    return {name: len(own) for name, own in lines.items()}


def harmless(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula.

    >>> harmless("=1+1"), harmless("fine")
    ("'=1+1", 'fine')
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def _rating(rater: str, task: Task, answer: Answer) -> dict[str, object]:
    return {
        "item": task.case,
        "method": task.methods[0],
        "rater": rater,
        "aspect": answer.aspect,
        "score": int(answer.answer == "yes"),
        "seed": task.seed,
        "timestamp": answer.at,
    }


def _choice(rater: str, task: Task, answer: Answer, methods: Sequence[str]) -> dict[str, object]:
    a, b = sorted(task.methods, key=methods.index)
    left, right = ("a", "b") if task.methods[0] == a else ("b", "a")
    letters = {"left": left, "right": right}
    return {
        "item": task.case,
        "method_a": a,
        "method_b": b,
        "rater": rater,
        "aspect": answer.aspect,
        "choice": letters.get(answer.answer, answer.answer),
        "shown_left": left,
        "seed": task.seed,
        "timestamp": answer.at,
    }


def _check(rater: str, task: Task, answer: Answer) -> dict[str, object]:
    truth = task.truth[answer.aspect]
    return {
        "rater": rater,
        "question": answer.position + 1,
        "mode": task.mode,
        "aspect": answer.aspect,
        "truth": truth,
        "answer": answer.answer,
        "right": int(answer.answer == truth),
        "timestamp": answer.at,
    }


def _pace(tasks: Sequence[Task], answers: Sequence[Answer]) -> dict[str, object]:
    """Return how far a rater is, how fast, and how often the left of two images was chosen."""
    spent: dict[int, float] = {}
    for one in answers:
        spent[one.position] = max(spent.get(one.position, 0.0), one.seconds)
    sides = [
        one.answer
        for one in answers
        if one.answer in ("left", "right") and tasks[one.position].methods
    ]
    given = {(one.position, one.aspect) for one in answers}
    whole = sum(
        all((position, aspect) in given for aspect in task.aspects)
        for position, task in enumerate(tasks)
    )
    return {
        "questions": len(tasks),
        "answered": whole,
        "median_seconds": round(statistics.median(spent.values()), 1) if spent else "",
        "changed": sum(one.changes > 0 for one in answers),
        "left_share": round(sides.count("left") / len(sides), 3) if sides else "",
    }


def _write(path: Path, columns: Sequence[str], lines: Sequence[Mapping[str, object]]) -> None:
    if not lines:
        path.unlink(missing_ok=True)
        return
    write_table(path, columns, lines)


def write_table(
    path: Path,
    columns: Sequence[str],
    lines: Sequence[Mapping[str, object]],
    *,
    private: bool = False,
) -> None:
    """Write a CSV file, atomically.

    Args:
        path: The file.
        columns: In their order.
        lines: A value a column.
        private: Whether only its owner may read it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    mode = 0o600 if private else 0o666
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    temporary.replace(path)
