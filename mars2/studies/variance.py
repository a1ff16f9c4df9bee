"""Where the differences between answers come from: variance components, and what more would help.

Generalizability theory (Brennan 2001, Generalizability Theory, chapters 3 to 5): images are what is
measured; wordings, references, judges are facets, drawn from many that could have been.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from mars2.studies.association import Floats

Components = Mapping[frozenset[int], float]
"""Axes -> variance of their interaction (of one axis: its own); the last one holds the error."""


def components(table: Floats) -> dict[frozenset[int], float]:
    """Return the variance components of a table with every combination once, from mean squares.

    Estimates below 0 are set to 0, as is usual.

    Args:
        table: An axis a facet, the first of what is measured; at least 2 of each, no NaN.
    """
    axes = range(table.ndim)
    effects = [frozenset(own) for size in range(1, table.ndim + 1)
               for own in itertools.combinations(axes, size)]  # fmt: skip
    squares: dict[frozenset[int], float] = {}
    for effect in effects:
        interaction = np.zeros((1,) * table.ndim)
        for size in range(len(effect) + 1):
            for kept in itertools.combinations(sorted(effect), size):
                others = tuple(axis for axis in axes if axis not in kept)
                sign = (-1) ** (len(effect) - size)
                interaction = interaction + sign * table.mean(axis=others, keepdims=True)
        degrees = float(np.prod([table.shape[axis] - 1 for axis in effect]))
        copies = table.size / float(np.prod([table.shape[axis] for axis in effect]))
        squares[effect] = copies * float((interaction**2).sum()) / degrees
    found: dict[frozenset[int], float] = {}
    for effect in reversed(effects):  # from the whole interaction down
        larger = [other for other in effects if effect < other]
        rest = squares[effect] - sum(found[other] * _copies(table, other) for other in larger)
        found[effect] = rest / _copies(table, effect)
    return {effect: max(0.0, found[effect]) for effect in effects}


def _copies(table: Floats, effect: frozenset[int]) -> float:
    return float(np.prod([n for axis, n in enumerate(table.shape) if axis not in effect]))


def dependability(found: Components, numbers: Sequence[int]) -> tuple[float | None, float | None]:
    """Return the generalizability and the dependability (Phi) of a mean over so many of each facet.

    The first is about who is better than whom, the second about the value itself: it counts, too,
    that some wordings say yes more often. None where nothing varies.

    Args:
        found: Of `components`.
        numbers: How many of each facet, in the order of the axes behind the first.
    """
    size = dict(enumerate(numbers, start=1))
    relative = absolute = 0.0
    for effect, variance in found.items():
        facets = effect - {0}
        if not facets:
            continue
        share = variance / float(np.prod([size[axis] for axis in facets]))
        absolute += share
        relative += share if 0 in effect else 0.0
    own = found[frozenset({0})]
    if own + absolute <= 0:
        return None, None
    return (own / (own + relative) if own + relative > 0 else None), own / (own + absolute)
