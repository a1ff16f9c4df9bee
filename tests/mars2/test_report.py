"""What a scored folder comes to: the summary, scores.json, the tables, the grid and the page."""

import dataclasses
import html.parser
import io
import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.axes import Axes
from PIL import Image, ImageChops, ImageDraw, ImageFont
from rich.console import Console

from mars2.controls import Controls, Tally
from mars2.job import MethodSpec, RunError
from mars2.report import ReportPaths, Source, Summary, summarise, terminal_table, write_report
from mars2.report.grid import choose, draw_grid, fit
from mars2.report.html import findings, limits
from mars2.report.plots import trade_off_plot
from mars2.report.tables import (
    concept_table,
    controls_table,
    corrected_table,
    cost_table,
    mars2_table,
    similarity_table,
)
from mars2.report.verdicts import is_published, questions
from mars2.store import FoundImage, ImagesSpec, Record, RunStore

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_run.py"))))

Build = Callable[..., RunStore]
JOINT = Source("mars2", fake.JUDGE)
SUBJECT = Source("mars2_subject", fake.JUDGE)
STYLE = Source("mars2_style", fake.JUDGE)


@dataclasses.dataclass(frozen=True)
class Reported:
    """A run of seven methods on four pairs, and the report on it; for reading only."""

    store: RunStore
    summary: Summary
    paths: ReportPaths
    page: str


@pytest.fixture(scope="session")
def references(tmp_path_factory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("references")
    return fake.references(folder, [*fake.SUBJECTS, *fake.STYLES])


@pytest.fixture(scope="session")
def reported(tmp_path_factory, references) -> Reported:
    store = RunStore.create(tmp_path_factory.mktemp("reported") / "run", fake.make_spec())
    fake.fill(store)
    summary = summarise(store)
    paths = write_report(store, summary, references=references)
    return Reported(store, summary, paths, paths.html.read_text(encoding="utf-8"))


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """``build(answers=..., metrics=..., ..., **spec)``: a run folder with images and records."""

    def make(
        *, answers=None, metrics=("mars2", "clip", "dino"), size=64, without_images=(), **spec
    ) -> RunStore:
        store = RunStore.create(tmp_path / "run", fake.make_spec(size=size, **spec))
        fake.fill(store, answers=answers, metrics=metrics, size=size, without_images=without_images)
        return store

    return make


def table_text(summary: Summary, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO(), legacy_windows=False)
    terminal_table(summary, console)
    return console.file.getvalue()


def score(summary: Summary, method: str, source: Source):
    return next(m for m in summary.methods if m.label == method).scores[source]


# Two methods on two subjects in one style, two seeds: right in subject, style
BY_HAND = {
    ("a", "x_s", 0): ([True, True, False], [True]),  # right
    ("a", "x_s", 1): ([True, False, False], [True]),  # wrong subject
    ("a", "y_s", 0): ([True, True, True], [False]),  # wrong style
    ("a", "y_s", 1): ([True, None, False], [True]),  # subject unscored: joint unscored
    ("b", "x_s", 0): ([True, True, True], [True]),  # right
    ("b", "x_s", 1): ([True, True, True], [True]),  # right
    ("b", "y_s", 0): ([False, False, False], [None]),  # wrong subject: joint wrong
    ("b", "y_s", 1): ([True, True, False], [True]),  # right
}


@pytest.fixture
def by_hand(build: Build) -> Summary:
    store = build(
        answers=lambda *key: BY_HAND[key],
        metrics=("mars2",),
        methods=[MethodSpec("a"), MethodSpec("b")],
        subjects=("x", "y"),
        styles=("s",),
        seeds=(0, 1),
    )
    return summarise(store)


def test_average_case_by_hand(by_hand):
    joint = score(by_hand, "a", JOINT).average
    assert joint.value == pytest.approx(1 / 3, abs=1e-12)  # right, wrong, wrong, unscored
    assert (joint.n, joint.n_unscored, joint.n_clusters) == (3, 1, 2)
    assert score(by_hand, "b", JOINT).average.value == 0.75
    assert score(by_hand, "a", SUBJECT).average.value == pytest.approx(2 / 3, abs=1e-12)
    assert score(by_hand, "a", STYLE).average.value == 0.75


def test_best_of_n_by_hand(by_hand):
    assert score(by_hand, "a", JOINT).best_of_n.value == 0.5  # x_s has a right image, y_s none
    assert score(by_hand, "b", JOINT).best_of_n.value == 1.0


def test_per_subject_and_style_by_hand(by_hand):
    joint = score(by_hand, "a", JOINT)
    assert {name: estimate.value for name, estimate in joint.subjects.items()} == {
        "x": 0.5,
        "y": 0.0,
    }
    assert joint.subjects["y"].n_unscored == 1
    assert joint.subjects["x"].low is None  # one pair
    assert joint.styles["s"] == joint.average


def test_share_of_references_that_say_yes_by_hand(by_hand):
    yes = score(by_hand, "a", Source("mars2_subject_yes", fake.JUDGE)).average
    assert yes.value == pytest.approx((2 / 3 + 1 / 3 + 1 + 1 / 2) / 4, abs=1e-12)
    assert Source("mars2_style_yes", fake.JUDGE) not in by_hand.sources  # one reference a style
    assert by_hand.references == {"x": 3, "y": 3, "s": 1}


def test_methods_are_compared_with_the_best_image_by_image(by_hand):
    assert by_hand.reference == "b"
    assert score(by_hand, "b", JOINT).difference is None
    difference = score(by_hand, "a", JOINT).difference
    assert difference.value == pytest.approx(-1 / 3, abs=1e-12)  # 0, -1, 0 and one unscored
    assert (difference.n, difference.n_unscored) == (3, 1)
    assert by_hand.not_told_apart() == ["a"]
    assert findings(by_hand)[1] == "Not told apart from it on these pairs: a."


def test_the_first_method_is_the_reference_when_equal(build):
    same = ([True], [True])
    store = build(answers=lambda *_: same, methods=[MethodSpec("a"), MethodSpec("b")])
    assert summarise(store).reference == "a"


def test_a_control_is_never_the_reference_and_comes_last(build):
    def answers(method, case, seed):
        return ([True], [True]) if method == "style_only" else ([False], [False])

    summary = summarise(build(answers=answers, seeds=(0,), metrics=("mars2",)))
    assert [method.label for method in summary.methods] == [
        *("direct_sum", "average", "ziplora:steps=100", "lorarar"),
        *("base", "subject_only", "style_only"),
    ]
    assert summary.reference == "direct_sum"
    table = mars2_table(summary, fake.JUDGE)
    assert [row.group for row in table.rows] == ["method"] * 4 + ["control"] * 3
    assert not any(cell.best for row in table.rows[4:] for cell in row.cells)
    assert "The best control, with no merge at all, is style_only: 100%." in findings(summary)


def test_controls_that_are_level_are_all_named(build):
    store = build(
        answers=lambda method, *_: ([method == "a"], [True]),
        metrics=("mars2",),
        methods=[MethodSpec("base"), MethodSpec("style_only"), MethodSpec("a")],
        subjects=("x",),
    )
    told = "The best controls, with no merge at all, are base, style_only: 0% each."
    assert told in findings(summarise(store))


def test_the_order_of_records_changes_nothing(build):
    store = build(seeds=(0, 1))
    before = summarise(store)
    lines = (store.folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    (store.folder / "records.jsonl").write_bytes(b"".join(lines[::-1]))
    assert summarise(store) == before


def test_records_of_other_images_are_left_out(build):
    store = build(methods=[MethodSpec("average")])
    before = summarise(store)
    for changed in ({"method": "gone"}, {"case": "gone"}, {"seed": 99}):
        record = dataclasses.replace(
            Record("average", store.spec.cases[0].id, 0, "mars2", 1.0, "sha", fake.JUDGE), **changed
        )
        store.append([record])
    assert summarise(store) == before


def test_scores_of_two_judges_stay_apart_the_published_one_first(build):
    store = build(methods=[MethodSpec("average")], metrics=("mars2",))
    published = "lmms-lab/llava-critic-7b@0123 anyres float16 prompts short@4567"
    for sample in store.samples():
        store.append(
            fake.mars2_records(
                sample.method, sample.case, sample.seed, [True], [True], judge=published
            )
        )
    summary = summarise(store)
    assert summary.judges == (published, fake.JUDGE)
    assert score(summary, "average", Source("mars2", published)).average.value == 1.0
    assert score(summary, "average", JOINT).average.value < 1.0
    notes = [mars2_table(summary, judge).notes for judge in summary.judges]
    assert any("the published one" in note for note in notes[0])
    assert any("Not the published judge (lmms-lab/llava-critic-7b)" in note for note in notes[1])


@pytest.mark.parametrize(
    ("judge", "published"),
    [
        ("lmms-lab/llava-critic-7b@ab anyres float16 prompts short@cd", True),
        ("lmms-lab/llava-critic-7b@ab pad float16 prompts short@cd", False),
        ("lmms-lab/llava-critic-7b@ab anyres bfloat16 prompts short@cd", False),
        ("llava-critic-7b@ab anyres float16 prompts short@cd", False),  # a folder
        ("me/lmms-lab/llava-critic-7b@ab anyres float16", False),
    ],
)
def test_only_the_published_judge_in_its_setting_is_called_so(judge, published):
    assert is_published(judge) is published


def test_the_judges_questions_are_known_by_their_digest():
    from mars2.judges.prompts import TEMPLATES, choose, digest

    short = choose(TEMPLATES, "short")
    asked = questions(f"critic@1 anyres float32 prompts short@{digest(*short.values())}")
    assert asked == {aspect: template.text.strip() for aspect, template in short.items()}
    assert questions(fake.JUDGE) == {}
    assert questions("scripted@1") == {}


def test_costs_by_hand(build):
    store = build(methods=[MethodSpec("average")])
    first = store.costs()[0]
    store.append_cost(
        dataclasses.replace(
            first, merge_seconds=1.0, generation_seconds=8.0, peak_bytes=10**9, parameters=7
        )
    )
    cost = summarise(store).methods[0].cost
    assert cost.jobs == 4  # the job done again counts once
    assert cost.merge_seconds == pytest.approx((3 * 0.0021 + 1.0) / 4, abs=1e-12)
    assert cost.image_seconds == pytest.approx((3 * 3.6 + 8.0) / 16, abs=1e-12)
    assert (cost.peak_bytes, cost.parameters) == (10**9, 98_304)


def test_seconds_keep_their_zero_in_a_narrow_terminal(build):
    store = build(methods=[MethodSpec("average")])
    for cost in store.costs():
        store.append_cost(dataclasses.replace(cost, merge_seconds=0.0006))
    assert " 0.6 ms " in table_text(summarise(store), 80)


def test_scores_json_has_the_same_bytes_and_no_times(build, references):
    store = build(methods=fake.METHODS[2:5], seeds=(0, 1))
    paths = write_report(store, summarise(store), references=references)
    first = {path: path.read_bytes() for path in (paths.scores, paths.html, paths.grid)}
    write_report(store, summarise(store), references=references)
    assert {path: path.read_bytes() for path in first} == first
    store.append_cost(dataclasses.replace(store.costs()[0], merge_seconds=99.0, peak_bytes=1))
    write_report(store, summarise(store), references=references)
    assert paths.scores.read_bytes() == first[paths.scores]
    assert not list(store.folder.glob(".*"))  # no temporary files


def test_scores_json_holds_what_the_summary_says(reported):
    summary = reported.summary
    data = json.loads(reported.paths.scores.read_text())
    assert data["schema"] == 1
    assert (data["suite"], data["split"], data["reference_method"]) == (
        "miniworld",
        "test",
        summary.reference,
    )
    rows = {(row["method"], row["metric"]): row for row in data["scores"]}
    assert len(rows) == len(data["scores"]) == 7 * 9
    for method in ("average", "base"):
        for source in (JOINT, Source("clip_t", fake.CLIP)):
            expected = score(summary, method, source)
            row = rows[method, source.metric]
            assert row["judge"] == source.judge
            assert row["average"]["value"] == pytest.approx(expected.average.value, abs=1e-9)
            assert row["best_of_n"]["low"] == pytest.approx(expected.best_of_n.low, abs=1e-9)
            assert row["styles"].keys() == expected.styles.keys()
    assert rows[summary.reference, "mars2"]["difference"] is None


def test_terminal_tables(by_hand):
    text = table_text(by_hand)
    row = next(line for line in text.splitlines() if line.startswith(" a "))
    assert re.search(r"33% \[0, 50\] +67% .*75% .*50% \[0, 100\] +-33 \[-50, 0\]", row)
    assert "Unscored images, in no mean: a 1 (MARS2), a 1 (subject), b 1 (style)." in text
    assert "References shown to the judge: x 3, y 3, s 1" in text
    assert "Not the published judge" in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_terminal_tables_fit_and_keep_all_numbers(reported, width):
    summary = reported.summary
    text = table_text(summary, width)
    assert max(len(line) for line in text.splitlines()) <= width
    wide = re.findall(r"\d+%", table_text(summary, 300))
    assert len(wide) > 50
    assert sorted(re.findall(r"\d+%", text)) == sorted(wide)
    assert "…" not in text
    tables = text.partition("MARS2: share")[0]
    assert not re.search(r"\[[^\]]*$", tables, re.MULTILINE)  # no interval is cut in two


@pytest.mark.parametrize("right", [True, False])
def test_where_all_are_equal_none_is_the_best(build: Build, right: bool):
    store = build(
        answers=lambda *key: ([right] * 3, [True]),
        metrics=("mars2",),
        methods=[MethodSpec("a"), MethodSpec("b")],
    )
    summary = summarise(store)
    table = mars2_table(summary, fake.JUDGE)
    assert not any(cell.best for row in table.rows for cell in row.cells)
    assert findings(summary)[0].startswith("No method is the best, each comes to the same: ")


def test_table_marks_the_best_of_each_column(by_hand):
    table = mars2_table(by_hand, fake.JUDGE)
    best = {
        column: [row.label for row in table.rows if row.cells[index].best]
        for index, column in enumerate(table.columns)
    }
    assert best["MARS2"] == ["b"]
    assert best["style"] == ["b"]  # 3 of 3 that are scored, against 3 of 4
    assert best["subject"] == ["b"]  # 3 of 4 against 2 of 3


def test_only_clip_was_computed(build, references):
    store = build(metrics=("clip",), seeds=(0,))
    summary = summarise(store)
    assert summary.judges == ()
    assert [source.metric for source in summary.sources] == [
        "clip_i_style",
        "clip_i_subject",
        "clip_t",
    ]
    page = write_report(store, summary, references=references).html.read_text()
    assert "CLIP-I style" in page
    assert "✓" not in page
    assert "The judge" not in page
    assert cost_table(summary) is not None


def test_without_scores_there_are_pictures_and_costs(build, references):
    store = build(metrics=(), seeds=(0, 1))
    summary = summarise(store)
    assert summary.reference is None
    assert similarity_table(summary) is None
    page = write_report(store, summary, references=references).html.read_text()
    assert "There are no scores yet" in page
    assert page.count("<img src=") > 50
    assert "no scores yet" in table_text(summary)


def test_a_single_pair_has_no_interval(build, references):
    store = build(subjects=fake.SUBJECTS[:1], styles=fake.STYLES[:1])
    summary = summarise(store)
    assert all(
        method.scores[source].average.low is None
        for method in summary.methods
        for source in summary.sources
    )
    text = table_text(summary)
    assert "One pair: no intervals." in text
    assert "[" not in text
    assert "One pair tells no two methods apart." in findings(summary)
    write_report(store, summary, references=references)


def test_a_method_without_images(build, references):
    store = build(without_images=("average",), seeds=(0, 1))
    summary = summarise(store)
    average = next(method for method in summary.methods if method.label == "average")
    assert (average.images, average.missing, average.scores, average.cost) == (0, 8, {}, None)
    row = next(row for row in mars2_table(summary, fake.JUDGE).rows if row.label == "average")
    assert {cell.text for cell in row.cells} == {"-"}
    assert "Images missing: average 8." in table_text(summary)
    page = write_report(store, summary, references=references).html.read_text()
    assert page.count(">no image<") == 8


def test_images_not_scored_yet_are_counted(build):
    store = build(methods=[MethodSpec("average"), MethodSpec("direct_sum")], metrics=("mars2",))
    lines = (store.folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    (store.folder / "records.jsonl").write_bytes(b"".join(lines[:-6]))  # two images of direct_sum
    summary = summarise(store)
    assert score(summary, "direct_sum", JOINT).pending == 2
    assert "Images not scored yet: direct_sum 2." in table_text(summary)


def test_close_answers_are_counted_once_each(build):
    store = build(methods=[MethodSpec("average")], metrics=("mars2",))
    assert "Close answers" not in table_text(summarise(store))
    records = [record for record in store.records() if record.metric == "mars2_subject"][:2]
    for close in ([True, True, False, False], [False, True, False, False]):  # the last one counts
        store.append(
            [
                dataclasses.replace(record, detail={**record.detail, "close": close})
                for record in records
            ]
        )
    summary = summarise(store)
    assert summary.close == {fake.JUDGE: 2}
    assert "Close answers: 2, decided by a margin" in table_text(summary)


def test_a_scored_folder_of_images(tmp_path, references):
    folder = tmp_path / "images"
    out = folder / "mars2-scores"
    found = []
    for number in range(3):
        path = folder / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        fake.picture("striped_cat", "neon", number, 64).save(path)
        found.append(
            FoundImage("mine", "cat_neon", number, f"../{number}.png", "subject:cat", "style:neon")
        )
    store = RunStore.create(out, ImagesSpec(str(folder), tuple(found)))
    for number in range(3):
        store.append(fake.mars2_records("mine", "cat_neon", number, [True], [number > 0]))
    summary = summarise(store)
    assert score(summary, "mine", JOINT).average.value == pytest.approx(2 / 3, abs=1e-12)
    assert summary.methods[0].control is False
    paths = write_report(store, summary, references={})
    assert "<title>MARS2: images</title>" in paths.html.read_text()
    assert "no reference" in paths.html.read_text()
    with Image.open(paths.grid) as grid:
        assert grid.mode == "RGB"


def test_methods_that_share_no_seed_are_said_to(tmp_path):
    found = []
    for method, seed in (("one", 0), ("two", 1)):
        path = tmp_path / f"{method}.png"
        fake.picture("striped_cat", "neon", seed, 64).save(path)
        concepts = ("subject:cat", "style:neon")
        found.append(FoundImage(method, "cat_neon", seed, f"../{method}.png", *concepts))
    store = RunStore.create(tmp_path / "out", ImagesSpec(str(tmp_path), tuple(found)))
    store.append(fake.mars2_records("one", "cat_neon", 0, [True], [True]))
    store.append(fake.mars2_records("two", "cat_neon", 1, [True], [False]))
    assert "vs. best: - where no pair and seed is in both (two)." in table_text(summarise(store))


def test_methods_that_are_first_together_are_all_named(build):
    right = {"a": 2, "b": 2, "c": 1}  # of two images
    summary = summarise(
        build(
            answers=lambda method, case, seed: ([seed < right[method]], [True]),
            metrics=("mars2",),
            methods=[MethodSpec(label) for label in right],
            subjects=("x", "y"),
            styles=("s",),
            seeds=(0, 1),
        )
    )
    assert findings(summary)[0].startswith("Best: a and b, 100% [100, 100] of its images")


def test_grid_shows_the_first_seeds_of_spread_pairs(build):
    store = build(subjects=fake.SUBJECTS, styles=fake.STYLES, seeds=(5, 3), metrics=())
    grid = choose(store, summarise(store))
    assert len(grid.columns) == 8
    assert [column.seed for column in grid.columns] == [3] * 8
    for names in ("subject", "style"):
        used = [getattr(column, names) for column in grid.columns]
        assert {used.count(name) for name in used} == {2}


def test_grid_fills_up_with_seeds_when_there_are_few_pairs(build):
    store = build(subjects=fake.SUBJECTS[:1], styles=fake.STYLES[:2], metrics=())
    grid = choose(store, summarise(store))
    assert [(c.case, c.seed, c.number) for c in grid.columns] == [
        (case, seed, seed) for case in ("striped_cat_neon", "striped_cat_line_drawing")
        for seed in range(4)
    ]  # fmt: skip
    assert [count for _, count in grid.spans] == [4, 4]


def test_grid_holds_each_image_and_reference_magnified_exactly(build, references):
    store = build(metrics=(), without_images=("average",), seeds=(0, 1))
    summary = summarise(store)
    drawn = draw_grid(choose(store, summary), references)
    assert drawn.size[0] > 8 * 128
    assert drawn.size[1] > 9 * 128
    shown = [sample.path for sample in store.samples() if sample.seed == 0][-1]
    for path in (shown, references["striped_cat"][0], references["neon"][0]):
        with Image.open(path) as image:
            big = image.resize((128, 128), Image.Resampling.NEAREST)
        assert contains(drawn, big), path


def test_grid_marks_each_image_with_the_judge_s_two_verdicts(build, references):
    told = {0: ([True], [True]), 1: ([True], [False]), 2: ([None], [True])}
    store = build(
        answers=lambda method, case, seed: told[seed],
        metrics=("mars2",),
        methods=[MethodSpec("average")],
        subjects=("x",),
        styles=("s",),
        seeds=tuple(told),
    )
    concepts = {"x": references["striped_cat"], "s": references["neon"]}
    marked = choose(store, summarise(store))
    assert [[mark.right for mark in marked.marks["average", cell]] for cell in marked.columns] == [
        [True, True], [True, False], [None, True]
    ]  # fmt: skip
    plain = dataclasses.replace(marked, marks=dict.fromkeys(marked.marks, ()))
    drawn, bare = draw_grid(marked, concepts), draw_grid(plain, concepts)
    assert drawn.height > bare.height  # a legend
    difference = ImageChops.difference(drawn.crop((0, 0, *bare.size)), bare)
    colors = {color for _, color in drawn.getcolors(maxcolors=10**6)}
    assert difference.getbbox() is not None
    for right in ((26, 127, 55), (179, 38, 30), (107, 107, 107)):
        assert right in colors


def test_the_legend_of_a_narrow_grid_is_whole(build, references, monkeypatch):
    drawn_text, across = [], []
    plain, lines = ImageDraw.ImageDraw.text, ImageDraw.ImageDraw.multiline_text

    def text(self, xy, text, *rest, **named):
        drawn_text.append(text)
        across.append(self.textbbox(xy, text, font=rest[1], anchor=named.get("anchor"))[2])
        return plain(self, xy, text, *rest, **named)

    def multiline_text(self, xy, text, *rest, **named):
        drawn_text.append(text)
        return lines(self, xy, text, *rest, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    monkeypatch.setattr(ImageDraw.ImageDraw, "multiline_text", multiline_text)
    store = build(
        metrics=("mars2",),
        methods=[MethodSpec("average")],
        subjects=("x",),
        styles=("s",),
        seeds=(0,),
    )
    concepts = {"x": references["striped_cat"], "s": references["neon"]}
    narrow = draw_grid(choose(store, summarise(store)), concepts)
    legend = next(text for text in drawn_text if text.startswith("the judge's"))
    assert " ".join(legend.split()).startswith(
        "the judge's verdict: first on the subject, then on the style"
    )
    assert "\n" in legend
    font = ImageFont.load_default(size=128 / 10)
    assert max(font.getlength(line) for line in legend.split("\n")) < narrow.width - 16
    assert max(across) < narrow.width


def contains(sheet: Image.Image, part: Image.Image) -> bool:
    """Whether a picture is somewhere on a sheet, pixel for pixel."""
    row = part.crop((0, 0, part.width, 1)).tobytes()
    for y in range(sheet.height - part.height + 1):
        line = sheet.crop((0, y, sheet.width, y + 1)).tobytes()
        at = line.find(row)
        while at >= 0:
            x = at // 3
            if sheet.crop((x, y, x + part.width, y + part.height)).tobytes() == part.tobytes():
                return True
            at = line.find(row, at + 3)
    return False


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((64, 64), 128, (128, 128)), ((40, 20), 128, (120, 60)), ((1024, 512), 256, (256, 128))],
)
def test_images_fit_into_a_cell(size, side, expected):
    assert fit(Image.new("RGB", size), side).size == expected


def test_large_images_are_shrunk_and_embedded_as_jpeg(build, tmp_path):
    large = fake.references(tmp_path / "large", [*fake.SUBJECTS, *fake.STYLES], size=600)
    store = build(methods=[MethodSpec("average")], seeds=(0, 1), metrics=(), size=600)
    paths = write_report(store, summarise(store), references=large)
    with Image.open(paths.grid) as grid:
        assert 8 * 256 < grid.width < 11 * 256
    page = paths.html.read_text()
    assert "data:image/jpeg;base64," in page
    assert "data:image/png;base64," not in page


class Page(html.parser.HTMLParser):
    """Collects what a test wants to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"])
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag not in ("meta", "link", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at line {self.getpos()}"


def test_the_page_is_well_formed_self_contained_and_described(reported):
    page = Page(reported.page)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "default-src 'none'" in reported.page
    described = [image for image in page.images if image.get("src")]
    assert len(described) > 70
    assert all(image["alt"] for image in described)


def test_what_a_judge_says_is_shown_as_text(reported):
    assert "I cannot say &lt;b&gt;anything&lt;/b&gt; &amp; more" in reported.page
    assert "<b>anything" not in reported.page


def test_marks_say_what_the_judge_found(build, references):
    store = build(
        answers=lambda *_: ([True, True, False], [None]),
        methods=[MethodSpec("average")],
        subjects=fake.SUBJECTS[:1],
        styles=fake.STYLES[:1],
        seeds=(0,),
    )
    text = write_report(store, summarise(store), references=references).html.read_text()
    assert '<span class="yes" title="subject: 2 of 3 say yes">✓ subject</span>' in text
    assert '<span class="none" title="style: 0 of 1 say yes">? style</span>' in text


def test_limits_name_what_holds_for_these_numbers(reported):
    few = limits(reported.summary)
    assert any(line.startswith("4 pairs are few") for line in few)
    assert any("not the published one" in line for line in few)
    assert any("could not be given" in line for line in few)
    assert not any("harder bar" in line for line in few)


def test_limits_say_who_stands_first_by_chance(build):
    def limit(right, word):
        store = build(
            answers=lambda method, case, seed: ([True], [seed < right[method]]),
            methods=[MethodSpec(label) for label in right],
        )
        lines = [line for line in limits(summarise(store)) if word in line]
        shutil.rmtree(store.folder)
        return lines

    assert limit({"a": 2, "b": 2, "c": 1, "base": 2}, "equal") == [
        "a, b come out equal: the others are compared with a because it stands first."
    ]
    assert limit({"a": 2, "b": 2, "base": 2}, "flatters") == []
    assert len(limit({"a": 1, "b": 2, "base": 3}, "flatters")) == 1
    assert limit({"a": 2, "base": 2}, "equal") == limit({"a": 2, "base": 2}, "flatters") == []


def test_points_that_coincide_are_all_seen(build, monkeypatch):
    right = {"a": 2, "b": 2, "c": 1}
    store = build(
        answers=lambda method, case, seed: ([True], [seed < right[method]]),
        methods=[MethodSpec(label) for label in right],
    )
    drawn: list[tuple[float, ...]] = []

    plot = Axes.plot

    def spy(axes, x, y, *rest, **options):
        drawn.append((x, y, options["markersize"], options["zorder"]))
        return plot(axes, x, y, *rest, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    trade_off_plot(summarise(store), SUBJECT, STYLE)
    (a, b, c) = drawn  # the style on the x axis
    assert [point[:2] for point in drawn] == [(0.5, 1), (0.5, 1), (0.25, 1)]
    assert (a[2], c[2]) == (8, 8)
    assert b[2] > a[2]  # a ring around it
    assert b[3] < a[3]  # below it


def test_limits_name_unequal_numbers_of_references(build):
    def answers(method, case, seed):
        return [True] * (6 if "cat" in case else 5), [True]

    lines = limits(summarise(build(answers=answers, metrics=("mars2",))))
    assert any(line.startswith("Subjects have 5 to 6 references") for line in lines)
    assert not any("could not be given" in line for line in lines)


def test_concept_table_has_a_row_a_concept(reported):
    table = concept_table(reported.summary, JOINT)
    assert [(row.label, row.group) for row in table.rows] == [
        ("striped cat", "subject"),
        ("spotted teapot", "subject"),
        ("neon", "style"),
        ("line drawing", "style"),
    ]
    assert len(table.columns) == 7


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_the_page_opens_in_a_browser(reported, tmp_path):
    # The page itself reports what went wrong, and clicks its first image.
    probe = """<script>
    addEventListener("load", () => {
      const images = [...document.querySelectorAll("button.zoom img")];
      images[0].click();
      document.body.dataset.broken = images.filter((image) => !image.naturalWidth).length;
      document.body.dataset.shown = images.length;
      const zoomed = dialog.querySelector("img").src;
      document.body.dataset.zoomed = dialog.open && zoomed === images[0].src;
      document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
    });
    addEventListener("securitypolicyviolation", (event) => {
      document.body.dataset.refused = event.blockedURI;
    });
    </script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(reported.page.replace("</body>", probe + "</body>"))
    screenshot = tmp_path / "page.png"
    result = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1280,1600", f"--screenshot={screenshot}", "--dump-dom"),
            probed.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    body = re.search(r"<body([^>]*)>", result.stdout)[1]
    data = dict(re.findall(r'data-(\w+)="([^"]*)"', body))
    assert int(data.pop("shown")) > 70
    assert data == {"broken": "0", "zoomed": "true", "wide": "false"}
    with Image.open(screenshot) as image:
        assert image.size == (1280, 1600)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100


KNOWN = Controls(
    judge=fake.JUDGE,
    suite="miniworld",
    suite_revision="0a1b2c3d4e5f",
    tallies={
        "subject": (
            *(Tally("x", "itself", 9, 1), Tally("x", "same class", 2, 8)),
            *(Tally("y", "itself", 9, 1), Tally("y", "another class", 2, 8)),
        ),
        "style": (
            *(Tally("s", "itself", 10, 0), Tally("s", "another style", 1, 8, 1)),
            *(Tally("t", "itself", 10, 0), Tally("t", "another style", 0, 10)),
        ),
    },
)


@pytest.fixture
def corrected_by_hand(build: Build) -> tuple[RunStore, Summary]:
    store = build(
        answers=lambda *key: BY_HAND[key],
        metrics=("mars2",),
        methods=[MethodSpec("a"), MethodSpec("b")],
        subjects=("x", "y"),
        styles=("s",),
        seeds=(0, 1),
    )
    return store, summarise(store, [KNOWN])


def test_shares_of_yes_are_corrected_by_hand(corrected_by_hand):
    a = corrected_by_hand[1].methods[0].corrected[fake.JUDGE]
    raw = (2 / 3 + 1 / 3 + 1 + 1 / 2) / 4
    assert a["subject"].raw.value == pytest.approx(raw, abs=1e-12)
    assert a["subject"].corrected.value == pytest.approx((raw - 0.2) / 0.7, abs=1e-12)
    assert a["style"].raw.value == 0.75  # one reference a style: the share is the score itself
    false = 1 / 19
    assert a["style"].corrected.value == pytest.approx((0.75 - false) / (1 - false), abs=1e-12)
    both = sum(
        (s - 0.2) / 0.7 * (t - false) / (1 - false)
        for s, t in ((2 / 3, 1), (1 / 3, 1), (1, 0), (1 / 2, 1))
    )
    assert a["both"].corrected.value == pytest.approx(both / 4, abs=1e-12)
    b = corrected_by_hand[1].methods[1].corrected[fake.JUDGE]
    assert (b["style"].raw.n, b["style"].raw.n_unscored) == (3, 1)


def test_corrections_stand_beside_the_raw_shares(corrected_by_hand, references):
    store, summary = corrected_by_hand
    table = corrected_table(summary, fake.JUDGE)
    row = dict(zip(table.columns, table.rows[0].cells, strict=True))
    assert [row[f"subject {kind}"].text for kind in ("yes", "corrected")] == ["62%", "61%"]
    assert [row[f"style {kind}"].text for kind in ("yes", "corrected")] == ["75%", "74%"]
    text = table_text(summary)
    assert "subject question on the references of miniworld 0a1b2c3d4e5f: sensitivity 90%" in text
    paths = write_report(store, summary, references=references)
    page = paths.html.read_text()
    assert "Corrected for the judge&#39;s errors" in page
    assert "Corrected shares know of its errors on reference images" in page
    assert Page(page).open == []
    data = json.loads(paths.scores.read_text())
    assert data["controls"][0]["sensitivity"]["subject"]["value"] == 0.9
    rows = {(row["method"], row["share"]): row for row in data["corrected"]}
    assert rows["a", "subject"]["raw"]["value"] == 0.625
    assert rows["a", "subject"]["corrected"]["value"] == pytest.approx(0.425 / 0.7, abs=1e-9)


def test_without_controls_nothing_is_said_of_them(reported):
    assert corrected_table(reported.summary, fake.JUDGE) is None
    assert not {"controls", "corrected"} & json.loads(reported.paths.scores.read_text()).keys()
    assert "Corrected" not in reported.page


def test_controls_of_another_judge_are_refused(corrected_by_hand):
    other = dataclasses.replace(KNOWN, judge="another")
    with pytest.raises(RunError, match="of judge 'another', which scored none"):
        summarise(corrected_by_hand[0], [other])


def test_a_judge_that_tells_nothing_is_said_to(corrected_by_hand):
    blind = (Tally("x", "itself", 5, 5), Tally("x", "same class", 5, 5))
    known = dataclasses.replace(KNOWN, tallies={"subject": blind, "style": blind[1:]})
    summary = summarise(corrected_by_hand[0], [known])
    cells = corrected_table(summary, fake.JUDGE).rows[0].cells
    assert [cell.text for cell in cells[1::2]] == ["-", "-", "-"]
    text = " ".join(table_text(summary).split())
    assert "specificity 50% of 10; that tells nothing, so nothing is corrected." in text
    assert "sensitivity not known, specificity 50%" in text


def test_the_known_questions_have_a_row_each_kind():
    table = controls_table(KNOWN)
    rows = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    assert rows == {
        "subject, another image of it": ["yes", "90%", "20", "0", "2"],
        "subject, same class": ["no", "80%", "10", "0", "1"],
        "subject, another class": ["no", "80%", "10", "0", "1"],
        "style, another image of it": ["yes", "100%", "20", "0", "2"],
        "style, another style": ["no", "95%", "19", "1", "2"],
    }
    assert table.notes[0] == ("subject: sensitivity 90% [90, 90], specificity 80% [80, 80].")


def test_the_share_of_yes_is_over_all_images_though_some_have_one_reference(build):
    def answers(method, case, seed):
        return ([True] if "cat" in case else [True, False]), [True]

    summary = summarise(build(answers=answers, metrics=("mars2",), methods=[MethodSpec("a")]))
    yes = score(summary, "a", Source("mars2_subject_yes", fake.JUDGE)).average
    assert (yes.value, yes.n) == (0.75, 16)
