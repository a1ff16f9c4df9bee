"""Reads what the judge said out of the records of MARS2."""

import re
from dataclasses import dataclass
from typing import cast, get_args

from mars2.store import Record, RunStore

Key = tuple[str, str, int]  # method, case, seed

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


@dataclass(frozen=True)
class Mark:
    """What the judge found of one aspect of an image; `right` is None if it is unscored."""

    aspect: str
    right: bool | None
    told: str


def image_marks(store: RunStore, judge: str | None) -> dict[Key, tuple[Mark, ...]]:
    """Return what a judge found of each image that it was asked about: subject first, then style.

    No judge: nothing.
    """
    if judge is None:
        return {}
    marks: dict[Key, dict[str, Mark]] = {}
    for record in store.records():
        aspect = record.metric.removeprefix("mars2_")
        if record.judge == judge and aspect in ("subject", "style"):
            answers = verdicts(record)
            yes = sum(answer.answer is True for answer in answers)
            told = f"{yes} of {len(answers)} say yes" if answers else ""
            right = None if record.value is None else record.value > 0.5
            key = (record.method, record.case, record.seed)
            marks.setdefault(key, {})[aspect] = Mark(aspect, right, told)
    return {
        key: tuple(found[aspect] for aspect in ("subject", "style") if aspect in found)
        for key, found in marks.items()
    }


def is_published(judge: str) -> bool:
    """Return whether an id is that of the published judge, from the hub, in its own setting.

    >>> is_published("lmms-lab/llava-critic-7b@0123 anyres float16 prompts short@4567")
    True
    """
    return re.match(rf"{PUBLISHED_JUDGE}@\S+ anyres float16( |$)", judge) is not None


def questions(judge: str) -> dict[str, str]:
    """Return the questions by aspect that a judge was asked; none if the wording is not known here.

    The id ends with the form of the questions and the digest of their templates.
    """
    from mars2.judges.prompts import TEMPLATES, Form, choose, digest  # its package imports torch

    match = re.search(r" prompts (\w+)@(\w+)$", judge)
    if match is None or match[1] not in get_args(Form):
        return {}
    templates = choose(TEMPLATES, cast(Form, match[1]))
    if digest(*templates.values()) != match[2]:
        return {}
    return {aspect: template.text.strip() for aspect, template in templates.items()}
