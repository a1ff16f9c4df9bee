import dataclasses
import os
import signal
import sqlite3
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from mars2.judges import TEMPLATES, JudgeError, Question, Verdict, load_judge
from mars2.judges.cached import AnswerCache, CachedJudge, KeptAnswers
from mars2.judges.scripted import ScriptedJudge


class Counting:
    """Says yes to green test images with a probability of its own, no to others; counts."""

    published = False

    def __init__(self, id_: str = "counting@1 anyres float32") -> None:
        self.id = id_
        self.asked: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        self.asked += questions
        return [
            Verdict(q.test.getpixel((0, 0))[1] > 0, 0.1 + 0.2, -1 / 3, "said") for q in questions
        ]


def question(test: object = "green", reference: object = "red", **changes: object) -> Question:
    made = Question(
        "subject",
        Image.new("RGB", (4, 4), reference),
        Image.new("RGB", (4, 4), test),
        "",
        TEMPLATES["subject-short"],
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def cache(tmp_path: Path) -> AnswerCache:
    return AnswerCache(tmp_path / "judges" / "answers.sqlite3")


def test_only_what_is_not_known_is_asked_and_once(cache: AnswerCache) -> None:
    judge = Counting()
    asked = [question("green"), question("black"), question("green"), question("blue")]
    expected = Counting().ask(asked)
    assert CachedJudge(judge, cache).ask(asked) == expected
    assert len(judge.asked) == 3
    again = Counting()
    assert CachedJudge(again, cache).ask([*asked, question("lime")])[:4] == expected
    assert [q.test.getpixel((0, 0)) for q in again.asked] == [(0, 255, 0)]
    assert CachedJudge(again, cache).ask([]) == []


def test_it_goes_by_the_name_of_the_judge_behind_it(cache: AnswerCache) -> None:
    judge = Counting()
    judge.published = True
    wrapped = CachedJudge(judge, cache)
    assert (wrapped.id, wrapped.published) == (judge.id, True)


@pytest.mark.parametrize(
    "other",
    [
        question("black"),
        question(reference="blue"),
        question(test="green", reference="red", template=TEMPLATES["subject-explained"]),
        question(template=dataclasses.replace(TEMPLATES["subject-short"], version=99)),
        question(test="green", template=TEMPLATES["style-short"], aspect="style", style="oil"),
        question(test="red", reference="green"),  # the other way round
        question(reference=Image.new("RGB", (4, 4)).getpixel((0, 0))),
    ],
)
def test_another_question_is_another_answer(cache: AnswerCache, other: Question) -> None:
    judge = Counting()
    CachedJudge(judge, cache).ask([question()])
    CachedJudge(judge, cache).ask([other])
    assert len(judge.asked) == 2


def test_a_style_has_its_name_in_the_question(cache: AnswerCache) -> None:
    judge = Counting()
    asked = [
        question(template=TEMPLATES["style-short"], aspect="style", style=style)
        for style in ("oil", "ink")
    ]
    CachedJudge(judge, cache).ask(asked)
    assert len(judge.asked) == 2


@pytest.mark.parametrize(
    "id_", ["counting@2 anyres float32", "counting@1 pad float32", "counting@1 anyres float16"]
)
def test_another_revision_layout_or_type_is_another_judge(cache: AnswerCache, id_: str) -> None:
    CachedJudge(Counting(), cache).ask([question()])
    judge = Counting(id_)
    CachedJudge(judge, cache).ask([question()])
    assert len(judge.asked) == 1


def test_another_preprocessor_is_another_answer(
    cache: AnswerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Counting()
    CachedJudge(judge, cache).ask([question()])
    monkeypatch.setattr("mars2.judges.cached.preprocessor", lambda: "prepare 2")
    CachedJudge(judge, cache).ask([question()])
    assert len(judge.asked) == 2


def test_a_failure_is_asked_again_and_an_unreadable_answer_is_not(cache: AnswerCache) -> None:
    judge = ScriptedJudge(lambda _: Verdict(None, None, None, "no route", failed=True))
    assert CachedJudge(judge, cache).ask([question()])[0].raw == "no route"
    assert cache.kept() == []
    judge = ScriptedJudge(lambda _: "I cannot tell")
    assert CachedJudge(judge, cache).ask([question()])[0].answer is None
    judge = ScriptedJudge(lambda _: "Yes")
    assert CachedJudge(judge, cache).ask([question()])[0].raw == "I cannot tell"


def test_what_was_answered_before_a_failure_is_kept(
    cache: AnswerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mars2.judges.cached.AT_ONCE", 2)

    class Failing(Counting):
        def ask(self, questions: Sequence[Question]) -> list[Verdict]:
            if len(self.asked) == 4:
                raise JudgeError("the server died")
            return super().ask(questions)

    asked = [question((0, 0, level)) for level in range(6)]
    with pytest.raises(JudgeError, match="the server died"):
        CachedJudge(Failing(), cache).ask(asked)
    judge = Counting()
    assert len(CachedJudge(judge, cache).ask(asked)) == 6
    assert [q.test.getpixel((0, 0))[2] for q in judge.asked] == [4, 5]


def test_each_verdict_of_a_judge_that_gives_them_as_they_come_is_kept(cache: AnswerCache) -> None:
    class Streaming(Counting):
        def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
            for number in reversed(range(len(questions))):
                if number == 0:
                    raise KeyboardInterrupt
                yield number, self.ask([questions[number]])[0]

    asked = [question((0, 0, level)) for level in range(4)]
    with pytest.raises(KeyboardInterrupt):
        CachedJudge(Streaming(), cache).ask(asked)
    judge = Counting()
    assert len(CachedJudge(judge, cache).ask(asked)) == 4
    assert [q.test.getpixel((0, 0))[2] for q in judge.asked] == [0]


def test_a_slow_judges_verdicts_are_written_while_the_next_is_awaited(
    cache: AnswerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mars2.judges.cached.KEEP_AFTER", 0.05)
    there = []

    class Streaming(Counting):
        def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
            for number, one in enumerate(questions[:3]):  # together, as many requests end
                yield number, self.ask([one])[0]
            end = time.monotonic() + 30
            while (kept := sum(one.answers for one in cache.kept())) < 3:
                assert time.monotonic() < end
                time.sleep(0.01)
            there.append(kept)
            yield 3, self.ask([questions[3]])[0]

    CachedJudge(Streaming(), cache).ask([question((0, 0, level)) for level in range(4)])
    assert there == [3]
    assert sum(one.answers for one in cache.kept()) == 4


def test_verdicts_come_back_as_they_were(cache: AnswerCache) -> None:
    given = {
        "a": Verdict(True, 0.1 + 0.2, -1 / 3, "Yes, «both»\n"),
        "b": Verdict(False, None, None, ""),
        "c": Verdict(None, 0.5, 0.0, "perhaps"),
    }
    cache.keep("judge", given)
    assert cache.find(["b", "c", "a", "d"]) == given


def test_more_questions_than_a_statement_holds(cache: AnswerCache) -> None:
    given = {str(number): Verdict(number % 2 == 0, None, None, "") for number in range(2500)}
    cache.keep("judge", given)
    assert cache.find([*given, "other"]) == given


def test_answers_not_used_for_long_are_dropped(
    cache: AnswerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    cache.keep("old", {"a": Verdict(True, None, None, ""), "b": Verdict(True, None, None, "")})
    day = 24 * 60 * 60
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0 + 10 * day)
    cache.keep("new", {"c": Verdict(False, None, None, "")})
    assert cache.find(["a"])["a"].answer is True  # used again
    assert cache.kept() == [
        KeptAnswers("new", 1, 1_000_000 + 10 * day),
        KeptAnswers("old", 2, 1_000_000 + 10 * day),
    ]
    assert cache.prune(11) == 0
    assert cache.prune(9) == 1
    assert cache.find(["a", "b", "c"]).keys() == {"a", "c"}
    assert cache.prune(None) == 2
    assert cache.kept() == []


def test_there_is_no_file_before_it_is_needed(cache: AnswerCache) -> None:
    assert (cache.kept(), cache.prune(None), cache.size()) == ([], 0, 0)
    assert not cache.path.exists()


def test_the_default_is_in_the_folder_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARS2_CACHE", str(tmp_path / "mine"))
    assert AnswerCache().path.is_relative_to(tmp_path / "mine")


def test_a_file_that_is_no_cache_is_refused_before_the_judge_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARS2_CACHE", str(tmp_path))
    path = AnswerCache().path
    path.parent.mkdir()
    path.write_bytes(b"something else" * 100)
    with pytest.raises(JudgeError, match="--no-cache"):
        load_judge("llava_onevision:/none", device="cpu", cache=True)
    assert path.read_bytes() == b"something else" * 100


def test_answers_are_given_though_they_cannot_be_kept(
    cache: AnswerCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise JudgeError("the disk is full")

    monkeypatch.setattr(AnswerCache, "keep", full)
    assert CachedJudge(Counting(), cache).ask([question()])[0].answer is True
    assert "the disk is full" in caplog.text


def test_a_judge_loaded_by_name_keeps_its_answers(
    tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARS2_CACHE", str(tmp_path))
    spec = f"llava_onevision:{tiny_llava}"
    plain = load_judge(spec, device="cpu")
    kind = type(plain)
    monkeypatch.setattr(
        kind, "verdicts", lambda self, questions: enumerate(Counting().ask(questions))
    )
    asked = [question("green"), question("black")]
    expected = plain.ask(asked)
    assert load_judge(spec, device="cpu", cache=True).ask(asked) == expected
    monkeypatch.setattr(kind, "verdicts", None)
    judge = load_judge(spec, device="cpu", cache=True)
    assert judge.ask(asked) == expected
    assert (judge.id, judge.published) == (plain.id, False)


def test_a_judge_faster_than_its_cache_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('{"subject": "Yes"}')
    judge = load_judge(f"scripted:{tmp_path / 'table.json'}", cache=True)
    assert isinstance(judge, ScriptedJudge)


def in_child(work: Callable[[], None]) -> int:
    """Run something in another process, and return the process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads elsewhere: the child has none
        child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:  # noqa: BLE001 - nothing may reach the test runner's copy
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


class Numbers(Counting):
    """Says yes to even blue levels; takes a moment."""

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        time.sleep(0.001)
        levels = [q.test.getpixel((0, 0))[2] for q in questions]
        return [Verdict(level % 2 == 0, level / 256, None, str(level)) for level in levels]


def test_several_processes_read_and_write_at_the_same_time(cache: AnswerCache) -> None:
    start = cache.path.parents[1] / "start"

    def work(number: int) -> None:
        while not start.exists():
            time.sleep(0.001)
        judge = CachedJudge(Numbers(), AnswerCache(cache.path))
        for first in range(0, 200, 10):
            levels = [(first + 40 * number + k) % 200 for k in range(10)]
            verdicts = judge.ask([question((0, 0, level)) for level in levels])
            said = [(verdict.answer, verdict.p_yes) for verdict in verdicts]
            assert said == [(level % 2 == 0, level / 256) for level in levels]

    children = [in_child(lambda number=number: work(number)) for number in range(5)]
    start.touch()  # all of them make the file at the same time
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
    assert [one.answers for one in cache.kept()] == [200]
    with closing(sqlite3.connect(cache.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_killed_process_leaves_whole_batches(cache: AnswerCache, tmp_path: Path) -> None:
    written = tmp_path / "written"

    def work() -> None:
        for number in range(10**9):
            batch = {f"{number}-{k}": Verdict(True, None, None, "x" * 500) for k in range(20)}
            cache.keep("judge", batch)
            written.write_text(str(number))

    child = in_child(work)
    while not written.exists() or int(written.read_text() or 0) < 3:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    answers = cache.kept()[0].answers
    assert answers >= 4 * 20
    assert answers % 20 == 0
    assert len(cache.find([f"0-{k}" for k in range(20)])) == 20
