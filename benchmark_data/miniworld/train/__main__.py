"""The command line of the training stages."""

import argparse
import importlib
import logging
from pathlib import Path

from benchmark_data.miniworld.train.common import TrainingError

STAGES = (
    "references",
    "autoencoder",
    "base",
    "loras",
    "hypernetwork",
    "critic",
    "clip",
    "dino",
    "manifest",
)
PACKAGE = Path(__file__).parents[1]


def main() -> None:
    """Run one stage, or all of them in order."""
    parser = argparse.ArgumentParser(prog="python -m benchmark_data.miniworld.train")
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--out", type=Path, default=PACKAGE / "weights", help="weights folder")
    parser.add_argument("--work", type=Path, default=Path("training"), help="checkpoints, data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="training steps instead of the stage's own")
    parser.add_argument("--smoke", action="store_true", help="tiny numbers: does it run?")
    parser.add_argument("--start", type=Path, help="base, critic: a folder of it to go on from")
    parser.add_argument("--processes", type=int, default=1, help="base, critic: share each step")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        module = importlib.import_module(f"benchmark_data.miniworld.train.{stage}")
        more = {}
        if stage in ("base", "critic"):
            more = {"start": arguments.start, "processes": arguments.processes}
        try:
            module.run(
                arguments.out,
                arguments.work,
                smoke=arguments.smoke,
                seed=arguments.seed,
                steps=arguments.steps,
                **more,
            )
        except TrainingError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
