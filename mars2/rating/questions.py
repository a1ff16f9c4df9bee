"""What a rating study is and asks: its design, its screens, its examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mars2.job import RunError
from mars2.wording import listed

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


def few_of(files: Sequence[Path]) -> tuple[Path, ...]:
    """Return those of a subject's or style's references that are shown."""
    return tuple(files[:MOST_REFERENCES])
