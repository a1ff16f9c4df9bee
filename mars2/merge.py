"""Merges LoRA files into one, a layer at a time, with where it comes from in its metadata."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from baselines.adapter import LowRankDelta
from baselines.formats import check_spelling, read_lora, save_adapter, spooled
from baselines.layers import match_layers
from baselines.registry import parse_method
from benchmark_data.references import file_digest
from mars2 import __version__
from mars2.job import CONTROLS, RunError


def merge_files(
    files: Sequence[Path],
    output: Path,
    *,
    method: str,
    seed: int = 0,
    layers: str = "error",
    rank: int | None = None,
    spelling: str = "diffusers",
    dtype: str | None = None,
    ignore_text_encoder: bool = False,
) -> list[str]:
    """Write the merge of LoRA files and return lines that say what was written.

    Layer by layer, through a temporary file beside the output: above the files themselves, few
    layers are in memory at a time. (A method of all layers at once holds what it returns, unless it
    gives a lazy adapter.) The metadata has the method and its options, the seed, the version, each
    source's name and sha256, and whatever was left out, filled in or truncated.

    Args:
        files: In the method's order: the subject's, the style's.
        output: Written over if it exists.
        method: As ``parse_method`` takes it; of a kind that needs nothing but weights.
        seed: Of methods that draw random numbers.
        layers: As ``match_layers`` takes it.
        rank: Highest rank of the result, by truncation; None: what the method gives.
        spelling: As ``save_adapter`` takes it.
        dtype: "float32", "float16" or "bfloat16"; None: the files', float32 if they differ.
        ignore_text_encoder: Leave text encoders' LoRAs out instead of refusing the file.

    Raises:
        RunError: A file is missing, or the method cannot merge files.
        AdapterError: As ``load_adapter``, ``match_layers`` and ``save_adapter``.
        PluginError: As the method.
    """
    found, passed = parse_method(method)
    if found.kind == "fit":
        raise RunError(
            f"{found.name} optimises for a pair with the base model and reference images: "
            "use `mars2 run --save-adapters`"
        )
    if found.kind == "policy":
        raise RunError(
            f"{found.name} weighs the LoRAs anew at every denoising step: there is no one merge to "
            "save; use `mars2 run`"
        )
    written_as = check_spelling(spelling)
    for path in files:
        if not path.is_file():
            raise RunError(f"there is no LoRA file {path}")
    if len(files) == 1 and found.name not in CONTROLS:
        raise RunError(
            f"{found.name} merges a subject's file and a style's, and there is one file; "
            "--method subject_only converts one"
        )
    digests = [file_digest(path) for path in files]
    stored_files = [read_lora(path) for path in files]
    types = {dtype for file in stored_files for dtype in file.dtypes}
    adapters = [
        file.adapter(ignore_text_encoder=ignore_text_encoder, lazy=True) for file in stored_files
    ]
    stored = _common_type(types) if dtype is None else getattr(torch, dtype)
    matched, changed = match_layers(adapters, layers)
    merged = found(matched, seed=seed, **found.resolve(passed))
    if not merged.deltas:
        raise RunError(f"{found.name} leaves the base model as it is: there is nothing to save")
    notes = {"layers": changed} if changed else {}
    cut = None if rank is None else _Truncation(rank)
    output.parent.mkdir(parents=True, exist_ok=True)
    with spooled(
        merged if cut is None else merged.map(cut), dtype=stored, folder=output.parent
    ) as spool:
        if cut is not None:
            notes["truncated"] = cut.said()
        left_out = [
            f"{adapter.metadata['left_out']} of {adapter.name}"
            for adapter in adapters
            if "left_out" in adapter.metadata
        ]
        if left_out:
            notes["left_out"] = ", ".join(left_out)
        origin = {
            "mars2_version": __version__,
            "seed": str(seed),
            "sources": ", ".join(
                f"{path.name} sha256:{sha}" for path, sha in zip(files, digests, strict=True)
            ),
        }
        final = replace(spool, metadata={**merged.metadata, **origin, **notes})
        save_adapter(final, output, dtype=stored, spelling=written_as)
        ranks = {delta.rank for delta in final.deltas.values()}
        parameters = final.parameters()
    span = " to ".join(map(str, sorted({min(ranks), max(ranks)})))
    said = (
        f"{output}: {method} of {', '.join(path.name for path in files)}; "
        f"{len(merged.deltas)} layers, rank {span}, "
        f"{parameters} parameters, {str(stored).removeprefix('torch.')}, spelled as "
        f"{spelling} does, {output.stat().st_size / 1e6:.1f} MB"
    )
    if len(set(digests)) < len(digests):
        notes["note"] = "two of the files have the same content"
    return [said, *(f"{what.replace('_', ' ')}: {note}" for what, note in notes.items())]


def _common_type(types: Collection[torch.dtype]) -> torch.dtype:
    """What all factors are stored as, if that is half precision; else float32."""
    halves = (torch.float16, torch.bfloat16)
    return next((half for half in halves if set(types) == {half}), torch.float32)


class _Truncation:
    """Cuts updates to a rank, and counts how much of them is kept (Eckart and Young 1936)."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.before = self.after = 0.0

    def __call__(self, delta: LowRankDelta) -> LowRankDelta:
        """The update, cut."""
        cut = delta.truncate(self.rank)
        self.before += float(delta.norm()) ** 2
        self.after += float(cut.norm()) ** 2
        return cut

    def said(self) -> str:
        """A sentence for the metadata, once all updates are cut."""
        if self.after == self.before:
            return f"no layer, all are of rank {self.rank} or less"
        kept = f"{100 * self.after / self.before:.2f} %" if self.before else "all"
        return f"to rank {self.rank}, which keeps {kept} of the squared norm"
