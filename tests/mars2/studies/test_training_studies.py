"""Studies that train: on which pairs, what differs, what the numbers are, and going on."""

import dataclasses
import itertools
import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from baselines.adapter import LoraAdapter
from baselines.denoiser import Denoiser
from baselines.formats import save_adapter
from benchmark_data.load import load_suite
from lorarar.pairs import TrainingConcept, TrainingPair
from lorarar.train import HyperTraining
from mars2.job import MethodSpec, RunError
from mars2.store import RunStore
from mars2.studies.arms import Scored, bars
from mars2.studies.columns import PAPER, VARIANTS, plan_columns, study_columns
from mars2.studies.result import Result, write
from mars2.studies.scaling import ORDERS, first_pairs, plan_scaling, sizes_of, study_scaling
from mars2.studies.trainings import Trained, Training, Workshop, pairs_to_train_on

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fake_run.py")))
SETTINGS = HyperTraining(steps=2, hidden=8, save_every=1)
MORE = """
[subjects.owl]
split = "train"
phrase = "owl"
prompt = "a sks owl"
references = ["owl_0.png"]
"""


def grid(subjects: int, styles: int) -> list[TrainingPair]:
    def concept(name: str) -> TrainingConcept:
        return TrainingConcept(name, Path(f"{name}.safetensors"), (Path("x.png"),), (name,))

    return [
        TrainingPair(concept(f"s{i:02}"), concept(f"t{j:02}"))
        for i in range(subjects)
        for j in range(styles)
    ]


def names(training: Training) -> set[tuple[str, str]]:
    return {(pair.subject.id, pair.style.id) for pair in training.pairs}


@pytest.mark.parametrize(("subjects", "styles"), [(4, 4), (5, 3), (3, 7), (1, 4), (12, 10)])
def test_orders_go_through_all_pairs_once_wide_or_narrow(subjects: int, styles: int):
    for order in ORDERS:
        every = first_pairs(order, subjects, styles, subjects * styles)
        assert sorted(every) == list(itertools.product(range(subjects), range(styles)))
        assert first_pairs(order, subjects, styles, 3) == every[:3]
    wide = first_pairs("wide", subjects, styles, max(subjects, styles))
    assert {s for s, _ in wide} == set(range(subjects))
    assert {t for _, t in wide} == set(range(styles))
    for side in range(1, min(subjects, styles) + 1):
        narrow = first_pairs("narrow", subjects, styles, side**2)
        assert sorted(narrow) == list(itertools.product(range(side), repeat=2))


def test_sizes_grow_to_all_and_stand_once_where_the_orders_agree():
    sizes = sizes_of(grid(12, 10), ())
    assert [size.arm for size in sizes] == [
        "1", "4-wide", "4-narrow", "16-wide", "16-narrow", "64-wide", "64-narrow", "120",
    ]  # fmt: skip
    assert [(size.subjects, size.styles) for size in sizes] == [
        (1, 1), (4, 4), (2, 2), (12, 10), (4, 4), (12, 10), (8, 8), (12, 10),
    ]  # fmt: skip
    wide = sizes_of(grid(12, 10), (), ("wide",))
    assert [size.arm for size in wide] == ["1", "4-wide", "16-wide", "64-wide", "120"]
    assert [size.arm for size in sizes_of(grid(1, 4), (2, 3))] == ["2", "3"]
    with pytest.raises(RunError, match="--sizes has 121"):
        sizes_of(grid(12, 10), (1, 121))
    with pytest.raises(RunError, match="compares with nothing"):
        sizes_of(grid(12, 10), (5, 5))


def test_small_sets_lie_in_the_larger_ones_of_their_seed_and_seeds_draw_others():
    pairs = grid(6, 5)
    sizes = sizes_of(pairs, (1, 4, 9, 30))
    trainings = {one.label: one for one in plan_scaling(pairs, sizes, SETTINGS, (0, 1))}
    assert list(trainings)[:3] == ["1-seed0", "4-wide-seed0", "4-narrow-seed0"]
    for order in ORDERS:
        line = [names(trainings[f"{arm}-seed0"]) for arm in ("1", f"4-{order}", f"9-{order}", "30")]
        assert [len(own) for own in line] == [1, 4, 9, 30]
        assert all(small < large for small, large in itertools.pairwise(line))
        assert names(trainings[f"4-{order}-seed0"]) != names(trainings[f"4-{order}-seed1"])
    assert len({s for s, _ in names(trainings["9-narrow-seed0"])}) == 3
    assert len({s for s, _ in names(trainings["9-wide-seed0"])}) == 6
    kept = trainings["30-seed1"]
    assert list(kept.pairs) == pairs  # all of them, in their own order
    assert kept.settings == dataclasses.replace(SETTINGS, seed=1)


def test_variants_differ_from_the_papers_network_in_one_thing():
    suites = dataclasses.replace(SETTINGS, attention=True, normalize=True)  # of some suite
    trainings = plan_columns(grid(2, 2), (), suites, (0, 3))
    assert len(trainings) == 2 * len(VARIANTS)
    paper = trainings[0].settings
    assert trainings[0].arm == PAPER
    assert (paper.attention, paper.normalize, paper.steps) == (False, True, 2)
    for one in trainings[1 : len(VARIANTS)]:
        changed = [k for k, v in vars(one.settings).items() if v != getattr(paper, k)]
        assert changed == list(VARIANTS[one.arm].options)
    chosen = plan_columns(grid(2, 2), ("attention",), SETTINGS, (0,))
    assert [one.arm for one in chosen] == [PAPER, "attention"]
    with pytest.raises(RunError, match="no variant 'rows'; there are columns, attention"):
        plan_columns(grid(2, 2), ("rows",), SETTINGS, (0,))


def scored(tmp_path: Path, table: dict[str, list[list[bool | None]]], **more: object) -> Scored:
    """Networks whose joint answers are known: arm -> seeds -> a value each of two pairs."""
    labels = [f"{arm}-seed{k}" for arm, own in table.items() for k in range(len(own))]
    methods = [MethodSpec("direct_sum"), MethodSpec("average")]
    methods += [MethodSpec("lorarar", label=label) for label in labels]
    spec = fake.make_spec(methods=methods, subjects=fake.SUBJECTS[:1], seeds=(0,))
    store = RunStore.create(tmp_path / "run", spec)
    cases = [case.id for case in spec.cases]

    def answer(method: str, case: str, _seed: int) -> tuple[list[bool | None], list[bool | None]]:
        if "-seed" not in method:
            return [False], [True]
        arm, seed = method.rsplit("-seed", 1)
        return [table[arm][int(seed)][cases.index(case)]], [True]

    fake.fill(store, answers=answer, metrics=("mars2",))
    trained = [
        Trained(
            Training(arm, tuple(grid(2, 2)), dataclasses.replace(SETTINGS, seed=k)),
            Path("h.safetensors"), 100 + k, 1.5 + k, 0.5, 0.25 + k,
        )
        for arm, own in table.items()
        for k in range(len(own))
    ]  # fmt: skip
    return Scored(store, trained, **{"resamples": 400, **more})


def sheet(result: Result, name: str) -> list[dict[str, object]]:
    found = next(one for one in result.sheets if one.name == name)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_which_interval_is_over_what(tmp_path: Path):
    """Trainings that agree on pairs that do not, and the other way round."""
    own = scored(tmp_path, {"a": [[True, False]] * 3, "b": [[True] * 2, [False] * 2, [True] * 2]})
    a, b = own.mean("a", "joint"), own.mean("b", "joint")
    assert (a.pairs.value, b.pairs.value) == (0.5, 4 / 6)
    assert (a.pairs.low, a.pairs.high) == (0, 1)
    assert (a.trainings.low, a.trainings.high) == (0.5, 0.5)
    assert (b.pairs.low, b.pairs.high) == (4 / 6, 4 / 6)
    assert (b.trainings.low, b.trainings.high) == (0, 1)
    assert [(one.both.low, one.both.high) for one in (a, b)] == [(0, 1), (0, 1)]
    assert own.deviations("a", "joint") == pytest.approx((0.5**0.5, 0, 0))
    assert own.deviations("b", "joint") == pytest.approx((0, (1 / 3) ** 0.5, 0))
    gap = own.difference("b", "a", "joint")  # 0 1, -1 0, 0 1 on the two pairs
    assert gap.pairs.value == pytest.approx(1 / 6)
    assert (gap.pairs.low, gap.pairs.high) == pytest.approx((-1 / 3, 2 / 3))
    assert (gap.trainings.low, gap.trainings.high) == (-0.5, 0.5)
    assert "holds the middle of all possible trainings 75% of the time" in own.note


def test_an_image_that_one_of_two_networks_has_no_answer_for_is_in_no_difference(tmp_path: Path):
    own = scored(tmp_path, {"a": [[True, None]], "b": [[False, False]]})
    gap = own.difference("a", "b", "joint")
    assert (gap.pairs.value, gap.pairs.n, gap.pairs.n_unscored) == (1.0, 1, 1)
    assert own.mean("a", "joint").best() == own.mean("a", "joint").pairs
    assert own.ways == ("over pairs",)
    assert own.deviations("a", "joint") is None
    y, errors = bars([gap.pairs])
    assert (y, errors.tolist()) == ([1.0], [[0.0], [0.0]])


def test_scaling_by_hand(tmp_path: Path):
    pairs = grid(3, 3)
    sizes = sizes_of(pairs, (1, 4, 9))
    yes, no = [True, True], [False, False]
    table = {"1": [no, no], "4-wide": [yes, no], "4-narrow": [no, no], "9": [yes, yes]}
    own = scored(tmp_path, table)
    result = study_scaling(own, sizes)
    scores = {(row["train pairs"], row["order"]): row for row in sheet(result, "scores")}
    assert scores[4, "wide"]["joint over pairs"].value == 0.5
    assert scores[4, "wide"]["concepts"] == "3 x 3"
    assert scores[9, "any"]["val loss"] == pytest.approx(0.75)  # of 0.25 and 1.25
    assert scores["", ""]["joint over pairs"].value == 0
    gaps = {
        row["difference"]: row["joint over pairs"].value for row in sheet(result, "differences")
    }
    assert gaps == {
        "wide: 4 - 1 pairs": 0.5, "wide: 9 - 4 pairs": 0.5, "narrow: 4 - 1 pairs": 0.0,
        "narrow: 9 - 4 pairs": 1.0, "4 pairs: wide - narrow": 0.5,
    }  # fmt: skip
    trends = {(row["order"], row["score"]): row for row in sheet(result, "trend")}
    expected = np.polyfit(np.log2([1, 4, 9]), [0.0, 0.5, 1.0], 1)[0]
    assert trends["wide", "joint"]["over both"].value == pytest.approx(expected)
    assert trends["wide", "style"]["over trainings"].value == pytest.approx(0, abs=1e-12)
    assert [row["seed"] for row in sheet(result, "trainings")] == [0, 1] * 4
    assert "right in 1.00 [1.00, 1.00] of the images with 9 train pairs" in result.text
    assert "0.50 [0.00, 1.00] with 4 (3 x 3 concepts against 2 x 2)" in result.text
    files = {path.name for path in write(result, tmp_path / "out")}
    assert {"scaling.png", "scaling.svg", "scores.csv", "variance.csv", "README.md"} <= files


def test_columns_by_hand(tmp_path: Path):
    table = {PAPER: [[True, False]], "attention": [[True, True]], "q": [[True, False]]}
    result = study_columns(scored(tmp_path, table))
    gaps = {row["variant"]: row["joint over pairs"] for row in sheet(result, "differences")}
    assert {name: gap.value for name, gap in gaps.items()} == {"attention": 0.5, "q": 0.0}
    row = sheet(result, "budget")[0]
    assert (row["parameters"], row["seconds"], row["val loss"]) == (100, 1.5, 0.25)
    assert "Of these 2 intervals none leaves out 0" in result.text
    assert "one training tells nothing of others" in result.text
    assert {"columns.png", "columns.svg"} <= {path.name for path in write(result, tmp_path / "out")}


@pytest.fixture
def larger(
    world: SimpleNamespace,
    random_adapter: Callable[..., LoraAdapter],
    random_image: Callable[..., Image.Image],
) -> SimpleNamespace:
    """The small suite with two train pairs, and two steps of a small hypernetwork."""
    path = Path(world.suite)
    options = "\n[training.hypernetwork]\nsteps = 2\nhidden = 8\nsave_every = 1\n"
    path.write_text(path.read_text() + MORE + options)
    save_adapter(random_adapter(9), world.adapters / "owl.safetensors")
    random_image(99).save(world.folder / "owl_0.png")
    return world  # fmt: skip


def test_a_training_is_gone_on_with_done_once_and_refused_if_made_otherwise(
    larger: SimpleNamespace, tiny_denoiser: Denoiser, tmp_path: Path
):
    suite = load_suite(larger.suite)
    pairs, val_pairs = pairs_to_train_on(suite, None, skip_missing=False)
    assert (len(pairs), val_pairs) == (2, [])
    training = Training("a", tuple(pairs), SETTINGS)
    whole = Workshop(tmp_path / "whole", suite, "abc").train(training, tiny_denoiser, pairs)
    assert whole.val_loss is not None
    shop = Workshop(tmp_path / "out", suite, "abc")

    def kill(step: int, _loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shop.train(training, tiny_denoiser, pairs, progress=kill)
    assert shop.find(training) is None
    again = shop.train(training, tiny_denoiser, pairs)
    assert again.network.read_bytes() == whole.network.read_bytes()
    assert (again.loss, again.val_loss) == (whole.loss, whole.val_loss)
    assert shop.find(training) == again
    assert not list(shop.place(training).glob(".*"))
    longer = dataclasses.replace(training, settings=dataclasses.replace(SETTINGS, steps=3))
    with pytest.raises(RunError, match=r"trained otherwise \(steps was 2, now 3\)"):
        shop.find(longer)
    with pytest.raises(RunError, match="other base model"):
        Workshop(tmp_path / "out", suite, "xyz").find(training)
    shutil.copy(larger.adapters / "cat.safetensors", larger.adapters / "owl.safetensors")
    with pytest.raises(RunError, match="other LoRAs"):
        Workshop(tmp_path / "out", suite, "abc").find(training)


def test_scaling_from_nothing_and_again(
    larger: SimpleNamespace, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
):
    out = tmp_path / "out"
    words = ("study", "scaling", "--suite", larger.suite, "--sizes", "1,all", "--seeds", "0",
             "--images", 1, "--limit", 2, "--resamples", 50, "--out", out)  # fmt: skip
    code, _, said = cli(*words, "--dry-run")
    assert (code, out.exists()) == (0, False)
    assert "2: 2 networks (1, 2), 1 seeds, 2 steps" in said
    assert "images      8" in said  # two networks and two sums on two pairs
    assert "training not known yet" in said
    code, shown, _ = cli(*words)
    assert code == 0
    assert "Scores by number of train pairs" in shown
    files = sorted(out.rglob("*.safetensors")) + sorted(out.rglob("*.png"))
    assert len(files) == 2 + 8 + 1  # networks, images, the figure
    times = {path: path.stat().st_mtime_ns for path in files if path.parent != out}
    code, _, said = cli(*words)
    assert code == 0
    assert "of which 0 are left" in said
    assert {path: path.stat().st_mtime_ns for path in times} == times
    trained = json.loads((out / "trainings" / "1-seed0" / "training.json").read_text())
    assert trained["settings"]["steps"] == 2
    assert len(trained["pairs"]) == 1
    assert json.loads((out / "study.json").read_text())["trainings"] == ["1-seed0", "2-seed0"]
    code, _, said = cli(*words, "--steps", 3)
    assert code == 2
    assert "steps was 2, now 3" in said


def test_columns_from_nothing(
    larger: SimpleNamespace, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
):
    words = ("study", "columns", "--suite", larger.suite, "--variant", "whole-matrix", "--seeds",
             "0", "--images", 1, "--limit", 1, "--resamples", 50, "--out", tmp_path)  # fmt: skip
    code, shown, _ = cli(*words)
    assert code == 0
    assert "Against the paper's network (columns), image by image" in shown
    labels = {path.name for path in (tmp_path / "run-1x1" / "images").iterdir()}
    assert labels == {"direct_sum", "average", "columns-seed0", "whole-matrix-seed0"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scaling", "--sizes", "1,most"), "--sizes is '1,most'; give numbers"),
        (("scaling", "--order", "long"), "--order is 'long'; give wide or narrow"),
        (("scaling", "--sizes", "1,9"), "--sizes has 9, but there are 1 to 2 train pairs"),
        (("columns", "--variant", "rows"), "there is no variant 'rows'"),
        (("columns", "--judge", "oracle:x"), "oracle"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(
    larger: SimpleNamespace, cli: Callable[..., tuple[int, str, str]], tmp_path: Path,
    words: tuple[str, ...], said: str,
):  # fmt: skip
    out = tmp_path / "out"
    code, _, errors = cli("study", *words, "--suite", larger.suite, "--out", out)
    assert code == 2
    assert said in errors
    assert not out.exists()
