"""Peak memory of a stretch of work, on a GPU or, through Linux's own counter, on the CPU."""

import re
from pathlib import Path

CUDA = "cuda allocated"
RESIDENT = "resident set"


class PeakMemory:
    """Measures from `reset` on: torch's allocations on a GPU, else the process's resident set.

    The resident set holds the base model, Python and its libraries too. Linux keeps its high-water
    mark in /proc and lets a process reset it; elsewhere there is no measure.

    Attributes:
        kind: "cuda allocated" or "resident set".
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.kind = CUDA if device.startswith("cuda") else RESIDENT

    def reset(self) -> None:
        """Begin to measure anew."""
        if self.kind == CUDA:
            import torch

            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            self._measurable = False
        else:
            self._measurable = True

    def peak(self) -> int | None:
        """Return the highest use since `reset`, bytes; None where it cannot be measured."""
        if self.kind == CUDA:
            import torch

            torch.cuda.synchronize(self._device)
            return torch.cuda.max_memory_allocated(self._device)
        if not self._measurable:
            return None
        status = Path("/proc/self/status").read_text(encoding="ascii")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None
