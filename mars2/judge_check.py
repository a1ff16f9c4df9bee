"""Asks a judge what is known: a suite's references are compared with each other.

Another image of the same subject, or style, must be a yes; another subject, of the same class where
there is one, and another style must be a no. Styles of the same name, or one whose words are all in
the other's ("line drawing", "cartoon line drawing"), are not compared: the truth is not known.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark_data.references import reference_paths
from benchmark_data.suite import Concept, Suite, SuiteError
from mars2.controls import Aspect, Compared, Controls, Tally
from mars2.files import read_image
from mars2.judges import Judge, JudgeError, Question, Template, Verdict
from mars2.judges.prompts import choose
from mars2.metrics import Progress
from mars2.metrics.mars2 import Mars2Metric

PER_CONCEPT = 12


@dataclass(frozen=True)
class Control:
    """A question whose answer is known.

    Attributes:
        aspect: What is asked about.
        concept: Whose image is the reference.
        compared: What the test image shows.
        reference: File of the reference.
        test: File of the test image.
        style: The style's name in the question; "" for a subject.
    """

    aspect: Aspect
    concept: str
    compared: Compared
    reference: Path
    test: Path
    style: str


def plan_controls(
    suite: Suite, *, split: str | None = None, per_concept: int = PER_CONCEPT
) -> list[Control]:
    """Return the questions that the references of a suite allow.

    Args:
        suite: Whose references are compared.
        split: Only the subjects and styles of this split; None: all.
        per_concept: Most questions with the same concept and the same truth.

    Raises:
        SuiteError: References are missing, or there are not two concepts to compare.
    """
    chosen = [one for one in suite.concepts.values() if split in (None, one.split)]
    paths = iter(reference_paths(chosen, suite.name))
    files = {one.id: [next(paths) for _ in one.references] for one in chosen}
    controls = []
    for concept in chosen:
        aspect: Aspect = concept.role
        compared, others = _others(concept, chosen)
        own = files[concept.id]
        yes = [
            (own[number], own[(number + offset) % len(own)])
            for offset in range(1, len(own))
            for number in range(len(own))
        ]
        no = _spread(own, [files[other.id] for other in others], concept.id, per_concept)
        kinds: list[tuple[Compared, list[tuple[Path, Path]]]] = [
            ("itself", yes[:per_concept]),
            (compared, no),
        ]
        for kind, pairs in kinds:
            controls += [
                Control(aspect, concept.id, kind, *pair, concept.question_style)
                for pair in sorted(pairs, key=lambda pair: own.index(pair[0]))
            ]
    if not controls:
        where = f"split {split!r} of suite {suite.name}" if split else f"suite {suite.name}"
        raise SuiteError(f"{where} has no references that could be compared with each other")
    return controls


def check_judge(
    judge: Judge,
    suite: Suite,
    templates: Mapping[str, Template],
    controls: Sequence[Control],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Controls:
    """Return what a judge answers to known questions.

    Args:
        judge: Who is asked.
        suite: Whose references are shown.
        templates: Wordings by id; the short ones are asked, as for MARS2.
        controls: The questions.
        batch_size: Questions put to the judge together.
        progress: Called with the number of questions answered since the last call.

    Raises:
        JudgeError: The judge fails, or some questions could not be asked.
    """
    wordings = choose(templates)
    counts: dict[tuple[Aspect, str, Compared], list[bool | None]] = {}
    failed: list[Verdict] = []
    for start in range(0, len(controls), batch_size):
        batch = controls[start : start + batch_size]
        images = {path: read_image(path) for c in batch for path in (c.reference, c.test)}
        verdicts = judge.ask(
            [
                Question(c.aspect, images[c.reference], images[c.test], c.style, wordings[c.aspect])
                for c in batch
            ]
        )
        for control, verdict in zip(batch, verdicts, strict=True):
            key = (control.aspect, control.concept, control.compared)
            counts.setdefault(key, []).append(verdict.answer)
            failed += [verdict] if verdict.failed else []
        if progress is not None:
            progress(len(batch))
    if failed:
        raise JudgeError(
            f"{len(failed)} of {len(controls)} questions could not be asked ({failed[0].raw}): "
            "check again, which asks only what has no answer yet"
        )
    tallies: dict[Aspect, tuple[Tally, ...]] = {"subject": (), "style": ()}
    for (aspect, concept, compared), answers in counts.items():
        numbers = [answers.count(answer) for answer in (True, False, None)]
        tallies[aspect] += (Tally(concept, compared, *numbers),)
    return Controls(Mars2Metric(judge, templates).id, suite.name, suite.revision, tallies)


def _others(concept: Concept, chosen: Sequence[Concept]) -> tuple[Compared, list[Concept]]:
    """Return what a concept has to be told from."""
    others = [one for one in chosen if one.role == concept.role and one.id != concept.id]
    if concept.role == "style":
        name = set(concept.question_style.split())
        return "another style", [
            one
            for one in others
            if not (name <= (other := set(one.question_style.split())) or other <= name)
        ]
    alike = [one for one in others if one.phrase == concept.phrase]
    return ("same class", alike) if alike else ("another class", others)


def _spread(
    own: Sequence[Path], others: Sequence[Sequence[Path]], name: str, most: int
) -> list[tuple[Path, Path]]:
    """Return pairs of an own image and another's, drawn so that no other has two more than another.

    The drawing depends on the concept's name only.
    """
    rng = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    waiting = []
    for number in rng.permutation(len(others)):
        pairs = [(reference, test) for reference in own for test in others[number]]
        waiting.append([pairs[k] for k in rng.permutation(len(pairs))])
    turns = max(map(len, waiting), default=0)
    drawn = [pairs[turn] for turn in range(turns) for pairs in waiting if turn < len(pairs)]
    return drawn[:most]
