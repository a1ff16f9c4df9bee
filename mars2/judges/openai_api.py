"""Any model behind an OpenAI-compatible chat completions server: vLLM, SGLang, hosted ones.

The question is one message, its two images inline as PNG where they stand in the wording. How the
server shows them to its model, and in which conversation template, is its own matter: this is never
the published judge, whatever the model.
"""

import base64
import io
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from PIL import Image

from mars2.judges import JudgeError, Question, ServerSettings, Verdict, read_answer
from mars2.judges.chat_server import (
    ChatServer,
    NoAnswer,
    Reply,
    check_base_url,
    model_revision,
    server_name,
)
from mars2.judges.images import prepare
from mars2.judges.prompts import IMAGE_MARK, NEW_TOKENS, NO_WORDS, YES_WORDS

URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"


class OpenAIJudge:
    """Asks a model on a server.

    Args:
        model: Its name there.
        base_url: What stands before ``/chat/completions``.
        key: API key; "": none is needed.
        settings: How to ask.
        revision: What the server tells of the model's revision; "": nothing.
    """

    published = False

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        key: str = "",
        settings: ServerSettings | None = None,
        revision: str = "",
    ) -> None:
        settings = settings or ServerSettings()
        url = check_base_url(base_url)
        self.id = f"openai:{model}@{server_name(url)}{f'#{revision}' if revision else ''}"
        if settings.temperature:
            self.id += f" temperature {settings.temperature:g}"
        self._url = str(url.copy_with(userinfo=b"")).rstrip("/")
        self._concurrency = settings.concurrency
        self._server = ChatServer(
            base_url,
            model,
            key=key,
            timeout=settings.timeout,
            retries=settings.retries,
            temperature=settings.temperature,
        )

    @classmethod
    def load(cls, model: str, settings: ServerSettings) -> "OpenAIJudge":
        """Return the judge of a model; no question is asked yet, only for the list of models.

        The server is `settings.base_url` or that of the variable OPENAI_BASE_URL, the key that of
        the variable OPENAI_API_KEY.

        Raises:
            JudgeError: No server is named, what is named is no URL, or the server is not there.
        """
        url = settings.base_url or os.environ.get(URL_VARIABLE, "")
        if not url:
            raise JudgeError(
                f"judge openai:{model} has no server: give --base-url, or set {URL_VARIABLE}, such "
                "as http://localhost:8000/v1"
            )
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise JudgeError(f"{KEY_VARIABLE} holds characters that no key has")
        check_base_url(url)
        try:
            revision = model_revision(
                url, model, key=key, timeout=settings.timeout, retries=settings.retries
            )
        except NoAnswer as reason:
            public = str(check_base_url(url).copy_with(userinfo=b"")).rstrip("/")
            raise JudgeError(_silent(f"{public}/models", str(reason))) from reason
        return cls(model, url, key=key, settings=settings, revision=revision)

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return a verdict for each question, in their order.

        A question without an answer is unscored, `failed`, and has the reason in `raw`; when the
        server is gone, so are all further ones, at once.

        Raises:
            JudgeError: The server is not there, or refuses everything: it never gave an answer.
        """
        verdicts = dict(self.verdicts(questions))
        return [verdicts[number] for number in range(len(questions))]

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """Give the number and the verdict of each question, as the server answers.

        Raises:
            JudgeError: As `ask`.
        """
        images = {id(image): image for q in questions for image in (q.reference, q.test)}
        urls = {key: data_url(prepare(image)) for key, image in images.items()}

        def answer(number: int) -> tuple[int, Verdict]:
            question = questions[number]
            messages = chat(question.text, urls[id(question.reference)], urls[id(question.test)])
            return number, self._answer(question, messages)

        # Questions that begin alike follow one another: servers keep what they computed of those.
        places = {key: place for place, key in enumerate(images)}
        order = sorted(
            range(len(questions)),
            key=lambda number: (questions[number].text, places[id(questions[number].reference)]),
        )
        with self._server.open():
            pool = ThreadPoolExecutor(self._concurrency)
            try:
                for answered in as_completed([pool.submit(answer, number) for number in order]):
                    yield answered.result()
            except BaseException:
                self._server.stop()
                raise
            finally:
                pool.shutdown(cancel_futures=True)
        if self._server.gone is not None and not self._server.answered:
            raise JudgeError(_silent(f"{self._url}/chat/completions", self._server.gone))

    def _answer(self, question: Question, messages: list[dict[str, Any]]) -> Verdict:
        form = question.template.form
        try:
            if form == "short":
                reply = self._server.complete(messages, max_tokens=1, logprobs=True)
                if reply.text.strip() in (*YES_WORDS, *NO_WORDS):
                    return Verdict(
                        reply.text.strip() in YES_WORDS, *first_token(reply.first), reply.text
                    )
                if reply.refusal or reply.finish == "content_filter":
                    return Verdict(None, None, None, _told(reply))
            reply = self._server.complete(
                messages, max_tokens=NEW_TOKENS[form], logprobs=form == "explained"
            )
        except NoAnswer as reason:
            return Verdict(None, None, None, f"(no answer: {reason})", failed=True)
        answer = None if reply.refusal else read_answer(reply.text, form)
        if answer is None or not _decided(reply.first):
            return Verdict(answer, None, None, _told(reply))
        return Verdict(answer, *first_token(reply.first), _told(reply))


def chat(text: str, reference: str, test: str) -> list[dict[str, Any]]:
    """Return the messages of a question: its two images, as URLs, where its marks stand."""
    before, between, after = text.split(IMAGE_MARK)
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": before},
        {"type": "image_url", "image_url": {"url": reference}},
        {"type": "text", "text": between},
        {"type": "image_url", "image_url": {"url": test}},
        {"type": "text", "text": after},
    ]
    return [{"role": "user", "content": [part for part in parts if part.get("text") != ""]}]


def data_url(image: Image.Image) -> str:
    """Return an image as the URL of a PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def first_token(candidates: Sequence[tuple[str, float]]) -> tuple[float | None, float | None]:
    """Return `p_yes` and `margin` of the candidates for the first token; None where not known.

    A word that is not among the candidates counts as impossible for `p_yes`.

    >>> first_token([("Yes", -0.5), ("No", -0.5)])
    (0.5, 0.0)
    """
    yes, no = (
        [logprob for token, logprob in candidates if token.strip() in words]
        for words in (YES_WORDS, NO_WORDS)
    )
    if not yes or not no:
        return (None if not yes and not no else 1.0 if yes else 0.0), None
    odds = _log_sum(no) - _log_sum(yes)
    return 1.0 / (1.0 + math.exp(min(odds, 700.0))), max(yes) - max(no)


def _decided(candidates: Sequence[tuple[str, float]]) -> bool:
    """Return whether the most likely first token is a yes or a no."""
    best = max(candidates, key=lambda candidate: candidate[1], default=("", 0.0))[0]
    return best.strip() in (*YES_WORDS, *NO_WORDS)


def _log_sum(logprobs: Sequence[float]) -> float:
    highest = max(logprobs)
    return highest + math.log(sum(math.exp(logprob - highest) for logprob in logprobs))


def _silent(url: str, reason: str) -> str:
    return (
        f"no answer from {url}: {reason}; is the server running, is its base URL right, and the "
        f"key in {KEY_VARIABLE}, if it needs one?"
    )


def _told(reply: Reply) -> str:
    return reply.refusal or reply.text or f"(it said nothing; finish reason {reply.finish!r})"
