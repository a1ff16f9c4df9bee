"""A sheet of small pictures, to be looked at."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

SIDE, GAP = 96, 4


def save_sheet(images: Sequence[Image.Image], path: Path, *, columns: int) -> None:
    """Write images in rows of ``columns``, each 96 pixels a side, as one PNG."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) - GAP, rows * (SIDE + GAP) - GAP), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        enlarged = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(enlarged, (column * (SIDE + GAP), row * (SIDE + GAP)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
