"""Fetching references, from a server on loopback."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmark_data.fetch import ATTEMPTS, fetch
from benchmark_data.load import load_suite
from benchmark_data.suite import Suite, SuiteError

FILES = ["mug/00.png", "mug/01.png", "oil_painting2/oil.jpg"]


@pytest.fixture
def online(small_suite: Callable[..., Path], web: Any, png: Callable[..., bytes]) -> Suite:
    """The small suite, whose images the server gives."""
    web.give("/mug/00.png", png((1, 0, 0)))
    web.give("/mug/01.png", png((2, 0, 0)))
    web.give("/oil.jpg", png((3, 0, 0), "JPEG"))
    return load_suite(small_suite(("http://127.0.0.1:1", web.url)))


@pytest.fixture
def folder(own_cache: Path) -> Path:
    return own_cache / "references" / "small"


def digests(folder: Path) -> dict[str, dict[str, str]]:
    data = json.loads((folder / "digests.json").read_text())
    assert isinstance(data, dict)
    return data


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part")]


def test_fetches_verifies_and_records(
    online: Suite, web: Any, folder: Path, png: Callable[..., bytes]
) -> None:
    lines: list[str] = []
    report = fetch(online, progress=lines.append)
    assert report.fetched == tuple(folder / name for name in FILES)
    assert (folder / "mug/01.png").read_bytes() == png((2, 0, 0))
    assert [path.name for path in report.present] == ["hat.png"]  # comes with the suite
    assert report.failed == ()
    assert report.manual == (
        f"crayon/bear.png: ask the artist and put it at {folder / 'crayon/bear.png'}",
    )
    assert [line.partition(":")[0] for line in lines] == FILES
    assert {name: entry["sha256"] for name, entry in digests(folder).items()} == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES
    }
    assert leftovers(folder) == []
    again = load_suite(online.source)
    assert again.subjects["mug"].references[0].path == folder / "mug/00.png"


def test_fetches_only_what_is_missing(online: Suite, web: Any, folder: Path) -> None:
    fetch(online)
    (folder / "mug/01.png").unlink()
    web.requests.clear()
    report = fetch(online)
    assert web.requests == ["/mug/01.png"]
    assert report.fetched == (folder / "mug/01.png",)
    assert len(report.present) == 3


def test_what_was_put_there_by_hand_is_taken(
    online: Suite, folder: Path, png: Callable[..., bytes]
) -> None:
    (folder / "crayon").mkdir(parents=True)
    (folder / "crayon/bear.png").write_bytes(png())
    report = fetch(online)
    assert report.manual == ()
    assert folder / "crayon/bear.png" in report.present
    (folder / "crayon/bear.png").write_bytes(png((9, 9, 9)))
    (line,) = fetch(online).manual
    assert "the one there is not it" in line
    assert "has sha256" in line


def test_a_damaged_image_is_fetched_again(
    online: Suite, folder: Path, png: Callable[..., bytes]
) -> None:
    fetch(online)
    (folder / "mug/00.png").write_bytes(png((1, 0, 0))[:-20])
    assert fetch(online).fetched == (folder / "mug/00.png",)
    assert (folder / "mug/00.png").read_bytes() == png((1, 0, 0))


def test_an_unrecorded_truncated_image_is_fetched_again(
    online: Suite, folder: Path, png: Callable[..., bytes]
) -> None:
    (folder / "mug").mkdir(parents=True)
    (folder / "mug/00.png").write_bytes(png()[:40])
    assert folder / "mug/00.png" in fetch(online).fetched


def test_a_source_that_gives_another_image_is_refused(
    online: Suite, web: Any, folder: Path, png: Callable[..., bytes]
) -> None:
    fetch(online)
    web.give("/mug/00.png", png((7, 7, 7)))
    (folder / "mug/00.png").unlink()
    (line,) = fetch(online).failed
    assert line.startswith(f"mug/00.png: what {web.url}/mug/00.png gives has sha256 ")
    assert f"to accept it, delete its entry in {folder / 'digests.json'}" in line
    assert f"put it at {folder / 'mug/00.png'}" in line
    assert not (folder / "mug/00.png").exists()
    assert leftovers(folder) == []


def test_a_pinned_digest_is_held(
    small_suite: Callable[..., Path], web: Any, folder: Path, png: Callable[..., bytes]
) -> None:
    right = hashlib.sha256(png((3, 0, 0))).hexdigest()
    web.give("/oil.jpg", png((3, 0, 0)))

    def failed(digest: str) -> tuple[str, ...]:
        pinned = ('file = "oil.jpg"', f'file = "oil.jpg", sha256 = "{digest}"')
        suite = load_suite(small_suite(("http://127.0.0.1:1", web.url), pinned))
        return tuple(line for line in fetch(suite).failed if line.startswith("oil"))

    (line,) = failed("0" * 64)
    assert "expected 000000000000..." in line
    assert "digests.json" not in line  # the suite decides, not the cache
    assert failed(right) == ()


def test_another_url_is_another_image(
    small_suite: Callable[..., Path], online: Suite, web: Any, folder: Path, png: Any
) -> None:
    fetch(online)
    web.give("/new.jpg", png((4, 0, 0)))
    moved = load_suite(
        small_suite(("127.0.0.1:1/oil.jpg", "127.0.0.1:1/new.jpg"), ("http://127.0.0.1:1", web.url))
    )
    assert fetch(moved).fetched == (folder / "oil_painting2/oil.jpg",)
    assert (folder / "oil_painting2/oil.jpg").read_bytes() == png((4, 0, 0))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (404, "answered 404 Not Found"),
        (b"<html>please log in</html>", "is no image that can be read to its end"),
        (b"", "is no image that can be read to its end"),
    ],
)
def test_one_failure_does_not_stop_the_others(
    online: Suite, web: Any, folder: Path, body: bytes | int, message: str
) -> None:
    web.give("/mug/00.png", body)
    report = fetch(online)
    (line,) = report.failed
    assert message in line
    assert line.startswith("mug/00.png: ")
    assert "\n" not in line
    assert len(report.fetched) == 2
    assert web.requests.count("/mug/00.png") == 1
    assert leftovers(folder) == []


def test_a_truncated_download_is_refused(
    online: Suite, web: Any, folder: Path, png: Callable[..., bytes]
) -> None:
    web.give("/mug/00.png", png()[:40])
    (line,) = fetch(online).failed
    assert "is no image that can be read to its end" in line
    assert not (folder / "mug/00.png").exists()


def test_tries_again_when_the_server_is_busy(
    online: Suite, web: Any, png: Callable[..., bytes]
) -> None:
    web.give("/mug/00.png", 503, 429, png((1, 0, 0)))
    assert fetch(online, pause=0.001).failed == ()
    assert web.requests.count("/mug/00.png") == 3


def test_waits_as_long_as_the_server_asks(
    online: Suite, web: Any, png: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("benchmark_data.fetch.time.sleep", waits.append)
    web.give("/mug/00.png", 429, png((1, 0, 0)), Retry_After="7")
    assert fetch(online).failed == ()
    assert waits == [7.0]
    web.give("/mug/01.png", 429, Retry_After="9999")
    fetch(online, root=Path(online.source).parent / "other")
    assert waits[1:] == [60.0] * (ATTEMPTS - 1)


def test_a_connection_that_breaks_off_is_tried_again(
    online: Suite, web: Any, folder: Path, png: Callable[..., bytes]
) -> None:
    web.give("/mug/00.png", png(), Content_Length="9999")
    (line,) = fetch(online, pause=0.001).failed
    assert "/mug/00.png broke off: " in line
    assert web.requests.count("/mug/00.png") == ATTEMPTS
    assert not (folder / "mug/00.png").exists()


def test_follows_redirections(
    online: Suite, web: Any, folder: Path, png: Callable[..., bytes]
) -> None:
    web.give("/mug/00.png", 302, Location=f"{web.url}/moved.png")
    web.give("/moved.png", png((5, 0, 0)))
    assert fetch(online).failed == ()
    assert (folder / "mug/00.png").read_bytes() == png((5, 0, 0))


def test_gives_up_in_the_end(online: Suite, web: Any) -> None:
    web.give("/mug/00.png", 500)
    (line,) = fetch(online, pause=0.001).failed
    assert f"answered 500 Internal Server Error ({ATTEMPTS} attempts)" in line
    assert web.requests.count("/mug/00.png") == ATTEMPTS


def test_a_report_counts_by_source(online: Suite, web: Any, folder: Path) -> None:
    web.give("/mug/01.png", 404)
    report = fetch(online)
    host = web.url.removeprefix("http://")
    told = {source.name: source for source in report.sources}
    assert set(told) == {host, "the suite", "by hand"}
    assert (told[host].fetched, told[host].failed, told[host].manual) == (2, 1, 0)
    assert told[host].first == report.failed[0]
    assert str(told["the suite"]) == "the suite: 1 there already"
    assert str(told["by hand"]).startswith("by hand: 1 to get by hand; first crayon/bear.png: ask")
    assert all(len(str(source)) < 300 and "\n" not in str(source) for source in report.sources)


def test_an_unreachable_host_is_not_tried_for_every_image(
    online: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def refuse(self: httpx.Client, method: str, url: str) -> None:
        tried.append(url)
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx.Client, "stream", refuse)
    monkeypatch.setattr("benchmark_data.fetch.AT_ONCE", 1)
    report = fetch(online, pause=0.001)
    assert len(report.failed) == 3
    assert all("cannot be reached" in line for line in report.failed)
    assert len(tried) == ATTEMPTS


def test_refuses_what_is_too_large(online: Suite, png: Callable[..., bytes]) -> None:
    report = fetch(online, max_bytes=10)
    assert len(report.failed) == 3
    assert "gives more than 10 bytes" in report.failed[0]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "MARS2_OFFLINE"])
def test_offline_touches_no_network(
    online: Suite, web: Any, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SuiteError, match=f"3 reference images .* but {variable} is set") as caught:
        fetch(online)
    assert "\n" not in str(caught.value)
    assert web.requests == []


def test_offline_is_no_obstacle_if_all_is_there(
    online: Suite, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(online)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(fetch(online).present) == 4


def test_missing_images_of_the_suite_itself_are_failures(online: Suite) -> None:
    hat = online.subjects["red_hat"].references[0].path
    assert hat is not None
    hat.unlink()
    (line,) = fetch(online).failed
    assert line == f"{hat} is missing, and it should have come with the suite"


def test_another_root(online: Suite, tmp_path: Path) -> None:
    fetch(online, root=tmp_path / "there")
    moved = load_suite(online.source, tmp_path / "there")
    path = tmp_path / "there/references/small/mug/00.png"
    assert moved.subjects["mug"].references[0].path == path
    assert load_suite(online.source).subjects["mug"].references[0].path is None


def test_a_cache_that_cannot_be_written_is_one_error(online: Suite, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SuiteError, match="cannot be written"):
        fetch(online, root=tmp_path / "file")


@pytest.mark.parametrize("text", ["{", "[1]", '{"mug/00.png": 3}', '{"mug/00.png": {}}'])
def test_a_broken_record_of_digests_is_an_error(online: Suite, folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "digests.json").write_text(text)
    with pytest.raises(SuiteError, match=r"digests\.json cannot be read"):
        fetch(online)
