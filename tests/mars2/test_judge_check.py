"""Known questions from a suite's references."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmark_data.load import load_suite
from benchmark_data.suite import Concept, Reference, Suite, SuiteError
from mars2.controls import Tally
from mars2.judge_check import check_judge, plan_controls
from mars2.judges import TEMPLATES, JudgeError, Question, Verdict
from mars2.judges.scripted import ScriptedJudge
from mars2.metrics.mars2 import Mars2Metric

MINIWORLD = load_suite("miniworld")


@pytest.fixture
def made(tmp_path: Path, random_image: Callable[..., Image.Image]) -> Callable[..., Suite]:
    """``made(cat=("cat", 3), ink=("", 2), ...)``: a suite; what has no class is a style."""

    def make(**concepts: tuple[str, int]) -> Suite:
        subjects, styles = {}, {}
        for row, (id_, (phrase, count)) in enumerate(concepts.items()):
            paths = [tmp_path / f"{id_}-{number}.png" for number in range(count)]
            for number, path in enumerate(paths):
                random_image(100 * row + number).save(path)
            references = tuple(Reference(path, path.name) for path in paths)
            question_style = "" if phrase else id_.rstrip("0123456789").replace("_", " ")
            role = "subject" if phrase else "style"
            (subjects if phrase else styles)[id_] = Concept(
                id_, role, "test", phrase, "", "", references, question_style
            )
        return replace(MINIWORLD, name="made", subjects=subjects, styles=styles)

    return make


def pairs(suite: Suite, concept: str, compared: str, **options) -> list[tuple[str, str]]:
    return [
        (control.reference.stem, control.test.stem)
        for control in plan_controls(suite, **options)
        if (control.concept, control.compared) == (concept, compared)
    ]


def test_a_subject_is_compared_with_its_other_images_both_ways(made) -> None:
    suite = made(cat=("cat", 3), dog=("dog", 1))
    assert sorted(pairs(suite, "cat", "itself")) == [
        (f"cat-{a}", f"cat-{b}") for a in range(3) for b in range(3) if a != b
    ]
    assert pairs(suite, "dog", "itself") == []


def test_few_questions_use_all_references(made) -> None:
    suite = made(cat=("cat", 4), dog=("dog", 4))
    few = pairs(suite, "cat", "itself", per_concept=4)
    assert len(few) == 4
    assert {reference for reference, _ in few} == {test for _, test in few}


def test_a_subject_is_told_from_its_own_class_if_there_is_another(made) -> None:
    suite = made(cat=("cat", 2), cat2=("cat", 2), dog=("dog", 2))
    tests = {test for _, test in pairs(suite, "cat", "same class")}
    assert tests == {"cat2-0", "cat2-1"}
    tests = {test for _, test in pairs(suite, "dog", "another class")}
    assert tests == {"cat-0", "cat-1", "cat2-0", "cat2-1"}


def test_no_question_is_asked_twice_and_no_image_is_compared_with_itself(made) -> None:
    suite = made(a=("x", 4), b=("x", 4), c=("x", 2), d=("y", 1), ink=("", 3), oil=("", 1))
    controls = plan_controls(suite, per_concept=100)
    assert max(Counter((c.reference, c.test) for c in controls).values()) == 1
    assert all(control.reference != control.test for control in controls)
    assert len(pairs(suite, "a", "same class", per_concept=100)) == 4 * 6


def test_others_are_compared_equally_often(made) -> None:
    suite = made(a=("x", 4), b=("x", 4), c=("x", 4), d=("x", 4))
    others = Counter(test.split("-")[0] for _, test in pairs(suite, "a", "same class"))
    assert others == {"b": 4, "c": 4, "d": 4}


def test_styles_of_one_name_or_a_part_of_it_are_not_compared(made) -> None:
    suite = made(line_drawing=("", 1), line_drawing2=("", 1), cartoon_line_drawing=("", 1),
                 oil=("", 1))  # fmt: skip
    assert pairs(suite, "line_drawing", "another style") == [("line_drawing-0", "oil-0")]
    assert len(pairs(suite, "oil", "another style")) == 3


def test_a_suite_without_anything_to_compare_is_refused(made) -> None:
    with pytest.raises(SuiteError, match="no references that could be compared"):
        plan_controls(made(cat=("cat", 1), ink=("", 1)))
    with pytest.raises(SuiteError, match="split 'train'"):
        plan_controls(made(cat=("cat", 2)), split="train")


def test_the_miniature_world_has_questions_of_each_kind() -> None:
    controls = plan_controls(MINIWORLD)
    kinds = Counter((control.aspect, control.compared) for control in controls)
    assert kinds["subject", "itself"] == 19 * 12
    assert kinds["subject", "same class"] + kinds["subject", "another class"] == 19 * 12
    assert kinds["style", "itself"] == 17 * 6
    assert kinds["style", "another style"] == 17 * 12
    tests = {c.concept for c in plan_controls(MINIWORLD, split="test")}
    assert len(tests) == 10


def test_answers_are_counted_by_concept_and_truth(made) -> None:
    suite = made(cat=("cat", 2), dog=("dog", 1), ink=("", 2), oil=("", 1))
    asked: list[Question] = []

    def answer(question: Question) -> Verdict:
        """Says yes about subjects; about styles by the name; cannot tell oil."""
        asked.append(question)
        if question.style == "oil":
            return Verdict(None, None, None, "?")
        return Verdict(question.aspect == "subject", None, None, "")

    judge = ScriptedJudge(answer)
    steps: list[int] = []
    controls = check_judge(
        judge, suite, TEMPLATES, plan_controls(suite), batch_size=4, progress=steps.append
    )
    assert controls.tallies == {
        "subject": (
            Tally("cat", "itself", 2, 0),
            Tally("cat", "another class", 2, 0),
            Tally("dog", "another class", 2, 0),
        ),
        "style": (
            Tally("ink", "itself", 0, 2),
            Tally("ink", "another style", 0, 2),
            Tally("oil", "another style", 0, 0, 2),
        ),
    }
    assert sum(steps) == len(asked) == 12
    assert {q.template.id for q in asked} == {"subject-short", "style-short"}
    assert controls.judge == Mars2Metric(judge, TEMPLATES).id
    assert (controls.suite, controls.suite_revision) == ("made", MINIWORLD.revision)


def test_questions_that_could_not_be_asked_are_no_result(made) -> None:
    judge = ScriptedJudge(
        lambda q: Verdict(None, None, None, "no route", failed=True) if q.style else "Yes"
    )
    suite = made(cat=("cat", 2), ink=("", 2))
    with pytest.raises(JudgeError, match=r"2 of 4 questions could not be asked \(no route\)"):
        check_judge(judge, suite, TEMPLATES, plan_controls(suite))


def test_references_and_tests_are_shown_in_their_places(made) -> None:
    suite = made(cat=("cat", 2), dog=("dog", 2))
    shown: list[tuple[bytes, bytes]] = []

    class Looking:
        id, published = "looking@1", False

        def ask(self, questions: Sequence[Question]) -> list[Verdict]:
            shown.extend((q.reference.tobytes(), q.test.tobytes()) for q in questions)
            return [Verdict(True, None, None, "")] * len(questions)

    controls = plan_controls(suite)
    check_judge(Looking(), suite, TEMPLATES, controls)
    for control, images in zip(controls, shown, strict=True):
        with Image.open(control.reference) as reference, Image.open(control.test) as test:
            assert images == (reference.tobytes(), test.tobytes())
