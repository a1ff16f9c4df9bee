"""`mars2 demo`: the main job on the miniature world, in a few minutes on a CPU."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.cli import work
from mars2.job import Choices

SUITE = "miniworld"
CHOICES = Choices(
    methods=("direct_sum", "average", "ziplora", "lorarar"),
    seeds=(0, 1, 2, 3),
    limit=4,
    device="cpu",
)
SCORING = work.Scoring(device="cpu")


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; the same run is gone on with.")],
) -> None:
    """Run the main job on the miniature world, which comes with MARS2."""
    import torch

    torch.set_num_threads(1)  # models so small lose by more threads: 74 s with one
    store = work.generate(SUITE, CHOICES, out, batch_size=len(CHOICES.seeds))
    failed = work.score(store, SCORING)
    work.report(store)
    work.exit_if_failed(failed)
