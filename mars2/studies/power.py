"""How many items and raters a study of people and metrics needs, by drawing others from it."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from mars2.studies import raters
from mars2.studies.association import spearman
from mars2.studies.ratings import Aligned
from mars2.studies.result import Sheet, Value

ITEMS = (10, 20, 50, 100, 200, 500, 1000)
DRAWS = 200
MOST_SUBSETS = 8
ENOUGH = 0.8


def study_power(data: Aligned, order: Sequence[str], seed: int) -> tuple[Sheet, str]:
    """Return, by number of items and of raters, how exact a study is, and what that says.

    Items are drawn with replacement, so that larger studies than this one are drawn as well; raters
    without. The chance to tell the two best metrics apart is that of a two-sided test at 5 %, their
    difference being what it is here and normally distributed as in the draws.

    Args:
        data: Ratings and scores.
        order: Metrics, best first.
        seed: Of the draws.
    """
    rng = np.random.default_rng([seed, 3])
    items, count = len(data.items), len(data.rated.raters)
    best, second = order[0], order[1] if len(order) > 1 else None
    rows: list[tuple[Value, ...]] = []
    enough: tuple[int, int] | None = None
    for number in range(1, count + 1):
        subsets = [rng.permutation(count)[:number] for _ in range(min(MOST_SUBSETS, count))]
        for size in ITEMS:
            drawn = rng.multinomial(size, np.full(items, 1 / items), size=DRAWS).astype(float)
            values: list[list[float]] = [[], []]
            for subset, weights in zip(subsets, np.array_split(drawn, len(subsets)), strict=True):
                mean = raters.mean_rating(data.rated.table[:, subset])
                both = ~np.isnan(mean) & ~np.isnan(data.scores[best])
                if second is not None:
                    both &= ~np.isnan(data.scores[second])
                own = weights[:, data.owner[both]]
                first = spearman(data.scores[best][both], mean[both], own)
                values[0] += first.tolist()
                if second is not None:
                    other = spearman(data.scores[second][both], mean[both], own)
                    values[1] += (first - other).tolist()
            width = 1.96 * float(np.nanstd(values[0]))
            power = None
            if second is not None:
                spread = max(float(np.nanstd(values[1])), 1e-12)
                distance = abs(float(np.nanmean(values[1]))) / spread
                power = NormalDist().cdf(distance - 1.96) + NormalDist().cdf(-distance - 1.96)
                if power >= ENOUGH and (enough is None or size < enough[0]):
                    enough = size, number
            rows.append((data.aspect, size, number, float(np.nanmean(values[0])), width, power))
    sheet = Sheet(
        "power", f"How large a study has to be: {data.aspect}",
        ("aspect", "items", "raters", "rho", "half width", "power"), rows,
        ("items", "raters", "rho", "half width", "power"),
        (f"rho: of {best}, over all images. half width: of its 95 % interval. power: chance to "
         f"tell it from {second or '-'}. Of {len(data.methods)} methods an item; drawn from "
         f"{items} items, and from {count} raters, whom a study with all of them never varies.",),
    )  # fmt: skip
    if second is None or math.isnan(rows[-1][3] if isinstance(rows[-1][3], float) else 0.0):
        return sheet, ""
    if enough is None:
        return sheet, (
            f"To tell {best} from {second} in 4 of 5 studies takes more than {ITEMS[-1]} items."
        )
    return sheet, (
        f"To tell {best} from {second} in 4 of 5 studies takes about {enough[0]} items with "
        f"{enough[1]} of these raters."
    )
