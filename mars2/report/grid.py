"""The picture grid of the field's papers: references on top, a row a method, a column an image."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mars2.files import read_image, write_image
from mars2.job import spread
from mars2.report.formatting import words
from mars2.report.summary import Summary
from mars2.report.verdicts import Mark, image_marks
from mars2.store import RunStore, Sample

COLUMNS = 8
SMALL = 128  # images up to this size are shown magnified, pixel by pixel
LARGE = 256  # others are shrunk to this

_INK, _PAPER, _FAINT, _EMPTY = "#1c1c1c", "#ffffff", "#6b6b6b", "#ececec"
_YES, _NO = "#1a7f37", "#b3261e"
_STROKES: Mapping[bool | None, Sequence[Sequence[tuple[float, float]]]] = {
    True: [((0.25, 0.52), (0.43, 0.70), (0.74, 0.30))],
    False: [((0.30, 0.30), (0.70, 0.70)), ((0.70, 0.30), (0.30, 0.70))],
    None: [((0.27, 0.5), (0.73, 0.5))],
}
"""Of a verdict's mark, in parts of its side."""


@dataclass(frozen=True)
class Column:
    """A column of the grid: a pair and a seed; `number` counts the columns of the pair."""

    case: str
    subject: str
    style: str
    seed: int
    number: int


@dataclass(frozen=True)
class Grid:
    """What is shown; a cell is None where there is no image.

    `marks` has the verdicts of the cells that the first judge was asked about; `images` is how
    many images a pair has, at most, of which some are shown.
    """

    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    controls: tuple[str, ...]
    cells: Mapping[tuple[str, Column], Sample | None]
    marks: Mapping[tuple[str, Column], tuple[Mark, ...]]
    images: int

    @property
    def spans(self) -> list[tuple[Column, int]]:
        """The first column of each pair, and how many the pair has."""
        firsts = [column for column in self.columns if column.number == 0]
        return [(f, sum(column.case == f.case for column in self.columns)) for f in firsts]


def choose(store: RunStore, summary: Summary, *, columns: int = COLUMNS) -> Grid:
    """Return which images to show: pairs spread over subjects and styles, the first seeds of each.

    The images are not chosen by how good they are.
    """
    samples = store.samples()
    pairs = list({sample.case: (sample.subject, sample.style) for sample in samples}.items())
    chosen = [pairs[index] for index in spread([pair for _, pair in pairs], columns)]
    each = max(1, columns // max(1, len(chosen)))
    shown = [
        Column(case, subject, style, seed, number)
        for case, (subject, style) in chosen
        for number, seed in enumerate(_seeds(case, samples)[:each])
    ]
    there = {
        (sample.method, sample.case, sample.seed): sample
        for sample in samples
        if sample.path.is_file()
    }
    labels = tuple(method.label for method in summary.methods)
    marks = image_marks(store, next(iter(summary.judges), None))
    return Grid(
        columns=tuple(shown),
        rows=labels,
        controls=tuple(method.label for method in summary.methods if method.control),
        cells={
            (label, column): there.get((label, column.case, column.seed))
            for label in labels
            for column in shown
        },
        marks={
            (label, column): marks.get((label, column.case, column.seed), ())
            for label in labels
            for column in shown
        },
        images=max((len(_seeds(case, samples)) for case, _ in chosen), default=0),
    )


def write_grid(grid: Grid, references: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Write the grid as a PNG, atomically.

    Raises:
        RunError: An image cannot be read.
    """
    write_image(path, draw_grid(grid, references))


def draw_grid(grid: Grid, references: Mapping[str, Sequence[Path]]) -> Image.Image:
    """Return the grid as a picture, RGB.

    Args:
        grid: What is shown.
        references: Concept id -> reference images; a concept without any has empty cells.

    Raises:
        RunError: An image cannot be read.
    """
    images = {
        key: read_image(sample.path) for key, sample in grid.cells.items() if sample is not None
    }
    longest = max((max(image.size) for image in images.values()), default=SMALL)
    side = SMALL if longest <= SMALL else LARGE
    sheet = _Sheet(grid, side)
    for column in grid.columns:
        for row, concept in enumerate((column.subject, column.style)):
            paths = references.get(concept, ())
            if column.number < len(paths):
                sheet.paste(read_image(paths[column.number]), row, column)
            elif column.number == 0:
                sheet.empty(row, column, "no reference")
    for row, label in enumerate(grid.rows, start=2):
        for column in grid.columns:
            image = images.get((label, column))
            if image is None:
                sheet.empty(row, column, "no image")
            else:
                sheet.paste(image, row, column)
                sheet.mark(grid.marks[label, column], row, column)
    return sheet.image


def fit(image: Image.Image, side: int) -> Image.Image:
    """Return an image that fits into a square: magnified by a whole number, or shrunk.

    Args:
        image: RGB.
        side: Side of the square, pixels.
    """
    factor = side // max(image.size)
    if factor >= 1:
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


_ANSWERS: dict[bool | None, str] = {True: "yes", False: "no", None: "no answer"}


class _Sheet:
    """A white sheet with the labels of a grid, to paste images on."""

    def __init__(self, grid: Grid, side: int) -> None:
        self.side = side
        self.gap = side // 32
        self.font = ImageFont.load_default(size=side / 8)
        self.small = ImageFont.load_default(size=side / 10)
        blocks = [_wrap(label) for label in ("subject reference", "style reference", *grid.rows)]
        probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        margin = 4 * self.gap
        self.left = margin * 2 + round(
            max(probe.multiline_textbbox((0, 0), block, font=self.font)[2] for block in blocks)
        )
        titles = [
            "\n".join(
                _fold(words(concept), self.small, count * side)
                for concept in (column.subject, column.style)
            )
            for column, count in grid.spans
        ]
        top = margin * 2 + round(
            max(
                (probe.multiline_textbbox((0, 0), t, font=self.small)[3] for t in titles), default=0
            )
        )
        # pairs, the references, and the controls stand apart
        self.x = {}
        x = self.left
        for column in grid.columns:
            x += 3 * self.gap if column.number == 0 and x > self.left else 0
            self.x[column] = x
            x += side + self.gap
        self.y = []
        y = top
        for row in range(len(blocks)):
            control = row >= 2 and grid.rows[row - 2] in grid.controls
            before = row >= 3 and grid.rows[row - 3] in grid.controls
            if row == 2 or (row > 2 and control and not before):
                y += 3 * self.gap
            self.y.append(y)
            y += side + self.gap
        self.badge = round(side / 9)
        marked = any(grid.marks.values())
        legend = y + 2 * self.gap
        told = {mark.right for marks in grid.marks.values() for mark in marks}
        each = max((count for _, count in grid.spans), default=0)
        part = f"; {each} of {grid.images} images a pair shown" if each < grid.images else ""
        text = f"the judge's verdict: first on the subject, then on the style{part}"
        width, below = x + margin - self.gap, ""
        if self.left + self.key_width(told) + self.small.getlength(text) > width - margin:
            text, below = "", _fold(text, self.small, width - 2 * margin)
        bottom = legend + self.badge if marked else y - self.gap
        if marked and below:
            bottom += self.gap + round(probe.multiline_textbbox((0, 0), below, font=self.small)[3])
        self.image = Image.new("RGB", (width, bottom + margin), _PAPER)
        self.draw = ImageDraw.Draw(self.image)
        if marked:
            self.legend(told, text, margin if below else self.left, legend)
            below_legend = (margin, legend + self.badge + self.gap)
            self.draw.multiline_text(below_legend, below, _FAINT, self.small)
        for block, y in zip(blocks, self.y, strict=True):
            self.draw.multiline_text(
                (self.left - margin, y + side / 2),
                block,
                _INK,
                self.font,
                anchor="rm",
                align="right",
            )
        for (column, count), title in zip(grid.spans, titles, strict=True):
            middle = self.x[column] + (count * (side + self.gap) - self.gap) / 2
            self.draw.multiline_text(
                (middle, top - margin), title, _INK, self.small, anchor="md", align="center"
            )

    def paste(self, image: Image.Image, row: int, column: Column) -> None:
        image = fit(image, self.side)
        x = self.x[column] + (self.side - image.width) // 2
        self.image.paste(image, (x, self.y[row] + (self.side - image.height) // 2))

    def mark(self, marks: Sequence[Mark], row: int, column: Column) -> None:
        """Put the verdicts on the lower right corner of a cell: the subject's, then the style's."""
        size = self.badge
        x = self.x[column] + self.side - len(marks) * (size + self.gap)
        y = self.y[row] + self.side - size - self.gap
        for number, mark in enumerate(marks):
            self.verdict(mark.right, x + number * (size + self.gap), y)

    def verdict(self, right: bool | None, x: float, y: float) -> None:
        """Draw a tick, a cross, or a bar for no answer, on a ground that tells them apart too."""
        size = self.badge
        ground = {True: _YES, False: _NO, None: _FAINT}[right]
        self.draw.rounded_rectangle(
            (x, y, x + size - 1, y + size - 1), size / 4, ground, _PAPER, max(1, size // 12)
        )
        for stroke in _STROKES[right]:
            points = [(x + u * (size - 1), y + v * (size - 1)) for u, v in stroke]
            self.draw.line(points, _PAPER, max(2, size // 7), joint="curve")

    def key_width(self, told: Collection[bool | None]) -> float:
        """Pixels that the marks of a legend take."""
        texts = [text for right, text in _ANSWERS.items() if right in told]
        return sum(self.badge + 5 * self.gap + self.small.getlength(text) for text in texts)

    def legend(self, told: Collection[bool | None], text: str, x: float, y: float) -> None:
        """Say below the grid what the marks in it are."""
        for right, name in _ANSWERS.items():
            if right not in told:
                continue
            self.verdict(right, x, y)
            x += self.badge + self.gap
            self.draw.text((x, y + self.badge / 2), name, _INK, self.small, anchor="lm")
            x += self.small.getlength(name) + 4 * self.gap
        self.draw.text((x, y + self.badge / 2), text, _FAINT, self.small, anchor="lm")

    def empty(self, row: int, column: Column, text: str) -> None:
        x, y = self.x[column], self.y[row]
        self.draw.rectangle((x, y, x + self.side - 1, y + self.side - 1), _EMPTY)
        middle = (x + self.side / 2, y + self.side / 2)
        self.draw.text(middle, text, _FAINT, self.small, anchor="mm")


def _seeds(case: str, samples: Sequence[Sample]) -> list[int]:
    return sorted({sample.seed for sample in samples if sample.case == case})


def _wrap(label: str) -> str:
    """Return a label on several short lines, broken behind ":" and ",", else anywhere."""
    parts = label.replace(":", ":\n").replace(",", ",\n").split("\n")
    return "\n".join(line for part in parts for line in textwrap.wrap(part, 18))


def _fold(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a text on lines of at most a width in pixels, where words allow it."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
