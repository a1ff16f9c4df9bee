"""What a user gets wrong, or does twice, and what the command line says then."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

import mars2
from baselines.registry import METHODS
from benchmark_data.fetch import FetchReport, SourceReport
from mars2.cli import main
from mars2.quiet import VERBOSE_VARIABLE

Cli = Callable[..., tuple[int, str, str]]

RUN = ("--device", "cpu", "--no-controls", "--limit", 1, "--seeds", "0")
BROKEN = '''
from baselines import layer_method

@layer_method("broken")
def broken(deltas):
    """Fails."""
    return helper(deltas)

def helper(deltas):
    return deltas[0] + len(deltas) / 0
'''


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A user's file with a method that fails."""
    path = tmp_path / "mine.py"
    path.write_text(BROKEN)
    yield path
    METHODS.unregister("broken")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (VERBOSE_VARIABLE, "MARS2_DEBUG"):
        monkeypatch.setenv(variable, "")  # and whatever a command sets is taken back


def test_the_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"mars2 {mars2.__version__}\n", "")


def test_a_users_method_that_fails_is_one_line(
    cli: Cli, world, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("run", "--suite", world.suite, "--method", f"{mine}:broken", *RUN, "--no-score")
    run = (*run, "--out", tmp_path / "run")
    code, _, error = cli(*run)
    line = error.splitlines()[-1]
    assert code == 2
    assert "Traceback" not in error
    assert line == (
        f"mars2: broken on cat_ink: method 'broken' failed at {mine}:10: "
        "ZeroDivisionError: division by zero"
    )
    code, _, error = cli("--debug", *run)
    assert code == 2
    assert "Traceback" in error
    assert "deltas[0] + len(deltas) / 0" in error
    assert error.splitlines()[-1] == line
    monkeypatch.setenv("MARS2_DEBUG", "1")
    assert "Traceback" in cli(*run)[2]


def test_a_users_file_that_fails_is_one_line(cli: Cli, world, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("x = 1\ny = x + undefined\n")
    run = ("run", "--suite", world.suite, "--method", f"{path}:any", "--out", tmp_path / "run")
    code, _, error = cli(*run)
    assert code == 2
    assert error == f"mars2: {path}:2 fails: NameError: name 'undefined' is not defined\n"


def test_a_run_with_other_settings_says_which_and_what_to_do(
    cli: Cli, world, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = ("run", "--suite", world.suite, "--method", "average", *RUN, "--no-score", "--out", out)
    assert cli(*run)[0] == 0
    code, _, error = cli(*run, "--steps", 1, "--seeds", "1-3")
    assert code == 2
    assert error == (
        f"mars2: {out} holds a run with other settings: seeds was 0, now 1-3; steps was 2, now 1. "
        f"Choose another --out, or give the old settings again ({out / 'run.json'} has them all)\n"
    )


def test_adapters_of_a_finished_run_are_saved(
    cli: Cli, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run = ("run", "--suite", world.suite, "--method", "average", "--method", "direct_sum")
    run = (
        *run,
        "--method",
        "switch",
        *RUN,
        "--no-score",
        "--out",
        out,
    )  # switch: a policy, no file
    assert cli(*run, "--save-adapters")[0] == 0
    first = {path: path.read_bytes() for path in sorted(out.glob("adapters/*/*"))}
    assert [path.parent.name for path in first] == ["average", "direct_sum"]
    lost = list(first)[1]
    lost.unlink()
    images = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no image is to be drawn")

    monkeypatch.setattr("mars2.pipelines.SdxlPipeline.of_spec", refuse)
    assert cli(*run)[0] == 0
    assert not lost.exists()
    assert cli(*run, "--save-adapters")[0] == 0
    assert {path: path.read_bytes() for path in sorted(out.glob("adapters/*/*"))} == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == images


def test_a_lora_of_other_settings_is_not_taken_for_the_wanted_one(
    cli: Cli, world, tmp_path: Path
) -> None:
    out = tmp_path / "loras"
    train = ("train", "lora", "--suite", world.suite, "--concept", "fox", "--device", "cpu")
    train = (*train, "--rank", 2, "--out", out)
    assert cli(*train, "--steps", 1)[0] == 0
    path = out / "fox.safetensors"
    assert cli(*train, "--steps", 1)[:2] == (0, f"{path} is there already\n")
    code, _, error = cli(*train, "--steps", 2, "--lr", 0.5)
    assert code == 2
    assert error.count("\n") == 1
    assert re.search(
        rf"{path} was trained with other settings: lr was \S+, now 0.5; steps was 1, now 2. Give "
        "another --out, delete the file",
        error,
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for case in ("cat_ink", "cat_oil", "dog_ink", "dog_oil"):
        path = tmp_path / "images" / case / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(path)
    return tmp_path / "images"


def test_results_are_not_put_among_other_files(
    cli: Cli, world, images: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("image,subject,style\ncat_ink/0.png,cat,ink\n")
    score = ("score", images, "--suite", world.suite, "--manifest", manifest, "--metrics", "mars2")
    code, _, error = cli(*score, "--out", world.folder)
    assert code == 2
    assert error == (
        f"mars2: {world.folder} exists and holds no results of scoring; choose another --out, or "
        "leave it out for a folder beside the images\n"
    )
    out = tmp_path / "out"
    out.mkdir()  # an empty one will do
    assert cli(*score, "--out", out)[0] == 0
    assert cli(*score, "--out", out)[0] == 0
    (out / "images.json").rename(out / "run.json")
    assert "is a run's folder" in cli(*score, "--out", out)[2]


MINIATURE = ("--suite", "miniworld", "--device", "cpu")


def test_no_model_is_loaded_where_all_is_scored(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = Path(mars2.__file__).parents[1] / "benchmark_data/miniworld/references"
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.open(references / "cat_1/0.png").save(folder / "0.png")
    (folder / "list.csv").write_text("image,subject,style\n0.png,cat_1,impasto\n")
    score = ("score", folder, *MINIATURE, "--manifest", folder / "list.csv")
    code, said, error = cli(*score)
    assert (code, error) == (0, "")
    records = (folder / "mars2-scores/records.jsonl").read_bytes()
    assert {json.loads(line)["metric"][:4] for line in records.splitlines()} == {
        "mars", "clip", "dino",
    }  # fmt: skip

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no model is to be loaded")

    monkeypatch.setattr("mars2.metrics.load_metric", refuse)
    assert cli(*score) == (0, said, "")
    assert (folder / "mars2-scores/records.jsonl").read_bytes() == records
    monkeypatch.setattr(sys, "argv", ["mars2", *map(str, score), "--layout", "pad"])
    with pytest.raises(AssertionError, match="no model"):
        main()


def test_a_missing_model_is_found_before_the_first_is_asked(cli: Cli, tmp_path: Path) -> None:
    references = Path(mars2.__file__).parents[1] / "benchmark_data/miniworld/references"
    (tmp_path / "cat_1_impasto").mkdir()
    Image.open(references / "cat_1/0.png").save(tmp_path / "cat_1_impasto/0.png")
    score = ("score", tmp_path, *MINIATURE, "--split", "train", "--partial")
    code, _, error = cli(*score, "--clip", "nope")
    assert code == 2
    assert "CLIP model 'nope' names no weights" in error
    assert not (tmp_path / "mars2-scores/records.jsonl").exists()


def test_libraries_are_silent_unless_asked(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging

    from mars2.quiet import no_bars

    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "warning")
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        logging.set_verbosity_info()
        cli("--verbose", "ls", "suites")
        assert logging.get_verbosity() == logging.INFO
        with no_bars():
            assert logging.is_progress_bar_enabled()
        monkeypatch.setenv(VERBOSE_VARIABLE, "")
        cli("ls", "suites")
        assert logging.get_verbosity() == logging.ERROR
        with no_bars():
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
        if not bars:
            logging.disable_progress_bar()


def test_a_fetch_that_fails_is_a_line_a_source(
    cli: Cli, world, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = tuple(tmp_path / f"{number}.png" for number in range(4))
    failed = tuple(f"cat/{number}.png: img.example cannot be reached" for number in range(40))
    report = FetchReport(
        files,
        (),
        ("dog/0.png: ask",),
        failed,
        (
            SourceReport("img.example", 4, 0, 0, 40, failed[0]),
            SourceReport("by hand", 0, 0, 1, 0, "dog/0.png: ask"),
        ),
    )

    def fetch(*_: object, progress: Callable[[str], object], **__: object) -> FetchReport:
        for line in failed:
            progress(line)
        return report

    monkeypatch.setattr("benchmark_data.fetch.fetch", fetch)
    code, said, error = cli("data", "fetch", world.suite)
    assert code == 1
    assert "Traceback" not in error
    assert said.splitlines() == [
        "img.example: 4 fetched, 40 failed; first cat/0.png: img.example cannot be reached",
        "by hand: 1 to get by hand; first dog/0.png: ask",
        "4 fetched, 0 were there, 1 to get by hand, 40 failed",
        "`mars2 data fetch --each` tells of each image where to get it and where to put it",
    ]
    code, said, _ = cli("data", "fetch", world.suite, "--each")
    assert code == 1
    assert said.splitlines()[:40] == list(failed)
    assert said.splitlines()[40] == "by hand: dog/0.png: ask"


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "cuda"])
@pytest.mark.parametrize(
    "command", [("score", "images"), ("train", "lora", "--dry-run"), ("judge", "check")]
)
def test_a_device_that_is_not_here_is_refused_before_any_work(
    cli: Cli, command: tuple[str, ...], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = ("--out", "loras") if command[0] == "train" else ()
    code, _, error = cli(*command, *out, "--device", device)
    assert code == 2
    assert re.fullmatch(rf"mars2: --device is '?{device}'?[;,] .*give .*cpu.*\n", error)


def test_a_check_of_no_entry_is_no_success(cli: Cli, tmp_path: Path) -> None:
    code, said, error = cli("leaderboard", "check", tmp_path)
    assert (code, said) == (2, "")
    assert error == (
        f"mars2: {tmp_path} holds no entry: `mars2 leaderboard add` makes one of a scored run\n"
    )
    code, _, error = cli("leaderboard", "check", tmp_path / "none")
    assert code == 2
    assert error.endswith("name one, or run this in a clone of the project\n")


@pytest.mark.parametrize(
    ("option", "model", "words"),
    [
        ("--judge", "llava_onevison:critic", "no judge 'llava_onevison'"),
        ("--judge", "llava_onevision:./no/such/critic", "no/such/critic"),
        ("--clip", "ViT-B-33", "names no weights"),
        ("--clip", "local-dir:no/clip", "there is no open_clip_config.json in no/clip"),
        ("--dino", "no/such/dino", "no/such/dino"),
    ],
)
def test_a_dry_run_of_scoring_finds_mistyped_models(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, model: str, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    references = Path(mars2.__file__).parents[1] / "benchmark_data/miniworld/references"
    (tmp_path / "cat_2_cathedral").mkdir()
    Image.open(references / "cat_1/0.png").save(tmp_path / "cat_2_cathedral/0.png")
    code, said, error = cli("score", tmp_path, *MINIATURE, "--partial", "--dry-run", option, model)
    assert (code, said) == (2, "")
    assert words in error.splitlines()[-1]
