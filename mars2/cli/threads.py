"""How many threads compute: one where all models are small."""

import os
from pathlib import Path

SMALL_MODEL = 200_000_000
"""Bytes of a model's files up to which one thread computes it faster than several."""


def fit_threads(*models: str | None) -> None:
    """Let one thread compute if all models are small, unless ``OMP_NUM_THREADS`` is set.

    Matrices of small networks are not worth sharing: several threads take longer, many times so
    where other work keeps the cores busy. Models that are not here are taken as large.

    Args:
        models: Folders or files, ``KIND:PATH`` too; None and "" do not count.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    sizes = [size_of(model) for model in models if model]
    if sizes and all(size is not None and size <= SMALL_MODEL for size in sizes):
        import torch

        torch.set_num_threads(1)


def size_of(model: str) -> int | None:
    """Bytes of a model's files; None if it is not here."""
    for path in (Path(model), Path(model.partition(":")[2] or model)):
        if path.is_file():
            return path.stat().st_size
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return None
