"""Plans a rating study: which rater sees which images, in which order and on which side.

Nothing here depends on anything but the run, the design and its seed. Three things are balanced:
each image has equally many raters, each rater sees the methods equally often, and each of two
methods stands on the left as often as on the right.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from mars2.job import CONTROLS, RunError, RunSpec, listed, spread
from mars2.references import References
from mars2.store import RunStore, Sample

Mode = Literal["yes_no", "pairs"]
ANSWERS: Mapping[Mode, tuple[str, ...]] = {
    "yes_no": ("yes", "no"),
    "pairs": ("left", "right", "tie", "both_bad"),
}
ASPECTS = ("subject", "style", "both")
MODES = (*get_args(Mode), "both")

MOST_REFERENCES = 6
"""Shown of a subject or style: on a phone, more are too small to be looked at."""
SECONDS_AN_IMAGE = 2.0
SECONDS_AN_ANSWER = 3.0
"""Guesses, for the time that is announced; raters.csv has what it took."""

Cell = tuple[str, int]
"""Case and seed: what the methods' images are compared on."""


@dataclass(frozen=True)
class Design:
    """What a study is to be.

    Attributes:
        mode: "yes_no" (one image, is it right?), "pairs" (which of two is better?) or "both".
        methods: Labels, whose images are rated.
        aspects: By what two images are compared, of `ASPECTS`.
        sample: Number of images of each method, spread over the pairs of a run; None: all.
        raters: How many people take part.
        per_item: How many of them rate the same image, or pair of images.
        check_every: One attention check in so many questions; 0: none.
        seed: Of all that is drawn.
    """

    mode: str
    methods: tuple[str, ...]
    aspects: tuple[str, ...] = ("both",)
    sample: int | None = None
    raters: int = 3
    per_item: int = 3
    check_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RunError(f"--mode is {self.mode!r}; give {', '.join(MODES)}")
        unknown = [aspect for aspect in self.aspects if aspect not in ASPECTS]
        if unknown or not self.aspects or len(set(self.aspects)) < len(self.aspects):
            raise RunError(
                f"--aspects is {','.join(self.aspects)!r}; give some of {', '.join(ASPECTS)}, each "
                "once"
            )
        if not 1 <= self.per_item <= self.raters:
            raise RunError(
                f"--per-item is {self.per_item} of --raters {self.raters}; each image is rated by "
                "at least one of them, and by each once"
            )
        least = 1 if self.mode == "yes_no" else 2
        if len(set(self.methods)) < max(least, len(self.methods)):
            raise RunError(
                f"--method is {listed(self.methods) or 'none'}; mode {self.mode} needs {least} or "
                "more methods, each once"
            )
        for name, value, low in (
            ("--sample", self.sample, 1),
            ("--check-every", self.check_every, 0),
            ("--seed", self.seed, 0),
        ):
            if value is not None and value < low:
                raise RunError(f"{name} is {value}; it must be at least {low}")

    def confirm(self, path: Path, wanted: Mapping[str, object]) -> None:
        """Refuse settings that are not those of the study in a file; None is any.

        Raises:
            RunError: One differs.
        """
        for name, value in wanted.items():
            if value is not None and value != getattr(self, name):
                raise RunError(
                    f"{path} is a study with {name.replace('_', ' ')} {_said(self, name)}; "
                    "leave the option out to go on with it, or begin another with --out"
                )


def _said(design: Design, name: str) -> str:
    value = getattr(design, name)
    return listed(value) if isinstance(value, tuple) else "all" if value is None else str(value)


@dataclass(frozen=True)
class Task:
    """One screen: images beside references, and a question for each aspect.

    Attributes:
        mode: Which answers there are.
        images: One to be rated, or two to be compared, the left one first.
        subject: References of the subject.
        style: References of the style.
        phrase: The style's name.
        aspects: What is asked about.
        case: Id of the case; "" of a check.
        seed: Of the images; None of a check.
        methods: Whose images they are, in their order; none of a check.
        truth: Aspect -> the right answer; empty where it is not known.
    """

    mode: Mode
    images: tuple[Path, ...]
    subject: tuple[Path, ...]
    style: tuple[Path, ...]
    phrase: str
    aspects: tuple[str, ...]
    case: str = ""
    seed: int | None = None
    methods: tuple[str, ...] = ()
    truth: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it is expected to take."""
        return SECONDS_AN_IMAGE * len(self.images) + SECONDS_AN_ANSWER * len(self.aspects)


@dataclass(frozen=True)
class Example:
    """An image of known answer, for the instructions.

    Attributes:
        aspect: "subject" or "style".
        answer: "yes" or "no".
        image: What is shown.
        references: What it is compared with.
        phrase: The style's name; "" of a subject.
    """

    aspect: str
    answer: str
    image: Path
    references: tuple[Path, ...]
    phrase: str


@dataclass(frozen=True)
class Plan:
    """All questions of a study.

    Attributes:
        design: What it was made from.
        tasks: A list a rater, in the order shown.
        examples: For the instructions.
        left_out: Pairs and seeds that a method has no image of.
    """

    design: Design
    tasks: tuple[tuple[Task, ...], ...]
    examples: tuple[Example, ...]
    left_out: int = 0


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
    known = _Known(cells, references, classes or {})
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


def _shown(files: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(files[:MOST_REFERENCES])


def _task(
    mode: Mode, shown: Sequence[Sample], references: References, aspects: tuple[str, ...]
) -> Task:
    first = shown[0]
    return Task(
        mode,
        tuple(sample.path for sample in shown),
        _shown(references.files[first.subject]),
        _shown(references.files[first.style]),
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


class _Known:
    """Questions of known answer, made from references of the concepts that are rated."""

    def __init__(
        self,
        cells: Mapping[Cell, Mapping[str, Sample]],
        references: References,
        classes: Mapping[str, str],
    ) -> None:
        first = {case: next(iter(own.values())) for (case, _), own in cells.items()}
        self.pairs = list(dict.fromkeys((one.subject, one.style) for one in first.values()))
        self.references = references
        self.classes = classes

    def _others(self, aspect: str, concept: str) -> list[str]:
        """Return concepts that differ from one for certain."""
        column = 0 if aspect == "subject" else 1
        others = [o for o in dict.fromkeys(p[column] for p in self.pairs) if o != concept]
        if aspect == "subject":
            own = self.classes.get(concept)
            return [o for o in others if own is None or self.classes.get(o) != own]
        words = {one: set(self.references.phrases[one].split()) for one in (concept, *others)}
        return [o for o in others if not words[o] & words[concept]]

    def _example(
        self, aspect: str, answer: str, pair: tuple[str, str], rng: np.random.Generator
    ) -> Example | None:
        """Return a question of known answer about a pair's subject or style, if there is one."""
        concept = pair[0] if aspect == "subject" else pair[1]
        own = list(self.references.files[concept])
        source = own
        if answer == "no":
            others = self._others(aspect, concept)
            if not others:
                return None
            source = list(self.references.files[others[int(rng.integers(len(others)))]])
        image = source[int(rng.integers(len(source)))]
        beside = [file for file in own if file != image] or own  # a single one beside itself
        phrase = self.references.phrases[concept] if aspect == "style" else ""
        return Example(aspect, answer, image, _shown(beside), phrase)

    def examples(self) -> tuple[Example, ...]:
        """Return a yes and a no for subject and for style, as far as they can be made."""
        rng = np.random.default_rng(0)
        found = []
        for aspect, answer in itertools.product(("subject", "style"), ("yes", "no")):
            made = (self._example(aspect, answer, pair, rng) for pair in self.pairs)
            found += [example for example in made if example is not None][:1]
        return tuple(found)

    def checks(
        self, mode: Mode, design: Design, tasks: int, rng: np.random.Generator
    ) -> Iterator[Task]:
        """Return attention checks for so many tasks, their kinds taking turns in random order."""
        if not design.check_every:
            return
        count = math.ceil(tasks / design.check_every)
        asked = ("subject", "style") if mode == "yes_no" else design.aspects
        kinds = list(itertools.product(asked, ANSWERS[mode][:2]))
        turns: list[tuple[str, str]] = []
        while len(turns) < count:
            turns += [kinds[k] for k in rng.permutation(len(kinds))]
        for aspect, answer in turns[:count]:
            for place in rng.permutation(len(self.pairs)):
                check = self._check(mode, asked, aspect, answer, self.pairs[place], rng)
                if check is not None:
                    yield check
                    break

    def _check(
        self,
        mode: Mode,
        asked: tuple[str, ...],
        aspect: str,
        answer: str,
        pair: tuple[str, str],
        rng: np.random.Generator,
    ) -> Task | None:
        by = aspect if aspect != "both" else ("subject", "style")[int(rng.integers(2))]
        one = self._example(by, answer if mode == "yes_no" else "yes", pair, rng)
        images = [one.image] if one else []
        if mode == "pairs" and images:
            wrong = self._example(by, "no", pair, rng)
            images = [images[0], wrong.image] if wrong else []
            images = images if answer == "left" else images[::-1]
        if one is None or not images:
            return None
        shown = {
            "subject": _shown(self.references.files[pair[0]]),
            "style": _shown(self.references.files[pair[1]]),
            by: one.references,
        }
        return Task(
            mode,
            tuple(images),
            shown["subject"],
            shown["style"],
            self.references.phrases[pair[1]],
            asked,
            truth={aspect: answer},
        )
