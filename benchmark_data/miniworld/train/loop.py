"""The training loop of the judges: Muon for matrices, AdamW for the rest, checkpoints, resuming."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmark_data.miniworld.train.common import (
    Clock,
    TrainingError,
    learning_rate,
    load_state,
    log,
    pack,
    save_state,
    unpack,
)


def muon_and_adam(
    modules: Sequence[nn.Module], *, muon: float, adam: float
) -> tuple[dict[str, torch.optim.Optimizer], dict[str, float]]:
    """Muon for the matrices between a network's layers, AdamW for all else, and their rates."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            inner = parameter.ndim == 2 and not any(w in name for w in ("embed", "lm_head", "head"))
            (matrices if inner else others).append(parameter)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "muon": torch.optim.Muon(matrices, lr=muon, weight_decay=0.01, adjust_lr_fn="original"),
        "adam": torch.optim.AdamW(others, lr=adam, weight_decay=0.01, betas=(0.9, 0.98)),
    }
    return optimizers, {"muon": muon, "adam": adam}


def train_phase(
    checkpoint: Path,
    modules: Mapping[str, nn.Module],
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    rates: tuple[float, float],
    decay: bool = False,
    on_save: Callable[[], None] | None = None,
) -> None:
    """Train, with a checkpoint every two minutes; go on from it, or load what is finished."""
    optimizers, peaks = muon_and_adam(list(modules.values()), muon=rates[0], adam=rates[1])
    name, start = checkpoint.stem, 0
    if checkpoint.exists():
        tensors, meta = load_state(checkpoint)
        unpack(tensors, modules, optimizers)
        start = int(meta["step"])
        log.info("%s goes on at step %d of %d", name, start, steps)
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    saving, report, losses = Clock(120), Clock(20), []
    for step in range(start, steps):
        for key, optimizer in optimizers.items():
            horizon = steps if decay else 2 * steps  # the second half never comes: no decay
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    step, horizon, peak=peaks[key], warmup=min(60, steps // 4)
                )
        loss = loss_at(step)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()} at step {step} of {name}")
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        losses.append(loss.item())
        if report.due() or step in (start, steps - 1):
            mean = float(np.mean(losses[-60:]))
            log.info("%s, step %d of %d, loss %.4f", name, step + 1, steps, mean)
        if saving.due():
            save_state(checkpoint, pack(modules, optimizers), {"step": step + 1})
            if on_save is not None:
                on_save()
    if start < steps:
        save_state(checkpoint, pack(modules, optimizers), {"step": steps})
