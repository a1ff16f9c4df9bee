"""How good the critic is: on new drawings of the training's kind, and on held-out ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from benchmark_data.miniworld.settings import BARE
from benchmark_data.miniworld.train.critic_model import (
    Layout,
    image_features,
    image_tokens,
)
from benchmark_data.miniworld.train.critic_questions import question, style_name, write
from benchmark_data.miniworld.train.degrade import degrade
from benchmark_data.miniworld.train.drawings import (
    BARE_LOOKS,
    LOOKS,
    PHOTO_FAMILY,
    Bank,
    Pairs,
    draw_groups,
    make_bank,
    style_pairs,
    subject_pairs,
)
from benchmark_data.miniworld.world import FAMILIES, STYLES, Look, Split, draw, random_thing
from mars2.judges.prompts import NO_WORDS, YES_WORDS

Floats = NDArray[np.float64]
_HELD_OUT = {LOOKS.index(s.look): s.phrase for s in STYLES.values() if s.split == "test"}


class Reader:
    """A saved critic, in float32, that reads pairs of a bank."""

    def __init__(self, folder: Path) -> None:
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.model = model.train(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.yes, self.no = self._words(YES_WORDS), self._words(NO_WORDS)

    def _words(self, words: tuple[str, ...]) -> list[int]:
        spelled = [self.tokenizer(space + word).input_ids for word in words for space in ("", " ")]
        return [ids[0] for ids in spelled if len(ids) == 1]

    @torch.no_grad()
    def p_yes(
        self, first: Tensor, second: Tensor, styles: list[str], layout: Layout = "anyres"
    ) -> Floats:
        """Probability of yes against no, ``(n,)``, of images in [-1, 1] and style names."""
        newline, parts = self.model.model.image_newline, []
        for start in range(0, len(styles), 50):
            rows = slice(start, start + 50)
            pair = [
                image_tokens(image_features(self.model, images[rows]), newline, layout)
                for images in (first, second)
            ]
            prompts = [question(style) for style in styles[rows]]
            embeddings, _, last = write(self.model, self.tokenizer, prompts, *pair)
            inner = self.model.model.language_model
            hidden = inner(inputs_embeds=embeddings, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[torch.arange(len(last)), last])
            yes, no = logits[:, self.yes].logsumexp(1), logits[:, self.no].logsumexp(1)
            parts.append(torch.sigmoid(yes - no))
        return torch.cat(parts).double().numpy()


def _share(chosen: NDArray[np.bool_]) -> float | None:
    return round(float(chosen.mean()), 4) if len(chosen) else None


def _balanced(right: NDArray[np.bool_], answers: NDArray[np.bool_]) -> float | None:
    yes, no = _share(right[answers]), _share(right[~answers])
    return None if yes is None or no is None else round((yes + no) / 2, 4)


def _interval(right: NDArray[np.bool_], answers: NDArray[np.bool_]) -> list[float] | None:
    """95 % interval of the balanced accuracy: bootstrap over pairs, within yes and no."""
    yes, no = right[answers], right[~answers]
    if not len(yes) or not len(no):
        return None
    rng = np.random.default_rng(0)
    drawn = [rng.binomial(len(x), x.mean(), 2000) / len(x) for x in (yes, no)]
    low, high = np.quantile((drawn[0] + drawn[1]) / 2, [0.025, 0.975])
    return [round(float(low), 4), round(float(high), 4)]


def _figures(p: Floats, answers: NDArray[np.bool_], hard: NDArray[np.bool_]) -> dict[str, object]:
    """Accuracies at one half and the expected calibration error of ten equal bins."""
    right = (p > 0.5) == answers
    bins = np.minimum((p * 10).astype(int), 9)
    error = sum(
        abs(p[bins == b].mean() - answers[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    )
    return {
        "n": len(p),
        "balanced_accuracy": _balanced(right, answers),
        "interval": _interval(right, answers),
        "yes": _share(right[answers]),
        "no": _share(right[~answers]),
        "no_hard": _share(right[hard]),
        "no_easy": _share(right[~answers & ~hard]),
        "ece": round(float(error), 4),
    }


def _take(pairs: Pairs, rows: NDArray[np.int64]) -> Pairs:
    return Pairs(pairs.references[rows], pairs.tests[rows], pairs.answers[rows], pairs.hard[rows])


def _held_out_styles(bank: Bank, count: int, rng: np.random.Generator) -> Pairs:
    """Style pairs whose reference is in a held-out style."""
    pairs = style_pairs(bank, 4 * count, rng)
    held_out = np.isin(bank.looks[pairs.references], list(_HELD_OUT))
    return _take(pairs, np.flatnonzero(held_out)[:count])


def texture_misses(
    reader: Reader, looks: Sequence[Look], *, each: int, seed: int
) -> dict[str, dict[str, float]]:
    """Share refused of pictures that differ from their reference's style in the texture alone.

    Args:
        reader: The critic.
        looks: Of the references.
        each: Pictures of every look that a reference's look is held against.
        seed: Of what is drawn.

    Returns:
        "other texture" and "no texture" (BARE): by family, and "all": of all pictures.
    """
    rng = np.random.default_rng((seed, 10))
    pairs = [
        (look, other)
        for look in looks
        for other in (*LOOKS, *BARE_LOOKS)
        if other != look and (other.family, other.palette) == (look.family, look.palette)
        for _ in range(each)
    ]
    first, second = (
        np.stack(
            [
                np.asarray(draw(random_thing(rng), pair[side], seed=int(rng.integers(2**31))))
                for pair in pairs
            ]
        )
        for side in (0, 1)
    )
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (first, second)]
    names = [
        next((s.phrase for s in STYLES.values() if s.look == look), "") or style_name(rng)
        for look, _ in pairs
    ]
    refused = reader.p_yes(tensors[0], tensors[1], names) <= 0.5
    shares: dict[str, dict[str, float]] = {}
    for title, wanted in (("other texture", False), ("no texture", True)):
        kind = np.array([(other.texture == BARE) == wanted for _, other in pairs])
        families = np.array([look.family for look, _ in pairs])
        rows = {name: kind & (families == name) for name in dict.fromkeys(families)} | {"all": kind}
        shares[title] = {
            str(name): round(float(refused[row].mean()), 4)
            for name, row in rows.items()
            if row.any()
        }
    return shares


def measure(folder: Path, *, groups: int, seed: int, pairs: int = 600) -> dict[str, object]:
    """Accuracy and calibration of the critic in a folder.

    "seen" are new things and looks of the training's kind, "held out" the test split's subjects and
    styles (a near miss of a style is another setting of its family, often of the same palette).
    "degraded" tests are blurred, bent, noisy and off in colour.
    """
    reader, results = Reader(folder), dict[str, object]()
    splits: tuple[tuple[str, Split], ...] = (("seen", "train"), ("held out", "test"))
    for title, split in splits:
        bank = make_bank(draw_groups(10**6, groups, seed=seed, split=split)[0])
        rng = np.random.default_rng((seed, 9))
        subject = subject_pairs(bank, pairs, rng)
        style = (
            style_pairs(bank, pairs, rng)
            if split == "train"
            else _held_out_styles(bank, pairs, rng)
        )
        figures: dict[str, object] = {}
        for aspect, chosen in (("subject", subject), ("style", style)):
            first = bank.pixels[chosen.references].float() / 127.5 - 1
            second = bank.pixels[chosen.tests].float() / 127.5 - 1
            generator = torch.Generator().manual_seed(seed)
            names = [""] * len(chosen.tests)
            if aspect == "style":
                looks = bank.looks[chosen.references].tolist()
                names = [_HELD_OUT.get(look) or style_name(rng) for look in looks]
            p = reader.p_yes(first, second, names)
            figures[aspect] = _figures(p, chosen.answers, chosen.hard)
            figures[f"{aspect}, pad layout"] = _figures(
                reader.p_yes(first, second, names, "pad"), chosen.answers, chosen.hard
            )
            damaged = reader.p_yes(first, degrade(second, generator), names)
            figures[f"{aspect}, degraded"] = _figures(damaged, chosen.answers, chosen.hard)
            photo = bank.families[chosen.tests] == PHOTO_FAMILY
            if aspect == "style":
                figures["style, photos refused"] = _share(p[photo] <= 0.5)
            kinds = bank.families[chosen.tests if aspect == "subject" else chosen.references]
            columns = (p, chosen.answers, chosen.hard)
            figures[f"{aspect}, by family"] = {
                FAMILIES[kind]: _figures(*(x[kinds == kind] for x in columns))
                for kind in np.unique(kinds)
                if len(np.unique(chosen.answers[kinds == kind])) == 2
            }
        shown = [s.look for s in STYLES.values() if s.split == "test"]
        if split == "train":
            held_out = {style.look for style in STYLES.values()}
            shown = [one for one in LOOKS if one not in held_out and one.family != "photo"]
        each = max(1, pairs // (5 * len(shown)))
        figures["style, texture refused"] = texture_misses(reader, shown, each=each, seed=seed)
        results[title] = figures
    return results
