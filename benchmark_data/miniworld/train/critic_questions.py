"""The judge's questions as the critic learns them: the same templates and the same chat string."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerBase

from benchmark_data.miniworld.train.critic_model import IMAGE
from benchmark_data.miniworld.world import STYLES
from mars2.judges.llava_onevision import chat_string
from mars2.judges.prompts import IMAGE_MARK, TEMPLATES, choose, render


def style_name(rng: np.random.Generator) -> str:
    """A style's name that says nothing about the style: a known phrase, or letters."""
    if rng.random() < 0.3:
        phrases = [style.phrase for style in STYLES.values() if style.split == "train"]
        return phrases[int(rng.integers(len(phrases)))]
    words = []
    for _ in range(1 + int(rng.random() < 0.2)):
        syllables = int(rng.integers(1, 5))
        pairs = zip(
            rng.choice(list("bcdfghklmnprstvwyz"), syllables),
            rng.choice(["a", "e", "i", "o", "u", "ar", "en", "ow"], syllables),
            strict=True,
        )
        words.append("".join(c + v for c, v in pairs))
    return " ".join(words)


def question(style: str, rng: np.random.Generator | None = None) -> str:
    """The judge's chat string for a style, or a subject if the style is ""; ``rng`` rewords it."""
    text = render(choose(TEMPLATES)["style" if style else "subject"], style)
    return chat_string(_reworded(text, style, rng) if rng is not None else text)


def _reworded(text: str, style: str, rng: np.random.Generator) -> str:
    """A question of which some words are left out and some are made up.

    A critic that knows one wording by heart answers all others at random. The images' marks and
    the style's name stay.
    """
    left_out, made_up = rng.uniform(0, 0.3, 2)
    lines = []
    for line in text.split("\n"):
        words = []
        for word in line.split(" "):
            kept = word == IMAGE_MARK or word.strip(".,:?") in style.split()
            chance = 1.0 if kept else rng.random()
            if chance >= left_out:
                words.append(word if chance >= left_out + made_up else style_name(rng))
        lines.append(" ".join(words))
    return "\n".join(lines)


def write(
    model: LlavaOnevisionForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    first: Tensor,
    second: Tensor,
    words: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with two images each, as the language model reads them.

    Args:
        model: the critic.
        tokenizer: its tokenizer.
        prompts: ``n`` chat strings with two image marks.
        first: tokens of the reference images, ``(n, tokens, width)``.
        second: tokens of the test images, the same shape.
        words: ids of the answers, ``(n,)``, to be read after the prompts.

    Returns:
        Embeddings ``(n, length, width)``, padded on the right; ``(n,)`` positions of the last
        tokens of the test images; ``(n,)`` positions of the prompts' last tokens.
    """
    marks = IMAGE * first.shape[1]
    texts = [prompt.replace(IMAGE_MARK, marks) for prompt in prompts]
    rows = tokenizer(texts, add_special_tokens=False).input_ids
    last = torch.tensor([len(row) - 1 for row in rows])
    ids = torch.zeros(len(rows), int(last.max()) + 2, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        if words is not None:
            ids[index, len(row)] = words[index]
    embeddings = model.get_input_embeddings()(ids)
    image = ids == model.config.image_token_id
    seen = ids.shape[1] - 1 - image.flip(1).int().argmax(1)
    places = image[..., None].expand_as(embeddings)
    images = torch.cat([first, second], 1).to(embeddings.dtype)
    return embeddings.masked_scatter(places, images), seen, last
