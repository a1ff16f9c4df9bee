"""Guesses which base model a LoRA was made for, from the names and widths of its layers."""

import re
from collections.abc import Mapping

STABLE_DIFFUSION_1 = "Stable Diffusion 1"

_TEXT_WIDTHS = {
    768: STABLE_DIFFUSION_1,
    1024: "Stable Diffusion 2",
    1280: "SDXL's refiner",
    2048: "SDXL",
}


def guess_base_model(shapes: Mapping[str, tuple[int, int]]) -> str:
    """A base model's name, and whether it is certain, for people to read.

    The width of the text embedding (inputs of ``attn2.to_k`` and ``to_v``) tells the families
    apart; where no such layer is touched, the places of the attention blocks do.

    Args:
        shapes: Layer -> ``(d_out, d_in)``.
    """
    widths = {
        shape[1]
        for layer, shape in shapes.items()
        if layer.endswith((".attn2.to_k", ".attn2.to_v"))
    }
    names = sorted({_TEXT_WIDTHS.get(width, f"text width {width}") for width in widths})
    if len(names) > 1:
        return f"none: layers of {' and '.join(names)}"
    deep = any(".transformer_blocks.9." in layer for layer in shapes)
    if not names:
        return _by_places(shapes, deep=deep)
    if names == ["SDXL"]:
        return "SDXL" if deep else "SDXL, or a smaller model of its widths (SSD-1B, KOALA)"
    if names[0] in _TEXT_WIDTHS.values():
        return names[0]
    family = "SDXL's layers in other widths" if _sdxl_places(shapes) else "unknown"
    return f"{family} ({names[0]})"


def _by_places(shapes: Mapping[str, tuple[int, int]], *, deep: bool) -> str:
    attention = {d_out for layer, (d_out, _) in shapes.items() if ".attn1.to_" in layer}
    if deep or _sdxl_places(shapes):
        return "SDXL" if attention <= {640, 1280} else "SDXL's layers in other widths"
    if any(re.match(r"(down_blocks\.0|up_blocks\.3)\.attentions", layer) for layer in shapes):
        return f"{STABLE_DIFFUSION_1} or 2"
    return "unknown: no layer that tells"


def _sdxl_places(shapes: Mapping[str, tuple[int, int]]) -> bool:
    """Attention in the first up block, or an embedding of sizes, which only SDXL's UNets have."""
    return any(re.match(r"up_blocks\.0\.attentions|add_embedding", layer) for layer in shapes)
