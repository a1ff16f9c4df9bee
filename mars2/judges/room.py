"""Whether a model fits into memory, said before it is loaded; batches halved where it does not."""

import gc
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from mars2.judges.errors import JudgeError

QUESTION_POSITIONS = 7500
"""Text and image tokens of the longest usual question: two square images of 512 pixels."""
IMAGES_SHOWN = 40
"""Images whose features are held at a time: those of a batch that is scored, and references."""
KEPT_FEATURES = IMAGES_SHOWN * QUESTION_POSITIONS // 2
"""Positions of them: fewer, and references would be computed again for every batch."""

ADVICE = (
    "free memory, take a GPU with more, --dtype float16 (half of float32), a smaller judge "
    "(`mars2 ls judges`), or a judge on a server"
)

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Need:
    """Memory that a judge takes, bytes.

    Attributes:
        weights: Of its parameters.
        working: About: images' features, and of one question keys, values and the widest layer's
            numbers.
    """

    weights: int
    working: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.working


def memory_need(config: Any, parameters: int, dtype: torch.dtype) -> Need:
    """Return what a model takes, given its config in transformers' form."""
    text = getattr(config, "text_config", config)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * width
    # the prefix is kept and copied, the question's own follow: one and a half questions
    kept = QUESTION_POSITIONS * 3 // 2 * cached
    widest = QUESTION_POSITIONS * (3 * text.intermediate_size + 6 * text.hidden_size)
    features = KEPT_FEATURES * text.hidden_size
    return Need(parameters * dtype.itemsize, (kept + widest + features) * dtype.itemsize)


def free_memory(device: str) -> int | None:
    """Return the free memory of a GPU, or of this machine, bytes; None where it is not told.

    On a GPU, what earlier models left is given back first.

    Where a container or a batch job may take less than the machine has, that is what is free.
    """
    if device.startswith("cuda"):
        gc.collect()  # a model that is no more used may be kept by a cycle,
        torch.cuda.empty_cache()  # and what it leaves is torch's until it is given back
        return int(torch.cuda.mem_get_info(device)[0])
    told = [free for free in (_free_in_machine(), free_in_group()) if free is not None]
    return min(told, default=None)


def free_in_group(groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what this process's control groups (Linux, version 2) leave it, bytes; None: no limit.

    Args:
        groups: Where the kernel shows them.
    """
    try:
        named = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    except OSError:
        return None
    own = groups / (named[1] if named else "")
    left = []
    for folder in (own, *(parent for parent in own.parents if parent.is_relative_to(groups))):
        try:
            limit, used = (
                int((folder / name).read_text()) for name in ("memory.max", "memory.current")
            )
            stat = (folder / "memory.stat").read_text()
        except (OSError, ValueError):  # no such group here, or no limit: "max"
            continue
        cached = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)
        left.append(max(0, limit - used + (int(cached[1]) if cached else 0)))
    return min(left, default=None)


def _free_in_machine() -> int | None:
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        told = ""
    if found := re.search(r"^MemAvailable:\s+(\d+) kB$", told, re.MULTILINE):
        return int(found[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def require_room(need: Need, *, name: str, dtype: str, device: str) -> None:
    """Check that a model fits.

    Raises:
        JudgeError: It does not; with the numbers, and what to do.
    """
    # a model on its way to a GPU is in this machine's memory first
    for where, bytes_ in (("cpu", need.weights), (device, need.total)):
        free = free_memory(where)
        if free is not None and bytes_ > free:
            raise JudgeError(
                f"{name} in {dtype} takes {gibibytes(need.weights)} and about "
                f"{gibibytes(need.working)} to work with; {where} has {gibibytes(free)} free: "
                f"{ADVICE}"
            )


def gibibytes(count: int) -> str:
    """Return a number of bytes in words.

    >>> gibibytes(3 * 2**29)
    '1.5 GiB'
    """
    return f"{count / 2**30:.1f} GiB"


def halving(
    function: Callable[[list[A]], list[B]],
    items: list[A],
    *,
    failed: Callable[[int], None] | None = None,
) -> list[B]:
    """Return what a function gives for items, in halves as often as memory does not suffice.

    Args:
        function: Returns a list with a value for each item.
        items: At least one.
        failed: Called with each number of items that were too many; what it drops may make room
            for a single one, which is tried once more.

    Raises:
        JudgeError: Memory does not suffice for one.
    """
    try:
        return function(items)
    except torch.OutOfMemoryError as error:
        if len(items) < 2 and failed is None:
            raise JudgeError(f"out of memory at a single question or image: {ADVICE}") from error
    # here the failed call's tensors are gone with its traceback
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if failed is not None:
        failed(len(items))
    if len(items) < 2:
        return halving(function, items)
    middle = len(items) // 2
    return halving(function, items[:middle], failed=failed) + halving(
        function, items[middle:], failed=failed
    )
