"""Reads what the judge said out of the records of MARS2."""

import re
from dataclasses import dataclass

from mars2.store import Record

PUBLISHED_JUDGE = "lmms-lab/llava-critic-7b"


@dataclass(frozen=True)
class Answer:
    """The judge's answer about one image and one reference.

    Attributes:
        answer: Yes, no, or None: neither.
        p_yes: Probability of yes, in ``[0, 1]``; None where the judge gives none.
        raw: What it said.
    """

    answer: bool | None
    p_yes: float | None
    raw: str


def verdicts(record: Record) -> list[Answer]:
    """Return the answers in a record of mars2_subject or mars2_style, one a reference."""
    detail = record.detail
    answers = detail.get("answers", [])
    return [
        Answer(*told)
        for told in zip(
            answers,
            detail.get("p_yes", [None] * len(answers)),
            detail.get("raw", [""] * len(answers)),
            strict=True,
        )
    ]


def is_published(judge: str) -> bool:
    """Return whether an id is that of the published judge, from the hub, in its own setting.

    >>> is_published("lmms-lab/llava-critic-7b@0123 anyres float16 prompts short@4567")
    True
    """
    return re.match(rf"{PUBLISHED_JUDGE}@\S+ anyres float16( |$)", judge) is not None
