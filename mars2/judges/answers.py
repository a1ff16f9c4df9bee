"""Reads a judge's answer: off the logits of its first token, or from the text it goes on to say."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mars2.judges import JudgeError, Verdict, read_answer
from mars2.judges.prompts import Form

CLOSE_MARGIN: Mapping[torch.dtype, float] = {torch.float16: 0.03, torch.bfloat16: 0.15}
"""How far half precision was seen to move the margin between yes and no."""


@dataclass(frozen=True)
class FirstToken:
    """What the logits of the first token of an answer say.

    Attributes:
        answer: True or False if the most likely token is a yes or a no, else None.
        p_yes: Probability of all yes tokens, against that of all yes and no tokens; ``[0, 1]``.
        margin: Logit of the best yes less that of the best no.
    """

    answer: bool | None
    p_yes: float
    margin: float


def read_first_token(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> FirstToken:
    """Return what logits (vocabulary,) say, given the ids of the yes and of the no tokens."""
    logits = logits.float()
    best = int(logits.argmax())
    yes_logits, no_logits = logits[list(yes)], logits[list(no)]
    return FirstToken(
        answer=True if best in yes else False if best in no else None,
        p_yes=float(torch.sigmoid(yes_logits.logsumexp(0) - no_logits.logsumexp(0))),
        margin=float(yes_logits.max() - no_logits.max()),
    )


def is_close(margin: float, dtype: torch.dtype) -> bool:
    """Return whether rounding alone may have decided between yes and no.

    >>> is_close(-0.02, torch.float16), is_close(-0.02, torch.float32)
    (True, False)
    """
    return abs(margin) < CLOSE_MARGIN.get(dtype, 0.0)


def read_verdict(
    logits: Tensor,
    form: Form,
    *,
    yes: Sequence[int],
    no: Sequence[int],
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    generate: Callable[[], str],
) -> Verdict:
    """Return the verdict: of the first token where it decides, else of the text.

    Args:
        logits: Of the first token of the answer, (vocabulary,).
        form: How the question is to be answered.
        yes: Ids of the yes tokens.
        no: Ids of the no tokens.
        tokenizer: The model's.
        dtype: The model's.
        generate: Returns the answer in words; called only if it is needed.
    """
    first = read_first_token(logits, yes, no)
    if not math.isfinite(first.p_yes):
        return Verdict(None, None, None, "(the logits are not finite)")
    close = is_close(first.margin, dtype)
    if form == "short" and first.answer is not None:
        raw = tokenizer.decode([int(logits.argmax())], skip_special_tokens=False)
        return Verdict(first.answer, first.p_yes, first.margin, raw, close)
    text = generate()
    answer = read_answer(text, form)
    if form == "score" or answer is None or first.answer is None:
        return Verdict(answer, None, None, text)
    return Verdict(answer, first.p_yes, first.margin, text, close)


def token_id(tokenizer: Tokenizer, text: str, name: str) -> int:
    """Return the id of a token that the prompt needs.

    Raises:
        JudgeError: The tokenizer of the judge of this name has none.
    """
    token: int | None = tokenizer.token_to_id(text)
    if token is None:
        raise JudgeError(f"the tokenizer of {name} has no token {text}, which the prompt needs")
    return token


def word_ids(tokenizer: Tokenizer, words: Sequence[str], name: str) -> tuple[int, ...]:
    """Return the ids of those words, with or without a space before, that are one token.

    Raises:
        JudgeError: None is, in the tokenizer of the judge of this name.
    """
    encoded = [
        tokenizer.encode(space + word, add_special_tokens=False).ids
        for word in words
        for space in ("", " ")
    ]
    tokens = tuple(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1))
    if not tokens:
        raise JudgeError(f"the tokenizer of {name} has no single token for {words[0]!r}")
    return tokens
