"""The objects of the miniature world as role maps: what each pixel belongs to, without colour.

An object is drawn in its own coordinates, x to the right and y down, both in about [-1, 1]; a pose
carries them to the picture. Patterns live in the same coordinates, so that they turn with the body.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

GROUND, BODY, ACCENT, SECOND, DETAIL = range(5)
ROLES = ("ground", "body", "accent", "second", "detail")

Roles = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Pose:
    """Where the object stands: lengths are fractions of the picture's side, the angle radians."""

    x: float
    y: float
    scale: float
    angle: float


def random_pose(rng: np.random.Generator, jitter: float) -> Pose:
    """A pose near the middle of the picture; ``jitter`` scales its spread, 0 gives the middle."""
    x, y, scale, angle = rng.uniform(-1, 1, 4) * jitter
    return Pose(0.5 + 0.05 * x, 0.5 + 0.05 * y, 0.345 * (1 + 0.1 * scale), np.deg2rad(12) * angle)


class Pencil:
    """Draws shapes given in object coordinates onto a role map of ``n`` x ``n`` pixels."""

    def __init__(self, n: int, pose: Pose) -> None:
        self.image = Image.new("L", (n, n), GROUND)
        self._draw = ImageDraw.Draw(self.image)
        self._centre = (pose.x * n, pose.y * n)
        self._scale = pose.scale * n
        self._cos, self._sin = float(np.cos(pose.angle)), float(np.sin(pose.angle))

    def _place(self, points: Points) -> Points:
        (cx, cy), s = self._centre, self._scale
        return [
            (cx + s * (self._cos * x - self._sin * y), cy + s * (self._sin * x + self._cos * y))
            for x, y in points
        ]

    def polygon(self, points: Points, role: int) -> None:
        """Fills a polygon."""
        self._draw.polygon(self._place(points), fill=role)

    def ellipse(self, x: float, y: float, rx: float, ry: float, role: int) -> None:
        """Fills an ellipse."""
        self.polygon(_arc(x, y, rx, ry, 0, 360), role)

    def stroke(self, points: Points, width: float, role: int) -> None:
        """Draws a line of round ends and corners; ``width`` in object coordinates."""
        placed = self._place(points)
        pixels = max(1, round(width * self._scale))
        self._draw.line(placed, fill=role, width=pixels, joint="curve")
        r = pixels / 2
        for x, y in (placed[0], placed[-1]):
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=role)

    def coordinates(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The object coordinates of every pixel, two arrays ``(n, n)``."""
        n = self.image.width
        grid = np.arange(n, dtype=np.float32) + 0.5
        x = ((grid - self._centre[0]) / self._scale)[None, :]
        y = ((grid - self._centre[1]) / self._scale)[:, None]
        c, s = np.float32(self._cos), np.float32(self._sin)
        return c * x + s * y, c * y - s * x


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> Points:
    """Points of an ellipse's arc; degrees, 0 to the right, clockwise in the picture."""
    angles = np.deg2rad(np.linspace(start, stop, 33))
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]


def _mug(p: Pencil) -> None:
    p.stroke(_arc(0.42, 0.05, 0.45, 0.45, -90, 90), 0.26, ACCENT)
    p.polygon([(-0.85, -0.8), (0.5, -0.8), (0.42, 0.85), (-0.77, 0.85)], BODY)
    p.ellipse(-0.175, -0.8, 0.675, 0.16, DETAIL)


def _fish(p: Pencil) -> None:
    p.polygon([(0.5, 0), (1.05, -0.58), (0.9, 0), (1.05, 0.58)], ACCENT)
    p.polygon([(-0.35, -0.35), (0.05, -0.88), (0.5, -0.25)], ACCENT)
    p.polygon([(-0.2, 0.35), (0.1, 0.8), (0.4, 0.25)], ACCENT)
    p.ellipse(-0.18, 0, 0.84, 0.52, BODY)
    p.ellipse(-0.62, -0.12, 0.12, 0.12, DETAIL)


def _house(p: Pencil) -> None:
    p.polygon([(-0.75, -0.2), (0.75, -0.2), (0.75, 0.9), (-0.75, 0.9)], BODY)
    p.polygon([(0.35, -0.9), (0.6, -0.9), (0.6, -0.3), (0.35, -0.3)], ACCENT)
    p.polygon([(-1.0, -0.1), (0, -0.95), (1.0, -0.1)], ACCENT)
    p.polygon([(-0.2, 0.35), (0.16, 0.35), (0.16, 0.9), (-0.2, 0.9)], DETAIL)
    p.polygon([(0.34, 0.15), (0.6, 0.15), (0.6, 0.42), (0.34, 0.42)], DETAIL)


def _tree(p: Pencil) -> None:
    p.polygon(
        [(-0.2, 0.1), (0.2, 0.1), (0.24, 0.8), (0.44, 1.0), (-0.44, 1.0), (-0.24, 0.8)], ACCENT
    )
    p.ellipse(-0.45, -0.05, 0.45, 0.4, BODY)
    p.ellipse(0.45, -0.05, 0.45, 0.4, BODY)
    p.ellipse(0, -0.5, 0.58, 0.5, BODY)
    p.ellipse(0, -0.02, 0.5, 0.4, BODY)
    p.ellipse(0.0, 0.62, 0.07, 0.1, DETAIL)


def _star(p: Pencil) -> None:
    radii = [1.08 if k % 2 == 0 else 0.52 for k in range(10)]
    angles = [np.pi * (k / 5 - 0.5) for k in range(10)]
    corners = zip(radii, angles, strict=True)
    p.polygon([(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in corners], BODY)
    p.ellipse(0, 0.02, 0.36, 0.36, ACCENT)
    p.ellipse(-0.13, -0.05, 0.06, 0.08, DETAIL)
    p.ellipse(0.13, -0.05, 0.06, 0.08, DETAIL)
    p.stroke(_arc(0, 0.08, 0.15, 0.11, 20, 160), 0.06, DETAIL)


def _car(p: Pencil) -> None:
    p.polygon([(-0.55, -0.05), (-0.38, -0.62), (0.32, -0.62), (0.6, -0.05)], ACCENT)
    p.polygon([(-0.28, -0.44), (-0.06, -0.44), (-0.06, -0.14), (-0.38, -0.14)], DETAIL)
    p.polygon([(0.1, -0.44), (0.24, -0.44), (0.38, -0.14), (0.1, -0.14)], DETAIL)
    hull = [(-1.02, 0.1), (-0.92, -0.1), (0.72, -0.1), (1.02, 0.1), (1.05, 0.5), (-1.05, 0.5)]
    p.polygon(hull, BODY)
    for x in (-0.56, 0.56):
        p.ellipse(x, 0.5, 0.27, 0.27, DETAIL)


def _cat(p: Pencil) -> None:
    for side in (-1, 1):
        ear = [(side * 0.9, -1.0), (side * 0.1, -0.6), (side * 0.82, 0.1)]
        p.polygon(ear, ACCENT)
    p.ellipse(0, 0.15, 0.88, 0.75, BODY)
    for side in (-1, 1):
        p.ellipse(side * 0.36, 0.02, 0.13, 0.17, DETAIL)
    p.polygon([(-0.12, 0.3), (0.12, 0.3), (0, 0.43)], DETAIL)
    p.stroke([(-0.24, 0.5), (0, 0.6), (0.24, 0.5)], 0.07, DETAIL)


def _umbrella(p: Pencil) -> None:
    p.stroke([(0, -0.2), (0, 0.75)], 0.17, ACCENT)
    p.stroke(_arc(0.22, 0.75, 0.22, 0.24, 180, 0), 0.17, ACCENT)
    p.stroke([(0, -0.95), (0, -0.6)], 0.1, DETAIL)
    canopy = _arc(0, 0.05, 1.02, 0.88, 180, 360)
    for x in (0.68, 0.0, -0.68):
        canopy += _arc(x, 0.05, 0.34, 0.16, 0, -180)
    p.polygon(canopy, BODY)


def _mushroom(p: Pencil) -> None:
    p.polygon([(-0.26, -0.1), (0.26, -0.1), (0.36, 0.92), (-0.36, 0.92)], ACCENT)
    p.polygon(_arc(0, 0.08, 1.0, 0.95, 180, 360) + _arc(0, 0.08, 1.0, 0.16, 0, 180), BODY)
    p.ellipse(-0.12, 0.5, 0.06, 0.09, DETAIL)
    p.ellipse(0.12, 0.5, 0.06, 0.09, DETAIL)


def _teapot(p: Pencil) -> None:
    p.stroke(_arc(0.62, 0.15, 0.38, 0.36, -100, 100), 0.15, BODY)
    p.polygon([(-0.45, 0.5), (-1.08, -0.35), (-0.86, -0.45), (-0.4, 0.0)], BODY)
    p.ellipse(0.02, 0.28, 0.68, 0.6, BODY)
    p.polygon([(-0.46, -0.14), *_arc(0.02, -0.16, 0.5, 0.5, 180, 360), (0.5, -0.14)], ACCENT)
    p.ellipse(0.02, -0.74, 0.16, 0.15, ACCENT)
    p.stroke([(-0.46, -0.14), (0.5, -0.14)], 0.07, DETAIL)


def _boat(p: Pencil) -> None:
    p.stroke([(-0.05, -1.0), (-0.05, 0.3)], 0.09, DETAIL)
    p.polygon([(0.05, -0.92), (0.78, 0.1), (0.05, 0.1)], ACCENT)
    p.polygon([(-0.17, -0.7), (-0.17, 0.1), (-0.68, 0.1)], ACCENT)
    p.polygon([(-1.05, 0.22), (1.05, 0.22), (0.7, 0.9), (-0.7, 0.9)], BODY)


def _rocket(p: Pencil) -> None:
    for side in (-1, 1):
        fin = [(side * 0.2, 0.05), (side * 0.85, 0.6), (side * 0.85, 1.0), (side * 0.2, 0.75)]
        p.polygon(fin, ACCENT)
    p.polygon([(-0.2, 0.8), (0.2, 0.8), (0.13, 1.02), (-0.13, 1.02)], DETAIL)
    nose = [(0.0, -1.12), (0.24, -0.82), (0.4, -0.4), (0.44, 0.1), (0.34, 0.82)]
    p.polygon(nose + [(-x, y) for x, y in reversed(nose)], BODY)
    p.ellipse(0, -0.3, 0.17, 0.17, DETAIL)


OBJECTS: Mapping[str, Callable[[Pencil], None]] = {
    "mug": _mug,
    "fish": _fish,
    "house": _house,
    "tree": _tree,
    "star": _star,
    "car": _car,
    "cat": _cat,
    "umbrella": _umbrella,
    "mushroom": _mushroom,
    "teapot": _teapot,
    "boat": _boat,
    "rocket": _rocket,
}


def _spots(x: NDArray[np.float32], y: NDArray[np.float32]) -> Mask:
    """Discs on a hexagonal lattice, 37 % of the area."""
    dx, dy = 0.54, 0.54 * 0.866
    row = np.round(y / dy)
    shifted = x / dx - 0.5 * (row % 2)
    across = (shifted - np.round(shifted)) * dx
    return np.asarray(across**2 + (y - row * dy) ** 2 < 0.172**2)


def _stripes(x: NDArray[np.float32], y: NDArray[np.float32]) -> Mask:
    """Slanted bands, 38 % of the area."""
    return np.asarray(((y + 0.25 * x) / 0.46 + 0.3) % 1 < 0.38)


def _checks(x: NDArray[np.float32], y: NDArray[np.float32]) -> Mask:
    """Crossing bands (a window-pane check), 40 % of the area."""
    return np.asarray(((x / 0.56 + 0.35) % 1 < 0.225) | ((y / 0.56 + 0.35) % 1 < 0.225))


PATTERN_FIELDS = {"spots": _spots, "stripes": _stripes, "checks": _checks}


def dilated(mask: Mask, radius: int) -> Mask:
    """The mask grown by an octagon, ``radius`` in pixels."""
    grown = mask.copy()
    for step in range(radius):
        wide = grown.copy()
        wide[:, 1:] |= grown[:, :-1]
        wide[:, :-1] |= grown[:, 1:]
        source = wide.copy() if step % 2 else grown  # square and cross in turn
        wide[1:] |= source[:-1]
        wide[:-1] |= source[1:]
        grown = wide
    return grown


def role_map(category: str, pattern: str, pose: Pose, n: int) -> Roles:
    """What every pixel of an ``n`` x ``n`` picture belongs to, ``(n, n)``, values as in ROLES."""
    pencil = Pencil(n, pose)
    OBJECTS[category](pencil)
    roles = np.array(pencil.image)
    if pattern != "plain":
        x, y = pencil.coordinates()
        spared = dilated(roles == DETAIL, round(n / 64))  # eyes stay visible
        roles[(roles == BODY) & ~spared & PATTERN_FIELDS[pattern](x, y)] = SECOND
    return roles
