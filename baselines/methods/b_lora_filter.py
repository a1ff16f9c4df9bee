"""The block filter of B-LoRA (Frenkel et al. 2024, arXiv 2403.14572), on ordinary LoRAs.

The subject's updates of one block of the UNet, the style's of another, and none elsewhere. The
paper finds that of SDXL's blocks ``up_blocks.0.attentions.0`` decides content and
``up_blocks.0.attentions.1`` style, and trains LoRAs on these two alone; here they were trained on
all layers, and what the filter takes out was part of what they learned.
"""

from collections.abc import Sequence

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.pair import subject_and_style
from baselines.registry import adapter_method


@adapter_method("b_lora_filter", paper="https://arxiv.org/abs/2403.14572")
def b_lora_filter(
    adapters: Sequence[LoraAdapter],
    *,
    content_block: str = "up_blocks.0.attentions.0",
    style_block: str = "up_blocks.0.attentions.1",
    w_subject: float = 1.0,
    w_style: float = 1.0,
) -> LoraAdapter:
    """Take the subject's updates of the content block and the style's of the style block.

    Args:
        adapters: The subject's and the style's.
        content_block: Module path below the UNet.
        style_block: The same; neither lies within the other.
        w_subject: Weight of the subject's updates.
        w_style: Weight of the style's.

    Raises:
        AdapterError: If there are not two adapters, one has no layer in its block, or the blocks
            overlap.
    """
    subject, style = subject_and_style("b_lora_filter", adapters)
    if f"{content_block}.".startswith(f"{style_block}.") or f"{style_block}.".startswith(
        f"{content_block}."
    ):
        raise AdapterError(
            f"b_lora_filter: the blocks {content_block!r} and {style_block!r} overlap: a layer "
            "would be both content and style"
        )
    content = _within(subject, content_block, "subject")
    return LoraAdapter(
        {layer: w_subject * delta for layer, delta in content.items()}
        | {layer: w_style * delta for layer, delta in _within(style, style_block, "style").items()}
    )


def _within(adapter: LoraAdapter, block: str, role: str) -> dict[str, LowRankDelta]:
    deltas = {
        layer: delta for layer, delta in adapter.deltas.items() if layer.startswith(f"{block}.")
    }
    if not deltas:
        raise AdapterError(
            f"b_lora_filter: the {role}'s adapter {adapter.name!r} has no layer in {block!r}, but "
            f"such as {next(iter(adapter.deltas), 'none')!r}: name a block of its base model"
        )
    return deltas
