"""From which contrast of its texture on a picture counts as in a style, to critic and classifier.

By definition from .4 on: the critic and the classifier learnt what is GONE and what is THERE, just
below and above. Where they cut elsewhere, they disagree on generated pictures that have faded.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmark_data.miniworld.measure.classifier import Classifier
from benchmark_data.miniworld.measure.sheet import save_sheet
from benchmark_data.miniworld.settings import SEPARABLE
from benchmark_data.miniworld.world import STYLES, SUBJECTS, Style, draw, draw_faint, random_thing

CONTRASTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
PYes = Callable[[Tensor, Tensor, list[str]], NDArray[np.float64]]


def measure_fading(
    p_yes: PYes, classifier: Classifier, *, each: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Share of pictures that count as in a style, by contrast of their texture.

    Args:
        p_yes: The critic's answers, given references, pictures and the style's phrases.
        classifier: The classifier.
        each: Drawings of a style, the same ones at every contrast.
        seed: Of what is drawn.

    Returns:
        "critic" and "classifier": style -> contrast -> share; test styles that can be bare.
    """
    shares: dict[str, dict[str, dict[str, float]]] = {"critic": {}, "classifier": {}}
    for name, style in faded_styles().items():
        rng = np.random.default_rng((seed, 12))
        poses = [(random_thing(rng), int(rng.integers(2**31))) for _ in range(each)]
        first = _tensor(
            [draw(random_thing(rng), style.look, seed=int(rng.integers(2**31))) for _ in poses]
        )
        for contrast in CONTRASTS:
            shown = _tensor(
                [draw_faint(thing, style.look, contrast, seed=pose) for thing, pose in poses]
            )
            said = p_yes(first, shown, [style.phrase] * each) > 0.5
            read = classifier.read_pixels(shown).is_in(style.look)
            for who, yes in (("critic", said), ("classifier", read)):
                shares[who].setdefault(name, {})[str(contrast)] = round(float(yes.mean()), 4)
    return shares


def save_fading(path: Path) -> None:
    """Write a sheet to look at: a row a style, a column a contrast."""
    thing = SUBJECTS["cat_1"].thing
    drawn = [
        draw_faint(thing, style.look, contrast, seed=3, jitter=0.4)
        for style in faded_styles().values()
        for contrast in CONTRASTS
    ]
    save_sheet(drawn, path, columns=len(CONTRASTS))


def faded_styles() -> Mapping[str, Style]:
    """The test styles whose family can be bare."""
    return {
        name: style
        for name, style in STYLES.items()
        if style.split == "test" and style.look.family in SEPARABLE
    }


def _tensor(images: list[Image.Image]) -> Tensor:
    pixels = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
