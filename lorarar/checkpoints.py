"""Reads and writes hypernetworks: our safetensors with metadata, and the published `.pth` layout.

The published layout is a pickled dictionary of `input_1.*` (columns of 640), `input_2.*` (columns
of 1280) and `output.1.*`, saved from a CUDA device, with no record of how it was made. It is read
with ``weights_only``, so that it cannot run code. The released code predicts `to_q` and `to_out.0`
with it and sums keys and values with weight 1, which is what is assumed here.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from baselines.adapter import AdapterError
from baselines.training import load_tensors, save_tensors
from lorarar.hypernet import PROJECTIONS, HyperNetwork, Reads

FORMAT = "lorarar-1"
PUBLISHED_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_PUBLISHED_INPUT = re.compile(r"input_(\d+)\.(weight|bias)")


@dataclass(frozen=True)
class Provenance:
    """Where a hypernetwork comes from.

    Attributes:
        suite: Name of the suite whose train pairs it learnt, "" if not known.
        suite_revision: The suite's revision.
        steps: Steps of its training.
    """

    suite: str = ""
    suite_revision: str = ""
    steps: int = 0


def save_checkpoint(network: HyperNetwork, path: Path, provenance: Provenance) -> None:
    """Write the network and all that its use depends on to a safetensors file, atomically."""
    save_tensors(
        path,
        network.state_dict(),
        {
            "format": FORMAT,
            "widths": json.dumps(network.widths),
            "hidden": str(network.hidden),
            "projections": json.dumps(network.projections),
            "normalize": json.dumps(network.normalize),
            "kv_weight": repr(network.kv_weight),
            **_variant(network),
            "suite": provenance.suite,
            "suite_revision": provenance.suite_revision,
            "steps": str(provenance.steps),
        },
    )


def _variant(network: HyperNetwork) -> dict[str, str]:
    """What makes the network another than the paper's; what is not written is as in the paper."""
    said = {
        "reads": network.reads,
        "single_input": json.dumps(network.single_input),
        "attention": json.dumps(network.attention is not None),
        "whole_matrix": json.dumps(network.whole_matrix),
    }
    return {name: text for name, text in said.items() if text not in ("columns", "false")}


def load_checkpoint(path: Path) -> HyperNetwork:
    """The hypernetwork in ``path``, on the CPU, frozen; see the module for the two layouts.

    Raises:
        AdapterError: If the file is missing, unreadable, or neither layout.
    """
    network = _published(path) if path.suffix in PUBLISHED_SUFFIXES else _ours(path)
    return network.requires_grad_(False).eval()


def read_provenance(path: Path) -> Provenance:
    """What a checkpoint of ours says of its origin; empty for the published layout.

    Raises:
        AdapterError: If the file is missing or unreadable.
    """
    if path.suffix in PUBLISHED_SUFFIXES:
        return Provenance()
    _, metadata = load_tensors(path)
    return Provenance(
        metadata.get("suite", ""), metadata.get("suite_revision", ""), int(metadata.get("steps", 0))
    )


def _ours(path: Path) -> HyperNetwork:
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT:
        raise AdapterError(
            f"{path}: its header says format {metadata.get('format', '(none)')!r}, not {FORMAT!r}: "
            "give a checkpoint that `mars2 train hypernetwork` wrote, or a published .pth file"
        )
    try:
        network = HyperNetwork(
            json.loads(metadata["widths"]),
            hidden=int(metadata["hidden"]),
            projections=json.loads(metadata["projections"]),
            normalize=json.loads(metadata["normalize"]),
            kv_weight=float(metadata["kv_weight"]),
            reads=cast(Reads, metadata.get("reads", "columns")),  # checked by the network
            single_input=json.loads(metadata.get("single_input", "false")),
            attention=json.loads(metadata.get("attention", "false")),
            whole_matrix=json.loads(metadata.get("whole_matrix", "false")),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise AdapterError(f"{path}: its header is incomplete or damaged ({error})") from error
    _fill(network, tensors, path)
    return network


def _published(path: Path) -> HyperNetwork:
    tensors = _unpickle(path)
    renamed = {}
    widths = []
    for key, tensor in tensors.items():
        match = _PUBLISHED_INPUT.fullmatch(key)
        if match:
            weight = tensors.get(f"input_{match[1]}.weight")
            if weight is None or weight.ndim != 2 or weight.shape[1] % 2:
                raise AdapterError(
                    f"{path}: input_{match[1]}.weight must be (hidden, 2 * width), not "
                    f"{None if weight is None else tuple(weight.shape)}"
                )
            width = weight.shape[1] // 2
            widths.append(width)
            renamed[f"inputs.{width}.{match[2]}"] = tensor
        elif key in ("output.1.weight", "output.1.bias"):
            renamed[key.replace("output.1.", "output.")] = tensor
        else:
            raise AdapterError(
                f"{path}: unknown key {key!r}: the published hypernetwork has input_1.*, input_2.* "
                "and output.1.* only"
            )
    if not widths or "output.weight" not in renamed:
        raise AdapterError(f"{path}: keys input_1.weight or output.1.weight are missing")
    network = HyperNetwork(
        widths,
        hidden=renamed["output.weight"].shape[-1],
        projections=PROJECTIONS,
        normalize=False,
        kv_weight=1.0,
    )
    _fill(network, renamed, path)
    return network


def _unpickle(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise AdapterError(f"{path}: no such file")
    try:
        # The published file is a pickle; `weights_only` admits nothing but tensors.
        content = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise AdapterError(
            f"{path}: not a file of tensors that torch can read safely "
            f"({next(iter(str(error).splitlines()), type(error).__name__)})"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise AdapterError(f"{path}: not a dictionary of tensors")
    return content


def _fill(network: HyperNetwork, tensors: dict[str, Tensor], path: Path) -> None:
    """Load exactly the network's tensors, in float32; refuse any other key or shape."""
    expected = network.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        problem = "is missing" if name in expected else "is not known"
        raise AdapterError(f"{path}: tensor {name!r} {problem}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise AdapterError(
                f"{path}: tensor {name!r} is {tuple(tensor.shape)}, "
                f"but {tuple(expected[name].shape)} is expected"
            )
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{path}: tensor {name!r} holds NaN or infinite values")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
