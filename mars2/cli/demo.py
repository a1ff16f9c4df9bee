"""`mars2 demo`: the main job on the miniature world, in a few minutes on a CPU."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mars2.cli import generating, measuring
from mars2.job import Choices, RunError, RunSpec
from mars2.store import RUN_FILE, RunStore

SUITE = "miniworld"
CHOICES = Choices(
    methods=("direct_sum", "average", "ziplora", "lorarar"),
    seeds=(0, 1, 2, 3),
    limit=4,
    device="cpu",
)
SCORING = measuring.Scoring(device="cpu")
NEXT = """
The page has the other tables: CLIP and DINO, scores corrected for the judge's errors, scores by
subject and style, costs, and the judge's answers with the images. grid.png is the picture of it.
What the miniature world is, and how far its judge is to be trusted: docs/miniworld.md
A method of your own: docs/tutorial.md     All methods and commands: docs/reference.md"""


def demo(
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the run; the same run is gone on with, another (such as that of an "
            "older version) is left alone and FOLDER-2 taken."
        ),
    ],
) -> None:
    """Run the main job on the miniature world, which comes with MARS2."""
    from benchmark_data.load import load_suite
    from mars2.prepare import prepare

    plan = prepare(SUITE, load_suite(SUITE), CHOICES)
    folder = _own_folder(out, plan.spec)
    if folder != out:
        sys.stderr.write(
            f"mars2: {out} holds a run of another version or with other settings and is left as it "
            f"is; the demo is in {folder}\n"
        )
    print(
        f"{len(CHOICES.methods)} methods and the controls on {len(plan.spec.cases)} pairs of the "
        f"miniature world, {len(CHOICES.seeds)} images of each: merge, draw, judge, report.",
        flush=True,
    )
    store = generating.carry_out(plan, folder, batch_size=len(CHOICES.seeds))
    failed = measuring.score(store, SCORING)
    measuring.report(store, brief=True)
    print(NEXT)
    measuring.exit_if_failed(failed)


def _own_folder(out: Path, spec: RunSpec) -> Path:
    """Return the first of OUT, OUT-2, OUT-3, ... that is free or holds this very run.

    Raises:
        RunError: One of them is there and no run.
    """
    folder, number = out, 1
    while not _fits(folder, spec):
        number += 1
        folder = Path(f"{out}-{number}")
    return folder


def _fits(folder: Path, spec: RunSpec) -> bool:
    try:
        RunStore.create(folder, spec, write=False)
    except RunError:
        if not (folder / RUN_FILE).exists():
            raise
        return False
    return True
