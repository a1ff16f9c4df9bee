"""What a judge's answers about one image come to: the rule of MARS2, written once."""

from collections.abc import Sequence


def majority(answers: Sequence[bool | None]) -> float | None:
    """Return 1.0 if strictly more than half of the answers are yes, 0.0 if they cannot be.

    None, if the answers that are neither yes nor no decide it.

    >>> majority([True, True, False]), majority([True, False]), majority([True, None])
    (1.0, 0.0, None)
    """
    half = len(answers) / 2
    yes = sum(answer is True for answer in answers)
    if yes > half:
        return 1.0
    return None if yes + sum(answer is None for answer in answers) > half else 0.0


def both(subject: float | None, style: float | None) -> float | None:
    """Return 1.0 if both are right, 0.0 if one is wrong, None if that is not known."""
    if 0.0 in (subject, style):
        return 0.0
    return None if None in (subject, style) else 1.0


def yes_share(answers: Sequence[bool | None]) -> float | None:
    """Return the share of yes among the answers that are yes or no; None: there is none."""
    scored = [answer for answer in answers if answer is not None]
    return sum(scored) / len(scored) if scored else None
