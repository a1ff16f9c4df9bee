"""One set of factors in every spelling gives one adapter; what we write, diffusers draws with."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.formats import layout, load_adapter, read_lora, save_adapter
from mars2.pipelines import SdxlPipeline

BLOCK = "down_blocks.1.attentions.1.transformer_blocks.0"
SHAPES = {  # (d_out, d_in); a convolution's d_in is channels * 3 * 3 or channels
    "conv_in": (8, 4 * 9),
    "time_embedding.linear_1": (32, 8),
    "add_embedding.linear_2": (32, 32),
    "down_blocks.0.downsamplers.0.conv": (8, 8 * 9),
    "down_blocks.1.attentions.1.proj_in": (16, 16),
    f"{BLOCK}.attn1.to_q": (16, 16),
    f"{BLOCK}.attn1.to_out.0": (16, 16),
    f"{BLOCK}.attn2.to_k": (16, 40),
    f"{BLOCK}.ff.net.0.proj": (128, 16),
    f"{BLOCK}.ff.net.2": (16, 64),
    "down_blocks.1.resnets.0.conv_shortcut": (16, 8),
    "down_blocks.1.resnets.1.time_emb_proj": (16, 32),
    "mid_block.resnets.1.conv2": (32, 32 * 9),
    "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_v": (32, 40),
    "up_blocks.0.upsamplers.0.conv": (32, 32 * 9),
    "up_blocks.2.resnets.2.conv1": (8, 16 * 9),
}

ORIGINAL, FLAT, BOTH = "original", "flat", "flat original"
SPELLINGS: dict[str, tuple[str, str, str, str]] = {  # stem, notation, factors' names, spelling
    "peft": ("base_model.model.{}", "", "lora_A lora_B", "PEFT"),
    "peft of a pipeline": ("base_model.model.unet.{}", "", "lora_A.default lora_B.default", "PEFT"),
    "diffusers": ("unet.{}", "", "lora_A lora_B", "diffusers"),
    "diffusers' unet": ("{}", "", "lora_A lora_B", "diffusers"),
    "older diffusers": ("unet.{}", "", "lora.down lora.up", "older diffusers"),
    "kohya for SDXL": (
        *("lora_unet_{}", BOTH, "lora_down lora_up"),
        "kohya with original block names",
    ),
    "kohya for diffusers": (
        *("lora_unet_{}", FLAT, "lora_down lora_up"),
        "kohya with diffusers' block names",
    ),
    "lycoris": ("lycoris_{}", FLAT, "lora_down lora_up", "kohya with diffusers' block names"),
    "comfyui": ("diffusion_model.{}", ORIGINAL, "lora_down lora_up", "ComfyUI"),
    "comfyui with peft's factors": (
        *("model.diffusion_model.{}", ORIGINAL, "lora_A lora_B"),
        "ComfyUI",
    ),
}


def factors(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Up and down of every layer, of ranks 1 to 4, as matrices."""
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: (
            torch.randn(d_out, rank, generator=generator),
            torch.randn(rank, d_in, generator=generator),
        )
        for number, (layer, (d_out, d_in)) in enumerate(SHAPES.items())
        for rank in [1 + number % 4]
    }


def spelled(name: str, *, scale: float | None = None) -> dict[str, Tensor]:
    """The factors' tensors in a spelling; with alphas that make them ``scale`` times as large."""
    stem, notation, pieces, _ = SPELLINGS[name]
    tensors = {}
    for layer, (up, down) in factors().items():
        path = (layout.to_original(layer) or "") if ORIGINAL in notation else layer
        path = stem.format(path.replace(".", "_") if FLAT in notation else path)
        side = layout.kernel(layer)
        if side:
            up, down = up[:, :, None, None], down.unflatten(1, (-1, side, side))
        for piece, factor in zip(pieces.split(), (down, up), strict=True):
            tensors[f"{path}.{piece}.weight"] = factor.contiguous()
        if scale is not None:
            tensors[f"{path}.alpha"] = torch.tensor(scale * len(down))
    return tensors


def expected(scale: float = 1.0) -> LoraAdapter:
    return LoraAdapter(
        {layer: LowRankDelta(scale * up, down) for layer, (up, down) in factors().items()}
    )


@pytest.mark.parametrize("scale", [None, 0.25])
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_gives_the_same_adapter(name: str, scale: float | None, tmp_path: Path):
    path = tmp_path / "file.safetensors"
    save_file(spelled(name, scale=scale), path)
    assert load_adapter(path).digest() == expected(1.0 if scale is None else scale).digest()
    assert read_lora(path).spellings == {SPELLINGS[name][3]: 2 * len(SHAPES)}


def test_a_convolution_is_its_factors_one_after_the_other(tmp_path: Path):
    """The matrix of up @ down, as a kernel, does what the two convolutions do."""
    path = tmp_path / "file.safetensors"
    tensors = spelled("kohya for SDXL")
    save_file(tensors, path)
    delta = load_adapter(path).deltas["down_blocks.0.downsamplers.0.conv"]
    image = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    stem = "lora_unet_input_blocks_3_0_op"
    hidden = nn.functional.conv2d(image, tensors[f"{stem}.lora_down.weight"], stride=2, padding=1)
    answer = nn.functional.conv2d(hidden, tensors[f"{stem}.lora_up.weight"])
    whole = nn.functional.conv2d(image, delta.dense().view(8, 8, 3, 3), stride=2, padding=1)
    assert_close(whole, answer, rtol=1e-5, atol=1e-5)


def test_a_middle_convolution_is_folded_in(tmp_path: Path):
    """LyCORIS' Tucker form: 1 x 1 down, 3 x 3 in the middle, 1 x 1 up."""
    generator = torch.Generator().manual_seed(2)
    down, mid, up = (
        torch.randn(shape, generator=generator)
        for shape in ((2, 4, 1, 1), (2, 2, 3, 3), (8, 2, 1, 1))
    )
    path = tmp_path / "file.safetensors"
    stem = "lora_unet_input_blocks_0_0"
    pieces = {"lora_down": down, "lora_mid": mid, "lora_up": up}
    tensors = {f"{stem}.{piece}.weight": value for piece, value in pieces.items()}
    save_file({**tensors, f"{stem}.alpha": torch.tensor(1.0)}, path)
    delta = load_adapter(path).deltas["conv_in"]
    assert delta.rank == 2
    image = torch.randn(1, 4, 5, 5, generator=generator)
    hidden = nn.functional.conv2d(image, down)
    hidden = nn.functional.conv2d(hidden, mid, padding=1)
    answer = 0.5 * nn.functional.conv2d(hidden, up)
    whole = nn.functional.conv2d(image, delta.dense().view(8, 4, 3, 3), padding=1)
    assert_close(whole, answer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["diffusers", "diffusers' unet"])
def test_rslora_divides_by_the_root_of_the_rank(name: str, tmp_path: Path):
    path = tmp_path / "file.safetensors"
    settings: dict[str, Any] = {"lora_alpha": 6, "use_rslora": True}
    settings["alpha_pattern"] = {"attn1.to_q": 3}
    prefix = "unet." if name == "diffusers" else ""
    text = json.dumps({f"{prefix}{key}": value for key, value in settings.items()})
    save_file(spelled(name), path, metadata={"lora_adapter_metadata": text})
    for layer, stored in read_lora(path).layers.items():
        alpha = 3 if layer.endswith("attn1.to_q") else 6
        assert stored.scale == alpha / math.sqrt(stored.rank)


def test_half_precision_of_any_kind_is_read(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        tensors = {k: v.to(dtype) for k, v in spelled("kohya for SDXL", scale=0.5).items()}
        save_file(tensors, path)
        for layer, (up, down) in factors().items():
            delta = load_adapter(path).deltas[layer]
            assert torch.equal(delta.up, 0.5 * up.to(dtype).float())
            assert torch.equal(delta.down, down.to(dtype).float())


# --- text encoders


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        (("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",), ("lora_te1",)),
        (
            (
                "lora_te1_text_model_encoder_layers_0_mlp_fc1.hada_w1_a",
                "lora_te2_text_projection.lora_up.weight",
            ),
            ("lora_te1", "lora_te2"),
        ),
        (("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",), ("lora_te",)),
        (("text_encoder.text_model.layers.0.mlp.fc1.lora_A.weight",), ("text_encoder",)),
        (("text_encoder_2.text_model.layers.0.mlp.fc1.lora_A.weight",), ("text_encoder_2",)),
        (("text_encoders.clip_l.transformer.fc1.lora_A.weight",), ("text_encoders.clip_l",)),
        (("base_model.model.text_model.layers.0.mlp.fc1.lora_A.weight",), ("text_model",)),
    ],
)
def test_text_encoders_are_refused_out_loud_or_left_out(
    keys: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path
):
    path = tmp_path / "cat.safetensors"
    others = {key: torch.ones(2, 2) for key in keys}
    save_file({**spelled("kohya for SDXL"), **others}, path)
    with pytest.raises(AdapterError, match="a LoRA of the text encoder, too") as caught:
        load_adapter(path)
    said = ", ".join(f"{part} (1 tensors)" for part in parts)
    assert f"{said}. Only the UNet's" in str(caught.value)
    adapter = load_adapter(path, ignore_text_encoder=True)
    assert adapter.digest() == expected().digest()
    assert adapter.metadata == {"left_out": said}
    save_file(others, path)
    with pytest.raises(AdapterError, match=f"a LoRA of {', '.join(parts)} and none of the UNet"):
        load_adapter(path, ignore_text_encoder=True)


def test_a_layer_in_two_spellings_is_refused(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    save_file(spelled("kohya for SDXL") | spelled("kohya for diffusers"), path)
    with pytest.raises(AdapterError, match=r"'conv_in' is there twice, as 'lora_unet_.*' and as"):
        load_adapter(path)


# --- written by us


def even(adapter: LoraAdapter, rank: int = 4) -> LoraAdapter:
    """The adapter with every layer's first component repeated: one rank everywhere."""
    return LoraAdapter(
        {
            layer: LowRankDelta(delta.up[:, :1].repeat(1, rank), delta.down[:1].repeat(rank, 1))
            for layer, delta in adapter.deltas.items()
        },
        metadata={"prompt": "a dög"},
    )


@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_comes_back_exactly(spelling: Any, tmp_path: Path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    adapter = even(expected())
    save_adapter(adapter, first, spelling=spelling)
    back = load_adapter(first)
    assert back.digest() == adapter.digest()
    assert back.metadata == adapter.metadata
    save_adapter(back, second, spelling=spelling)
    assert first.read_bytes() == second.read_bytes()
    half = adapter.to(dtype=torch.float16)
    save_adapter(adapter, first, spelling=spelling, dtype=torch.float16)
    assert load_adapter(first).digest() == half.to(dtype=torch.float32).digest()


def test_mixed_ranks_come_back_exactly(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    save_adapter(expected(), path)
    assert load_adapter(path).digest() == expected().digest()
    save_adapter(expected(), path, spelling="kohya")
    alphas = {float(value) for key, value in load_file(path).items() if key.endswith(".alpha")}
    assert alphas == {4.0}
    for layer, delta in load_adapter(path).deltas.items():
        up, down = factors()[layer]
        rank = len(down)
        assert delta.rank == {1: 1, 2: 2, 3: 4, 4: 4}[rank]
        assert torch.equal(delta.up[:, :rank], up)
        assert torch.equal(delta.down[:rank], down)
        assert not delta.up[:, rank:].any()
        assert not delta.down[rank:].any()


def test_kohyas_file_is_what_its_trainer_writes_for_sdxl(tmp_path: Path):
    ours, trainers = tmp_path / "ours.safetensors", tmp_path / "trainers.safetensors"
    save_file(spelled("kohya for SDXL", scale=1.0), trainers)
    save_adapter(load_adapter(trainers), ours, spelling="kohya")
    written, wanted = load_file(ours), load_file(trainers)
    assert written.keys() == wanted.keys()
    for key, value in wanted.items():
        assert written[key].ndim == value.ndim, key
    with safe_open(ours, framework="pt") as file:
        assert set(file.metadata()) == {"format", "adapter_metadata"}


def test_kohyas_file_of_another_network_has_diffusers_block_names(
    random_adapter: Callable[..., LoraAdapter], tmp_path: Path
):
    path = tmp_path / "file.safetensors"
    save_adapter(random_adapter(1), path, spelling="kohya")
    assert all("_blocks_" in key or "mid_block_" in key for key in load_file(path))
    assert not any("put_blocks" in key or "middle" in key for key in load_file(path))
    assert load_adapter(path).digest() == random_adapter(1).digest()


def test_projections_of_stable_diffusion_1_are_convolutions(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    block = "down_blocks.0.attentions.0"
    deltas = {
        f"{block}.proj_in": LowRankDelta(torch.ones(320, 1), torch.ones(1, 320)),
        f"{block}.transformer_blocks.0.attn2.to_k": LowRankDelta(
            torch.ones(320, 1), torch.ones(1, 768)
        ),
    }
    save_adapter(LoraAdapter(deltas), path)
    assert load_file(path)[f"unet.{block}.proj_in.lora_A.weight"].shape == (1, 320, 1, 1)
    assert load_adapter(path).digest() == LoraAdapter(deltas).digest()


@pytest.mark.parametrize(
    ("layer", "inputs", "spelling", "message"),
    [
        ("mid_block.resnets.0.conv1", 10, "diffusers", "is a convolution of 3 x 3, which cannot"),
        ("mid_block.resnets.0.conv9", 9, "kohya", "has no name in kohya's spelling"),
        ("mid_block.resnets.0.conv1", 9, "comfy", "the spelling is 'comfy': it must be diffusers"),
    ],
)
def test_refuses_to_write_what_has_no_name_or_shape(
    layer: str, inputs: int, spelling: Any, message: str, tmp_path: Path
):
    delta = LowRankDelta(torch.ones(2, 1), torch.ones(1, inputs))
    with pytest.raises(AdapterError, match=message):
        save_adapter(LoraAdapter({layer: delta}), tmp_path / "x.safetensors", spelling=spelling)
    assert list(tmp_path.iterdir()) == []


# --- read by diffusers


@pytest.fixture(scope="module")
def pipe(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    """SDXL's blocks and modules, two ResNets a block, in small widths and fewer transformers."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16, 32),
            layers_per_block=2,
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(1, 1, 2),
            norm_num_groups=8,
            cross_attention_dim=40,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        )
    pipe.register_modules(unet=unet.eval())
    return pipe


@pytest.fixture(scope="module")
def everywhere(pipe: StableDiffusionXLPipeline) -> LoraAdapter:
    """An update of every linear layer and convolution, of ranks 1 to 3."""
    generator = torch.Generator().manual_seed(3)
    deltas = {}
    for name, module in pipe.unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            d_out, d_in = module.weight.flatten(1).shape
            rank = 1 + len(deltas) % 3
            up = torch.randn(d_out, rank, generator=generator)
            down = torch.randn(rank, d_in, generator=generator)
            deltas[name] = LowRankDelta(0.1 * up * (rank * d_in) ** -0.5, down)
    return LoraAdapter(deltas, name="everywhere")


@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_diffusers_draws_with_every_layer_what_the_fused_weights_draw(
    spelling: Any, pipe: StableDiffusionXLPipeline, everywhere: LoraAdapter, tmp_path: Path
):
    generator = torch.Generator().manual_seed(0)
    unet_input = {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([10, 700]),
        "encoder_hidden_states": torch.randn(2, 5, 40, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, 24, generator=generator),
            "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2),
        },
    }
    path = tmp_path / "everywhere.safetensors"
    save_adapter(everywhere, path, spelling=spelling)
    assert (spelling == "kohya") == any("input_blocks" in key for key in load_file(path))
    fusing = SdxlPipeline(pipe, resolution=16, steps=1, guidance_scale=1.0)
    with torch.no_grad():
        before = pipe.unet(**unet_input).sample
        with fusing.fused(everywhere):
            fused = pipe.unet(**unet_input).sample
        assert torch.equal(pipe.unet(**unet_input).sample, before)
        pipe.load_lora_weights(path, adapter_name="default")
        try:
            loaded = pipe.unet(**unet_input).sample
            updates = {
                name: module.get_delta_weight("default").flatten(1)
                for name, module in pipe.unet.named_modules()
                if isinstance(module, LoraLayer)
            }
        finally:
            pipe.unload_lora_weights()
    assert set(updates) == set(everywhere.deltas)
    for layer, delta in everywhere.deltas.items():
        assert_close(updates[layer], delta.dense(), rtol=1e-5, atol=1e-6)
    assert_close(loaded, fused, rtol=1e-4, atol=1e-4)  # a convolution in two steps sums otherwise
    assert float((fused - before).abs().max()) > 0.05
