"""`mars2 judge convert` and `mars2 judge info`."""

import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from mars2.cli import main
from mars2.judges import TEMPLATES, JudgeError, llava_convert
from mars2.judges.info import inspect_judge
from mars2.judges.llava_checkpoint import load_checkpoint, load_tokenizer
from mars2.judges.llava_convert import convert, mark_images
from mars2.judges.llava_onevision import chat_string
from mars2.judges.prompts import choose, digest
from mars2.judges.weights import stored_weights


@pytest.fixture
def command(monkeypatch, capsys):
    """``command("info", ...)`` -> exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mars2", "judge", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capsys.readouterr()
        return int(exit_.value.code or 0), said.out, said.err

    return call


@pytest.fixture(scope="module")
def converted(tiny_llava_next, tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "critic-hf"
    convert(str(tiny_llava_next), target)
    return target


def test_a_converted_copy_has_the_same_weights(converted, tiny_llava_next):
    assert len(list(converted.glob("model-*-of-00002.safetensors"))) == 2
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in converted.iterdir())  # a server's
    keys = stored_weights(converted)
    assert len(keys) == 69
    for key in (
        "image_newline",
        "language_model.lm_head.weight",
        "language_model.model.layers.1.mlp.up_proj.weight",
        "multi_modal_projector.linear_2.bias",
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
    ):
        assert key in keys
    one = load_checkpoint(tiny_llava_next, torch.float32)
    other = load_checkpoint(converted, torch.float32)
    assert list(one.model.state_dict()) == list(other.model.state_dict())
    for key, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[key]), key
    for key in ("size", "image_mean", "image_std", "image_grid_pinpoints"):
        assert getattr(other.image_processor, key) == getattr(one.image_processor, key)
    assert other.tokenizer.to_str() == load_tokenizer(converted).to_str()


def test_transformers_reads_a_converted_copy_as_servers_do(converted, pictures, oracle_inputs):
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(converted)
    processor = AutoProcessor.from_pretrained(converted)
    text = TEMPLATES["subject-short"].text
    before, between, after = text.split("<image>")
    parts = [
        {"type": "text", "text": before},
        {"type": "image"},
        {"type": "text", "text": between},
        {"type": "image"},
        {"type": "text", "text": after},
    ]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    assert prompt == chat_string(text)
    images = [pictures["square"], pictures["portrait"]]
    got = processor(text=[prompt], images=images, return_tensors="pt")
    expected = oracle_inputs(prompt, images, "anyres")
    assert torch.equal(got["input_ids"], expected["input_ids"])
    assert model.config.image_token_id == processor.image_token_id
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids(
        "<|im_end|>"
    )


def test_convert_refuses_what_is_there_and_what_needs_no_conversion(
    command, converted, tiny_llava_next, tiny_llava, tmp_path
):
    code, said, _ = command("convert", tiny_llava_next, tmp_path / "new")
    assert (code, said.strip()) == (0, str(tmp_path / "new"))
    for source, target, reason in (
        (tiny_llava_next, converted, "exists"),
        (tiny_llava, tmp_path / "other", "in transformers' layout already"),
        (tmp_path / "nothing", tmp_path / "other", "neither a folder nor a hub id"),
        (tiny_llava_next, tmp_path / "no" / "other", "is no folder: make it first"),
    ):
        code, _, error = command("convert", source, target)
        assert code == 2
        assert reason in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_a_conversion_that_fails_leaves_nothing(tiny_llava_next, tmp_path, monkeypatch):
    def broken(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(llava_convert, "_write_settings", broken)
    with pytest.raises(KeyboardInterrupt):
        convert(str(tiny_llava_next), tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_image_marks_need_rows_in_the_embedding(tiny_llava):
    tokenizer = load_tokenizer(tiny_llava)
    config = SimpleNamespace(text_config=SimpleNamespace(vocab_size=400))
    mark_images(tokenizer, config)
    assert config.image_token_id == tokenizer.token_to_id("<image>")
    config.text_config.vocab_size = 4
    with pytest.raises(JudgeError, match="the embedding has 4 rows"):
        mark_images(tokenizer, config)


@pytest.mark.parametrize("layout", ["transformers", "next", "converted"])
def test_info_by_the_loaded_model(layout, tiny_llava, tiny_llava_next, converted):
    folder = {"transformers": tiny_llava, "next": tiny_llava_next, "converted": converted}[layout]
    told = inspect_judge(f"llava_onevision:{folder}", dtype="bfloat16", device="cpu", layout="pad")
    model = load_checkpoint(folder, torch.bfloat16).model
    assert told.parameters == sum(weight.numel() for weight in model.parameters())
    assert told.need.weights == sum(weight.nbytes for weight in model.parameters())
    assert told.model.startswith(f"{folder.name}@")
    assert (told.stored_dtype, told.dtype, told.layout) == ("float32", "bfloat16", "pad")
    assert told.prompts == digest(*choose(TEMPLATES).values())
    assert not told.published


def test_info_in_words(command, tiny_llava_next):
    code, said, _ = command("info", f"llava_onevision:{tiny_llava_next}", "--device", "cpu")
    assert code == 0
    for part in (
        "LlavaQwenForCausalLM, files in LLaVA-NeXT's layout",
        "float32 on cpu",
        "stored as float32",
        "GiB free",
        digest(*choose(TEMPLATES).values()),
        "no: compare its scores",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["scripted:table.json"], "has no weights to tell of"),
        (["llava_onevision"], "has no weights to tell of"),
        (["llava_onevisoin:x"], "llava_onevision"),
        (["llava_onevision:FOLDER", "--layout", "tiles"], "anyres, pad"),
        (["llava_onevision:FOLDER", "--dtype", "float8"], "float32, float16, bfloat16"),
    ],
)
def test_info_refuses(command, tiny_llava, arguments, reason):
    code, _, error = command(
        "info", *[word.replace("FOLDER", str(tiny_llava)) for word in arguments]
    )
    assert code == 2
    assert reason in error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["qwen_vl:FOLDER"], "another model than this judge computes"),
        (["llava_onevision:FOLDER", "--layout", "foo"], "anyres, pad"),
        (["llava_onevision:FOLDER", "--base-url", "http://localhost:1/v1"], "asks no server"),
        (["qwen_vl:FOLDER", "--layout", "pad"], "one way to see images"),
    ],
)
def test_a_dry_run_refuses_what_cannot_be_asked(command, tiny_llava, arguments, reason):
    code, said, error = command(
        *("check", "--suite", "miniworld", "--dry-run", "--judge"),
        *(word.replace("FOLDER", str(tiny_llava)) for word in arguments),
    )
    assert (code, said) == (2, "")
    assert reason in error


def test_a_dry_run_refuses_half_of_the_questions(command, tiny_llava, tmp_path):
    (tmp_path / "mine.toml").write_text(
        '[[template]]\nid = "a"\nversion = 1\naspect = "subject"\nform = "short"\n'
        'text = "<image> <image>"\n'
    )
    code, said, error = command(
        *("check", "--suite", "miniworld", "--dry-run", "--prompts", str(tmp_path / "mine.toml")),
        *("--judge", f"llava_onevision:{tiny_llava}"),
    )
    assert (code, said) == (2, "")
    assert "for the style; found []" in error
