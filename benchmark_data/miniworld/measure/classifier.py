"""Reads off a picture what it shows: a convolutional network that learns from drawings.

They are clean, damaged, or painted over by the base model with their own captions (with so little
noise that they still show what was drawn), those of held-out subjects and styles among them. It is
an instrument of measurement: no stage of the training and no metric of the benchmark sees it, and
it is not shipped.

Half of the drawings are in a style of the suite, or differ from one in the texture alone: that is
what a network is asked about.

Some drawings have lost their texture, or it is too faint (GONE): they are in no setting. Others, of
fainter textures that are THERE yet, still are. A network that has not met them names the likeliest
of the settings that it knows: it called every blueprint a ruled one, whose rules were not there.

By definition a texture counts from COUNTS_FROM of its contrast on. Networks cut a little above it
in some styles and below it in others, so `calibrated` asks them about drawings of just that
contrast, and half of those are in the style.

A generated picture is none of its drawings, and a reading that turns with a pixel's shift is no
truth. So a network learns from shifted drawings and reads nine shifted views of a picture; and two
networks of different seeds read together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from benchmark_data.miniworld.settings import BARE, SEPARABLE, TEXTURES
from benchmark_data.miniworld.train.common import load_state, log, save_state
from benchmark_data.miniworld.train.degrade import MARGIN, degrade, shifted
from benchmark_data.miniworld.train.drawings import BARE_LOOKS, LOOKS, thing_numbers
from benchmark_data.miniworld.train.loop import flat_convolutions, train_phase
from benchmark_data.miniworld.train.overpaint import BATCH, Painter, in_words
from benchmark_data.miniworld.world import (
    ATTRIBUTES,
    CATEGORIES,
    COLOURS,
    COUNTS_FROM,
    FAMILIES,
    GONE,
    MONOCHROME,
    PATTERNS,
    STYLES,
    SUBJECTS,
    THERE,
    Look,
    Thing,
    draw,
    draw_faint,
    random_look,
    random_thing,
    survives,
)
from benchmark_data.references import file_digest

NAMES = (*ATTRIBUTES, "look")
READ_LOOKS = (*LOOKS, *BARE_LOOKS)
CLASSES = (
    len(CATEGORIES),
    len(COLOURS),
    len(COLOURS),
    len(PATTERNS),
    len(COLOURS) + 1,
    len(READ_LOOKS),
)
FAMILY_OF_LOOK = np.array([FAMILIES.index(look.family) for look in READ_LOOKS])
UNTOLD = -100  # cross-entropy's mark for "do not count this"
HELD_OUT = 0.15  # share of drawings that show a subject of the suite
STYLED = 0.5  # share in a style of the suite, or in another texture of its palette
NEAR = 1 / 3  # share of the latter among them
PAINTED = 1 / 3  # share of the drawings that are painted over, too
FADED = 0.4  # as many drawings again have a faint texture or none; all are painted over, too
STRENGTHS = (0.1, 0.4)  # share of the sampler's steps that those go through
STEPS, DRAWINGS = 4800, 40_000  # that a network learns for, and from
FILE = 1024  # painted drawings a file
_RECIPE = f"styled-{STYLED:g}"  # in names of files: other shares and definitions make others
_FADED = f"{_RECIPE}-faded-{FADED:g}-{COUNTS_FROM:g}"
VIEWS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))  # shifts that are read together

Integers = NDArray[np.int64]


def random_picture(rng: np.random.Generator) -> tuple[Thing, Look]:
    """A thing and a look, some of them subjects, styles and near misses of styles of the suite."""
    look = random_look(rng)
    if rng.random() < STYLED:
        styles = list(STYLES.values())
        look = styles[int(rng.integers(len(styles)))].look
        if rng.random() < NEAR:
            others = [name for name in TEXTURES[look.family] if name != look.texture]
            look = replace(look, texture=others[int(rng.integers(len(others)))])
    thing = random_thing(rng)
    if rng.random() < HELD_OUT:
        subjects = list(SUBJECTS.values())
        thing = subjects[int(rng.integers(len(subjects)))].thing
    return thing, look


@dataclass(frozen=True)
class Shown:
    """What a drawing shows: thing and look, drawn with this pose, jitter and contrast of texture.

    The look is bare where the contrast is no more than GONE; ``drawn`` is the one with the texture.
    """

    thing: Thing
    look: Look
    pose: int
    jitter: float
    drawn: Look
    contrast: float = 1.0

    def image(self) -> Image:
        """Draw it."""
        if self.contrast == 1:
            return draw(self.thing, self.drawn, seed=self.pose, jitter=self.jitter)
        return draw_faint(self.thing, self.drawn, self.contrast, seed=self.pose, jitter=self.jitter)


def random_pictures(count: int, *, seed: int, faded: bool = False) -> Iterator[Shown]:
    """What drawings show; ``faded``: of half the texture is lost, of a quarter each GONE, THERE."""
    rng = np.random.default_rng((seed, 78 if faded else 77))
    for index in range(count):
        thing, look = random_picture(rng)
        while faded and look.family not in SEPARABLE:
            _, look = random_picture(rng)
        drawn, contrast = look, 1.0
        if faded:
            kind = (None, GONE, None, THERE)[index % 4]
            contrast = 0.0 if kind is None else float(rng.uniform(*kind))
            look = drawn if kind is THERE else Look(look.family, look.palette, BARE)
        pose, jitter = int(rng.integers(2**31)), float(rng.uniform(0.2, 0.8))
        yield Shown(thing, look, pose, jitter, drawn, contrast)


def drawings(count: int, *, seed: int, faded: bool = False) -> tuple[Tensor, Tensor]:
    """Random drawings, uint8 ``(count, 3, 64, 64)``, and numbers of NAMES, ``(count, 6)``."""
    pixels = np.empty((count, 64, 64, 3), np.uint8)
    truth = np.empty((count, len(NAMES)), np.int64)
    for index, shown in enumerate(random_pictures(count, seed=seed, faded=faded)):
        pixels[index] = np.asarray(shown.image())
        truth[index] = (*thing_numbers(shown.thing), READ_LOOKS.index(shown.look))
        if shown.look.family in MONOCHROME:
            truth[index, [1, 2, 4]] = UNTOLD
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(truth)


def load_drawings(work: Path, count: int, *, seed: int, faded: bool) -> tuple[Tensor, Tensor]:
    """What `drawings` draws, or read from ``work`` where that was done."""
    path = work / f"classifier-{_FADED if faded else _RECIPE}-{seed}-{count}.safetensors"
    if not path.exists():
        pixels, truth = drawings(count, seed=seed, faded=faded)
        save_state(path, {"pixels": pixels, "truth": truth}, {})
    tensors, _ = load_state(path)
    return tensors["pixels"], tensors["truth"]


def load_painted(
    pixels: Tensor, work: Path, base: Path, *, seed: int, faded: bool = False
) -> Tensor:
    """Drawings painted over by the base model with their captions, uint8 ``(n, 3, 64, 64)``.

    Args:
        pixels: The first of what `drawings` drew with this seed.
        work: A file every 1,024 is kept there, and read where it is and was made by this base.
        base: The base model's folder.
        seed: Of the drawings, the strengths and the noise.
        faded: Whether the drawings have a faint texture, or none.
    """
    shown = list(random_pictures(len(pixels), seed=seed, faded=faded))
    painter = Painter(base)
    name = f"classifier-painted-{_FADED if faded else _RECIPE}-{_fingerprint(base)}-{seed}"
    parts = []
    for first in range(0, len(pixels), FILE):
        last = min(first + FILE, len(pixels))
        path = work / f"{name}-{first}-{last - first}.safetensors"
        if not path.exists():
            latents = []
            for start in range(first, last, BATCH):
                rng = np.random.default_rng((seed, 89 if faded else 88, start))
                batch = slice(start, min(start + BATCH, last))
                captions = [in_words(one.thing, one.look, rng) for one in shown[batch]]
                strength = float(rng.uniform(*STRENGTHS))
                noise = int(rng.integers(2**31))
                latents.append(painter.paint(pixels[batch], captions, strength, noise))
            save_state(path, {"pixels": painter.decode(torch.cat(latents))}, {})
            log.info("classifier: painted over drawings %d to %d", first, last)
        parts.append(load_state(path)[0]["pixels"])
    return torch.cat(parts)


def _fingerprint(base: Path) -> str:
    """Eight digits of the digest of a base model's UNet."""
    return file_digest(base / "unet" / "diffusion_pytorch_model.safetensors")[:8]


class Block(nn.Module):
    """Two convolutions beside a shortcut; halves the picture."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, outputs, 3, stride=2, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, outputs) for _ in range(2))
        self.shortcut = nn.Conv2d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w)`` to ``(n, outputs, h / 2, w / 2)``."""
        y = functional.silu(self.norms[0](self.first(x)))
        return functional.silu(self.norms[1](self.second(y)) + self.shortcut(x[..., ::2, ::2]))


class Network(nn.Module):
    """Logits of each of NAMES, for pictures in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 5, stride=2, padding=2)
        self.blocks = nn.Sequential(Block(32, 64), Block(64, 128), Block(128, 192))
        self.hidden = nn.Linear(2 * 192, 256)
        self.heads = nn.ModuleList(nn.Linear(256, size) for size in CLASSES)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """``(n, 3, 64, 64)`` to ``(n, classes)`` each."""
        maps = self.blocks(functional.silu(self.stem(pixels)))
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
        hidden = functional.silu(self.hidden(pooled))
        return [head(hidden) for head in self.heads]


@dataclass(frozen=True)
class Reading:
    """What the classifier reads off pictures.

    Attributes:
        numbers: Of NAMES, ``(n, 6)``.
        settings: The likeliest of LOOKS, ``(n,)``, where what is bare does not count.
        textures: Look -> how much likelier than bare it is, ``(n,)``, log of the ratio; of looks
            that the classifier is calibrated for, less what it takes to be in them.
    """

    numbers: Integers
    settings: Integers
    textures: Mapping[Look, NDArray[np.float64]] = field(default_factory=dict)

    def of(self, name: str) -> Integers:
        """The numbers of an attribute, of "look" or of "family", ``(n,)``.

        The family is that of the likeliest setting: bare pictures of several are alike.
        """
        if name == "family":
            return np.asarray(FAMILY_OF_LOOK[self.settings])
        return np.asarray(self.numbers[:, NAMES.index(name)])

    def shows(self, thing: Thing, look: Look) -> NDArray[np.bool_]:
        """Whether each picture shows all that the look lets one tell of the thing, ``(n,)``."""
        wanted = dict(zip(ATTRIBUTES, thing_numbers(thing), strict=True))
        told = [self.of(name) == wanted[name] for name in ATTRIBUTES if name in survives(look)]
        return np.asarray(np.all(told, axis=0))

    def is_in(self, look: Look) -> NDArray[np.bool_]:
        """Whether each picture is in the very look: family, palette and texture, ``(n,)``.

        That is the likeliest one, or, if the classifier is calibrated for it, the likeliest with a
        texture, and its own counts.
        """
        if look in self.textures:
            likeliest = self.settings == READ_LOOKS.index(look)
            return np.asarray(likeliest & (self.textures[look] > 0))
        return np.asarray(self.of("look") == READ_LOOKS.index(look))


class Classifier:
    """Trained networks that read together.

    Attributes:
        networks: The networks.
        bars: Look -> log of how much likelier than bare a picture in it has to be.
    """

    def __init__(self, *networks: Network, bars: Mapping[Look, float] | None = None) -> None:
        self.networks = [network.eval() for network in networks]
        self.bars = dict(bars or {})

    def read(self, images: Sequence[Image]) -> Reading:
        """What RGB images show; they are resized to 64 pixels."""
        pixels = np.stack([np.asarray(image.convert("RGB").resize((64, 64))) for image in images])
        return self.read_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)

    @torch.no_grad()
    def read_pixels(self, pixels: Tensor) -> Reading:
        """The same of pictures in [-1, 1], ``(n, 3, 64, 64)``: likeliest, mean over all."""
        parts, settings = [], []
        textures: dict[Look, list[Tensor]] = {look: [] for look in self.bars}
        for part in torch.split(pixels, 128):
            shifts = [shifted(part, [view] * len(part)) for view in VIEWS]
            views = [network(shift) for network in self.networks for shift in shifts]
            means = [torch.stack(each).softmax(2).mean(0) for each in zip(*views, strict=True)]
            parts.append(torch.stack([mean.argmax(1) for mean in means], 1))
            settings.append(means[-1][:, : len(LOOKS)].argmax(1))
            logs = means[-1].double().clamp(min=1e-9).log()
            for look, bar in self.bars.items():
                textures[look].append(
                    logs[:, READ_LOOKS.index(look)] - logs[:, _bare_number(look)] - bar
                )
        return Reading(
            torch.cat(parts).numpy(),
            torch.cat(settings).numpy(),
            {look: torch.cat(each).numpy() for look, each in textures.items()},
        )


def calibrated(classifier: Classifier, *, seed: int, each: int = 100) -> Classifier:
    """The classifier with the bars that half of the drawings at COUNTS_FROM pass.

    It is calibrated for the styles of the suite whose family can be bare; generated pictures, and
    judges, have no part in it.

    Args:
        classifier: Networks that read together; their own bars do not matter.
        seed: Of the drawings.
        each: Drawings of a style.
    """
    rng = np.random.default_rng((seed, 94))
    looks = [style.look for style in STYLES.values() if style.look.family in SEPARABLE]
    plain = Classifier(*classifier.networks, bars=dict.fromkeys(looks, 0.0))
    bars = {}
    for look in looks:
        faint = [
            draw_faint(
                random_thing(rng),
                look,
                COUNTS_FROM,
                seed=int(rng.integers(2**31)),
                jitter=float(rng.uniform(0.2, 0.8)),
            )
            for _ in range(each)
        ]
        bars[look] = float(np.median(plain.read(faint).textures[look]))
    return Classifier(*classifier.networks, bars=bars)


def _bare_number(look: Look) -> int:
    return READ_LOOKS.index(replace(look, texture=BARE))


def accuracies(reading: Reading, truth: Tensor) -> dict[str, float]:
    """The share of right readings of each name, where it can be told."""
    numbers = truth.numpy()
    shares = {}
    for index, name in enumerate(NAMES):
        told = numbers[:, index] != UNTOLD
        shares[name] = float((reading.numbers[told, index] == numbers[told, index]).mean())
    shares["family"] = float((reading.of("family") == FAMILY_OF_LOOK[numbers[:, -1]]).mean())
    return shares


def load_classifier(
    work: Path, base: Path, *, seed: int = 0, steps: int = STEPS, count: int = DRAWINGS
) -> Classifier:
    """Train the classifier, or read it from ``work`` where that was done; resumes.

    Args:
        work: Where drawings and checkpoint are kept; another base gets its own.
        base: The base model's folder.
        seed: Of drawings and training.
        steps: Of 96 pictures.
        count: Number of drawings.
    """
    lost, truth_of_lost = load_drawings(work, round(FADED * count), seed=seed, faded=True)
    whole, truth_of_whole = load_drawings(work, count, seed=seed, faded=False)
    painted = torch.cat(
        [
            load_painted(lost, work, base, seed=seed, faded=True),
            load_painted(whole[: round(PAINTED * count)], work, base, seed=seed),
        ]
    )
    pixels, truth = torch.cat([lost, whole]), torch.cat([truth_of_lost, truth_of_whole])
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        network = Network()

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(pixels), (96,), generator=generator)
        shown = pixels[rows]
        over = (rows < len(painted)) & (torch.rand(96, generator=generator) < 0.6)
        shown[over] = painted[rows[over]]
        offsets = torch.randint(-MARGIN, MARGIN + 1, (96, 2), generator=generator).tolist()
        images = degrade(shifted(shown.float() / 127.5 - 1, offsets), generator, share=0.5)
        with torch.autocast("cpu", torch.bfloat16):
            named = network(images)
        losses = [
            functional.cross_entropy(logits.float(), truth[rows, index], ignore_index=UNTOLD)
            for index, logits in enumerate(named)
        ]
        return torch.stack(losses).sum()

    with flat_convolutions(network):
        train_phase(
            work / f"classifier-{_FADED}-{_fingerprint(base)}-{seed}-{steps}.safetensors",
            {"classifier": network},
            loss_at,
            steps=steps,
            rates=(0.02, 2e-3),
            decay=True,
        )
    log.info("classifier: ready")
    return Classifier(network)
