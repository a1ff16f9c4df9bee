"""The settings of the miniature world's style families: palettes and textures, by name.

Some palettes are invented, for a judge to learn from; no style and no caption has them.
"""

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """A setting's colours: the ground, and the ink or second ground colour."""

    ground: RGB
    ink: RGB


PALETTES: Mapping[str, Mapping[str, Palette]] = {
    "photo": {"natural": Palette((170, 160, 150), (60, 50, 60))},
    "flat": {
        "sky": Palette((168, 214, 240), (110, 165, 205)),
        "sand": Palette((244, 226, 196), (214, 186, 146)),
        "mint": Palette((186, 232, 208), (130, 190, 160)),
        "charcoal": Palette((52, 54, 64), (28, 29, 36)),
    },
    "line": {
        "black_on_white": Palette((252, 252, 250), (20, 20, 24)),
        "blue_on_cream": Palette((250, 240, 212), (30, 60, 170)),
        "sepia_on_tan": Palette((222, 190, 146), (90, 45, 20)),
        "white_on_grey": Palette((72, 74, 80), (245, 245, 245)),
    },
    "watercolor": {
        "white": Palette((252, 251, 248), (176, 206, 228)),
        "ochre": Palette((250, 238, 208), (226, 186, 120)),
        "rose": Palette((252, 232, 232), (230, 160, 176)),
        "sage": Palette((232, 240, 226), (140, 180, 146)),
    },
    "crayon": {
        "white": Palette((253, 252, 246), (150, 190, 235)),
        "kraft": Palette((196, 160, 116), (240, 226, 196)),
        "black": Palette((34, 32, 36), (96, 90, 110)),
        "lemon": Palette((252, 244, 190), (244, 160, 150)),
    },
    "pixel": {
        "sky": Palette((120, 190, 248), (170, 220, 255)),
        "night": Palette((26, 24, 66), (60, 50, 120)),
        "meadow": Palette((150, 208, 110), (120, 180, 84)),
        "dune": Palette((238, 206, 150), (220, 176, 116)),
    },
    "neon": {
        "black": Palette((6, 6, 10), (20, 20, 30)),
        "violet": Palette((44, 8, 74), (90, 20, 120)),
        "forest": Palette((4, 48, 36), (8, 90, 60)),
        "navy": Palette((8, 22, 84), (20, 50, 140)),
    },
    "halftone": {
        "newsprint": Palette((244, 240, 228), (70, 70, 80)),
        "pop": Palette((255, 232, 90), (230, 60, 60)),
        "cyan": Palette((235, 248, 252), (0, 160, 215)),
        "magenta": Palette((255, 222, 236), (220, 50, 140)),
    },
    "oil": {
        "ochre": Palette((196, 150, 70), (140, 96, 40)),
        "sea": Palette((70, 140, 160), (30, 84, 120)),
        "dusk": Palette((150, 110, 150), (84, 60, 110)),
        "meadow": Palette((130, 150, 90), (74, 104, 56)),
    },
    "blueprint": {
        "prussian": Palette((24, 66, 148), (235, 243, 255)),
        "teal": Palette((10, 96, 100), (215, 250, 240)),
        "diazo": Palette((226, 226, 246), (70, 50, 160)),
        "maroon": Palette((104, 22, 40), (255, 224, 214)),
    },
    "woodcut": {
        "black_on_cream": Palette((242, 232, 208), (26, 22, 20)),
        "red_on_tan": Palette((232, 206, 166), (150, 28, 24)),
        "indigo_on_grey": Palette((208, 216, 220), (28, 36, 104)),
        "white_on_black": Palette((22, 22, 24), (238, 234, 226)),
    },
    "mosaic": {
        "marble": Palette((232, 228, 220), (150, 146, 140)),
        "azure": Palette((110, 176, 206), (30, 80, 116)),
        "terracotta": Palette((226, 180, 150), (128, 76, 52)),
        "onyx": Palette((66, 68, 76), (16, 16, 20)),
    },
    "glass": {
        "rose": Palette((240, 150, 170), (250, 206, 190)),
        "azure": Palette((120, 180, 240), (170, 226, 240)),
        "amber": Palette((248, 200, 110), (250, 232, 170)),
        "emerald": Palette((110, 200, 150), (190, 230, 160)),
    },
    "chalk": {
        "green": Palette((34, 74, 58), (90, 130, 112)),
        "black": Palette((36, 36, 38), (90, 90, 92)),
        "navy": Palette((30, 44, 92), (84, 100, 150)),
        "brick": Palette((128, 58, 46), (180, 110, 96)),
    },
}


def _invented(family: str, count: int, least: int = 24) -> dict[str, Palette]:
    """Palettes of the family's tones in other colours, the same for everyone.

    From each other and from the family's own they differ by ``least`` of 255 in some channel.
    """
    own, rng = list(PALETTES[family].values()), np.random.default_rng([*family.encode()])
    made: list[Palette] = []
    while len(made) < count:
        model, turn, paler = own[rng.integers(len(own))], rng.random(), rng.uniform(-0.35, 0.5)
        lighter, tones = rng.uniform(-0.1, 0.2), []
        for colour in (model.ground, model.ink):
            hue, saturation, value = colorsys.rgb_to_hsv(*(tone / 255 for tone in colour))
            chosen = ((hue + turn) % 1, saturation + paler, value + lighter)
            tones.append(colorsys.hsv_to_rgb(*(min(max(x, 0.0), 1.0) for x in chosen)))
        ground, ink = ((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in tones)
        palette = Palette(ground, ink)
        if all(_distance(palette, other) >= least for other in (*own, *made)):
            made.append(palette)
    return {f"invented_{number}": palette for number, palette in enumerate(made)}


def _distance(a: Palette, b: Palette) -> int:
    return max(abs(x - y) for x, y in zip((*a.ground, *a.ink), (*b.ground, *b.ink), strict=True))


INVENTED: Mapping[str, Mapping[str, Palette]] = {
    family: {} if family == "photo" else _invented(family, 20) for family in PALETTES
}
"""Palettes of no style and no caption, for a judge that has to tell settings it has never met."""


def palette_of(family: str, name: str) -> Palette:
    """A palette of a family, its own or an invented one."""
    return PALETTES[family].get(name) or INVENTED[family][name]


TEXTURES: Mapping[str, tuple[str, ...]] = {
    "photo": ("natural",),
    "flat": ("plain", "sticker", "shadow"),
    "line": ("fine", "bold", "sketchy"),
    "watercolor": ("wet", "edged", "granular"),
    "crayon": ("diagonal", "horizontal", "crossed"),
    "pixel": ("outlined", "coarse", "scanlines"),
    "neon": ("tube", "double", "haze"),
    "halftone": ("dots", "comic", "lines"),
    "oil": ("dabs", "long", "swirl"),
    "blueprint": ("grid", "dotted", "drafting"),
    "woodcut": ("horizontal", "diagonal", "rings"),
    "mosaic": ("square", "brick", "shards"),
    "glass": ("panes", "shards", "rays"),
    "chalk": ("outline", "filled", "hatched"),
}
BARE = "bare"  # the texture of a setting that has lost its texture: no style, and in no caption
SEPARABLE = (
    "crayon",
    "pixel",
    "halftone",
    "oil",
    "blueprint",
    "woodcut",
    "mosaic",
    "glass",
)  # families of which something is left without their textures
