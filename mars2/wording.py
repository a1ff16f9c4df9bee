"""How lists, and what differs between two settings, are told in one line."""

import re
from collections.abc import Iterable, Mapping, Sequence

LISTED = 10  # names an error message lists at most
FEW = 3  # names it lists at most of what is one of several things
_DIGEST = re.compile(r"[0-9a-f]{64}")


def listed(names: Iterable[str]) -> str:
    """Return names in one line, the first ten and how many there are.

    >>> listed(["a", "b"])
    'a, b'
    """
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def few(texts: Sequence[str], separator: str = ", ") -> str:
    """Return texts in one line, the first three and how many more there are.

    >>> few(["a", "b"]), few(["a", "b", "c", "d", "e"])
    ('a, b', 'a, b, c and 2 more')
    """
    more = f" and {len(texts) - FEW} more" if len(texts) > FEW else ""
    return separator.join(texts[:FEW]) + more


def changes(name: str, old: object, new: object) -> list[str]:
    """Return in words what differs between two settings: of a mapping, only the keys that do.

    >>> changes("steps", 4, 5), changes("seeds", (0, 1, 2), (0, 5))
    (['steps was 4, now 5'], ['seeds was 0-2, now 0,5'])
    """
    if old == new:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in dict.fromkeys((*old, *new))
            for line in changes(f"{name} {key}", old.get(key), new.get(key))
        ]
    if name == "cases" and isinstance(old, tuple) and isinstance(new, tuple):
        before, now = ({case.id for case in cases} for cases in (old, new))
        gone, added = (
            [case.id for case in cases if case.id not in others]
            for cases, others in ((old, now), (new, before))
        )
        parts = [
            f"{what} {few(ids)}" for what, ids in (("without", gone), ("and new:", added)) if ids
        ]
        told = f" ({', '.join(parts)})" if parts else " with other prompts or in another order"
        return [f"pairs were {len(old)}, now {len(new)}{told}"]
    return [f"{name} was {_short(old)}, now {_short(new)}"]


def _short(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, tuple) and all(isinstance(one, int) for one in value):
        return spans(value)
    text = str(value)
    if _DIGEST.fullmatch(text):
        return text[:12]
    return text if len(text) <= 60 else f"{text[:57]}..."


def spans(numbers: Sequence[int]) -> str:
    """Return numbers as `--seeds` takes them: (0, 1, 2, 5) is 0-2,5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ",".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else f"{s[0]}" for s in spans)
