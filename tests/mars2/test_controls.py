"""Errors of a judge from known questions, and shares corrected for them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mars2.controls import (
    Controls,
    Tally,
    controls_path,
    correct,
    find_controls,
    read_controls,
    write_controls,
)
from mars2.job import RunError


def tallies(sensitivity: float, specificity: float, *, concepts: int = 4, n: int = 100):
    """Controls of so many concepts, all with the same shares."""
    true, false = round(sensitivity * n), round((1 - specificity) * n)
    return tuple(
        tally
        for number in range(concepts)
        for tally in (
            Tally(f"c{number}", "itself", true, n - true),
            Tally(f"c{number}", "same class", false, n - false),
        )
    )


CONTROLS = Controls(
    judge="critic@1 anyres float32 prompts short@abc",
    suite="tiny",
    suite_revision="0123456789ab",
    tallies={
        "subject": (
            Tally("cat", "itself", 3, 1),
            Tally("cat", "same class", 1, 2, 1),
            Tally("dog", "itself", 4, 0),
            Tally("dog", "another class", 0, 4),
        ),
        "style": (Tally("ink", "another style", 1, 3),),
    },
)


def test_sensitivity_and_specificity_by_hand() -> None:
    sensitivity = CONTROLS.sensitivity("subject")
    assert (sensitivity.value, sensitivity.n, sensitivity.n_clusters) == (7 / 8, 8, 2)
    specificity = CONTROLS.specificity("subject")
    assert specificity.value == pytest.approx(6 / 7, abs=1e-12)
    assert (specificity.n, specificity.n_unscored) == (7, 1)
    assert CONTROLS.specificity("subject", "same class").value == pytest.approx(2 / 3, abs=1e-12)
    assert CONTROLS.specificity("subject", "another class").value == 1.0
    assert CONTROLS.sensitivity("style").value is None  # one image of each style
    assert CONTROLS.correctable("subject")
    assert not CONTROLS.correctable("style")


@pytest.mark.parametrize(
    ("share", "sensitivity", "specificity", "expected"),
    [
        (0.5, 1.0, 1.0, 0.5),
        (0.5, 0.9, 0.8, 0.3 / 0.7),  # (p + sp - 1) / (se + sp - 1)
        (0.2, 0.9, 0.8, 0.0),
        (0.1, 0.9, 0.8, 0.0),  # fewer than the false yes alone: clipped
        (0.95, 0.9, 0.8, 1.0),
    ],
)
def test_rogan_and_gladen_by_hand(share, sensitivity, specificity, expected) -> None:
    got = correct([[share], [share]], ["a", "b"], [tallies(sensitivity, specificity)])
    assert got.raw.value == pytest.approx(share, abs=1e-12)
    assert got.corrected.value == pytest.approx(expected, abs=1e-12)
    # All clusters are the same, so that no resample differs.
    assert got.corrected.low == pytest.approx(expected, abs=1e-12)
    assert got.corrected.high == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.5, 0.5), (0.3, 0.6)])
def test_a_judge_that_tells_nothing_corrects_nothing(sensitivity, specificity) -> None:
    got = correct([[0.5], [1.0]], ["a", "b"], [tallies(sensitivity, specificity)])
    assert got.raw.value == 0.75
    assert (got.corrected.value, got.corrected.low, got.corrected.high) == (None, None, None)
    assert got.corrected.n == 2


def test_without_known_yes_questions_nothing_is_corrected() -> None:
    own = [tally for tally in tallies(0.9, 0.9) if not tally.truth]
    assert correct([[1.0]], ["a"], [own]).corrected.value is None
    assert correct([[1.0]], ["a"], [[]]).corrected.value is None


def test_unscored_images_are_counted_and_in_no_mean() -> None:
    got = correct([[1.0], [None], [0.0]], ["a", "a", "b"], [tallies(1.0, 1.0)])
    assert (got.corrected.value, got.corrected.n, got.corrected.n_unscored) == (0.5, 2, 1)
    nothing = correct([[None]], ["a"], [tallies(1.0, 1.0)])
    assert (nothing.raw.value, nothing.corrected.value) == (None, None)


def test_one_pair_or_one_concept_gives_no_interval() -> None:
    one = correct([[1.0], [0.0]], ["a", "a"], [tallies(0.9, 0.9)]).corrected
    assert (one.value, one.low) == (0.5, None)
    one = correct([[1.0], [0.0]], ["a", "b"], [tallies(0.9, 0.9, concepts=1)]).corrected
    assert (one.value, one.low) == (0.5, None)


def test_both_questions_by_hand() -> None:
    subject, style = tallies(0.9, 0.8), tallies(1.0, 0.9)
    shares = [[1.0, 1.0], [0.5, 0.0], [0.25, 1.0]]
    expected = np.mean([(s - 0.2) / 0.7 * (t - 0.1) / 0.9 for s, t in shares])
    got = correct(shares, ["a", "b", "c"], [subject, style])
    assert got.raw.value == pytest.approx((1 + 0 + 0.25) / 3, abs=1e-12)
    assert got.corrected.value == pytest.approx(expected, abs=1e-12)
    unscored = correct([*shares, [1.0, None]], ["a", "b", "c", "c"], [subject, style])
    assert unscored.corrected.value == pytest.approx(expected, abs=1e-12)
    assert unscored.raw.n_unscored == 1


def test_the_truth_is_found_again_and_lies_in_the_interval() -> None:
    # A judge with independent errors answers 4 questions about each of 4,000 images, 40 a pair.
    rng = np.random.default_rng(0)
    subject = rng.random(4000) < 0.4
    style = rng.random(4000) < np.where(subject, 0.5, 0.2)
    shares = []
    for truth, (se, sp) in ((subject, (0.8, 0.7)), (style, (0.9, 0.8))):
        yes = rng.random((4000, 4)) < np.where(truth, se, 1 - sp)[:, None]
        shares.append(yes.mean(axis=1))
    pairs = [str(number % 100) for number in range(4000)]
    known = [tallies(0.8, 0.7, n=1000), tallies(0.9, 0.8, n=1000)]
    for aspects, truth in (((0,), subject), ((1,), style), ((0, 1), subject & style)):
        given = [[float(shares[a][k]) for a in aspects] for k in range(4000)]
        got = correct(given, pairs, [known[a] for a in aspects])
        assert abs(got.raw.value - truth.mean()) > 0.03
        # Four standard errors of the share of yes, divided by the smallest discernment (.5).
        assert got.corrected.value == pytest.approx(truth.mean(), abs=4 * 0.25 / math.sqrt(4000))
        assert got.corrected.low < truth.mean() < got.corrected.high


def test_the_interval_grows_with_the_uncertainty_of_the_controls() -> None:
    shares = [[0.25 + 0.5 * (number % 2)] for number in range(20)]
    pairs = [str(number) for number in range(20)]
    rng = np.random.default_rng(1)
    uneven = tuple(
        tally
        for number in range(6)
        for tally in (
            Tally(f"c{number}", "itself", 6 + int(rng.integers(4)), 1),
            Tally(f"c{number}", "same class", int(rng.integers(5)), 6),
        )
    )
    yes, no = ([t for t in uneven if t.truth is truth] for truth in (True, False))
    se = sum(t.yes for t in yes) / sum(t.yes + t.no for t in yes)
    sp = sum(t.no for t in no) / sum(t.yes + t.no for t in no)
    exact = correct(shares, pairs, [tallies(se, sp, n=100_000)]).corrected
    loose = correct(shares, pairs, [uneven]).corrected
    assert loose.value == pytest.approx(exact.value, abs=1e-4)  # shares rounded to 1e-5
    assert loose.low < exact.low < exact.value < exact.high < loose.high


def test_resamples_without_discernment_widen_the_interval_to_both_ends() -> None:
    # One of two concepts is told backwards: drawn twice, it leaves nothing to correct with.
    known = (
        *(Tally("good", "itself", 10, 0), Tally("good", "same class", 0, 10)),
        *(Tally("bad", "itself", 4, 6), Tally("bad", "same class", 6, 4)),
    )
    got = correct([[0.5]] * 2, ["a", "b"], [known]).corrected
    assert got.value == pytest.approx((0.5 - 0.3) / 0.4, abs=1e-12)
    assert (got.low, got.high) == (0.0, 1.0)


def test_the_same_input_gives_the_same_interval() -> None:
    shares, pairs = [[0.0], [1.0], [0.5]], ["a", "b", "c"]
    first, again = (correct(shares, pairs, [tallies(0.9, 0.8)]) for _ in range(2))
    assert first == again


def test_files_hold_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "controls.json"
    write_controls(CONTROLS, path)
    assert read_controls(path) == CONTROLS


def test_the_cache_is_looked_up_by_judge_and_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARS2_CACHE", str(tmp_path))
    assert find_controls([CONTROLS.judge], CONTROLS.suite_revision) == []
    write_controls(CONTROLS, controls_path(CONTROLS.judge, CONTROLS.suite_revision))
    assert find_controls(["other", CONTROLS.judge], CONTROLS.suite_revision) == [CONTROLS]
    assert find_controls([CONTROLS.judge], "ba9876543210") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"yes": "9"}, "counted as"),
        ({"no": -3}, "counted as"),
        ({"compared": "foo"}, "compared with 'foo'"),
    ],
)
def test_counts_that_are_none_are_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    data = CONTROLS.to_json()
    data["tallies"]["style"] = [{**data["tallies"]["style"][0], **change}]
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(RunError, match=said):
        read_controls(tmp_path / "x.json")


@pytest.mark.parametrize(
    "text", ["", "{}", '{"schema": 1}', '{"schema": 2}', '{"schema": 1, "tallies": {}, "x": 1}']
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RunError, match=r"x\.json"):
        read_controls(tmp_path / "x.json")
