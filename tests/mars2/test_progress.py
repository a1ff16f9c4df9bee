"""Progress where it goes to a log: whole lines, few of them, none of work that is soon done."""

import time

import pytest

from mars2.cli import progress as module
from mars2.cli.progress import progress


def test_a_log_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    with progress("draw", unit="job", total=20) as bar:
        for _ in range(20):
            time.sleep(0.01)
            bar.update()
    told = capsys.readouterr().err
    lines = told.splitlines()
    assert "\r" not in told
    assert 1 <= len(lines) < 20
    assert all(line.startswith("draw:") for line in lines)
    assert "20/20" in lines[-1]


def test_what_was_done_before_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.01)
    with progress("draw", unit="job", total=20, done=17) as bar:
        for _ in range(3):
            time.sleep(0.02)
            bar.update()
    assert "18/20" in capsys.readouterr().err


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("draw", unit="job", total=3) as bar:
        bar.update(3)
    with progress("draw", unit="job", total=3, shown=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("draw", unit="job", total=3) as bar:
        bar.update(3)
    assert "\rdraw: 100%" in capsys.readouterr().err
