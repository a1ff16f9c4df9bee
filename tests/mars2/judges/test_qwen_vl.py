"""Small random Qwen2.5-VL and Qwen3-VL models, with transformers' processors as oracle."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mars2.judges import TEMPLATES, JudgeError, Question, identify_judge, load_judge
from mars2.judges.answers import read_first_token
from mars2.judges.info import inspect_judge
from mars2.judges.qwen_vl import QwenVlJudge

FAMILIES = ("qwen2_5", "qwen3")
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
IDS = {
    "vision_start_token_id": 3,
    "vision_end_token_id": 4,
    "image_token_id": 5,
    "video_token_id": 6,
}
PATCH, MERGE = 4, 2
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
    },
}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "out_hidden_size": 32,
}
SHORT = TEMPLATES["subject-short"]
STYLE = TEMPLATES["style-short"]


def tokenizer():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([SHORT.text, STYLE.text, *["Yes", "No"] * 50], trainer)
    return made


def model(family, vocabulary):
    text = {**TEXT, "vocab_size": vocabulary}
    if family == "qwen2_5":
        vision = {**VISION, "window_size": 16, "fullatt_block_indexes": [1]}
        built = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, **IDS)
        )
    else:
        vision = {**VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        built = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config={**text, "head_dim": 8}, vision_config=vision, **IDS)
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in built.named_parameters():
            weight.normal_(0, 0.1 if weight.ndim == 1 else 0.3, generator=generator)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
    built.generation_config = GenerationConfig(repetition_penalty=5.0, do_sample=True)
    return built.eval()


def image_processor():
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48},
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp("qwen") / family
        words = tokenizer()
        model(family, words.get_vocab_size()).save_pretrained(folder)
        words.save(str(folder / "tokenizer.json"))
        image_processor().save_pretrained(folder)
        made[family] = folder
    return made


@pytest.fixture(scope="module")
def judges(folders):
    return {
        family: load_judge(f"qwen_vl:{folder}", device="cpu") for family, folder in folders.items()
    }


def oracle(family, folder, text, images):
    """The logits (vocabulary,) that transformers gives for a whole prompt."""
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>"
    )
    videos = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    if family == "qwen2_5":
        processor = Qwen2_5_VLProcessor(image_processor(), fast, Qwen2VLVideoProcessor(**videos))
    else:
        processor = Qwen3VLProcessor(image_processor(), fast, Qwen3VLVideoProcessor(**videos))
    inputs = processor(text=[text], images=images, return_tensors="pt")
    direct = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        return direct(**inputs).logits[0, -1], direct, inputs


PROMPTS = {
    "qwen2_5": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "qwen3": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
}


def whole_prompt(family, question):
    shown = question.text.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    return PROMPTS[family].format(shown)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_a_direct_forward(family, folders, judges, pictures, monkeypatch):
    judge = judges[family]
    # so that what is asked for is given in place of verdicts
    monkeypatch.setattr("mars2.judges.qwen_vl.read_verdict", lambda logits, *_, **named: logits)
    questions = [
        Question("subject", pictures["square"], pictures["portrait"], "", SHORT),
        Question("style", pictures["odd"], pictures["landscape"], "crayon", STYLE),
        Question("subject", pictures["square"], pictures["small"], "", SHORT),
        Question("subject", pictures["square"], pictures["landscape"], "", SHORT),
    ]
    for question, got in zip(questions, judge.ask(questions), strict=True):
        expected, _, _ = oracle(
            family,
            folders[family],
            whole_prompt(family, question),
            [question.reference, question.test],
        )
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_says_the_same(family, folders, judges, pictures, request):
    questions = [
        Question("subject", pictures["square"], pictures["portrait"], "", SHORT),
        Question("style", pictures["odd"], pictures["landscape"], "crayon", STYLE),
    ]
    expected = [verdict.raw for verdict in judges[family].ask(questions)]
    request.getfixturevalue("pretended_gpu")
    there = load_judge(f"qwen_vl:{folders[family]}", device="cuda", dtype="float32")
    assert [verdict.raw for verdict in there.ask(questions)] == expected
    assert all(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_shared_is_computed_once_and_changes_no_logit(
    family, folders, pictures, monkeypatch
):
    judge = QwenVlJudge.load(str(folders[family]), dtype="float32", device="cpu")
    shown = ("square", "odd", "landscape", "square")
    questions = [
        Question("subject", pictures["portrait"], pictures[name], "", SHORT) for name in shown
    ]
    cut, read = [], []
    encode, forward = judge._cut, judge.model.model.language_model.forward
    monkeypatch.setattr(judge, "_cut", lambda images: cut.extend(images) or encode(images))
    monkeypatch.setattr(
        judge.model.model.language_model,
        "forward",
        lambda *given, **named: (
            read.append(named["inputs_embeds"].shape[:2]) or forward(*given, **named)
        ),
    )
    monkeypatch.setattr("mars2.judges.qwen_vl.read_verdict", lambda logits, *_, **named: logits)
    answers = judge.ask(questions)
    assert len(cut) == 4  # portrait, square, odd, landscape
    assert [rows for rows, _ in read] == [1, 4]  # the prefix, and all test images together
    lengths = []
    for question, got in zip(questions, answers, strict=True):
        expected, _, inputs = oracle(
            family,
            folders[family],
            whole_prompt(family, question),
            [question.reference, question.test],
        )
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        lengths.append(inputs["input_ids"].shape[1])
    assert read[0][1] + read[1][1] == max(lengths)
    assert len(set(lengths)) > 1  # so that there was something to pad


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_have_room_and_are_halved_without_it(family, folders, pictures, monkeypatch):
    """Rows of a batch answer alike, however many there are, and in whatever order."""
    judge = QwenVlJudge.load(str(folders[family]), dtype="float32", device="cpu")
    monkeypatch.setattr("mars2.judges.qwen_vl.read_verdict", lambda logits, *_, **named: logits)
    questions = [
        Question("subject", pictures["portrait"], pictures[name], "", SHORT)
        for name in ("square", "small", "odd", "landscape", "portrait")
    ]
    expected = judge.ask(questions)
    forward, rows = judge._first_logits, []

    def cramped(part, prefix):
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        rows.append(len(part))
        return forward(part, prefix)

    monkeypatch.setattr(judge, "_first_logits", cramped)
    for order in (questions, questions[::-1]):
        for got, same in zip(judge.ask(order), expected[:: 1 if order is questions else -1],
                             strict=True):  # fmt: skip
            torch.testing.assert_close(got, same, rtol=1e-5, atol=1e-5)
    # 5 are too many, and so are 3; the second time smaller batches are made at once
    assert rows == [2, 1, 2, *[1] * 5]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_greedy_whatever_the_folder_says_of_generation(family, folders, judges, pictures):
    question = Question("subject", pictures["small"], pictures["odd"], "", SHORT)
    logits, direct, inputs = oracle(
        family,
        folders[family],
        whole_prompt(family, question),
        [pictures["small"], pictures["odd"]],
    )
    judge = judges[family]
    assert read_first_token(logits, judge._yes, judge._no).answer is None  # so text is generated
    direct.generation_config = GenerationConfig()
    ids = direct.generate(**inputs, max_new_tokens=16, do_sample=False, eos_token_id=2)
    said = [token for token in ids[0, inputs["input_ids"].shape[1] :].tolist() if token != 2]
    verdict = judge.ask([question])[0]
    assert verdict.raw == judge._tokenizer.decode(said, skip_special_tokens=False)
    assert (verdict.answer, verdict.p_yes, verdict.margin) == (None, None, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu_it_computes_as_it_is_stored(family, folders):
    spec = f"qwen_vl:{folders[family]}"
    assert identify_judge(spec, device="cuda").endswith(" bfloat16")
    assert identify_judge(spec, device="cuda", dtype="float16").endswith(" float16")
    assert identify_judge(spec, device="cpu").endswith(" float32")
    assert inspect_judge(spec, device="cpu").dtype == "float32"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_token_decides(family, folders, pictures):
    judge = QwenVlJudge.load(str(folders[family]), dtype="bfloat16", device="cpu")
    question = Question("subject", pictures["small"], pictures["odd"], "", SHORT)
    weight = torch.zeros_like(judge.model.lm_head.weight)
    seen = []
    handle = judge.model.lm_head.register_forward_pre_hook(
        lambda module, given: seen.append(given[0][-1])
    )
    judge.ask([question])
    handle.remove()
    hidden = seen[0]
    weight[judge._no[0]] = hidden / (hidden @ hidden)  # so that No's logit is 1
    judge.model.lm_head.weight = torch.nn.Parameter(weight, requires_grad=False)
    verdict = judge.ask([question])[0]
    assert (verdict.answer, verdict.raw) == (False, "No")
    assert verdict.margin == pytest.approx(-1, abs=0.01)  # bfloat16
    assert not verdict.close
    judge.model.lm_head.weight.mul_(0.1)
    assert judge.ask([question])[0].close


def test_it_is_never_the_published_judge_and_its_id_has_model_and_dtype(judges):
    judge = judges["qwen3"]
    assert not judge.published
    name, dtype = judge.id.split(" ")
    assert name.startswith("qwen3@")
    assert dtype == "float32"


def test_out_of_memory_is_a_clear_error(judges, pictures, monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    judge = judges["qwen3"]
    monkeypatch.setattr(judge, "_first_logits", full)
    with pytest.raises(JudgeError, match="out of memory at a single question"):
        judge.ask([Question("subject", pictures["small"], pictures["odd"], "", SHORT)])


@pytest.mark.parametrize("family", FAMILIES)
def test_info(family, folders, judges):
    told = inspect_judge(f"qwen_vl:{folders[family]}", device="cpu")
    parameters = sum(weight.numel() for weight in judges[family].model.parameters())
    assert (told.parameters, told.need.weights) == (parameters, 4 * parameters)
    assert told.architecture == type(judges[family].model).__name__
    assert (told.layout, told.published) == ("", False)


def copy(source, target, **changed):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changed}))
    return target


def test_refuses_other_models_layouts_and_processors(folders, tmp_path):
    other = copy(folders["qwen3"], tmp_path / "other", architectures=["Qwen3ForCausalLM"])
    with pytest.raises(JudgeError, match="holds Qwen3ForCausalLM, another model"):
        load_judge(f"qwen_vl:{other}", device="cpu")
    with pytest.raises(JudgeError, match="layout is 'pad'"):
        load_judge(f"qwen_vl:{folders['qwen3']}", device="cpu", layout="pad")
    broken = copy(folders["qwen3"], tmp_path / "broken")
    (broken / "preprocessor_config.json").write_text("{}")
    with pytest.raises(JudgeError, match="have no patch_size"):
        load_judge(f"qwen_vl:{broken}", device="cpu")
