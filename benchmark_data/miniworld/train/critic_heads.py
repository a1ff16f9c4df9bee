"""What the critic is read off with while it learns: heads that are thrown away, and losses.

`Heads` names what a picture shows, per picture and per cell; `Ends` reads, where a picture ends,
what agrees with the first one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmark_data.miniworld.settings import BARE, INVENTED, PALETTES, SEPARABLE, TEXTURES
from benchmark_data.miniworld.train.critic_model import GRID, TEXT_WIDTH
from benchmark_data.miniworld.train.drawings import (
    ALL_LOOKS,
    CELLS,
    LOOKS,
    Bank,
    Pairs,
)
from benchmark_data.miniworld.world import (
    CATEGORIES,
    COLOURS,
    FAMILIES,
    MONOCHROME,
    PATTERNS,
    STYLES,
    Look,
)

SIDE = CELLS // GRID  # cells a side of a patch
MATCHES = 8  # category, body, accent, pattern, second, family, palette, texture
COLOURS_OF, FAMILY, PALETTE, TEXTURE = (1, 2, 4), 5, 6, 7  # their numbers
_PALETTES = [(family, name) for family in FAMILIES for name in PALETTES[family]]
_NAMED = len(_PALETTES)  # invented palettes have no name, and differ all the same
_PALETTES += [(family, name) for family in FAMILIES for name in INVENTED[family]]
_TEXTURES = [(family, name) for family in FAMILIES for name in TEXTURES[family]]
_TEXTURES += [(family, BARE) for family in SEPARABLE]


def _settings(looks: Sequence[Look]) -> NDArray[np.int64]:
    """Numbers of palettes and textures of looks, ``(n, 2)``."""
    return np.array(
        [
            (_PALETTES.index((x.family, x.palette)), _TEXTURES.index((x.family, x.texture)))
            for x in looks
        ]
    )


# palette and texture are told apart: a setting that was never met is made of known ones
SETTINGS = _settings(ALL_LOOKS)
_LACKING = np.isin(
    np.arange(len(_PALETTES)),
    [SETTINGS[LOOKS.index(style.look), 0] for style in STYLES.values() if style.split != "train"],
)  # palettes of which one texture is never met
CLASSES = (
    len(CATEGORIES),
    len(COLOURS),
    len(COLOURS),
    len(PATTERNS),
    len(COLOURS) + 1,
    len(FAMILIES),
    _NAMED,
    len(_TEXTURES),
)
_GREY = [FAMILIES.index(family) for family in MONOCHROME]


class Heads(nn.Module):
    """Names what is in MATCHES, and role and colour by cell.

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
        self.role_head = nn.Linear(TEXT_WIDTH, SIDE * SIDE * 5)
        self.colour_head = nn.Linear(TEXT_WIDTH, SIDE * SIDE * (colours + 2))

    def forward(self, features: Tensor) -> tuple[list[Tensor], Sequence[Tensor], Tensor, Tensor]:
        """Logits of names together and alone, of role and colour.

        Shapes ``(n, classes)``, ``(n * patches, classes)``, twice ``(n, CELLS, CELLS, classes)``.
        """
        features = self.norm(features)
        # (n, patches, MATCHES)
        weights = (features @ self.queries_head.T * TEXT_WIDTH**-0.5).softmax(1)
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
    """Values of GRID x GRID patches with SIDE x SIDE cells each, ``(n, CELLS, CELLS, classes)``."""
    n = len(values)
    values = values.view(n, GRID, GRID, SIDE, SIDE, -1).permute(0, 1, 3, 2, 4, 5)
    return values.reshape(n, CELLS, CELLS, -1)


def name_targets(bank: Bank, rows: np.ndarray, recoloured: Tensor) -> Tensor:
    """Numbers of what rows show, ``(n, MATCHES)``; -100 for what is not to be named.

    That is colours where none can be told, and textures in a palette that is never met with all of
    them: who names them there learns which one it never is, and reads another one instead.
    """
    settings = SETTINGS[bank.looks[rows]]
    targets = torch.from_numpy(np.column_stack([bank.things[rows], bank.families[rows], settings]))
    grey = torch.from_numpy(np.isin(bank.families[rows], _GREY))
    for attribute in COLOURS_OF:
        targets[recoloured | grey, attribute] = -100
    targets[recoloured | torch.from_numpy(settings[:, 0] >= _NAMED), PALETTE] = -100
    targets[torch.from_numpy(_LACKING[settings[:, 0]]), TEXTURE] = -100
    return targets


def names_loss(names: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy summed over the names, each a mean over the rows where it can be told."""
    return torch.stack(
        [
            functional.cross_entropy(logits.float(), targets[:, number], reduction="sum")
            / (targets[:, number] >= 0).sum().clamp(min=1)
            for number, logits in enumerate(names)
        ]
    ).sum()


def naming_loss(
    heads: Heads, features: Tensor, bank: Bank, rows: Tensor, recoloured: Tensor
) -> Tensor:
    """Cross-entropy of what is drawn; colours do not count where none can be told."""
    names, every, roles, colours = heads(features)
    targets = name_targets(bank, rows.numpy(), recoloured)
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
    colour[~coloured | recoloured] = -100
    loss = loss + functional.cross_entropy(roles.float().permute(0, 3, 1, 2), role)
    return loss + functional.cross_entropy(colours.float().permute(0, 3, 1, 2), colour)


def look_loss(heads: Heads, features: Tensor, looks: Sequence[Look], recoloured: Tensor) -> Tensor:
    """Cross-entropy of the look alone, of pictures in these looks, bare ones among them."""
    names, every, _, _ = heads(features)
    targets = torch.full((len(looks), MATCHES), -100)
    targets[:, FAMILY] = torch.tensor([FAMILIES.index(look.family) for look in looks])
    settings = _settings(looks)
    targets[:, PALETTE:] = torch.from_numpy(settings)
    targets[recoloured, PALETTE] = -100
    targets[torch.from_numpy(_LACKING[settings[:, 0]]), TEXTURE] = -100
    each = names_loss(every, targets.repeat_interleave(features.shape[1], 0))
    return names_loss(names, targets) + each


def matches(bank: Bank, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Which of MATCHES agree, and which of them can be told, ``(n, MATCHES)`` each."""
    a, b = pairs.references, pairs.tests
    equal = np.column_stack(
        [
            bank.things[a] == bank.things[b],
            bank.families[a] == bank.families[b],
            SETTINGS[bank.looks[a]] == SETTINGS[bank.looks[b]],
        ]
    )
    grey = np.isin(bank.families[a], _GREY) | np.isin(bank.families[b], _GREY)
    told = np.ones_like(equal)
    for attribute in COLOURS_OF:
        told[grey, attribute] = False
    return torch.from_numpy(equal).float(), torch.from_numpy(told).float()


def matching_loss(logits: Tensor, answers: Tensor, equal: Tensor, told: Tensor) -> Tensor:
    """Binary cross-entropy of the answer and of what agrees; logits ``(n, 1 + MATCHES)``."""
    logits = logits.float()
    loss = functional.binary_cross_entropy_with_logits(logits[:, 0], answers)
    each = functional.binary_cross_entropy_with_logits(logits[:, 1:], equal, reduction="none")
    return loss + (each * told).sum() / told.sum()
