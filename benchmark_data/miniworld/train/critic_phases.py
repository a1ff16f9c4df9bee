"""How the critic learns, in three phases.

Seeing: the vision tower and the projector name what is drawn, per picture and per cell, with heads
that are thrown away. Comparing: sequences of a reference and other pictures; after each picture it
is read off which attributes agree with the reference. Answering: the questions and
the chat string that the judge uses, the answer's token and the end token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from benchmark_data.miniworld.train.common import TrainingError
from benchmark_data.miniworld.train.critic_heads import (
    Ends,
    Heads,
    Truth,
    look_loss,
    matches,
    name_targets,
    naming_loss,
)
from benchmark_data.miniworld.train.critic_model import (
    END,
    TEXT_WIDTH,
    Layout,
    build_model,
    image_features,
    image_tokens,
)
from benchmark_data.miniworld.train.critic_pictures import Pictures, damage, recolour
from benchmark_data.miniworld.train.critic_questions import question, style_name, write
from benchmark_data.miniworld.train.degrade import nothing
from benchmark_data.miniworld.train.drawings import (
    UNUSED,
    Pairs,
    style_pairs,
    subject_pairs,
)
from benchmark_data.miniworld.train.loop import train_phase
from benchmark_data.miniworld.train.team import ALONE, Team
from benchmark_data.miniworld.world import FAMILIES

PAIRS = {"subject": subject_pairs, "style": style_pairs}
_FINE = "watercolor crayon neon halftone oil blueprint mosaic glass chalk"
FINE = [FAMILIES.index(name) for name in _FINE.split()]  # of fine strokes: named twice as often
FADING_NAMED = 0.2  # share of what is named that has lost its texture, or has a faint one
HALF = 0.06  # share of the questions about a style whose picture has lost half of it
LOST = 0.12  # share of those whose picture has lost its texture
FAINT = 0.2  # share of those whose picture has a faint texture of the very look
RECOLOURED = 0.25  # share of what is named, and of what is compared, in other colours
REWORDED = 0.35  # share of the questions
MIDDLE = 2  # the language model's layer after which both pictures are named


@dataclass(frozen=True)
class Scale:
    """How long each phase lasts, at which rates (Muon's, AdamW's), and what it takes at a time.

    ``compared`` and ``asked`` are the shares of comparisons and questions about subjects.
    """

    groups: int = 5000
    invented: int = 3000
    seeing: int = 5000
    comparing: int = 2400
    answering: int = 2200
    images: int = 96
    sequences: int = 24
    pairs: int = 32
    compared: float = 2 / 3
    asked: float = 1 / 2
    seeing_rates: tuple[float, float] = (0.015, 1.5e-3)
    comparing_rates: tuple[float, float] = (0.012, 1e-3)
    answering_rates: tuple[float, float] = (0.01, 8e-4)


GOING_ON = Scale(
    seeing=900,
    comparing=1000,
    answering=1600,
    compared=1 / 2,
    asked=1 / 2,
    comparing_rates=(0.01, 8e-4),
    answering_rates=(0.008, 6e-4),
)  # of a critic that has learnt already: styles are what it still lacks
SMOKE = Scale(
    groups=12, invented=2, seeing=6, comparing=5, answering=6, images=16, sequences=4, pairs=8
)


def _causal(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> tuple[Tensor, None]:
    """Causal attention in float32: on CPUs its backward pass is slower in bfloat16."""
    with torch.autocast("cpu", enabled=False):
        mixed = functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True
        )
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register("causal_float32", _causal)


class Critic:
    """The three phases on one network.

    Args:
        pictures: What it learns from.
        scale: How long.
        work: Where checkpoints are kept.
        seed: Of all draws.
        start: A critic to go on from; what is thrown away in the end then learns alone first.
        team: The processes that share each step; each draws its own part of it.

    Raises:
        TrainingError: A critic to go on from has another shape.
    """

    def __init__(
        self,
        pictures: Pictures,
        scale: Scale,
        work: Path,
        seed: int,
        start: LlavaOnevisionForConditionalGeneration | None = None,
        team: Team = ALONE,
    ) -> None:
        self.pictures, self.bank = pictures, pictures.bank
        self.scale, self.work, self.seed, self.team = scale, work, seed, team
        self.model = build_model(seed)
        self.model.model.language_model.set_attn_implementation("causal_float32")
        with torch.random.fork_rng():
            torch.random.manual_seed(seed)
            self.heads, self.ends, self.markers = Heads(), Ends(), nn.Embedding(2, TEXT_WIDTH)
        self._goes_on = start is not None
        if start is not None:
            try:
                self.model.load_state_dict(start.state_dict())
            except RuntimeError as error:
                raise TrainingError("the critic in --start has other layers or patches") from error

    def _streams(self, phase: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
        number = step * self.team.size + self.team.rank
        generator = torch.Generator().manual_seed((self.seed * 10 + phase) * 1_000_003 + number)
        return np.random.default_rng((self.seed, phase, number)), generator

    def _mine(self, count: int) -> int:
        return count // self.team.size

    def see(self) -> None:
        """Train the tower and the projector to name what is drawn."""
        inner, heads, images = self.model.model, self.heads, self._mine(self.scale.images)
        modules = {"tower": inner.vision_tower, "projector": inner.multi_modal_projector}
        usable = np.flatnonzero(self.bank.kinds != UNUSED)
        chances = np.where(np.isin(self.bank.families[usable], FINE), 2.0, 1.0)
        chances /= chances.sum()

        def loss_at(step: int) -> Tensor:
            rng, generator = self._streams(1, step)
            fading, looks = self.pictures.fading(round(FADING_NAMED * images), rng)
            count = images - len(fading)
            rows = torch.from_numpy(rng.choice(usable, count, p=chances))
            pixels = self.pictures.get(rows, generator, damaged=0.5)
            if len(fading):
                pixels = torch.cat([pixels, damage(fading, generator, 0.5)])
            pixels, other = recoloured(pixels, torch.arange(images), generator)
            with torch.autocast("cpu", torch.bfloat16):
                features = image_features(self.model, pixels).float()
                loss = naming_loss(heads, features[:count], self.bank, rows, other[:count])
                if len(fading):
                    lost = look_loss(heads, features[count:], looks, other[count:])
                    loss = loss + FADING_NAMED * lost
                return loss

        checkpoint = self.work / "critic-seeing.safetensors"
        if self._goes_on and not checkpoint.exists():
            self._fit(heads, loss_at)
        train_phase(
            checkpoint,
            {**modules, "heads": heads},
            loss_at,
            steps=self.scale.seeing,
            rates=self.scale.seeing_rates,
            decay=True,
            team=self.team,
        )

    def compare(self) -> None:
        """Train the language model to read off, after each picture, what agrees with the first."""
        self._freeze_tower()
        each, count, width = 5, self._mine(self.scale.sequences), TEXT_WIDTH
        subjects = round(self.scale.compared * count)
        amounts = {"subject": subjects, "style": count - subjects}
        kinds = torch.arange(2).repeat_interleave(torch.tensor(list(amounts.values())))
        markers = self.markers
        checkpoint = self.work / "critic-comparing.safetensors"
        with torch.no_grad():
            markers.weight.mul_(0.5)
            if not (self._goes_on or checkpoint.exists()):
                self._unit_projector()

        def loss_at(step: int) -> Tensor:
            rng, generator = self._streams(2, step)
            parts = [PAIRS[a](self.bank, n * each, rng, each) for a, n in amounts.items()]
            references = np.concatenate([part.references[::each] for part in parts])
            pairs = _joined(parts)
            styles = np.repeat([aspect == "style" for aspect in amounts], list(amounts.values()))
            asked = np.repeat(styles, each)
            shown = self._images(references, pairs, asked, rng, generator)
            with torch.autocast("cpu", torch.bfloat16):
                features = self._features(shown.pixels)
                tokens = image_tokens(features, self.model.model.image_newline, "pad")
                first, others = tokens[:count], tokens[count:].reshape(count, -1, width)
                marker = markers(kinds)[:, None]
                states = self._language(torch.cat([marker, first, others], 1))
            length = tokens.shape[1]
            middle, last = (state[:, 2 * length :: length].flatten(0, 1) for state in states)
            return self.ends.loss(middle, last, *self._names(shown), self._truth(shown))

        if self._goes_on and not checkpoint.exists():
            self._fit(nn.ModuleList([self.ends, markers]), loss_at)
            self._freeze_tower()
        train_phase(
            checkpoint,
            {"model": self.model, "ends": self.ends, "markers": markers},
            loss_at,
            steps=self.scale.comparing,
            rates=self.scale.comparing_rates,
            team=self.team,
        )

    def answer(self, tokenizer: PreTrainedTokenizerFast, on_save: Callable[[], None]) -> None:
        """Train the language model to answer the judge's questions in both layouts.

        What `compare` taught it to read where a picture ends stays asked for there.
        """
        self._freeze_tower()
        count = self._mine(self.scale.pairs) // 2  # two pairs share a reference
        amounts = {"subject": 2 * round(self.scale.asked * count)}
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
            first_ones = pairs.references[::2]
            shown = self._images(first_ones, pairs, asked, rng, generator)
            truth = self._truth(shown)
            words = torch.where(truth[0] > 0, yes, no)
            with torch.autocast("cpu", torch.bfloat16):
                features = self._features(shown.pixels)
                tokens = image_tokens(features, self.model.model.image_newline, layout)
                first, second = tokens[:count].repeat_interleave(2, 0), tokens[count:]
                prompts = [
                    question(style, rng if rng.random() < REWORDED else None) for style in styles
                ]
                embeddings, seen, last = write(self.model, tokenizer, prompts, first, second, words)
                middle, hidden = self._language(embeddings)
                here = torch.arange(len(last))
                said = self.model.lm_head(hidden[here, last]).float()
                then = self.model.lm_head(hidden[here, last + 1]).float()
            loss = functional.cross_entropy(said, words)
            loss = loss + 0.1 * functional.cross_entropy(then, end.expand_as(words))
            names = self._names(shown)
            read = self.ends.loss(middle[here, seen], hidden[here, seen], *names, truth)
            return loss + 0.5 * read

        train_phase(
            self.work / "critic-answering.safetensors",
            {"model": self.model, "ends": self.ends},
            loss_at,
            steps=self.scale.answering,
            rates=self.scale.answering_rates,
            decay=True,
            on_save=on_save,
            team=self.team,
        )

    def _fit(self, heads: nn.Module, loss_at: Callable[[int], Tensor]) -> None:
        """Let heads alone learn what a critic that goes on knows already, on other draws."""
        self.model.requires_grad_(False)
        optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3)
        for step in range(min(200, max(self.scale.seeing, self.scale.comparing))):
            loss = loss_at(10**7 + step)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self.team.average(heads.parameters())
            optimizer.step()
        self.model.requires_grad_(True)

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

    def _names(self, shown: "Shown") -> tuple[Tensor, Tensor]:
        first, second = (
            name_targets(self.bank, rows, shown.recoloured)
            for rows in (shown.pairs.references, shown.pairs.tests)
        )
        second[shown.unknown] = -100
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
    ) -> "Shown":
        """What is shown: ``len(pairs.tests) / len(references)`` pairs in a row share a reference.

        A few tests show nothing, and where a style is asked about, some have lost half of it, or
        its texture is lost or faint: the pairs that are returned have their answers.
        """
        first = self.pictures.get(torch.from_numpy(references), generator, damaged=0.1)
        second = self.pictures.get(torch.from_numpy(pairs.tests), generator, damaged=0.6)
        empty = torch.rand(len(second), generator=generator) < 0.02
        second[empty] = nothing(int(empty.sum()), generator)
        answers = pairs.answers & ~empty.numpy()
        unknown, chance = empty, rng.random(len(second))
        for index in np.flatnonzero(asked_style & (chance < HALF + LOST + FAINT)):
            look = int(self.bank.looks[pairs.references[index]])
            image, answer = None, False
            if chance[index] < HALF:
                image = self.pictures.half_in_look(look, rng)
            elif chance[index] < HALF + LOST:
                image = self.pictures.bare_of_look(look, rng)
            elif (faint := self.pictures.faint_of_look(look, rng)) is not None:
                image, answer = faint
            if image is not None:
                second[index] = damage(image[None], generator, 0.6)[0]
                unknown[index], answers[index] = True, answer
        groups = torch.arange(len(first))
        asking = groups.repeat_interleave(len(second) // len(first))
        pixels, other = recoloured(
            torch.cat([first, second]), torch.cat([groups, asking]), generator
        )
        return Shown(pixels, replace(pairs, answers=answers), unknown, other[len(first) :])

    def _truth(self, shown: "Shown") -> Truth:
        equal, told = matches(self.bank, shown.pairs)
        answers = torch.from_numpy(shown.pairs.answers)
        return answers.float(), equal, told * ~shown.unknown[:, None]


@dataclass(frozen=True)
class Shown:
    """Pairs as they are shown.

    Attributes:
        pixels: images in [-1, 1]: references (mostly clean), then tests (mostly damaged).
        pairs: what is compared, with the answers to what is shown.
        unknown: ``(pairs,)``, tests that show something else than their row of the bank.
        recoloured: ``(pairs,)``, whether both pictures are in other colours.
    """

    pixels: Tensor
    pairs: Pairs
    unknown: Tensor
    recoloured: Tensor


def recoloured(images: Tensor, groups: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images, a share of the groups in other colours, and which of the images are, ``(n,)``."""
    chosen = torch.rand(int(groups.max()) + 1, generator=generator) < RECOLOURED
    chosen = chosen[groups]
    return torch.where(
        chosen[:, None, None, None], recolour(images, groups, generator), images
    ), chosen


def _joined(parts: Sequence[Pairs]) -> Pairs:
    fields = ("references", "tests", "answers", "hard")
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))
