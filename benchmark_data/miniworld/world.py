"""The miniature world: things, looks, the drawing of one in the other, captions and held-out parts.

`draw(thing, look, seed=...)` is the whole renderer and its arguments are the truth about a picture.
Subjects and styles are things and looks that `random_thing` and `random_look` never return, so that
a base model trained on these has seen every category, colour, pattern, palette and texture, but
none of the subjects and none of the styles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmark_data.miniworld.renderings import BLACK, RENDERINGS, Scene
from benchmark_data.miniworld.settings import BARE, INVENTED, PALETTES, SEPARABLE, TEXTURES
from benchmark_data.miniworld.shapes import OBJECTS, PATTERN_FIELDS, ROLES, random_pose, role_map

CATEGORIES: tuple[str, ...] = tuple(OBJECTS)
PATTERNS: tuple[str, ...] = ("plain", *PATTERN_FIELDS)
FAMILIES: tuple[str, ...] = tuple(RENDERINGS)
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (212, 32, 40),
    "orange": (248, 128, 16),
    "yellow": (252, 222, 44),
    "green": (36, 156, 64),
    "blue": (36, 92, 220),
    "purple": (126, 44, 172),
    "pink": (248, 148, 196),
    "brown": (118, 68, 36),
}
PARTS: Mapping[str, str] = {
    "mug": "handle",
    "fish": "fins",
    "house": "roof",
    "tree": "trunk",
    "star": "face",
    "car": "cabin",
    "cat": "ears",
    "umbrella": "handle",
    "mushroom": "stem",
    "teapot": "lid",
    "boat": "sail",
    "rocket": "fins",
}
ATTRIBUTES = ("category", "body", "accent", "pattern", "second")
MONOCHROME = frozenset({"line", "blueprint", "woodcut"})
TOKEN = "תת"  # U+05EA twice, as in the paper

Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)

_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Thing:
    """An object to draw.

    Attributes:
        category: one of CATEGORIES.
        body: the colour of its body, one of COLOURS.
        accent: the colour of the part PARTS names.
        pattern: one of PATTERNS, on the body.
        second: the pattern's colour; empty if and only if the pattern is plain.

    Raises:
        ValueError: if a value is unknown or two colours are equal.
    """

    category: str
    body: str
    accent: str
    pattern: str = "plain"
    second: str = ""

    def __post_init__(self) -> None:
        _check("category", self.category, CATEGORIES)
        _check("pattern", self.pattern, PATTERNS)
        if (self.second == "") != (self.pattern == "plain"):
            raise ValueError(f"{self}: a plain thing has second='', any other a colour")
        colours = [self.body, self.accent, *([self.second] if self.second else [])]
        for colour in colours:
            _check("colour", colour, tuple(COLOURS))
        if len(set(colours)) < len(colours):
            raise ValueError(f"{self}: body, accent and second must be different colours")


@dataclass(frozen=True)
class Look:
    """A way to draw: a family of styles and its setting.

    The texture may be BARE in families that are SEPARABLE: what is left of a setting that lost its
    texture. `random_look` never returns such a look, and no style is one.

    Raises:
        ValueError: if the family has no such palette or texture.
    """

    family: str
    palette: str
    texture: str

    def __post_init__(self) -> None:
        _check("family", self.family, FAMILIES)
        if self.palette not in INVENTED[self.family]:
            _check(f"{self.family} palette", self.palette, tuple(PALETTES[self.family]))
        bare = (BARE,) if self.family in SEPARABLE else ()
        _check(f"{self.family} texture", self.texture, (*TEXTURES[self.family], *bare))


@dataclass(frozen=True)
class Subject:
    """A thing held out of the base model's data."""

    id: str
    thing: Thing
    split: Split

    @property
    def class_noun(self) -> str:
        """The word for its class, e.g. ``mug``."""
        return self.thing.category


@dataclass(frozen=True)
class Style:
    """A look held out of the base model's data; ``phrase``, its name, is in no base caption."""

    id: str
    look: Look
    split: Split

    @property
    def phrase(self) -> str:
        """The one word that names the style in prompts."""
        return self.id


def _check(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")


# --- drawing -------------------------------------------------------------------------------------


def draw(
    thing: Thing, look: Look, *, seed: int, jitter: float = 1.0, size: int = 64
) -> Image.Image:
    """An RGB picture of the thing, ``size`` pixels a side.

    Args:
        thing: what to draw.
        look: how to draw it.
        seed: decides the pose, the same in every look, and the look's grain.
        jitter: scales the pose's spread; 1 shifts by 5 % of the side, turns by 12 degrees.
        size: pixels a side.

    >>> draw(Thing("mug", "red", "green"), PHOTO, seed=0).size
    (64, 64)
    """
    n = size * _SUPERSAMPLING
    pose = random_pose(np.random.default_rng([seed, 0]), jitter)
    roles = role_map(thing.category, thing.pattern, pose, n)
    body, accent = COLOURS[thing.body], COLOURS[thing.accent]
    colours = [(0, 0, 0), body, accent, COLOURS[thing.second] if thing.second else body, BLACK]
    scene = Scene(
        roles, np.array(colours, dtype=np.float32), n / 64, np.random.default_rng([seed, 1])
    )
    picture = RENDERINGS[look.family](scene, look.palette, look.texture)
    image = Image.fromarray((np.clip(picture, 0, 255) + 0.5).astype(np.uint8))
    return image.reduce(_SUPERSAMPLING)


COUNTS_FROM = 0.4
"""Contrast of its texture from which on a picture is in a style, by definition."""
GONE, THERE = (0.08, 0.36), (0.44, 0.85)
"""Contrasts of faint textures to learn from, below that and above: no style any more, and one."""


def draw_faint(
    thing: Thing, look: Look, contrast: float, *, seed: int, jitter: float = 1.0
) -> Image.Image:
    """An RGB picture, 64 pixels a side, whose texture has so much of its contrast.

    It is blended with the same drawing without texture: 1 is `draw`, 0 the bare look.

    Raises:
        ValueError: if the look's family is not SEPARABLE.
    """
    whole, bare = (
        np.asarray(draw(thing, shown, seed=seed, jitter=jitter), np.float64)
        for shown in (look, Look(look.family, look.palette, BARE))
    )
    return Image.fromarray(np.rint(bare + contrast * (whole - bare)).astype(np.uint8))


def draw_roles(
    thing: Thing, *, seed: int, jitter: float = 1.0, size: int = 64
) -> NDArray[np.uint8]:
    """What every pixel of ``draw(thing, ..., seed=seed)`` belongs to, ``(size, size)``.

    Values index `ROLES`: 0 ground, 1 body, 2 accent, 3 second, 4 detail. A pixel that the object
    covers by half or more has the object's role that covers most of it.
    """
    pose = random_pose(np.random.default_rng([seed, 0]), jitter)
    fine = role_map(thing.category, thing.pattern, pose, size * _SUPERSAMPLING)
    blocks = fine.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING)
    counts = np.stack([(blocks == role).sum((1, 3)) for role in range(len(ROLES))])
    inside = 2 * counts[0] <= _SUPERSAMPLING**2
    return np.where(inside, counts[1:].argmax(0) + 1, 0).astype(np.uint8)


# --- what can be told from a picture -------------------------------------------------------------


def survives(look: Look | str) -> frozenset[str]:
    """The attributes that can still be told from a picture in this look or family."""
    family = look if isinstance(look, str) else look.family
    _check("family", family, FAMILIES)
    return frozenset({"category", "pattern"} if family in MONOCHROME else ATTRIBUTES)


def same_in(look: Look | str, a: Thing, b: Thing) -> bool:
    """Whether two things cannot be told apart in this look or family."""
    return all(getattr(a, attribute) == getattr(b, attribute) for attribute in survives(look))


def changeable(thing: Thing) -> tuple[str, ...]:
    """The attributes `one_attribute_changed` accepts: a plain thing has no second colour."""
    return ATTRIBUTES if thing.second else ATTRIBUTES[:-1]


def one_attribute_changed(thing: Thing, attribute: str, rng: np.random.Generator) -> Thing:
    """The thing with another value of one attribute.

    A plain thing that gets a pattern gets a second colour, too; one that becomes plain loses it.

    Raises:
        ValueError: if the attribute is unknown or the second colour of a plain thing.
    """
    _check("changeable attribute", attribute, changeable(thing))
    values = {"category": CATEGORIES, "pattern": PATTERNS}.get(attribute, tuple(COLOURS))
    taken = {getattr(thing, attribute)}
    if attribute in ("body", "accent", "second"):
        taken |= {thing.body, thing.accent, thing.second}
    value = _pick(rng, [v for v in values if v not in taken])
    if attribute == "pattern" and value == "plain":
        return replace(thing, pattern="plain", second="")
    if attribute == "pattern" and not thing.second:
        second = _pick(rng, [c for c in COLOURS if c not in (thing.body, thing.accent)])
        return replace(thing, pattern=value, second=second)
    return replace(thing, **{attribute: value})


# --- held-out subjects and styles ----------------------------------------------------------------

PHOTO = Look("photo", "natural", "natural")


def _subjects(split: Split, *things: tuple[str, str]) -> dict[str, Subject]:
    """Subjects from an id and ``body accent [pattern second]``."""
    return {
        id_: Subject(id_, Thing(id_.partition("_")[0], *words.split()), split)
        for id_, words in things
    }


SUBJECTS: Mapping[str, Subject] = {
    **_subjects(
        "train",
        ("mug_1", "blue orange spots yellow"),
        ("fish_1", "red yellow"),
        ("house_1", "yellow red stripes brown"),
        ("tree_1", "green brown spots red"),
        ("star_1", "purple pink checks yellow"),
        ("car_1", "green orange"),
        ("cat_1", "orange brown stripes yellow"),
        ("umbrella_1", "pink purple spots blue"),
        ("mushroom_1", "red yellow checks blue"),
        ("teapot_1", "pink green stripes red"),
        ("boat_1", "brown yellow checks pink"),
        ("rocket_1", "blue red stripes pink"),
    ),
    **_subjects(
        "val", ("fish_2", "green pink checks orange"), ("umbrella_2", "blue brown stripes red")
    ),
    **_subjects(
        "test",
        ("cat_2", "blue pink stripes yellow"),
        ("teapot_2", "purple green spots yellow"),
        ("mug_2", "red blue checks yellow"),
        ("rocket_2", "yellow purple spots red"),
        ("mushroom_2", "orange brown stripes blue"),
    ),
}


def _styles(split: Split, *looks: tuple[str, str]) -> dict[str, Style]:
    """Styles from an id and ``family palette texture``."""
    return {id_: Style(id_, Look(*words.split()), split) for id_, words in looks}


STYLES: Mapping[str, Style] = {
    **_styles(
        "train",
        ("aquarelle", "watercolor rose wet"),
        ("nocturne", "neon navy haze"),
        ("tessera", "mosaic azure square"),
        ("impasto", "oil sea swirl"),
        ("slate", "chalk black hatched"),
        ("cutout", "flat charcoal sticker"),
        ("inkwell", "line blue_on_cream bold"),
        ("woodblock", "woodcut red_on_tan rings"),
        ("arcade", "pixel night outlined"),
        ("scribble", "crayon lemon horizontal"),
    ),
    **_styles("val", ("gazette", "halftone newsprint lines"), ("terrazzo", "mosaic onyx shards")),
    **_styles(
        "test",
        ("cathedral", "glass amber rays"),
        ("broadway", "neon violet tube"),
        ("benday", "halftone pop comic"),
        ("waxwork", "crayon black crossed"),
        ("cyanotype", "blueprint prussian grid"),
    ),
}

_HELD_OUT_THINGS = frozenset(subject.thing for subject in SUBJECTS.values())
_HELD_OUT_LOOKS = frozenset(style.look for style in STYLES.values())


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def random_thing(
    rng: np.random.Generator,
    *,
    categories: Sequence[str] = CATEGORIES,
    patterns: Sequence[str] = PATTERNS,
) -> Thing:
    """A thing that is no subject; category, pattern and colours are each uniform."""
    while True:
        body, accent, second = (str(c) for c in rng.permutation(list(COLOURS))[:3])
        pattern = _pick(rng, patterns)
        second = "" if pattern == "plain" else second
        thing = Thing(_pick(rng, categories), body, accent, pattern, second)
        if thing not in _HELD_OUT_THINGS:
            return thing


def random_look(rng: np.random.Generator, families: Sequence[str] = FAMILIES) -> Look:
    """A look that is no style; the family is uniform, then palette and texture are."""
    while True:
        family = _pick(rng, families)
        look = Look(family, _pick(rng, tuple(PALETTES[family])), _pick(rng, TEXTURES[family]))
        if look not in _HELD_OUT_LOOKS:
            return look


# --- captions and prompts ------------------------------------------------------------------------

WORDS: tuple[str, ...] = tuple(
    sorted(
        {"a", "an", "with", "and", "in", "style"}
        | {*CATEGORIES, *PARTS.values(), *COLOURS, *PATTERNS[1:], *FAMILIES}
    )
)
SETTING_WORDS: tuple[str, ...] = tuple(
    sorted(
        {word for names in PALETTES.values() for name in names for word in name.split("_")}
        | {texture for names in TEXTURES.values() for texture in names}
    )
)
"""What captions may say of a look beside its family."""


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _describe(thing: Thing, *, body: bool = True, pattern: bool = True, accent: bool = True) -> str:
    """The thing in words, with those of its attributes that are asked for."""
    with_ = [f"{thing.second} {thing.pattern}"] if thing.second and pattern else []
    with_ += [f"{thing.accent} {PARTS[thing.category]}"] if accent else []
    text = _a(f"{thing.body} {thing.category}" if body else thing.category)
    return text + (f" with {' and '.join(with_)}" if with_ else "")


def caption(
    thing: Thing,
    look: Look,
    rng: np.random.Generator,
    drop: float = 0.3,
    *,
    palette: float = 0.0,
    texture: float = 0.0,
) -> str:
    """A caption of the base model's training data, at most 16 words.

    With probability ``drop`` the caption is short: each of body colour, pattern and accent is then
    left out with probability 2/3. Every other photo is called none, so that no style means photo.
    The look's palette and texture are named with the given probabilities.

    >>> rng = np.random.default_rng(0)
    >>> thing = Thing("mug", "red", "green", "spots", "yellow")
    >>> caption(thing, Look("neon", "black", "tube"), rng, drop=0)
    'a red mug with yellow spots and green handle in neon style'
    >>> caption(thing, Look("line", "sepia_on_tan", "bold"), rng, drop=0, palette=1, texture=1)
    'a red mug with yellow spots and green handle in sepia on tan bold line style'
    """
    full = rng.random() >= drop
    body, pattern, accent = (rng.random(3) < 1 / 3) | full
    nameless = look.family == "photo" and rng.random() < 0.5
    text = _describe(thing, body=bool(body), pattern=bool(pattern), accent=bool(accent))
    chances = rng.random(2) < (palette, texture) if palette or texture else (False, False)
    named = [look.palette.replace("_", " ")] if chances[0] and look.family != "photo" else []
    named += [look.texture] if chances[1] and look.family != "photo" else []
    return text if nameless else f"{text} in {' '.join([*named, look.family])} style"


def prompt(subject: Subject, style: Style) -> str:
    """The prompt of the subject in the style."""
    return f"{subject_prompt(subject)} in {style.phrase} style"


def subject_prompt(subject: Subject) -> str:
    """The prompt of the subject alone, drawn as a photo."""
    return f"a {TOKEN} {subject.class_noun}"


def style_prompt(thing: Thing, style: Style) -> str:
    """The prompt of a picture of the thing in the style.

    The thing is described in full, as in the paper's captions, so that the style's word is left to
    mean the style and not the thing's colours.
    """
    return f"{_describe(thing)} in {style.phrase} style"
