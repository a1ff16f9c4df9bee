"""The console that tables are printed on: as wide as the terminal, or as the tables need."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PROSE = 100  # most characters of a line of text
UNBOUNDED = 10_000


def make_console() -> "Console":
    """Return the console of stdout; in a file or pipe tables are whole, whatever their width.

    COLUMNS, where it is set, is the width of any.
    """
    from rich.console import Console

    bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console() if bounded else Console(width=UNBOUNDED)
