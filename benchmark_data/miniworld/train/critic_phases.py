"""How the critic learns, in three phases.

 Seeing: the vision tower and the projector name what is drawn, per picture and per
cell, with heads that are thrown away. Comparing: sequences of a reference and other pictures; after
each picture it is read off which attributes agree with the reference. Answering: the questions and
the chat string that the judge uses, the answer's token and the end token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from benchmark_data.miniworld.train.critic_model import (
    END,
    TEXT_WIDTH,
    Layout,
    build_model,
    image_features,
    image_tokens,
)
from benchmark_data.miniworld.train.critic_questions import question, style_name, write
from benchmark_data.miniworld.train.degrade import degrade, nothing
from benchmark_data.miniworld.train.drawings import (
    CELLS,
    LOOKS,
    UNUSED,
    Bank,
    Pairs,
    style_pairs,
    subject_pairs,
)
from benchmark_data.miniworld.train.loop import train_phase
from benchmark_data.miniworld.train.painted import Painted
from benchmark_data.miniworld.world import (
    CATEGORIES,
    COLOURS,
    FAMILIES,
    MONOCHROME,
    PATTERNS,
)

PAIRS = {"subject": subject_pairs, "style": style_pairs}
MATCHES = 7  # category, body, accent, pattern, second, family, look
CLASSES = (
    len(CATEGORIES),
    len(COLOURS),
    len(COLOURS),
    len(PATTERNS),
    len(COLOURS) + 1,
    len(FAMILIES),
    len(LOOKS),
)
HALF = 0.06  # share of the questions about a style whose picture has lost half of it
MIDDLE = 2  # the language model's layer after which both pictures are named
_GREY = [FAMILIES.index(family) for family in MONOCHROME]


@dataclass(frozen=True)
class Scale:
    """How long each phase lasts and how much it takes at a time."""

    groups: int = 5000
    seeing: int = 3800
    comparing: int = 2400
    answering: int = 3600
    images: int = 96
    sequences: int = 24
    pairs: int = 32


SMOKE = Scale(groups=12, seeing=6, comparing=5, answering=6, images=16, sequences=4, pairs=4)


class Pictures:
    """Hands out a bank's images as the network takes them, some of them damaged."""

    def __init__(self, bank: Bank, decoded: Tensor | None, painted: Painted | None = None) -> None:
        self.bank = bank
        self.versions: list[tuple[int, Tensor]] = []  # other versions of rows, from a first one on
        self.half: Tensor | None = None
        self._half_by_look: dict[int, np.ndarray] = {}
        if decoded is not None:
            self.versions.append((0, decoded))
        if painted is not None:
            self.versions.append((painted.first, painted.true))
            self.half = painted.half
            looks = bank.looks[painted.half_rows]
            self._half_by_look = {look: np.flatnonzero(looks == look) for look in set(looks)}

    def get(self, rows: Tensor, generator: torch.Generator, *, damaged: float) -> Tensor:
        """Images in [-1, 1], ``(n, 3, 64, 64)``, a share ``damaged`` of them degraded."""
        pixels = self.bank.pixels[rows]
        coin = torch.rand(len(rows), generator=generator) < 0.9 * damaged
        for first, version in self.versions:
            chosen = coin & (rows >= first) & (rows < first + len(version))
            pixels[chosen] = version[rows[chosen] - first]
        return degrade(pixels.float() / 127.5 - 1, generator, share=damaged)

    def half_in_look(self, look: int, rng: np.random.Generator) -> Tensor | None:
        """An image in [-1, 1] that has lost half of a look, ``(3, 64, 64)``; None if none has."""
        rows = self._half_by_look.get(look)
        if self.half is None or rows is None:
            return None
        return self.half[int(rng.choice(rows))].float() / 127.5 - 1


class Heads(nn.Module):
    """Names category, body, accent, pattern, second, family and look; role and colour by cell.

    The names are read off all features together and off every feature alone: a language model finds
    what one feature says of the whole picture far sooner than what it has to gather.
    """

    def __init__(self) -> None:
        super().__init__()
        colours = len(COLOURS)
        self.queries_head = nn.Parameter(torch.zeros(MATCHES, TEXT_WIDTH))
        self.norm = nn.LayerNorm(TEXT_WIDTH)
        self.name_heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, size) for size in CLASSES)
        self.every_head = nn.Linear(TEXT_WIDTH, sum(CLASSES))
        self.role_head = nn.Linear(TEXT_WIDTH, CELLS * 5)
        self.colour_head = nn.Linear(TEXT_WIDTH, CELLS * (colours + 2))

    def forward(self, features: Tensor) -> tuple[list[Tensor], Sequence[Tensor], Tensor, Tensor]:
        """Logits of names together and alone, of role and colour.

        Shapes ``(n, classes)``, ``(n * 16, classes)``, twice ``(n, CELLS, CELLS, classes)``.
        """
        features = self.norm(features)
        weights = (features @ self.queries_head.T * TEXT_WIDTH**-0.5).softmax(1)  # (n, 16, 7)
        pooled = weights.transpose(1, 2) @ features
        names = [head(pooled[:, index]) for index, head in enumerate(self.name_heads)]
        every = self.every_head(features).flatten(0, 1).split(CLASSES, 1)
        return names, every, _cells(self.role_head(features)), _cells(self.colour_head(features))


class Ends(nn.Module):
    """Reads, where a picture ends, what agrees; and halfway through the layers, what is shown.

    A language model that has to name both pictures at one position first, learns to compare them;
    without that it stayed at chance on subjects for a thousand steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.match_head = nn.Linear(TEXT_WIDTH, 1 + MATCHES)
        self.norm = nn.LayerNorm(TEXT_WIDTH)
        self.name_head = nn.Linear(TEXT_WIDTH, 2 * sum(CLASSES))

    def loss(
        self, middle: Tensor, last: Tensor, first: Tensor, second: Tensor, truth: "Truth"
    ) -> Tensor:
        """Loss of hidden states ``(n, width)``, given name targets of both pictures."""
        names = self.name_head(self.norm(middle.float())).split((*CLASSES, *CLASSES), 1)
        named = names_loss(names[:MATCHES], first) + names_loss(names[MATCHES:], second)
        matched = matching_loss(self.match_head(last.float()), *truth)
        return matched + named / MATCHES


Truth = tuple[Tensor, Tensor, Tensor]  # answers, what agrees, what can be told


def _cells(values: Tensor) -> Tensor:
    """Values of 4x4 patches with 4x4 cells each, as ``(n, 16, 16, classes)``."""
    n = len(values)
    values = values.view(n, 4, 4, 4, 4, -1).permute(0, 1, 3, 2, 4, 5)
    return values.reshape(n, CELLS, CELLS, -1)


def name_targets(bank: Bank, rows: np.ndarray) -> Tensor:
    """Numbers of what rows show, ``(n, MATCHES)``; -100 for colours where a look shows none."""
    targets = np.column_stack([bank.things[rows], bank.families[rows], bank.looks[rows]])
    grey = np.isin(bank.families[rows], _GREY)
    for attribute in (1, 2, 4):
        targets[grey, attribute] = -100
    return torch.from_numpy(targets)


def names_loss(names: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy summed over the names, each a mean over the rows where it can be told."""
    return torch.stack(
        [
            functional.cross_entropy(logits.float(), targets[:, number], reduction="sum")
            / (targets[:, number] >= 0).sum().clamp(min=1)
            for number, logits in enumerate(names)
        ]
    ).sum()


def naming_loss(heads: Heads, features: Tensor, bank: Bank, rows: Tensor) -> Tensor:
    """Cross-entropy of what is drawn; colours do not count where a look shows none."""
    names, every, roles, colours = heads(features)
    targets = name_targets(bank, rows.numpy())
    loss = names_loss(names, targets)
    loss = loss + names_loss(every, targets.repeat_interleave(features.shape[1], 0))
    things = torch.from_numpy(bank.things[rows.numpy()])
    coloured = torch.from_numpy(~np.isin(bank.families[rows.numpy()], _GREY))
    role = bank.roles[rows].long()  # (n, CELLS, CELLS)
    # colour of a cell: ground 0, detail 1, else the thing's colour of that role
    body, accent, second = (things[:, n] + 2 for n in (1, 2, 4))
    table = torch.stack(
        [torch.zeros_like(body), body, accent, (second - 1).clamp(min=0), torch.ones_like(body)], 1
    )
    colour = table.gather(1, role.flatten(1)).view_as(role)
    colour[~coloured] = -100
    loss = loss + functional.cross_entropy(roles.float().permute(0, 3, 1, 2), role)
    return loss + functional.cross_entropy(colours.float().permute(0, 3, 1, 2), colour)


def matches(bank: Bank, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Which attributes agree, and which of them can be told, ``(n, 7)`` each."""
    a, b = pairs.references, pairs.tests
    equal = np.column_stack(
        [
            bank.things[a] == bank.things[b],
            bank.families[a] == bank.families[b],
            bank.looks[a] == bank.looks[b],
        ]
    )
    grey = np.isin(bank.families[a], _GREY) | np.isin(bank.families[b], _GREY)
    told = np.ones_like(equal)
    for attribute in (1, 2, 4):  # the colours
        told[grey, attribute] = False
    return torch.from_numpy(equal).float(), torch.from_numpy(told).float()


def matching_loss(logits: Tensor, answers: Tensor, equal: Tensor, told: Tensor) -> Tensor:
    """Binary cross-entropy of the answer and of what agrees; logits ``(n, 1 + MATCHES)``."""
    logits = logits.float()
    loss = functional.binary_cross_entropy_with_logits(logits[:, 0], answers)
    each = functional.binary_cross_entropy_with_logits(logits[:, 1:], equal, reduction="none")
    return loss + (each * told).sum() / told.sum()


class Critic:
    """The three phases on one network."""

    def __init__(self, pictures: Pictures, scale: Scale, work: Path, seed: int) -> None:
        self.pictures, self.bank = pictures, pictures.bank
        self.scale, self.work, self.seed = scale, work, seed
        self.model = build_model(seed)
        self.ends = Ends()

    def _streams(self, phase: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
        generator = torch.Generator().manual_seed((self.seed * 10 + phase) * 1_000_003 + step)
        return np.random.default_rng((self.seed, phase, step)), generator

    def see(self) -> None:
        """Train the tower and the projector to name what is drawn."""
        inner, heads = self.model.model, Heads()
        modules = {"tower": inner.vision_tower, "projector": inner.multi_modal_projector}
        usable = np.flatnonzero(self.bank.kinds != UNUSED)

        def loss_at(step: int) -> Tensor:
            rng, generator = self._streams(1, step)
            rows = torch.from_numpy(rng.choice(usable, self.scale.images))
            pixels = self.pictures.get(rows, generator, damaged=0.5)
            with torch.autocast("cpu", torch.bfloat16):
                features = image_features(self.model, pixels)
                return naming_loss(heads, features.float(), self.bank, rows)

        steps = self.scale.seeing
        modules["heads"] = heads
        train_phase(
            self.work / "critic-seeing.safetensors",
            modules,
            loss_at,
            steps=steps,
            rates=(0.015, 1.5e-3),
            decay=True,
        )

    def compare(self) -> None:
        """Train the language model to read off, after each picture, what agrees with the first."""
        self._freeze_tower()
        each, count, width = 5, self.scale.sequences, TEXT_WIDTH
        amounts = {"subject": 3 * count // 4, "style": count - 3 * count // 4}  # styles are easy
        kinds = torch.arange(2).repeat_interleave(torch.tensor(list(amounts.values())))
        markers = nn.Embedding(2, width)
        with torch.no_grad():
            markers.weight.mul_(0.5)
            if not (self.work / "critic-comparing.safetensors").exists():
                self._unit_projector()

        def loss_at(step: int) -> Tensor:
            rng, generator = self._streams(2, step)
            parts = [PAIRS[a](self.bank, n * each, rng, each) for a, n in amounts.items()]
            references = np.concatenate([part.references[::each] for part in parts])
            pairs = _joined(parts)
            styles = np.repeat([aspect == "style" for aspect in amounts], list(amounts.values()))
            asked = np.repeat(styles, each)
            pixels, empty = self._images(references, pairs, asked, rng, generator)
            with torch.autocast("cpu", torch.bfloat16):
                features = self._features(pixels)
                tokens = image_tokens(features, self.model.model.image_newline, "pad")
                first, others = tokens[:count], tokens[count:].reshape(count, -1, width)
                marker = markers(kinds)[:, None]
                states = self._language(torch.cat([marker, first, others], 1))
            length = tokens.shape[1]
            middle, last = (state[:, 2 * length :: length].flatten(0, 1) for state in states)
            truth = self._truth(pairs, empty)
            return self.ends.loss(middle, last, *self._names(pairs, empty), truth)

        modules = {"model": self.model, "ends": self.ends, "markers": markers}
        steps = self.scale.comparing
        train_phase(
            self.work / "critic-comparing.safetensors",
            modules,
            loss_at,
            steps=steps,
            rates=(0.012, 1e-3),
        )

    def answer(self, tokenizer: PreTrainedTokenizerFast, on_save: Callable[[], None]) -> None:
        """Train the language model to answer the judge's questions in both layouts.

        What `compare` taught it to read where a picture ends stays asked for there.
        """
        self._freeze_tower()
        count = self.scale.pairs // 2  # two pairs share a reference
        amounts = {"subject": 2 * (5 * count // 8)}
        amounts["style"] = 2 * count - amounts["subject"]
        aspects = [aspect for aspect, n in amounts.items() for _ in range(n)]
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No", END)])
        yes, no, end = ids

        def loss_at(step: int) -> Tensor:
            rng, generator = self._streams(3, step)
            pairs = _joined([PAIRS[a](self.bank, n, rng, 2) for a, n in amounts.items()])
            layout: Layout = "anyres" if rng.random() < 0.65 else "pad"
            styles = [style_name(rng) if aspect == "style" else "" for aspect in aspects]
            asked = np.array([aspect == "style" for aspect in aspects])
            pixels, empty = self._images(pairs.references[::2], pairs, asked, rng, generator)
            truth = self._truth(pairs, empty)
            words = torch.where(truth[0] > 0, yes, no)
            with torch.autocast("cpu", torch.bfloat16):
                features = self._features(pixels)
                tokens = image_tokens(features, self.model.model.image_newline, layout)
                first, second = tokens[:count].repeat_interleave(2, 0), tokens[count:]
                prompts = [question(style) for style in styles]
                embeddings, seen, last = write(self.model, tokenizer, prompts, first, second, words)
                middle, hidden = self._language(embeddings)
                here = torch.arange(len(last))
                said = self.model.lm_head(hidden[here, last]).float()
                then = self.model.lm_head(hidden[here, last + 1]).float()
            loss = functional.cross_entropy(said, words)
            loss = loss + 0.1 * functional.cross_entropy(then, end.expand_as(words))
            names = self._names(pairs, empty)
            read = self.ends.loss(middle[here, seen], hidden[here, seen], *names, truth)
            return loss + 0.5 * read

        modules = {"model": self.model, "ends": self.ends}
        train_phase(
            self.work / "critic-answering.safetensors",
            modules,
            loss_at,
            steps=self.scale.answering,
            rates=(0.01, 8e-4),
            decay=True,
            on_save=on_save,
        )

    def _freeze_tower(self) -> None:
        """Let tower and projector be: after the first phase they name nearly everything."""
        for module in (self.model.model.vision_tower, self.model.model.multi_modal_projector):
            module.requires_grad_(False)

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        return image_features(self.model, pixels)

    def _language(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model.model.language_model(
            inputs_embeds=embeddings, use_cache=False, output_hidden_states=True
        )
        return output.hidden_states[MIDDLE], output.last_hidden_state

    def _names(self, pairs: Pairs, empty: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (name_targets(self.bank, r) for r in (pairs.references, pairs.tests))
        second[empty] = -100
        return first, second

    @torch.no_grad()
    def _unit_projector(self) -> None:
        """Scale the projector's output to an RMS of a half, and the words to a tenth."""
        rows = torch.arange(0, len(self.bank.kinds), max(1, len(self.bank.kinds) // 64))
        features = image_features(self.model, self.bank.pixels[rows].float() / 127.5 - 1)
        factor = 0.5 / features.square().mean().sqrt()
        last = self.model.model.multi_modal_projector.linear_2
        last.weight.mul_(factor)
        last.bias.mul_(factor)
        embedding = self.model.lm_head.weight  # the same as the input's
        embedding.mul_(0.1 / embedding.std())

    def _images(
        self,
        references: np.ndarray,
        pairs: Pairs,
        asked_style: np.ndarray,
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """References (mostly clean) then tests (mostly damaged), and which tests agree in nothing.

        Those are the few that show nothing, and where a style is asked about, some in which half
        of it is lost.
        """
        first = self.pictures.get(torch.from_numpy(references), generator, damaged=0.1)
        second = self.pictures.get(torch.from_numpy(pairs.tests), generator, damaged=0.6)
        empty = torch.rand(len(second), generator=generator) < 0.02
        second[empty] = nothing(int(empty.sum()), generator)
        for index in np.flatnonzero(asked_style & (rng.random(len(second)) < HALF)):
            half = self.pictures.half_in_look(int(self.bank.looks[pairs.references[index]]), rng)
            if half is not None:
                second[index], empty[index] = half, True
        return torch.cat([first, second]), empty

    def _truth(self, pairs: Pairs, empty: Tensor) -> Truth:
        equal, told = matches(self.bank, pairs)
        answers = torch.from_numpy(pairs.answers) & ~empty
        return answers.float(), equal, told * ~empty[:, None]


def _joined(parts: Sequence[Pairs]) -> Pairs:
    fields = ("references", "tests", "answers", "hard")
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))
