"""LoRA.rar at SDXL's size: factored against building every update, from files to a file."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from baselines import LoraAdapter, save_adapter
from baselines.adapter import LazyDeltas
from benchmarks.sdxl import RANK, cpu_seconds, one_of, random_adapter, sdxl_layers
from lorarar.checkpoints import Provenance, save_checkpoint
from lorarar.hypernet import HyperNetwork

TOLERANCE = 1e-5


def loud_network() -> HyperNetwork:
    """Return a network of the published size whose coefficients vary much."""
    network = HyperNetwork((640, 1280), kv_weight=1.0).requires_grad_(False)
    network.output.weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(5))
    return network


def dense_merge(
    network: HyperNetwork, subject: LoraAdapter, style: LoraAdapter
) -> tuple[dict[str, torch.Tensor], float]:
    """Return LoRA.rar's coefficients by building every update, and the largest merged entry."""
    coefficients = {}
    largest = 0.0
    for name, delta in subject.deltas.items():
        one, other = delta.dense(), style.deltas[name].dense()
        if network.predicts(name):
            columns = torch.cat([one.T, other.T], dim=1)
            both = network.output(torch.relu(network.inputs[str(one.shape[0])](columns))).T
            coefficients[name] = both
            merged = one * both[0] + other * both[1]
        else:
            merged = one + other
        largest = max(largest, float(merged.amax()))
    return coefficients, largest


def merge_by_layer(network: HyperNetwork, subject: LoraAdapter, style: LoraAdapter) -> float:
    """Merge factored, a layer at a time and none kept, as the dense way; the largest entry."""
    shapes = subject.shapes()
    lazy = [LoraAdapter(LazyDeltas(shapes, a.deltas.__getitem__)) for a in (subject, style)]
    merged = network.merge(*lazy)
    return max(float(delta.down.amax()) for delta in merged.deltas.values())


@torch.no_grad()
def bench_lorarar(every: int, dense_every: int, repeats: int) -> str:
    """Compare both ways; the dense one on fewer layers, scaled by the number of entries."""
    layers = sdxl_layers(every)
    some = one_of(layers, dense_every)
    entries, some_entries = (
        sum(d_out * d_in for d_out, d_in in shapes.values()) for shapes in (layers, some)
    )
    network = loud_network()
    pair = [random_adapter(layers, RANK, seed) for seed in (0, 1)]
    part = [LoraAdapter({name: a.deltas[name] for name in some}) for a in pair]
    factored = network(*part)
    worst = 0.0
    for name, both in dense_merge(network, *part)[0].items():
        apart = (torch.stack(factored[name]) - both).norm() / both.norm()
        worst = max(worst, float(apart))
    if worst > TOLERANCE:
        raise ValueError(f"the coefficients are {worst:.1e} apart")
    fast = cpu_seconds(lambda: merge_by_layer(network, *pair), repeats)
    plain = cpu_seconds(lambda: dense_merge(network, *part)) * entries / some_entries
    scaled = (
        ""
        if len(some) == len(layers)
        else (f" (measured on {len(some)} of them, times {entries / some_entries:.1f}, by entries)")
    )
    return (
        f"lorarar, {len(layers)} layers of SDXL, rank {RANK}: dense {plain:.1f} CPU-s{scaled}, "
        f"factored {fast:.2f} CPU-s, {plain / fast:.1f} x; coefficients within {worst:.0e} "
        f"relative\n{_from_files(pair, network, entries)}"
    )


MERGE = """
import json, sys, time
from pathlib import Path
from baselines import METHODS
from mars2.memory import PeakMemory
from mars2.merge import merge_files
*files, checkpoint, out = map(Path, sys.argv[1:])
METHODS.get("lorarar")
memory = PeakMemory("cpu")
memory.reset()
before, start = memory.peak(), time.process_time()
merge_files(files, out, method=f"lorarar:checkpoint={checkpoint}")
print(json.dumps([time.process_time() - start, before, memory.peak()]))
"""
"""Run in a process of its own, whose memory holds nothing else."""


def _from_files(pair: list[LoraAdapter], network: HyperNetwork, entries: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("subject.safetensors", "style.safetensors")]
        for adapter, file in zip(pair, files, strict=True):
            save_adapter(adapter, file, dtype=torch.float16)
        checkpoint, out = Path(folder) / "network.safetensors", Path(folder) / "out.safetensors"
        save_checkpoint(network, checkpoint, Provenance())
        sizes = sum(file.stat().st_size for file in files)
        said = subprocess.run(
            [sys.executable, "-c", MERGE, *files, checkpoint, out],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        took, before, peak = json.loads(said)
        size = out.stat().st_size
    dense = entries * 2  # the merged updates alone, fp16
    above = "(not measurable)"
    if before is not None and peak is not None:
        more = max(0, peak - before - sizes)
        above = f"{more / 1e6:.0f} MB ({more / dense:.3f} of it)"
    return (
        f"  from fp16 files to a file: {took:.1f} CPU-s, files {sizes / 1e6:.0f} MB, output "
        f"{size / 1e6:.0f} MB; merged updates built in fp16 take {dense / 1e6:.0f} MB, here "
        f"{above} above the files"
    )


@torch.no_grad()
def bench_scaling(every: int, repeats: int, plot: Path | None = None) -> str:
    """Time merges by rank, by number of layers and of adapters; all should be linear.

    A merge has two adapters, a subject and a style, so more of them are more pairs: one subject
    with ever more styles.
    """
    names = list(sdxl_layers(every).items())
    network = loud_network()

    def seconds(layers: int, rank: int, styles: int = 1) -> float:
        subject, *others = (
            random_adapter(dict(names[:layers]), rank, seed) for seed in range(1 + styles)
        )

        def merges() -> None:
            for style in others:
                merge_by_layer(network, subject, style)

        return cpu_seconds(merges, repeats)

    full = len(names)
    parts = (full // 4, full // 2, 3 * full // 4, full)
    curves = {
        "rank": [(rank, seconds(full, rank)) for rank in (16, 32, 64, 128)],
        "layers": [(count, seconds(count, RANK)) for count in parts],
        "adapters": [(1 + styles, seconds(full, RANK, styles)) for styles in (1, 2, 4, 6)],
    }
    if plot is not None:
        _draw(curves, plot)
    return "\n".join(
        f"lorarar by {what}: "
        + ", ".join(f"{x}: {1000 * y:.0f} ms" for x, y in points)
        + f"; r = {_correlation(points):.3f} with a line"
        for what, points in curves.items()
    )


def _correlation(points: list[tuple[int, float]]) -> float:
    """How well the points lie on a line."""
    return float(torch.corrcoef(torch.tensor(points, dtype=torch.float64).T)[0, 1])


def _draw(curves: dict[str, list[tuple[int, float]]], plot: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (what, points) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.plot(*zip(*points, strict=True), "o-")
        axes.set(xlabel=what, ylabel="CPU seconds", xlim=(0, None), ylim=(0, None))
    figure.savefig(plot)
