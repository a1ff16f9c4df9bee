"""The pictures that a critic learns from, as its network takes them.

Drawings and painted over ones, moved by a pixel or two, some of them degraded; and pictures in
other colours: a critic that knew every setting by heart would be lost in one that it never met.
"""

import numpy as np
import torch
from torch import Tensor

from benchmark_data.miniworld.settings import BARE
from benchmark_data.miniworld.train.degrade import degrade, shifted
from benchmark_data.miniworld.train.drawings import BARE_LOOKS, LOOKS, Bank
from benchmark_data.miniworld.train.painted import Painted
from benchmark_data.miniworld.world import Look

SHIFT = 2  # pixels by which pictures are shifted at most: half a cell
NEGATIVE = 0.35  # share of the recoloured channels that are also negatives
GAMMA = 0.6  # largest logarithm of the exponent of a recoloured channel
DARKEST, BRIGHTEST = (0.0, 0.3), (0.65, 1.0)  # what 0 and 1 become


class Pictures:
    """Hands out a bank's images as the network takes them, some of them damaged."""

    def __init__(self, bank: Bank, decoded: Tensor | None, painted: Painted | None = None) -> None:
        self.bank = bank
        self.versions: list[tuple[int, Tensor]] = []  # other versions of rows, from a first one on
        self._painted = painted
        self._half_by_look: dict[int, np.ndarray] = {}
        self._bare_by_look: dict[int, np.ndarray] = {}
        self._faint_by_look: dict[int, np.ndarray] = {}
        if decoded is not None:
            self.versions.append((0, decoded))
        if painted is not None:
            self.versions.append((painted.first, painted.true))
            looks = bank.looks[painted.half_rows]
            self._half_by_look = {look: np.flatnonzero(looks == look) for look in set(looks)}
            setting = [(look.family, look.palette) for look in BARE_LOOKS]
            rows = {pair: np.flatnonzero(painted.bare_looks == n) for n, pair in enumerate(setting)}
            self._bare_by_look = {
                number: rows[look.family, look.palette]
                for number, look in enumerate(LOOKS)
                if (look.family, look.palette) in rows
            }
            looks = painted.faint_looks
            self._faint_by_look = {look: np.flatnonzero(looks == look) for look in set(looks)}

    def get(self, rows: Tensor, generator: torch.Generator, *, damaged: float) -> Tensor:
        """Images in [-1, 1], ``(n, 3, 64, 64)``, shifted; a share ``damaged`` of them degraded."""
        pixels = self.bank.pixels[rows]
        coin = torch.rand(len(rows), generator=generator) < 0.9 * damaged
        for first, version in self.versions:
            chosen = coin & (rows >= first) & (rows < first + len(version))
            pixels[chosen] = version[rows[chosen] - first]
        return damage(_floats(pixels), generator, damaged)

    def half_in_look(self, look: int, rng: np.random.Generator) -> Tensor | None:
        """An image in [-1, 1] that has lost half of a look, ``(3, 64, 64)``; None if none has."""
        row = self._row(self._half_by_look, look, rng)
        return None if row is None or self._painted is None else _floats(self._painted.half[row])

    def bare_of_look(self, look: int, rng: np.random.Generator) -> Tensor | None:
        """An image in [-1, 1] in a look without its texture, ``(3, 64, 64)``; None if none is."""
        row = self._row(self._bare_by_look, look, rng)
        return None if row is None or self._painted is None else _floats(self._painted.bare[row])

    def faint_of_look(self, look: int, rng: np.random.Generator) -> tuple[Tensor, bool] | None:
        """An image in [-1, 1] in a look whose texture is faint, and whether it counts, or None."""
        row = self._row(self._faint_by_look, look, rng)
        if row is None or self._painted is None:
            return None
        return _floats(self._painted.faint[row]), bool(self._painted.faint_there[row])

    def fading(self, count: int, rng: np.random.Generator) -> tuple[Tensor, list[Look]]:
        """Images in [-1, 1], ``(n, 3, 64, 64)``: half without texture, half of a faint one.

        Their looks are bare ones where the texture does not count. There are no images (n is 0)
        unless drawings were painted over.
        """
        if (painted := self._painted) is None:
            return torch.empty(0, 3, 64, 64), []
        bare = rng.integers(len(painted.bare), size=count // 2)
        faint = rng.integers(len(painted.faint), size=count - count // 2)
        looks = [BARE_LOOKS[number] for number in painted.bare_looks[bare]]
        for number, there in zip(
            painted.faint_looks[faint], painted.faint_there[faint], strict=True
        ):
            look = LOOKS[number]
            looks.append(look if there else Look(look.family, look.palette, BARE))
        return _floats(torch.cat([painted.bare[bare], painted.faint[faint]])), looks

    def _row(
        self, by_look: dict[int, np.ndarray], look: int, rng: np.random.Generator
    ) -> int | None:
        rows = by_look.get(look)
        return None if rows is None or not len(rows) else int(rng.choice(rows))


def _floats(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def damage(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Images in [-1, 1], ``(n, 3, 64, 64)``, moved by a pixel or two, a share of them degraded.

    A tower that always meets a texture in the same places of its patches knows it there alone.
    """
    offsets = torch.randint(-SHIFT, SHIFT + 1, (len(images), 2), generator=generator).tolist()
    return degrade(shifted(images, offsets), generator, share=share)


def recolour(images: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
    """Images in [-1, 1], ``(n, 3, h, w)``, in other colours, the same for each group of them.

    Channels change places and tones, and some become negatives: no palette is what it was, greys
    neither, and strokes stay where they were. ``groups`` are numbers from 0 on, ``(n,)``.
    """
    count = int(groups.max()) + 1 if len(groups) else 0

    def each(low: float, high: float) -> Tensor:
        values = low + (high - low) * torch.rand(count, 3, 1, 1, generator=generator)
        return values[groups]

    orders = torch.rand(count, 3, generator=generator).argsort(1)[groups, :, None, None]
    tones = ((images + 1) / 2).gather(1, orders.expand_as(images)) ** each(-GAMMA, GAMMA).exp()
    tones = torch.where(each(0, 1) < NEGATIVE, 1 - tones, tones)
    darkest, brightest = each(*DARKEST), each(*BRIGHTEST)
    return 2 * (darkest + (brightest - darkest) * tones) - 1
