"""Progress of long work: a bar on a terminal, now and then a line in a log."""

import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS = 30.0  # between the lines of a log


class _Lines:
    """A stream for `tqdm` that makes each of its redrawn bars a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


def progress(
    description: str, *, unit: str, total: int | None = None, done: int = 0, shown: bool = True
) -> "tqdm[Any]":
    """A progress bar on stderr if it is to be shown; no terminal: a line every 30 seconds."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(total=total, desc=description, unit=unit, initial=done, disable=not shown)
    return tqdm(
        disable=not shown,
        total=total,
        desc=description,
        unit=unit,
        initial=done,
        file=_Lines(sys.stderr),
        ncols=100,
        ascii=" #",
        delay=SECONDS,
        mininterval=SECONDS,
        maxinterval=SECONDS,
    )
