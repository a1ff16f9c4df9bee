"""How the miniature world paints a role map: one function per style family.

A rendering gets a `Scene` and a setting (palette and texture, by name) and returns RGB values in
[0, 255], ``(n, n, 3)``. All lengths are multiples of ``scene.unit``, a 64th of the picture's side.
Random fields have sizes that do not depend on the object, so that one seed gives the same ground
and the same grain to every object.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from benchmark_data.miniworld.settings import BARE, RGB, palette_of
from benchmark_data.miniworld.shapes import BODY, DETAIL, GROUND, SECOND, Mask, Roles, dilated

Floats = NDArray[np.float32]

BLACK: RGB = (25, 22, 26)
WHITE: RGB = (250, 249, 245)


@dataclass(frozen=True)
class Scene:
    """What a rendering paints.

    Attributes:
        roles: ``(n, n)``, see `shapes`.
        colours: ``(5, 3)`` in [0, 255], the colour of every role; ground is unused.
        unit: pixels in a 64th of the side.
        rng: the rendering's own stream.
    """

    roles: Roles
    colours: Floats
    unit: float
    rng: np.random.Generator

    @property
    def n(self) -> int:
        """Pixels a side."""
        return len(self.roles)

    @property
    def object(self) -> Mask:
        """Where the object is, ``(n, n)``."""
        return np.asarray(self.roles != GROUND)

    def px(self, length: float) -> int:
        """A length in 64ths of the side as whole pixels, at least one."""
        return max(1, round(length * self.unit))

    def painted(self) -> Floats:
        """The object in its flat colours, ``(n, n, 3)``."""
        return np.asarray(self.colours[self.roles])


# --- tools ---------------------------------------------------------------------------------------


def _rgb(colour: RGB) -> Floats:
    return np.array(colour, dtype=np.float32)


def _mix(a: Floats, b: Floats, t: Floats | float) -> Floats:
    """``a`` where ``t`` is 0, ``b`` where it is 1; ``t`` is a number or ``(n, n)``."""
    weight = t if isinstance(t, float) else t[..., None]
    return np.asarray(a + (b - a) * weight, dtype=np.float32)


def _resized(values: Floats, n: int) -> Floats:
    image = Image.fromarray(values.astype(np.float32)).resize((n, n), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


def _noise(scene: Scene, across: int, down: int | None = None) -> Floats:
    """Smooth noise in about [-1, 1] with ``across`` x ``down`` lumps, ``(n, n)``."""
    values = scene.rng.random((down or across, across), dtype=np.float32) * 2 - 1
    return _resized(values, scene.n)


def _grain(scene: Scene, size: float) -> Floats:
    """Noise in [0, 1] of square grains, ``size`` 64ths a side, ``(n, n)``."""
    step = scene.px(size)
    count = -(-scene.n // step)
    values = scene.rng.random((count, count), dtype=np.float32)
    return np.repeat(np.repeat(values, step, 0), step, 1)[: scene.n, : scene.n]


def _axes(n: int, degrees: float) -> tuple[Floats, Floats]:
    """Coordinates in pixels along and across a direction, each ``(n, n)``."""
    angle = np.deg2rad(degrees)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    grid = np.arange(n, dtype=np.float32)
    x, y = grid[None, :], grid[:, None]
    return c * x + s * y, c * y - s * x


def _strokes(scene: Scene, degrees: float, width: float, length: float) -> Floats:
    """Noise in [0, 1] that is constant along short parallel strokes, ``(n, n)``."""
    along, across = _axes(scene.n, degrees)
    table = scene.rng.random((256, 64), dtype=np.float32)
    shift = scene.rng.random(256, dtype=np.float32) * 64
    lane = (across / (width * scene.unit)).astype(np.int32) % 256
    return np.asarray(table[lane, (along / (length * scene.unit) + shift[lane]).astype(int) % 64])


def _borders(regions: NDArray[np.integer]) -> Mask:
    """Pixels whose right or lower neighbour belongs to another region."""
    border = np.zeros(regions.shape, dtype=bool)
    border[:, :-1] = regions[:, :-1] != regions[:, 1:]
    border[:-1] |= regions[:-1] != regions[1:]
    return border


def _outline(regions: NDArray[np.integer], width: int) -> Mask:
    """Lines of ``width`` pixels between regions."""
    return dilated(_borders(regions), max(0, (width - 1) // 2))


def _inner_outline(roles: Roles, width: int) -> Mask:
    """Lines of ``width`` pixels inside every part of the object, so each has a part's colour."""
    return np.asarray(dilated(_borders(roles), width) & (roles != GROUND))


def _blurred(values: Floats, radius: float) -> Floats:
    """Blurred by ``radius`` pixels; values in [0, 255], ``(n, n)`` or ``(n, n, 3)``."""
    image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if radius < 3:
        return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    small = image.reduce(3).filter(ImageFilter.GaussianBlur(radius / 3))  # a third of the time
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR), dtype=np.float32)


def _softened(mask: Mask, radius: float) -> Floats:
    """A mask blurred by ``radius`` pixels, in [0, 1]."""
    return _blurred(mask * np.float32(255), radius) / np.float32(255)


def _warped(roles: Roles, dx: Floats, dy: Floats) -> Roles:
    """The role map with every pixel fetched from ``(dx, dy)`` pixels away."""
    n = len(roles)
    grid = np.arange(n)
    x = np.clip(grid[None, :] + dx.astype(int), 0, n - 1)
    y = np.clip(grid[:, None] + dy.astype(int), 0, n - 1)
    return np.asarray(roles[y, x])


def _cells(scene: Scene, kind: str, size: float) -> NDArray[np.int32]:
    """The number of the tile every pixel lies in, ``(n, n)``; ``size`` in 64ths of the side."""
    n, step = scene.n, size * scene.unit
    grid = np.arange(n, dtype=np.float32) / np.float32(step)
    x, y = np.broadcast_to(grid[None, :], (n, n)), np.broadcast_to(grid[:, None], (n, n))
    count = int(n / step) + 3
    if kind == "square":
        return np.asarray(y.astype(np.int32) * count + x.astype(np.int32))
    if kind == "brick":
        row = y.astype(np.int32)
        return np.asarray(row * count + (x / 1.35 + 0.5 * (row % 2)).astype(np.int32))
    centres = scene.rng.random((2, count, count), dtype=np.float32) * 0.9 + 0.05
    column, row = x.astype(np.int32) + 1, y.astype(np.int32) + 1
    nearest = np.full((n, n), 99, dtype=np.float32)
    cell = np.zeros((n, n), dtype=np.int32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            cx, cy = column + dx, row + dy
            distance = (centres[0, cy, cx] + cx - 1 - x) ** 2
            distance += (centres[1, cy, cx] + cy - 1 - y) ** 2
            closer = distance < nearest
            nearest = np.where(closer, distance, nearest)
            cell = np.where(closer, cy * count + cx, cell)
    return cell


def _majority(cells: NDArray[np.int32], roles: Roles, weights: tuple[float, ...]) -> Roles:
    """Every tile wholly in the role that most of it, weighted by role, belongs to, ``(n, n)``."""
    size = int(cells.max()) + 1
    counts = np.bincount(cells.ravel() * 5 + roles.ravel(), minlength=size * 5)
    winner = (counts.reshape(size, 5) * np.array(weights)).argmax(1).astype(np.uint8)
    return np.asarray(winner[cells])


# --- renderings ----------------------------------------------------------------------------------


def _shading(scene: Scene) -> tuple[Floats, Floats]:
    """Light on a puffed-up object from the upper left, about 1, and its highlight in [0, 1]."""
    height = _softened(scene.object, 4 * scene.unit) * 1.3
    height += _softened(scene.object, 1.2 * scene.unit) * 0.25
    parts = (scene.roles == BODY) | (scene.roles == SECOND)
    height += _softened(parts, 1.5 * scene.unit) * 0.25
    slope_y, slope_x = np.gradient(height, np.float32(1 / scene.unit))
    light = (slope_x + slope_y) * np.float32(2.2)
    return np.clip(0.93 + light, 0.5, 1.25), np.clip((light - 0.16) * 4, 0, 1)


def photo(scene: Scene, palette: str, texture: str) -> Floats:
    """Shaded, with a soft shadow, on a ground of any muted colour and grain."""
    rng, n = scene.rng, scene.n
    ground = (rng.uniform(90, 220) + rng.uniform(-32, 32, 3)).astype(np.float32)
    lumps = rng.integers(3, 25, 2)
    grain = _noise(scene, int(lumps[0]), int(lumps[1])) * np.float32(rng.uniform(4, 26))
    grain += _noise(scene, 48) * 8
    picture = ground + grain[..., None] + np.linspace(14, -22, n, dtype=np.float32)[:, None, None]
    shadow = np.roll(
        _softened(scene.object, 2.2 * scene.unit), (scene.px(2.5), scene.px(2)), (0, 1)
    )
    picture = picture * (1 - 0.5 * shadow[..., None])
    light, highlight = _shading(scene)
    solid = scene.painted() * light[..., None] + 120 * highlight[..., None]
    return np.where(scene.object[..., None], solid, picture).astype(np.float32)


def flat(scene: Scene, palette: str, texture: str) -> Floats:
    """Areas of one colour: bare, with a white sticker's rim, or with a long shadow."""
    setting = palette_of("flat", palette)
    picture = np.where(scene.object[..., None], scene.painted(), _rgb(setting.ground))
    if texture == "sticker":
        rim = dilated(scene.object, scene.px(2.2)) & ~scene.object
        picture[rim] = _rgb(WHITE)
    if texture == "shadow":
        cast, step = scene.object.copy(), 1
        while step < scene.n // 2:  # doubling: a streak to the lower right
            cast[step:, step:] |= cast[:-step, :-step].copy()
            step *= 2
        picture[cast & ~scene.object] = _rgb(setting.ink)
    return picture


def line(scene: Scene, palette: str, texture: str) -> Floats:
    """Ink outlines: fine, bold, or drawn twice by an unsteady hand."""
    setting = palette_of("line", palette)
    roles = scene.roles
    if texture == "sketchy":
        ink = np.zeros(roles.shape, dtype=bool)
        for shift in (-1.1, 1.1):
            dx = (_noise(scene, 7) * 1.3 + shift) * scene.unit
            dy = (_noise(scene, 7) * 1.3 - shift / 2) * scene.unit
            ink |= _outline(_warped(roles, dx, dy), scene.px(1.1))
    else:
        ink = _outline(roles, scene.px(1.1 if texture == "fine" else 2.6))
    return _mix(_rgb(setting.ground), _rgb(setting.ink), ink.astype(np.float32))


def watercolor(scene: Scene, palette: str, texture: str) -> Floats:
    """Transparent washes on paper: wet in wet, with dried edges, or on rough paper."""
    setting = palette_of("watercolor", palette)
    spread = {"wet": 1.6}.get(texture, 0.9) * scene.unit
    roles = _warped(scene.roles, _noise(scene, 9) * spread, _noise(scene, 9) * spread)
    colours = np.concatenate([_rgb((255, 255, 255))[None], scene.colours[1:]])
    blur = {"wet": 0.8, "granular": 0.6}.get(texture, 0.4) * scene.unit
    pigment = _blurred(colours[roles], blur)
    cover = _softened(roles != GROUND, blur)
    density = cover * (0.8 + 0.22 * _noise(scene, 8))
    if texture == "edged":
        rim = cover * np.clip(1.6 * (1 - _softened(roles != GROUND, 2 * scene.unit)), 0, 1)
        density = cover * (0.62 + 0.14 * _noise(scene, 8)) + 0.75 * rim
    if texture == "granular":
        density = density * (0.62 + 0.6 * _grain(scene, 1))
    wash = np.clip(0.55 + 0.9 * _noise(scene, 4), 0, 1)
    paper = _mix(_rgb(setting.ground), _rgb(setting.ink), wash * 0.75)
    if texture == "granular":
        paper = paper - 26 * _grain(scene, 1)[..., None]
    dark = 1 - (1 - pigment / 255) * np.clip(density, 0, 1.25)[..., None]
    return np.asarray(paper * np.clip(dark, 0, 1))


def crayon(scene: Scene, palette: str, texture: str) -> Floats:
    """Waxy strokes that leave gaps, over a scribbled ground: slanted, level or crossed."""
    setting = palette_of("crayon", palette)
    angle = 0 if texture == "horizontal" else -50
    wax = _strokes(scene, angle, 1.0, 9) * 0.75 + _grain(scene, 0.7) * 0.25
    if texture == "crossed":
        wax = np.minimum(
            wax, _strokes(scene, angle + 90, 1.0, 9) * 0.75 + _grain(scene, 0.7) * 0.25
        )
    wobble = _noise(scene, 12) * scene.unit
    roles = _warped(scene.roles, wobble, wobble)
    thresholds = {"crossed": (0.16, 0.6), BARE: (0, 2)}.get(texture, (0.3, 0.72))
    picture = np.where((wax < thresholds[0])[..., None], _rgb(setting.ink), _rgb(setting.ground))
    colours = scene.colours[roles]
    filled = (roles != GROUND) & (wax < thresholds[1])
    picture = np.where((roles != GROUND)[..., None], _rgb(setting.ground), picture)
    picture = np.where(filled[..., None], colours, picture)
    edge = _inner_outline(roles, scene.px(1.0)) & (_grain(scene, 0.7) < 0.85)
    return np.where(edge[..., None], colours * np.float32(0.8), picture)


def pixel(scene: Scene, palette: str, texture: str) -> Floats:
    """Big pixels: small with a dark outline, coarse, or with a screen's dark lines."""
    setting = palette_of("pixel", palette)
    if texture == BARE:
        return np.where(scene.object[..., None], scene.painted(), _rgb(setting.ground))
    size = {"outlined": 2, "coarse": 3, "scanlines": 2}[texture]
    step = scene.px(size)
    cells = _cells(scene, "square", size)
    roles = _majority(cells, scene.roles, (0.8, 1, 1.1, 1.3, 1.5))
    rows = (np.arange(scene.n) // step)[:, None]
    columns = (np.arange(scene.n) // step)[None, :]
    checker = ((rows + columns) % 2).astype(np.float32)
    ground = _mix(_rgb(setting.ground), _rgb(setting.ink), checker * (rows * step > scene.n * 0.6))
    picture = np.where((roles != GROUND)[..., None], scene.colours[roles], ground)
    if texture == "outlined":
        solid = (roles != GROUND)[::step, ::step]
        around = np.repeat(np.repeat(dilated(solid, 1), step, 0), step, 1)[: scene.n, : scene.n]
        picture[around & (roles == GROUND)] = _rgb(BLACK)
    if texture == "scanlines":
        picture = picture * np.where(rows % 2 == 0, np.float32(1), np.float32(0.62))[..., None]
    return picture


def neon(scene: Scene, palette: str, texture: str) -> Floats:
    """Glowing tubes in the dark: one thick, two thin, or one with glowing haze inside."""
    setting = palette_of("neon", palette)
    peak = scene.colours.max(1, keepdims=True)
    bright = scene.colours * np.sqrt(255 / np.maximum(peak, 1))
    bright[DETAIL] = (225, 228, 240)
    roles = scene.roles
    tube = _inner_outline(roles, scene.px(1.6 if texture != "double" else 0.8))
    if texture == "double":
        inner = _inner_outline(roles, scene.px(3.4)) & ~_inner_outline(roles, scene.px(2.6))
        tube = tube | inner
    light = bright[roles] * tube[..., None]
    glow = _blurred(light, 1.0 * scene.unit) * 0.3 + _blurred(light, 3.0 * scene.unit) * 0.5
    fog = _mix(_rgb(setting.ground), _rgb(setting.ink), np.clip(_noise(scene, 5), 0, 1))
    picture = fog + glow
    if texture == "haze":
        picture = np.where(scene.object[..., None], bright[roles] * 0.55 + glow * 0.2, picture)
    return np.where(tube[..., None], bright[roles] * 0.92 + 20, picture)


def halftone(scene: Scene, palette: str, texture: str) -> Floats:
    """Printed screens: small dots, large dots with a comic's outlines, or lines."""
    setting = palette_of("halftone", palette)
    period = {"comic": 4.5}.get(texture, 3.2) * scene.unit
    along, across = _axes(scene.n, 45 if texture != "lines" else -20)
    waves = np.cos(across * np.float32(2 * np.pi / period))
    if texture != "lines":
        waves = (waves + np.cos(along * np.float32(2 * np.pi / period))) / 2
    screen = waves * 0.5 + 0.5  # ink goes where it exceeds 1 - darkness
    slope = np.linspace(-0.12, 0.12, scene.n, dtype=np.float32)
    drift = slope[:, None] + slope[None, :]
    solid = scene.object
    darkness = np.where(solid, 0.66 + drift, 0.3 + drift)
    darkness = np.where(scene.roles == DETAIL, 1, darkness)
    ink = np.where(solid[..., None], scene.painted(), _rgb(setting.ink))
    tint = np.float32(0.45 if texture != "comic" else 0.6)
    paper = np.where(solid[..., None], scene.painted() * tint + 255 * (1 - tint), 1.0)
    paper = np.where(solid[..., None], paper, _rgb(setting.ground))
    if texture == BARE:
        return _mix(paper, ink, darkness.astype(np.float32))
    picture = np.where((screen > 1 - darkness)[..., None], ink, paper)
    if texture == "comic":
        picture[_outline(np.where(scene.roles == SECOND, BODY, scene.roles), scene.px(1.6))] = 20
    return picture.astype(np.float32)


def oil(scene: Scene, palette: str, texture: str) -> Floats:
    """Opaque brush strokes of varying lightness: short dabs, long strokes, or swirls."""
    setting = palette_of("oil", palette)
    base = np.where(scene.object[..., None], scene.painted(), _rgb(setting.ground))
    if texture == BARE:
        return base
    rng, n = scene.rng, scene.n
    spacing = {"dabs": 2.4, "long": 2.6, "swirl": 2.5}[texture]
    count = int(66 / spacing)
    lattice = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2)
    centres = (lattice + rng.random(lattice.shape)) * spacing * scene.unit
    centres = centres[rng.permutation(len(centres))]
    half = {"dabs": 1.6, "long": 3.8, "swirl": 3.0}[texture] * scene.unit
    bend = rng.normal(0, 0.35, len(centres))
    if texture == "swirl":
        angles = np.arctan2(centres[:, 1] - n / 2, centres[:, 0] - n / 2) + np.pi / 2 + bend
    else:
        angles = (np.pi / 3 if texture == "long" else 0.0) + bend * (1 if texture == "long" else 3)
    blend, value = rng.random(len(centres)), rng.normal(1, 0.1, len(centres))
    inside = np.clip(centres, 0, n - 1).astype(int)
    roles = scene.roles[inside[:, 1], inside[:, 0]]
    ground = _rgb(setting.ground) + (_rgb(setting.ink) - _rgb(setting.ground)) * blend[:, None]
    colours = np.where((roles == GROUND)[:, None], ground, scene.colours[roles]) * value[:, None]
    image = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    shrink = np.where(roles == GROUND, 1.0, 0.5)
    reach = np.stack([np.cos(angles), np.sin(angles)], -1) * (half * shrink)[:, None]
    ends = np.concatenate([centres - reach, centres + reach], 1).tolist()
    fills = np.clip(colours, 0, 255).astype(int).tolist()
    order = np.argsort(roles != GROUND, kind="stable").tolist()
    for index in order:
        draw.line(ends[index], fill=tuple(fills[index]), width=scene.px(2.0))
    small = scene.roles == DETAIL
    picture = np.array(image, dtype=np.float32)
    picture[small] = scene.colours[DETAIL]
    bristles = _strokes(scene, 60 if texture == "long" else 20, 0.5, 6) - 0.5
    return np.asarray(picture * (1 + 0.16 * bristles[..., None]))


def blueprint(scene: Scene, palette: str, texture: str) -> Floats:
    """Thin light lines on coloured paper: ruled, dotted, or with a draughtsman's guides."""
    setting = palette_of("blueprint", palette)
    n, u = scene.n, scene.unit
    along = np.arange(n, dtype=np.float32) + 0.5
    x, y = along[None, :], along[:, None]
    if texture == "drafting":
        radius = np.sqrt((x - n / 2) ** 2 + (y - n / 2) ** 2)
        rule = (np.abs(radius - 27 * u) < 0.5 * u) | (np.abs(radius - 18 * u) < 0.4 * u)
        rule = rule | (np.abs(x - n / 2) < 0.5 * u) | (np.abs(y - n / 2) < 0.5 * u)
        rule = rule & ((x + y) % (4 * u) < 2.6 * u)
    elif texture == "dotted":
        rule = (x % (5 * u) < 1.3 * u) & (y % (5 * u) < 1.3 * u)
    else:
        rule = (x % (8 * u) < 0.8 * u) | (y % (8 * u) < 0.8 * u)
    guide = {"drafting": 0.6, "dotted": 0.6, "grid": 0.28, BARE: 0.0}[texture]
    mottle = _noise(scene, 6)[..., None] * 6
    picture = _mix(_rgb(setting.ground) + mottle, _rgb(setting.ink), rule * np.float32(guide))
    ink = _outline(scene.roles, scene.px(1.4))
    return _mix(picture, _rgb(setting.ink), ink.astype(np.float32))


def woodcut(scene: Scene, palette: str, texture: str) -> Floats:
    """Carved lines in one ink, denser where darker: level, slanted or in rings."""
    setting = palette_of("woodcut", palette)
    n, period = scene.n, 3.4 * scene.unit
    if texture == "rings":
        along = np.arange(n, dtype=np.float32)
        across = np.sqrt((along[None, :] - n / 2) ** 2 + (along[:, None] - n * 0.3) ** 2)
    else:
        across = _axes(n, 0 if texture == "horizontal" else 45)[1]
    across = across + _noise(scene, 5) * 1.2 * scene.unit
    along = _axes(n, {"horizontal": 60, "diagonal": -45}.get(texture, 15))[1]
    wave = np.where(scene.object, np.cos(along * np.float32(2 * np.pi / (0.8 * period))), 0)
    wave = np.where(scene.object, wave, np.cos(across * np.float32(2 * np.pi / period)))
    tone = np.array([0.2, 0.2, 0.62, 1.0, 0.0], dtype=np.float32)[scene.roles]
    if texture == BARE:
        wave, tone = np.zeros_like(wave), np.where(scene.roles == DETAIL, tone, 0)
    ink = (wave * 0.5 + 0.5 > 1 - tone) | _outline(scene.roles, scene.px(1.5))
    rim = _outline(scene.object.astype(np.uint8), scene.px(1.8))
    moat = dilated(scene.object, scene.px(2.4)) & ~scene.object & ~rim
    return _mix(_rgb(setting.ground), _rgb(setting.ink), ((ink & ~moat) | rim).astype(np.float32))


def mosaic(scene: Scene, palette: str, texture: str) -> Floats:
    """Small tiles with grout between: squares, bricks or shards."""
    setting = palette_of("mosaic", palette)
    if texture == BARE:
        return np.where(scene.object[..., None], scene.painted(), _rgb(setting.ground))
    cells = _cells(scene, texture, {"square": 3.2, "brick": 2.7, "shards": 3.7}[texture])
    roles = _majority(cells, scene.roles, (0.85, 1, 1.1, 1.25, 1.6))
    value = scene.rng.normal(1, 0.09, 2048).astype(np.float32)[cells % 2048]
    picture = np.where((roles != GROUND)[..., None], scene.colours[roles], _rgb(setting.ground))
    picture = picture * value[..., None]
    picture[dilated(_borders(cells), 0)] = _rgb(setting.ink)
    return picture


def glass(scene: Scene, palette: str, texture: str) -> Floats:
    """Lit glass in black lead: bent panes, shards, or rays around the object."""
    setting = palette_of("glass", palette)
    n, u = scene.n, scene.unit
    grid = np.arange(n, dtype=np.float32)
    if texture == "panes":
        x = grid[None, :] + _noise(scene, 5) * 4 * u
        y = grid[:, None] + _noise(scene, 5) * 4 * u
        panes = (np.floor(x / (13 * u)) + 20 * np.floor(y / (13 * u))).astype(np.int32) + 50
    elif texture == "shards":
        panes = _cells(scene, "shards", 13)
    elif texture == BARE:
        panes = np.zeros((n, n), dtype=np.int32)
    else:
        x, y = grid[None, :] - n / 2, grid[:, None] - n / 2
        turn = np.arctan2(y, x) + _noise(scene, 4) * 0.12
        sector = np.floor((turn + np.pi) * (7 / np.pi)).astype(np.int32) % 14
        panes = sector + 16 * (np.sqrt(x**2 + y**2) > 25 * u)
    share = scene.rng.random(1024).astype(np.float32)[panes % 1024]
    ground = _mix(_rgb(setting.ground), _rgb(setting.ink), share)
    picture = np.where(scene.object[..., None], scene.painted(), ground)
    light = 1.0 + 0.22 * _noise(scene, 9)
    core = _softened(scene.object, 5 * u)
    picture = picture * light[..., None] + (36 * core * scene.object)[..., None]
    lead = _outline(panes, scene.px(1.4)) & ~scene.object
    parts = np.where(scene.roles == SECOND, BODY, scene.roles)
    lead = lead | _outline(parts, scene.px(1.9)) | _outline(scene.roles, scene.px(0.9))
    picture[lead | (scene.roles == DETAIL)] = _rgb((18, 16, 20))
    return np.asarray(picture)


def chalk(scene: Scene, palette: str, texture: str) -> Floats:
    """Dusty chalk on a board: mostly outlines, filled with the chalk's side, or hatched."""
    setting = palette_of("chalk", palette)
    dust = np.clip(_noise(scene, 5) * 0.5 + 0.2, 0, 1)
    board = _mix(_rgb(setting.ground), _rgb(setting.ink), dust * 0.5)
    pale = scene.colours * 0.8 + 51
    pale[DETAIL] = 245
    wobble = _noise(scene, 10) * 0.8 * scene.unit
    roles = _warped(scene.roles, wobble, wobble)
    grain = _grain(scene, 0.67)
    if texture == "hatched":
        across = _axes(scene.n, -45)[1] + wobble
        fill = (across % (3.6 * scene.unit) < 1.9 * scene.unit) & (grain < 0.9)
        board = board + 16 * (_strokes(scene, -45, 2.5, 40) - 0.5)[..., None]
    elif texture == "filled":
        fill = grain < 0.85
        board = board + 40 * (_grain(scene, 0.67) > 0.8)[..., None]
    else:
        fill = grain < 0.16
    line_ = _inner_outline(roles, scene.px(1.5)) & (grain < 0.9)
    marks = (fill & (roles != GROUND)) | line_ | ((roles == DETAIL) & (grain < 0.95))
    return np.where(marks[..., None], pale[roles], board).astype(np.float32)


RENDERINGS: Mapping[str, Callable[[Scene, str, str], Floats]] = {
    "photo": photo,
    "flat": flat,
    "line": line,
    "watercolor": watercolor,
    "crayon": crayon,
    "pixel": pixel,
    "neon": neon,
    "halftone": halftone,
    "oil": oil,
    "blueprint": blueprint,
    "woodcut": woodcut,
    "mosaic": mosaic,
    "glass": glass,
    "chalk": chalk,
}
