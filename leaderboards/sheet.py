"""The contact sheet of an entry: one image of each pair, all of the same seed, as a small WebP."""

import io
import math
from collections.abc import Sequence

from PIL import Image

from leaderboards.entry import SHEET_BYTES

SIDES = (192, 160, 128, 112, 96, 80, 64, 48, 32, 24, 16)
"""Pixels a side that are tried, from large to small, until the sheet is small enough."""


def draw_sheet(images: Sequence[Image.Image], *, columns: int) -> tuple[bytes, int]:
    """Return the sheet and the pixels a side of each image in it.

    Images are never enlarged; they are made square. The same images give the same bytes with the
    same Pillow.

    Args:
        images: In the order of the pairs, filled in row by row.
        columns: Images in a row.

    Raises:
        ValueError: There are none, or too many for a sheet.
    """
    if not images:
        raise ValueError("a sheet needs images, there are none")
    largest = min(min(image.size) for image in images)
    first = min(largest, SIDES[0])
    for side in (first, *(side for side in SIDES if side < first)):
        content = _encode(images, columns, side)
        if len(content) <= SHEET_BYTES:
            return content, side
    raise ValueError(f"{len(images)} images do not fit into a sheet of {SHEET_BYTES} bytes")


def sheet_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height of a WebP in pixels; None: it is none, or an animated one."""
    try:
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
            if getattr(image, "n_frames", 1) != 1:
                return None
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _encode(images: Sequence[Image.Image], columns: int, side: int) -> bytes:
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        small = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (column * side, row * side))
    target = io.BytesIO()
    sheet.save(target, format="WEBP", quality=84, method=4)
    return target.getvalue()
