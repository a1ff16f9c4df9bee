"""Figures of a board as inline SVG: colors come from the page's style sheet, numbers are rounded.

Pure functions from rows to text; all text in them is escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

WIDTH, HEIGHT = 560, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 16, 34, 46
ELLIPSE = math.sqrt(5.991)
"""Half axes in standard deviations of an ellipse that holds 95 % of a plane's normal."""
ELLIPSES = 10
"""Most ellipses that are drawn: those of the first points; more would hide one another."""
LABELS = 16
"""Most points that are named in a figure; the others tell their name when pointed at."""


@dataclass(frozen=True)
class Point:
    """A method in a figure.

    Attributes:
        label: Its name.
        href: Its page.
        kind: CSS class of its color.
        x: Horizontal place.
        y: Vertical place, in ``[0, 1]``.
        low: Lower end of y's interval; None: there is none.
        high: Upper end.
        covariance: Of x and y as (variance of x, covariance, variance of y); None: unknown.
        told: What a pointer on it shows.
    """

    label: str
    href: str
    kind: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    covariance: tuple[float, float, float] | None = None
    told: str = ""


def scatter(points: Sequence[Point], *, title: str) -> Markup:
    """Return style (x) against subject (y), shares in ``[0, 1]``, with 95 % error ellipses."""
    frame = _Frame(0.0, 1.0, 0.0, 1.0)
    parts = [_open(title), *frame.grid([0, 0.25, 0.5, 0.75, 1], [0, 0.25, 0.5, 0.75, 1])]
    parts += [
        frame.x_label(value, f"{value:.0%}".replace("%", " %")) for value in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [
        frame.y_label(value, f"{value:.0%}".replace("%", " %")) for value in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [_axis_titles("images with the style right", "images with the subject right")]
    parts += [frame.ellipse(point) for point in points[:ELLIPSES]]
    return _close(parts, frame, points)


def quality_against_time(points: Sequence[Point], *, title: str, top: float) -> Markup:
    """Return joint MARS2 (y) against seconds of a merge (x, logarithmic), with the Pareto front.

    Args:
        points: x in seconds, above 0.
        title: For readers that do not see it.
        top: Upper end of y, in ``(0, 1]``.
    """
    if not points:
        return Markup("")
    first = math.floor(math.log10(min(point.x for point in points)) - 0.05)
    last = max(math.ceil(math.log10(max(point.x for point in points)) + 0.05), first + 1)
    frame = _Frame(first, last, 0.0, top)
    ticks = range(first, last + 1, max(1, (last - first) // 6))
    levels = [top * part / 4 for part in range(5)]
    placed = [_logged(point) for point in points]
    parts = [_open(title), *frame.grid([float(tick) for tick in ticks], levels)]
    parts += [frame.x_label(tick, _seconds_label(tick)) for tick in ticks]
    parts += [frame.y_label(level, f"{100 * level:.3g} %") for level in levels]
    parts += [_axis_titles("time of a merge", "MARS2: both right")]
    front = pareto(placed)
    if front:
        steps = [f"M{frame.x(front[0].x):.1f} {frame.y(front[0].y):.1f}"]
        steps += [f"H{frame.x(point.x):.1f}V{frame.y(point.y):.1f}" for point in front[1:]]
        steps.append(f"H{WIDTH - _RIGHT}")
        parts.append(f'<path class="front" d="{"".join(steps)}"/>')
    parts += [frame.whisker(point) for point in placed]
    return _close(parts, frame, placed)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in y at the same x or less, from left to right."""
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, -one.y, one.label)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def forest(
    rows: Sequence[tuple[str, str, float, float, float]], *, title: str, most: float
) -> Markup:
    """Return paired differences with intervals, a line each.

    Args:
        rows: Label, page, difference, low, high; a difference above 0 says that the method of the
            page is better.
        title: For readers that do not see it.
        most: End of the axis on both sides, above 0.
    """
    line, left, width = 30, 190, 640
    height = line * len(rows) + 44
    span = width - left - 70

    def x(value: float) -> float:
        return left + span * (value + most) / (2 * most)

    parts = [
        f'<svg class="figure forest" viewBox="0 0 {width} {height}" role="group" '
        f'aria-label="{escape(title)}">'
    ]
    for tick in (-most, -most / 2, 0.0, most / 2, most):
        kind = "zero" if tick == 0 else "grid"
        parts.append(
            f'<path class="{kind}" d="M{x(tick):.1f} 6V{height - 30}"/>'
            f'<text class="tick" text-anchor="middle" x="{x(tick):.1f}" y="{height - 12}">'
            f"{_signed(tick).removesuffix('.0')}</text>"
        )
    for number, (label, href, value, low, high) in enumerate(rows):
        y = line * number + 22
        kind = "better" if low > 0 else "worse" if high < 0 else "tied"
        parts.append(
            f'<a href="{escape(href)}"><text class="name" x="{left - 14}" y="{y + 5}" '
            f'text-anchor="end">{escape(_short(label, 24))}</text></a>'
            f'<g class="{kind}"><path class="whisker" d="M{x(low):.1f} {y}H{x(high):.1f}"/>'
            f'<circle class="dot" cx="{x(value):.1f}" cy="{y}" r="4.5"/></g>'
            f'<text class="value" x="{width - 4}" y="{y + 5}" text-anchor="end">'
            f"{_signed(value)}</text>"
        )
    return Markup("".join([*parts, "</svg>"]))


def strip(values: Sequence[tuple[float, str]], *, top: float) -> Markup:
    """Return scores as marks on a line: the small figure of a board on the first page."""
    marks = "".join(
        f'<circle class="{escape(kind)}" cx="{6 + 288 * min(value / top, 1):.1f}" cy="12" r="5"/>'
        for value, kind in values
    )
    return Markup(
        f'<svg class="strip" viewBox="0 0 300 24" aria-hidden="true">'
        f'<path class="grid" d="M6 12H294"/>{marks}</svg>'
    )


class _Frame:
    """A plot's coordinates."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float) -> None:
        self.ends = (x0, x1, y0, y1)

    def x(self, value: float) -> float:
        x0, x1, _, _ = self.ends
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - x0) / (x1 - x0)

    def y(self, value: float) -> float:
        _, _, y0, y1 = self.ends
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - y0) / (y1 - y0)

    def grid(self, xs: Sequence[float], ys: Sequence[float]) -> list[str]:
        vertical = "".join(f"M{self.x(x):.1f} {_TOP}V{HEIGHT - _BOTTOM}" for x in xs)
        level = "".join(f"M{_LEFT} {self.y(y):.1f}H{WIDTH - _RIGHT}" for y in ys)
        return [f'<path class="grid" d="{vertical}{level}"/>']

    def x_label(self, value: float, text: str) -> str:
        return (
            f'<text class="tick" text-anchor="middle" x="{self.x(value):.1f}" '
            f'y="{HEIGHT - _BOTTOM + 18}">{escape(text)}</text>'
        )

    def y_label(self, value: float, text: str) -> str:
        return (
            f'<text class="tick" text-anchor="end" x="{_LEFT - 8}" y="{self.y(value) + 4:.1f}">'
            f"{escape(text)}</text>"
        )

    def ellipse(self, point: Point) -> str:
        if point.covariance is None:
            return ""
        across, both, up = point.covariance
        half = math.hypot((across - up) / 2, both)
        first, second = (max((across + up) / 2 + sign * half, 0.0) for sign in (1, -1))
        angle = -math.degrees(math.atan2(2 * both, across - up) / 2)  # the page's y points down
        x0, x1, y0, y1 = self.ends
        wide = (WIDTH - _LEFT - _RIGHT) / (x1 - x0)
        high = (HEIGHT - _TOP - _BOTTOM) / (y1 - y0)
        turned = "" if first == second else f" rotate({angle:.1f})"
        return (
            f'<g class="{escape(point.kind)}" transform="translate({self.x(point.x):.1f} '
            f'{self.y(point.y):.1f}) scale({wide / high:.4f} 1){turned}">'
            f'<ellipse class="error" rx="{ELLIPSE * math.sqrt(first) * high:.1f}" '
            f'ry="{ELLIPSE * math.sqrt(second) * high:.1f}"/></g>'
        )

    def whisker(self, point: Point) -> str:
        if point.low is None or point.high is None:
            return ""
        top = min(point.high, self.ends[3])
        return (
            f'<g class="{escape(point.kind)}"><path class="whisker" d="M{self.x(point.x):.1f} '
            f'{self.y(point.low):.1f}V{self.y(top):.1f}"/></g>'
        )


def _open(title: str) -> str:
    return (
        f'<svg class="figure" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" '
        f'aria-label="{escape(title)}">'
    )


def _close(parts: Sequence[str], frame: _Frame, points: Sequence[Point]) -> Markup:
    dots = [
        f'<a href="{escape(point.href)}" class="{escape(point.kind)}" '
        f'aria-label="{escape(point.told)}"><title>{escape(point.told)}</title>'
        f'<circle class="halo" cx="{frame.x(point.x):.1f}" cy="{frame.y(point.y):.1f}" r="11"/>'
        f'<circle class="dot" cx="{frame.x(point.x):.1f}" cy="{frame.y(point.y):.1f}" r="5"/></a>'
        for point in points
    ]
    return Markup("".join([*parts, *dots, *_labels(frame, points), "</svg>"]))


def _labels(frame: _Frame, points: Sequence[Point]) -> list[str]:
    """Return the names of the first points, each where it covers no other point or name."""
    taken = [
        (frame.x(p.x) - 6, frame.y(p.y) - 6, frame.x(p.x) + 6, frame.y(p.y) + 6) for p in points
    ]
    parts = []
    for point in points[:LABELS]:
        text = _short(point.label, 22)
        # letters as wide as on a phone, where they are larger against the figure
        wide, x, y = 8.8 * len(text) + 4, frame.x(point.x), frame.y(point.y)
        places = [
            (anchor, x + dx, y + dy)
            for distance in (0, 13, 26)
            for anchor, dx, dy in (
                ("start", 10, 4 - distance),
                ("end", -10, 4 - distance),
                ("start", 10, 4 + distance),
                ("end", -10, 4 + distance),
            )
        ]
        for anchor, left, base in places:
            start = left if anchor == "start" else left - wide
            box = (start, base - 11, start + wide, base + 3)
            inside = (
                box[0] >= _LEFT
                and box[2] <= WIDTH - 12
                and box[1] >= _TOP
                and box[3] <= HEIGHT - _BOTTOM
            )
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(
                    f'<text class="label" aria-hidden="true" text-anchor="{anchor}" '
                    f'x="{left:.1f}" y="{base:.1f}">{escape(text)}</text>'
                )
                break
    return parts


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _axis_titles(across: str, up: str) -> str:
    return (
        f'<text class="axis" text-anchor="end" x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}">'
        f"{escape(across)} \u2192</text>"
        f'<text class="axis" x="4" y="16">\u2191 {escape(up)}</text>'
    )


def _logged(point: Point) -> Point:
    return replace(point, x=math.log10(point.x))


def _seconds_label(power: int) -> str:
    if power < 0:
        return f"{10 ** (power + 3):g} ms" if power >= -3 else f"{10 ** (power + 6):g} µs"
    return f"{10**power:,} s"


def _signed(share: float) -> str:
    points = round(100 * share, 1)
    return "0" if points == 0 else f"{points:+.1f}".replace("-", "\u2212")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"
