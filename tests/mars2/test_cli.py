"""The command line, by tables of arguments, output and exit code."""

import json
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import mars2
from baselines.adapter import LoraAdapter
from baselines.formats import load_adapter, save_adapter
from baselines.merging_loss import PairTask
from baselines.registry import METHODS
from benchmark_data.load import load_suite
from mars2.cli import PUBLIC_ERRORS, main
from mars2.cli.measuring import Scoring
from mars2.cli.options import parse_seeds
from mars2.controls import read_controls
from mars2.job import Choices, RunError
from mars2.run import load_denoiser
from mars2.store import RunStore

ROOT = Path(__file__).parents[2]

Cli = Callable[..., tuple[int, str, str]]


def test_dtype_is_the_judges(cli: Cli, world, tmp_path: Path) -> None:
    references = {name: tmp_path / name for name in ("images", "subject", "style")}
    for folder in references.values():
        folder.mkdir()
        shutil.copy(world.folder / "cat_0.png", folder)
    code, _, said = cli(
        "score",
        references["images"],
        *("--subject-refs", references["subject"], "--style-refs", references["style"]),
        *("--style-name", "ink", "--metrics", "mars2"),
        *("--judge", f"llava_onevision:{tmp_path}", "--dtype", "float8"),
    )
    assert code == 2
    assert "dtype is 'float8'" in said


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['mars2', '--help']; from mars2.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, 'diffusers' in sys.modules, file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.stderr.strip() == "False False"
    commands = "run score report train merge inspect data cache judge ls demo study"
    for command in commands.split():
        assert f"\n  {command} " in done.stdout
    assert min(seconds) < 0.5


def test_public_names_are_there_and_the_version_is_the_packages() -> None:
    for name in mars2.__all__:
        assert getattr(mars2, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mars2.no_such_name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == mars2.__version__


def test_public_errors_exist_by_name() -> None:
    from baselines import AdapterError, PluginError
    from benchmark_data.suite import SuiteError
    from mars2.judges import JudgeError

    for error in (AdapterError, PluginError, SuiteError, RunError, JudgeError):
        assert error.__name__ in PUBLIC_ERRORS


@pytest.mark.parametrize(
    ("text", "seeds"),
    [(None, ()), ("0-3", (0, 1, 2, 3)), ("7", (7,)), ("0, 5-6,9", (0, 5, 6, 9))],
)
def test_seeds(text: str | None, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-3", "3-1", "1,,2"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(RunError, match="--seeds is"):
        parse_seeds(text)


RUN = ("run", "--limit", 2, "--device", "cpu", "--metrics", "mars2", "--seeds", "0-1")


def test_run_scores_and_reports(cli: Cli, world, tmp_path: Path) -> None:
    methods = ("--method", "direct_sum", "--method", "ziplora:steps=1")
    for name in ("a", "b"):
        out = tmp_path / name
        code, said, _ = cli(*RUN, "--suite", world.suite, *methods, "--out", out)
        assert code == 0
        assert (out / "report.html").is_file()
        assert (out / "grid.png").is_file()
    for label in ("base", "subject_only", "style_only", "direct_sum", "ziplora"):
        assert label in said
    assert str(out / "report.html") in said
    for file in ("records.jsonl", "scores.json", "grid.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert len(records) == 5 * 2 * 2 * 3
    assert {r["value"] for r in records if r["metric"] == "mars2_subject"} == {1.0}
    assert {r["value"] for r in records if r["metric"] == "mars2"} == {0.0}
    code, again, _ = cli("report", out)
    assert code == 0
    assert again in said
    lines = (out / "records.jsonl").read_text()
    assert cli("score", out, "--metrics", "mars2")[0] == 0
    assert (out / "records.jsonl").read_text() == lines


@pytest.fixture
def small_demo(world, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = Choices(methods=("average",), seeds=(0,), limit=2, device="cpu")
    monkeypatch.setattr("mars2.cli.demo.SUITE", world.suite)
    monkeypatch.setattr("mars2.cli.demo.CHOICES", choices)
    monkeypatch.setattr("mars2.cli.demo.SCORING", Scoring(metrics="mars2", device="cpu"))


@pytest.mark.usefixtures("small_demo")
def test_the_demo_ends_with_table_and_picture(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    code, said, error = cli("demo", "--out", out)
    assert (code, error) == (0, "")
    assert f"{out / 'grid.png'}\n{out / 'report.html'}\n" in said
    assert said.startswith(
        "1 methods and the controls on 2 pairs of the miniature world, 1 images of each"
    )
    assert said.count("interval, bootstrap over pairs") == 1  # one table, the first
    for document in re.findall(r"docs/\w+\.md", said):
        assert (Path(__file__).parents[2] / document).is_file()
    assert "docs/miniworld.md" in said
    assert cli("demo", "--out", out) == (0, said, "")


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("small_demo")
def test_the_demo_leaves_the_run_of_an_older_version_alone(
    cli: Cli, world, tmp_path: Path, random_adapter: Callable[..., LoraAdapter]
) -> None:
    out, second = tmp_path / "demo", tmp_path / "demo-2"
    assert cli("demo", "--out", out)[0] == 0
    before = _contents(out)
    save_adapter(random_adapter(99), world.adapters / "cat.safetensors")  # newer weights
    for _ in range(2):  # the second time it is found again
        code, said, error = cli("demo", "--out", out)
        assert code == 0
        assert error.startswith(f"mars2: {out} holds a run of another version")
        assert error.count("\n") == 1
        assert f"the demo is in {second}" in error
        assert f"{second / 'report.html'}\n" in said
    assert _contents(out) == before
    assert not (tmp_path / "demo-3").exists()


@pytest.mark.usefixtures("small_demo")
def test_the_demo_leaves_a_run_file_it_cannot_read_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "run.json").write_text('{"schema": 0}')
    code, _, error = cli("demo", "--out", tmp_path / "demo")
    assert (code, error.count("\n")) == (0, 1)
    assert (tmp_path / "demo-2" / "report.html").is_file()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    code, _, error = cli("demo", "--out", tmp_path / "letters")
    assert code == 2
    assert "exists and is no run folder" in error


def test_a_dry_run_lists_the_jobs_and_writes_nothing(cli: Cli, world, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = (*RUN, "--suite", world.suite, "--method", "average", "--out", out, "--dry-run")
    code, said, _ = cli(*arguments)
    assert code == 0
    assert "8 jobs, 8 to do, 16 images" in said
    assert "to do  cat_ink  average" in said
    assert not out.exists()


def test_no_controls_no_score(cli: Cli, world, tmp_path: Path) -> None:
    arguments = ("--method", "average", "--no-controls", "--no-score", "--save-adapters")
    code, _, _ = cli(*RUN, "--suite", world.suite, *arguments, "--out", tmp_path / "run")
    assert code == 0
    assert [path.name for path in (tmp_path / "run/images").iterdir()] == ["average"]
    assert len(list((tmp_path / "run/adapters/average").iterdir())) == 2
    assert not (tmp_path / "run/records.jsonl").exists()


def test_a_folder_of_images_is_scored(cli: Cli, world, tmp_path: Path, random_image) -> None:
    mine = tmp_path / "mine"
    for number, case in enumerate(("cat_ink", "cat_oil", "dog_ink", "dog_oil")):
        (mine / case).mkdir(parents=True)
        random_image(number).save(mine / case / "0.png")
    code, said, error = cli("score", mine, "--suite", world.suite, "--metrics", "mars2")
    assert (code, error) == (0, "")
    assert "mine" in said
    assert (mine / "mars2-scores/report.html").is_file()
    assert cli("report", mine)[0] == 0
    (mine / "list.csv").write_text("image,subject,style,method\ncat_ink/0.png,cat,ink,hand\n")
    out = tmp_path / "by-hand"
    arguments = ("--manifest", mine / "list.csv", "--out", out, "--metrics", "mars2")
    assert cli("score", mine, "--suite", world.suite, *arguments)[0] == 0
    assert json.loads((out / "scores.json").read_text())["methods"][0]["method"] == "hand"
    judge = f"scripted:{world.folder / 'judge.json'}"
    pair = ("--subject-refs", mine / "cat_oil", "--style-refs", mine / "dog_ink", "--style-name")
    out = tmp_path / "pair"
    arguments = (*pair, "wax crayon", "--judge", judge, "--metrics", "mars2", "--out", out)
    code, said, error = cli("score", mine / "cat_ink", *arguments, "--dry-run")
    assert (code, error) == (0, "")
    assert not out.exists()  # and yet the references beside it are read
    assert cli("score", mine / "cat_ink", *arguments)[0] == 0
    assert json.loads((out / "scores.json").read_text())["cases"] == ["cat_oil_dog_ink"]


def test_a_dry_run_of_scoring_tells_what_is_left_and_writes_nothing(
    cli: Cli, world, tmp_path: Path, random_image
) -> None:
    mine = tmp_path / "mine"
    for number, case in enumerate(("cat_ink", "cat_oil", "dog_ink", "dog_oil")):
        (mine / case).mkdir(parents=True)
        random_image(number).save(mine / case / "0.png")
    asked = ("score", mine, "--suite", world.suite, "--metrics", "mars2", "--no-cache")
    before = _contents(tmp_path)
    code, said, error = cli(*asked, "--dry-run")
    assert (code, error) == (0, "")
    # two photos of the cat, one of the dog, one of each style: 3 questions on a cat, 2 on a dog
    assert said.splitlines()[:3] == [
        f"images  4 in {mine}: 4 pairs, 1 method",
        "beside  1 to 2 references each of 2 subjects",
        "beside  1 reference each of 2 styles",
    ]
    assert "4 to score, 0 have scores; 10 questions" in said
    assert _contents(tmp_path) == before
    assert cli(*asked)[0] == 0
    random_image(9).save(mine / "dog_ink" / "0.png")
    assert "1 to score, 3 have scores; 2 questions" in cli(*asked, "--dry-run")[1]
    spoil(mine / "cat_ink" / "0.png")
    code, said, error = cli(*asked, "--dry-run")
    assert (code, said) == (2, "")
    assert "cat_ink/0.png is no image that can be read to its end" in error


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def test_a_small_run_grows_into_the_whole(cli: Cli, world, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("run", "--suite", world.suite, "--out", out, "--device", "cpu", "--no-controls")
    arguments += ("--metrics", "mars2", "--method", "average")
    assert cli(*arguments, "--limit", "2")[0] == 0
    first = _contents(out / "images")
    grows = f"mars2: the run in {out}: pairs grow from 2 to 4\n"
    code, said, error = cli(*arguments, "--dry-run")
    assert (code, error) == (0, grows)
    assert "4 jobs, 2 to do" in said
    code, said, error = cli(*arguments)
    assert (code, error) == (0, grows)
    assert "4 pairs" in said
    images = _contents(out / "images")
    assert {path: images[path] for path in first} == first
    assert len(images) == 2 * len(first)
    whole = tmp_path / "whole"
    assert cli(*(whole if one == out else one for one in arguments))[0] == 0
    assert list(_contents(whole / "images").values()) == list(images.values())
    code, said, error = cli(*arguments, "--limit", "2", "--method", "direct_sum")
    assert (code, error) == (
        0,
        f"mars2: the run in {out}: it keeps all of its 4 pairs, though fewer are asked for (2)\n",
    )
    assert "4 pairs" in said
    assert len(_contents(out / "images")) == 2 * len(images)  # of the new method on all pairs
    seeds = tmp_path / "seeds"
    arguments = [seeds if one == out else one for one in arguments]
    assert cli(*arguments, "--seeds", "0")[0] == 0
    assert cli(*arguments)[0] == 0
    assert _contents(seeds / "images").values() != first.values()
    assert list(_contents(seeds / "images").values()) == list(images.values())
    costs = (seeds / "costs.jsonl").read_text().splitlines()
    assert len(costs) == 8
    assert len(RunStore.open(seeds).costs()) == 4  # of the jobs with all seeds
    before = _contents(seeds)
    code, _, error = cli(*arguments, "--seeds", "0")  # all that it asks for is there
    assert (code, "keeps all of its 2 seeds" in error) == (0, True)
    assert list(_contents(seeds / "images").values()) == list(_contents(whole / "images").values())
    assert (seeds / "costs.jsonl").read_bytes() == before[seeds / "costs.jsonl"]


def test_all_that_a_run_lacks_is_told_at_once(
    cli: Cli, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (world.folder / "ink_0.png").unlink()
    (world.folder / "cat_1.png").unlink()
    arguments = ("--method", "lorarar:checkpoint=none.safetensors", "--model", "nobody/nothing")
    arguments += ("--suite", world.suite, "--adapters", "/none", "--device", "cpu")
    arguments += ("--metrics", "mars2,dino")
    for more in ((), ("--dry-run",)):
        code, said, error = cli("run", *arguments, "--out", tmp_path / "run", *more)
        assert (code, said) == (2, "")
        first, *others = error.splitlines()
        assert first == "mars2: 5 things are to be done first"
        starts = [line.removeprefix("  - ") for line in others]
        assert starts[0] == "lorarar:checkpoint=none.safetensors: no such file"
        assert starts[1].startswith("4 of 4 adapters are missing in /none")
        assert starts[2].startswith("2 of 5 reference images are missing (cat: cat_1.png, ink:")
        assert starts[3].startswith("model 'none' is neither a folder nor a hub id")
        assert starts[4].startswith("no model 'nobody/nothing'")
    assert not (tmp_path / "run").exists()
    # unscored, and without a method that is fitted to images, it needs no references
    code, _, error = cli("run", *arguments, "--out", tmp_path / "run", "--no-score")
    assert error.startswith("mars2: 3 things")


@pytest.mark.parametrize(
    ("option", "model", "words"),
    [
        ("--judge", "llava_onevision:nobody/judge", "model 'nobody/judge' is no folder here"),
        ("--clip", "local-dir:/none", "CLIP model local-dir:/none: there is no"),
        ("--dino", "nobody/dino", "model 'nobody/dino' is no folder here"),
    ],
)
def test_a_model_that_scores_is_missed_before_the_drawing(
    cli: Cli, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option, model, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    metric = {"--judge": "mars2", "--clip": "clip", "--dino": "dino"}[option]
    arguments = ("run", "--suite", world.suite, "--method", "average", "--device", "cpu")
    arguments += ("--out", tmp_path / "run", "--metrics", metric, option, model)
    for more in ((), ("--dry-run",)):
        code, _, error = cli(*arguments, *more)
        assert code == 2
        assert error.startswith(f"mars2: {words}")
    assert not (tmp_path / "run").exists()


def test_nothing_is_downloaded_while_something_else_is_missing(
    cli: Cli, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []
    monkeypatch.setattr("mars2.prepare.model_revision", lambda model: asked.append(model) or "0")
    arguments = ("run", "--suite", world.suite, "--model", "nobody/nothing", "--device", "cpu")
    arguments += ("--method", "average", "--out", tmp_path / "run", "--dry-run")
    assert cli(*arguments, "--adapters", "/none")[0] == 2
    assert asked == []
    assert cli(*arguments)[0] == 0
    assert asked == ["nobody/nothing"]


def test_a_full_gpu_is_one_line_and_exit_code_2(
    cli: Cli, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("mars2.run.load_denoiser", full)
    code, _, said = cli(
        "train", "lora", "--suite", world.suite, "--concept", "cat", "--out", tmp_path / "out"
    )
    assert code == 2
    assert said.startswith("mars2: out of memory on the GPU: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (None, ("--suite", "miniwrld"), "miniworld"),
        (None, ("--suite", "no.toml"), "no.toml"),
        (None, ("--method", "direct_sun"), "direct_sum"),
        (None, ("--method", "ziplora:step=1"), "steps"),
        (None, ("--method", "ziplora:steps=x"), "'x'"),
        (None, ("--model", "nobody/nothing"), "no model 'nobody/nothing'"),
        (None, ("--dtype", "float64"), "--dtype is 'float64'"),
        (None, ("--device", "cuda:7"), "--device is cuda:7"),
        (None, ("--device", "meta"), "torch can place nothing there"),
        (None, ("--seeds", "x"), "--seeds is 'x'"),
        (None, ("--adapters", "/none"), "4 of 4 adapters are missing in /none: cat"),
        (lambda w: (w.adapters / "ink.safetensors").unlink(), (), "1 of 4 adapters are missing"),
        (lambda w: spoil(w.adapters / "ink.safetensors"), (), "ink.safetensors"),
        (None, ("--metrics", "mars2,clipp"), "clip"),
        (None, ("--judge", "foo:bar"), "'foo'"),
        (None, ("--metrics", "clip", "--clip", "nope"), "names no weights"),
        (None, ("--metrics", "clip", "--clip", "ViT-B-32:nope"), "of ViT-B-32: openai"),
        (None, ("--layout", "foo"), "layout is 'foo'"),
        (None, ("--prompts", "/none.toml"), "/none.toml"),
        (None, ("--judge", "openai:critic"), "has no server: give --base-url"),
        (None, ("--base-url", "http://localhost:1/v1"), "asks no server"),
        (None, ("--judge-temperature", "0.5"), "leave out temperature 0.5"),
        (lambda w: (w.folder / "ink_0.png").unlink(), (), "reference images are missing"),
    ],
)
def test_bad_runs_are_one_line_and_exit_code_2(
    cli: Cli, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change, arguments, words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    if change:
        change(world)
    given = {"--suite": world.suite, "--method": "average", "--device": "cpu"}
    given["--metrics"] = "mars2"
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    flat = [part for pair in given.items() for part in pair]
    for dry in ((), ("--dry-run",)):
        code, _, error = cli("run", *flat, "--out", tmp_path / "run", *dry)
        assert code == 2
        assert error.startswith("mars2: ")
        assert error.count("\n") == 1
        assert words in error
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("score", "/none"), "/none is no folder"),
        (("report", "/none"), "/none holds no run.json"),
        (("score", "."), "is no run: say which pairs it shows"),
        (("score", ".", "--style-name", "ink"), "give --subject-refs, --style-refs and"),
        (("score", ".", "--suite", "SUITE"), "has no images"),
        (("score", ".", "--suite", "SUITE", "--manifest", "x.csv"), "x.csv cannot be read"),
        (("merge", "a.safetensors", "b.safetensors", "-o", "c"), "no LoRA file a.safetensors"),
        (("merge", "a", "-o", "c", "--method", "ziplora"), "ziplora optimises for a pair"),
        (("merge", "a", "-o", "c", "--method", "k_lora"), "k_lora weighs the LoRAs anew"),
        (("train", "lora", "--suite", "SUITE", "--out", "."), "either --concept"),
        (
            ("train", "joint", "--suite", "SUITE", "--out", ".", "--case", "ink_cat"),
            "no pair 'ink_cat' in split 'test'; it has cat_ink, cat_oil",
        ),
        (("train", "joint", "--suite", "SUITE", "--out", ".", "--split", "tset"), "it has train"),
        (
            ("train", "lora", "--suite", "SUITE", "--out", ".", "--concept", "cta"),
            "no subject or style 'cta'",
        ),
        (
            ("train", "hypernet", "--suite", "SUITE", "--out", "x", "--split", "test"),
            "--split is test",
        ),
        (
            ("train", "hypernet", "--suite", "SUITE", "--out", "x", "--predict", "q+x"),
            "--predict is 'q+x'; join some of q, k, v and out",
        ),
        (
            ("train", "hypernet", "--suite", "SUITE", "--out", "x", "--reads", "rows"),
            "reads is 'rows': it must be columns or features",
        ),
        (("data", "list", "miniwrld"), "miniworld"),
        (("run", "--suite", "SUITE", "--no-score", "--out", "/proc/x"), "/proc/x: "),
    ],
)
def test_other_mistakes(
    cli: Cli, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, words: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    given = [world.suite if part == "SUITE" else part for part in arguments]
    code, _, error = cli(*given)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1


def test_merge_writes_the_sum(
    cli: Cli, tmp_path: Path, random_adapter: Callable[..., LoraAdapter]
) -> None:
    for seed in (1, 2):
        save_adapter(random_adapter(seed), tmp_path / f"{seed}.safetensors")
    files = (tmp_path / "1.safetensors", tmp_path / "2.safetensors")
    code, said, _ = cli(
        "merge", *files, "--method", "direct_sum", "-o", tmp_path / "sum.safetensors"
    )
    assert code == 0
    assert "layers" in said
    merged = load_adapter(tmp_path / "sum.safetensors")
    for layer, delta in merged.deltas.items():
        expected = sum(random_adapter(seed).deltas[layer].dense() for seed in (1, 2))
        torch.testing.assert_close(delta.dense(), expected, rtol=1e-5, atol=1e-6)


def test_joint_loras_are_the_methods(cli: Cli, world, tmp_path: Path) -> None:
    """`mars2 train joint` and the method joint_training give the same LoRA."""
    options = ("--device", "cpu", "--steps", 2, "--rank", 2, "--lr", 0.01)
    joint = ("train", "joint", "--suite", world.suite, "--out", tmp_path / "joint", *options)
    code, said, _ = cli(*joint, "--case", "cat_ink")
    assert code == 0
    path = tmp_path / "joint" / "cat_ink.safetensors"
    assert said.split() == [str(path)]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    code, said, _ = cli(*joint, "--case", "cat_ink")
    assert (code, said) == (0, f"{path} is there already\n")
    suite = load_suite(world.suite)
    task = PairTask(
        load_denoiser(suite, None, dtype=None, device="cpu"),
        [Image.open(world.folder / f"cat_{number}.png") for number in range(2)],
        suite.subjects["cat"].prompts,
        [Image.open(world.folder / "ink_0.png")],
        suite.styles["ink"].prompts,
    )
    pair = [load_adapter(world.adapters / f"{name}.safetensors") for name in ("cat", "ink")]
    method = METHODS.get("joint_training")
    trained = method(pair, task=task, steps=2, rank=2, lr=0.01)
    assert load_adapter(path).digest() == trained.digest()
    assert method(pair, task=task, steps=1).deltas[trained.layers[0]].rank == 4


def test_loras_and_hypernetworks_are_trained(cli: Cli, world, tmp_path: Path) -> None:
    out = tmp_path / "loras"
    common = ("--suite", world.suite, "--device", "cpu", "--steps", 2)
    lora = ("train", "lora", *common, "--rank", 2, "--out", out)
    code, said, _ = cli(*lora, "--all", "--split", "train", "--dry-run")
    assert code == 0
    assert [line.split(":")[0] for line in said.splitlines()] == [
        f"would train {out / 'fox.safetensors'}",
        f"would train {out / 'flat.safetensors'}",
    ]
    assert "rank 2, 2 steps of " in said
    assert "empty prompt" not in said
    apart = ("--unconditional-weight", 1, "--unconditional-below", 0.8)
    _, said, _ = cli(*lora, "--concept", "fox", *apart, "--dry-run")
    assert said.endswith("; kept out of the empty prompt below 0.8 of the timesteps (weight 1)\n")
    code, _, error = cli(*lora, "--concept", "fox", *apart[2:], "--dry-run")
    assert code == 2
    assert "--unconditional-below is 0.8 and would do nothing: the weight is 0" in error
    assert not out.exists()
    code, said, _ = cli(*lora, "--all", "--split", "train")
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == ["flat.safetensors", "fox.safetensors"]
    assert load_adapter(out / "fox.safetensors").deltas
    before = (out / "fox.safetensors").stat().st_mtime_ns
    assert "fox.safetensors is there already" in cli(*lora, "--concept", "fox")[1]
    assert (out / "fox.safetensors").stat().st_mtime_ns == before
    code, _, error = cli(*lora, "--concept", "fox", "--unconditional-weight", 0.5)
    assert code == 2
    assert "unconditional_weight was 0.0, now 0.5" in error
    network = tmp_path / "net.safetensors"
    empty = tmp_path / "empty"
    code, _, error = cli("train", "hypernet", *common, "--adapters", empty, "--out", network)
    assert code == 2
    assert f"`mars2 train lora --suite {world.suite} --all --split train --out {empty}`" in error
    code, said, _ = cli("train", "hypernet", *common, "--adapters", out, "--out", network)
    assert (code, said.strip()) == (0, str(network))
    method = f"lorarar:checkpoint={network}"
    run = ("run", "--suite", world.suite, "--method", method, "--device", "cpu", "--limit", 1)
    assert cli(*run, "--no-score", "--no-controls", "--out", tmp_path / "run")[0] == 0


def test_the_learning_rate_may_fall(cli: Cli, world, tmp_path: Path) -> None:
    options = ("--suite", world.suite, "--device", "cpu", "--steps", 2, "--rank", 2)
    lora = ("train", "lora", *options, "--concept", "fox", "--out", tmp_path / "lora")
    joint = ("train", "joint", *options, "--case", "cat_ink", "--out", tmp_path / "joint")
    for command, file in ((lora, "lora/fox"), (joint, "joint/cat_ink")):
        code, said, error = cli(*command, "--lr-schedule", "linear")
        assert (code, said) == (2, "")
        assert "lr_schedule is 'linear': choose one of constant, cosine" in error
        assert cli(*command, "--lr-schedule", "cosine")[0] == 0
        metadata = load_adapter(tmp_path / f"{file}.safetensors").metadata
        assert metadata["lr_schedule"] == "cosine"
    code, _, error = cli(*lora, "--lr-schedule", "constant")
    assert code == 2
    assert "lr_schedule was cosine, now constant" in error


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("methods", ("direct_sum", "average", "ziplora", "steps=", "base", "lorarar")),
        ("suites", ("miniworld", "lorarar", "test 25")),
        ("metrics", ("mars2", "clip", "dino")),
        ("judges", ("llava_onevision", "scripted", "miniworld/weights/critic  of miniworld")),
    ],
)
def test_listings(cli: Cli, what: str, words: tuple[str, ...]) -> None:
    code, said, _ = cli("ls", what)
    assert code == 0
    for word in words:
        assert word in said


def test_tables_in_a_pipe_are_whole(
    cli: Cli, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = tmp_path / "run"
    arguments = ("run", "--suite", world.suite, "--out", out, "--device", "cpu", "--limit", "1")
    code, said, _ = cli(*arguments, "--metrics", "mars2", "--method", "average")
    assert code == 0
    assert "more columns" not in said
    heading = next(line for line in said.splitlines() if "method" in line)
    assert {"MARS2", "best", "merge", "image"} <= {*heading.split()}
    assert len(heading) > 80
    monkeypatch.setenv("COLUMNS", "80")
    narrow = cli("report", out)[1]
    tables = [line for line in narrow.splitlines() if "─" in line or "average" in line]
    assert max(map(len, tables)) <= 80


def test_references_are_listed(cli: Cli, world) -> None:
    (world.folder / "dog_0.png").unlink()
    code, said, _ = cli("data", "list", world.suite)
    assert code == 0
    rows = {line.split()[2]: line for line in said.splitlines()}
    assert "2 of 2 images" in rows["cat"]
    assert "0 of 1 images" in rows["dog"]
    assert len(rows) == 6


def test_a_judge_is_checked_and_reports_are_corrected_by_it(
    cli: Cli, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_image
) -> None:
    from mars2.files import read_image
    from mars2.judges.images import image_digest

    monkeypatch.setenv("MARS2_CACHE", str(tmp_path / "cache"))
    cats = [image_digest(read_image(world.folder / f"cat_{number}.png")) for number in range(2)]
    table = {"subject": "No", "style": "Yes", **{f"subject/{cat}": "Yes" for cat in cats}}
    (world.folder / "judge.json").write_text(json.dumps(table))
    mine = tmp_path / "mine"
    for number, case in enumerate(("cat_ink", "cat_oil", "dog_ink", "dog_oil")):
        (mine / case).mkdir(parents=True)
        random_image(number).save(mine / case / "0.png")
    score = ("score", mine, "--suite", world.suite, "--metrics", "mars2")
    code, said, _ = cli(*score)
    assert code == 0
    assert "Corrected" not in said
    # cat: 2 yes of 2; no of 4 against dog and fox; dog and fox: the cat's images are a false yes
    code, planned, error = cli("judge", "check", "--suite", world.suite, "--dry-run")
    assert (code, error) == (0, "")
    assert not list((tmp_path / "cache").rglob("controls/*"))
    code, said, error = cli("judge", "check", "--suite", world.suite)
    assert (code, error) == (0, "")
    assert "subject: sensitivity 100%" in said
    assert "specificity 60%" in said
    path = Path(said.split()[-1])
    assert path.is_relative_to(tmp_path / "cache")
    own = tmp_path / "own.json"
    assert cli("judge", "check", "--suite", world.suite, "--out", own)[0] == 0
    assert own.read_bytes() == path.read_bytes()
    asked = read_controls(own).tallies.items()
    for (aspect, tallies), line in zip(asked, planned.splitlines()[2:], strict=True):
        answered = sum(tally.yes + tally.no for tally in tallies)
        concepts = len({tally.concept for tally in tallies})
        assert line.split() == [
            aspect,
            str(answered),
            "questions,",
            "of",
            str(concepts),
            f"{aspect}s",
        ]
    part = cli("judge", "check", "--suite", world.suite, "--split", "test")[1]
    assert "specificity 50%" in part
    assert str(path) not in part
    few = cli("judge", "check", "--suite", world.suite, "--per-concept", "1")[1]
    assert str(path) not in few
    assert own.read_bytes() == path.read_bytes()
    _, found, _ = cli("report", mine)
    assert "Corrected for the judge's errors" in found
    path.unlink()
    assert "Corrected" not in cli("report", mine)[1]
    assert cli("report", mine, "--controls", own)[1] == found
    assert cli(*score, "--controls", own)[1] == found
    code, _, error = cli("report", mine, "--controls", own, "--controls", own)
    assert code == 2
    assert "two files of controls are of judge 'scripted@" in error
    own.write_text(own.read_text().replace("scripted@", "another@"))
    code, _, error = cli("report", mine, "--controls", own)
    assert code == 2
    assert "another@" in error


def test_the_cache_is_shown_and_pruned(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mars2.judges import Verdict
    from mars2.judges.cached import AnswerCache

    monkeypatch.setenv("MARS2_CACHE", str(tmp_path))
    path = AnswerCache().path
    assert cli("cache", "info")[1].startswith(f"{path}: 0 answers, ")
    assert not path.exists()
    AnswerCache().keep("critic@1 anyres float32", {"k": Verdict(True, 0.9, 1.0, "Yes")})
    code, said, _ = cli("cache", "info")
    assert code == 0
    assert said.startswith(f"{path}: 1 answers, ")
    assert said.splitlines()[1].endswith("critic@1 anyres float32")
    assert cli("cache", "prune")[1] == f"{path}: 0 answers dropped, 1 left\n"
    assert cli("cache", "prune", "--older-than", 0.5)[1].endswith(" 0 answers dropped, 1 left\n")
    assert "either --older-than or --all" in cli("cache", "prune", "--older-than", 1, "--all")[2]
    assert cli("cache", "prune", "--all")[1] == f"{path}: 1 answers dropped, 0 left\n"


def test_a_bug_keeps_its_traceback(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("mars2.store.RunStore.open", broken)
    monkeypatch.setattr(sys, "argv", ["mars2", "report", str(tmp_path)])
    with pytest.raises(ValueError, match="a bug"):
        main()


def test_an_interrupted_command_says_that_it_goes_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmark_data.load.load_suite", interrupted)
    code, _, error = cli("data", "list", "miniworld")
    assert (code, error) == (130, "mars2: interrupted; the same command goes on\n")
