"""Asks an OpenAI-compatible server for chat completions, and copes with what goes wrong.

What may pass (a lost connection, no answer in time, 429, 5xx, a reply that is none) is tried again
after a jittered, growing wait, or after the wait that the server asks for. A request that stays
without an answer raises `NoAnswer`; after several in a row nothing more is asked.
"""

import json
import math
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import Any

import httpx

from mars2.judges.errors import JudgeError

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before the first repetition, doubled for each further one up to the longest."""
MOST_ASKED_WAIT = 600.0
"""Seconds that a server may ask one question to wait, summed up."""
GIVE_UP_AFTER = 3
"""Questions in a row without an answer, after which the server counts as gone."""
LARGEST_REPLY = 4_000_000  # bytes
CONNECT_TIMEOUT = 10.0  # seconds

PASSING = (408, 425, 429)
"""HTTP states, beside 5xx, that a repetition may cure."""
ABOUT_ALL = (401, 402, 403, 404, 405, 407)
"""HTTP states, beside 3xx, that say of every further request that it is in vain."""
REFUSAL_CODES = ("content_filter", "content_policy_violation")
"""Error codes by which hosted servers refuse to look at an image."""

OPTIONAL = (("repetition_penalty",), ("logprobs", "top_logprobs"), ("max_tokens",))
"""Fields of a request that not every server knows; those of one tuple go together.

Without `max_tokens`, newer servers take `max_completion_tokens`.
"""


class NoAnswer(Exception):  # noqa: N818  # an outcome, caught where verdicts are made
    """A request stayed without an answer; the text says why.

    Attributes:
        about_all: Whether every other request would fare the same.
    """

    def __init__(self, reason: str, *, about_all: bool = False) -> None:
        super().__init__(reason)
        self.about_all = about_all


class Refused(NoAnswer):
    """The server does not take this request as it is."""


class _Passing(Exception):  # noqa: N818
    """Something that a repetition may cure; `wait`: seconds, if the server says how long."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        text: Its answer; "" if there is none.
        finish: Why it ended: "stop", "length", "content_filter", ...
        refusal: In which words it refused to answer, or "".
        first: Candidates for the first token with their log probabilities, or none.
    """

    text: str
    finish: str = ""
    refusal: str = ""
    first: Sequence[tuple[str, float]] = ()


class ChatServer:
    """A model on a server; several threads may use it.

    Args:
        base_url: What stands before ``/chat/completions``.
        model: The model's name there.
        key: Sent as bearer token; "": none is sent.
        timeout: Seconds that a request may take.
        retries: How often a request is repeated.
        temperature: At which tokens are drawn; 0: the most likely ones.

    Attributes:
        gone: Why nothing more is asked; None as long as the server answers.
        answered: Whether it ever answered.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str = "",
        timeout: float = 120.0,
        retries: int = 5,
        temperature: float = 0.0,
    ) -> None:
        self.gone: str | None = None
        self.answered = False
        self._base_url = base_url
        self._model = model
        self._key = key
        self._timeout = timeout
        self._retries = retries
        self._temperature = temperature
        self._client: httpx.Client
        self._lock = Lock()
        self._stopped = Event()
        self._not_before = 0.0  # time.monotonic(): a server that asks one to wait asks all
        self._in_a_row = 0
        self._unknown: frozenset[str] = frozenset()
        self._random = random.Random()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold connections: requests can be made while this is open."""
        self._stopped.clear()
        with httpx.Client(
            base_url=self._base_url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self._timeout, connect=min(self._timeout, CONNECT_TIMEOUT)),
            limits=httpx.Limits(max_connections=None),
        ) as self._client:
            yield

    def stop(self) -> None:
        """Let all waiting requests end without an answer."""
        self._stopped.set()

    def complete(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, logprobs: bool
    ) -> Reply:
        """Return the most likely answer, or, at a temperature, a drawn one.

        Args:
            messages: As the API takes them.
            max_tokens: Most tokens of the answer.
            logprobs: Ask for the probabilities of the first token; not every server gives them.

        Raises:
            NoAnswer: There is none.
        """
        body = {"model": self._model, "messages": messages, "temperature": self._temperature}
        body |= {"max_tokens": max_tokens, "repetition_penalty": 1.0}
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": 20}
        try:
            reply = self._in_its_dialect(body)
        except NoAnswer as failure:
            self._count(failure)
            raise
        with self._lock:
            self.answered, self._in_a_row = True, 0
        return reply

    def _in_its_dialect(self, body: Mapping[str, Any]) -> Reply:
        """Return the answer to a request without the fields that the server does not know.

        It names what it does not know when it refuses a request; if it names nothing and has not
        answered any request yet, all optional fields are left out.
        """
        unknown = self._unknown
        while True:
            try:
                reply = self._repeatedly(_without(body, unknown))
            except Refused as refusal:
                if not self._unknown <= unknown:  # found out meanwhile, about another question
                    unknown |= self._unknown
                    continue
                left = [names for names in OPTIONAL if names[0] in body and names[0] not in unknown]
                named = [
                    names
                    for names in left
                    if any(re.search(rf"\b{name}\b", str(refusal)) for name in names)
                ]
                if not named and not self.answered:
                    named = [names for names in left if names != ("max_tokens",)]
                if not named:
                    raise
                unknown |= {name for names in named for name in names}
            else:
                with self._lock:
                    self._unknown |= unknown
                return reply

    def _repeatedly(self, body: Mapping[str, Any]) -> Reply:
        content = json.dumps(body).encode()
        failures, waited = 0, 0.0
        while True:
            while (left := self._not_before - time.monotonic()) > 0:
                self._wait(left + self._random.uniform(0.0, FIRST_WAIT))  # not all at once
            self._wait(0.0)
            try:
                return self._once(content)
            except _Passing as passing:
                asked = None if passing.wait is None else max(passing.wait, FIRST_WAIT)
                if asked is None:
                    failures += 1
                else:
                    waited += asked
                if failures > self._retries or waited > MOST_ASKED_WAIT:
                    raise NoAnswer(str(passing)) from passing
                if asked is None:
                    wait = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
                    self._wait(wait * self._random.uniform(0.5, 1.0))
                else:
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + asked)

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds) or self.gone is not None:
            raise NoAnswer(self.gone or "it was interrupted")

    def _count(self, failure: NoAnswer) -> None:
        """Give the server up, if what went wrong is not about one question only."""
        with self._lock:
            if self._stopped.is_set() or (isinstance(failure, Refused) and self.answered):
                return
            self._in_a_row += 1
            if failure.about_all or self._in_a_row >= GIVE_UP_AFTER:
                self.gone = str(failure)
                self._stopped.set()

    def _once(self, content: bytes) -> Reply:
        """Return the reply to one request, which takes no longer than the timeout."""
        end = time.monotonic() + self._timeout
        received = bytearray()
        try:
            with self._client.stream(
                "POST",
                "chat/completions",
                content=content,
                headers={"Content-Type": "application/json"},
            ) as response:
                for part in response.iter_bytes():
                    received += part
                    if time.monotonic() > end:
                        raise _Passing(f"no whole answer within {self._timeout:g} s")
                    if len(received) > LARGEST_REPLY:
                        raise _Passing(f"a reply of more than {LARGEST_REPLY} bytes")
        except httpx.TimeoutException as error:
            raise _Passing(
                f"no answer within {self._timeout:g} s ({type(error).__name__})"
            ) from error
        except httpx.RequestError as error:
            raise _Passing(f"{type(error).__name__}: {error}") from error
        return self._read(response, bytes(received))

    def _read(self, response: httpx.Response, received: bytes) -> Reply:
        status = response.status_code
        if status == 200:
            return read_reply(received)
        message, code = _error_of(received)
        if self._key:
            message = message.replace(self._key, "(the key)")
        reason = f"HTTP {status}: {message}"
        if code in REFUSAL_CODES:
            return Reply("", "content_filter", reason)
        if status in PASSING or status >= 500:
            wait = wait_asked_for(response.headers)
            asked = "" if wait is None else f" (it asks to wait {wait:g} s)"
            raise _Passing(reason + asked, wait)
        if status in ABOUT_ALL or status < 400:
            raise NoAnswer(reason, about_all=True)
        raise Refused(reason)


def check_base_url(url: str) -> httpx.URL:
    """Return a server's base URL, such as ``http://localhost:8000/v1``.

    Raises:
        JudgeError: It is none.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise JudgeError(f"base URL {url!r} is none ({error})") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise JudgeError(f"base URL {url!r} is none; write it as http://localhost:8000/v1")
    return parsed


def server_name(url: httpx.URL) -> str:
    """Return which server a base URL means: host, port, and the path if it is not the usual one.

    >>> server_name(httpx.URL("http://localhost:8000/v1/"))
    'localhost:8000'
    >>> server_name(httpx.URL("https://api.example.com/critics/v1"))
    'api.example.com:443/critics/v1'
    """
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    path = url.path.rstrip("/")
    return f"{url.host}:{port}{'' if path == '/v1' else path}"


def model_revision(base_url: str, model: str, *, key: str, timeout: float, retries: int) -> str:
    """Return what a server's list of models tells of a model's revision; "" if it tells nothing.

    That is `revision`, `digest` or, of vLLM, `root` (the folder or hub id behind the name). The
    time `created` is not: servers put the time of the request there.

    Raises:
        NoAnswer: The list cannot be had now, not even when asked again. To go on without it would
            be to take the model for one of another revision, or of none.
    """
    reason = ""
    for failures in range(retries + 1):
        if failures:
            time.sleep(min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT))
        try:
            response = httpx.get(
                f"{base_url.rstrip('/')}/models",
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=min(timeout, CONNECT_TIMEOUT),
            )
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        if response.status_code not in PASSING and response.status_code < 500:
            break
        reason = f"HTTP {response.status_code}"
    else:
        raise NoAnswer(reason)
    try:
        entry = next(one for one in response.json()["data"] if one["id"] == model)
        told = [entry.get(name) for name in ("revision", "digest", "root")]
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return ""
    texts = (text for text in told if isinstance(text, str) and text.strip() and text != model)
    return "_".join(next(texts, "").split())


def read_reply(received: bytes) -> Reply:
    """Return what the body of a chat completion says.

    Raises:
        _Passing: It is no chat completion.
    """
    try:
        choice = json.loads(received)["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content") or "", message.get("refusal") or ""
        finish = choice.get("finish_reason") or ""
        if not all(isinstance(part, str) for part in (text, refusal, finish)):
            raise TypeError("its content is no text")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        told = " ".join(received[:200].decode("utf-8", "replace").split())
        raise _Passing(f"a reply that is no chat completion: {told!r}") from error
    return Reply(text, finish, refusal, _first_candidates(choice))


def _first_candidates(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the candidates for the first token; none if they are not given as they should be."""
    try:
        given = choice["logprobs"]["content"][0]["top_logprobs"]
        candidates = [(str(one["token"]), float(one["logprob"])) for one in given]
    except (LookupError, TypeError, ValueError):
        return []
    return [(token, logprob) for token, logprob in candidates if math.isfinite(logprob)]


def wait_asked_for(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a response asks to wait: a number, or until a date; None if not.

    >>> wait_asked_for({"retry-after": "7"}), wait_asked_for({"retry-after-ms": "250"})
    (7.0, 0.25)
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        given = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,12}(\.\d+)?", given):
            return float(given) * unit
        if given and name == "retry-after":
            try:
                until = parsedate_to_datetime(given)
            except ValueError:
                return None
            until = until if until.tzinfo else until.replace(tzinfo=UTC)
            return max(0.0, (until - datetime.now(UTC)).total_seconds())
    return None


def _without(body: Mapping[str, Any], unknown: frozenset[str]) -> dict[str, Any]:
    known = {key: value for key, value in body.items() if key not in unknown}
    if "max_tokens" in unknown:
        known["max_completion_tokens"] = body["max_tokens"]
    return known


def _error_of(received: bytes) -> tuple[str, str]:
    """Return message and code of an error, the message in one line and not too long."""
    text, code = received.decode("utf-8", "replace"), ""
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if isinstance(data, dict):
        error = data.get("error", data)
        if isinstance(error, dict):
            code = str(error.get("code") or "")
            error = error.get("message") or error.get("detail") or data
        text = error if isinstance(error, str) else json.dumps(error)
    text = " ".join(text.split())
    return (text if len(text) <= 300 else f"{text[:300]}...") or "no reason given", code
