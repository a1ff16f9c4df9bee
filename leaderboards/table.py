"""Entries into boards: what compares with what, who is better than whom, and by how much.

Two entries compare if they were made on the same suite, revision and split, with the same base
model, adapters and drawing, on the same seeds, and judged by the same judge. A board is a set of
such entries.

Within a board, a method is better than another if the 95 % interval of their paired difference in
joint MARS2 (same pairs, same seeds; whole pairs drawn again) lies above 0. **A method's rank is 1 +
the number of methods that are better than it.** Methods that cannot be told apart from all the same
ones share a rank. Each comparison stands for itself, at 95 %: with many methods some will be found
better by chance, about one in forty of those that are equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from leaderboards.entry import Entry, Interval
from leaderboards.records import Records
from leaderboards.stats import paired_difference

RANKED_BY = "mars2"


@dataclass(frozen=True, order=True)
class BoardKey:
    """All that two entries must share to compare."""

    suite: str
    revision: str
    split: str
    own_judge: bool
    judge: str
    base: str
    base_revision: str
    adapters: str
    resolution: int
    steps: int
    guidance_scale: float
    negative_prompt: str
    seeds: tuple[int, ...]
    cases: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, entry: Entry) -> "BoardKey":
        """Return the board an entry belongs to."""
        made = entry.generation
        return cls(
            entry.suite.name,
            entry.suite.revision,
            entry.suite.split,
            entry.judge.own,
            entry.judge.id,
            made.base,
            made.base_revision,
            made.adapters,
            made.resolution,
            made.steps,
            made.guidance_scale,
            made.negative_prompt,
            entry.seeds,
            tuple(case.id for case in entry.cases),
        )


@dataclass(frozen=True)
class Row:
    """An entry in its place.

    Attributes:
        entry: The result.
        rank: Among all methods of the board; None: a control, or without a score.
        track_rank: Among the methods of its track, likewise.
        better: Names of the methods that are better than it, best first.
        tied: Names of those it cannot be told apart from.
        differences: Name of each other entry of the board -> its joint MARS2 less the other's.
    """

    entry: Entry
    rank: int | None
    track_rank: int | None
    better: tuple[str, ...]
    tied: tuple[str, ...]
    differences: Mapping[str, Interval]


@dataclass(frozen=True)
class Board:
    """Entries that compare with each other, best first, controls last."""

    key: BoardKey
    rows: tuple[Row, ...]

    @property
    def ranked(self) -> tuple[Row, ...]:
        """Rows that have a rank."""
        return tuple(row for row in self.rows if row.rank is not None)

    def row(self, name: str) -> Row:
        """Return the row of an entry's name."""
        return next(row for row in self.rows if row.entry.name == name)


def make_boards(entries: Sequence[tuple[Entry, Records]]) -> list[Board]:
    """Return the boards of all entries: the suites' own judges' first, then by suite and judge."""
    grouped: dict[BoardKey, list[tuple[Entry, Records]]] = {}
    for entry, records in entries:
        grouped.setdefault(BoardKey.of(entry), []).append((entry, records))
    keys = sorted(grouped, key=lambda key: (key.suite, not key.own_judge, key))
    return [_board(key, grouped[key]) for key in keys]


def joint(entry: Entry) -> float | None:
    """Return an entry's joint MARS2."""
    score = entry.scores.get(RANKED_BY)
    return None if score is None else score.average.value


def is_better(difference: Interval) -> bool:
    """Return whether the first of two is better than the second."""
    return difference.low is not None and difference.low > 0


def _board(key: BoardKey, entries: Sequence[tuple[Entry, Records]]) -> Board:
    entries = sorted(entries, key=lambda one: _order(one[0]))
    differences = _differences(entries)
    methods = [e for e, _ in entries if not e.control and joint(e) is not None]
    rows = []
    for entry, _ in entries:
        others = [other for other in methods if other.name != entry.name]
        better = [o for o in others if is_better(differences[o.name][entry.name])]
        worse = [o for o in others if is_better(differences[entry.name][o.name])]
        tied = [o.name for o in others if o not in better and o not in worse]
        ranked = entry in methods
        same_track = sum(other.method.track == entry.method.track for other in better)
        rows.append(
            Row(
                entry,
                1 + len(better) if ranked else None,
                1 + same_track if ranked else None,
                tuple(other.name for other in better),
                tuple(tied),
                differences[entry.name],
            )
        )
    rows.sort(key=lambda row: (row.rank is None, row.rank or 0))  # stable: the score decides
    return Board(key, tuple(rows))


def _order(entry: Entry) -> tuple[bool, float, str]:
    score = joint(entry)
    return entry.control, 0.0 if score is None else -score, entry.name


def _differences(
    entries: Sequence[tuple[Entry, Records]],
) -> dict[str, dict[str, Interval]]:
    values = {
        entry.name: {(row.case, row.seed): row.value(RANKED_BY) for row in records.rows}
        for entry, records in entries
    }
    found: dict[str, dict[str, Interval]] = {name: {} for name in values}
    names = list(values)
    for number, a in enumerate(names):
        for b in names[number + 1 :]:
            shared = [image for image in values[a] if image in values[b]]
            difference = Interval.of(
                paired_difference(
                    [values[a][image] for image in shared],
                    [values[b][image] for image in shared],
                    [case for case, _ in shared],
                )
            )
            found[a][b], found[b][a] = difference, _negative(difference)
    return found


def _negative(one: Interval) -> Interval:
    value, low, high = (
        None if end is None else 0.0 - end for end in (one.value, one.high, one.low)
    )
    return Interval(value, low, high, one.n, one.n_unscored, one.n_clusters)
