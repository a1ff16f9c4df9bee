"""Names of the UNet's layers against diffusers' own conversions, for every module of SDXL."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import nn

from baselines.dreambooth import attention_layers
from baselines.formats import keys, layout

SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """SDXL's UNet as it is, without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**SDXL)


@pytest.fixture(scope="module")
def modules(unet: UNet2DConditionModel) -> dict[str, nn.Module]:
    """All layers that can carry a LoRA."""
    return {n: m for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def test_the_original_names_are_those_diffusers_reads_a_checkpoint_by(
    unet: UNet2DConditionModel, modules: dict[str, nn.Module]
):
    """A checkpoint spelled by us, read by diffusers' converter of whole models."""
    assert len(attention_layers(unet)) == 560
    assert set(attention_layers(unet)) <= set(modules)
    checkpoint = {
        f"model.diffusion_model.{layout.to_original(layer)}.{part}": f"{layer}.{part}"
        for layer in modules
        for part in ("weight", "bias")
    }
    assert len(checkpoint) == 2 * len(modules)
    back = convert_ldm_unet_checkpoint(checkpoint, dict(unet.config))
    wrong = {key: said for key, said in back.items() if said not in (key, None)}
    assert wrong == {}
    assert {f"{layer}.weight" for layer in modules} <= set(back)


@pytest.mark.parametrize("original", [True, False], ids=["original", "diffusers"])
def test_kohya_keys_are_those_diffusers_reads_loras_by(
    unet: UNet2DConditionModel, modules: dict[str, nn.Module], original: bool
):
    """Their answer, spelled as older diffusers spell it, names the layer that ours does."""
    state, layers = {}, {}
    for number, layer in enumerate(modules):
        if not original and layer.startswith("add_embedding"):
            continue  # diffusers 0.42 drops the number of these two, so that they collide
        name = layout.to_original(layer) if original else layer
        assert name is not None
        stem = f"lora_unet_{name.replace('.', '_')}"
        layers[number] = layer
        state[f"{stem}.lora_down.weight"] = state[f"{stem}.lora_up.weight"] = number
        parsed = keys.parse(f"{stem}.lora_down.weight")
        assert parsed.layer == layer
        assert parsed.piece == "down"
        assert ("original" in parsed.spelling) == (original and name != layer)
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(state), unet.config)
    theirs, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    assert len(theirs) == 2 * len(layers)
    for key, number in theirs.items():
        assert keys.parse(key).layer == layers[number], key


def test_names_come_back(modules: dict[str, nn.Module]):
    for layer in modules:
        original = layout.to_original(layer)
        assert original is not None
        assert layout.from_original(original) == layer
        for name in (layer, original):
            assert layout.unflatten(name.replace(".", "_")) == name


def test_kernels_are_the_modules_own(modules: dict[str, nn.Module]):
    for layer, module in modules.items():
        expected = module.kernel_size[0] if isinstance(module, nn.Conv2d) else None
        assert layout.kernel(layer) == expected, layer


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("input_blocks.0.0", "conv_in"),
        ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks.4.0.emb_layers.1", "down_blocks.1.resnets.0.time_emb_proj"),
        ("input_blocks.8.1.proj_out", "down_blocks.2.attentions.1.proj_out"),
        ("middle_block.2.in_layers.2", "mid_block.resnets.1.conv1"),
        ("output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),  # Stable Diffusion 1
        ("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        ("label_emb.0.2", "add_embedding.linear_2"),
        ("input_blocks.0.0.op", None),
        ("input_blocks.0.1.proj_in", None),
        ("input_blocks.3.0.in_layers.2", None),
        ("input_blocks.4.1.norm", None),
        ("input_blocks.4.2.conv", None),
        ("output_blocks.1.2.conv", None),
        ("middle_block.3.in_layers.2", None),
        ("out.1", None),
    ],
)
def test_original_names_by_hand(name: str, layer: str | None):
    assert layout.from_original(name) == layer


@pytest.mark.parametrize(
    "path", ["", "_", "down_blocks_", "down_blocks_1_", "down_pumps_1", "down_blocks_01", "to_qq"]
)
def test_what_is_no_path_is_not_read(path: str):
    assert layout.unflatten(path) is None


@pytest.mark.parametrize(
    ("change", "sdxl"),
    [
        ({}, True),
        ({"layers_per_block": 1}, False),
        ({"block_out_channels": (32, 64, 128), "attention_head_dim": 4}, True),
        (
            {
                "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
                "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
                "block_out_channels": (320, 640, 1280, 1280),
                "transformer_layers_per_block": 1,
                "attention_head_dim": 8,
                "cross_attention_dim": 768,
            },
            False,
        ),
    ],
    ids=["SDXL", "one ResNet a block", "narrow SDXL", "Stable Diffusion 1"],
)
def test_original_numbers_are_written_for_sdxls_layout_only(change: dict, sdxl: bool):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**{**SDXL, **change})
    assert layout.has_sdxl_layout(attention_layers(unet)) == sdxl


def test_a_part_of_sdxl_that_another_network_may_have_is_not_taken_for_it():
    layers = [f"up_blocks.0.attentions.{n}.proj_in" for n in range(3)]
    assert layout.has_sdxl_layout(layers)
    assert not layout.has_sdxl_layout(layers[:2])
