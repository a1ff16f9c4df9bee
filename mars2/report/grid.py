"""The picture grid of the field's papers: references on top, a row a method, a column an image."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mars2.files import read_image, write_image
from mars2.job import spread
from mars2.report.formatting import words
from mars2.report.summary import Summary
from mars2.store import RunStore, Sample

COLUMNS = 8
SMALL = 128  # images up to this size are shown magnified, pixel by pixel
LARGE = 256  # others are shrunk to this

_INK, _PAPER, _FAINT, _EMPTY = "#1c1c1c", "#ffffff", "#6b6b6b", "#ececec"


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
    """What is shown; a cell is None where there is no image."""

    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    controls: tuple[str, ...]
    cells: Mapping[tuple[str, Column], Sample | None]

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
    return Grid(
        columns=tuple(shown),
        rows=labels,
        controls=tuple(method.label for method in summary.methods if method.control),
        cells={
            (label, column): there.get((label, column.case, column.seed))
            for label in labels
            for column in shown
        },
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
        self.image = Image.new("RGB", (x + margin - self.gap, y + margin - self.gap), _PAPER)
        self.draw = ImageDraw.Draw(self.image)
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
