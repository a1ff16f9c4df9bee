"""An entry put together from its records and pictures, and its files written."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from leaderboards.aggregate import average, best_of_n, case_means
from leaderboards.entry import (
    SCHEMA,
    Aggregate,
    Attachment,
    CaseScores,
    Costs,
    Entry,
    Generation,
    Judge,
    Method,
    Sheet,
    SuiteRef,
    entry_bytes,
)
from leaderboards.facts import CaseFacts
from leaderboards.records import Records, records_bytes
from leaderboards.sheet import draw_sheet

UNNAMED = "0" * 8
"""Version of a method that `assemble` has not given one."""


@dataclass(frozen=True)
class Draft:
    """An entry and the content of the files beside it."""

    entry: Entry
    records: bytes
    sheet: bytes

    @property
    def files(self) -> dict[str, bytes]:
        """Name -> content."""
        return {
            f"{self.entry.name}.json": entry_bytes(self.entry),
            self.entry.records.file: self.records,
            self.entry.sheet.file: self.sheet,
        }

    def write(self, results: Path) -> Path:
        """Write the files into ``RESULTS/SUITE``, and return where the entry lies."""
        folder = results / self.entry.suite.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            temporary = folder / f".{name}.tmp"
            temporary.write_bytes(content)
            temporary.replace(folder / name)
        return folder / f"{self.entry.name}.json"


def assemble(
    *,
    suite: SuiteRef,
    method: Method,
    judge: Judge,
    generation: Generation,
    cases: Sequence[CaseFacts],
    seeds: tuple[int, ...],
    records: Records,
    given_by: Mapping[str, str],
    images: Sequence[Image.Image],
    costs: Costs,
    environment: Mapping[str, str],
    notes: str = "",
) -> Draft:
    """Return an entry with its files; its scores are computed from the records.

    Args:
        suite: On what it was measured.
        method: What was measured; its version is computed here.
        judge: Who judged.
        generation: How the images were drawn.
        cases: The pairs, in order.
        seeds: Of each pair.
        records: What was said of each image.
        given_by: Metric -> id of what gave it; of those not in it, the judge.
        images: Of each pair that of the first seed.
        costs: What the method took.
        environment: Versions and the like.
        notes: Anything else a reader should know.
    """
    means = {metric: case_means(records, metric) for metric in records.names}
    columns = len(dict.fromkeys(case.style for case in cases))
    picture, side = draw_sheet(images, columns=columns)
    packed = records_bytes(records)
    entry = Entry(
        schema=SCHEMA,
        suite=suite,
        method=replace(method, version=UNNAMED),
        judge=judge,
        generation=generation,
        seeds=seeds,
        scores={
            metric: Aggregate(
                given_by.get(metric, judge.id), average(records, metric), best_of_n(records, metric)
            )
            for metric in records.names
        },
        cases=tuple(
            CaseScores(
                id=case.id,
                subject=case.subject,
                style=case.style,
                prompt=case.prompt,
                scores={metric: means[metric][case.id].value for metric in records.names},
                unscored={
                    metric: means[metric][case.id].unscored
                    for metric in records.names
                    if means[metric][case.id].unscored
                },
            )
            for case in cases
        ),
        costs=costs,
        environment=dict(sorted(environment.items())),
        records=Attachment("-", _sha256(packed), len(packed)),
        sheet=Sheet("-", _sha256(picture), len(picture), seeds[0], columns, side),
        notes=notes,
    )
    return Draft(named(entry), packed, picture)


def named(entry: Entry) -> Entry:
    """Return the entry with its version, and its files named after it."""
    entry = replace(entry, method=replace(entry.method, version=entry.version))
    return replace(
        entry,
        records=replace(entry.records, file=records_file(entry)),
        sheet=replace(entry.sheet, file=sheet_file(entry)),
    )


def records_file(entry: Entry) -> str:
    """Return the name that the file of its records must have."""
    return f"{entry.name}.records.parquet"


def sheet_file(entry: Entry) -> str:
    """Return the name that its contact sheet must have."""
    return f"{entry.name}.webp"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
