import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaOnevisionForConditionalGeneration

from mars2.judges import JudgeError
from mars2.judges.llava_checkpoint import load_checkpoint, load_tokenizer, weight_shapes


@pytest.fixture
def next_copy(tiny_llava_next, tmp_path):
    target = tmp_path / "copy"
    for path in tiny_llava_next.rglob("*"):
        if path.is_file():
            file = target / path.relative_to(tiny_llava_next)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(path.read_bytes())
    return target


def change(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


def test_both_layouts_give_the_same_weights(tiny_llava, tiny_llava_next):
    one = load_checkpoint(tiny_llava, torch.float32).model
    other = load_checkpoint(tiny_llava_next, torch.float32).model
    assert list(one.state_dict()) == list(other.state_dict())
    for key, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[key]), key


def test_llava_next_preprocessing_is_siglips(tiny_llava_next):
    processor = load_checkpoint(tiny_llava_next, torch.float32).image_processor
    assert list(processor.image_mean) == list(processor.image_std) == [0.5, 0.5, 0.5]
    assert processor.size["height"] == processor.size["width"] == 32


@pytest.mark.parametrize(
    "pinpoints",
    [
        "(1x1),...,(3x3)",
        [[32, 32], [32, 64]],
        "[(32, 32), (32, 64)]",
    ],
)
def test_pinpoints_as_list_or_text(next_copy, pinpoints):
    change(next_copy, image_grid_pinpoints=pinpoints)
    grid = load_checkpoint(next_copy, torch.float32).model.config.image_grid_pinpoints
    if isinstance(pinpoints, str) and "x" in pinpoints:
        assert sorted(grid) == [[32 * a, 32 * b] for a in (1, 2, 3) for b in (1, 2, 3)]
    else:
        assert grid == [[32, 32], [64, 32]]  # (width, height) there, (height, width) here


def test_head_that_is_missing_is_the_embedding(tiny_llava, tmp_path, as_llava_next):
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(tiny_llava)
    folder = as_llava_next(
        tmp_path / "tied", model, tiny_llava / "tokenizer.json", drop=["lm_head.weight"]
    )
    loaded = load_checkpoint(folder, torch.float32).model
    assert torch.equal(loaded.lm_head.weight, model.model.language_model.embed_tokens.weight)


def rewrite(folder, edit):
    for path in sorted(folder.glob("*.safetensors")):
        weights = edit(load_file(path))
        save_file(weights, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    files = {key: path.name for path in folder.glob("*.safetensors") for key in load_file(path)}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda w: {k: v for k, v in w.items() if "image_newline" not in k}, "lack 1 keys"),
        (
            lambda w: {
                k.replace("mm_projector.2.bias", "mm_projector.4.bias"): v for k, v in w.items()
            },
            "lack 1 keys, such as model.multi_modal_projector.linear_2.bias",
        ),
        (
            lambda w: {
                **w,
                **({"model.extra.weight": torch.ones(2)} if "lm_head.weight" in w else {}),
            },
            "have unknown 1 keys, such as model.extra.weight",
        ),
        (
            lambda w: {k: v[:-1] if "norm.weight" in k else v for k, v in w.items()},
            "cannot be loaded",
        ),
    ],
)
def test_refuses_weights_that_do_not_fit(next_copy, edit, said):
    rewrite(next_copy, edit)
    with pytest.raises(JudgeError, match=said):
        load_checkpoint(next_copy, torch.float32)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architectures": ["LlavaForConditionalGeneration"]}, "LlavaForConditionalGeneration, an"),
        ({"architectures": None}, "no named architecture"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type is 'flat'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio is 'pad'"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14"}, "mm_vision_tower is 'openai/"),
        ({"image_grid_pinpoints": None}, "image_grid_pinpoints is None"),
        ({"image_grid_pinpoints": "oops"}, "image_grid_pinpoints is 'oops'"),
        ({"hidden_size": 28}, "cannot be loaded"),
        ({"rope_theta": None}, "lacks .'rope_theta'."),
        ({"architectures": 3}, "no named architecture"),
        ({"image_grid_pinpoints": []}, "image_grid_pinpoints is .., no list"),
        ({"image_grid_pinpoints": [["a", 1]]}, "config.json cannot be understood"),
        ({"rms_norm_eps": "1e-6"}, "config.json cannot be understood"),
        ({"hidden_size": "24"}, "config.json cannot be understood"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type is 'perceiver'"),
        ({"quantization_config": {"quant_method": "awq"}}, "a quantised model .awq."),
    ],
)
def test_refuses_configs_of_other_models(next_copy, settings, said):
    change(next_copy, **settings)
    with pytest.raises(JudgeError, match=said):
        load_checkpoint(next_copy, torch.float32)


def copy_plain(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "config.json cannot be read"),
        ("config.json", "[]", "holds a list"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{}", "tokenizer in .* cannot be read"),
        ("model.safetensors", None, "cannot be loaded"),
        ("preprocessor_config.json", '{"size": {"height": 32, "width": 32}}', "have no image_mean"),
    ],
)
def test_refuses_broken_folders(tiny_llava, tmp_path, file, content, said):
    folder = copy_plain(tiny_llava, tmp_path / "copy")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(JudgeError, match=said):
        load_checkpoint(folder, torch.float32)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("size", {"height": 48, "width": 48}, "size is"),
        ("image_grid_pinpoints", [[32, 32]], "image_grid_pinpoints of model and image processor"),
    ],
)
def test_refuses_a_processor_of_another_model(tiny_llava, tmp_path, key, value, said):
    folder = copy_plain(tiny_llava, tmp_path / "copy")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(JudgeError, match=said):
        load_checkpoint(folder, torch.float32)


def test_processor_settings_inside_processor_config(tiny_llava, tmp_path):
    folder = copy_plain(tiny_llava, tmp_path / "copy")
    path = folder / "preprocessor_config.json"
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": json.loads(path.read_text())})
    )
    path.unlink()
    processor = load_checkpoint(folder, torch.float32).image_processor
    assert list(processor.image_mean) == [0.5, 0.5, 0.5]


def test_tokenizer_from_vocabulary_and_merges(tiny_llava, tmp_path):
    whole = json.loads((tiny_llava / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = [" ".join(pair) for pair in whole["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(merges) + "\n")
    special = {str(token["id"]): {**token, "special": True} for token in whole["added_tokens"]}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": special})
    )
    text = "<|im_start|>user\nIs the subject the same? Yes"
    expected = load_tokenizer(tiny_llava).encode(text, add_special_tokens=False)
    got = load_tokenizer(tmp_path).encode(text, add_special_tokens=False)
    assert got.ids == expected.ids
    assert got.tokens[0] == "<|im_start|>"


def test_shapes_come_from_all_shards(tiny_llava_next):
    shapes = weight_shapes(tiny_llava_next)
    assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"]
    assert len(shapes) == 69  # inv_freq is no weight
