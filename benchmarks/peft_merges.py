"""TIES, DARE and DARE-TIES against peft's `add_weighted_adapter` on the same adapters.

Measured once for each of the four shapes that SDXL's 560 attention layers have, and added up by how
often each occurs.
"""

from collections import Counter

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from baselines import METHODS, LoraAdapter
from benchmarks.sdxl import RANK, cpu_seconds, random_adapter, sdxl_layers

DENSITY = 0.5
PAIRS = {  # ours -> peft's combination_type
    "ties": "ties_svd",
    "dare": "dare_linear_svd",
    "dare_ties": "dare_ties_svd",
    "ties_factors": "ties",
    "dare_factors": "dare_linear",
    "dare_ties_factors": "dare_ties",
}
SAME = ("ties_factors",)
"""Of those that draw nothing: results are compared. (The tests compare the others, by masks.)"""


class Layer(nn.Module):
    """A network of one linear layer."""

    def __init__(self, d_out: int, d_in: int) -> None:
        super().__init__()
        self.layer = nn.Linear(d_in, d_out, bias=False)


def peft_model(pair: list[LoraAdapter], rank: int) -> nn.Module:
    """Return a network of one layer with both adapters in peft."""
    [(d_out, d_in)] = pair[0].shapes().values()
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["layer"])
    model = get_peft_model(Layer(d_out, d_in), config, adapter_name="subject")
    model.add_adapter("style", config)
    wrapped = model.base_model.model.layer
    for name, adapter in zip(("subject", "style"), pair, strict=True):
        [delta] = adapter.deltas.values()
        wrapped.lora_A[name].weight.data = delta.down.clone()
        wrapped.lora_B[name].weight.data = delta.up.clone()
    return model


def peft_merge(model: nn.Module, kind: str, rank: int) -> None:
    """Merge with weights 0.5, by peft."""
    options = {"svd_rank": 2 * rank} if kind.endswith("svd") else {}
    model.add_weighted_adapter(
        ["subject", "style"], [0.5, 0.5], "merged", kind, density=DENSITY, **options
    )


def taken_update(model: nn.Module) -> torch.Tensor:
    """Return the update of peft's merge, which leaves the model."""
    layer = model.base_model.model.layer
    update = layer.lora_B["merged"].weight @ layer.lora_A["merged"].weight
    model.delete_adapter("merged")
    return update


@torch.no_grad()
def bench_peft(rank: int = RANK, largest: int | None = None) -> str:
    """Compare the times for all of SDXL's layers; ``largest`` leaves larger layers out."""
    counts = Counter(sdxl_layers().values())
    shapes = [shape for shape in sorted(counts) if largest is None or max(shape) <= largest]
    ours, theirs = Counter[str](), Counter[str]()
    for shape in shapes:
        pair = [random_adapter({"layer": shape}, rank, seed) for seed in (0, 1)]
        model = peft_model(pair, rank)
        for name, kind in PAIRS.items():
            options = {"w_subject": 0.5, "w_style": 0.5, "density": DENSITY}
            method = METHODS.get(name)
            results = []
            ours[name] += counts[shape] * cpu_seconds(
                lambda m=method, o=options, p=pair, r=results: r.append(m(p, **o))
            )
            theirs[name] += counts[shape] * cpu_seconds(
                lambda m=model, k=kind: peft_merge(m, k, rank)
            )
            results.append(taken_update(model))
            if name in SAME:
                torch.testing.assert_close(
                    results[0].deltas["layer"].dense(), results[1], rtol=1e-5, atol=1e-5
                )
    layers = sum(counts[shape] for shape in shapes)
    return (
        "\n".join(
            f"{name}, {layers} layers, rank {rank}: peft's {kind} {theirs[name]:.1f} CPU-s, here "
            f"{ours[name]:.1f} CPU-s, {theirs[name] / ours[name]:.1f} x"
            + ("; the same to 1e-5" if name in SAME else "")
            for name, kind in PAIRS.items()
        )
        + f"\n  (one layer of each of {len(shapes)} shapes measured, times how often SDXL has it)"
    )
