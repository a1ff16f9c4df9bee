"""The judge behind a server: against one that misbehaves in every way, and a real one."""

import base64
import contextlib
import importlib.util
import io
import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration
from transformers.utils.chat_template_utils import render_jinja_template

from benchmark_data.load import load_suite
from benchmark_data.references import open_image
from mars2.cli import main
from mars2.judges import (
    TEMPLATES,
    JudgeError,
    Question,
    ServerSettings,
    Verdict,
    identify_judge,
    load_judge,
)
from mars2.judges import chat_server as chat_server_module
from mars2.judges.cached import AnswerCache, CachedJudge
from mars2.judges.chat_server import read_reply, wait_asked_for
from mars2.judges.images import prepare
from mars2.judges.llava_onevision import chat_string
from mars2.judges.openai_api import OpenAIJudge, chat, first_token
from mars2.judges.prompts import CHAT_TEMPLATE
from mars2.store import RunStore

Body = Mapping[str, Any]
CUT = "the connection is cut"

needs_serving = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
    reason="transformers[serving] is not installed (extra `serve`)",
)


def said(text: str | None, top: Sequence[tuple[str, float]] = (), **more: object) -> dict[str, Any]:
    """A chat completion; `top`: candidates for the first token with their probabilities."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    choice |= {"finish_reason": "stop"} | more
    if top:
        candidates = [{"token": token, "logprob": math.log(p)} for token, p in top]
        choice["logprobs"] = {"content": [{**candidates[0], "top_logprobs": candidates}]}
    return {"object": "chat.completion", "choices": [choice]}


class Server:
    """Answers request number 0, 1, ... as a function of number and body says.

    It gives a text; a whole reply; a status and its body, and perhaps headers; or `CUT`.
    """

    def __init__(
        self,
        answer: Callable[[int, Body], object],
        *,
        port: int = 0,
        models: Sequence[Mapping[str, object]] | None = None,
        unlisted: int = 0,
    ) -> None:
        failures = iter([True] * unlisted)  # so often the models cannot be listed
        self.bodies: list[Body] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    server.paths.append(self.path)
                    server.times.append(time.monotonic())
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                given = answer(number, body)
                with lock:
                    server.at_once -= 1
                if given is CUT:
                    return
                if isinstance(given, str):
                    given = said(given)
                if isinstance(given, dict):
                    given = (200, given)
                status, content, headers = (*given, {})[:3]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if not isinstance(content, bytes):
                    content = json.dumps(content).encode()
                with contextlib.suppress(OSError):  # who asked may be gone
                    self.wfile.write(content)

            def do_GET(self) -> None:
                listed = self.path == "/v1/models" and models is not None
                failing = next(failures, False)
                self.send_response(503 if failing else 200 if listed else 404)
                self.end_headers()
                self.wfile.write(json.dumps({"object": "list", "data": models}).encode())

            def log_message(self, *_: object) -> None:
                pass

        class Loopback(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self._server = Loopback(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self._alive = True

    def die(self) -> None:
        """Stop listening."""
        if self._alive:
            self._alive = False
            self._server.shutdown()
            self._server.server_close()


Serve = Callable[..., Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """``serve(answer)``: a server that runs until the test ends; failed requests wait little."""
    monkeypatch.setattr(chat_server_module, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    servers: list[Server] = []

    def start(answer: Callable[[int, Body], object], **options: Any) -> Server:
        servers.append(Server(answer, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.die()
        server._thread.join()


def judge_of(server: Server, **settings: Any) -> OpenAIJudge:
    settings = {"concurrency": 1, "retries": 2, "timeout": 20.0} | settings
    judge = load_judge("openai:critic", server=ServerSettings(base_url=server.url, **settings))
    assert isinstance(judge, OpenAIJudge)
    return judge


def question(test: int = 0, *, aspect: str = "subject", form: str = "short") -> Question:
    """About a red image and one of another grey, whose value tells the questions apart."""
    return Question(
        aspect,  # type: ignore[arg-type]  # one of the two
        Image.new("RGB", (8, 8), "red"),
        Image.new("RGB", (8, 8), (test, test, test)),
        "" if aspect == "subject" else "oil",
        TEMPLATES[f"{aspect}-{form}"],
    )


def grey_of(body: Body) -> int:
    """The grey of the image a request is about."""
    return images_of(body)[1].getpixel((0, 0))[0]


def images_of(body: Body) -> list[Image.Image]:
    urls = [
        part["image_url"]["url"]
        for part in body["messages"][0]["content"]
        if part["type"] == "image_url"
    ]
    heads, contents = zip(*(url.split(",") for url in urls), strict=True)
    assert set(heads) == {"data:image/png;base64"}
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in contents]


def test_what_a_server_is_asked(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, random_image
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    server = serve(lambda number, body: "Yes")
    reference, test = random_image(1, (600, 300)), random_image(2, (30, 40))
    asked = Question("style", reference, test, "oil", TEMPLATES["style-short"])
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    judge = load_judge("openai:some/critic")
    assert judge.ask([asked]) == [Verdict(True, None, None, "Yes")]
    (body,), (headers,) = server.bodies, server.headers
    assert server.paths == ["/v1/chat/completions"]
    assert headers["Authorization"] == "Bearer sk-secret"
    assert {key: value for key, value in body.items() if key != "messages"} == {
        "model": "some/critic",
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
        "repetition_penalty": 1.0,
    }
    (message,) = body["messages"]
    assert message["role"] == "user"
    parts = message["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url", "text"]
    text = "<image>".join(part["text"] for part in parts if part["type"] == "text")
    assert text == asked.text
    for sent, image in zip(images_of(body), (reference, test), strict=True):
        assert (sent.format, sent.mode) == ("PNG", "RGB")
        assert sent.tobytes() == prepare(image).tobytes()
    assert judge.id == f"openai:some/critic@127.0.0.1:{server.port}"
    assert not judge.published


@pytest.mark.parametrize(
    ("entry", "revision"),
    [
        ({}, ""),
        ({"created": 1, "owned_by": "somebody"}, ""),
        ({"root": "critic"}, ""),
        ({"root": "/models/llava critic"}, "#/models/llava_critic"),
        ({"root": "/models/critic", "revision": "abc"}, "#abc"),
        ({"revision": None, "digest": "sha256:1"}, "#sha256:1"),
    ],
)
def test_the_id_tells_the_revision_that_the_server_tells(
    serve: Serve, entry: dict[str, object], revision: str
) -> None:
    models = [{"id": "other", "root": "/models/other"}, {"id": "critic", **entry}]
    server = serve(lambda number, body: "Yes", models=models)
    assert judge_of(server).id == f"openai:critic@127.0.0.1:{server.port}{revision}"
    assert server.bodies == []


@pytest.mark.parametrize("models", [[], ["critic"], [{"name": "critic"}]])
def test_a_list_of_models_that_is_none_tells_no_revision(serve: Serve, models) -> None:
    server = serve(lambda number, body: "Yes", models=models)
    assert judge_of(server).id == f"openai:critic@127.0.0.1:{server.port}"


def test_a_list_of_models_that_cannot_be_had_now_is_asked_for_again(serve: Serve) -> None:
    # without it the judge would be one of no revision, and other weights' answers its own
    models = [{"id": "critic", "root": "/models/x"}]
    server = serve(lambda number, body: "Yes", models=models, unlisted=2)
    assert judge_of(server, retries=2).id.endswith("#/models/x")
    server = serve(lambda number, body: "Yes", models=models, unlisted=2)
    with pytest.raises(JudgeError, match=r"no answer from http.*/v1/models: HTTP 503; is the"):
        judge_of(server, retries=1)


def test_a_temperature_is_asked_for_and_makes_another_judge(serve: Serve, own_cache: Path) -> None:
    server = serve(lambda number, body: "Yes" if body["temperature"] == 0 else "No")
    usual, warm = judge_of(server), judge_of(server, temperature=0.7)
    assert warm.id == f"{usual.id} temperature 0.7"
    settings = ServerSettings(base_url=server.url, temperature=0.7)
    assert identify_judge("openai:critic", server=settings) == warm.id
    for judge, answer in ((usual, True), (warm, False)):
        (verdict,) = CachedJudge(judge, AnswerCache()).ask([question()])
        assert verdict.answer is answer
    assert [body["temperature"] for body in server.bodies] == [0, 0.7]


def test_two_servers_share_no_answer(serve: Serve, own_cache: Path) -> None:
    one, other = serve(lambda number, body: "Yes"), serve(lambda number, body: "No")
    for server in (one, other, one):
        load_judge("openai:critic", server=ServerSettings(base_url=server.url), cache=True).ask(
            [question()]
        )
    assert (len(one.bodies), len(other.bodies)) == (1, 1)


def test_no_key_no_header(serve: Serve) -> None:
    server = serve(lambda number, body: "No")
    assert judge_of(server).ask([question()])[0].answer is False
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("candidates", "p_yes", "margin"),
    [
        ([("Yes", 0.5), (" yes", 0.1), ("No", 0.2), ("Maybe", 0.2)], 0.75, math.log(2.5)),
        ([("No", 0.6), ("Yes", 0.2)], 0.25, -math.log(3)),
        ([("Yes", 0.9)], 1.0, None),
        ([("NO", 0.9), ("Not", 0.1)], 0.0, None),
        ([("Maybe", 0.9)], None, None),
        ([], None, None),
    ],
)
def test_probability_of_yes(candidates, p_yes: float | None, margin: float | None) -> None:
    found = first_token([(token, math.log(p)) for token, p in candidates])
    assert found == (pytest.approx(p_yes), pytest.approx(margin))


def test_improbable_words_do_not_overflow() -> None:
    assert first_token([("Yes", -9999.0), ("No", 0.0)]) == (pytest.approx(0.0), -9999.0)
    assert first_token([("Yes", -9999.0), ("No", -9999.0)]) == (0.5, 0.0)


def test_probabilities_are_read_off_the_first_token(serve: Serve) -> None:
    server = serve(lambda number, body: said(" Yes", [(" Yes", 0.6), ("No", 0.2), ("no", 0.1)]))
    (verdict,) = judge_of(server).ask([question()])
    assert (verdict.answer, verdict.raw) == (True, " Yes")
    assert verdict.p_yes == pytest.approx(2 / 3)
    assert verdict.margin == pytest.approx(math.log(3))


def test_probabilities_that_are_none_are_left_out(serve: Serve) -> None:
    odd = said("Yes")
    odd["choices"][0]["logprobs"] = {"content": [{"top_logprobs": [{"token": "Yes"}]}]}
    nothing = said("No", logprobs={"content": []})
    server = serve(lambda number, body: (odd, nothing)[number])
    verdicts = judge_of(server).ask([question(), question()])
    assert [(verdict.answer, verdict.p_yes) for verdict in verdicts] == [
        (True, None),
        (False, None),
    ]


REFUSALS = {
    "logprobs": "Requested sample logprobs of 20, which is greater than max allowed: 5",
    "repetition_penalty": "Unrecognized request argument supplied: repetition_penalty",
    "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
}


@pytest.mark.parametrize(
    ("refuses", "left"),
    [
        ({"logprobs"}, {"max_tokens", "repetition_penalty"}),
        ({"repetition_penalty"}, {"max_tokens", "logprobs", "top_logprobs"}),
        (
            {"max_tokens", "repetition_penalty", "logprobs"},
            {"max_completion_tokens"},
        ),
    ],
)
def test_fields_that_a_server_names_as_unknown_are_left_out(serve: Serve, refuses, left) -> None:
    def answer(number: int, body: Body) -> object:
        for name in sorted(refuses & set(body)):
            return 400, {"error": {"message": REFUSALS[name], "code": "invalid"}}
        return "Yes"

    server = serve(answer)
    judge = judge_of(server)
    for _ in range(2):
        assert judge.ask([question(), question()]) == [Verdict(True, None, None, "Yes")] * 2
    assert set(server.bodies[-1]) == {"model", "messages", "temperature", *left}
    assert len(server.bodies) == 4 + len(refuses)  # what is unknown is found out once


def test_a_server_that_does_not_say_what_it_refuses_is_asked_plainly(serve: Serve) -> None:
    server = serve(lambda n, body: (422, b"no") if "logprobs" in body else "No")
    assert judge_of(server).ask([question()])[0].answer is False
    assert set(server.bodies[-1]) == {"model", "messages", "temperature", "max_tokens"}


def test_an_answer_that_begins_otherwise_is_generated_and_read(serve: Serve) -> None:
    top = [("**", 0.7), ("Yes", 0.3)]
    server = serve(lambda n, body: said("**", top) if body["max_tokens"] == 1 else "**No**, not it")
    assert judge_of(server).ask([question()]) == [Verdict(False, None, None, "**No**, not it")]
    assert [body["max_tokens"] for body in server.bodies] == [1, 16]
    assert "logprobs" not in server.bodies[1]


@pytest.mark.parametrize(
    ("reply", "raw"),
    [
        (said("I cannot say."), "I cannot say."),
        (said(None), "(it said nothing; finish reason 'stop')"),
        (said("", finish_reason="length"), "(it said nothing; finish reason 'length')"),
        (said(None, message={"content": None, "refusal": "No, I can't."}), "No, I can't."),
        (
            (400, {"error": {"message": "unsafe image", "code": "content_filter"}}),
            "HTTP 400: unsafe image",
        ),
    ],
)
def test_neither_yes_nor_no_is_unscored_and_final(serve: Serve, reply, raw: str) -> None:
    server = serve(lambda number, body: reply)
    assert judge_of(server).ask([question()]) == [Verdict(None, None, None, raw)]
    assert len(server.bodies) <= 2


def test_explained_and_score_forms(serve: Serve) -> None:
    explained = said("Yes, the same mug.", [("Yes", 0.8), ("No", 0.2)])
    hedged = said("**Yes**, it is.", [("**", 0.8), ("Yes", 0.1), ("No", 0.1)])
    server = serve(lambda number, body: (explained, hedged, "Score: 51", "50", "many")[number])
    asked = [question(form="explained")] * 2 + [question(form="score", aspect="style")] * 3
    judge = judge_of(server)
    verdicts = [verdict for one in asked for verdict in judge.ask([one])]
    assert [verdict.answer for verdict in verdicts] == [True, True, True, False, None]
    assert [verdict.p_yes for verdict in verdicts] == [pytest.approx(0.8), None, None, None, None]
    assert [body["max_tokens"] for body in server.bodies] == [256, 256, 16, 16, 16]
    assert ["logprobs" in body for body in server.bodies] == [True, True, False, False, False]


PASSING = {
    "500": (500, {"error": "worker died"}),
    "503 in HTML": (503, b"<html>busy</html>"),
    "429": (429, {"error": {"message": "slow down"}}),
    "cut": CUT,
    "garbage": (200, b"\xff\x00 garbage"),
    "an error with 200": (200, {"error": "oops"}),
    "no choices": (200, {"choices": []}),
    "a number": (200, said(None, message={"content": 7})),
    "too long": (200, b"x" * 4_100_000),
}


@pytest.mark.parametrize("kind", PASSING)
def test_what_may_pass_is_tried_again(serve: Serve, kind: str) -> None:
    server = serve(lambda number, body: PASSING[kind] if number < 2 else "Yes")
    assert judge_of(server).ask([question()]) == [Verdict(True, None, None, "Yes")]
    assert len(server.bodies) == 3


@pytest.mark.parametrize("kind", PASSING)
def test_what_does_not_pass_is_unscored_with_the_reason(serve: Serve, kind: str) -> None:
    server = serve(lambda n, body: PASSING[kind] if grey_of(body) == 1 else "Yes")
    good, bad, after = judge_of(server).ask([question(0), question(1), question(2)])
    assert good == after == Verdict(True, None, None, "Yes")
    assert (bad.answer, bad.p_yes, bad.margin, bad.failed) == (None, None, None, True)
    assert bad.raw.startswith("(no answer: ")
    assert "\n" not in bad.raw
    assert len(bad.raw) < 500
    assert len(server.bodies) == 1 + 3 + 1


def test_waits_grow_and_are_jittered(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server_module, "FIRST_WAIT", 0.08)
    monkeypatch.setattr(chat_server_module, "LONGEST_WAIT", 0.2)
    server = serve(lambda number, body: (500, b"") if number < 4 else "Yes")
    judge_of(server, retries=4).ask([question()])
    waits = [after - before for before, after in itertools.pairwise(server.times)]
    for wait, longest in zip(waits, (0.08, 0.16, 0.2, 0.2), strict=True):
        assert longest / 2 <= wait  # at most `longest`, but this machine may be busy


def test_all_questions_wait_as_long_as_the_server_asks(serve: Serve) -> None:
    def answer(number: int, body: Body) -> object:
        if number < 2:
            return 429, {"error": "rate limit"}, {"Retry-After": "1"}
        return "Yes"

    server = serve(answer)
    judge = judge_of(server, concurrency=2, retries=0)  # waits asked for are no retries
    verdicts = judge.ask([question(grey) for grey in range(6)])
    assert [verdict.answer for verdict in verdicts] == [True] * 6
    assert min(server.times[2:]) - server.times[0] >= 1.0


def test_questions_that_waited_for_the_server_do_not_come_back_all_at_once(serve: Serve) -> None:
    def answer(number: int, body: Body) -> object:
        return (429, {"error": "rate limit"}, {"Retry-After": "1"}) if number < 8 else "Yes"

    server = serve(answer)
    judge = judge_of(server, concurrency=8, retries=0)
    assert all(verdict.answer for verdict in judge.ask([question(grey) for grey in range(8)]))
    again = server.times[8:]
    assert max(again) - min(again) > 0.1  # of a second over which they spread by chance


def test_a_wait_too_long_is_a_failure(serve: Serve) -> None:
    server = serve(lambda n, body: (429, {"error": "daily quota"}, {"Retry-After": "86400"}))
    (verdict,) = judge_of(server).ask([question()])
    assert verdict.raw == "(no answer: HTTP 429: daily quota (it asks to wait 86400 s))"
    assert verdict.failed
    assert len(server.bodies) == 1


def test_a_server_that_asks_to_wait_no_time_at_all_is_not_asked_forever(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_server_module, "MOST_ASKED_WAIT", 0.035)
    server = serve(lambda number, body: (503, {"error": "busy"}, {"Retry-After": "0"}))
    (verdict,) = judge_of(server, retries=0).ask([question()])
    assert verdict.raw == "(no answer: HTTP 503: busy (it asks to wait 0 s))"
    assert len(server.bodies) == 4


def test_retry_after_as_a_date() -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert wait_asked_for({"retry-after": until}) == pytest.approx(90, abs=5)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=90))
    assert wait_asked_for({"retry-after": past}) == 0.0
    for given in ({}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after-ms": "x"}):
        assert wait_asked_for(given) is None


def test_slowness_is_cut_off(serve: Serve) -> None:
    server = serve(lambda n, body: time.sleep(0 if grey_of(body) else 1.5) or "Yes")
    start = time.monotonic()
    judge = judge_of(server, timeout=0.3, retries=1)
    slow, quick = judge.ask([question(0), question(9)])
    assert (slow.answer, slow.failed, quick.answer) == (None, True, True)
    assert "no answer within 0.3 s" in slow.raw
    assert time.monotonic() - start < 1.5


def test_a_reply_in_drops_is_cut_off(serve: Serve) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            try:
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    settings = ServerSettings(base_url=url, timeout=0.4, retries=0)
    (verdict,) = OpenAIJudge("critic", url, settings=settings).ask([question()])
    assert verdict.raw == "(no answer: no whole answer within 0.4 s)"
    thread.join()
    listener.close()


def test_a_refused_question_is_unscored_and_the_others_are_asked(serve: Serve) -> None:
    server = serve(lambda n, body: (400, {"error": "too large"}) if grey_of(body) else "Yes")
    verdicts = judge_of(server).ask([question(0), *(question(1) for _ in range(5)), question(0)])
    assert [verdict.answer for verdict in verdicts] == [True, *[None] * 5, True]
    assert {(v.raw, v.failed) for v in verdicts[1:-1]} == {
        ("(no answer: HTTP 400: too large)", True)
    }
    assert len(server.bodies) == 7


def test_nothing_more_is_asked_of_a_server_that_died(serve: Serve) -> None:
    server = serve(lambda number, body: "Yes" if number < 2 else CUT)
    judge = judge_of(server, retries=1)
    verdicts = judge.ask([question(grey) for grey in range(20)])
    assert [verdict.answer for verdict in verdicts] == [True] * 2 + [None] * 18
    assert all(verdict.failed for verdict in verdicts[2:])
    assert len({verdict.raw for verdict in verdicts[2:]}) == 1
    assert len(server.bodies) == 2 + 3 * 2
    assert judge.ask([question()])[0] == verdicts[-1]
    assert len(server.bodies) == 8


def test_unknown_fields_are_found_out_by_several_questions_at_once(serve: Serve) -> None:
    both_asked = threading.Barrier(2)

    def answer(number: int, body: Body) -> object:
        if number < 2:
            both_asked.wait(20)
        if "logprobs" in body:
            time.sleep(0.3 * grey_of(body))  # refused when the other one has been answered
            return 400, {"error": "no"}
        return "Yes"

    verdicts = judge_of(serve(answer), concurrency=2).ask([question(0), question(1)])
    assert [verdict.answer for verdict in verdicts] == [True, True]


def test_a_server_that_is_not_there(serve: Serve) -> None:
    server = serve(lambda number, body: "Yes")
    server.die()
    with pytest.raises(JudgeError, match=r"no answer from http.*/v1/models: ConnectError"):
        judge_of(server)


def test_a_server_that_goes_before_it_answers(serve: Serve) -> None:
    server = serve(lambda number, body: "Yes")
    judge = judge_of(server, concurrency=4)
    server.die()
    with pytest.raises(
        JudgeError, match=r"no answer from http.*/v1/chat/completions: ConnectError"
    ):
        judge.ask([question(grey) for grey in range(4)])


@pytest.mark.parametrize("status", [401, 404, 301])
def test_what_is_about_all_requests_ends_at_once(
    serve: Serve, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = serve(lambda number, body: (status, {"error": {"message": "not sk-secret"}}))
    with pytest.raises(
        JudgeError, match=rf"HTTP {status}: not \(the key\); is the server"
    ) as caught:
        judge_of(server).ask([question(grey) for grey in range(5)])
    assert "sk-secret" not in str(caught.value)
    assert len(server.bodies) == 1


def test_a_server_that_refuses_everything(serve: Serve) -> None:
    server = serve(lambda number, body: (400, {"error": "this model sees no images"}))
    with pytest.raises(JudgeError, match="this model sees no images"):
        judge_of(server).ask([question(grey) for grey in range(9)])
    assert len(server.bodies) == 2 * 3  # with and without the optional fields


def test_questions_are_asked_at_once_and_answered_in_order(serve: Serve) -> None:
    together = threading.Barrier(4)

    def answer(number: int, body: Body) -> object:
        if number < 4:
            together.wait(timeout=15)
        time.sleep(0.02 if grey_of(body) % 3 else 0.01)
        return "Yes" if grey_of(body) % 2 else "No"

    server = serve(answer)
    asked = [question(grey, aspect=("subject", "style")[grey % 2]) for grey in range(12)]
    verdicts = judge_of(server, concurrency=4).ask(asked)
    assert [verdict.answer for verdict in verdicts] == [grey % 2 == 1 for grey in range(12)]
    assert server.most_at_once == 4


def test_interrupting_does_not_wait(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server_module, "FIRST_WAIT", 60.0)
    monkeypatch.setattr(chat_server_module, "LONGEST_WAIT", 60.0)

    def answer(number: int, body: Body) -> object:
        if number == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return 500, b""

    start = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            judge_of(serve(answer), concurrency=2).ask([question(grey) for grey in range(50)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"server": ServerSettings()}, "give --base-url, or set OPENAI_BASE_URL"),
        ({"server": ServerSettings(base_url="localhost:8000")}, "write it as http://"),
        ({"server": ServerSettings(base_url="http://")}, "write it as http://"),
        ({"layout": "pad"}, "leave out layout and dtype"),
        ({"dtype": "float16"}, "leave out layout and dtype"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    options = {"server": ServerSettings(base_url="http://localhost:1/v1")} | change
    with pytest.raises(JudgeError, match=words):
        load_judge("openai:critic", **options)


def test_settings_out_of_range_are_refused() -> None:
    for change in ({"timeout": 0.0}, {"timeout": math.nan}, {"concurrency": 0}, {"retries": -1}):
        with pytest.raises(JudgeError, match="give more than 0 seconds"):
            ServerSettings(**change)
    for temperature in (-0.1, math.nan, math.inf):
        with pytest.raises(JudgeError, match=r"temperature is .*; give 0 or more"):
            ServerSettings(temperature=temperature)


def test_a_local_judge_takes_no_server(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text('{"subject": "Yes"}')
    server = ServerSettings(base_url="http://localhost:1/v1")
    for judge in (f"scripted:{tmp_path / 'answers.json'}", f"llava_onevision:{tmp_path}"):
        with pytest.raises(JudgeError, match="asks no server"):
            load_judge(judge, server=server)
        with pytest.raises(JudgeError, match=r"leave out temperature 0\.5"):
            load_judge(judge, server=ServerSettings(temperature=0.5))


def test_a_key_with_odd_characters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\n-secret")
    with pytest.raises(JudgeError, match="OPENAI_API_KEY holds characters") as caught:
        load_judge("openai:critic", server=ServerSettings(base_url="http://localhost:1/v1"))
    assert "secret" not in str(caught.value)


def test_a_reply_of_another_server_has_no_refusal() -> None:
    reply = read_reply(b'{"choices": [{"message": {"content": "Yes"}}]}')
    assert (reply.text, reply.finish, reply.refusal, list(reply.first)) == ("Yes", "", "", [])


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """``command("score", ...)`` -> exit code, stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mars2", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(exit_.value.code or 0), capsys.readouterr().err

    return call


CASES = ("cat_ink", "cat_oil", "dog_ink", "dog_oil")
QUESTIONS = {"cat": 3, "dog": 2}  # references of the subject, and one of the style


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle(serve: Serve, world, tmp_path: Path, command) -> None:
    images = tmp_path / "mine"
    for number, case in enumerate(CASES):
        for seed in range(2):
            path = images / case / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = 10 * number + seed
            Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)

    def by_grey(body: Body) -> object:
        grey = grey_of(body)
        return said("No" if grey == 1 else "Yes", [("Yes", 0.9), ("No", 0.1)])

    def until_it_dies(number: int, body: Body) -> object:
        if number == 8:
            dying.die()
        return by_grey(body) if number < 8 else CUT

    def score(server: Server, out: Path) -> tuple[int, str]:
        options = ("--metrics", "mars2", "--batch-size", 2, "--judge-concurrency", 1)
        options += ("--judge", "openai:critic", "--base-url", server.url, "--judge-retries", 0)
        options += ("--no-cache",)
        return command("score", images, "--suite", world.suite, "--out", out, *options)

    whole = serve(lambda number, body: by_grey(body))
    assert score(whole, tmp_path / "whole") == (0, "")
    assert len(whole.bodies) == 4 * 3 + 4 * 2

    out = tmp_path / "out"
    dying = serve(until_it_dies)
    code, error = score(dying, out)
    assert code == 1
    # It answered the 6 questions about the first two images, and of the next two the style's.
    assert "mars2: 6 images are not scored whole: (no answer: " in error
    assert "the same command again" in error
    assert error.count("\n") == 1
    records = RunStore.open(out).records()
    assert len(records) == 8 * 3
    failed = [record for record in records if record.failed]
    assert {(record.case, record.seed) for record in failed} == {
        (case, seed) for case in CASES[1:] for seed in (0, 1)
    }
    assert all(record.failed.startswith("(no answer: ") for record in failed)
    styles = [record for record in failed if record.metric == "mars2_style"]
    assert [(record.case[:3], record.value) for record in styles] == [("dog", None)] * 4
    assert all(record.detail["raw"] == [record.failed] for record in styles)
    summary = json.loads((out / "scores.json").read_text())
    joint = next(one for one in summary["scores"] if one["metric"] == "mars2")
    assert (joint["average"]["n"], joint["average"]["n_unscored"]) == (2, 6)
    assert joint["average"]["value"] == 0.5
    assert summary["published_judges"] == []

    lines = (out / "records.jsonl").read_bytes()
    code, error = score(dying, out)  # still dead
    assert (code, error.count("\n")) == (2, 1)
    assert "no answer from" in error
    assert (out / "records.jsonl").read_bytes() == lines

    back = serve(lambda number, body: by_grey(body), port=dying.port)
    assert score(back, out) == (0, "")
    assert len(back.bodies) == 2 * 3 + 4 * 2
    assert {grey_of(body) for body in back.bodies} == {10, 11, 20, 21, 30, 31}
    elsewhere = [  # the judge's id names the server's port
        replace(record, judge=record.judge.replace(str(whole.port), str(back.port)))
        for record in RunStore.open(tmp_path / "whole").records()
    ]
    assert sorted(map(repr, RunStore.open(out).records())) == sorted(map(repr, elsewhere))
    assert score(back, out) == (0, "")  # nothing left to ask
    assert len(back.bodies) == 2 * 3 + 4 * 2


def test_a_server_is_checked_with_the_options_of_scoring(
    serve: Serve, world, tmp_path: Path, command
) -> None:
    server = serve(lambda number, body: "Yes", models=[{"id": "critic", "revision": "r1"}])
    out = tmp_path / "controls.json"
    options = ("--judge", "openai:critic", "--base-url", server.url, "--judge-timeout", 20)
    options += ("--judge-retries", 0, "--judge-concurrency", 2, "--no-cache", "--out", out)
    code, error = command("judge", "check", "--suite", world.suite, *options)
    assert (code, error) == (0, "")
    assert server.bodies
    assert f"openai:critic@127.0.0.1:{server.port}#r1" in out.read_text()


def test_the_shipped_template_gives_the_published_prompt() -> None:
    for form in ("short", "explained", "score"):
        for aspect in ("subject", "style"):
            text = question(aspect=aspect, form=form).text
            rendered, _ = render_jinja_template(
                [chat(text, "a", "b")],
                chat_template=CHAT_TEMPLATE.read_text(),
                add_generation_prompt=True,
            )
            assert rendered == [chat_string(text)]


CRITIC = Path(__file__).parents[3] / "benchmark_data/miniworld/weights/critic"


@pytest.fixture
def transformers_serve(tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """URL and process of `transformers serve` with the miniature critic, named "critic"."""
    shutil.copytree(CRITIC, tmp_path / "critic")
    shutil.copy(CHAT_TEMPLATE, tmp_path / "critic" / "chat_template.jinja")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    program = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    options = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", "critic", *options],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.kill()
        process.wait()


def most_likely_answer(folder: Path, question: Question) -> str:
    """The first token that transformers computes for the published prompt, images padded."""
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    inputs = processor(
        text=[chat_string(question.text)],
        images=[[prepare(question.reference), prepare(question.test)]],
        return_tensors="pt",
    )
    with torch.inference_mode():
        logits = model.eval()(**inputs, logits_to_keep=1).logits
    return str(processor.decode(logits[0, -1].argmax()))


@needs_serving
@pytest.mark.slow
def test_transformers_serve(
    transformers_serve: tuple[str, "subprocess.Popen[bytes]"],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(chat_server_module, "FIRST_WAIT", 0.05)
    url, process = transformers_serve
    suite = load_suite("miniworld")
    asked = [
        Question(
            aspect,
            open_image(one.references[0].path),
            open_image(other.references[-1].path),
            one.phrase if aspect == "style" else "",
            TEMPLATES[f"{aspect}-short"],
        )
        for aspect, concepts in (("subject", suite.subjects), ("style", suite.styles))
        for one in list(concepts.values())[:2]
        for other in list(concepts.values())[:2]
    ]
    settings = ServerSettings(base_url=url, concurrency=2, retries=1)
    judge = load_judge("openai:critic", server=settings)
    verdicts = judge.ask(asked)
    expected = [most_likely_answer(tmp_path / "critic", one) for one in asked]
    assert {*expected} == {"Yes", "No"}
    assert verdicts == [Verdict(text == "Yes", None, None, text) for text in expected]
    (score,) = judge.ask([replace(asked[0], template=TEMPLATES["subject-score"])])
    assert not score.failed
    process.kill()
    process.wait()
    after = judge.ask(asked[:4])
    assert all(verdict.failed and verdict.answer is None for verdict in after)
    assert "ConnectError" in after[0].raw
