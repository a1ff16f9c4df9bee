"""Times the judge against the plain way: one `generate` a question, stopped at its end.

Asked is one question about each image (is it the same subject?), and what MARS2 asks of it: is it
the same subject, and is it the same style? Times are CPU seconds, which a busy machine changes
little.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
)

from mars2.judges import TEMPLATES, Question, leading_yes_no
from mars2.judges.answers import word_ids
from mars2.judges.llava_checkpoint import Checkpoint, load_checkpoint, siglip_image_processor
from mars2.judges.llava_onevision import LlavaOnevisionJudge, chat_string
from mars2.judges.prompts import NO_WORDS, YES_WORDS

WORLD = Path(__file__).parents[1] / "benchmark_data" / "miniworld"
TOLERANCE = 1e-5


class PlainJudge:
    """Asks each question by itself, by what transformers offers for it."""

    def __init__(self, checkpoint: Checkpoint, new_tokens: int) -> None:
        self.model = checkpoint.model
        vision = self.model.config.vision_config
        self.tokenizer = checkpoint.tokenizer
        self.processor: Any = LlavaOnevisionProcessor(
            image_processor=checkpoint.image_processor,
            tokenizer=PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer.from_str(checkpoint.tokenizer.to_str()),
                pad_token="<|im_end|>",
            ),
            video_processor=LlavaOnevisionVideoProcessor(),
            num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
            vision_feature_select_strategy="full",
        )
        end = self.tokenizer.token_to_id("<|im_end|>")
        self.settings = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            output_logits=True,
            return_dict_in_generate=True,
        )
        self.yes = word_ids(self.tokenizer, YES_WORDS, "plain")
        self.no = word_ids(self.tokenizer, NO_WORDS, "plain")

    def inputs(self, question: Question) -> Any:
        """Return the model's inputs."""
        return self.processor(
            text=[chat_string(question.text)],
            images=[question.reference, question.test],
            return_tensors="pt",
        )

    def ask(self, question: Question) -> tuple[bool | None, float]:
        """Return the answer and the probability of yes."""
        inputs = self.inputs(question)
        with torch.inference_mode():
            said = self.model.generate(**inputs, generation_config=self.settings)
        # only its first token: a random model's answer does not end, the next stands for its end
        text = self.tokenizer.decode([int(said.sequences[0, inputs["input_ids"].shape[1]])])
        logits = said.logits[0][0].double()
        yes, no = logits[list(self.yes)].exp().sum(), logits[list(self.no)].exp().sum()
        return leading_yes_no(text), float(yes / (yes + no))


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return what a call takes, and its result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def compare(name: str, checkpoint: Checkpoint, questions: Sequence[Question], tokens: int) -> str:
    """Return a line that compares both ways on the same questions.

    Raises:
        ValueError: They differ.
    """
    plain = PlainJudge(checkpoint, tokens)
    positions = plain.inputs(questions[0])["input_ids"].shape[1]
    plain.ask(questions[0])  # what is loaded at the first call is in neither time
    with counted(checkpoint.model) as much:
        slow, expected = cpu_seconds(lambda: [plain.ask(question) for question in questions])
    judge = LlavaOnevisionJudge(checkpoint, name=name)
    with counted(checkpoint.model) as little:
        fast, verdicts = cpu_seconds(lambda: judge.ask(questions))
    apart = max(
        abs(p_yes - verdict.p_yes)
        if verdict.answer == answer and verdict.p_yes is not None
        else float("inf")
        for (answer, p_yes), verdict in zip(expected, verdicts, strict=True)
    )
    if apart > TOLERANCE:
        raise ValueError(f"{name}: the judge and the plain way are {apart:.1e} apart")
    said = [answer for answer, _ in expected]
    references, images = (
        len({id(getattr(question, role)) for question in questions})
        for role in ("reference", "test")
    )
    return (
        f"judge, {name}, {references} reference{'s' * (references > 1)} x {images} images, "
        f"{positions} positions a question: "
        f"one by one {slow:.1f} CPU-s, prefix kept {fast:.1f} CPU-s, {slow / fast:.1f} x; the same "
        f"{said.count(True)} yes and {said.count(False)} no, p_yes within {apart:.0e}\n"
        f"  vision tower: {much['tiles']} tiles, {little['tiles']} here "
        f"({much['tiles'] / little['tiles']:.1f} x); language model: {much['positions']} positions,"
        f" {little['positions']} here ({much['positions'] / little['positions']:.1f} x)"
    )


@contextmanager
def counted(model: Any) -> Iterator[Counter[str]]:
    """Count the tiles that go through a model's vision tower, and positions, through the other."""
    counts = Counter[str]()

    def count(name: str, argument: str) -> Callable[[Any, Any, dict[str, Any]], None]:
        def hook(module: Any, given: Any, named: dict[str, Any]) -> None:
            tensor = named[argument] if argument in named else given[0]
            counts[name] += tensor.shape[0] * (tensor.shape[1] if name == "positions" else 1)

        return hook

    handles = [
        part.register_forward_pre_hook(count(name, argument), with_kwargs=True)
        for part, name, argument in (
            (model.model.vision_tower, "tiles", "pixel_values"),
            (model.model.language_model, "positions", "inputs_embeds"),
        )
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def pictures(count: int, side: int) -> list[Image.Image]:
    """Return images of the miniature world, square."""
    paths = sorted((WORLD / "references").rglob("*.png"))[:count]
    return [Image.open(path).convert("RGB").resize((side, side)) for path in paths]


def subject_questions(images: Sequence[Image.Image]) -> list[Question]:
    """Return a question about each image but the first, which is the reference."""
    template = TEMPLATES["subject-short"]
    return [Question("subject", images[0], image, "", template) for image in images[1:]]


def both_questions(images: Sequence[Image.Image]) -> list[Question]:
    """Return MARS2's questions about each image but the first two, subject's and style's."""
    subject, style, *tests = images
    return [
        question
        for image in tests
        for question in (
            Question("subject", subject, image, "", TEMPLATES["subject-short"]),
            Question("style", style, image, "crayon", TEMPLATES["style-short"]),
        )
    ]


def random_checkpoint(tokenizer: Tokenizer, width: int) -> Checkpoint:
    """Return a random model whose language model has a width.

    Widths, and those inside the layers, are in the proportions of LLaVA-OneVision-0.5B: per
    position its vision tower, SigLIP so400m, is as much work as its language model, Qwen2-0.5B.
    """
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "hidden_size": width,
            "intermediate_size": width * 4864 // 896,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 4096,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": width * 5 // 4,  # 1152 / 896, rounded to whole heads
            "intermediate_size": width * 4304 // 896,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "image_size": 168,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.token_to_id("<image>"),
        image_grid_pinpoints=[[168 * height, 168 * width] for height in (1, 2) for width in (1, 2)],
    )
    model: Any = LlavaOnevisionForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0, 0.02 if weight.ndim == 1 else weight[0].numel() ** -0.5,
                           generator=generator)  # fmt: skip
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
    return Checkpoint(model.eval().requires_grad_(False), siglip_image_processor(config), tokenizer)


def answer_yes_or_no(checkpoint: Checkpoint, yes_to: Question, no_to: Question) -> None:
    """Give a random model a head that says nothing but yes, to one question, and no, to another."""
    judge = LlavaOnevisionJudge(checkpoint, name="random")
    head, seen = judge.model.lm_head, []
    handle = head.register_forward_pre_hook(lambda module, given: seen.append(given[0][0].clone()))
    judge.ask([yes_to])
    first = seen[0]
    seen.clear()
    judge.ask([no_to])
    handle.remove()
    middle = (first + seen[0]) / 2
    row = first - seen[0]
    row = row - (row @ middle) / (middle @ middle) * middle
    weight = torch.zeros_like(head.weight)
    weight[word_ids(judge._tokenizer, YES_WORDS, "random")[0]] = row / (row @ first)
    weight[word_ids(judge._tokenizer, NO_WORDS, "random")[0]] = -row / (row @ first)
    head.weight = torch.nn.Parameter(weight, requires_grad=False)


def bench_miniature(images: int) -> str:
    """Compare on the miniature world's critic, which ends its answers itself."""
    checkpoint = load_checkpoint(WORLD / "weights" / "critic", torch.float32)
    shown = pictures(images + 2, 64)
    return "\n".join(
        compare("miniature critic", checkpoint, questions, tokens=16)
        for questions in (subject_questions(shown[:-1]), both_questions(shown))
    )


def bench_random(images: int, width: int = 512) -> str:
    """Compare on a random model, whose answers end after two tokens, as a critic's would."""
    tokenizer = load_checkpoint(WORLD / "weights" / "critic", torch.float32).tokenizer
    checkpoint = random_checkpoint(tokenizer, width)
    shown = pictures(images + 2, 336)
    lines = []
    for questions in (subject_questions(shown[:-1]), both_questions(shown)):
        answer_yes_or_no(checkpoint, questions[0], questions[-1])
        lines.append(compare(f"random model of width {width}", checkpoint, questions, tokens=2))
    return "\n".join(lines)
