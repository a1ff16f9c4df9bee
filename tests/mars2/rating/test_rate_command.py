"""`mars2 rate`: what it says, refuses and writes, without a browser."""

import csv
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mars2.rating.database import RatingDatabase
from mars2.store import RunStore

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def unserved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where it was to be served, which it is not."""
    import mars2.rating.server

    asked: list[tuple[str, int]] = []

    def serve(database: object, host: str, port: int, ready: Callable[[int], None]) -> None:
        asked.append((host, port))
        ready(port or 1234)

    monkeypatch.setattr(mars2.rating.server, "serve", serve)
    return asked


def test_a_dry_run_counts_questions_and_minutes(cli: Cli, run: RunStore, tmp_path: Path):
    out = tmp_path / "study"
    code, said, _ = cli(
        "rate", run.folder, "--out", out, "--raters", 4, "--per-item", 2, "--dry-run"
    )
    # 3 methods x 4 pairs x 3 seeds x 2 raters, a check in 20; 2 s an image and 3 s an answer
    assert code == 0
    assert said.splitlines() == [
        "72 ratings of images by 3 methods, 2 raters each, and 4 attention checks",
        "19 questions for each of 4 raters, about 3 minutes",
    ]
    assert not out.exists()


def test_it_begins_goes_on_and_exports(
    cli: Cli, run: RunStore, tmp_path: Path, unserved: list[tuple[str, int]]
):
    out = tmp_path / "study"
    code, said, _ = cli(
        "rate", run.folder, "--out", out, "--mode", "both", "--sample", 2, "--raters", 2
    )
    assert code == 0
    assert unserved == [("127.0.0.1", 8741)]
    assert "0 of 2 raters have begun" in said
    database = RatingDatabase(out / "study.sqlite", run.folder)
    assert f"http://127.0.0.1:8741/{database.join_token}/" in said
    with (out / "links.csv").open(newline="") as file:
        links = [line["link"] for line in csv.DictReader(file)]
    assert links == [f"http://127.0.0.1:8741/{seat.token}/" for seat in database.seats()]
    assert (out / "links.csv").stat().st_mode & 0o077 == 0
    for position, task in enumerate(database.tasks(0)):
        for aspect in task.aspects:
            answer = "yes" if task.mode == "yes_no" else "tie"
            database.record(0, position, aspect, answer, 1.0)
    database.close()

    again = ("rate", run.folder, "--out", out, "--host", "0.0.0.0", "--url", "https://rate.org/x/")
    code, said, warned = cli(*again)
    assert code == 0
    assert "1 of 2 raters have begun" in said
    assert "https://rate.org/x/" in said
    assert "not encrypted" in warned

    code, said, _ = cli("rate", run.folder, "--out", out, "--export")
    assert code == 0
    assert f"{out / 'ratings.csv'}: 12 lines" in said
    assert (
        f"next: mars2 study humans --ratings {out / 'ratings.csv'} --pairs {out / 'pairs.csv'} "
        f"--metrics {run.folder}"
    ) in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--export",), "has no rating study yet: begin one with `mars2 rate"),
        (("--min-checks", "0.5"), "give --export, too"),
        (("--raters", "0"), "--per-item is 0 of --raters 0"),
        (("--aspects", "looks", "--mode", "pairs"), "--aspects is 'looks'"),
        (("--method", "nothing"), "has no method nothing; it has base, direct_sum"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, run: RunStore, tmp_path: Path, arguments, message: str):
    code, said, error = cli("rate", run.folder, "--out", tmp_path / "study", *arguments)
    assert (code, said) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "study").exists()


@pytest.mark.usefixtures("unserved")
def test_settings_stay_what_they_were(cli: Cli, run: RunStore, tmp_path: Path):
    begin = ("rate", run.folder, "--out", tmp_path / "study", "--sample", 2)
    assert cli(*begin)[0] == 0
    assert cli(*begin)[0] == 0
    code, _, error = cli(*begin[:-1], 3)
    assert code == 2
    assert "is a study with sample 2; leave the option out to go on with it" in error
    code, _, error = cli(*begin[:-2], "--method", "all")
    assert code == 2
    assert "with methods direct_sum, average, lorarar" in error


def test_without_a_server_installed_it_says_what_to_install(
    cli: Cli, run: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in sys.modules if name.startswith(("starlette", "mars2.rating"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    arguments = ("rate", run.folder, "--out", tmp_path / "study")
    code, _, error = cli(*arguments)
    assert (code, error) == (
        2,
        "mars2: the rating page needs starlette, which is not installed: "
        "pip install -e '.[serve]'\n",
    )
    assert not (tmp_path / "study").exists()
    assert cli(*arguments, "--dry-run")[0] == 0  # which needs none


def test_a_port_in_use_is_said_to_be(cli: Cli, run: RunStore, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, error = cli("rate", run.folder, "--out", tmp_path / "study", "--port", port)
    assert code == 2
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in error
