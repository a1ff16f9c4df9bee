"""What a key of a LoRA file says: a prefix, a layer in one of three notations, and a piece.

base_model.model. | unet.     diffusers' layer, dotted                    PEFT, diffusers
(none)                        the same; it begins with a part of a UNet   diffusers' UNet alone
lora_unet_ | lycoris_         diffusers' or the original layer, with "_"  kohya; ComfyUI reads it
[model.]diffusion_model.      the original layer, dotted                  ComfyUI

.lora_A[.NAME].weight         .lora_B                  PEFT, diffusers
.lora_down.weight             .lora_up, .lora_mid      kohya, ComfyUI; also with lora_A, lora_B
.lora.down.weight             .lora.up                 older diffusers; also lora_linear_layer
.processor.to_q_lora.down.weight                       the oldest; to_out_lora is to_out.0
.alpha                        one number a layer       all of them
"""

import re
from dataclasses import dataclass
from typing import Literal

from baselines.adapter import AdapterError
from baselines.formats import layout

Piece = Literal["down", "up", "mid", "alpha"]

_PIECES = (
    re.compile(r"(?P<path>.+)\.lora_(?P<piece>[AB])(\.[^.]+)?\.weight"),
    re.compile(r"(?P<path>.+)\.lora_(?P<piece>down|up|mid)\.weight"),
    re.compile(r"(?P<path>.+)\.(lora|lora_linear_layer)\.(?P<piece>down|up)\.weight"),
    re.compile(r"(?P<path>.+\.processor\.to_(q|k|v|out)_lora)\.(?P<piece>down|up)\.weight"),
    re.compile(r"(?P<path>.+?)(\.lora|\.lora_linear_layer)?\.(?P<piece>alpha)"),
)
_PROCESSOR = re.compile(r"(?P<block>.+)\.processor\.to_(?P<projection>q|k|v|out)_lora")
_FLAT = re.compile(r"(lora_unet|lycoris)_")
_DOTTED = re.compile(r"(model\.)?diffusion_model\.")
_TEXT_ENCODER = re.compile(
    r"(base_model\.model\.)?"
    r"(?P<part>lora_te\d?|lycoris_text_model|text_encoder(_\d)?|text_encoders\.\w+|text_model|te\d?|clip_[lg]"
    r"|conditioner|cond_stage_model)(?=[._])"
)
_FOREIGN = (  # what a key contains -> what it looks like; the first that fits is named
    (r"lora_magnitude_vector|dora_scale", "DoRA, whose updates are not low-rank: the weight's "
     "columns are scaled anew, so that the update depends on the base model"),
    (r"hada_", "LoHa, whose updates are products of two low-rank matrices entry by entry"),
    (r"lokr_", "LoKr, whose updates are Kronecker products"),
    (r"oft_|boft_", "OFT, which turns the base model's weights instead of adding to them"),
    (r"\.(a1|a2|b1|b2)\.weight$|on_input$", "LyCORIS' GLoRA or (IA)^3, which multiply the base "
     "model's weights"),
    (r"\.(diff|diff_b|set_weight|w_norm|b_norm)$", "a full difference of weights, not a low-rank "
     "one"),
    (r"reshape_weight$", "a LoRA that changes the shape of a weight"),
    (r"(lora_B|lora_up).*\.bias$", "a LoRA with biases"),
    (r"^(base_model\.model\.)?(transformer|lora_transformer)[._]|(double|single|joint)_blocks",
     "a LoRA of a diffusion transformer, not of SDXL"),
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A key that is understood."""

    layer: str
    """The module path below the UNet, as diffusers names it."""
    piece: Piece
    spelling: str
    """Who writes keys like this one."""


def text_encoder_part(key: str) -> str | None:
    """Which text encoder a key belongs to, as the file names it; None: to none."""
    match = _TEXT_ENCODER.match(key)
    return match and match["part"]


def parse(key: str) -> Key:
    """What a key of the UNet says.

    Raises:
        AdapterError: If it is not understood, with what it looks like.
    """
    match = next((m for pattern in _PIECES if (m := pattern.fullmatch(key))), None)
    if match is None:
        raise _not_understood(key)
    layer, spelling = _layer(match["path"])
    if layer is None:
        raise _not_understood(key)
    piece: Piece = {"A": "down", "B": "up"}.get(match["piece"], match["piece"])  # type: ignore[assignment]  # from the pattern
    if not spelling:
        spelling = "diffusers" if ".lora_A." in key or ".lora_B." in key else "older diffusers"
    return Key(layer, piece, spelling)


def _layer(path: str) -> tuple[str | None, str]:
    """The layer, None if it is no layer of a UNet, and the spelling if the prefix tells it."""
    flat, dotted = _FLAT.match(path), _DOTTED.match(path)
    if flat:
        name = layout.unflatten(path[flat.end() :])
        original = name is not None and _begins(name, layout.ORIGINAL_PARTS)
        blocks = "original" if original else "diffusers'"
        layer = layout.from_original(name) if name and original else name
        if layer is None or not _begins(layer, layout.UNET_PARTS):
            return None, ""
        return layer, f"kohya with {blocks} block names"
    if dotted:
        name = path[dotted.end() :]
        layer = name if _begins(name, layout.UNET_PARTS) else layout.from_original(name)
        return layer, "ComfyUI"
    bare = path.removeprefix("base_model.model.")
    layer = bare.removeprefix("unet.")
    if layer == bare and not _begins(layer, layout.UNET_PARTS):
        return None, ""
    processor = _PROCESSOR.fullmatch(layer)
    if processor:
        projection = "to_out.0" if processor["projection"] == "out" else processor["projection"]
        layer = f"{processor['block']}.{projection if '.' in projection else f'to_{projection}'}"
    return layer, "PEFT" if bare != path else ""


def _begins(name: str, parts: tuple[str, ...]) -> bool:
    return name.partition(".")[0] in parts


def _not_understood(key: str) -> AdapterError:
    looks = next((what for pattern, what in _FOREIGN if re.search(pattern, key)), None)
    return AdapterError(
        f"key {key!r} is not understood"
        + (f": it looks like {looks}" if looks else ": expected a LoRA of SDXL's UNet as PEFT, "
           "diffusers, kohya or ComfyUI spell it, such as unet.LAYER.lora_A.weight")
    )  # fmt: skip
