"""How numbers and names are spelled in a report."""

EMPTY = "-"


def words(concept: str) -> str:
    """Return a concept's id as words.

    >>> words("bear_plushie")
    'bear plushie'
    """
    return concept.partition(":")[2].replace("_", " ") or concept.replace("_", " ")


def seconds(value: float) -> str:
    """Return a time with two digits.

    >>> seconds(0.0021), seconds(31.4), seconds(754)
    ('2.1 ms', '31 s', '12.6 min')
    """
    if value < 1:
        return f"{_two_digits(1000 * value)} ms"
    return f"{_two_digits(value)} s" if value < 120 else f"{value / 60:.1f} min"


def size_in_bytes(value: int | None) -> str:
    """Return a size in MB or GB.

    >>> size_in_bytes(1_900_000_000)
    '1.9 GB'
    """
    if value is None:
        return EMPTY
    return f"{_two_digits(value / 1e6)} MB" if value < 1e9 else f"{value / 1e9:.1f} GB"


def count(value: int) -> str:
    """Return a large number in thousands or millions.

    >>> count(1_571_840), count(49_000), count(0)
    ('1.57 M', '49.0 k', '0')
    """
    if value >= 10**6:
        return f"{value / 1e6:.2f} M"
    return f"{value / 1e3:.1f} k" if value >= 10**3 else str(value)


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


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
