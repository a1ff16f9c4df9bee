"""What a change does to the ranking, in words."""

import dataclasses
from types import SimpleNamespace

from leaderboards.changes import compare
from leaderboards.draft import Draft, named
from leaderboards.entry import Entry
from leaderboards.records import Records, parse_records


def read(drafts: list[Draft]) -> list[tuple[Entry, Records]]:
    return [(one.entry, parse_records(one.records, file="")) for one in drafts]


def test_nothing_changes_nothing(drafts: list[Draft]) -> None:
    assert compare(read(drafts), read(drafts[::-1])) == []


def test_a_new_best_moves_the_others(drafts: list[Draft], fake: SimpleNamespace) -> None:
    best = fake.draft("best", (1.1, 1.1))
    lines = compare(read(drafts), read([*drafts, best]))
    assert lines[0] == "tiny 0a1b2c3d4e5f"
    assert "  + best: rank 1 (100.0 %)" in lines
    moved = next(line for line in lines if "average" in line)
    assert moved.startswith("  ~ average: rank 4 (")
    assert " became rank 5 (" in moved
    assert any(line.startswith("  - best: was rank 1") for line in compare(read([best]), []))


def test_other_code_is_told(drafts: list[Draft]) -> None:
    entry = drafts[3].entry
    other = named(
        dataclasses.replace(entry, method=dataclasses.replace(entry.method, code="ee" * 32))
    )
    changed = [*drafts[:3], dataclasses.replace(drafts[3], entry=other), *drafts[4:]]
    (_, line) = compare(read(drafts), read(changed))
    assert f"{entry.method.version} became {other.method.version}" in line
