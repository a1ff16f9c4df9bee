"""Ranking: who is better than whom, what shares a rank, and what is never put into one table."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from leaderboards.draft import Draft
from leaderboards.entry import Entry
from leaderboards.records import ImageRecord, Records, parse_records
from leaderboards.stats import cluster_covariance, paired_difference
from leaderboards.table import make_boards


def with_records(drafts: list[Draft]) -> list[tuple[Entry, Records]]:
    return [(one.entry, parse_records(one.records, file="")) for one in drafts]


def scripted(name: str, right: list[int], fake: SimpleNamespace) -> tuple[Entry, Records]:
    """A method right in so many of the four images of each of nine pairs."""
    draft = fake.draft(name)
    rows = tuple(
        ImageRecord(case.id, seed, "0" * 16, "yyy", "y" if seed < right[number] else "n", {})
        for number, case in enumerate(fake.CASES)
        for seed in fake.SEEDS
    )
    score = dataclasses.replace(
        draft.entry.scores["mars2"].average, value=round(sum(right) / 36, 9)
    )
    aggregate = dataclasses.replace(draft.entry.scores["mars2"], average=score)
    return dataclasses.replace(draft.entry, scores={"mars2": aggregate}), Records(rows, ())


def test_rank_is_one_and_the_number_of_better_methods(fake: SimpleNamespace) -> None:
    best = scripted("best", [4] * 9, fake)
    equal = scripted("equal", [4] * 8 + [3], fake)  # one pair decides: not told apart
    middle = scripted("middle", [2] * 9, fake)
    last = scripted("last", [1] * 9, fake)
    (board,) = make_boards([last, middle, equal, best])
    assert [(row.entry.method.name, row.rank) for row in board.rows] == [
        ("best", 1),
        ("equal", 1),
        ("middle", 3),
        ("last", 4),
    ]
    assert board.rows[1].tied == (best[0].name,)
    assert board.rows[2].better == (best[0].name, equal[0].name)


def test_differences_are_those_of_the_paired_bootstrap(
    fake: SimpleNamespace, drafts: list[Draft]
) -> None:
    entries = with_records(drafts)
    (board,) = make_boards(entries)
    a, b = (next(one for one in entries if one[0].method.name == n) for n in ("ziplora", "average"))
    expected = paired_difference(a[1].values("mars2"), b[1].values("mars2"), a[1].cases)
    ours = board.row(a[0].name).differences[b[0].name]
    theirs = board.row(b[0].name).differences[a[0].name]
    assert (ours.value, ours.low, ours.high) == pytest.approx(
        (expected.value, expected.low, expected.high), abs=1e-9
    )
    assert (theirs.value, theirs.low, theirs.high) == (-ours.value, -ours.high, -ours.low)


def test_controls_have_no_rank_and_stand_last(drafts: list[Draft]) -> None:
    (board,) = make_boards(with_records(drafts))
    assert [row.entry.control for row in board.rows] == [False] * 5 + [True] * 3
    assert all((row.rank is None) == row.entry.control for row in board.rows)
    assert {row.entry.method.name for row in board.rows if row.rank == 1} == {
        "ziplora",
        "k_lora",
        "lorarar",
    }


def test_ranks_within_a_track_count_only_its_methods(fake: SimpleNamespace) -> None:
    plain, fit = scripted("average", [1] * 9, fake), scripted("ziplora", [4] * 9, fake)
    (board,) = make_boards([plain, fit])
    row = board.row(plain[0].name)
    assert (row.rank, row.track_rank) == (2, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": (0, 1, 2)},
        {"cases": "fewer"},
        {"judge": "other"},
        {"suite": "other"},
    ],
    ids=str,
)
def test_what_does_not_compare_is_on_a_board_of_its_own(
    fake: SimpleNamespace, drafts: list[Draft], change: dict[str, object]
) -> None:
    given: dict[str, object] = dict(change)
    if change.get("cases"):
        given["cases"] = fake.CASES[:8]
    if change.get("judge"):
        given["judge"] = dataclasses.replace(fake.JUDGE, id="gpt prompts x", own=False)
    if change.get("suite"):
        given["suite"] = dataclasses.replace(fake.SUITE, revision="ffff" * 3)
    boards = make_boards(with_records([*drafts, fake.draft("mine", **given)]))
    assert sorted(len(board.rows) for board in boards) == [1, 8]


def test_a_method_without_any_score_has_no_rank(fake: SimpleNamespace) -> None:
    entry, records = scripted("silent", [0] * 9, fake)
    rows = tuple(dataclasses.replace(row, style="?") for row in records.rows)
    none = dataclasses.replace(entry.scores["mars2"].average, value=None, low=None, high=None)
    entry = dataclasses.replace(
        entry, scores={"mars2": dataclasses.replace(entry.scores["mars2"], average=none)}
    )
    (board,) = make_boards([(entry, Records(rows, ())), scripted("best", [4] * 9, fake)])
    assert [row.rank for row in board.rows] == [1, None]


def test_the_order_of_the_files_does_not_matter(drafts: list[Draft], results: Path) -> None:
    entries = with_records(drafts)
    assert make_boards(entries) == make_boards(entries[::-1])


def test_covariance_of_two_means_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    clusters = [cluster for cluster in range(40) for _ in range(5)]
    shared = np.repeat(rng.normal(size=40), 5)
    a, b = shared + rng.normal(size=200), 0.5 * shared + rng.normal(size=200)
    ours = cluster_covariance(list(a), list(b), clusters)
    drawn = rng.integers(0, 40, (20_000, 40))
    means = np.stack(
        [x.reshape(40, 5).mean(1)[drawn].mean(1) for x in (a, b)]
    )  # (2, resamples), clusters of the same size
    np.testing.assert_allclose(ours, np.cov(means) * 40 / 39, rtol=0.05)  # 20,000 resamples
    assert cluster_covariance([1.0, None], [1.0, 2.0], ["a", "b"]) is None
