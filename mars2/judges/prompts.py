"""Question templates as data: each has an id and a version and is exact to the byte within it.

Ours lie beside this file in prompts.toml, which shows the form for anyone else's. They ask what the
published protocol asks, in its order, in our own words.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mars2.judges.errors import JudgeError

Aspect = Literal["subject", "style"]
Form = Literal["short", "explained", "score"]

IMAGE_MARK = "<image>"
STYLE_MARK = "{style}"

YES_WORDS = ("Yes", "yes", "YES")
NO_WORDS = ("No", "no", "NO")
"""First tokens that answer a question, with or without a space before."""
NEW_TOKENS: Mapping[Form, int] = {"short": 16, "explained": 256, "score": 16}
"""Most tokens generated, where text is."""
CHAT_TEMPLATE = Path(__file__).with_name("qwen_1_5.jinja")
"""For a server of LLaVA-Critic: gives the published prompt, the images where they stand in it."""


@dataclass(frozen=True)
class Template:
    """Wording of a question.

    Attributes:
        id: Its name.
        version: Counts from 1; another text under the same id has another version.
        aspect: What is compared.
        form: How it is answered: "short" with yes or no, "explained" with yes or no and why,
            "score" with a number from 0 to 100.
        text: The question; two `<image>` marks stand where reference and test image go, in this
            order, and `{style}` where the style's name goes.
    """

    id: str
    version: int
    aspect: Aspect
    form: Form
    text: str


def load_templates(path: Path) -> dict[str, Template]:
    """Return the templates of a TOML file, by id, in its order.

    Raises:
        JudgeError: The file cannot be read, or a template is not as it must be.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JudgeError(f"question templates {path} cannot be read: {error}") from error
    entries = data.pop("template", None)
    if data or not isinstance(entries, list) or not entries:
        raise JudgeError(
            f"question templates {path} must be [[template]] tables and nothing else; found "
            f"{sorted(data) or entries!r}"
        )
    templates: dict[str, Template] = {}
    for number, entry in enumerate(entries, start=1):
        template = _check(entry, f"{path}, template {number}")
        if template.id in templates:
            raise JudgeError(f"{path}, template {number}: id {template.id!r} is given twice")
        templates[template.id] = template
    return templates


def render(template: Template, style: str) -> str:
    """Return the question about a style (or, with "", about a subject), image marks included.

    Raises:
        JudgeError: The style's name is missing or not wanted, or holds a mark of its own.
    """
    if template.aspect == "subject":
        if style:
            raise JudgeError(f"template {template.id} asks about a subject, not style {style!r}")
        return template.text
    if not style.strip() or "<" in style:
        raise JudgeError(f"style name {style!r} does not fit into a question: give plain words")
    return template.text.replace(STYLE_MARK, style)


def choose(templates: Mapping[str, Template], form: Form = "short") -> dict[Aspect, Template]:
    """Return the subject's and the style's template of a form.

    Raises:
        JudgeError: There is not exactly one for each.
    """
    chosen: dict[Aspect, Template] = {}
    for aspect in get_args(Aspect):
        fitting = [t for t in templates.values() if (t.aspect, t.form) == (aspect, form)]
        if len(fitting) != 1:
            raise JudgeError(
                f"there must be one template of form {form!r} for the {aspect}; found "
                f"{[template.id for template in fitting]} among {list(templates)}"
            )
        chosen[aspect] = fitting[0]
    return chosen


def digest(*templates: Template) -> str:
    """Return 12 hex of the templates' sha256, whatever their order."""
    rows = sorted([t.id, t.version, t.aspect, t.form, t.text] for t in templates)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def _check(entry: Any, where: str) -> Template:
    names = {field.name for field in fields(Template)}
    if not isinstance(entry, dict):
        raise JudgeError(f"{where} is {entry!r}; it must be a [[template]] table")
    if set(entry) != names:
        raise JudgeError(f"{where} has keys {sorted(entry)}; it needs exactly {sorted(names)}")
    template = Template(**entry)
    if not isinstance(entry["id"], str) or not template.id:
        raise JudgeError(f"{where}: id is {template.id!r}; it must be a name")
    if type(template.version) is not int or template.version < 1:
        raise JudgeError(f"{where}: version is {template.version!r}; it must be 1, 2, ...")
    if template.aspect not in get_args(Aspect):
        raise JudgeError(f"{where}: aspect is {template.aspect!r}; give one of {get_args(Aspect)}")
    if template.form not in get_args(Form):
        raise JudgeError(f"{where}: form is {template.form!r}; give one of {get_args(Form)}")
    if not isinstance(entry["text"], str) or template.text.count(IMAGE_MARK) != 2:
        raise JudgeError(f"{where}: the text must have two {IMAGE_MARK} marks: reference and test")
    if (STYLE_MARK in template.text) != (template.aspect == "style"):
        raise JudgeError(
            f"{where}: the text must have {STYLE_MARK} if it asks about a style, and only then"
        )
    return template


TEMPLATES: Mapping[str, Template] = load_templates(Path(__file__).with_name("prompts.toml"))
"""Ours, by id."""
