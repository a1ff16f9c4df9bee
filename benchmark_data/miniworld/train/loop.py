"""The training loop of the small models: Muon and AdamW, checkpoints, resuming."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

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
from benchmark_data.miniworld.train.team import ALONE, Team


class _Unflattened(nn.Module):
    """A matrix ``(out, in * h * w)`` as a convolution's weight ``(out, in, h, w)``."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)


@contextmanager
def flat_convolutions(*modules: nn.Module) -> Iterator[None]:
    """Let inner convolutions' weights be matrices for a while: Muon takes nothing else.

    Those that read or write an image's three colours are left to AdamW.
    """
    convolutions = [
        layer
        for module in modules
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and min(layer.in_channels, layer.out_channels) > 3
    ]
    for layer in convolutions:
        parametrize.register_parametrization(layer, "weight", _Unflattened(layer.weight.shape))
    try:
        yield
    finally:
        for layer in convolutions:
            parametrize.remove_parametrizations(layer, "weight")


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights as if `flat_convolutions` had never touched it."""
    state: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        layer, flat, _ = key.partition(".parametrizations.weight.original")
        if flat:
            state[f"{layer}.weight"] = getattr(module.get_submodule(layer), "weight")  # noqa: B009
        else:
            state[key] = value
    return state


NOT_MUON = ("embed", "lm_head", "head", "text_encoder")


def muon_and_adam(
    modules: Sequence[nn.Module], *, muon: float, adam: float
) -> tuple[dict[str, torch.optim.Optimizer], dict[str, float]]:
    """Muon for the matrices between a network's layers, AdamW for all else, and their rates.

    Text encoders are all else: under Muon their output grew to norms of 230 from the one word on
    that mattered most, and words added to the captions later were never learnt.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            inner = parameter.ndim == 2 and not any(w in name for w in NOT_MUON)
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
    averages: Mapping[str, AveragedModel] | None = None,
    on_save: Callable[[], None] | None = None,
    team: Team = ALONE,
) -> None:
    """Train, with a checkpoint every two minutes; go on from it, or load what is finished.

    Args:
        checkpoint: Its file.
        modules: What is trained, by name.
        loss_at: The loss of a step; all its draws come from the step's number.
        steps: How many.
        rates: Peak learning rates of Muon and of AdamW.
        decay: Whether the rates go down in the last 40 %; False: another phase follows.
        averages: Running averages of modules' weights, by the modules' names; kept up to date.
        on_save: Called after a checkpoint was written on the way.
        team: Processes that share each step; only the first of them writes.
    """
    optimizers, peaks = muon_and_adam(list(modules.values()), muon=rates[0], adam=rates[1])
    name, start = checkpoint.stem, 0
    averages = averages or {}
    saved = {**modules, **{f"average of {key}": value for key, value in averages.items()}}
    if checkpoint.exists():
        tensors, meta = load_state(checkpoint)
        unpack(tensors, saved, optimizers)
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
        team.average(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        for key, average in averages.items():
            average.update_parameters(modules[key])
        losses.append(loss.item())
        if team.rank == 0 and (report.due() or step in (start, steps - 1)):
            mean = float(np.mean(losses[-60:]))
            log.info("%s, step %d of %d, loss %.4f", name, step + 1, steps, mean)
        if team.rank == 0 and saving.due():
            save_state(checkpoint, pack(saved, optimizers), {"step": step + 1})
            if on_save is not None:
                on_save()
    if team.rank == 0 and start < steps:
        save_state(checkpoint, pack(saved, optimizers), {"step": steps})
