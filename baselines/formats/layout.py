"""Names of the layers of Stable Diffusion's UNets, as diffusers and the original checkpoints say.

A layer is named by diffusers' module path (``down_blocks.1.attentions.0.proj_in``). The original
code numbers the same modules through (``input_blocks.4.1.proj_in``): two ResNets a block, each
followed by its attention, then the resampling. SDXL, with three levels:

    input_blocks   0: conv_in   1, 2: down 0   3: op   4, 5: down 1   6: op   7, 8: down 2
    middle_block   0: ResNet    1: attention   2: ResNet
    output_blocks  0, 1, 2: up 0   3, 4, 5: up 1   6, 7, 8: up 2; 2 and 5 end with an upsampler

kohya and ComfyUI write either with ``_`` for every dot.
"""

import re
from collections.abc import Iterable

RESNETS_A_BLOCK = 2
"""In the down blocks of SDXL and of Stable Diffusion 1 and 2; their up blocks have one more."""

_TOP = {  # diffusers -> original
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP_BACK = {original: layer for layer, original in _TOP.items()}
_RESNET_BACK = {original: layer for layer, original in _RESNET.items()}

UNET_PARTS = (
    "down_blocks",
    "mid_block",
    "up_blocks",
    "time_embedding",
    "add_embedding",
    "conv_in",
    "conv_out",
)
"""What a layer's path begins with; needed where no prefix says that it is the UNet's."""
ORIGINAL_PARTS = ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out")
"""The same in the original checkpoints."""

_WORDS = (  # parts of a path in which a "_" is no dot, and those that have none
    *UNET_PARTS,
    *ORIGINAL_PARTS,
    *("transformer_blocks", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out"),
    *("time_emb_proj", "conv_shortcut", "linear_1", "linear_2"),
    *("in_layers", "out_layers", "emb_layers", "skip_connection"),
    *("attentions", "resnets", "downsamplers", "upsamplers", "attn1", "attn2", "ff", "net"),
    *("proj", "conv", "conv1", "conv2", "op"),
)
_WORD = re.compile(
    rf"(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))}|0|[1-9][0-9]*)(?:_(?=.)|$)"
)


def unflatten(path: str) -> str | None:
    """The dotted name of a layer whose dots were made ``_``; None if it is none of a UNet's.

    >>> unflatten("down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0")
    'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0'
    """
    words, position = [], 0
    while position < len(path):
        match = _WORD.match(path, position)
        if match is None:
            return None
        words.append(match[0].removesuffix("_"))
        position = match.end()
    return ".".join(words) or None


def from_original(name: str) -> str | None:
    """The layer that the original code calls ``name``; None if there is none.

    >>> from_original("output_blocks.5.2.conv")
    'up_blocks.1.upsamplers.0.conv'
    """
    if name in _TOP_BACK:
        return _TOP_BACK[name]
    middle = re.fullmatch(r"middle_block\.([012])\.(.+)", name)
    if middle:
        number = int(middle[1])
        return _inside("mid_block", number // 2, attention=number == 1, rest=middle[2])
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.([012])\.(.+)", name)
    if match is None:
        return None
    side, number, place, rest = match[1], int(match[2]), int(match[3]), match[4]
    if (side, number) == ("input", 0):  # nothing but conv_in
        return None
    block, index = divmod(number - (side == "input"), RESNETS_A_BLOCK + 1)
    last = index == RESNETS_A_BLOCK
    if side == "input":
        if last:
            down = f"down_blocks.{block}.downsamplers.0.conv"
            return down if (place, rest) == (0, "op") else None
        parent = f"down_blocks.{block}"
    else:
        parent = f"up_blocks.{block}"
        if last and place and rest == "conv":  # behind the attention, where the block has one
            return f"{parent}.upsamplers.0.conv"
    return None if place == 2 else _inside(parent, index, attention=place == 1, rest=rest)


def _inside(block: str, index: int, *, attention: bool, rest: str) -> str | None:
    if attention:
        known = re.match(r"(proj_in|proj_out)$|transformer_blocks\.", rest)
        return f"{block}.attentions.{index}.{rest}" if known else None
    layer = _RESNET_BACK.get(rest)
    return layer and f"{block}.resnets.{index}.{layer}"


def to_original(layer: str) -> str | None:
    """What SDXL's original code calls a layer; None if it has no such layer.

    >>> to_original("down_blocks.1.attentions.0.proj_in")
    'input_blocks.4.1.proj_in'
    """
    if layer in _TOP:
        return _TOP[layer]
    match = re.fullmatch(
        r"(?P<block>(?P<side>down|up)_blocks\.(?P<number>\d+)|mid_block)"
        r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<rest>.+)",
        layer,
    )
    if match is None:
        return None
    number, index, kind, rest = int(match["number"] or 0), int(match["index"]), match["kind"], ""
    if kind == "resnets":
        place, rest = 0, _RESNET.get(match["rest"], "")
    elif kind == "attentions":
        place, rest = 1, match["rest"]
    else:
        place, rest = (0, "op") if kind == "downsamplers" else (2, "conv")
        index = RESNETS_A_BLOCK
    if match["block"] == "mid_block":
        original = f"middle_block.{1 if place == 1 else 2 * index}.{rest}"
    else:
        through = number * (RESNETS_A_BLOCK + 1) + index
        side, through = ("input", through + 1) if match["side"] == "down" else ("output", through)
        original = f"{side}_blocks.{through}.{place}.{rest}"
    return original if from_original(original) == layer else None


def has_sdxl_layout(layers: Iterable[str]) -> bool:
    """Whether layers are certain to be numbered as SDXL's: two ResNets a block, three levels.

    A network with one ResNet a block (KOALA, the miniature world) has fewer numbers; Stable
    Diffusion 1 and 2 have a fourth level and attention in the first.
    """
    two = False
    for layer in layers:
        if to_original(layer) is None or re.match(
            r"(down|up)_blocks\.3|down_blocks\.0\.att|up_blocks\.2\.(att|up)|down_blocks\.2\.downs",
            layer,
        ):
            return False
        two = two or bool(re.match(r"(down_blocks\.\d\.\w+\.1|up_blocks\.\d\.\w+\.2)\.", layer))
    return two


def kernel(layer: str) -> int | None:
    """Side of a layer's convolution kernel in pixels; None for a linear layer.

    The updates of a convolution are those of its weight ``(d_out, channels, side, side)`` read as a
    matrix ``(d_out, channels * side * side)``.
    """
    last = layer.rpartition(".")[2]
    if last in ("conv_in", "conv_out", "conv1", "conv2", "conv"):
        return 3
    return 1 if last == "conv_shortcut" else None
