"""From a run to entries, their check, the judge asked again, and the site."""

import json
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from baselines.adapter import LoraAdapter
from baselines.formats import save_adapter
from benchmark_data.load import load_suite
from leaderboards.entry import read_entries
from leaderboards.records import read_records
from leaderboards.sheet import draw_sheet, sheet_size
from mars2.files import write_json
from mars2.job import MethodSpec, RunError, RunSpec
from mars2.judges.scripted import ScriptedJudge
from mars2.leaderboard import (
    About,
    drafts,
    make_drafts,
    rejudge,
    shown_model,
    suite_facts,
    track_of,
)
from mars2.pipelines import model_revision
from mars2.store import RunStore

_WORLD = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("conftest.py"))))
MINE = '''
from collections.abc import Sequence
from baselines import LowRankDelta, layer_method

@layer_method("mine")
def mine(deltas: Sequence[LowRankDelta], *, weight: float = 0.3) -> LowRankDelta:
    """Add the updates, each scaled."""
    return weight * (deltas[0] + deltas[1])
'''
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_sdxl: Path,
    random_adapter: Callable[..., LoraAdapter],
    random_image: Callable[..., Image.Image],
) -> Path:
    """A folder with a suite (tiny.toml), a method of one's own and a scored run."""
    import sys

    from mars2.cli import main

    folder = tmp_path_factory.mktemp("world")
    (folder / "adapters").mkdir()
    (folder / "tiny.toml").write_text(_WORLD.SUITE.format(base=tiny_sdxl))
    for number, concept in enumerate(_WORLD.CONCEPTS):
        save_adapter(random_adapter(number), folder / "adapters" / f"{concept}.safetensors")
        for index in range(2):
            random_image(10 * number + index).save(folder / f"{concept}_{index}.png")
    (folder / "judge.json").write_text(json.dumps({"subject": "Yes", "style": "No."}))
    (folder / "mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        words = ["run", "--suite", "tiny.toml", "--method", "ties", "--method", "./mine.py:mine"]
        words += ["--method", "average:weight=0.4", "--metrics", "mars2", "--out", "run"]
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["mars2", *words, "--device", "cpu"])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test runs."""
    copy = tmp_path / "here"
    shutil.copytree(finished, copy)
    monkeypatch.chdir(copy)
    return copy


def add(cli: Cli, *words: str) -> tuple[int, str, str]:
    return cli("leaderboard", "add", "run", "--results", "results", *words)


def test_from_a_run_to_the_site(cli: Cli, here: Path) -> None:
    own = ("--licence", "MIT", "--url", "https://example.org/mine", "--notes", "A try.")
    code, said, wrong = add(cli, *own, "--dry-run")
    assert (code, wrong) == (0, "")
    assert said.count("would write results/tiny/") == 6
    assert not (here / "results").exists()
    code, said, _ = add(cli, *own)
    assert (code, said.count("\n")) == (0, 6)
    entries = {entry.method.name: entry for entry in read_entries(here / "results")}
    assert set(entries) == {"base", "subject_only", "style_only", "average", "mine", "ties"}
    mine, average = entries["mine"].method, entries["average"].method
    assert (mine.track, mine.licence, mine.url) == ("weights", "MIT", "https://example.org/mine")
    assert entries["mine"].notes == "A try."
    assert (average.licence, average.label) == ("Apache-2.0", "average:weight=0.4")
    assert average.resolved == average.options == {"weight": 0.4}
    assert entries["ties"].method.paper == "https://arxiv.org/abs/2306.01708"
    assert entries["base"].method.track == "control"
    assert entries["ties"].judge.own
    code, said, wrong = cli("leaderboard", "check", "results", "--suite", "tiny.toml")
    assert (code, said, wrong) == (0, "6 entries checked, nothing wrong\n", "")
    words = ("--results", "results", "--suite", "tiny.toml", "--repository", "https://example.org")
    pictures = here / "pictures"
    pictures.mkdir()
    (pictures / "0.png").touch()
    code, _, wrong = cli("leaderboard", "build", "-o", "pictures", *words)
    assert (code, wrong.count("\n")) == (2, 1)
    assert "pictures is not empty, and no site of this command" in wrong
    assert [path.name for path in pictures.iterdir()] == ["0.png"]
    for out in ("site", "again", "again"):
        code, said, _ = cli("leaderboard", "build", "-o", out, *words)
        assert code == 0
    assert (here / "site/tiny/index.html").read_bytes() == (
        here / "again/tiny/index.html"
    ).read_bytes()
    assert "https://example.org" in (here / "site/index.html").read_text()
    shutil.copytree("results", "old")
    for path in (here / "old" / "tiny").glob("mine@*"):
        path.unlink()
    code, said, _ = cli("leaderboard", "diff", "old", "results")
    assert "+ mine: rank 1" in said
    code, said, _ = cli("leaderboard", "diff", "old", "old")
    assert said == "the ranking is the same\n"


def test_scores_are_those_of_scores_json(finished: Path) -> None:
    store = RunStore.open(finished / "run")
    drafts = make_drafts(store, suite_facts(str(finished / "tiny.toml")))
    scores = json.loads((finished / "run" / "scores.json").read_text())["scores"]
    compared = 0
    for draft in drafts:
        for line in scores:
            if line["method"] == draft.entry.method.label:
                ours = draft.entry.scores[line["metric"]]
                assert vars(ours.average) == line["average"]
                assert vars(ours.best_of_n) == line["best_of_n"]
                compared += 1
    assert compared == len(scores) > 0
    again = make_drafts(store, suite_facts(str(finished / "tiny.toml")))
    assert [draft.files for draft in again] == [draft.files for draft in drafts]


def test_no_path_of_this_machine_is_published(finished: Path) -> None:
    store = RunStore.open(finished / "run")
    for draft in make_drafts(store, suite_facts(str(finished / "tiny.toml"))):
        assert str(finished).encode() not in draft.files[f"{draft.entry.name}.json"]
        assert b"/" not in draft.entry.generation.base.encode()
    spec = MethodSpec(
        "net", {"checkpoint": "/home/me/net.bin"}, {"checkpoint": "/home/me/net.bin"},
        files={"checkpoint": "ab" * 32},
    )  # fmt: skip
    made = drafts._method(spec, About(licence="MIT"))
    assert (made.label, made.options) == ("net:checkpoint=net.bin", {"checkpoint": "net.bin"})
    assert (made.track, made.files) == ("trained", {"checkpoint": "ab" * 32})


def _drawn_with_a_copy(here: Path, *, changed: str = "") -> Path:
    """Copy the suite's base model elsewhere, and let the run have been drawn with the copy."""
    copy = here / "another" / "clone" / "copied"
    shutil.copytree(load_suite("tiny.toml").models.base, copy)
    if changed:
        (copy / changed).write_bytes((copy / changed).read_bytes() + b"\n")
    spec = RunStore.open(here / "run").spec
    assert isinstance(spec, RunSpec)
    drawn = replace(spec, model=str(copy), model_revision=model_revision(copy))
    write_json(here / "run" / "run.json", drawn.to_json())
    return copy


def test_a_copy_of_the_suites_base_model_is_the_suites(cli: Cli, here: Path) -> None:
    copy = _drawn_with_a_copy(here)
    code, _, wrong = add(cli, "--licence", "MIT")
    assert (code, wrong) == (0, "")
    facts = suite_facts("tiny.toml")
    for entry in read_entries(here / "results"):
        assert entry.generation.base == facts.base != copy.name
        assert entry.generation.base_revision == facts.base_revision == model_revision(copy)


def test_a_copy_with_another_byte_is_not(cli: Cli, here: Path) -> None:
    copy = _drawn_with_a_copy(here, changed="unet/config.json")
    code, said, wrong = add(cli, "--licence", "MIT")
    assert (code, said) == (2, "")
    assert f"generation.base: expected {suite_facts('tiny.toml').base!r}" in wrong
    assert copy.name in wrong
    assert not (here / "results").exists()


def test_other_bytes_in_the_suites_own_place_are_not_the_suites(cli: Cli, here: Path) -> None:
    spec = RunStore.open(here / "run").spec
    assert isinstance(spec, RunSpec)
    write_json(here / "run" / "run.json", replace(spec, model_revision="0" * 12).to_json())
    code, said, wrong = add(cli, "--licence", "MIT")
    assert (code, said) == (2, "")
    assert "generation.base_revision: expected" in wrong


def test_the_suites_judge_in_a_folder_of_another_name_is_the_suites() -> None:
    facts = suite_facts("miniworld")
    named, _, revision = facts.judge.partition("@")
    asked = f"{facts.layout} float32 prompts {facts.prompts}"
    copied = drafts._judge(f"copy@{revision} {asked}", facts)
    assert copied.own
    assert copied == drafts._judge(f"{named}@{revision} {asked}", facts)
    for other in (f"{named}@{'0' * 12} {asked}", f"copy@{'0' * 12} {asked}"):
        made = drafts._judge(other, facts)
        assert (made.own, made.id) == (False, other)


def test_one_method_is_added_to_a_board_that_has_the_controls(cli: Cli, here: Path) -> None:
    code, _, wrong = add(cli, "--method", "mine", "--licence", "MIT")
    assert code == 2
    assert "no base, subject_only, style_only" in wrong
    assert not (here / "results").exists()
    for label in ("base", "subject_only", "style_only"):
        words = ["--method", label]
    words = [
        word for label in ("base", "subject_only", "style_only") for word in ("--method", label)
    ]
    assert add(cli, *words)[0] == 0
    assert add(cli, "--method", "mine", "--licence", "MIT")[0] == 0
    assert len(read_entries(here / "results")) == 4


def test_refuses_to_add_without_a_licence_and_says_all(cli: Cli, here: Path) -> None:
    code, said, wrong = add(cli)
    assert (code, said) == (2, "")
    assert "method.licence: expected one of Apache-2.0" in wrong
    assert wrong.splitlines()[-1].startswith("mars2: 1 problem")
    for words, field in (
        (("--url", "http://example.org"), "method.url"),
        (("--track", "magic"), "method.track"),
        (("--track", "fit"), "method.track"),
        (("--notes", "a\x1bb"), "notes"),
        (("--notes", "<script>"), "notes"),
    ):
        code, said, wrong = add(cli, "--licence", "MIT", *words)
        assert (code, said) == (2, "")
        assert f" {field}: expected" in wrong


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (
            lambda run: next(run.glob("images/ties/*/*.png")).unlink(),
            "images are missing: ties/",
        ),
        (lambda run: (run / "costs.jsonl").unlink(), "no costs of base/"),
        (lambda run: (run / "records.jsonl").unlink(), "no MARS2 scores"),
        (
            lambda run: (run / "records.jsonl").write_text(
                "".join(
                    line
                    for line in (run / "records.jsonl").read_text().splitlines(keepends=True)
                    if '"method": "mine"' not in line
                )
            ),
            "not scored whole: mars2_subject of mine/",
        ),
        (
            lambda run: shutil.copy(
                next(run.glob("images/mine/*/0.png")), next(run.glob("images/ties/*/0.png"))
            ),
            "is not the image that was scored",
        ),
    ],
)
def test_refuses_a_run_that_is_not_finished_or_scored(
    cli: Cli, here: Path, breaks: Callable[[Path], Any], told: str
) -> None:
    breaks(here / "run")
    code, said, wrong = add(cli, "--licence", "MIT")
    assert (code, said) == (2, "")
    assert told in wrong
    assert wrong.count("\n") == 1


def test_refuses_a_part_of_the_suite_in_one_line(finished: Path) -> None:
    store, facts = RunStore.open(finished / "run"), suite_facts(str(finished / "tiny.toml"))
    longer = replace(facts, seeds=(*facts.seeds, 99))
    count = len(facts.seeds)
    part = f"{count} of the {count + 1} seeds of tiny, split test"
    with pytest.raises(RunError, match=f"{part}.*mine will need --licence"):
        make_drafts(store, longer)
    for about, methods in ((About(licence="MIT"), ()), (About(), ("ties",))):
        with pytest.raises(RunError, match=part) as told:
            make_drafts(store, longer, about=about, methods=methods)
        assert "--licence" not in str(told.value)


def test_refuses_unknown_methods_judges_and_folders_of_images(cli: Cli, here: Path) -> None:
    assert "no method nobody" in add(cli, "--method", "nobody")[2]
    assert "no judge 'x'" in add(cli, "--judge", "x")[2]
    assert "go together" in cli("leaderboard", "check", "results", "--rejudge", "3")[2]
    assert "no folder" in cli("leaderboard", "check", "nowhere")[2]
    code, _, said = cli("leaderboard", "check", "run")
    assert (code, said) == (
        2,
        "mars2: run is a run: `mars2 leaderboard add run --dry-run` checks it, and without "
        "--dry-run makes entries of it\n",
    )


def test_a_changed_suite_refuses_the_entries(cli: Cli, here: Path) -> None:
    add(cli, "--licence", "MIT")
    text = (here / "tiny.toml").read_text()
    (here / "tiny.toml").write_text(text.replace("guidance_scale = 4.0", "guidance_scale = 5.0"))
    code, _, wrong = cli("leaderboard", "check", "results", "--suite", "tiny.toml")
    assert code == 2
    assert wrong.count("suite.revision: expected") == 6
    assert wrong.splitlines()[-1].startswith("mars2: ")
    code, said, _ = cli("leaderboard", "build", "-o", "site", "--results", "results")
    assert (code, said) == (2, "")
    assert not (here / "site").exists()


def test_the_judge_is_asked_again(cli: Cli, here: Path) -> None:
    add(cli, "--licence", "MIT")
    words = ("leaderboard", "check", "results", "--suite", "tiny.toml", "--run", "run")
    code, _, wrong = cli(*words, "--rejudge", "5")
    assert (code, wrong) == (0, "")
    entries = [
        (entry, read_records(here / "results" / "tiny" / entry.records.file))
        for entry in read_entries(here / "results")
    ]
    strict = ScriptedJudge.from_table({"subject": "No", "style": "No"})
    found = rejudge(entries, here / "run", count=4, judge=strict)
    assert len(found) == 4  # the subject of each image; its style was a no before
    assert all("mars2_subject" in problem.field for problem in found)
    changed = next((here / "run").glob("images/*/*/1.png"))
    shutil.copy(next((here / "run").glob("images/*/*/0.png")), changed)
    found = rejudge(entries, here / "run", count=1000, judge=strict)
    assert any(problem.expected.startswith("image ") for problem in found)
    with pytest.raises(RunError, match="no images of the entries"):
        rejudge([], here / "run", count=1)
    (entry, records), *others = entries
    half = replace(entry, judge=replace(entry.judge, dtype="float16"))
    with pytest.raises(RunError, match="judged in different ways"):
        rejudge([(half, records), *others], here / "run", count=1)


def test_a_method_is_in_the_track_of_its_kind() -> None:
    assert [
        track_of(MethodSpec(name, kind=kind, files=files))
        for name, kind, files in (
            ("base", "adapter", {}),
            ("average", "layer", {}),
            ("ziplora", "fit", {}),
            ("k_lora", "policy", {}),
            ("lorarar", "adapter", {"checkpoint": "ab"}),
        )
    ] == ["control", "weights", "fit", "policy", "trained"]


def test_what_the_suites_demand() -> None:
    facts = suite_facts("miniworld", references=True)
    assert facts.judge.startswith("critic@")
    assert facts.base == "package:miniworld/weights/sdxl"
    assert len(facts.cases) == 25
    assert len(facts.adapters) == 64
    assert {concept for concept, found in facts.references.items() if found} == {
        concept for case in facts.cases for concept in (case.subject, case.style)
    }
    paper = suite_facts("lorarar", references=True)
    assert paper.judge == "lmms-lab/llava-critic-7b"
    assert (paper.layout, paper.adapters) == ("anyres", "")
    assert not any(paper.references.values())  # others' pictures are not republished


def test_models_are_named_without_their_place(tmp_path: Path) -> None:
    assert shown_model("stabilityai/sdxl") == "stabilityai/sdxl"
    assert shown_model(str(tmp_path / "gone" / "model")) == "model"


def test_sheets_shrink_until_they_fit(random_image: Callable[..., Image.Image]) -> None:
    small, side = draw_sheet([random_image(n, (48, 48)) for n in range(7)], columns=3)
    assert (side, sheet_size(small)) == (48, (144, 144))
    rng = np.random.default_rng(0)
    noise = [
        Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)) for _ in range(20)
    ]
    large, side = draw_sheet(noise, columns=5)
    assert len(large) <= 300_000
    assert side < 192
    assert sheet_size(b"no picture") is None


def test_the_entries_of_the_project_are_sound(cli: Cli) -> None:
    results = Path(__file__).parents[2] / "leaderboards" / "results"
    code, _, wrong = cli("leaderboard", "check", results)
    assert (code, wrong) == (0, ""), wrong
