"""Drawings that the judges of the miniature world learn from, and pairs of them to compare.

A group is one thing: two photos of it (as references are) and `TESTS` pictures in random looks,
each of them twice, with the same pose and grain: as it is and with one attribute changed. Nothing
of the validation or test split is ever drawn for training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark_data.miniworld.settings import BARE, INVENTED, PALETTES, SEPARABLE, TEXTURES
from benchmark_data.miniworld.train.common import load_state, log, save_state
from benchmark_data.miniworld.world import (
    ATTRIBUTES,
    CATEGORIES,
    COLOURS,
    FAMILIES,
    MONOCHROME,
    PATTERNS,
    STYLES,
    SUBJECTS,
    Look,
    Split,
    Thing,
    changeable,
    draw,
    draw_roles,
    one_attribute_changed,
    random_look,
    random_thing,
    survives,
)

TESTS = 4
GROUP = 2 + 2 * TESTS
REFERENCE, TEST, VARIANT, UNUSED = range(4)
JITTER = (0.4, 0.8)
CELLS = 16  # cells a side of the role map that is kept with every drawing
# of a changed thing: fine attributes are the hard ones, so they change more often
CHANGES = {"category": 0.1, "body": 0.2, "accent": 0.25, "pattern": 0.25, "second": 0.2}
LEAST_CHANGE = 0.012  # fraction of the pixels that a changed attribute must change

LOOKS: tuple[Look, ...] = tuple(
    Look(family, palette, texture)
    for family in FAMILIES
    for palette in PALETTES[family]
    for texture in TEXTURES[family]
)
INVENTED_LOOKS = tuple(
    Look(family, palette, texture)
    for family in FAMILIES
    for palette in INVENTED[family]
    for texture in TEXTURES[family]
)
ALL_LOOKS = (*LOOKS, *INVENTED_LOOKS)
BARE_LOOKS = tuple(Look(family, name, BARE) for family in SEPARABLE for name in PALETTES[family])
_TEXTURES_OF = tuple(
    [
        number
        for number, other in enumerate(ALL_LOOKS)
        if other != look and (other.family, other.palette) == (look.family, look.palette)
    ]
    for look in ALL_LOOKS
)  # the numbers of the looks that differ from each in texture alone
PHOTO_FAMILY = FAMILIES.index("photo")
_LOOK_NUMBER = {look: number for number, look in enumerate(ALL_LOOKS)}
_SECONDS = ("", *COLOURS)
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Bank:
    """Drawings and what they show.

    Attributes:
        pixels: uint8, ``(n, 3, 64, 64)``.
        roles: uint8, ``(n, CELLS, CELLS)``, see `world.draw_roles`.
        things: ``(n, 5)``, numbers of category, body, accent, pattern, second (0: none).
        looks: ``(n,)``, numbers of `ALL_LOOKS`.
        families: ``(n,)``, numbers of FAMILIES.
        kinds: ``(n,)``, REFERENCE, TEST, VARIANT or UNUSED (a change that cannot be seen).
        by_look: the tests and variants in each look.
        by_family: the same for each family.
        by_category: the same for each category.
    """

    pixels: Tensor
    roles: Tensor
    things: Integers
    looks: Integers
    families: Integers
    kinds: Integers
    by_look: tuple[Integers, ...]
    by_family: tuple[Integers, ...]
    by_category: tuple[Integers, ...]

    @property
    def groups(self) -> int:
        """The number of groups."""
        return len(self.kinds) // GROUP


def thing_numbers(thing: Thing) -> tuple[int, ...]:
    """A thing's attributes as numbers, in the order of ATTRIBUTES."""
    colours = tuple(COLOURS)
    return (
        CATEGORIES.index(thing.category),
        colours.index(thing.body),
        colours.index(thing.accent),
        PATTERNS.index(thing.pattern),
        _SECONDS.index(thing.second),
    )


def described(bank: Bank, row: int) -> tuple[Thing, Look]:
    """What a row of a bank shows."""
    category, body, accent, pattern, second = bank.things[row]
    colours = tuple(COLOURS)
    thing = Thing(
        CATEGORIES[category],
        colours[body],
        colours[accent],
        PATTERNS[pattern],
        _SECONDS[second],
    )
    return thing, ALL_LOOKS[bank.looks[row]]


def _thing(rng: np.random.Generator, split: Split) -> Thing:
    held = [subject.thing for subject in SUBJECTS.values() if subject.split == split]
    if split == "train" and rng.random() > 0.05:
        return random_thing(rng)
    return held[int(rng.integers(len(held)))]


def _look(rng: np.random.Generator, split: Split) -> Look:
    held = [style.look for style in STYLES.values() if style.split == split]
    chance = rng.random()
    if chance < 0.2:
        return random_look(rng, families=("photo",))
    if split == "train" and chance < 0.92:
        return random_look(rng, families=[f for f in FAMILIES if f != "photo"])
    look = held[int(rng.integers(len(held)))]
    if split != "train" and chance < 0.5:  # another setting of the family: a near miss
        return random_look(rng, families=(look.family,))
    return look


def _changed(thing: Thing, look: Look, rng: np.random.Generator, split: Split) -> Thing:
    """The thing with one attribute changed that can be told in this look."""
    forbidden = {s.thing for s in SUBJECTS.values() if split == "train" and s.split != "train"}
    names = [a for a in ATTRIBUTES if a in changeable(thing) and a in survives(look)]
    chances = np.array([CHANGES[a] for a in names])
    while True:
        name = names[int(rng.choice(len(names), p=chances / chances.sum()))]
        changed = one_attribute_changed(thing, name, rng)
        if changed not in forbidden:
            return changed


def draw_groups(
    first: int, count: int, *, seed: int, split: Split = "train", invented: bool = False
) -> tuple[dict[str, Tensor], list[int]]:
    """Draw groups ``first`` to ``first + count``, perhaps in invented palettes, for a `Bank`."""
    pixels = np.empty((count * GROUP, 64, 64, 3), np.uint8)
    roles = np.empty((count * GROUP, CELLS, CELLS), np.uint8)
    facts = np.empty((count * GROUP, 7), np.int64)  # thing, look, kind
    skipped: list[int] = []
    row = 0
    for group in range(first, first + count):
        rng = np.random.default_rng((seed, group))
        thing = _thing(rng, split)
        plan: list[tuple[Thing, Look, int, int]] = [
            (thing, random_look(rng, families=("photo",)), int(rng.integers(2**31)), REFERENCE)
            for _ in range(2)
        ]
        for _ in range(TESTS):
            look, pose = _look(rng, split), int(rng.integers(2**31))
            if invented and look.family != "photo":
                look = INVENTED_LOOKS[int(rng.integers(len(INVENTED_LOOKS)))]
            plan += [
                (thing, look, pose, TEST),
                (_changed(thing, look, rng, split), look, pose, VARIANT),
            ]
        for shown, look, pose, kind in plan:
            jitter = JITTER[pose % 2]
            pixels[row] = np.asarray(draw(shown, look, seed=pose, jitter=jitter))
            roles[row] = draw_roles(shown, seed=pose, jitter=jitter, size=CELLS)
            if kind == VARIANT:
                difference = np.abs(pixels[row].astype(int) - pixels[row - 1]).max(-1)
                if (difference > 30).mean() < LEAST_CHANGE:
                    kind = UNUSED
                    skipped.append(row)
            facts[row] = (*thing_numbers(shown), _LOOK_NUMBER[look], kind)
            row += 1
    tensors = {
        "pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        "roles": torch.from_numpy(roles),
        "facts": torch.from_numpy(facts),
    }
    return tensors, skipped


def make_bank(tensors: dict[str, Tensor]) -> Bank:
    """The bank of what `draw_groups` drew."""
    facts = tensors["facts"].numpy()
    things, looks, kinds = facts[:, :5], facts[:, 5], facts[:, 6]
    families = np.array([FAMILIES.index(look.family) for look in ALL_LOOKS])[looks]
    shown = (kinds == TEST) | (kinds == VARIANT)
    return Bank(
        tensors["pixels"],
        tensors["roles"],
        things,
        looks,
        families,
        kinds,
        tuple(np.flatnonzero(shown & (looks == number)) for number in range(len(ALL_LOOKS))),
        tuple(np.flatnonzero(shown & (families == number)) for number in range(len(FAMILIES))),
        tuple(np.flatnonzero(shown & (things[:, 0] == n)) for n in range(len(CATEGORIES))),
    )


def load_bank(work: Path, *, groups: int, seed: int, invented: int = 0, chunk: int = 500) -> Bank:
    """Draw the training groups, a file every ``chunk`` of them, or read what is drawn already.

    ``invented`` more groups, after the others, are in invented palettes.
    """
    parts: list[dict[str, Tensor]] = []
    for title, start, end in (
        ("drawings", 0, groups),
        ("invented", groups, groups + invented),
    ):
        for first in range(start, end, chunk):
            count = min(chunk, end - first)
            path = work / f"{title}-{seed}-{first}-{count}.safetensors"
            if not path.exists():
                tensors, skipped = draw_groups(
                    first, count, seed=seed, invented=title == "invented"
                )
                save_state(path, tensors, {})
                log.info(
                    "%s: group %d of %d, %d changes not visible", title, first, end, len(skipped)
                )
            parts.append(load_state(path)[0])
    return make_bank({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


# --- pairs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Comparisons of two drawings of a bank.

    Attributes:
        references: ``(n,)`` rows of the bank.
        tests: ``(n,)`` rows of the bank.
        answers: ``(n,)``, whether the right answer is yes.
        hard: ``(n,)``, whether a no is a near miss: one attribute, or a setting of the family.
    """

    references: Integers
    tests: Integers
    answers: Booleans
    hard: Booleans


def same_subject(bank: Bank, references: Integers, tests: Integers) -> Booleans:
    """Whether two rows show things that the test's look cannot tell apart, ``(n,)``."""
    equal = bank.things[references] == bank.things[tests]
    grey = np.isin(bank.families[tests], [FAMILIES.index(family) for family in MONOCHROME])
    return np.asarray(equal[:, 0] & equal[:, 3] & (grey | equal.all(1)))


def _choose(rng: np.random.Generator, rows: Sequence[int] | Integers) -> int:
    return int(rows[int(rng.integers(len(rows)))])


def subject_pairs(bank: Bank, count: int, rng: np.random.Generator, each: int = 1) -> Pairs:
    """A photo of a thing against pictures: half the same thing, a quarter one attribute off.

    ``each`` pairs in a row have the same reference.
    """
    references, tests = np.empty(count, np.int64), np.empty(count, np.int64)
    hard = np.zeros(count, bool)
    start = reference = 0
    for index in range(count):
        if index % each == 0:
            start = int(rng.integers(bank.groups)) * GROUP
            reference = start + int(rng.integers(2))
        while True:
            chance = rng.random()
            test = start + 2 + 2 * int(rng.integers(TESTS))
            if chance < 0.04:  # the other photo
                test = start + 1 - (reference - start)
            elif 0.5 <= chance < 0.77:
                test += 1
            elif 0.77 <= chance < 0.9:
                test = _choose(rng, bank.by_category[bank.things[start, 0]])
            elif chance >= 0.9:
                test = int(rng.integers(len(bank.kinds)))
            if bank.kinds[test] != UNUSED:
                break
        references[index], tests[index], hard[index] = reference, test, 0.5 <= chance < 0.77
    answers = same_subject(bank, references, tests)
    return Pairs(references, tests, answers, hard & ~answers)


def style_pairs(bank: Bank, count: int, rng: np.random.Generator, each: int = 1) -> Pairs:
    """A picture in a style against others: half in the very same look, the rest as in the code.

    ``each`` pairs in a row have the same reference.
    """
    references, tests = np.empty(count, np.int64), np.empty(count, np.int64)
    hard = np.zeros(count, bool)
    styled = np.flatnonzero((bank.families != PHOTO_FAMILY) & (bank.kinds != UNUSED))
    reference = start = family = 0
    near: list[int] = []
    for index in range(count):
        if index % each == 0:
            reference = _choose(rng, styled)
            start, family = reference // GROUP * GROUP, int(bank.families[reference])
            near = [n for n in _TEXTURES_OF[bank.looks[reference]] if len(bank.by_look[n])]
        while True:
            chance = rng.random()
            if chance < 0.5:
                test = _choose(rng, bank.by_look[bank.looks[reference]])
            elif chance < 0.7 and near:  # another texture in the same palette: the nearest miss
                test = _choose(rng, bank.by_look[_choose(rng, near)])
            elif chance < 0.84:  # another setting of the family
                test = _choose(rng, bank.by_family[family])
            elif chance < 0.89:  # any photo
                test = int(rng.integers(bank.groups)) * GROUP + int(rng.integers(2))
            elif chance < 0.95:  # the same thing, photos among them
                test = start + int(rng.integers(GROUP))
            else:
                test = int(rng.integers(len(bank.kinds)))
            if bank.kinds[test] != UNUSED and test // 2 != reference // 2:
                break
        references[index], tests[index], hard[index] = reference, test, 0.5 <= chance < 0.84
    answers = bank.looks[references] == bank.looks[tests]
    return Pairs(references, tests, answers, hard & ~answers)
