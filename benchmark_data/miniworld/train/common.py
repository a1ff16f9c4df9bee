"""What the training stages share: checkpoints in safetensors, learning rates, atomic writes."""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

log = logging.getLogger("miniworld")


class TrainingError(ValueError):
    """A training stage that cannot start or go on."""


def save_state(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
    """Write tensors and a small JSON-able mapping to one safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(
        {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()},
        temporary,
        metadata={"meta": json.dumps(dict(meta))},
    )
    temporary.replace(path)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = json.loads(file.metadata()["meta"])
    return tensors, meta


def pack(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Return all weights and optimizer moments under flat names."""
    tensors = {
        f"{name}/{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"{name}/{index}/{key}"] = torch.as_tensor(value)
    return tensors


def unpack(
    tensors: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Put back what `pack` returned."""
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict(
            {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
        )
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"{name}/"):
                _, index, field = key.split("/")
                moments.setdefault(int(index), {})[field] = value
        state["state"] = moments
        optimizer.load_state_dict(state)


def learning_rate(step: int, steps: int, *, peak: float, warmup: int = 200) -> float:
    """Return the rate at a step: warm-up, a plateau, cosine to a fiftieth in the last 40 %."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = 0.6 * steps
    if step < start:
        return peak
    fraction = min((step - start) / max(steps - start, 1), 1.0)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fraction)))


@dataclass
class Clock:
    """Says when it is time to log or to save."""

    every: float
    last: float = 0.0

    def due(self) -> bool:
        """Return True at most once every `every` seconds."""
        now = time.monotonic()
        if self.last == 0.0:
            self.last = now
        if now - self.last < self.every:
            return False
        self.last = now
        return True


def options_of(table: Mapping[str, object], steps: int | None, smoke: bool) -> dict[str, Any]:
    """Return a suite's training settings, with other steps where they are asked for."""
    options: dict[str, Any] = dict(table)
    if steps or smoke:
        options["steps"] = steps or 2
    return options


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder and put it in place of the old one."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def write_json(path: Path, data: object) -> None:
    """Write a small file of figures, atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
