"""How numbers are spelled where people read them: on the site, in reports and in the terminal."""

EMPTY = "-"


def points(share: float | None) -> str:
    """Return a share in percent, without the sign.

    >>> points(0.0426)
    '4.3'
    """
    return "\u2013" if share is None else f"{100 * share:.1f}"


def cosine(value: float | None) -> str:
    """Return a cosine with three decimals and a minus sign that is as wide as a digit.

    >>> cosine(0.61234)
    '0.612'
    """
    return "\u2013" if value is None else f"{value:.3f}".replace("-", "\u2212")


def seconds(value: float) -> str:
    """Return a time with two or three digits and its unit.

    >>> seconds(0.00213), seconds(31.44), seconds(754)
    ('2.1 ms', '31 s', '12.6 min')
    """
    if value < 0.9995:
        return f"{_two_digits(1000 * value)} ms"
    return f"{_two_digits(value)} s" if value < 119.5 else f"{value / 60:.1f} min"


def size_in_bytes(value: int | None, *, none: str = EMPTY) -> str:
    """Return a size in MB or GB (10**6 or 10**9 bytes); `none` if it is not known.

    >>> size_in_bytes(410_000_000), size_in_bytes(1_900_000_000)
    ('410 MB', '1.9 GB')
    """
    if value is None:
        return none
    return f"{_two_digits(value / 1e6)} MB" if value < 999.5e6 else f"{value / 1e9:.1f} GB"


def count(value: int) -> str:
    """Return a large number in thousands, millions or billions.

    >>> count(1_571_840), count(49_000), count(0)
    ('1.57 M', '49.0 k', '0')
    """
    if value >= 999_950_000:
        return f"{value / 1e9:.2f} G"
    if value >= 999_950:
        return f"{value / 1e6:.2f} M"
    return f"{value / 1e3:.1f} k" if value >= 10**3 else str(value)


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
