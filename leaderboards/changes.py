"""What a change of the entries does to the ranking."""

from collections.abc import Mapping, Sequence

from leaderboards.entry import Entry
from leaderboards.records import Records
from leaderboards.table import Board, Row, joint, make_boards


def compare(
    old: Sequence[tuple[Entry, Records]], new: Sequence[tuple[Entry, Records]]
) -> list[str]:
    """Return in words what differs between two sets of entries, board by board; none: nothing.

    A method is followed by its label, so that an entry with other code counts as changed.
    """
    before, after = ({b.key: b for b in make_boards(entries)} for entries in (old, new))
    lines = []
    for key in dict.fromkeys([*before, *after]):
        told = _board_lines(before.get(key), after.get(key))
        if told:
            judge = "" if key.own_judge else f", judge {key.judge}"
            lines += [f"{key.suite} {key.revision}{judge}", *(f"  {line}" for line in told)]
    return lines


def _board_lines(old: Board | None, new: Board | None) -> list[str]:
    before, after = _by_label(old), _by_label(new)
    lines = []
    for label in dict.fromkeys([*after, *before]):
        was, now = before.get(label), after.get(label)
        if was is None and now is not None:
            lines.append(f"+ {label}: {_place(now)}")
        elif now is None and was is not None:
            lines.append(f"- {label}: was {_place(was)}")
        elif was is not None and now is not None:
            if was.entry.name != now.entry.name:
                lines.append(
                    f"~ {label}: {was.entry.method.version} became {now.entry.method.version}, "
                    f"{_place(was)} became {_place(now)}"
                )
            elif _place(was) != _place(now):
                lines.append(f"~ {label}: {_place(was)} became {_place(now)}")
    return lines


def _by_label(board: Board | None) -> Mapping[str, Row]:
    return {} if board is None else {row.entry.method.label: row for row in board.rows}


def _place(row: Row) -> str:
    score = joint(row.entry)
    told = "unscored" if score is None else f"{100 * score:.1f} %"
    return f"{'not ranked' if row.rank is None else f'rank {row.rank}'} ({told})"
