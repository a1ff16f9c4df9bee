import json

import pytest

from baselines.registry import PluginError
from leaderboards.votes import both, majority
from mars2.judges import TEMPLATES, JudgeError, Question, Verdict
from mars2.judges.prompts import digest
from mars2.judges.scripted import ScriptedJudge
from mars2.metrics import METRICS, MetricSettings, load_metric
from mars2.metrics.mars2 import Mars2Metric


@pytest.mark.parametrize(
    ("answers", "value"),
    [
        ("yyy", 1.0),
        ("yyn", 1.0),
        ("ynn", 0.0),
        ("yn", 0.0),  # half is not more than half
        ("yyynnn", 0.0),  # 3 of 6
        ("yyynn", 1.0),  # 3 of 5
        ("y", 1.0),
        ("n", 0.0),
        ("?", None),
        ("y?", None),  # 2 of 2 or 1 of 2
        ("yy?", 1.0),  # decided whatever it had been
        ("nn?", 0.0),
        ("yn?", None),
        ("ynn?", 0.0),  # at best 2 of 4
        ("yyn??", None),
        ("nnn??", 0.0),
    ],
)
def test_strict_majority(answers, value):
    assert majority([{"y": True, "n": False, "?": None}[answer] for answer in answers]) == value


@pytest.mark.parametrize(
    ("subject", "style", "value"),
    [
        (1.0, 1.0, 1.0),
        (1.0, 0.0, 0.0),
        (0.0, None, 0.0),
        (None, 0.0, 0.0),
        (1.0, None, None),
        (None, None, None),
    ],
)
def test_joint_is_wrong_as_soon_as_one_is(subject, style, value):
    assert both(subject, style) == value


def metric(answer, **options):
    return Mars2Metric(ScriptedJudge(answer), TEMPLATES, **options)


def test_asks_one_question_a_reference(noise, evaluated):
    asked: list[Question] = []
    item = evaluated(noise(0), [noise(1), noise(2), noise(3)], [noise(4)], style="oil painting")
    metric(lambda question: asked.append(question) or "Yes").score([item])
    assert [question.aspect for question in asked] == ["subject"] * 3 + ["style"]
    assert [question.reference for question in asked[:3]] == list(item.subject_references)
    assert asked[3].reference is item.style_references[0]
    assert all(question.test is item.image for question in asked)
    assert [question.style for question in asked] == ["", "", "", "oil painting"]
    assert "oil painting style" in asked[3].text


def test_scores_and_what_was_said(noise, evaluated):
    references = [noise(1), noise(2), noise(3)]
    style = noise(4)
    said = {
        id(references[0]): Verdict(True, 0.9, 2.0, "Yes"),
        id(references[1]): Verdict(True, 0.6, 0.02, "Yes", close=True),
        id(references[2]): Verdict(None, None, None, "I cannot say."),
        id(style): Verdict(False, 0.2, -1.5, "No"),
    }
    scores = metric(lambda question: said[id(question.reference)]).score(
        [evaluated(noise(0), references, [style])]
    )[0]
    assert [(score.metric, score.value) for score in scores] == [
        ("mars2", 0.0),
        ("mars2_subject", 1.0),
        ("mars2_style", 0.0),
    ]
    assert scores[1].detail == {
        "references": 3,
        "answers": [True, True, None],
        "p_yes": [0.9, 0.6, None],
        "margins": [2.0, 0.02, None],
        "close": [False, True, False],
        "raw": ["Yes", "Yes", "I cannot say."],
        "yes_share": 1.0,
    }
    assert scores[2].detail["yes_share"] == 0.0
    json.dumps([score.detail for score in scores])


def test_refusals_are_unscored(noise, evaluated):
    scores = metric(lambda question: "I'd rather not").score(
        [evaluated(noise(0), [noise(1)], [noise(2)])]
    )[0]
    assert [score.value for score in scores] == [None, None, None]
    assert scores[1].detail["raw"] == ["I'd rather not"]
    assert scores[1].detail["yes_share"] is None


def test_scores_say_whether_all_could_be_asked(noise, evaluated):
    lost = Verdict(None, None, None, "(no answer: gone)", failed=True)

    def answer(question: Question) -> str | Verdict:
        return lost if question.aspect == "subject" and question.reference is noises[0] else "Yes"

    noises = [noise(1), noise(2), noise(3)]
    whole = evaluated(noise(0), noises[1:], [noise(4)])
    short = evaluated(noise(0), noises, [noise(4)])
    first, second = metric(answer).score([whole, short])
    assert [score.failed for score in first] == ["", "", ""]
    assert [score.value for score in second] == [1.0, 1.0, 1.0]  # decided whatever it had been
    assert [score.failed for score in second] == ["(no answer: gone)", "(no answer: gone)", ""]
    assert second[1].detail["answers"] == [None, True, True]


def test_batches_keep_the_order(noise, evaluated):
    items = [evaluated(noise(seed), [noise(9)], [noise(8)]) for seed in range(5)]
    wanted = {id(item.image): number % 2 == 0 for number, item in enumerate(items)}
    one = metric(lambda q: "Yes" if wanted[id(q.test)] else "No", batch_size=2)
    steps: list[int] = []
    scores = one.score(items, progress=steps.append)
    assert [several[0].value for several in scores] == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert steps == [2, 2, 1]


def test_image_without_references_is_refused(noise, evaluated):
    with pytest.raises(JudgeError, match="0 references of its subject and 1 of its style"):
        metric(lambda question: "Yes").score([evaluated(noise(0), [], [noise(1)])])


def test_id_tells_judge_and_wording():
    one = metric(lambda question: "Yes")
    short = digest(TEMPLATES["subject-short"], TEMPLATES["style-short"])
    assert one.id == f"scripted@function prompts short@{short}"
    assert metric(lambda question: "Yes", form="score").id != one.id


def test_loads_with_a_judge_by_name_and_other_prompts(tmp_path, noise, evaluated):
    (tmp_path / "answers.json").write_text('{"subject": "Yes", "style": "No"}')
    (tmp_path / "prompts.toml").write_text(
        "".join(
            f'[[template]]\nid = "my-{aspect}"\nversion = 1\naspect = "{aspect}"\nform = "short"\n'
            f'text = "{text} <image> <image>"\n'
            for aspect, text in (("subject", "Same?"), ("style", "In {style}?"))
        )
    )
    settings = MetricSettings(
        judge=f"scripted:{tmp_path / 'answers.json'}", prompts=tmp_path / "prompts.toml"
    )
    own = load_metric("mars2", settings)
    default = load_metric("mars2", MetricSettings(judge=settings.judge))
    assert own.id != default.id
    scores = own.score([evaluated(noise(0), [noise(1)], [noise(2)])])[0]
    assert tuple(score.metric for score in scores) == own.names
    assert [score.value for score in scores] == [0.0, 1.0, 0.0]


def test_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(PluginError, match="mars2"):
        load_metric("mars", MetricSettings())
    assert sorted(METRICS.names()) == ["clip", "dino", "mars2"]


def test_loads_clip_and_dino_by_name(tiny_clip, tiny_dino):
    settings = MetricSettings(clip=f"local-dir:{tiny_clip}", dino=str(tiny_dino), device="cpu")
    assert load_metric("clip", settings).names == ("clip_i_style", "clip_i_subject", "clip_t")
    assert load_metric("dino", settings).names == ("dino_style", "dino_subject")
