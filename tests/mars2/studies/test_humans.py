"""The study of people and metrics as a whole, on made-up ratings."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mars2.cli import main
from mars2.job import RunError
from mars2.stats import Estimate
from mars2.studies.humans import Settings, study_humans
from mars2.studies.ratings import align, read_choices, read_ratings, read_scores
from mars2.studies.result import Result, write

QUICK = Settings(resamples=60, permutations=39)
METHODS = ("average", "lorarar", "ziplora")


def write_csv(path: Path, columns: str, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split())
        writer.writerows(rows)
    return path


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for item in range(20):
        for k, method in enumerate(METHODS):
            quality = k + rng.normal()
            for rater in ("ann", "bob", "cyd"):
                if (item, rater) != (3, "cyd"):
                    score = int(np.clip(round(3 + quality / 2 + rng.normal() / 2), 1, 5))
                    rows.append((f"i{item:02}", method, rater, "style", score))
    return write_csv(tmp_path / "ratings.csv", "item method rater aspect score", rows)


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    rows = []
    for item in range(20):
        for k, method in enumerate(METHODS):
            quality = k + rng.normal()
            rng.normal(size=3 if item != 3 else 2)  # in step with the ratings' noise
            rows.append((f"i{item:02}", method, "close", quality))
            rows.append((f"i{item:02}", method, "noise", other.random()))
    rows[-1] = (*rows[-1][:3], "")  # asked, no score
    return write_csv(tmp_path / "metrics.csv", "item method metric score", rows)


def sheet(result: Result, name: str) -> list[dict[str, object]]:
    found = next(one for one in result.sheets if one.name == name)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


@pytest.mark.parametrize("count", range(1, 8))
def test_few_ratings_are_studied_or_refused(metrics: Path, tmp_path: Path, count: int) -> None:
    """As `mars2 rate --export` gives them soon after people began."""
    rng = np.random.default_rng(count)
    cells = [(item, method) for item in range(3) for method in METHODS]
    rows = [
        (f"i{item:02}", method, f"rater {rng.integers(2)}", "style", int(rng.integers(1, 6)))
        for item, method in (cells[at] for at in rng.permutation(len(cells))[:count])
    ]
    path = write_csv(tmp_path / "few.csv", "item method rater aspect score", rows)
    if count == 1:
        with pytest.raises(RunError, match="1 image of 1 item, which is too few for any"):
            study_humans(path, metrics, settings=QUICK)
        return
    text = study_humans(path, metrics, settings=QUICK).text
    assert "undefined against" not in text
    assert "no image was rated by two people" in text


def test_a_metric_against_the_ratings_is_not_called_best(ratings: Path, tmp_path: Path) -> None:
    with ratings.open() as file:
        rows = list(csv.DictReader(file))
    mean: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        mean.setdefault((row["item"], row["method"]), []).append(int(row["score"]))
    upside_down = [(*key, "down", -np.mean(scores)) for key, scores in mean.items()]
    path = write_csv(tmp_path / "down.csv", "item method metric score", upside_down)
    text = study_humans(ratings, path, settings=QUICK).text
    assert "No metric goes with them over all images; the highest is down: Spearman -1.00" in text


def test_all_that_a_study_prints_is_there(ratings: Path, metrics: Path, tmp_path: Path):
    result = study_humans(ratings, metrics, settings=QUICK)
    counts = {row["what"]: row["number"] for row in sheet(result, "counts")}
    assert counts["ratings"] == 177
    assert counts["cells without a rating"] == 3
    assert counts["noise: asked, no score"] == 1
    rows = sheet(result, "correlations")
    assert {row["grouping"] for row in rows} == {"flat", "method", "item", "system"}
    for row in rows:
        assert isinstance(row["value"], Estimate)
        assert row["value"].n == row["n"]
        if "accuracy" in str(row["coefficient"]) and row["grouping"] != "system":
            assert row["always_tie"] is not None
    agreement = {row["statistic"]: row["value"] for row in sheet(result, "raters")}
    assert set(agreement) == {
        "Krippendorff's alpha, nominal", "Krippendorff's alpha, ordinal",
        "Krippendorff's alpha, interval", "Fleiss' kappa", "ICC(A,1)", "ICC(A,k)",
        *(f"{name} against the others, Spearman" for name in ("ann", "bob", "cyd")),
    }  # fmt: skip
    (compared,) = [row for row in sheet(result, "comparisons")
                   if (row["grouping"], row["coefficient"]) == ("flat", "spearman")]  # fmt: skip
    assert (compared["metric"], compared["other"]) == ("close", "noise")
    assert compared["p_images"] < 0.05
    assert all(row["p"] is None for row in sheet(result, "systems"))  # three methods
    assert "close goes with them best" in result.text
    files = {path.name for path in write(result, tmp_path / "study")}
    assert {"humans.png", "humans.svg", "README.md", "correlations.csv", "study.json"} <= files
    assert (tmp_path / "study" / "humans.png").read_bytes().startswith(b"\x89PNG")
    assert files == {path.name for path in (tmp_path / "study").iterdir()}  # nothing left over


def test_the_same_files_give_the_same_bytes(ratings: Path, metrics: Path, tmp_path: Path):
    for name in ("one", "other"):
        write(study_humans(ratings, metrics, settings=QUICK), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


def test_files_are_matched_by_name_not_by_order(ratings: Path, metrics: Path, tmp_path: Path):
    lines = metrics.read_text().splitlines()
    shuffled = tmp_path / "shuffled.csv"
    order = np.random.default_rng(1).permutation(len(lines) - 1) + 1
    shuffled.write_text("\n".join([lines[0], *(lines[k] for k in order)]))
    found = [
        align("style", read_ratings(ratings)["style"], read_scores(path), ())
        for path in (metrics, shuffled)
    ]
    for name in ("close", "noise"):
        np.testing.assert_array_equal(found[0].scores[name], found[1].scores[name])


def test_an_empty_cell_is_missing_and_not_the_middle(tmp_path: Path):
    path = write_csv(
        tmp_path / "r.csv", "item method rater aspect score",
        [("i", "m", "ann", "style", 5), ("i", "m", "bob", "style", ""),
         ("j", "m", "bob", "style", 1)],
    )  # fmt: skip
    rated = read_ratings(path)["style"]
    assert rated.empty == 1
    np.testing.assert_array_equal(rated.table, [[5, np.nan], [np.nan, 1]])


def test_yes_to_subject_and_style_is_yes_to_both(tmp_path: Path):
    rows = [("i", "m", "ann", "subject", 1), ("i", "m", "ann", "style", 0),
            ("j", "m", "ann", "subject", 1), ("j", "m", "ann", "style", 1),
            ("k", "m", "ann", "style", 1)]  # fmt: skip
    path = write_csv(tmp_path / "r.csv", "item method rater aspect score", rows)
    rated = read_ratings(path)
    assert rated["both"].images == (("i", "m", ""), ("j", "m", ""))
    np.testing.assert_array_equal(rated["both"].table, [[0], [1]])


HEAD = "item,method,rater,aspect,score\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item,method,score\ni,m,1\n", "it needs item, method, rater"),
        (HEAD, "has no lines"),
        (HEAD + "i,m,ann,style,good\n", "line 2: score is 'good'"),
        (HEAD + "i,m,ann,style,inf\n", "line 2: score is inf"),
        (HEAD + "i,m,ann,style,1\ni,m,ann,style,2\n", "line 3: rater ann rates i/m for style a"),
        (HEAD + ",m,ann,style,1\n", "line 2: item is empty"),
        (HEAD + '"i,m,ann', "cannot be read"),
    ],
)
def test_refuses_ratings_that_are_none(tmp_path: Path, text: str, said: str):
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(RunError, match=said):
        read_ratings(path)


def test_refuses_metrics_of_other_images_or_aspects(ratings: Path, tmp_path: Path):
    rated = read_ratings(ratings)["style"]
    other = write_csv(tmp_path / "m.csv", "item method metric score", [("z", "m", "clip", 1)])
    with pytest.raises(RunError, match=r"scored such as z/m"):
        align("style", rated, read_scores(other), ())
    aspect = write_csv(
        tmp_path / "a.csv", "item method metric aspect score",
        [("i01", "average", "c", "subject", 1)],
    )  # fmt: skip
    with pytest.raises(RunError, match="the metrics are about subject"):
        align("style", rated, read_scores(aspect), ())
    seeds = write_csv(
        tmp_path / "s.csv", "item method seed metric score",
        [("i01", "average", k, "c", 1) for k in range(2)],
    )  # fmt: skip
    with pytest.raises(RunError, match="give them the column seed"):
        align("style", rated, read_scores(seeds), ())


def test_choices_give_strengths_sides_and_accuracies(ratings: Path, metrics: Path, tmp_path: Path):
    rng = np.random.default_rng(2)
    scores = {
        (item, method): score
        for image in read_scores(metrics)
        if image.name == "close"
        for (item, method, _), score in image.scores.items()
    }
    rows = []
    for item in range(20):
        for a, b in (("average", "ziplora"), ("ziplora", "lorarar")):
            for rater in ("ann", "bob"):
                difference = scores[f"i{item:02}", a] - scores[f"i{item:02}", b]
                choice = "tie" if abs(difference) < 0.3 else "a" if difference > 0 else "b"
                left = a if rng.random() < 0.5 else b
                rows.append((f"i{item:02}", a, b, rater, "style", choice, left))
    path = write_csv(
        tmp_path / "pairs.csv", "item method_a method_b rater aspect choice shown_left", rows
    )
    result = study_humans(ratings, metrics, pairs=path, settings=QUICK)
    strengths = {row["method"]: row["strength"] for row in sheet(result, "strengths")}
    assert strengths["ziplora"].value > strengths["lorarar"].value > strengths["average"].value
    found = {row["metric"]: row for row in sheet(result, "choice_accuracy")}
    assert found["close"]["without_ties"].value == 1
    assert found["close"]["at_epsilon"].value == 1
    assert found["close"]["with_ties"].value == pytest.approx(1 - found["close"]["always_tie"])
    assert found["one person"]["without_ties"].value == 1
    left = next(row for row in sheet(result, "choices") if row["what"] == "left")
    assert left["value"].low < 0.5 < left["value"].high


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("i,x,y,ann,style,left,x", "choice is 'left'"),
        ("i,x,x,ann,style,a,x", "two methods are compared"),
        ("i,x,y,ann,style,a,z", "two methods are compared"),
    ],
)
def test_refuses_choices_that_are_none(tmp_path: Path, row: str, said: str):
    path = tmp_path / "p.csv"
    path.write_text(f"item,method_a,method_b,rater,aspect,choice,shown_left\n{row}\n")
    with pytest.raises(RunError, match=said):
        read_choices(path)


def test_less_is_better_turns_the_sign(ratings: Path, metrics: Path):
    rated, scored = read_ratings(ratings)["style"], read_scores(metrics)
    plain, turned = (align("style", rated, scored, lower) for lower in ((), ("close",)))
    np.testing.assert_array_equal(plain.scores["close"], -turned.scores["close"])
    with pytest.raises(RunError, match="has no metric closer; it has close, noise"):
        study_humans(ratings, metrics, settings=Settings(lower=("closer",)))


def run(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mars2", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code in (0, None)


def test_the_command_writes_beside_the_ratings(
    ratings: Path, metrics: Path, capsys: pytest.CaptureFixture[str]
):
    run("study", "humans", "--ratings", ratings, "--metrics", metrics, "--resamples", 50,
        "--permutations", 19)  # fmt: skip
    out = capsys.readouterr().out
    assert "one person" in out
    assert "What this cannot say" in out
    assert (ratings.parent / "study-humans" / "overview.csv").exists()


def test_without_a_name_the_studies_are_listed(capsys: pytest.CaptureFixture[str]):
    run("study")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("humans     Do people agree")
