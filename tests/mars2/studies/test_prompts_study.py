"""Robustness of judges that are known to be robust, careless, or blind."""

import itertools
import weakref

import numpy as np
import pytest

from mars2.judge_check import Control
from mars2.judges import Question, Verdict
from mars2.judges.images import image_digest
from mars2.judges.prompts import TEMPLATES, choose, load_templates
from mars2.judges.scripted import ScriptedJudge
from mars2.references import References
from mars2.store import RunStore
from mars2.studies.asking import PARAPHRASES, drawn, plan_study
from mars2.studies.prompts import study_prompts
from mars2.studies.result import Result
from mars2.studies.robustness import sign_test
from mars2.studies.variance import components, dependability


def test_there_are_eight_other_wordings_of_each_question():
    paraphrases = load_templates(PARAPHRASES)
    texts = [t.text for t in (*paraphrases.values(), *choose(TEMPLATES).values())]
    assert len(set(texts)) == 18
    for aspect in ("subject", "style"):
        assert sum(t.aspect == aspect for t in paraphrases.values()) == 8
    assert {t.form for t in paraphrases.values()} == {"short"}


def test_components_of_two_facets_by_their_mean_squares():
    # Brennan 2001, section 2.2: persons x items
    table = np.random.default_rng(0).normal(size=(7, 4)) + np.arange(7)[:, None]
    rows, columns = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    rest = ((table - rows - columns + table.mean()) ** 2).sum() / (6 * 3)
    by_row = 4 * ((rows - table.mean()) ** 2).sum() / 6
    by_column = 7 * ((columns - table.mean()) ** 2).sum() / 3
    found = components(table)
    assert found[frozenset({0})] == pytest.approx((by_row - rest) / 4)
    assert found[frozenset({1})] == pytest.approx(max(0, (by_column - rest) / 7))
    assert found[frozenset({0, 1})] == pytest.approx(rest)


def test_components_of_three_facets_are_found_again():
    rng = np.random.default_rng(1)
    shape, wanted = (60, 40, 30), {}
    table = np.zeros(shape)
    for size in (1, 2, 3):
        for effect in itertools.combinations(range(3), size):
            variance = 0.5 + 0.5 * len(wanted)
            wanted[frozenset(effect)] = variance
            own = [n if axis in effect else 1 for axis, n in enumerate(shape)]
            table = table + variance**0.5 * rng.normal(size=own)
    found = components(table)
    for effect, variance in wanted.items():
        # an effect of k levels is known to about sqrt(2 / k); 30 levels at worst
        assert found[effect] == pytest.approx(variance, rel=0.8 if len(effect) == 1 else 0.2)


def test_dependability_by_hand():
    found = {frozenset({0}): 4.0, frozenset({1}): 2.0, frozenset({2}): 1.0,
             frozenset({0, 1}): 3.0, frozenset({0, 2}): 0.0, frozenset({1, 2}): 0.0,
             frozenset({0, 1, 2}): 6.0}  # fmt: skip
    # two wordings, three references: relative 3/2 + 6/6, absolute + 2/2 + 1/3
    general, phi = dependability(found, (2, 3))
    assert general == pytest.approx(4 / (4 + 2.5))
    assert phi == pytest.approx(4 / (4 + 2.5 + 1 + 1 / 3))
    assert dependability({frozenset({0}): 0.0, frozenset({1}): 0.0, frozenset({0, 1}): 0.0},
                         (1,)) == (None, None)  # fmt: skip


def test_signs_give_the_exact_p():
    assert sign_test(np.array([1.0] * 6), permutations=4000) == pytest.approx(2 / 64, abs=0.012)
    assert sign_test(np.zeros(5)) == 1


def study(made: RunStore, references: References, judge: ScriptedJudge, known: int = 0) -> Result:
    files = references.files
    controls = [
        Control("subject", "striped_cat", kind, files["striped_cat"][0], files[test][1], "")
        for kind, test in (("itself", "striped_cat"), ("same class", "spotted_teapot"))
        for _ in range(known)
    ]
    plan = plan_study(made, references, controls, images=28)
    asked: list[int] = []
    result = study_prompts(
        made, plan, lambda: judge, references, resamples=50, progress=asked.append
    )
    assert sum(asked) == plan.questions
    return result


def row(result: Result, name: str, label: str) -> dict[str, object]:
    found = next(one for one in result.sheets if one.name == name)
    line = next(line for line in found.rows if line[0] == label)
    return dict(zip(found.columns, line, strict=True))


def test_a_judge_that_always_says_yes_is_robust_and_blind(made: RunStore, references: References):
    result = study(made, references, ScriptedJudge.from_table({"subject": "Yes", "style": "Yes"}))
    assert row(result, "families", "subject: wording")["all alike"].value == 1
    assert row(result, "families", "subject: wording")["alpha"].value is None  # nothing varies
    assert row(result, "variants", "subject: wrong reference")["flips"].value == 0
    assert row(result, "variants", "subject: score")["read"].value == 1  # ScriptedJudge reads words


def test_a_judge_that_hangs_on_a_wording_is_found_out(made: RunStore, references: References):
    subjects = {image_digest(image): name for name in ("striped_cat", "spotted_teapot")
                for image in references.images(name)}  # fmt: skip

    def answer(question: Question) -> Verdict:
        if question.aspect == "style":
            return Verdict(None, None, None, "I cannot say")
        yes = subjects.get(image_digest(question.reference)) == "striped_cat"
        if question.template.id == "subject-paraphrase-3":
            yes = not yes
        return Verdict(yes, float(yes), None, "Yes" if yes else "No")

    result = study(made, references, ScriptedJudge(answer), known=3)
    names = ("repeat", "wording 1", "wording 3", "wrong reference", "order swapped")
    flips = {n: row(result, "variants", f"subject: {n}")["flips"].value for n in names}
    assert flips["repeat"] == flips["wording 1"] == 0
    assert flips["wording 3"] == 1
    assert flips["wrong reference"] == 1
    assert 0 < flips["order swapped"] < 1  # a test image is no reference of the cat
    assert row(result, "families", "subject: wording")["all alike"].value == 0
    assert row(result, "families", "subject: repeat")["alpha"].value == 1
    assert row(result, "variants", "style: usual")["read"].value == 0
    assert row(result, "variants", "style: repeat")["flips"].value is None
    # it says yes whenever the cat is the reference: right on "itself", wrong on the others
    assert row(result, "truth", "subject: usual")["right"].value == 0.5
    assert "wording 3" in result.text
    assert {"components", "decisions"} <= {sheet.name for sheet in result.sheets}


def test_draws_follow_the_chances():
    def certain(p: float | None) -> Verdict:
        return Verdict(True, p, None, "")

    rng = np.random.default_rng(0)
    said = drawn([certain(p) for p in (1.0, 0.0, None)] + [certain(0.25)] * 4000, rng)
    assert [one.answer for one in said[:3]] == [True, False, None]
    share = np.mean([one.answer for one in said[3:]])
    assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)
    assert {one.p_yes for one in said} == {None}  # a gap is between answers


def test_an_unsure_judge_flips_when_it_draws_and_a_sure_one_does_not(
    made: RunStore, references: References
):
    chances = {"subject": 0.6, "style": 1.0}

    def answer(question: Question) -> Verdict:
        return Verdict(True, chances[question.aspect], None, "Yes")

    result = study(made, references, ScriptedJudge(answer))
    flips = [row(result, "variants", f"subject: draw {k}")["flips"].value for k in (1, 2, 3)]
    assert len(set(flips)) > 1  # each draw is its own
    assert np.mean(flips) == pytest.approx(0.4, abs=0.2)
    assert row(result, "variants", "style: draw 1")["flips"].value == 0
    assert row(result, "families", "style: temperature")["all alike"].value == 1


def test_a_judge_without_chances_draws_nothing(made: RunStore, references: References):
    result = study(made, references, ScriptedJudge.from_table({"subject": "Yes", "style": "No"}))
    kinds = {line[1] for sheet in result.sheets if sheet.name == "variants" for line in sheet.rows}
    assert "temperature" not in kinds
    assert "picture" in kinds


def test_other_judges_are_loaded_when_they_are_asked_one_at_a_time(
    made: RunStore, references: References
):
    loaded: list[str] = []
    before: list[weakref.ref[ScriptedJudge]] = []

    def load(name: str, answer: str) -> ScriptedJudge:
        assert not any(judge() for judge in before)  # on a GPU two may not fit
        loaded.append(name)
        judge = ScriptedJudge.from_table({"subject": answer, "style": answer})
        before.append(weakref.ref(judge))
        return judge

    plan = plan_study(made, references, images=14, others={"bfloat16": "dtype", "pad": "layout"})
    assert loaded == []
    result = study_prompts(
        made,
        plan,
        lambda: load("usual", "Yes"),
        references,
        others={"bfloat16": lambda: load("bfloat16", "Yes"), "pad": lambda: load("pad", "No")},
        resamples=10,
    )
    assert loaded == ["usual", "bfloat16", "pad"]
    assert row(result, "variants", "subject: dtype bfloat16")["flips"].value == 0
    assert row(result, "variants", "subject: layout pad")["flips"].value == 1
    assert row(result, "families", "style: layout")["other top"] == 0
    assert set(result.inputs["others"]) == {"bfloat16", "pad"}
