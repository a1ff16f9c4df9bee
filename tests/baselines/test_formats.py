"""LoRA files against peft and diffusers: theirs read by us, ours read by them."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.dreambooth import attention_layers
from baselines.formats import load_adapter, save_adapter

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
LAYER = f"{BLOCK}.attn1.to_q"


@pytest.fixture
def pipe(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False)


@pytest.fixture(scope="module")
def unet_input() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([10, 700]),
        "encoder_hidden_states": torch.randn(2, 5, 40, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, 24, generator=generator),
            "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2),
        },
    }


def answer(unet: nn.Module, unet_input: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return unet(**unet_input).sample


def add_peft_lora(unet: nn.Module, **options: Any) -> None:
    """Attach a LoRA with peft and draw both of its factors."""
    unet.add_adapter(LoraConfig(**{"r": 4, "target_modules": ["to_q", "to_out.0"], **options}))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.2, generator=generator)


def peft_updates(unet: nn.Module) -> dict[str, Tensor]:
    """The dense updates as peft itself computes them."""
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in unet.named_modules()
        if isinstance(module, LoraLayer)
    }


def assert_same_updates(adapter: LoraAdapter, expected: Mapping[str, Tensor]) -> None:
    assert set(adapter.layers) == set(expected)
    for layer, delta in adapter.deltas.items():
        assert_close(delta.dense(), expected[layer], rtol=1e-5, atol=1e-6)


# --- theirs, read by us

PEFT_OPTIONS: list[dict[str, Any]] = [
    {},
    {"lora_alpha": 2},
    {"lora_alpha": 12, "use_rslora": True},
    {
        "lora_alpha": 6,
        "rank_pattern": {"attn1.to_q": 7, "mid_block.*to_out.0": 2},
        "alpha_pattern": {f"^{LAYER}": 3.0, "attn2.to_out.0": 9},
    },
]


@pytest.mark.parametrize("options", PEFT_OPTIONS)
def test_reads_what_diffusers_saves_with_its_settings(
    options: dict[str, Any], pipe: StableDiffusionXLPipeline, tmp_path: Path
):
    add_peft_lora(pipe.unet, **options)
    config = pipe.unet.peft_config["default"].to_dict()
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        unet_lora_adapter_metadata=config,
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert_same_updates(load_adapter(path), peft_updates(pipe.unet))


@pytest.mark.parametrize("options", PEFT_OPTIONS)
def test_reads_what_the_unet_saves(
    options: dict[str, Any], pipe: StableDiffusionXLPipeline, tmp_path: Path
):
    """Without ``unet.`` in front, in keys and settings."""
    add_peft_lora(pipe.unet, **options)
    pipe.unet.save_lora_adapter(tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert_same_updates(load_adapter(path, name="mine"), peft_updates(pipe.unet))
    assert load_adapter(path, name="mine").name == "mine"
    assert load_adapter(path).name == "pytorch_lora_weights"


@pytest.mark.parametrize("options", PEFT_OPTIONS)
def test_reads_what_peft_saves_with_its_config_beside(
    options: dict[str, Any], pipe: StableDiffusionXLPipeline, tmp_path: Path
):
    from peft import get_peft_model

    config = {"r": 4, "target_modules": ["to_q", "to_out.0"], "init_lora_weights": False, **options}
    model = get_peft_model(pipe.unet, LoraConfig(**config))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    assert next(iter(load_file(path))).startswith("base_model.model.")
    assert_same_updates(load_adapter(path), peft_updates(model.base_model.model))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match=r"adapter_config.json beside it is not JSON"):
        load_adapter(path)


OLD_SPELLINGS = {
    "unet.{layer}.lora.{factor}.weight": False,
    "{layer}.lora.{factor}.weight": False,
    "unet.{layer}.lora_linear_layer.{factor}.weight": False,
    "unet.{block}.processor.{projection}_lora.{factor}.weight": True,
    "{block}.processor.{projection}_lora.{factor}.weight": True,
}


@pytest.mark.parametrize("spelling", OLD_SPELLINGS)
def test_reads_older_spellings(spelling: str, pipe: StableDiffusionXLPipeline, tmp_path: Path):
    """Diffusers' own reader is the oracle where it knows the spelling."""
    generator = torch.Generator().manual_seed(2)
    tensors, expected = {}, {}
    for name in attention_layers(pipe.unet):
        d_out, d_in = pipe.unet.get_submodule(name).weight.shape
        up, down = (torch.randn(n, generator=generator) for n in ((d_out, 3), (3, d_in)))
        block, _, projection = name.removesuffix(".0").rpartition(".")
        for factor, value in (("up", up), ("down", down)):
            key = spelling.format(layer=name, block=block, projection=projection, factor=factor)
            tensors[key] = value
        expected[name] = up @ down
    path = tmp_path / "old.safetensors"
    save_file(tensors, path)
    assert_same_updates(load_adapter(path), expected)
    if spelling.startswith("unet.") and "linear" not in spelling:
        pipe.load_lora_weights(path, adapter_name="default")
        assert_same_updates(load_adapter(path), peft_updates(pipe.unet))


@pytest.mark.parametrize(
    "key",
    [
        "unet.{layer}.lora_A.default.weight",
        "{layer}.lora_A.default.weight",
        "base_model.model.{layer}.lora_A.weight",
        "base_model.model.unet.{layer}.lora_A.default.weight",
    ],
)
def test_reads_peft_spellings(key: str, tmp_path: Path):
    down, up = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0], [5.0]])
    name = key.format(layer=LAYER)
    path = tmp_path / "peft.safetensors"
    save_file({name: down, name.replace("lora_A", "lora_B"): up}, path)
    assert load_adapter(path).deltas[LAYER].dense().tolist() == [[3, 6], [4, 8], [5, 10]]


@pytest.mark.parametrize(
    ("factor_key", "alpha_key"),
    [
        ("unet.{layer}.lora.{f}.weight", "unet.{layer}.alpha"),
        ("unet.{layer}.lora.{f}.weight", "unet.{layer}.lora.alpha"),
        ("unet.{layer}.lora_linear_layer.{f}.weight", "{layer}.lora_linear_layer.alpha"),
        (
            "unet.{block}.attn1.processor.to_q_lora.{f}.weight",
            "unet.{block}.attn1.processor.to_q_lora.alpha",
        ),
    ],
)
def test_folds_alpha_tensors_in(factor_key: str, alpha_key: str, tmp_path: Path):
    def key(text: str, f: str = "") -> str:
        return text.format(layer=LAYER, block=BLOCK, f=f)

    down, up = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, 1.0]])
    path = tmp_path / "alpha.safetensors"
    save_file(
        {
            key(factor_key, "down"): down,
            key(factor_key, "up"): up,
            key(alpha_key): torch.tensor(0.5),
        },
        path,
    )
    # [3, 1] @ [[1, 2], [0, 1]] = [3, 7], times alpha / rank = 1 / 4
    assert load_adapter(path).deltas[LAYER].dense().tolist() == [[0.75, 1.75]]


# --- ours, read by them


def test_diffusers_draws_the_same_with_our_file_as_with_fused_weights(
    pipe: StableDiffusionXLPipeline,
    unet_input: dict[str, Any],
    random_adapter: Callable[..., LoraAdapter],
    tmp_path: Path,
):
    adapter = LoraAdapter(random_adapter(3).deltas, metadata={"prompt": "a dog", "steps": "5"})
    check_against_fused(adapter, pipe, unet_input, tmp_path)


def test_diffusers_applies_scale_one_to_every_rank(
    pipe: StableDiffusionXLPipeline,
    unet_input: dict[str, Any],
    random_adapter: Callable[..., LoraAdapter],
    tmp_path: Path,
):
    """Ranks 2, 3 and 4 in one file, as merges of unlike adapters have."""
    parts = [random_adapter(seed, rank=seed, strength=0.6).deltas for seed in (2, 3, 4)]
    mixed = {layer: parts[i % 3][layer] for i, layer in enumerate(parts[0])}
    scales = check_against_fused(LoraAdapter(mixed), pipe, unet_input, tmp_path)
    assert set(scales) == {1.0}


def check_against_fused(
    adapter: LoraAdapter, pipe: StableDiffusionXLPipeline, unet_input: dict[str, Any], folder: Path
) -> list[float]:
    unet = pipe.unet
    before = answer(unet, unet_input)
    originals = {}
    for layer, delta in adapter.deltas.items():
        weight = unet.get_submodule(layer).weight
        originals[layer] = weight.detach().clone()
        with torch.no_grad():
            weight += delta.up @ delta.down
    expected = answer(unet, unet_input)
    with torch.no_grad():
        for layer, original in originals.items():
            unet.get_submodule(layer).weight.copy_(original)

    path = folder / "ours.safetensors"
    save_adapter(adapter, path)
    pipe.load_lora_weights(path, adapter_name="default")
    loaded = answer(unet, unet_input)
    assert_close(loaded, expected, rtol=1e-5, atol=1e-5)
    assert float((expected - before).abs().max()) > 0.01  # the adapter does something
    assert_same_updates(adapter, peft_updates(unet))
    return [m.scaling["default"] for m in unet.modules() if isinstance(m, LoraLayer)]


def test_their_reader_and_writer_keep_our_file(
    pipe: StableDiffusionXLPipeline,
    random_adapter: Callable[..., LoraAdapter],
    tmp_path: Path,
):
    """Ours, loaded and saved by diffusers with the settings it understood, read by us again."""
    adapter = random_adapter(5, rank=3)
    save_adapter(adapter, tmp_path / "ours.safetensors")
    pipe.load_lora_weights(tmp_path / "ours.safetensors", adapter_name="default")
    pipe.unet.save_lora_adapter(tmp_path, adapter_name="default")
    back = load_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert back.digest() == adapter.digest()


# --- ours, read by us


@pytest.fixture
def adapter() -> LoraAdapter:
    generator = torch.Generator().manual_seed(4)
    deltas = {
        name: LowRankDelta(
            torch.randn(3, rank, generator=generator), torch.randn(rank, 4, generator=generator)
        )
        for name, rank in (("down_blocks.0.to_q", 2), ("mid_block.to_k", 5))
    }
    return LoraAdapter(deltas, "dog", {"prompt": "a dög", "steps": "3"})


def test_comes_back_exactly(adapter: LoraAdapter, tmp_path: Path):
    path = tmp_path / "deep" / "dog.safetensors"
    save_adapter(adapter, path)
    back = load_adapter(path)
    assert back.digest() == adapter.digest()
    assert back.metadata == adapter.metadata
    assert [item.name for item in path.parent.iterdir()] == ["dog.safetensors"]
    first = path.read_bytes()
    save_adapter(back, path)
    assert path.read_bytes() == first


def test_types_in_the_file(adapter: LoraAdapter, tmp_path: Path):
    path = tmp_path / "dog.safetensors"
    save_adapter(adapter, path, dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    back = load_adapter(path)
    assert back.digest() == adapter.to(dtype=torch.float16).to(dtype=torch.float32).digest()
    double = adapter.to(dtype=torch.float64)
    save_adapter(double, path, dtype=torch.float64)
    assert load_adapter(path).digest() == double.digest()


def test_an_adapter_without_layers_is_marked(tmp_path: Path):
    path = tmp_path / "base.safetensors"
    save_adapter(LoraAdapter({}, metadata={"method": "base"}), path)
    back = load_adapter(path)
    assert back.layers == ()
    assert back.metadata == {"method": "base"}


def test_refuses_to_write_what_is_not_finite(adapter: LoraAdapter, tmp_path: Path):
    path = tmp_path / "dog.safetensors"
    save_adapter(adapter, path)
    before = path.read_bytes()
    for broken, dtype in ((float("nan"), torch.float32), (1e30, torch.float16)):
        bad = {layer: broken * delta for layer, delta in adapter.deltas.items()}
        with pytest.raises(AdapterError, match=r"layer 'down_blocks.0.to_q' .* not finite"):
            save_adapter(LoraAdapter(bad), path, dtype=dtype)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# --- files that cannot be used


def pair(layer: str = LAYER, rank: int = 2) -> dict[str, Tensor]:
    return {
        f"unet.{layer}.lora_A.weight": torch.ones(rank, 4),
        f"unet.{layer}.lora_B.weight": torch.ones(3, rank),
    }


def bad_files() -> Iterator[tuple[str, dict[str, Tensor], str]]:
    ones = torch.ones(2, 2)
    key = f"unet.{LAYER}"
    yield "empty", {}, "the file holds no LoRA at all"
    yield (
        "kohya",
        {"lora_unet_down_pumps_1.lora_down.weight": ones},
        "down_pumps.*not understood",
    )
    yield "kohya alpha", {"lora_unet_down_blocks_1.alpha": torch.ones(1)}, "no down factor"
    yield "original", {"lora_unet_input_blocks_1_2_op.alpha": torch.ones(1)}, "_op.*not understood"
    yield "dora", {**pair(), f"{key}.lora_magnitude_vector": torch.ones(3)}, "magnitude_vec.*DoRA"
    yield (
        "text encoder",
        {**pair(), "text_encoder.text_model.layers.0.q_proj.lora_A.weight": ones},
        r"a LoRA of the text encoder, too: text_encoder \(1 tensors\).*--ignore-text-encoder",
    )
    yield (
        "text encoder 2",
        {"text_encoder_2.x.lora_linear_layer.up.weight": ones},
        "holds a LoRA of text_encoder_2 and none of the UNet",
    )
    yield (
        "transformer",
        {"transformer.blocks.0.to_q.lora_A.weight": ones},
        "looks like a LoRA of a diffusion transformer",
    )
    yield "lokr", {f"{key}.lokr_w1": ones}, "lokr_w1' is not understood: it looks like LoKr"
    yield "loha", {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": ones}, "LoHa"
    yield "kohya dora", {"lora_unet_mid_block_attentions_0_proj_in.dora_scale": ones}, "DoRA"
    yield "oft", {"lora_unet_mid_block_attentions_0_proj_in.oft_blocks": ones}, "OFT"
    yield "difference", {"diffusion_model.out.2.diff": ones}, "full difference"
    yield "bias", {**pair(), f"{key}.lora_B.bias": torch.ones(3)}, "LoRA with biases"
    yield (
        "convolution of a linear layer",
        {f"{key}.lora_A.weight": torch.ones(2, 4, 3, 3), f"{key}.lora_B.weight": ones},
        r"to_q' has factors of shape \(2, 4, 3, 3\) and .*, which looks like a convolution",
    )
    yield (
        "matrix of a convolution",
        {"unet.conv_in.lora_A.weight": torch.ones(2, 4), "unet.conv_in.lora_B.weight": ones},
        r"it is a convolution of 3 x 3: expected \(rank, channels, 3, 3\)",
    )
    yield (
        "middle factor",
        {
            "unet.conv_in.lora_down.weight": torch.ones(2, 4, 1, 1),
            "unet.conv_in.lora_mid.weight": torch.ones(2, 3, 3, 3),
            "unet.conv_in.lora_up.weight": torch.ones(5, 2, 1, 1),
        },
        "a middle one .* which do not fit",
    )
    yield "no prefix", {"blocks.0.to_q.lora_A.weight": ones}, "'blocks.0.to_q.*not understood: ex"
    yield "checkpoint", {"conv_in.weight": ones}, "'conv_in.weight' is not understood"
    yield "no up", {f"{key}.lora_A.weight": ones}, f"layer '{LAYER}' has no up factor"
    yield "no down", {f"{key}.lora_B.weight": ones}, f"layer '{LAYER}' has no down factor"
    yield "alpha alone", {f"{key}.alpha": torch.ones(1)}, f"layer '{LAYER}' has no down factor"
    yield (
        "ranks",
        {**pair(), f"{key}.lora_B.weight": torch.ones(3, 5)},
        f"'{LAYER}' has a down factor of rank 2 and an up factor of rank 5",
    )
    yield "nan", {k: v * float("nan") for k, v in pair().items()}, f"'{LAYER}'.*not finite"
    yield "alpha nan", {**pair(), f"{key}.alpha": torch.tensor(float("nan"))}, "not finite"
    yield (
        "twice",
        {**pair(), f"{LAYER}.lora_A.weight": ones},
        f"layer '{LAYER}' is there twice, as '.*' and as 'unet",
    )
    yield (
        "two adapters",
        {**pair(), f"{key}.lora_A.other.weight": ones},
        "save one adapter a file",
    )
    yield "alpha shape", {**pair(), f"{key}.alpha": ones}, "one number alpha"
    yield (
        "integers",
        {name: value.to(torch.int8) for name, value in pair().items()},
        "torch.int8: quantised files are not read",
    )


@pytest.mark.parametrize(
    ("tensors", "message"), [pytest.param(*rest, id=name) for name, *rest in bad_files()]
)
def test_refuses_files_it_does_not_understand(
    tensors: dict[str, Tensor], message: str, tmp_path: Path
):
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_files_that_are_none(adapter: LoraAdapter, tmp_path: Path):
    with pytest.raises(AdapterError, match=r"nowhere.safetensors: no such file"):
        load_adapter(tmp_path / "nowhere.safetensors")
    with pytest.raises(AdapterError, match="it is a folder, not a file"):
        load_adapter(tmp_path)
    path = tmp_path / "cut.safetensors"
    save_adapter(adapter, path)
    content = path.read_bytes()
    for part in (content[:-1], content[:20], b"", b"<!DOCTYPE html>"):
        path.write_bytes(part)
        with pytest.raises(AdapterError, match=r"cut.safetensors: not a readable safetensors file"):
            load_adapter(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "lora_adapter_metadata in its header is not JSON"),
        ("[]", "in its header is a list, not an object"),
        ({"unet.use_dora": True}, "say DoRA"),
        ({"unet.peft_type": "LOHA"}, r"say LOHA \(peft_type\): only LoRA is read"),
        ({"unet.r": 3, "unet.lora_alpha": 3}, "has rank 2, but the file's settings say 3"),
        ({"unet.rank_pattern": {"to_q": 5}}, "has rank 2, but the file's settings say 5"),
        ({"unet.lora_alpha": 3}, "has alpha 1.0, but the file's settings say 3"),
        ({"unet.lora_alpha": "many"}, "alpha_pattern and lora_alpha cannot be read for layer"),
        ({"unet.rank_pattern": {"(": 2}}, "rank_pattern and r cannot be read"),
        ({"unet.rank_pattern": ["to_q"]}, "rank_pattern and r cannot be read"),
    ],
)
def test_refuses_settings_that_contradict_the_file(settings: Any, message: str, tmp_path: Path):
    path = tmp_path / "bad.safetensors"
    text = settings if isinstance(settings, str) else json.dumps(settings)
    tensors = {**pair(), f"unet.{LAYER}.alpha": torch.tensor(1.0)}
    save_file(tensors, path, metadata={"lora_adapter_metadata": text})
    with pytest.raises(AdapterError, match=message):
        load_adapter(path)


def test_settings_of_the_text_encoder_are_not_the_unets(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    settings = json.dumps({"text_encoder.r": 9, "text_encoder.lora_alpha": 1})
    save_file(pair(), path, metadata={"lora_adapter_metadata": settings})
    assert load_adapter(path).deltas[LAYER].dense().tolist() == [[2.0] * 4] * 3


def test_the_header_says_alpha_is_the_rank(adapter: LoraAdapter, tmp_path: Path):
    path = tmp_path / "dog.safetensors"
    save_adapter(adapter, path)
    with safe_open(path, framework="pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings["unet.r"] == settings["unet.lora_alpha"] == 2
    assert list(settings["unet.rank_pattern"].values()) == [5]
    assert settings["unet.alpha_pattern"] == settings["unet.rank_pattern"]
