"""Times what the project makes fast against the plain way of doing it; prints ratios.

The plain way is written out here. Every comparison first checks that both give the same numbers.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.judge import bench_miniature, bench_random
from benchmarks.lorarar import bench_lorarar, bench_scaling
from benchmarks.peft_merges import bench_peft
from benchmarks.ziplora import bench_pair, bench_ziplora


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--every", type=int, default=1, help="Use one of so many of SDXL's 70 transformer blocks."
    )
    parser.add_argument(
        "--dense-every", type=int, default=10, help="Of these, build one of so many densely."
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--largest", type=int, help="Leave wider layers out of peft's merges.")
    parser.add_argument("--width", type=int, default=160, help="Of ZipLoRA's UNet; SDXL's is 320.")
    parser.add_argument("--plot", type=Path, help="File for the plot of merge times, .svg or .png.")
    parser.add_argument("--images", type=int, default=32, help="Test images that a judge is shown.")
    names = ("lorarar", "scaling", "peft", "ziplora", "pair", "miniature", "random")
    parser.add_argument("--only", choices=names, action="append", help="Repeat it for several.")
    given = parser.parse_args()
    widths = (given.width, 2 * given.width, 4 * given.width)
    benchmarks = {
        "lorarar": lambda: bench_lorarar(given.every, given.dense_every, given.repeats),
        "scaling": lambda: bench_scaling(4 * given.every, given.repeats, given.plot),
        "peft": lambda: bench_peft(largest=given.largest),
        "ziplora": lambda: bench_ziplora(widths),
        "pair": bench_pair,
        "miniature": lambda: bench_miniature(given.images),
        "random": lambda: bench_random(given.images),
    }
    for name in names:
        if given.only is None or name in given.only:
            sys.stdout.write(benchmarks[name]() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
