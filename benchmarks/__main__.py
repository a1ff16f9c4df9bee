"""Times what the project makes fast against the plain way of doing it; prints ratios.

The plain way is written out here. Every comparison first checks that both give the same numbers.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch

from baselines import LoraAdapter, LowRankDelta
from benchmarks.judge import bench_miniature, bench_random
from lorarar.hypernet import HyperNetwork


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the shortest of some runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def random_adapter(layers: dict[str, tuple[int, int]], rank: int, seed: int) -> LoraAdapter:
    """Return an adapter of random factors for layers of the given (d_out, d_in)."""
    generator = torch.Generator().manual_seed(seed)
    return LoraAdapter(
        {
            name: LowRankDelta(
                torch.randn(d_out, rank, generator=generator),
                torch.randn(rank, d_in, generator=generator) / d_in,
            )
            for name, (d_out, d_in) in layers.items()
        }
    )


def dense_coefficients(
    network: HyperNetwork, subject: LoraAdapter, style: LoraAdapter
) -> dict[str, torch.Tensor]:
    """Return LoRA.rar's coefficients by building every update, column by column input."""
    result = {}
    for name, delta in subject.deltas.items():
        if not network.predicts(name):
            continue
        columns = torch.cat([delta.dense().T, style.deltas[name].dense().T], dim=1)
        layer = network.inputs[str(delta.shape[0])]
        result[name] = network.output(torch.relu(layer(columns))).T
    return result


def bench_lorarar(modules: int, rank: int, repeats: int) -> str:
    """Compare factored and dense coefficients at SDXL's widths."""
    layers = {
        f"block.{index}.attn1.{projection}": (width, width)
        for index in range(modules)
        for width, projection in (((640, 1280)[index % 4 > 0], "to_q"),)
    }
    subject, style = random_adapter(layers, rank, 0), random_adapter(layers, rank, 1)
    network = HyperNetwork((640, 1280))
    with torch.no_grad():
        factored = network(subject, style)
        dense = dense_coefficients(network, subject, style)
        for name, both in dense.items():
            torch.testing.assert_close(torch.stack(factored[name]), both, rtol=1e-4, atol=1e-5)
        plain = seconds(lambda: dense_coefficients(network, subject, style), repeats)
        fast = seconds(lambda: network(subject, style), repeats)
    return (
        f"lorarar coefficients, {modules} modules of width 640 and 1280, rank {rank}: "
        f"dense {plain:.3f} s, factored {fast:.3f} s, {plain / fast:.1f} x"
    )


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--modules", type=int, default=40)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=32, help="Test images that a judge is shown.")
    parser.add_argument("--only", choices=("lorarar", "miniature", "random"))
    arguments = parser.parse_args()
    benchmarks = {
        "lorarar": lambda: bench_lorarar(arguments.modules, arguments.rank, arguments.repeats),
        "miniature": lambda: bench_miniature(arguments.images),
        "random": lambda: bench_random(arguments.images),
    }
    for name, benchmark in benchmarks.items():
        if arguments.only in (None, name):
            sys.stdout.write(benchmark() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
