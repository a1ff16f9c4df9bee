"""A judge that answers from a table or a function: for tests and tutorials, it measures nothing."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mars2.judges import JudgeError, Question, Verdict, leading_yes_no
from mars2.judges.images import image_digest
from mars2.judges.sources import read_config

Answer = Callable[[Question], str | Verdict]


class ScriptedJudge:
    """Gives the verdict, or the text to be read as one, that a function returns.

    Args:
        answer: The function.
        revision: What is told of it in the judge's id.
    """

    published = False

    def __init__(self, answer: Answer, *, revision: str = "function") -> None:
        self._answer = answer
        self.id = f"scripted@{revision}"

    @classmethod
    def from_table(cls, table: Mapping[str, str]) -> "ScriptedJudge":
        """Return a judge that looks up what it says.

        Args:
            table: Text by ``ASPECT/TEST``, where TEST is the `image_digest` of the test image; or,
                for all other images, by ``ASPECT``.

        Raises:
            JudgeError: When asked what the table does not have.
        """

        def answer(question: Question) -> str:
            exact = f"{question.aspect}/{image_digest(question.test)}"
            for key in (exact, question.aspect):
                if key in table:
                    return table[key]
            raise JudgeError(f"the scripted judge has no answer for {exact!r}")

        content = json.dumps(dict(table), sort_keys=True)
        return cls(answer, revision=hashlib.sha256(content.encode()).hexdigest()[:12])

    @classmethod
    def load(cls, path: Path) -> "ScriptedJudge":
        """Return a judge that looks up what it says in a JSON file, as in `from_table`.

        Raises:
            JudgeError: The file is no such table.
        """
        table = read_config(path.parent, path.name)
        wrong = {key: value for key, value in table.items() if not isinstance(value, str)}
        if wrong or not table:
            raise JudgeError(
                f"{path} must map ASPECT or ASPECT/TEST to texts; found {wrong or table}"
            )
        return cls.from_table(table)

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return the verdicts; of a text, whether it begins with yes or no."""
        said = [self._answer(question) for question in questions]
        return [
            one if isinstance(one, Verdict) else Verdict(leading_yes_no(one), None, None, one)
            for one in said
        ]
