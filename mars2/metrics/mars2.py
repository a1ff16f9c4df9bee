"""MARS2: the share of images whose subject and style a multimodal judge recognises.

One subject question per reference image of the subject, one style question per reference image of
the style. An image's subject is right if strictly more than half of its references say yes; its
style likewise; the image is right if both are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from leaderboards.votes import both, majority, yes_share
from mars2.judges import Judge, JudgeError, Question, Template, Verdict
from mars2.judges.prompts import Aspect, Form, choose, digest
from mars2.metrics import Evaluated, Progress, Score


def metric_id(judge: str, templates: Mapping[str, Template], form: Form = "short") -> str:
    """Return the id of the metric with a judge, given the judge's id."""
    return f"{judge} prompts {form}@{digest(*choose(templates, form).values())}"


class Mars2Metric:
    """Asks a judge about each image and each of its references.

    Args:
        judge: Who answers.
        templates: Wordings by id; there must be one of the form for the subject and one for style.
        form: How it is asked.
        batch_size: Images whose questions are put to the judge together.
    """

    names = ("mars2", "mars2_subject", "mars2_style")
    higher_is_better = True

    def __init__(
        self,
        judge: Judge,
        templates: Mapping[str, Template],
        *,
        form: Form = "short",
        batch_size: int = 32,
    ) -> None:
        self.judge = judge
        self._templates = choose(templates, form)
        self._batch_size = batch_size
        self.id = metric_id(judge.id, templates, form)

    def score(
        self, items: Sequence[Evaluated], *, progress: Progress | None = None
    ) -> list[list[Score]]:
        """Return for each image its joint, subject and style score: 1.0, 0.0 or None.

        `detail` has what the judge said, by reference image, and `yes_share`, the share of yes
        among all answers that are yes or no.

        Raises:
            JudgeError: An image has no references, or the judge fails.
        """
        results: list[list[Score]] = []
        for start in range(0, len(items), self._batch_size):
            batch = items[start : start + self._batch_size]
            asked = [self._questions(item) for item in batch]
            verdicts = iter(self.judge.ask([q for questions in asked for q in questions]))
            results += [
                _scores([(question.aspect, next(verdicts)) for question in questions])
                for questions in asked
            ]
            if progress is not None:
                progress(len(batch))
        return results

    def _questions(self, item: Evaluated) -> list[Question]:
        if not item.subject_references or not item.style_references:
            raise JudgeError(
                f"image {item.sample.path} has {len(item.subject_references)} references of its "
                f"subject and {len(item.style_references)} of its style; it needs one of each"
            )
        subject, style = self._templates["subject"], self._templates["style"]
        return [
            Question("subject", reference, item.image, "", subject)
            for reference in item.subject_references
        ] + [
            Question("style", reference, item.image, item.style_phrase, style)
            for reference in item.style_references
        ]


def _scores(verdicts: Sequence[tuple[Aspect, Verdict]]) -> list[Score]:
    values: dict[Aspect, float | None] = {}
    details: dict[Aspect, dict[str, Any]] = {}
    failed: dict[Aspect, str] = {}
    for aspect in ("subject", "style"):
        own = [verdict for asked, verdict in verdicts if asked == aspect]
        answers = [verdict.answer for verdict in own]
        values[aspect] = majority(answers)
        failed[aspect] = next((verdict.raw for verdict in own if verdict.failed), "")
        details[aspect] = {
            "references": len(own),
            "answers": answers,
            "p_yes": [verdict.p_yes for verdict in own],
            "margins": [verdict.margin for verdict in own],
            "close": [verdict.close for verdict in own],
            "raw": [verdict.raw for verdict in own],
            "yes_share": yes_share(answers),
        }
    joint: dict[str, Any] = dict(values.items())
    return [
        Score(
            "mars2",
            both(values["subject"], values["style"]),
            joint,
            failed["subject"] or failed["style"],
        ),
        Score("mars2_subject", values["subject"], details["subject"], failed["subject"]),
        Score("mars2_style", values["style"], details["style"], failed["style"]),
    ]
