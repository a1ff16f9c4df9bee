"""Drawings painted over by the base model: what generated pictures look like, with known truth.

Little noise and the drawing's own caption: the picture shows what was drawn, in the hand of the
base model. Much noise and the caption of another look: what was between them remains, the ground
or, in a look of the same family, palette and stroke, but not the texture; it is in neither look any
more. A judge that has seen neither takes half a style for the style.

What a merge loses first of a style is its texture, so some drawings have none, BARE ones, and in
some it is faint: blended with the same drawing without.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark_data.miniworld.settings import BARE, SEPARABLE
from benchmark_data.miniworld.train.common import load_state, log, save_state
from benchmark_data.miniworld.train.drawings import (
    BARE_LOOKS,
    LOOKS,
    PHOTO_FAMILY,
    UNUSED,
    Bank,
    described,
)
from benchmark_data.miniworld.train.overpaint import BATCH, Painter, in_words
from benchmark_data.miniworld.world import (
    COUNTS_FROM,
    FAMILIES,
    GONE,
    THERE,
    Look,
    draw,
    draw_faint,
    random_look,
    random_thing,
)

TRUE = (0.1, 0.4)  # strengths: share of the sampler's steps that a drawing goes through
HALF = (0.6, 0.85)
NEAR = (0.75, 0.95)
BARE_STRENGTHS = (0.05, 0.4)
FAINT_STRENGTHS = (0.05, 0.2)
NEAR_SHARE = 0.6  # of the batches that lose half of their look to another one of its family
FILE = 1024  # pictures a file


@dataclass(frozen=True)
class Painted:
    """Painted versions of a bank's rows.

    Attributes:
        true: uint8, ``(n, 3, 64, 64)``: rows ``first`` to ``first + n``, true to what was drawn.
        first: the first of them.
        half: uint8, ``(m, 3, 64, 64)``: the look is lost by half.
        half_rows: ``(m,)``, the bank's row that each was made of.
        bare: uint8, ``(k, 3, 64, 64)``: drawings without texture, the second half painted over.
        bare_looks: ``(k,)``, numbers of BARE_LOOKS.
        faint: uint8, ``(l, 3, 64, 64)``: faint textures, the second half painted over.
        faint_looks: ``(l,)``, numbers of LOOKS.
        faint_there: ``(l,)``, whether the texture has enough contrast to count.
    """

    true: Tensor
    first: int
    half: Tensor
    half_rows: NDArray[np.int64]
    bare: Tensor
    bare_looks: NDArray[np.int64]
    faint: Tensor
    faint_looks: NDArray[np.int64]
    faint_there: NDArray[np.bool_]


class BankPainter:
    """Rows of a bank, painted over by the base model."""

    def __init__(self, base: Path, bank: Bank, seed: int) -> None:
        self._bank, self._seed = bank, seed
        self._painter = Painter(base)

    def paint(self, rows: NDArray[np.int64], *, half: bool) -> Tensor:
        """The rows painted over, uint8 ``(n, 3, 64, 64)``; all draws come from the first row."""
        rng = np.random.default_rng((self._seed, int(half), int(rows[0])))
        near = half and rng.random() < NEAR_SHARE
        captions = []
        for row in rows:
            thing, look = described(self._bank, int(row))
            if near:
                look = _near(look, rng)
            elif half:
                look = random_look(rng, families=[f for f in FAMILIES if f != look.family])
            captions.append(in_words(thing, look, rng))
        strength = float(rng.uniform(*(NEAR if near else HALF if half else TRUE)))
        latents = self._painter.paint(
            self._bank.pixels[torch.from_numpy(rows)], captions, strength, int(rng.integers(2**31))
        )
        return self._painter.decode(latents)


def _near(look: Look, rng: np.random.Generator) -> Look:
    """Another look of the family, with the same palette in most cases."""
    same_palette = rng.random() < 0.75
    while True:
        near = random_look(rng, families=(look.family,))
        if near != look and (near.palette == look.palette or not same_palette):
            return near


def draw_bare(base: Path, count: int, seed: int) -> tuple[Tensor, NDArray[np.int64]]:
    """``count`` drawings that have lost their texture, and as many painted over ones of them.

    Returns:
        uint8 pixels ``(2 * count, 3, 64, 64)`` and numbers of BARE_LOOKS ``(2 * count,)``.
    """
    rng = np.random.default_rng((seed, 91))
    looks = np.arange(count) % len(BARE_LOOKS)
    things = [random_thing(rng) for _ in looks]
    drawn = np.stack(
        [
            np.asarray(draw(thing, BARE_LOOKS[look], seed=int(rng.integers(2**31)), jitter=0.6))
            for thing, look in zip(things, looks, strict=True)
        ]
    )
    captions = [
        in_words(thing, BARE_LOOKS[look], rng) for thing, look in zip(things, looks, strict=True)
    ]
    return _and_painted(base, drawn, captions, BARE_STRENGTHS, rng), np.tile(looks, 2)


def draw_fading(
    base: Path, count: int, seed: int
) -> tuple[Tensor, NDArray[np.int64], NDArray[np.bool_]]:
    """``count`` drawings whose texture is faint, and as many painted over ones of them.

    Returns:
        uint8 pixels ``(2 * count, 3, 64, 64)``, numbers of LOOKS ``(2 * count,)``, and whether the
        contrast is in THERE and not in GONE, ``(2 * count,)``.
    """
    rng = np.random.default_rng((seed, 92))
    looks = [random_look(rng, families=SEPARABLE) for _ in range(count)]
    things = [random_thing(rng) for _ in looks]
    there = np.arange(count) % 2 == 0
    drawn = np.empty((count, 64, 64, 3), np.uint8)
    for index, (thing, look) in enumerate(zip(things, looks, strict=True)):
        pose, contrast = int(rng.integers(2**31)), rng.uniform(*(THERE if there[index] else GONE))
        drawn[index] = np.asarray(draw_faint(thing, look, contrast, seed=pose, jitter=0.6))
    # a caption without texture paints away what there is of it
    captions = [
        in_words(thing, look if counts else Look(look.family, look.palette, BARE), rng)
        for thing, look, counts in zip(things, looks, there, strict=True)
    ]
    pixels = _and_painted(base, drawn, captions, FAINT_STRENGTHS, rng)
    return pixels, np.tile([LOOKS.index(look) for look in looks], 2), np.tile(there, 2)


def _and_painted(
    base: Path,
    drawn: NDArray[np.uint8],
    captions: list[str],
    strengths: tuple[float, float],
    rng: np.random.Generator,
) -> Tensor:
    """Drawings ``(n, 64, 64, 3)`` and painted over ones of them, uint8 ``(2 * n, 3, 64, 64)``."""
    pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()
    painter, latents = Painter(base), []
    for start in range(0, len(drawn), BATCH):
        batch = slice(start, min(start + BATCH, len(drawn)))
        strength, noise = float(rng.uniform(*strengths)), int(rng.integers(2**31))
        latents.append(painter.paint(pixels[batch], captions[batch], strength, noise))
    return torch.cat([pixels, painter.decode(torch.cat(latents))])


def load_painted(
    base: Path,
    bank: Bank,
    work: Path,
    *,
    first: int,
    true: int,
    half: int,
    bare: int,
    faint: int,
    seed: int,
) -> Painted:
    """Paint over ``true`` rows from ``first`` on, ``half`` after them, ``bare``, ``faint`` others.

    What is in ``work`` is read; a file every 1,024 rows, so that it goes on where it was stopped.
    """
    rows = np.arange(first, first + true)
    rest = np.arange(first + true, len(bank.kinds))
    rest = rest[(bank.kinds[rest] != UNUSED) & (bank.families[rest] != PHOTO_FAMILY)][:half]
    painter = BankPainter(base, bank, seed)
    parts: dict[bool, list[Tensor]] = {False: [], True: []}
    for is_half, chosen in ((False, rows), (True, rest)):
        for start in range(0, len(chosen), FILE):
            block = chosen[start : start + FILE]
            name = f"painted-{'half' if is_half else 'true'}-{seed}-{block[0]}-{len(block)}"
            path = work / f"{name}.safetensors"
            if not path.exists():
                batches = [block[i : i + BATCH] for i in range(0, len(block), BATCH)]
                pixels = torch.cat([painter.paint(batch, half=is_half) for batch in batches])
                save_state(path, {"pixels": pixels}, {})
                log.info("critic: painted over %d drawings (%s)", len(block), path.stem)
            parts[is_half].append(load_state(path)[0]["pixels"])
    path = work / f"bare-{seed}-{bare}.safetensors"
    if not path.exists():
        pixels, looks = draw_bare(base, bare, seed)
        save_state(path, {"pixels": pixels, "looks": torch.from_numpy(looks)}, {})
        log.info("critic: %d drawings without texture", bare)
    lost = load_state(path)[0]
    path = work / f"faint-{COUNTS_FROM:g}-{seed}-{faint}.safetensors"
    if not path.exists():
        pixels, looks, there = draw_fading(base, faint, seed)
        named = {"looks": torch.from_numpy(looks), "there": torch.from_numpy(there)}
        save_state(path, {"pixels": pixels, **named}, {})
        log.info("critic: %d drawings with a faint texture", faint)
    fading = load_state(path)[0]
    return Painted(
        torch.cat(parts[False]),
        first,
        torch.cat(parts[True]),
        rest,
        lost["pixels"],
        lost["looks"].numpy(),
        fading["pixels"],
        fading["looks"].numpy(),
        fading["there"].numpy(),
    )
