"""Plans a rating study: which rater sees which images, in which order and on which side.

Nothing here depends on anything but the run, the design and its seed. Three things are balanced:
each image has equally many raters, each rater sees the methods equally often, and each of two
methods stands on the left as often as on the right.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mars2.job import CONTROLS, RunError, RunSpec, spread
from mars2.rating.checks import Known
from mars2.rating.questions import MODES, Design, Mode, Plan, Task, few_of
from mars2.references import References
from mars2.store import RunStore, Sample
from mars2.wording import listed

Cell = tuple[str, int]
"""Case and seed: what the methods' images are compared on."""


def default_methods(store: RunStore) -> tuple[str, ...]:
    """Return the labels of the methods that merge, which controls do not."""
    if not isinstance(store.spec, RunSpec):
        return store.spec.labels
    return tuple(one.label for one in store.spec.methods if one.name not in CONTROLS)


def plan_rating(
    store: RunStore,
    references: References,
    design: Design,
    classes: Mapping[str, str] | None = None,
) -> Plan:
    """Return the questions of a study on the images of a run.

    A rater of single images gets all methods' images of a pair and seed or none of them, so that
    one who is severe is so to all methods alike.

    Args:
        store: Whose images are rated.
        references: What they are compared with.
        design: How.
        classes: Concept -> what it is ("cat"): checks that must be a no take another class.

    Raises:
        RunError: Images are missing, or too few for so many raters.
    """
    cells, left_out = _cells(store, design)
    images = (next(iter(own.values())) for own in cells.values())
    pairs = dict.fromkeys((image.subject, image.style) for image in images)
    known = Known(list(pairs), references, classes or {})
    parts: list[tuple[Mode, list[list[Task]]]] = []
    if design.mode in ("yes_no", "both"):
        parts.append(("yes_no", _singles(cells, references, design)))
    if design.mode in ("pairs", "both"):
        parts.append(("pairs", _pairs(cells, references, design)))
    tasks = []
    for rater in range(design.raters):
        own: list[Task] = []
        for mode, dealt in parts:
            rng = np.random.default_rng([design.seed, 1 + MODES.index(mode), rater])
            part = mixed(dealt[rater], rng)
            if not part:
                raise RunError(
                    f"{design.raters} raters are too many for {len(cells)} pairs and seeds, each "
                    f"rated by {design.per_item}: some had nothing to do"
                )
            own += _with_checks(part, known.checks(mode, design, len(part), rng), design, rng)
        tasks.append(tuple(own))
    return Plan(design, tuple(tasks), known.examples(), left_out)


def assign(
    groups: Sequence[int], raters: int, per_item: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Return for each item the numbers of the raters who get it, ascending.

    Raters' shares of each group differ by one at most, and so do their shares of all but for rare
    cases, where they differ by two.

    >>> assign([0, 0, 1, 1], 2, 1, np.random.default_rng(0))
    [(1,), (0,), (1,), (0,)]
    """
    chosen: list[tuple[int, ...]] = [()] * len(groups)
    total = np.zeros(raters)
    for group in dict.fromkeys(groups):
        own = np.zeros(raters)
        for item in rng.permutation(np.flatnonzero(np.array(groups) == group)):
            picked = np.lexsort((rng.random(raters), total, own))[:per_item]
            own[picked] += 1
            total[picked] += 1
            chosen[item] = tuple(sorted(int(rater) for rater in picked))
    return chosen


def mixed(tasks: Sequence[Task], rng: np.random.Generator) -> list[Task]:
    """Return tasks in random order, two of the same case in a row only where there is no other."""
    waiting = [tasks[k] for k in rng.permutation(len(tasks))]
    counts = Counter(task.case for task in waiting)
    ordered: list[Task] = []
    while waiting:
        last = ordered[-1].case if ordered else None
        most = max(counts, key=lambda case: counts[case])
        # a case that is more than half of what is left has to come at every second place
        due = most if most != last and 2 * counts[most] > len(waiting) else None
        place = next(
            (
                k
                for k, task in enumerate(waiting)
                if (task.case == due if due is not None else task.case != last)
            ),
            0,
        )
        ordered.append(waiting.pop(place))
        counts[ordered[-1].case] -= 1
    return ordered


def _cells(store: RunStore, design: Design) -> tuple[dict[Cell, dict[str, Sample]], int]:
    """Return the images to be rated, by case and seed, then method; and how many cells lack one."""
    unknown = [label for label in design.methods if label not in store.spec.labels]
    if unknown:
        raise RunError(
            f"{store.folder} has no method {listed(unknown)}; it has {listed(store.spec.labels)}"
        )
    found: dict[Cell, dict[str, Sample]] = {}
    for sample in store.samples():
        if sample.method in design.methods:
            own = found.setdefault((sample.case, sample.seed), {})
            if sample.path.is_file():
                own[sample.method] = sample
    whole = {
        cell: {label: own[label] for label in design.methods}
        for cell, own in found.items()
        if len(own) == len(design.methods)
    }
    if not whole:
        raise RunError(
            f"{store.folder} has no pair and seed of which all of {listed(design.methods)} have an "
            "image: finish the run, or choose other methods"
        )
    if design.sample is not None and design.sample > len(whole):
        raise RunError(
            f"--sample is {design.sample}, but {store.folder} has {len(whole)} images of each "
            "method: give fewer, or leave it out to have all"
        )
    return _sampled(whole, design.sample), len(found) - len(whole)


def _sampled(
    cells: Mapping[Cell, dict[str, Sample]], count: int | None
) -> dict[Cell, dict[str, Sample]]:
    """Return so many cells, spread over subjects and styles, the first seeds first."""
    by_case: dict[str, list[Cell]] = {}
    for cell in cells:
        by_case.setdefault(cell[0], []).append(cell)
    own = list(by_case.values())
    shown = [next(iter(cells[one[0]].values())) for one in own]
    chosen = [own[k] for k in spread([(one.subject, one.style) for one in shown], count)]
    turns = max(len(one) for one in chosen)
    ordered = [one[turn] for turn in range(turns) for one in chosen if turn < len(one)]
    return {cell: cells[cell] for cell in sorted(ordered[:count])}


def _task(
    mode: Mode, shown: Sequence[Sample], references: References, aspects: tuple[str, ...]
) -> Task:
    first = shown[0]
    return Task(
        mode,
        tuple(sample.path for sample in shown),
        few_of(references.files[first.subject]),
        few_of(references.files[first.style]),
        references.phrases[first.style],
        aspects,
        first.case,
        first.seed,
        tuple(sample.method for sample in shown),
    )


def _singles(
    cells: Mapping[Cell, Mapping[str, Sample]], references: References, design: Design
) -> list[list[Task]]:
    """Return each rater's single images, in no order yet."""
    cases = list(dict.fromkeys(case for case, _ in cells))
    rng = np.random.default_rng([design.seed, 0])
    groups = [cases.index(case) for case, _ in cells]
    dealt: list[list[Task]] = [[] for _ in range(design.raters)]
    for own, raters in zip(
        cells.values(), assign(groups, design.raters, design.per_item, rng), strict=True
    ):
        for rater, label in itertools.product(raters, design.methods):
            dealt[rater].append(_task("yes_no", [own[label]], references, ("subject", "style")))
    return dealt


def _pairs(
    cells: Mapping[Cell, Mapping[str, Sample]], references: References, design: Design
) -> list[list[Task]]:
    """Return each rater's pairs of images, in no order yet."""
    rng = np.random.default_rng([design.seed, 1])
    rivals = list(itertools.combinations(design.methods, 2))
    items = [(k, pair, cell) for k, pair in enumerate(rivals) for cell in cells]
    assigned = assign([k for k, _, _ in items], design.raters, design.per_item, rng)
    leading = np.zeros((design.raters, len(rivals)))  # first on the left less second on the left
    dealt: list[list[Task]] = [[] for _ in range(design.raters)]
    for (k, pair, cell), raters in zip(items, assigned, strict=True):
        here = 0
        for rater in raters:
            for excess in (leading[rater, k], leading[:, k].sum(), here, leading[rater].sum()):
                if excess:
                    break
            side = -int(np.sign(excess)) or int(rng.choice((-1, 1)))
            leading[rater, k] += side
            here += side
            shown = pair if side > 0 else pair[::-1]
            dealt[rater].append(
                _task("pairs", [cells[cell][label] for label in shown], references, design.aspects)
            )
    return dealt


def _with_checks(
    tasks: Sequence[Task], checks: Iterator[Task], design: Design, rng: np.random.Generator
) -> list[Task]:
    """Return tasks with a check somewhere in each block of so many, while there are checks."""
    ordered: list[Task] = []
    every = design.check_every or len(tasks)
    for start in range(0, len(tasks), every):
        block = list(tasks[start : start + every])
        check = next(checks, None)
        if check is not None:
            block.insert(int(rng.integers(1, len(block) + 1)), check)
        ordered += block
    return ordered
