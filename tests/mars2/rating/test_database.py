"""The file of a study: nothing is lost, nothing is double."""

import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mars2.files import write_image
from mars2.job import RunError
from mars2.rating.database import LONGEST_NOTE, AnswerError, RatingDatabase
from mars2.rating.plan import plan_rating
from mars2.rating.questions import Design
from mars2.references import References, find_references
from mars2.store import RunStore

Begin = Callable[..., RatingDatabase]


def test_it_gives_back_the_plan_that_it_was_made_from(
    run: RunStore, references: References, begin: Begin
):
    wanted = {"raters": 2, "per_item": 2, "mode": "both", "check_every": 5}
    database = begin(**wanted)
    plan = plan_rating(run, references, database.design, {"striped_cat": "cat"})
    resolved = [[(t.mode, t.case, t.seed, t.methods) for t in own] for own in plan.tasks]
    kept = [
        [(t.mode, t.case, t.seed, t.methods) for t in database.tasks(rater)] for rater in (0, 1)
    ]
    assert kept == resolved
    for own in (database.tasks(0), database.tasks(1)):
        assert all(path.is_file() for task in own for path in (*task.images, *task.subject))


def test_an_answer_sent_twice_is_one(begin: Begin):
    database = begin()
    for _ in range(3):
        database.record(0, 2, "subject", "yes", 1.5)
    (answer,) = database.answers(0)
    assert (answer.position, answer.answer, answer.seconds, answer.changes) == (
        2, "yes", 1.5, 0
    )  # fmt: skip


def test_a_changed_answer_takes_the_place_of_the_old_one(begin: Begin):
    database = begin()
    database.record(0, 0, "style", "yes", 1.5)
    database.record(0, 0, "style", "no", 9.0)
    (answer,) = database.answers(0)
    assert (answer.answer, answer.seconds, answer.changes) == ("no", 1.5, 1)


def test_what_was_acknowledged_is_there_for_another_process(run: RunStore, begin: Begin):
    database = begin()
    database.record(0, 0, "style", "yes", 1.0)
    database.note(0, 0, "odd")
    other = RatingDatabase(database.path, run.folder)  # the first is still open, as if killed
    assert [one.answer for one in other.answers(0)] == ["yes"]
    assert other.notes(0) == {0: "odd"}
    assert other.join_token == database.join_token
    assert other.design == database.design
    other.close()


@pytest.mark.parametrize(
    ("position", "aspect", "answer"),
    [(999, "subject", "yes"), (-1, "subject", "yes"), (0, "both", "yes"), (0, "style", "left")],
)
def test_what_was_not_asked_is_refused(begin: Begin, position: int, aspect: str, answer: str):
    database = begin()
    with pytest.raises(AnswerError):
        database.record(0, position, aspect, answer, 1.0)
    assert database.answers(0) == []


def test_notes_are_taken_back_and_not_endless(begin: Begin):
    database = begin()
    database.note(0, 0, "odd")
    database.note(0, 0, "")
    assert database.notes(0) == {}
    with pytest.raises(AnswerError):
        database.note(0, 0, "x" * (LONGEST_NOTE + 1))


def test_each_who_joins_gets_a_place_once_and_no_other(begin: Begin):
    database = begin(raters=3, per_item=1)
    database.record(1, 0, "style", "yes", 1.0)  # by the link of that place
    first = database.join("  Ada \n Lovelace ", "visit 1")
    again = database.join("Ada", "visit 1")
    assert first == again
    assert first is not None
    assert (first.rater, first.name) == (0, "Ada Lovelace")
    second = database.join("", "visit 2")
    assert second is not None
    assert second.rater == 2
    assert database.join("Late", "visit 3") is None


def test_threads_that_join_at_once_share_no_place(begin: Begin):
    database = begin(raters=12, per_item=1)
    got: list[int] = []
    threads = [
        threading.Thread(target=lambda k=k: got.append(database.join("", f"visit {k}").rater))
        for k in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(12))


def test_a_run_may_be_moved_but_its_images_not_changed(
    run: RunStore, references: References, tmp_path: Path
):
    first = tmp_path / "first"
    shutil.copytree(run.folder, first)
    store = RunStore.open(first)
    plan = plan_rating(
        store, find_references(store), Design("yes_no", ("average",), raters=1, per_item=1)
    )
    RatingDatabase.create(first / "rating" / "study.sqlite", first, plan).close()
    second = tmp_path / "second"
    first.rename(second)
    database = RatingDatabase(second / "rating" / "study.sqlite", second)
    database.check_images()
    shown = database.tasks(0)[0].images[0]
    assert shown.is_relative_to(second)
    write_image(shown, plan_image())
    with pytest.raises(RunError, match="was changed since the rating study"):
        database.check_images()
    shown.unlink()
    with pytest.raises(RunError, match="is gone since"):
        database.check_images()
    database.close()


def plan_image():
    from PIL import Image

    return Image.new("RGB", (8, 8), "red")


def test_a_file_that_is_no_study_is_said_to_be_none(tmp_path: Path, begin: Begin):
    assert not RatingDatabase.exists(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be looked at" * 40)
    with pytest.raises(RunError, match="is no rating study"):
        RatingDatabase.exists(tmp_path / "text.sqlite")
    (tmp_path / "empty.sqlite").touch()  # a beginning that was killed
    assert not RatingDatabase.exists(tmp_path / "empty.sqlite")


def test_a_file_of_another_version_is_refused(run: RunStore, begin: Begin):
    database = begin()
    with sqlite3.connect(database.path) as connection:
        connection.execute("UPDATE study SET value = '99' WHERE key = 'schema'")
    connection.close()
    with pytest.raises(RunError, match="schema 99, not 1"):
        RatingDatabase(database.path, run.folder)


def test_only_its_owner_reads_the_links(begin: Begin):
    assert begin().path.stat().st_mode & 0o077 == 0
