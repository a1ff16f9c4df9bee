"""The published judge's size, without its weights: files that are only headers."""

import json
import math
import struct

import pytest
import torch

from mars2.judges import JudgeError
from mars2.judges.llava_checkpoint import describe, placed_keys
from mars2.judges.room import memory_need
from mars2.judges.weights import count_parameters, main_dtype, stored_weights

HIDDEN, WIDE, LAYERS, VOCABULARY, KEYS = 3584, 18944, 28, 152064, 4 * 128
TOWER, TOWER_WIDE, TOWER_LAYERS = 1152, 4304, 26
CONFIG = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava",
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [
        [384 * width, 384 * height] for width in range(1, 7) for height in range(1, 7)
    ],
    "image_token_index": 151646,
    "initializer_range": 0.02,
    "intermediate_size": WIDE,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "mm_hidden_size": TOWER,
    "mm_newline_position": "one_token",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "num_attention_heads": 28,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}


def linear(key, d_out, d_in, *, bias=True):
    return {f"{key}.weight": (d_out, d_in)} | ({f"{key}.bias": (d_out,)} if bias else {})


def llava_next_shapes():
    """Every key of the checkpoint, from the description of its two models."""
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.image_newline": (HIDDEN,),
        **linear("model.mm_projector.0", HIDDEN, TOWER),
        **linear("model.mm_projector.2", HIDDEN, HIDDEN),
    }
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (HIDDEN,),
            f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
            **linear(f"{layer}.self_attn.q_proj", HIDDEN, HIDDEN),
            **linear(f"{layer}.self_attn.k_proj", KEYS, HIDDEN),
            **linear(f"{layer}.self_attn.v_proj", KEYS, HIDDEN),
            **linear(f"{layer}.self_attn.o_proj", HIDDEN, HIDDEN, bias=False),
            **linear(f"{layer}.mlp.gate_proj", WIDE, HIDDEN, bias=False),
            **linear(f"{layer}.mlp.up_proj", WIDE, HIDDEN, bias=False),
            **linear(f"{layer}.mlp.down_proj", HIDDEN, WIDE, bias=False),
        }
    tower = "model.vision_tower.vision_tower.vision_model"
    shapes |= {
        f"{tower}.embeddings.patch_embedding.weight": (TOWER, 3, 14, 14),
        f"{tower}.embeddings.patch_embedding.bias": (TOWER,),
        f"{tower}.embeddings.position_embedding.weight": ((384 // 14) ** 2, TOWER),
        f"{tower}.post_layernorm.weight": (TOWER,),
        f"{tower}.post_layernorm.bias": (TOWER,),
    }
    for number in range(TOWER_LAYERS):
        layer = f"{tower}.encoder.layers.{number}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{norm}.{part}": (TOWER,) for part in ("weight", "bias")}
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", TOWER, TOWER)
        shapes |= linear(f"{layer}.mlp.fc1", TOWER_WIDE, TOWER)
        shapes |= linear(f"{layer}.mlp.fc2", TOWER, TOWER_WIDE)
    return shapes


def write_headers(path, shapes):
    """Write a safetensors file of bfloat16 whose numbers are a hole: it takes no disk."""
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def write_folder(folder, shapes):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    keys = sorted(shapes)
    for number in range(4):
        part = keys[number * len(keys) // 4 : (number + 1) * len(keys) // 4]
        name = f"model-{number + 1:05}-of-00004.safetensors"
        write_headers(folder / name, {key: shapes[key] for key in part})
    return folder


def test_every_key_has_a_place_and_a_shape(tmp_path):
    shapes = llava_next_shapes()
    folder = write_folder(tmp_path, shapes)
    described = describe(folder)
    weights = stored_weights(folder)
    placed = placed_keys(folder, described, weights)
    assert placed.keys() == shapes.keys()
    assert len(set(placed.values())) == len(shapes) == 12 * LAYERS + 16 * TOWER_LAYERS + 13
    assert main_dtype(weights) == "bfloat16"
    parameters = count_parameters(weights)
    assert parameters == sum(map(math.prod, shapes.values()))
    assert 8.0e9 < parameters < 8.1e9
    need = memory_need(described.config, parameters, torch.float16)
    assert need.weights == 2 * parameters


def test_the_real_config_is_that_of_the_published_model(tmp_path):
    config = describe(write_folder(tmp_path, llava_next_shapes())).config
    text, vision = config.text_config, config.vision_config
    assert (text.vocab_size, text.num_hidden_layers, text.rope_parameters["rope_theta"]) == (
        152064,
        28,
        1e6,
    )
    assert (vision.num_hidden_layers, vision.image_size, vision.vision_use_head) == (26, 384, False)
    assert (config.vision_feature_layer, config.vision_aspect_ratio) == (-1, "anyres_max_9")
    assert len(config.image_grid_pinpoints) == 36
    assert not config.tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.layers.27.mlp.up_proj.weight": None}, "lack 1 keys, such as model.language_model"),
        ({"model.layers.28.mlp.up_proj.weight": (2, 2)}, "have unknown 1 keys"),
        ({"model.image_newline": (3583,)}, r"model.image_newline has shape \(3583,\)"),
        ({"model.mm_projector.0.weight": (1152, 3584)}, r"shape \(1152, 3584\); the config asks"),
    ],
)
def test_refuses_other_keys_and_shapes(tmp_path, change, said):
    shapes = {key: shape for key, shape in (llava_next_shapes() | change).items() if shape}
    folder = write_folder(tmp_path, shapes)
    with pytest.raises(JudgeError, match=said):
        placed_keys(folder, describe(folder), stored_weights(folder))
