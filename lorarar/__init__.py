"""LoRA.rar: a hypernetwork that predicts how to merge a subject's LoRA with a style's."""

from lorarar.checkpoints import Provenance, load_checkpoint, read_provenance, save_checkpoint
from lorarar.hypernet import HyperNetwork

__all__ = [
    "HyperNetwork",
    "Provenance",
    "load_checkpoint",
    "read_provenance",
    "save_checkpoint",
]
