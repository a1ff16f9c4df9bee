import json
import math
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LlavaOnevisionForConditionalGeneration

from mars2.judges import TEMPLATES, JudgeError, Question, load_judge
from mars2.judges.answers import is_close, read_first_token
from mars2.judges.llava_onevision import LlavaOnevisionJudge, chat_string
from mars2.judges.prefix import Prefix

LAYOUTS = ("anyres", "pad")
SHORT = TEMPLATES["subject-short"]
STYLE = TEMPLATES["style-short"]


def subject_question(reference, test, template=SHORT):
    return Question("subject", reference, test, "", template)


@pytest.fixture(scope="module")
def model(tiny_llava):
    return LlavaOnevisionForConditionalGeneration.from_pretrained(tiny_llava).eval()


@pytest.fixture(scope="module")
def judges(tiny_llava, tiny_llava_next):
    return {
        (name, layout): LlavaOnevisionJudge.load(str(folder), device="cpu", layout=layout)
        for name, folder in (("transformers", tiny_llava), ("next", tiny_llava_next))
        for layout in LAYOUTS
    }


@pytest.fixture
def first_logits(monkeypatch):
    """Records the logits from which a judge's verdicts are read."""
    seen = []

    def record(judge):
        inner = judge._first_logits

        def spy(endings, prefix):
            logits = inner(endings, prefix)
            seen.append(logits)
            return logits

        monkeypatch.setattr(judge, "_first_logits", spy)
        return seen

    return record


def test_prompt_is_exact_to_the_byte():
    golden = (
        b"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        b"<|im_start|>user\nDecide whether two images show the same subject.\n"
        b"Reference image:\n<image>\nTest image:\n<image>\n"
        b"Look closely at the subject: details such as its colors must match. "
        b"The style of the images may differ. Is the subject of the test image the same as in the "
        b"reference image? Answer only Yes or No.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_string(SHORT.text).encode() == golden


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("folder", ["transformers", "next"])
def test_logits_equal_a_direct_forward(
    folder, layout, model, judges, oracle_inputs, pictures, first_logits
):
    judge = judges[folder, layout]
    seen = first_logits(judge)
    names = ["square", "portrait", "landscape", "small", "odd"]
    for reference in names[:3]:
        seen.clear()
        questions = [subject_question(pictures[reference], pictures[test]) for test in names]
        judge.ask(questions)
        got = torch.cat(seen)
        prompts = [
            oracle_inputs(chat_string(SHORT.text), [question.reference, question.test], layout)
            for question in questions
        ]
        prompts.sort(key=lambda inputs: inputs["input_ids"].shape[1])  # as questions are batched
        for row, inputs in zip(got, prompts, strict=True):
            with torch.no_grad():
                expected = model(**inputs).logits[0, -1]
            torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_like_length_are_a_batch(judges, monkeypatch):
    judge = judges["transformers", "anyres"]
    monkeypatch.setattr(judge, "_batch_positions", 30)
    lengths = dict(enumerate((5, 1, 5, 1)))
    assert [*judge._batches(lengths, Prefix(DynamicCache(), 10))] == [[1, 3], [0, 2]]


def test_layouts_differ(judges, pictures):
    question = subject_question(pictures["square"], pictures["portrait"])
    texts = {layout: judges["transformers", layout].ask([question])[0].raw for layout in LAYOUTS}
    assert texts["anyres"] != texts["pad"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generated_text_is_greedy(layout, model, judges, oracle_inputs, pictures):
    judge = judges["transformers", layout]
    question = subject_question(pictures["odd"], pictures["landscape"])
    inputs = oracle_inputs(chat_string(SHORT.text), [question.reference, question.test], layout)
    end = judge._stop
    plain = GenerationConfig(
        max_new_tokens=16, do_sample=False, eos_token_id=end, pad_token_id=end, use_cache=True
    )
    with torch.no_grad():
        ids = model.generate(**inputs, generation_config=plain)[0, inputs["input_ids"].shape[1] :]
    expected = [int(token) for token in ids if int(token) != end]
    verdict = judge.ask([question])[0]
    assert verdict.raw == judge._tokenizer.decode(expected, skip_special_tokens=False)
    assert verdict.answer is None  # a random model speaks nonsense: unscored, what it said is kept
    assert verdict.p_yes is None
    assert verdict.margin is None


def last_hidden(judge, question):
    """Return what the head gets (hidden,) where the first token of the answer is read."""
    seen = []
    handle = judge.model.lm_head.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].clone())
    )
    judge.ask([question])
    handle.remove()
    return seen[0][0]


def only_yes_and_no(judge, first, second):
    """Let the model say only yes or no: yes to the first of two questions, no to the second."""
    yes, no = last_hidden(judge, first), last_hidden(judge, second)
    middle = (yes + no) / 2
    row = yes - no
    row = row - (row @ middle) / (middle @ middle) * middle
    weight = torch.zeros_like(judge.model.lm_head.weight)
    weight[judge._yes[0]] = 3 * row / (row @ yes)
    weight[judge._no[0]] = -weight[judge._yes[0]]
    judge.model.lm_head.weight = torch.nn.Parameter(weight, requires_grad=False)


def test_verdicts_do_not_depend_on_batches_order_or_company(tiny_llava, pictures):
    big, small = (
        LlavaOnevisionJudge.load(str(tiny_llava), device="cpu", layout="anyres") for _ in range(2)
    )
    small._batch_positions = 1
    questions = [
        question
        for reference in pictures.values()
        for test in pictures.values()
        for question in (
            subject_question(reference, test),
            Question("style", reference, test, "crayon", STYLE),
        )
    ]
    for judge in (big, small):
        only_yes_and_no(judge, questions[0], questions[-2])
    together = big.ask(questions)
    assert {verdict.answer for verdict in together} == {True, False}
    alone = [small.ask([question])[0] for question in reversed(questions)][::-1]
    again = big.ask(questions)  # now from kept features and prefixes
    for one, other, third in zip(together, alone, again, strict=True):
        assert one.answer == other.answer == third.answer
        assert one.raw == ("Yes" if one.answer else "No")
        assert one.p_yes == pytest.approx(other.p_yes, abs=1e-5)
        assert one.p_yes == pytest.approx(third.p_yes, abs=1e-5)
        assert one.margin == pytest.approx(other.margin, abs=1e-4)
        assert one.answer == (one.margin > 0)


def test_each_image_is_seen_once(tiny_llava, pictures, monkeypatch):
    judge = LlavaOnevisionJudge.load(str(tiny_llava), device="cpu")
    encoded = []
    inner = judge._encode
    monkeypatch.setattr(judge, "_encode", lambda images: encoded.extend(images) or inner(images))
    tests = [pictures["odd"], pictures["small"]]
    for reference in (pictures["square"], pictures["landscape"]):
        judge.ask([subject_question(reference, test.copy()) for test in tests])
    assert len(encoded) == 4


def test_first_token_by_hand():
    logits = torch.tensor([0.0, math.log(3), math.log(1), math.log(2), -1.0])
    first = read_first_token(logits, yes=(1, 2), no=(3,))
    assert first.answer is True
    assert first.p_yes == pytest.approx(4 / 6, abs=1e-6)
    assert first.margin == pytest.approx(math.log(3) - math.log(2), abs=1e-6)
    assert read_first_token(logits, yes=(1,), no=(2, 3)).answer is True
    assert read_first_token(logits, yes=(2,), no=(1, 3)).answer is False


def test_first_token_that_is_neither():
    logits = torch.tensor([9.0, 1.0, 2.0])
    first = read_first_token(logits, yes=(1,), no=(2,))
    assert first.answer is None
    assert first.p_yes == pytest.approx(1 / (1 + math.e), abs=1e-6)


def test_logits_that_are_not_finite_are_unscored(judges, pictures, monkeypatch):
    judge = judges["transformers", "pad"]
    inner = judge._first_logits
    monkeypatch.setattr(judge, "_first_logits", lambda *given: inner(*given) * math.nan)
    verdict = judge.ask([subject_question(pictures["odd"], pictures["odd"])])[0]
    assert (verdict.answer, verdict.p_yes) == (None, None)
    assert "finite" in verdict.raw


def test_answers_in_words(judges, pictures, monkeypatch):
    judge = judges["transformers", "anyres"]
    said = iter(["I cannot tell.", "**Yes**, it is.", "no", "Yesterday", "72", "50", "101 of 100"])
    monkeypatch.setattr(judge, "_generate", lambda *given: next(said))
    ask = lambda name: judge.ask(  # noqa: E731
        [subject_question(pictures["odd"], pictures["small"], TEMPLATES[name])]
    )[0]
    assert [ask("subject-short").answer for _ in range(4)] == [None, True, False, None]
    assert [ask("subject-score").answer for _ in range(3)] == [True, False, None]


def test_explained_form_keeps_the_explanation(judges, pictures):
    judge = judges["transformers", "anyres"]
    verdict = judge.ask(
        [subject_question(pictures["odd"], pictures["small"], TEMPLATES["subject-explained"])]
    )[0]
    assert len(verdict.raw) > 16


def test_batches_are_halved_on_out_of_memory_and_stay_so(judges, pictures, monkeypatch):
    judge = judges["transformers", "pad"]
    questions = [
        subject_question(pictures["square"], test.rotate(angle))
        for test in pictures.values()
        for angle in (0, 90)
    ]
    expected = judge.ask(questions)
    logits, encode, asked, seen = judge._first_logits, judge._encode, [], []

    def little_memory(endings, prefix):
        asked.append(len(endings))
        if len(endings) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(endings, prefix)

    def little_memory_for_vision(images):
        seen.append(len(images))
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(images)

    monkeypatch.setattr(judge, "_first_logits", little_memory)
    monkeypatch.setattr(judge, "_encode", little_memory_for_vision)
    monkeypatch.setattr(judge, "_batch_positions", judge._batch_positions)
    judge._features.clear()
    assert judge.ask(questions) == expected
    assert asked[:4] == [10, 5, 2, 3]
    assert max(seen) > 4
    asked.clear()
    assert judge.ask(questions) == expected
    assert max(asked) <= 3
    monkeypatch.setattr(judge, "_first_logits", lambda *given: little_memory([0] * 9, *given[1:]))
    with pytest.raises(JudgeError, match="out of memory at a single question"):
        judge.ask(questions[:1])


@pytest.mark.parametrize(
    ("dtype", "turns"), [(torch.float32, 0.0), (torch.float16, 0.03), (torch.bfloat16, 0.15)]
)
def test_margins_within_half_precisions_error_are_close(dtype, turns):
    for margin in (0.001, 0.029, 0.031, 0.149, 0.151):
        assert is_close(margin, dtype) == is_close(-margin, dtype) == (margin < turns)


def test_close_answers_are_marked(tiny_llava, pictures):
    judge = LlavaOnevisionJudge.load(str(tiny_llava), dtype="bfloat16", device="cpu", layout="pad")
    questions = [
        subject_question(pictures["square"], pictures["odd"]),
        Question("style", pictures["odd"], pictures["small"], "crayon", STYLE),
    ]
    only_yes_and_no(judge, *questions)
    assert [verdict.close for verdict in judge.ask(questions)] == [False, False]
    judge.model.lm_head.weight.mul_(0.01)
    verdicts = judge.ask(questions)
    assert [verdict.close for verdict in verdicts] == [True, True]
    assert {verdict.answer for verdict in verdicts} == {True, False}


def test_id_names_model_layout_and_dtype(judges):
    judge = judges["transformers", "pad"]
    name, layout, dtype = judge.id.split(" ")
    assert name.startswith("critic@")
    assert len(name.partition("@")[2]) == 12
    assert (layout, dtype) == ("pad", "float32")
    assert not judge.published


def test_dtype_is_in_the_id(tiny_llava, pictures):
    half = load_judge(f"llava_onevision:{tiny_llava}", dtype="bfloat16", device="cpu")
    assert half.id.endswith(" anyres bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert len(half.ask([subject_question(pictures["odd"], pictures["small"])])) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layout": "tiles"}, "anyres, pad"),
        ({"dtype": "float8"}, "float32, float16, bfloat16"),
    ],
)
def test_refuses_unknown_settings(tiny_llava, arguments, said):
    with pytest.raises(JudgeError, match=said):
        LlavaOnevisionJudge.load(str(tiny_llava), device="cpu", **arguments)


def test_refuses_a_tokenizer_without_the_template_tokens(tiny_llava, tmp_path):
    copy = copy_folder(tiny_llava, tmp_path / "copy")
    text = (copy / "tokenizer.json").read_text().replace("<|im_start|>", "<|start|>")
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(JudgeError, match=r"no token <\|im_start\|>"):
        LlavaOnevisionJudge.load(str(copy), device="cpu")


def copy_folder(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_revision_follows_the_weights(tiny_llava, tmp_path, judges):
    copy = copy_folder(tiny_llava, tmp_path / "critic")
    (copy / "README.md").write_text("no part of the model")
    same = LlavaOnevisionJudge.load(str(copy), device="cpu", layout="pad")
    assert same.id == judges["transformers", "pad"].id
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "note": "changed"}))
    changed = LlavaOnevisionJudge.load(str(copy), device="cpu", layout="pad").id
    assert changed != same.id
    (copy / "tower").mkdir()
    (copy / "tower" / "config.json").write_text("{}")  # where LLaVA-NeXT's layout may have sizes
    assert LlavaOnevisionJudge.load(str(copy), device="cpu", layout="pad").id != changed
