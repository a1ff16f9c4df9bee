"""Images on the report's page: embedded, with the judge's verdict, and examples of its answers."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mars2.files import read_image
from mars2.report.formatting import words
from mars2.report.grid import SMALL, Grid
from mars2.report.summary import Summary
from mars2.report.verdicts import Answer, Key, Mark, image_marks, verdicts
from mars2.store import Record, RunStore, Sample

EMBEDDED = 512  # longest side of an image on the page; scores are always of the file itself
EXAMPLES_OF_A_KIND = 2


@dataclass(frozen=True)
class Picture:
    """An embedded image; `small` ones are magnified pixel by pixel."""

    uri: str
    alt: str
    small: bool
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class GridRow:
    """A row of the grid on the page; None where there is no image."""

    label: str
    control: bool
    cells: tuple[Picture | None, ...]


@dataclass(frozen=True)
class Example:
    """One answer of the judge, why it is shown, and the two images it was asked about."""

    kind: str
    aspect: str
    method: str
    case: str
    seed: int
    answer: Answer
    reference: Picture | None
    test: Picture


class Album:
    """Embeds the images of a store, each with what the judge said of it.

    Args:
        store: Where images and records are.
        summary: Of the store; its first judge's verdicts are shown.
        references: Concept id -> reference images.
    """

    def __init__(
        self, store: RunStore, summary: Summary, references: Mapping[str, Sequence[Path]]
    ) -> None:
        self._references = references
        self._samples = {
            (sample.method, sample.case, sample.seed): sample
            for sample in store.samples()
            if sample.path.is_file()
        }
        judge = next(iter(summary.judges), None)
        self._records: dict[tuple[str, Key], Record] = {
            (record.metric, (record.method, record.case, record.seed)): record
            for record in store.records()
            if record.judge == judge
        }
        self._marks = image_marks(store, judge)

    def grid_rows(self, grid: Grid) -> list[GridRow]:
        """Return the grid's rows below the references."""
        return [
            GridRow(
                label,
                label in grid.controls,
                tuple(
                    None if sample is None else self._picture(sample)
                    for column in grid.columns
                    for sample in [grid.cells[label, column]]
                ),
            )
            for label in grid.rows
        ]

    def reference_rows(self, grid: Grid) -> list[GridRow]:
        """Return the two rows of references on top of the grid."""
        return [
            GridRow(
                f"{role} reference",
                False,
                tuple(
                    self._reference(getattr(column, role), column.number) for column in grid.columns
                ),
            )
            for role in ("subject", "style")
        ]

    def examples(self) -> list[Example]:
        """Return answers of the judge: unscored ones, the least certain, the most certain.

        Of each kind and aspect at most two, each of another image.
        """
        asked = [
            (aspect, key, number, answer)
            for aspect in ("subject", "style")
            for key in self._samples
            if (record := self._records.get((f"mars2_{aspect}", key))) is not None
            for number, answer in enumerate(verdicts(record))
        ]
        kinds: list[tuple[str, list[tuple[str, Key, int, Answer]]]] = [
            ("neither yes nor no", [one for one in asked if one[3].answer is None])
        ]
        for aspect in ("subject", "style"):
            sure = sorted(
                (one for one in asked if one[0] == aspect and one[3].answer is not None),
                key=lambda one: 0.0 if one[3].p_yes is None else abs(one[3].p_yes - 0.5),
            )
            if any(one[3].p_yes is not None for one in sure):
                kinds.append(("least certain", sure))
            kinds.append(("most certain yes", [one for one in sure[::-1] if one[3].answer]))
            kinds.append(("most certain no", [one for one in sure[::-1] if not one[3].answer]))
        shown: list[Example] = []
        used: set[tuple[str, Key]] = set()
        for kind, ones in kinds:
            fresh: dict[tuple[str, Key], tuple[str, Key, int, Answer]] = {}
            for one in ones:
                if one[:2] not in used:
                    fresh.setdefault(one[:2], one)
            for aspect, key, number, answer in list(fresh.values())[:EXAMPLES_OF_A_KIND]:
                used.add((aspect, key))
                sample = self._samples[key]
                concept = sample.subject if aspect == "subject" else sample.style
                shown.append(
                    Example(
                        kind,
                        aspect,
                        *key,
                        answer,
                        self._reference(concept, number),
                        self._picture(sample),
                    )
                )
        return shown

    def _picture(self, sample: Sample) -> Picture:
        return embed(
            sample.path,
            f"{sample.method}: {words(sample.subject)}, {words(sample.style)}, seed {sample.seed}",
            self._marks.get((sample.method, sample.case, sample.seed), ()),
        )

    def _reference(self, concept: str, number: int) -> Picture | None:
        paths = self._references.get(concept, ())
        if number >= len(paths):
            return None
        return embed(paths[number], f"reference {number + 1} of {words(concept)}")


def embed(path: Path, alt: str, marks: tuple[Mark, ...] = ()) -> Picture:
    """Return an image file as a picture for the page: tiny ones as they are, others as JPEG.

    Raises:
        RunError: It cannot be read.
    """
    image = read_image(path)
    buffer = io.BytesIO()
    small = max(image.size) <= SMALL
    if small:
        image.save(buffer, format="PNG")
    else:
        image.thumbnail((EMBEDDED, EMBEDDED), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=90, subsampling=0)
    kind = "png" if small else "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{data}", alt, small, marks)
