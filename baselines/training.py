"""What makes a training repeatable and resumable: draws from (seed, step), and saved state."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from baselines.adapter import AdapterError

_ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""As safetensors writes the types of factors."""


def generator_for(seed: int, *labels: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on ``seed`` and ``labels`` and on nothing else.

    A step that draws from ``generator_for(seed, step)`` draws the same after an interruption, and
    on every device.
    """
    digest = hashlib.sha256(json.dumps([seed, *labels]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def shuffled_passes(count: int, start: int, size: int, *, seed: int, label: str) -> list[int]:
    """Indices ``[start, start + size)`` of an endless sequence of shuffled passes over ``count``.

    Every index in ``[0, count)`` comes once a pass, so that each is seen.
    """
    indices = []
    for position in range(start, start + size):
        number, place = divmod(position, count)
        order = torch.randperm(count, generator=generator_for(seed, label, number))
        indices.append(int(order[place]))
    return indices


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with ``metadata`` in its header, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        # not `save_file`, whose files nobody but their owner may read
        partial.write_bytes(save(contiguous, metadata=dict(metadata)))
        _sort_header(partial)
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def stream_tensors(
    path: Path,
    tensors: Callable[[], Iterable[tuple[str, Tensor]]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file, as ``save_tensors``, holding one tensor at a time.

    Args:
        path: Written over if it exists, atomically.
        tensors: Gives names and tensors; called twice, for the header and for the data, which lie
            in this order. Each must begin at a multiple of its type's size: larger types first.
        metadata: For the header.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors():
        start, end = end, end + tensor.numel() * tensor.element_size()
        kind = _TYPE_NAMES[tensor.dtype]
        header[name] = {"data_offsets": [start, end], "dtype": kind, "shape": list(tensor.shape)}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-len(text) // 8 * -8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, tensor in tensors():
                file.write(tensor_bytes(tensor))
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values as they lie in memory, contiguous, on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _sort_header(path: Path) -> None:
    """Put a safetensors header in order in place: safetensors writes metadata in a random one."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        file.seek(8)
        file.write(text.encode().ljust(length))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header metadata of a safetensors file, on the CPU.

    Raises:
        AdapterError: If the file is missing or is not a safetensors file.
    """
    if not path.is_file():
        what = "it is a folder, not a file" if path.is_dir() else "no such file"
        raise AdapterError(f"{path}: {what}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise AdapterError(f"{path}: not a readable safetensors file ({error})") from error


def save_state(
    path: Path,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
    *,
    fingerprint: str,
) -> None:
    """Save a training so that ``load_state`` goes on from it, atomically.

    ``optimizer`` is an AdamW over ``parameters.values()`` in that order; a loss was recorded for
    every step done. ``fingerprint`` names everything else that the result depends on.
    """
    tensors = {f"parameter.{name}": value for name, value in parameters.items()}
    for name, value in parameters.items():
        if value in optimizer.state:  # a parameter that never had a gradient has no state
            tensors |= {f"{key}.{name}": optimizer.state[value][key] for key in _ADAMW_STATE}
    tensors["losses"] = torch.tensor(list(losses), dtype=torch.float64)
    save_tensors(path, tensors, {"fingerprint": fingerprint})


def load_state(
    path: Path,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    fingerprint: str,
) -> list[float]:
    """Put a saved training into ``parameters`` and ``optimizer``; the losses of the steps done.

    Raises:
        AdapterError: If the file is unreadable or belongs to another training.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("fingerprint") != fingerprint:
        raise AdapterError(
            f"{path}: this training state was made with other settings, images or prompts; "
            "delete it to start anew, or give another path"
        )
    losses: list[float] = tensors["losses"].tolist()
    for name, value in parameters.items():
        with torch.no_grad():
            value.copy_(tensors[f"parameter.{name}"])
        if f"step.{name}" in tensors:
            optimizer.state[value] = {
                key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else value.device)
                for key in _ADAMW_STATE
            }
    return losses
