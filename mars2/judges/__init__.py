"""What a judge is: it looks at a reference and a test image and answers a yes/no question.

A new judge is a class with `id`, `published` and `ask`, and a loader registered in `JUDGES`. The
loaders import their models' libraries when called, so that this module needs none of them.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL.Image import Image

from baselines.registry import Registry
from mars2.judges.errors import JudgeError
from mars2.judges.prompts import TEMPLATES, Aspect, Form, Template, load_templates, render

__all__ = [
    "JUDGES",
    "TEMPLATES",
    "Judge",
    "JudgeError",
    "JudgeLoader",
    "Question",
    "ServerSettings",
    "StreamingJudge",
    "Template",
    "Verdict",
    "identify_judge",
    "leading_score",
    "leading_yes_no",
    "load_judge",
    "load_templates",
    "read_answer",
    "refuse_server",
    "render",
]

SAME_FROM = 51
"""Lowest score, of 100, that counts as a yes: where "quite similar" begins."""


@dataclass(frozen=True)
class Question:
    """Two images and what is asked about them.

    Attributes:
        aspect: What is compared.
        reference: Image of the subject or of the style; RGB.
        test: Image to be judged; RGB.
        style: The style in words, as in "``{style}`` style"; "" for a subject.
        template: Wording.
    """

    aspect: Aspect
    reference: Image
    test: Image
    style: str
    template: Template

    @property
    def text(self) -> str:
        """The question in words, with an `<image>` mark for the reference and one for the test."""
        return render(self.template, self.style)


@dataclass(frozen=True)
class Verdict:
    """What a judge said.

    Attributes:
        answer: Yes or no; None if it said neither: such a verdict is unscored.
        p_yes: Probability of yes against yes and no, in ``[0, 1]``; None if the judge gives none.
        margin: Logit of the best yes less that of the best no; None if the judge gives none.
        raw: What it said, in its own words; or why it could not be asked.
        close: Whether the margin is so small that half precision alone may have decided.
        failed: Whether it could not be asked: the question is unscored, and to be asked again.
    """

    answer: bool | None
    p_yes: float | None
    margin: float | None
    raw: str
    close: bool = False
    failed: bool = False


@dataclass(frozen=True)
class ServerSettings:
    """How to ask a judge that is behind a server; of these only the temperature changes answers.

    Attributes:
        base_url: Where it is, such as ``http://localhost:8000/v1``; "": the environment says.
        timeout: Seconds that one request may take.
        concurrency: Questions asked at once.
        retries: How often a request that failed is repeated.
        temperature: At which the server draws the tokens of an answer; 0: the most likely ones.
    """

    base_url: str = ""
    timeout: float = 120.0
    concurrency: int = 8
    retries: int = 5
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not self.timeout > 0 or self.concurrency < 1 or self.retries < 0:
            raise JudgeError(
                f"timeout is {self.timeout}, concurrency {self.concurrency}, retries "
                f"{self.retries}; give more than 0 seconds, 1 or more, and 0 or more"
            )
        if not 0 <= self.temperature < math.inf:
            raise JudgeError(f"temperature is {self.temperature}; give 0 or more")


class Judge(Protocol):
    """Answers questions.

    Attributes:
        id: Name, revision and all settings that change its answers; goes into every record.
        published: Whether it is the judge of the published protocol, in its setting.
    """

    @property
    def id(self) -> str: ...  # noqa: D102

    @property
    def published(self) -> bool: ...  # noqa: D102

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return a verdict for each question, in their order."""
        ...


@runtime_checkable
class StreamingJudge(Judge, Protocol):
    """A judge that gives each verdict as soon as there is one, so that none is lost if it stops."""

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """Give the number and the verdict of each question, in whatever order they come."""
        ...


class JudgeLoader(Protocol):
    """Makes a judge of what stands behind the colon in ``NAME:SOURCE``."""

    def __call__(  # noqa: D102
        self, source: str, *, dtype: str | None, device: str, layout: str, server: ServerSettings
    ) -> Judge: ...


def load_llava_onevision(
    source: str, *, dtype: str | None, device: str, layout: str, server: ServerSettings
) -> Judge:
    """LLaVA-Critic and any other LLaVA-OneVision model, from a folder or the hub."""
    from mars2.judges.llava_onevision import LlavaOnevisionJudge

    refuse_server("llava_onevision", server)
    return LlavaOnevisionJudge.load(source, dtype=dtype, device=device, layout=layout)


def load_qwen_vl(
    source: str, *, dtype: str | None, device: str, layout: str, server: ServerSettings
) -> Judge:
    """Qwen2.5-VL, Qwen3-VL and models tuned from them, from a folder or the hub."""
    from mars2.judges.qwen_vl import QwenVlJudge

    refuse_server("qwen_vl", server)
    return QwenVlJudge.load(source, dtype=dtype, device=device, layout=layout)


def load_openai(
    source: str, *, dtype: str | None, device: str, layout: str, server: ServerSettings
) -> Judge:
    """A model behind an OpenAI-compatible server (vLLM, SGLang, transformers serve, hosted)."""
    from mars2.judges.openai_api import OpenAIJudge

    if layout != "anyres" or dtype is not None:
        raise JudgeError(
            f"judge openai:{source} is shown images as its server does it, in the server's dtype: "
            "leave out layout and dtype"
        )
    return OpenAIJudge.load(source, server)


def load_scripted(
    source: str, *, dtype: str | None, device: str, layout: str, server: ServerSettings
) -> Judge:
    """Answers from a table in a JSON file: for tests and tutorials, measures nothing."""
    from mars2.judges.scripted import ScriptedJudge

    refuse_server("scripted", server)
    return ScriptedJudge.load(Path(source))


def refuse_server(name: str, server: ServerSettings) -> None:
    """Check that settings of a server are left out for a judge that asks none.

    Raises:
        JudgeError: They are not.
    """
    if server.base_url:
        raise JudgeError(f"judge {name} asks no server: leave out the base URL {server.base_url!r}")
    if server.temperature:
        raise JudgeError(
            f"judge {name} gives its most likely answer: leave out temperature {server.temperature}"
        )


JUDGES: Registry[JudgeLoader] = Registry("judge")
JUDGES.register("llava_onevision", load_llava_onevision)
JUDGES.register("qwen_vl", load_qwen_vl)
JUDGES.register("openai", load_openai)
JUDGES.register("scripted", load_scripted)

UNCACHED = ("scripted",)
"""Judges that answer faster than their answers can be looked up."""


def load_judge(
    spec: str,
    *,
    dtype: str | None = None,
    device: str = "auto",
    layout: str = "anyres",
    server: ServerSettings | None = None,
    cache: bool = False,
) -> Judge:
    """Return the judge that a text names.

    Args:
        spec: ``NAME:SOURCE``, such as ``llava_onevision:lmms-lab/llava-critic-7b``.
        dtype: float32, float16 or bfloat16; None: float16 (of `qwen_vl`: bfloat16) on a GPU, else
            float32.
        device: As torch names it; "auto": a GPU if there is one.
        layout: How the judge sees two images: "anyres" (the protocol) or "pad".
        server: How to ask a judge that is behind a server.
        cache: Whether answers are kept in the user's cache and not asked for again; those of a
            judge in `UNCACHED` never are.

    Raises:
        PluginError: There is no such judge.
        JudgeError: It cannot be loaded, or the cache not be used.
    """
    name, colon, source = spec.partition(":")
    if not colon or not source:
        raise JudgeError(
            f"judge {spec!r} names no model: write NAME:MODEL, such as "
            "llava_onevision:lmms-lab/llava-critic-7b or llava_onevision:FOLDER, or leave it out "
            "for the suite's own"
        )
    load = partial(
        JUDGES.get(name),
        source,
        dtype=dtype,
        device=device,
        layout=layout,
        server=server or ServerSettings(),
    )
    if not cache or name in UNCACHED:
        return load()
    from mars2.judges.cached import AnswerCache, CachedJudge

    answers = AnswerCache()
    answers.check()  # before minutes of loading
    return CachedJudge(load(), answers)


def identify_judge(
    spec: str,
    *,
    dtype: str | None = None,
    device: str = "auto",
    layout: str = "anyres",
    server: ServerSettings | None = None,
) -> str | None:
    """Return the id that `load_judge` would give a judge, no weight read; None: it cannot be told.

    Raises:
        PluginError: There is no such judge.
        JudgeError: There is no such model, or the settings do not fit.
    """
    name, _, source = spec.partition(":")
    if name in ("openai", "scripted"):  # they have no weights
        return load_judge(spec, dtype=dtype, device=device, layout=layout, server=server).id
    if name not in ("llava_onevision", "qwen_vl") or not source:
        return None
    from mars2.judges import llava_checkpoint, llava_onevision, qwen_vl
    from mars2.judges.sources import find_model
    from mars2.judges.weights import resolve

    refuse_server(name, server or ServerSettings())
    dtype, _ = resolve(name, dtype, device)
    if name == "qwen_vl":
        qwen_vl.check_layout(layout)
        found = find_model(source)
        qwen_vl.qwen_config(found.folder)
        return qwen_vl.judge_id(found.id, dtype)
    llava_onevision.check_layout(layout)
    found = find_model(source)
    llava_checkpoint.describe(found.folder)
    return llava_onevision.judge_id(found.id, layout, dtype)


def leading_yes_no(text: str) -> bool | None:
    """Return what an answer in words begins with: True for yes, False for no, None for neither.

    >>> leading_yes_no("**Yes**, the same mug."), leading_yes_no("Not sure"), leading_yes_no("")
    (True, None, None)
    """
    match = re.match(r"\W*(yes|no)\b", text, flags=re.IGNORECASE)
    return None if match is None else match[1].lower() == "yes"


def leading_score(text: str) -> float | None:
    """Return the number in ``[0, 100]`` that an answer begins with, or None.

    >>> leading_score("85"), leading_score("Score: 70/100"), leading_score("850")
    (85.0, 70.0, None)
    """
    match = re.match(r"\W*(?:score\W*)?(\d+(?:\.\d+)?)", text, flags=re.IGNORECASE)
    value = None if match is None else float(match[1])
    return value if value is not None and value <= 100 else None


def read_answer(text: str, form: Form) -> bool | None:
    """Return what an answer in words says: its leading yes or no, or its leading score."""
    if form != "score":
        return leading_yes_no(text)
    score = leading_score(text)
    return None if score is None else score >= SAME_FROM
