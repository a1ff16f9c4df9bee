"""How numbers and names are spelled in a report; much of it as on the leaderboards' site."""

from leaderboards.formatting import EMPTY, count, seconds, size_in_bytes

__all__ = ["EMPTY", "count", "seconds", "signed", "size_in_bytes", "superscript", "words"]


def words(concept: str) -> str:
    """Return a concept's id as words.

    >>> words("bear_plushie")
    'bear plushie'
    """
    return concept.partition(":")[2].replace("_", " ") or concept.replace("_", " ")


def signed(value: float, *, points: bool) -> str:
    """Return a difference with its sign; as percentage points if `points`.

    >>> signed(-0.06, points=True), signed(0.0123, points=False), signed(-0.001, points=True)
    ('-6', '+0.012', '0')
    """
    rounded = round(100 * value) if points else round(value, 3)
    if rounded == 0:
        return "0"
    return f"{rounded:+d}" if points else f"{rounded:+.3f}"


def superscript(number: int) -> str:
    """Return a number in raised digits.

    >>> superscript(12)
    '¹²'
    """
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
