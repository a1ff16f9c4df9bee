"""What a LoRA file is said to hold."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from baselines.formats import describe, read_lora
from baselines.formats.base_model import guess_base_model

BLOCK = "transformer_blocks.0"


def test_sums_a_file_up_by_hand(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    q = f"lora_unet_input_blocks_4_1_{BLOCK.replace('.', '_')}_attn1_to_q"
    ff = f"lora_unet_input_blocks_4_1_{BLOCK.replace('.', '_')}_ff_net_2"
    conv = "lora_unet_middle_block_0_in_layers_2"
    tensors = {
        f"{q}.lora_down.weight": torch.tensor([[3.0, 4.0], [0.0, 0.0]]),
        f"{q}.lora_up.weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        f"{q}.alpha": torch.tensor(1.0),  # rank 2: scale 1/2, norm 5/2
        f"{ff}.lora_down.weight": torch.tensor([[6.0]]),
        f"{ff}.lora_up.weight": torch.tensor([[1.0]]),  # norm 6
        f"{conv}.lora_down.weight": torch.ones(1, 1, 3, 3),
        f"{conv}.lora_up.weight": torch.ones(4, 1, 1, 1),  # norm 6
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
    }
    save_file({k: v.half() for k, v in tensors.items()}, path, metadata={"ss_network_dim": "2"})
    found = describe(read_lora(path))
    assert found.spellings == {"kohya with original block names": 6}
    assert found.text_encoders == {"lora_te1": 1}
    assert found.dtypes == ("float16",)
    assert found.parameters == 4 + 4 + 1 + 1 + 9 + 4
    assert found.metadata == {"ss_network_dim": "2"}
    assert [block.block for block in found.blocks] == [
        "down_blocks.1.attentions.0",
        "mid_block.resnets.0",
    ]
    down, mid = found.blocks
    assert down.kinds == {"q": 1, "ff": 1}
    assert down.ranks == (1, 2)
    assert down.scales == (0.5, 1.0)
    assert down.norm == pytest.approx((2.5**2 + 6**2) ** 0.5)
    assert down.largest == f"{BLOCK}.ff.net.2"
    assert (mid.kinds, mid.norm, mid.largest) == ({"conv": 1}, pytest.approx(6.0), "conv1")
    assert found.total.layers == 3
    assert found.total.norm == pytest.approx((2.5**2 + 6**2 + 6**2) ** 0.5)


def test_values_that_are_not_finite_have_no_norm(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    factors = {"A": torch.ones(1, 2), "B": torch.tensor([[float("nan")]])}
    save_file({f"unet.mid_block.x.lora_{k}.weight": v for k, v in factors.items()}, path)
    found = describe(read_lora(path))
    assert found.total.norm is None
    assert found.total.largest == ""


def test_blocks_come_in_the_networks_order(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    layers = [
        *("conv_in", "time_embedding.linear_1", "down_blocks.1.attentions.0.proj_in"),
        *("down_blocks.10.attentions.0.proj_in", "mid_block.attentions.0.proj_in"),
        *("up_blocks.0.resnets.2.time_emb_proj", "conv_out"),
    ]
    shapes = {"conv_in": (9, (3, 3)), "conv_out": (9, (3, 3))}
    tensors = {}
    for layer in layers:
        end = (3, 3) if layer in shapes else ()
        tensors[f"unet.{layer}.lora_A.weight"] = torch.ones(1, 4, *end)
        tensors[f"unet.{layer}.lora_B.weight"] = torch.ones(4, 1, *(1 for _ in end))
    save_file(tensors, path)
    blocks = [block.block for block in describe(read_lora(path)).blocks]
    assert blocks == [
        *("conv_in", "time_embedding", "down_blocks.1.attentions.0"),
        *("down_blocks.10.attentions.0", "mid_block.attentions.0", "up_blocks.0.resnets.2"),
        "conv_out",
    ]


def key(place: str, depth: int = 0) -> str:
    return f"{place}.transformer_blocks.{depth}.attn2.to_k"


@pytest.mark.parametrize(
    ("shapes", "model"),
    [
        ({key("down_blocks.2.attentions.0", 9): (1280, 2048)}, "SDXL"),
        (
            {key("down_blocks.1.attentions.0"): (640, 2048)},
            "SDXL, or a smaller model of its widths (SSD-1B, KOALA)",
        ),
        ({key("down_blocks.1.attentions.0"): (640, 768)}, "Stable Diffusion 1"),
        ({key("down_blocks.1.attentions.0"): (640, 1024)}, "Stable Diffusion 2"),
        (
            {key("up_blocks.0.attentions.0"): (64, 40)},
            "SDXL's layers in other widths (text width 40)",
        ),
        ({key("down_blocks.1.attentions.0"): (64, 40)}, "unknown (text width 40)"),
        (
            {key("mid_block.attentions.0"): (8, 768), key("mid_block.attentions.1"): (8, 2048)},
            "none: layers of SDXL and Stable Diffusion 1",
        ),
        ({"up_blocks.0.attentions.0.proj_in": (1280, 1280)}, "SDXL"),
        (
            {"up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (64, 64)},
            "SDXL's layers in other widths",
        ),
        ({"down_blocks.0.attentions.0.proj_in": (320, 320)}, "Stable Diffusion 1 or 2"),
        ({"mid_block.attentions.0.proj_in": (1280, 1280)}, "unknown: no layer that tells"),
    ],
)
def test_guesses_the_base_model_by_widths(shapes: dict[str, tuple[int, int]], model: str):
    assert guess_base_model(shapes) == model
