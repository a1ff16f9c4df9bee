"""Validates published entries: recomputes them from their records and compares with the suite.

An entry is believed in nothing that can be computed. What cannot be (that the images were drawn by
the method named) is asked of a sample of images, see ``mars2 leaderboard check --rejudge``.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaderboards.aggregate import average, best_of_n, case_means
from leaderboards.draft import records_file, sheet_file
from leaderboards.entry import (
    CONTROLS,
    RECORDS_BYTES,
    SHARES,
    SHEET_BYTES,
    Entry,
    Interval,
    find_entries,
    read_entry,
    split_judge,
)
from leaderboards.facts import SuiteFacts
from leaderboards.records import Records, parse_records
from leaderboards.shape import EntryError, Problem, as_json, shown
from leaderboards.sheet import sheet_size
from leaderboards.table import BoardKey

TOLERANCE = 1e-6
MOST_UNSCORED = 0.1
"""Largest share of images that the judge may have given no answer for."""
LICENCES = (
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC-BY-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0",
    "CC0-1.0",
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "GPL-3.0-only",
    "GPL-3.0-or-later",
    "AGPL-3.0-only",
    "AGPL-3.0-or-later",
    "ISC",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "MIT",
    "MPL-2.0",
    "Unlicense",
    "proprietary",
)
"""SPDX identifiers, and "proprietary" for code that is not published."""
LISTED = 5
"""Images or pairs that one problem names at most."""
_MARKUP = re.compile(r"<\s*[a-z/!?]|&#|(?:javascript|vbscript|data)\s*:", re.IGNORECASE)
_BESIDE = (".gitkeep", "README.md")

FindSuite = Callable[[str], SuiteFacts | None]
"""Facts of the suite of a name; None: there is none."""


@dataclass(frozen=True)
class Checked:
    """An entry that was looked at.

    Attributes:
        path: Its file.
        entry: What is in it; None: it cannot be read.
        records: What lies beside it; None likewise.
        problems: What is wrong.
    """

    path: Path
    entry: Entry | None
    records: Records | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        paths: The entries looked at.
        problems: All that is wrong, by entry.
        sound: Entries without a problem, with their records.
    """

    paths: tuple[Path, ...]
    problems: tuple[Problem, ...]
    sound: tuple[tuple[Entry, Records], ...]


def check(place: Path, find_suite: FindSuite) -> Report:
    """Return all that is wrong with an entry, or with all entries below a folder.

    Of a single entry, its neighbours in the folder are read too: they may have its controls, or be
    the same.

    Args:
        place: An entry, a suite's folder, or a folder of suites' folders.
        find_suite: Tells what a suite demands.

    Raises:
        EntryError: There is no such place.
    """
    wanted = find_entries(place)
    folders = sorted({path.parent for path in wanted})
    everything = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    checked = [check_entry(path, find_suite) for path in everything]
    together = _together(checked)
    problems: list[Problem] = [] if place.is_file() else list(_strays(place, everything))
    sound = []
    for one in checked:
        if one.path not in wanted:
            continue
        own = [*one.problems, *together.get(one.path, ())]
        problems += own
        if not own and one.entry is not None and one.records is not None:
            sound.append((one.entry, one.records))
    return Report(tuple(wanted), tuple(problems), tuple(sound))


def check_entry(path: Path, find_suite: FindSuite) -> Checked:
    """Return what is wrong with one entry, taken by itself."""
    try:
        entry = read_entry(path)
    except EntryError as error:
        return Checked(path, None, None, error.problems)
    file = str(path)
    problems = [
        *_place_problems(entry, path),
        *_text_problems(entry, file),
        *_method_problems(entry, file),
        *_judge_problems(entry, file),
    ]
    suite = find_suite(entry.suite.name)
    if suite is None:
        problems.append(Problem(file, "suite.name", "a suite there is", shown(entry.suite.name)))
    else:
        problems += _suite_problems(entry, suite, file)
    records, found = _read_records(entry, path)
    problems += found
    if records is not None:
        complete = list(_completeness(entry, suite, records, file))
        problems += complete
        if not complete:
            problems += _recomputed(entry, records, file)
            problems += _plausible(entry, records, file)
    problems += _sheet_problems(entry, path)
    return Checked(path, entry, records, tuple(problems))


def _place_problems(entry: Entry, path: Path) -> Iterator[Problem]:
    file = str(path)
    if entry.version != entry.method.version:
        told = "code, options, base model and judge as they are give another"
        yield Problem(
            file, "method.version", f"{entry.version} ({told})", shown(entry.method.version)
        )
    if path.name != f"{entry.name}.json":
        yield Problem(file, "the file's name", f"{entry.name}.json", shown(path.name))
    if path.parent.name != entry.suite.name:
        yield Problem(file, "the folder's name", entry.suite.name, shown(path.parent.name))
    for field, name, expected in (
        ("records.file", entry.records.file, records_file(entry)),
        ("sheet.file", entry.sheet.file, sheet_file(entry)),
    ):
        if name != expected:
            yield Problem(file, field, expected, shown(name))


def _text_problems(entry: Entry, file: str) -> Iterator[Problem]:
    for field, text in _texts(as_json(entry), ""):
        if _MARKUP.search(text):
            yield Problem(file, field, "plain text, nothing like markup or a script", shown(text))


def _texts(value: Any, at: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, f"{at}[{number}]")


def _method_problems(entry: Entry, file: str) -> Iterator[Problem]:
    method = entry.method
    passed = ",".join(f"{key}={value}" for key, value in method.options.items())
    label = (f"{method.name}:{passed}" if passed else method.name).replace("/", "_")
    if method.label != label:
        yield Problem(file, "method.label", shown(label), shown(method.label))
    for key, value in method.options.items():
        if method.resolved.get(key, not value) != value:
            found = shown(method.resolved.get(key, "nothing"))
            yield Problem(file, f"method.resolved.{key}", f"{shown(value)}, as passed", found)
    for key in method.files.keys() - method.resolved.keys():
        yield Problem(file, f"method.files.{key}", "a file that an option names", "no such option")
    tracks = {"fit": ("fit",), "policy": ("policy",), "images": ("reference",)}.get(
        method.kind, ("trained",) if method.files else ("weights", "trained")
    )
    tracks = ("control",) if method.name in CONTROLS else tracks
    if method.track not in tracks:
        why = f"{' or '.join(tracks)}, of a {method.kind} method"
        why += " that reads a file of its own" if method.files else ""
        yield Problem(file, "method.track", why, shown(method.track))
    if method.licence not in LICENCES:
        expected = f"one of {', '.join(LICENCES)} (--licence of `mars2 leaderboard add`)"
        yield Problem(file, "method.licence", expected, shown(method.licence))
    for package in ("mars2", "torch", "numpy"):
        if not entry.environment.get(package):
            yield Problem(file, f"environment.{package}", "its version", "nothing")


def _judge_problems(entry: Entry, file: str) -> Iterator[Problem]:
    judge = entry.judge
    for part, expected in split_judge(judge.id).items():
        if getattr(judge, part) != expected:
            told = f"{shown(expected)}, as judge.id says"
            yield Problem(file, f"judge.{part}", told, shown(getattr(judge, part)))
    for metric, score in entry.scores.items():
        if metric in SHARES and score.judge != judge.id:
            yield Problem(file, f"scores.{metric}.judge", shown(judge.id), shown(score.judge))


def _suite_problems(entry: Entry, suite: SuiteFacts, file: str) -> Iterator[Problem]:
    made = entry.generation
    wanted: list[tuple[str, object, object]] = [
        ("suite.revision", suite.revision, entry.suite.revision),
        ("suite.split", suite.split, entry.suite.split),
        ("generation.base", suite.base, made.base),
        ("generation.resolution", suite.resolution, made.resolution),
        ("generation.steps", suite.steps, made.steps),
        ("generation.guidance_scale", suite.guidance_scale, made.guidance_scale),
        ("generation.negative_prompt", suite.negative_prompt, made.negative_prompt),
        ("seeds", list(suite.seeds), list(entry.seeds)),
        ("judge.own", suite.is_own(entry.judge), entry.judge.own),
    ]
    if suite.adapters:
        wanted.append(("generation.adapters", suite.adapters, made.adapters))
    if suite.base_revision:
        wanted.append(("generation.base_revision", suite.base_revision, made.base_revision))
    for field, expected, found in wanted:
        if expected != found:
            yield Problem(file, field, f"{shown(expected)}, as the suite has it", shown(found))
    pairs = [(case.id, case.subject, case.style, case.prompt) for case in suite.cases]
    ours = [(case.id, case.subject, case.style, case.prompt) for case in entry.cases]
    missing = [pair[0] for pair in pairs if pair not in ours]
    added = [pair[0] for pair in ours if pair not in pairs]
    if missing or added or pairs != ours:
        told = [("without", missing), ("with", added)]
        found = "; ".join(f"{what} {_some(names)}" for what, names in told if names)
        expected = f"the suite's {len(pairs)} pairs in its order"
        yield Problem(file, "cases", expected, found or "another order, or one twice")


def _read_records(entry: Entry, path: Path) -> tuple[Records | None, list[Problem]]:
    """Return the records beside an entry; its file is looked for under the name it must have."""
    content, problems = _attachment(
        path,
        records_file(entry),
        "records",
        entry.records.sha256,
        entry.records.bytes,
        RECORDS_BYTES,
    )
    if content is None:
        return None, problems
    try:
        return parse_records(content, file=str(path.with_name(records_file(entry)))), problems
    except EntryError as error:
        return None, [*problems, *error.problems]


def _attachment(
    path: Path, name: str, field: str, digest: str, size: int, most: int
) -> tuple[bytes | None, list[Problem]]:
    beside = path.with_name(name)
    if beside.is_symlink() or not beside.is_file():
        return None, [Problem(str(path), f"{field}.file", f"a plain file {name} beside it", "none")]
    if beside.stat().st_size > most:
        told = str(beside.stat().st_size)
        return None, [Problem(str(beside), "", f"at most {most} bytes", told)]
    content = beside.read_bytes()
    problems = []
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        problems.append(Problem(str(path), f"{field}.sha256", f"{found}, that of {name}", digest))
    if len(content) != size:
        problems.append(Problem(str(path), f"{field}.bytes", str(len(content)), str(size)))
    return content, problems


def _completeness(
    entry: Entry, suite: SuiteFacts | None, records: Records, file: str
) -> Iterator[Problem]:
    """Every pair and seed once, in order, each judged by all references."""
    beside = str(Path(file).with_name(records_file(entry)))
    expected = [(case.id, seed) for case in entry.cases for seed in entry.seeds]
    found = [(row.case, row.seed) for row in records.rows]
    known = set(found)
    missing = [f"{case}/{seed}" for case, seed in expected if (case, seed) not in known]
    added = [f"{case}/{seed}" for case, seed in sorted(known - set(expected))]
    twice = [f"{case}/{seed}" for (case, seed), n in Counter(found).items() if n > 1]
    told = f"each of {len(entry.cases)} pairs and {len(entry.seeds)} seeds once, in order"
    for what, names in (("without", missing), ("also", added), ("twice", twice)):
        if names:
            yield Problem(beside, "rows", told, f"{what} {_some(names)}")
    if found != expected and not (missing or added or twice):
        yield Problem(beside, "rows", told, "another order")
    if suite is None:
        return
    pairs = {case.id: case for case in suite.cases}
    wrong = [
        f"{row.case}/{row.seed}: {len(row.subject)} and {len(row.style)}"
        for row in records.rows
        if row.case in pairs
        and (len(row.subject), len(row.style))
        != (
            suite.shown.get(pairs[row.case].subject, len(row.subject)),
            suite.shown.get(pairs[row.case].style, len(row.style)),
        )
    ]
    if wrong:
        yield Problem(beside, "subject, style", "an answer for each reference", _some(wrong))


def _recomputed(entry: Entry, records: Records, file: str) -> Iterator[Problem]:
    names = set(records.names)
    if names != entry.scores.keys():
        found = ", ".join(sorted(entry.scores)) or "none"
        yield Problem(
            file, "scores", f"{', '.join(records.names)}, as in the records", shown(found)
        )
    for metric in [name for name in records.names if name in entry.scores]:
        score = entry.scores[metric]
        for field, expected, interval in (
            ("average", average(records, metric), score.average),
            ("best_of_n", best_of_n(records, metric), score.best_of_n),
        ):
            yield from _interval_problems(f"scores.{metric}.{field}", expected, interval, file)
        means = case_means(records, metric)
        for number, case in enumerate(entry.cases):
            mean, at = means[case.id], f"cases[{number}]"
            if not _close(case.scores.get(metric, "nothing"), mean.value):
                told = shown(case.scores.get(metric, "nothing"))
                yield Problem(file, f"{at}.scores.{metric}", _recomputes(mean.value), told)
            if case.unscored.get(metric, 0) != mean.unscored:
                told = shown(case.unscored.get(metric, 0))
                yield Problem(file, f"{at}.unscored.{metric}", _recomputes(mean.unscored), told)
    for number, case in enumerate(entry.cases):
        for metric in sorted((case.scores.keys() | case.unscored.keys()) - names):
            at = f"cases[{number}].scores.{metric}"
            yield Problem(file, at, "a score in the records", "none there")


def _interval_problems(
    at: str, expected: Interval, found: Interval, file: str
) -> Iterator[Problem]:
    for name in ("value", "low", "high", "n", "n_unscored", "n_clusters"):
        value, claimed = getattr(expected, name), getattr(found, name)
        if not _close(claimed, value):
            yield Problem(file, f"{at}.{name}", _recomputes(value), shown(claimed))


def _plausible(entry: Entry, records: Records, file: str) -> Iterator[Problem]:
    joint = records.values("mars2")
    share = joint.count(None) / len(joint)
    if share > MOST_UNSCORED:
        expected = f"at most {MOST_UNSCORED:.0%} of the images without an answer of the judge"
        yield Problem(file, "scores.mars2.average.n_unscored", expected, f"{share:.0%}")
    beside = str(Path(file).with_name(records_file(entry)))
    images = Counter((row.case, row.image) for row in records.rows)
    same = [f"{case}: {image}, {n} times" for (case, image), n in images.items() if n > 1]
    if same:
        yield Problem(beside, "image", "another image for each seed of a pair", _some(same))
    if entry.costs.image_seconds <= 0:
        yield Problem(file, "costs.image_seconds", "more than 0", shown(entry.costs.image_seconds))
    if not entry.control and entry.costs.merge_seconds <= 0:
        yield Problem(file, "costs.merge_seconds", "more than 0", shown(entry.costs.merge_seconds))
    if not entry.control and entry.costs.parameters <= 0:
        yield Problem(file, "costs.parameters", "more than 0", shown(entry.costs.parameters))


def _sheet_problems(entry: Entry, path: Path) -> Iterator[Problem]:
    sheet = entry.sheet
    content, problems = _attachment(
        path, sheet_file(entry), "sheet", sheet.sha256, sheet.bytes, SHEET_BYTES
    )
    yield from problems
    if content is None:
        return
    rows = -(-len(entry.cases) // sheet.columns)
    expected = (sheet.columns * sheet.side, rows * sheet.side)
    size = sheet_size(content)
    if size != expected:
        told = f"a WebP of {expected[0]} x {expected[1]} pixels"
        found = "no WebP" if size is None else f"{size[0]} x {size[1]}"
        yield Problem(str(path.with_name(sheet_file(entry))), "", told, found)
    if sheet.seed != entry.seeds[0]:
        yield Problem(str(path), "sheet.seed", f"{entry.seeds[0]}, the first", shown(sheet.seed))


def _together(checked: Sequence[Checked]) -> dict[Path, list[Problem]]:
    """Return what is wrong with entries beside others: the same thing twice, controls missing."""
    problems: dict[Path, list[Problem]] = {}
    boards: dict[BoardKey, list[Checked]] = {}
    for one in checked:
        if one.entry is not None:
            boards.setdefault(BoardKey.of(one.entry), []).append(one)
    for group in boards.values():
        seen: dict[object, Path] = {}
        names = {one.entry.method.name for one in group if one.entry is not None}
        missing = [control for control in CONTROLS if control not in names]
        for one in group:
            if one.entry is None:
                continue
            own = problems.setdefault(one.path, [])
            if missing:
                told = f"the controls {', '.join(CONTROLS)} beside it, measured the same way"
                own.append(Problem(str(one.path), "the board", told, f"no {', '.join(missing)}"))
            method = one.entry.method
            options = repr(as_json({**method.resolved, **method.files}))
            keys: list[tuple[str, object]] = [("method", (method.name, method.code, options))]
            if one.records is not None:
                keys.append(("records", tuple(row.image for row in one.records.rows)))
            for field, key in keys:
                other = seen.setdefault((field, key), one.path)
                if other != one.path:
                    what = {"method": "a method once", "records": "images of its own"}[field]
                    own.append(Problem(str(one.path), field, what, f"those of {other.name}"))
    return problems


def _strays(place: Path, entries: Sequence[Path]) -> Iterator[Problem]:
    """Files that belong to no entry."""
    known = {
        path.with_name(f"{path.name.removesuffix('.json')}{end}")
        for path in entries
        for end in (".json", ".records.parquet", ".webp")
    }
    for path in sorted(place.rglob("*")):
        if (path.is_file() or path.is_symlink()) and path not in known and path.name not in _BESIDE:
            yield Problem(str(path), "", "an entry, or a file beside one", "neither")


def _close(found: object, expected: float | None) -> bool:
    if found is None or expected is None or isinstance(found, str):
        return found is None and expected is None
    return isinstance(found, int | float) and abs(found - expected) <= TOLERANCE


def _recomputes(value: float | None) -> str:
    return f"{'null' if value is None else format(value, '.9g')}, as the records give"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
