"""A small suite in a file, and a web server on loopback that gives its images."""

import http.server
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

SMALL_SUITE = """
name = "small"
title = "Two subjects and two styles"
case_prompt = "a sks {subject} in {style} style"

[generation]
resolution = 64
steps = 2
guidance_scale = 5.0
num_seeds = 3

[models]
base = "./models/sdxl"
judge = "scripted:./answers.json"
clip = "ViT-B-32-quickgelu:openai"
dino = "facebook/dino-vits16"

[sources.web]
licence = "CC0"
url = "http://127.0.0.1:1/{concept}/{file}"

[subjects.mug]
split = "test"
phrase = "mug"
prompt = "a sks mug"
source = "web"
references = ["00.png", "01.png"]

[subjects.red_hat]
split = "train"
phrase = "hat"
prompt = "a sks hat"
references = ["images/hat.png"]

[styles.oil_painting2]
split = "test"
phrase = "oil"
prompt = "a village in oil style"
references = [{ file = "oil.jpg", url = "http://127.0.0.1:1/oil.jpg", licence = "PD" }]

[styles.crayon]
split = "train"
phrase = "crayon"
prompt = "a bear in crayon style"
references = [{ file = "bear.png", manual = "ask the artist" }]
"""


def image_bytes(
    colour: tuple[int, int, int] = (200, 30, 30), form: str = "PNG", size: tuple[int, int] = (8, 6)
) -> bytes:
    """An image of one colour in a file format."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def png() -> Callable[..., bytes]:
    return image_bytes


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of these tests: never the user's."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("MARS2_CACHE", str(cache))
    return cache


@pytest.fixture
def small_suite(tmp_path: Path) -> Callable[..., Path]:
    """``small_suite((old, new), ...)``: the suite's file, with parts of its text replaced."""

    def write(*changes: tuple[str, str], name: str = "small.toml") -> Path:
        text = SMALL_SUITE
        for old, new in changes:
            assert old in text, f"the small suite has no {old!r}"
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / "hat.png").write_bytes(image_bytes((0, 0, 255)))
        return path

    return write


@dataclass
class Web:
    """A server and what it does: each path has a list of answers, the last of which is repeated."""

    url: str
    answers: dict[str, list[tuple[int, bytes, dict[str, str]]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def give(self, path: str, *answers: bytes | int, **headers: str) -> None:
        """Answer a path with bytes, or with an error's number."""
        self.answers[path] = [
            (200, answer, headers) if isinstance(answer, bytes) else (answer, b"no", headers)
            for answer in answers
        ]


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    for variable in ("HF_HUB_OFFLINE", "MARS2_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = Web("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the base class's name
            state.requests.append(self.path)
            answers = state.answers.get(self.path, [(404, b"no", {})])
            status, body, headers = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield state
        server.shutdown()
        thread.join()
