"""Choices between two images, and how strong they say the methods are; numpy."""

import numpy as np

from mars2.studies.association import Floats

PRIOR = 0.1
"""Wins that each of two methods that were compared is given beforehand, so that one that won or
lost always has a finite strength."""


def bradley_terry(wins: Floats, *, prior: float = PRIOR, steps: int = 2000) -> Floats:
    """Return the methods' strengths, as logarithms whose mean is 0 (Bradley and Terry 1952).

    Their difference is the log odds that the one wins against the other. By the minorisation of
    Hunter 2004, from all strengths equal; to 1e-10 or `steps` steps.

    Args:
        wins: (rows, methods, methods): how often the first beat the second; a tie is half of both.
        prior: As `PRIOR`; 0 for the maximum of the likelihood alone.
        steps: Most steps.

    Returns:
        (rows, methods); NaN of a method that was never compared.
    """
    compared = wins + wins.transpose(0, 2, 1) > 0
    wins = wins + prior * compared
    games = wins + wins.transpose(0, 2, 1)
    won = wins.sum(axis=2)
    played = games.sum(axis=2) > 0
    strength = np.ones(won.shape)
    for _ in range(steps):
        sums = strength[:, :, None] + strength[:, None, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            new = won / (games / sums).sum(axis=2)
        new = np.where(played, new, 1)
        mean = (np.log(np.maximum(new, 1e-300)) * played).sum(axis=1) / played.sum(axis=1)
        new /= np.exp(mean)[:, None]
        change = np.abs(new - strength).max(initial=0)
        strength = new
        if change < 1e-10:
            break
    return np.where(played, np.log(np.maximum(strength, 1e-300)), np.nan)
