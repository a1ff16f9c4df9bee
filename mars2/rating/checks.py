"""Questions of known answer: a rating study's examples, and its attention checks."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mars2.rating.questions import ANSWERS, Design, Example, Mode, Task, few_of
from mars2.references import References


class Known:
    """Questions of known answer, made from references of the concepts that are rated.

    Args:
        pairs: Subject and style of each case that is rated.
        references: Of both.
        classes: Concept -> what it is ("cat"), see `mars2.rating.plan.plan_rating`.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        references: References,
        classes: Mapping[str, str],
    ) -> None:
        self.pairs, self.references, self.classes = pairs, references, classes

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
        return Example(aspect, answer, image, few_of(beside), phrase)

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
            "subject": few_of(self.references.files[pair[0]]),
            "style": few_of(self.references.files[pair[1]]),
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
