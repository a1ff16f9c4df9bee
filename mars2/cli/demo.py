"""`mars2 demo`: the main job on the miniature world, in a few minutes on a CPU."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.cli import work
from mars2.job import Choices

PAIRS = 4
SEEDS = (0, 1, 2, 3)
METHODS = ("direct_sum", "average", "ziplora", "lorarar")


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; the same run is gone on with.")],
) -> None:
    """Merge, generate, score and report on the miniature world that is shipped with MARS2."""
    choices = Choices(methods=METHODS, seeds=SEEDS, limit=PAIRS, device="cpu")
    store = work.generate("miniworld", choices, out, batch_size=4)
    work.score(store, work.Scoring(device="cpu"))
    work.report(store)
