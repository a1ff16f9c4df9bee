"""What people answered, as files that studies read."""

import csv
from collections.abc import Callable
from pathlib import Path

from mars2.rating.database import RatingDatabase
from mars2.rating.export import export
from mars2.studies.ratings import read_choices, read_ratings

Begin = Callable[..., RatingDatabase]


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_studies_read_what_was_said_of_single_images(begin: Begin, tmp_path: Path):
    database = begin(raters=2, per_item=2, sample=2)
    said = {}
    for rater in (0, 1):
        for position, task in enumerate(database.tasks(rater)):
            for aspect in task.aspects:
                answer = ("yes", "no")[(position + rater + (aspect == "style")) % 2]
                database.record(rater, position, aspect, answer, 2.0)
                if task.methods:
                    image = (task.case, task.methods[0], str(task.seed))
                    said[aspect, image, f"r0{rater + 1}"] = float(answer == "yes")
    written = export(database, tmp_path)
    assert written["ratings.csv"] == len(said) == 2 * 2 * 3 * 2  # raters, cells, methods, aspects
    assert not (tmp_path / "pairs.csv").exists()
    rated = read_ratings(tmp_path / "ratings.csv")
    assert set(rated) == {"subject", "style", "both"}
    for (aspect, image, rater), score in said.items():
        table = rated[aspect]
        assert table.table[table.images.index(image), table.raters.index(rater)] == score


def test_studies_read_which_image_was_chosen(begin: Begin, tmp_path: Path):
    database = begin(mode="pairs", aspects=("style",), sample=2, check_every=0)
    answers = ("left", "right", "tie", "both_bad")
    for position in range(len(database.tasks(0))):
        database.record(0, position, "style", answers[position % 4], 2.0)
    export(database, tmp_path)
    choices = read_choices(tmp_path / "pairs.csv")
    assert len(choices) == len(database.tasks(0)) == 6
    for position, (task, choice) in enumerate(zip(database.tasks(0), choices, strict=True)):
        assert (choice.item, choice.seed, choice.rater) == (task.case, str(task.seed), "r01")
        assert choice.left == task.methods[0]
        assert {choice.a, choice.b} == set(task.methods)
        chosen = {"a": choice.a, "b": choice.b}.get(choice.choice, choice.choice)
        expected = dict(zip(("left", "right"), task.methods, strict=True))
        assert chosen == expected.get(answers[position % 4], answers[position % 4])


def test_raters_who_fail_checks_are_left_out_if_asked(begin: Begin, tmp_path: Path):
    database = begin(raters=3, per_item=3, check_every=3, sample=4)
    for rater, careful in ((0, True), (1, False)):  # and one who never came
        for position, task in enumerate(database.tasks(rater)):
            for aspect in task.aspects:
                truth = task.truth.get(aspect, "yes")
                answer = truth if careful else {"yes": "no", "no": "yes"}[truth]
                database.record(rater, position, aspect, answer, 2.0)
    export(database, tmp_path)
    assert {line["rater"] for line in lines(tmp_path / "ratings.csv")} == {"r01", "r02"}
    export(database, tmp_path, min_checks=0.7)
    assert {line["rater"] for line in lines(tmp_path / "ratings.csv")} == {"r01"}
    first, second, third = lines(tmp_path / "raters.csv")
    assert first["checks_right"] == first["checks"] == "4"
    assert (second["checks_right"], second["exported"]) == ("0", "0")
    assert (third["answered"], third["exported"], third["median_seconds"]) == ("0", "1", "")
    assert {line["right"] for line in lines(tmp_path / "checks.csv")} == {"0", "1"}
    assert all(line["item"] for line in lines(tmp_path / "ratings.csv"))  # no check among them


def test_names_and_notes_are_no_formulas(begin: Begin, tmp_path: Path):
    database = begin()
    database.join('=HYPERLINK("http://example.org")', "visit")
    database.note(0, 0, "+1, but <b>odd</b>\nand long")
    export(database, tmp_path)
    assert lines(tmp_path / "raters.csv")[0]["name"] == '\'=HYPERLINK("http://example.org")'
    assert lines(tmp_path / "notes.csv")[0]["note"] == "'+1, but <b>odd</b>\nand long"


def test_half_a_question_counts_as_an_answer_but_not_as_done(begin: Begin, tmp_path: Path):
    database = begin(check_every=0)
    database.record(0, 0, "subject", "yes", 3.0)
    database.record(0, 1, "subject", "yes", 3.0)
    database.record(0, 1, "style", "no", 5.0)
    database.record(0, 1, "style", "yes", 6.0)
    assert export(database, tmp_path)["ratings.csv"] == 3
    (rater,) = lines(tmp_path / "raters.csv")
    assert (rater["answered"], rater["median_seconds"], rater["changed"]) == ("1", "4.0", "1")
