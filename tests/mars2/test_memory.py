"""Peak memory of a stretch of work."""

from pathlib import Path

import pytest

from mars2.memory import RESIDENT, PeakMemory

MEGABYTE = 2**20


def test_a_peak_is_seen_after_it_is_over_and_forgotten_on_reset() -> None:
    memory = PeakMemory("cpu")
    assert memory.kind == RESIDENT
    memory.reset()
    before = memory.peak()
    assert before is not None
    block = bytearray(b"x" * (200 * MEGABYTE))  # written to, so resident
    del block
    high = memory.peak()
    assert high is not None
    assert high > before + 190 * MEGABYTE
    memory.reset()
    after = memory.peak()
    assert after is not None
    assert after < high - 190 * MEGABYTE


def test_where_it_cannot_be_measured_there_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    memory = PeakMemory("cpu")
    memory.reset()
    assert memory.peak() is None
