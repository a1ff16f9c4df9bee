"""A small board, made once."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from leaderboards.draft import Draft

_FAKE = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_board.py"))))


@pytest.fixture(scope="session")
def fake() -> SimpleNamespace:
    """The functions and constants of fake_board.py."""
    return _FAKE


@pytest.fixture(scope="session")
def drafts() -> list[Draft]:
    """Five methods and three controls on nine pairs of four seeds."""
    return _FAKE.board()


@pytest.fixture
def results(tmp_path: Path, drafts: list[Draft]) -> Path:
    """A folder of results with their files."""
    _FAKE.write(tmp_path / "results", drafts)
    return tmp_path / "results"
