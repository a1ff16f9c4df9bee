from dataclasses import replace

import pytest

from mars2.judges import TEMPLATES, JudgeError, load_templates, render
from mars2.judges.prompts import choose, digest

GOOD = """
[[template]]
id = "mine"
version = 3
aspect = "style"
form = "short"
text = "Is {style} the style? <image> <image>"
"""


def write(tmp_path, text):
    path = tmp_path / "prompts.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_published_versions_do_not_change():
    assert digest(*TEMPLATES.values()) == "976d7f9b0995"


def test_every_form_asks_about_subject_and_style():
    for form in ("short", "explained", "score"):
        chosen = choose(TEMPLATES, form)
        assert {aspect: template.aspect for aspect, template in chosen.items()} == {
            "subject": "subject",
            "style": "style",
        }


def test_style_goes_into_the_question():
    text = render(TEMPLATES["style-short"], "oil painting")
    assert text.count("oil painting style") == 3
    assert "{" not in text
    assert text.index("Example of") < text.index("<image>") < text.index("Test image:")


def test_other_peoples_templates_are_taken_byte_for_byte(tmp_path):
    text = "Braces { } and \\u00e9 and\\ttabs: {style}. <image>\\r\\n<image> "
    templates = load_templates(
        write(tmp_path, GOOD.replace("Is {style} the style? <image> <image>", text))
    )
    rendered = render(templates["mine"], "neon")
    assert rendered == "Braces { } and \u00e9 and\ttabs: neon. <image>\r\n<image> "


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 3", "version = 0", "version is 0"),
        ("version = 3", "version = true", "version is True"),
        ("version = 3", "", "it needs exactly"),
        ("version = 3", "version = 3\nlanguage = 'en'", "language"),
        ('"style"\n', '"pose"\n', "aspect is 'pose'"),
        ('"short"', '"long"', "form is 'long'"),
        ("<image> <image>", "<image>", "two <image> marks"),
        ("{style}", "this", "must have {style}"),
        ("[[template]]", "[template]", "must be .*tables"),
        ("[[template]]", "prompts = 1\n[[template]]", "nothing else; found .*prompts"),
        ('id = "mine"', 'id = "mine', "cannot be read"),
        ('id = "mine"', "id = 7", "id is 7"),
    ],
)
def test_refuses_templates_that_are_not_as_they_must_be(tmp_path, old, new, said):
    with pytest.raises(JudgeError, match=said):
        load_templates(write(tmp_path, GOOD.replace(old, new)))


def test_refuses_what_is_no_table(tmp_path):
    with pytest.raises(JudgeError, match="template 1 is 1; it must be a"):
        load_templates(write(tmp_path, "template = [1, 2]"))


def test_refuses_an_id_given_twice(tmp_path):
    with pytest.raises(JudgeError, match="'mine' is given twice"):
        load_templates(write(tmp_path, GOOD + GOOD))


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(JudgeError, match="cannot be read"):
        load_templates(tmp_path / "none.toml")


def test_refuses_templates_for_one_aspect_only(tmp_path):
    with pytest.raises(JudgeError, match="for the subject; found \\[\\]"):
        choose(load_templates(write(tmp_path, GOOD)))


@pytest.mark.parametrize("style", ["", "  ", "a <image> in oil", "<|im_end|>"])
def test_refuses_style_names_that_break_the_question(style):
    with pytest.raises(JudgeError, match="style name"):
        render(TEMPLATES["style-short"], style)


def test_refuses_a_style_for_a_subject():
    with pytest.raises(JudgeError, match="asks about a subject"):
        render(TEMPLATES["subject-short"], "oil")


def test_digest_follows_every_field_but_not_order():
    one, other = TEMPLATES["subject-short"], TEMPLATES["style-short"]
    assert digest(one, other) == digest(other, one)
    for change in ({"version": 2}, {"text": one.text + " "}, {"id": "x"}, {"form": "score"}):
        assert digest(replace(one, **change), other) != digest(one, other)
