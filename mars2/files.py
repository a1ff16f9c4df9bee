"""Files of a run folder: atomic writes, and JSON lines that survive being killed."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from benchmark_data.references import open_image
from benchmark_data.suite import SuiteError
from mars2.job import RunError


class JsonLines:
    """A file of one JSON object a line, only ever appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return all complete lines; a last one without its line end is dropped.

        Raises:
            RunError: Another line is not JSON.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise RunError(f"{self.path} line {number} is not JSON: {error}") from error
        return rows

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows at the end and flush them to the disk; a torn last line is written over."""
        text = "".join(
            json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
            for row in rows
        )
        mode = "r+b" if self.path.exists() else "w+b"
        with self.path.open(mode) as file:
            content = file.read()
            file.seek(content.rfind(b"\n") + 1)
            file.truncate()
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows in the place of those there are, atomically."""
        temporary = JsonLines(self.path.with_name(f".{self.path.name}.tmp"))
        temporary.path.unlink(missing_ok=True)
        temporary.append(rows)
        temporary.path.replace(self.path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        RunError: The file cannot be read as one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RunError(f"{path} holds a {type(data).__name__}, not an object")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, atomically."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_image(path: Path, image: Image.Image) -> None:
    """Write a PNG, atomically, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    image.save(temporary, format="PNG")
    temporary.replace(path)


def read_image(path: Path) -> Image.Image:
    """Return an image as RGB, turned as its EXIF data says.

    Raises:
        RunError: The file is missing, truncated or no image.
    """
    try:
        return open_image(path)
    except SuiteError as error:
        raise RunError(str(error)) from error
