"""Processes on one machine that share each training step: every one takes its part of the batch.

Two processes of one thread each are faster and steadier here than one of two threads.
"""

import logging
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import start_processes


@dataclass(frozen=True)
class Team:
    """One process's place among those that train together.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def wait(self) -> None:
        """Go on when all are here."""
        if self.size > 1:
            distributed.barrier()

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the mean of their gradients."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        start = 0
        for gradient in gradients:
            end = start + gradient.numel()
            gradient.copy_(flat[start:end].view_as(gradient))
            start = end


ALONE = Team()


def run_team(processes: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(team, *arguments)`` in so many processes; in this one if it is one.

    An error in one of them ends all and is raised here.
    """
    if processes == 1:
        work(ALONE, *arguments)
        return
    with TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        level = logging.getLogger().getEffectiveLevel()
        told = (processes, meeting, level, work, arguments)
        start_processes(_join, told, nprocs=processes)  # type: ignore[no-untyped-call]


def _join(
    rank: int,
    size: int,
    meeting: str,
    level: int,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # how torch says: the parent is gone
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
    )
    work(Team(rank, size), *arguments)
    distributed.destroy_process_group()  # not after an error: the others would report theirs first
