"""LoRA files <-> ``LoraAdapter``; only this package knows how files spell their keys.

``keys`` and ``layout`` say what a key names, ``settings`` what scales it; ``read`` and ``write``
are the two ways; ``spool`` keeps a merge's layers out of memory; ``describe`` sums a file up.
"""

from baselines.formats.describe import FileSummary, describe
from baselines.formats.read import LoraFile, load_adapter, read_lora
from baselines.formats.spool import spooled
from baselines.formats.write import Spelling, check_spelling, save_adapter

__all__ = [
    "FileSummary",
    "LoraFile",
    "Spelling",
    "check_spelling",
    "describe",
    "load_adapter",
    "read_lora",
    "save_adapter",
    "spooled",
]
