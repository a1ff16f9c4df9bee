import json

import numpy as np
import pytest
from PIL import Image

from baselines.registry import PluginError
from mars2.judges import (
    JUDGES,
    TEMPLATES,
    JudgeError,
    Question,
    Verdict,
    leading_score,
    leading_yes_no,
    load_judge,
)
from mars2.judges.images import image_digest, prepare
from mars2.judges.recent import Recent
from mars2.judges.scripted import ScriptedJudge
from mars2.judges.sources import find_model


def plain(colour, size=(8, 8)):
    return Image.new("RGB", size, colour)


def question(test, aspect="subject"):
    style = "" if aspect == "subject" else "oil"
    return Question(aspect, plain("red"), test, style, TEMPLATES[f"{aspect}-short"])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", True),
        (" yes, it does", True),
        ("**NO**.", False),
        ("No, the eyes differ", False),
        ("Eyes differ: no", None),
        ("Nothing", None),
        ("", None),
        ("I am not able to answer yes or no", None),
    ],
)
def test_leading_yes_no(text, answer):
    assert leading_yes_no(text) is answer


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("0", 0.0),
        ("100.", 100.0),
        ("Score: 55", 55.0),
        ("7.5/10", 7.5),
        ("about 5", None),
        ("-", None),
        ("101", None),
    ],
)
def test_leading_score(text, score):
    assert leading_score(text) == score


def test_unknown_judge_is_refused_with_the_nearest():
    with pytest.raises(PluginError, match="llava_onevision"):
        load_judge("lava_onevision:x")
    assert "llava_onevision" in JUDGES.names()


@pytest.mark.parametrize("spec", ["llava_onevision", "llava_onevision:", ""])
def test_judge_without_a_model_is_refused(spec):
    with pytest.raises(JudgeError, match="NAME:MODEL"):
        load_judge(spec)


def test_source_that_is_neither_folder_nor_hub_id():
    with pytest.raises(JudgeError, match="neither a folder nor a hub id"):
        find_model("no-such-folder")


def test_hub_id_without_network_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(JudgeError, match="cannot be had from the hub") as caught:
        load_judge("llava_onevision:nobody/no-such-critic", device="cpu")
    assert "\n" not in str(caught.value)
    assert "nobody/no-such-critic" in str(caught.value)


def test_large_images_are_shrunk_to_512():
    noise = np.random.default_rng(0).integers(0, 256, (300, 1024, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    shrunk = prepare(image)
    assert shrunk.size == (512, 150)
    expected = image.resize((512, 150), Image.Resampling.BICUBIC)
    assert shrunk.tobytes() == expected.tobytes()
    assert prepare(expected).tobytes() == expected.tobytes()


def test_images_are_turned_as_exif_says_and_made_rgb():
    image = Image.new("L", (4, 2), 0)
    image.putpixel((0, 0), 255)
    image.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = prepare(image)
    assert (turned.mode, turned.size) == ("RGB", (2, 4))
    assert turned.getpixel((1, 0)) == (255, 255, 255)


def test_digest_tells_size_and_content_apart():
    assert image_digest(plain("red")) == image_digest(plain("red"))
    others = [plain("blue"), plain("red", (4, 16)), Image.new("RGBA", (8, 8), "red")]
    assert len({image_digest(image) for image in [plain("red"), *others]}) == 4


def test_recent_drops_what_was_not_asked_for_longest():
    recent = Recent(capacity=5, size=len)
    recent.put("a", "aa")
    recent.put("b", "bb")
    assert recent.get("a") == "aa"
    recent.put("c", "cc")
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == ("aa", None, "cc")
    recent.put("d", "d" * 9)
    assert (recent.get("a"), recent.get("c"), recent.get("d")) == (None, None, "d" * 9)


def test_scripted_judge_reads_a_table(tmp_path):
    table = {"subject": "No", f"subject/{image_digest(plain('blue'))}": "Yes!", "style": "Hm."}
    (tmp_path / "answers.json").write_text(json.dumps(table))
    judge = load_judge(f"scripted:{tmp_path / 'answers.json'}")
    asked = [question(plain("blue")), question(plain("red")), question(plain("blue"), "style")]
    verdicts = judge.ask(asked)
    assert [verdict.answer for verdict in verdicts] == [True, False, None]
    assert [verdict.raw for verdict in verdicts] == ["Yes!", "No", "Hm."]
    assert judge.id == ScriptedJudge.from_table(table).id
    assert judge.id != ScriptedJudge.from_table({**table, "style": "Yes"}).id
    assert not judge.published


def test_scripted_judge_asks_a_function():
    judge = ScriptedJudge(lambda q: Verdict(q.test.size[0] > 4, 0.9, 2.0, "so"))
    verdicts = judge.ask([question(plain("red")), question(plain("red", (2, 2)))])
    assert [verdict.answer for verdict in verdicts] == [True, False]
    assert verdicts[0].p_yes == 0.9


def test_scripted_judge_refuses_what_is_no_table(tmp_path):
    path = tmp_path / "answers.json"
    for content in ("{}", '{"subject": 1}', "[]"):
        path.write_text(content)
        with pytest.raises(JudgeError, match=r"answers\.json"):
            load_judge(f"scripted:{path}")
    with pytest.raises(JudgeError, match="no answer for 'style/"):
        ScriptedJudge.from_table({"subject": "Yes"}).ask([question(plain("red"), "style")])
