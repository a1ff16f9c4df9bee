"""The merge method `lorarar`: LoRA.rar with a hypernetwork from a checkpoint.

It is registered through the entry-point group `mars2.merge_methods`, as any installed plugin is.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from baselines.adapter import AdapterError, LoraAdapter
from baselines.registry import adapter_method
from lorarar.checkpoints import load_checkpoint
from lorarar.hypernet import HyperNetwork


@adapter_method("lorarar", paper="https://arxiv.org/abs/2412.05148")
def lorarar(
    adapters: Sequence[LoraAdapter], *, checkpoint: str = "", kv_weight: float | None = None
) -> LoraAdapter:
    """Merge with the column coefficients that a trained hypernetwork predicts.

    Args:
        adapters: The subject's and the style's, with the same layers.
        checkpoint: The hypernetwork's file; a suite may supply it.
        kv_weight: Weight of both updates in the layers that are not predicted; None: what the
            checkpoint says (0.5 as in the paper, 1.0 for the published file).

    Raises:
        AdapterError: If there is no checkpoint, there are not two adapters, or the checkpoint does
            not fit them.
    """
    if not checkpoint:
        raise AdapterError(
            "lorarar needs a hypernetwork: pass lorarar:checkpoint=FILE (`mars2 train hypernet` "
            "makes one); runs of a suite that ships one need none"
        )
    if len(adapters) != 2:
        raise AdapterError(f"lorarar merges a subject and a style, not {len(adapters)} adapters")
    subject, style = adapters
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise AdapterError(f"{path}: no such file (lorarar:checkpoint)")
    network = _network(path, path.stat().st_mtime_ns)
    first = next(iter(subject.deltas.values()), None)
    network.to("cpu" if first is None else first.down.device)
    return network.merge(subject, style, kv_weight=kv_weight)  # the network is frozen


@lru_cache(maxsize=2)
def _network(path: Path, _modified_ns: int) -> HyperNetwork:
    """The loaded checkpoint; read again when the file has changed."""
    return load_checkpoint(path)
