"""Scoring any folder: which pair an image shows, what is left to score, and broken input."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from benchmark_data.load import load_suite
from mars2.cli.measuring import open_images
from mars2.files import JsonLines
from mars2.image_folder import match_folder, read_manifest, single_pair, uneven
from mars2.job import RunError
from mars2.metrics import Evaluated, Score
from mars2.references import find_references
from mars2.score import score
from mars2.store import ImagesSpec, RunStore

CASES = ("cat_ink", "cat_oil", "dog_ink", "dog_oil")


class Brightness:
    """Mean value of the image, and the number of references of its subject."""

    id = "brightness@1"
    names = ("brightness", "references")
    higher_is_better = True

    def __init__(self, *, break_after: int | None = None) -> None:
        self.break_after = break_after
        self.batches: list[list[str]] = []

    def score(self, items: Sequence[Evaluated], *, progress: object = None) -> list[list[Score]]:
        if len(self.batches) == self.break_after:
            raise KeyboardInterrupt
        self.batches.append([item.sample.path.name for item in items])
        return [
            [
                Score("brightness", float(item.image.convert("L").getpixel((0, 0)))),
                Score(
                    "references", float(len(item.subject_references)), {"why": item.style_phrase}
                ),
            ]
            for item in items
        ]


def paint(path: Path, grey: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of each pair of the suite, made by some other tool."""
    made = tmp_path / "mine"
    for number, case in enumerate(CASES):
        for seed in range(2):
            paint(made / case / f"{seed}.png", 10 * number + seed)
    return made


def matched(world, folder: Path, **options: object) -> ImagesSpec:
    out = folder / "mars2-scores"
    return match_folder(folder, world.suite, load_suite(world.suite), out=out, **options)


def store_of(world, folder: Path, **options: object) -> RunStore:
    return RunStore.create(folder / "mars2-scores", matched(world, folder, **options))


def opened(world, folder: Path, *, manifest: Path | None = None, partial: bool = False) -> RunStore:
    """The results' store, as `mars2 score` opens it."""
    return open_images(
        folder,
        suite=world.suite,
        split=None,
        manifest=manifest,
        pair=(None, None, None),
        out=None,
        partial=partial,
    )


def score_all(store: RunStore, metric: Brightness, **options: object) -> None:
    for _ in score(store, metric, find_references(store), **options):
        pass


def test_folders_are_matched_by_their_exact_names(world, folder: Path) -> None:
    spec = matched(world, folder)
    assert [(i.method, i.case, i.seed) for i in spec.images] == [
        ("mine", case, seed) for case in CASES for seed in (0, 1)
    ]
    assert (spec.split, spec.suite_revision) == ("test", load_suite(world.suite).revision)
    image = spec.images[2]
    assert (image.subject, image.style) == ("cat", "oil")
    assert image.prompt == "a cat in oil painting style"


def test_folders_of_methods(world, folder: Path) -> None:
    both = folder.parent / "both"
    shutil.copytree(folder, both / "one")
    shutil.copytree(folder, both / "two")
    spec = matched(world, both)
    assert spec.labels == ("one", "two")
    assert len(spec.images) == 16


def test_seeds_are_numeric_names_or_the_order(world, folder: Path) -> None:
    (folder / "cat_ink/1.png").rename(folder / "cat_ink/10.png")
    (folder / "cat_oil/1.png").rename(folder / "cat_oil/b.png")
    seeds = [i.seed for i in matched(world, folder).images if i.subject == "cat"]
    assert seeds == [0, 10, 0, 1]


def test_other_image_formats(world, folder: Path) -> None:
    for case in CASES:
        Image.open(folder / case / "0.png").save(folder / case / "0.webp")
        Image.open(folder / case / "1.png").save(folder / case / "1.JPG")
        (folder / case / "0.png").unlink()
        (folder / case / "1.png").unlink()
    assert {Path(i.file).suffix for i in matched(world, folder).images} == {".webp", ".JPG"}


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: rename(f, "cat_ink", "cats_ink"), "cats_ink matches no pair.*mean cat_ink"),
        (lambda f: rename(f, "cat_ink", "cat_ink_v2"), "cat_ink_v2 matches no pair"),
        (lambda f: rename(f, "cat_ink", "ink"), "ink matches no pair.*Expected.*dog_ink"),
        (lambda f: rename(f, "cat_ink", "CAT_INK"), "CAT_INK matches no pair"),
        (lambda f: rename(f, "cat_ink", "fox_flat"), r"several splits \(test, train\)"),
        (lambda f: paint(f / "loose.png"), r"loose\.png lies in no SUBJECT_STYLE folder"),
        (lambda f: paint(f / "one/cat_ink/0.png"), "ambiguous: one/ looks like a method's"),
        (lambda f: shutil.rmtree(f / "dog_oil"), r"missing: mine/dog_oil \(0 of 2\)"),
        (lambda f: (f / "dog_oil/1.png").unlink(), r"missing: mine/dog_oil \(1 of 2\)"),
        (lambda f: [shutil.rmtree(f / case) for case in CASES], "has no images"),
        (lambda f: [p.unlink() for p in (f / "cat_ink").iterdir()], "cat_ink has no images"),
    ],
)
def test_folders_that_cannot_be_matched(world, folder: Path, change, words: str) -> None:
    change(folder)
    with pytest.raises(RunError, match=words):
        matched(world, folder)


def test_partial_folders_are_scored_if_asked(world, folder: Path) -> None:
    shutil.rmtree(folder / "dog_oil")
    assert len(matched(world, folder, partial=True).images) == 6


def test_one_image_too_many_is_told_of_its_own_folder(world, folder: Path) -> None:
    shutil.copy(folder / "dog_oil/1.png", folder / "dog_oil/2.png")
    with pytest.raises(RunError, match=r"^there are more .*pairs: mine/dog_oil \(3 of 2\); mend"):
        matched(world, folder)


def test_what_a_partial_folder_lacks_is_told(
    world, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "dog_oil/1.png").unlink()
    suite = load_suite(world.suite)
    found = matched(world, folder, partial=True)
    assert (
        uneven(found.images, [case.id for case in suite.cases["test"]])
        == "images are missing: mine/dog_oil (1 of 2)"
    )
    opened(world, folder, partial=True)
    assert "images are missing: mine/dog_oil (1 of 2)" in capsys.readouterr().err


def test_expected_folders_are_those_of_the_test_split(world, folder: Path) -> None:
    rename(folder, "cat_ink", "nothing")
    with pytest.raises(RunError, match="Expected folders named cat_ink"):
        matched(world, folder)


def test_unknown_split(world, folder: Path) -> None:
    with pytest.raises(RunError, match="no split 'tets'; it has"):
        matched(world, folder, split="tets")


def test_results_are_no_images_of_the_folder(world, folder: Path) -> None:
    first = matched(world, folder)
    paint(folder / "mars2-scores/grid.png")
    assert matched(world, folder) == first


def manifest(world, folder: Path, text: str, *, partial: bool = True) -> ImagesSpec:
    path = folder / "list.csv"
    path.write_text(text)
    out = folder / "mars2-scores"
    suite = load_suite(world.suite)
    return read_manifest(path, folder, world.suite, suite, out=out, partial=partial)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cat_inc", "cat_ink"),
        ("Cat-Ink", "cat_ink"),
        ("oil_dog", "dog_oil"),
        ("CAT OIL", "cat_oil"),
    ],
)
def test_a_misspelt_pair_is_told_which_it_means(world, folder: Path, name: str, meant: str) -> None:
    next(path for path in sorted(folder.rglob(meant)) if path.is_dir()).rename(folder / name)
    with pytest.raises(RunError, match=f"matches no pair of the suite. Did you mean {meant}?"):
        matched(world, folder)


def test_a_manifest_says_which_pair(world, folder: Path) -> None:
    spec = manifest(
        world,
        folder,
        "image,subject,style,method,seed,prompt\n"
        "cat_ink/1.png,cat,ink,b,5,\n"
        "cat_ink/0.png,cat,ink,,,my words\n"
        "dog_oil/0.png,fox,oil,,,\n",
    )
    found = [(i.method, i.case, i.seed, i.prompt) for i in spec.images]
    assert found == [
        ("b", "cat_ink", 5, "a cat in ink style"),
        ("mine", "cat_ink", 0, "my words"),
        ("mine", "fox_oil", 0, None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "image, subject, style\ncat_ink/0.png, cat, ink\n",
        "image;subject ;style\ncat_ink/0.png ;cat ; ink\n",
        "image\tsubject\tstyle\ncat_ink/0.png\tcat\tink\n",
    ],
)
def test_a_manifest_as_spreadsheets_write_it(world, folder: Path, text: str) -> None:
    plain = "image,subject,style\ncat_ink/0.png,cat,ink\n"
    assert manifest(world, folder, text) == manifest(world, folder, plain)


def test_a_manifest_may_spell_concepts_as_tables_print_them(folder: Path) -> None:
    path, out = folder / "list.csv", folder / "out"
    suite = load_suite("miniworld")
    path.write_text("image,subject,style\ncat_ink/0.png,cat 2,benday\n")
    (image,) = read_manifest(path, folder, "miniworld", suite, out=out).images
    assert (image.case, image.subject) == ("cat_2_benday", "cat_2")
    path.write_text("image,subject,style\ncat_ink/0.png,cat 3,benday\n")
    with pytest.raises(RunError, match=r"line 2: the suite has no subject 'cat 3'; did you mean"):
        read_manifest(path, folder, "miniworld", suite, out=out)


def test_a_manifest_that_contradicts_its_folders_is_believed_and_told(
    world, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "list.csv"
    path.write_text("image,subject,style\ncat_ink/0.png,cat,ink\ndog_oil/0.png,cat,oil\n")
    store = opened(world, folder, manifest=path)
    assert [sample.case for sample in store.samples()] == ["cat_ink", "cat_oil"]
    error = capsys.readouterr().err
    assert error.endswith("say something else: dog_oil/0.png is listed as cat_oil\n")


def test_scores_of_images_that_are_listed_no_more_wait_until_they_are_again(
    world, folder: Path
) -> None:
    out = folder / "mars2-scores"
    lines = ["cat_ink/0.png,cat,ink\n", "cat_ink/1.png,cat,ink\n", "dog_oil/0.png,dog,oil\n"]
    whole = RunStore.create(out, manifest(world, folder, "image,subject,style\n" + "".join(lines)))
    score_all(whole, Brightness())
    paint(folder / "cat_ink/1.png", 7)
    score_all(whole, Brightness())  # the same image anew: a second line
    fewer = manifest(world, folder, "image,subject,style\n" + "".join(lines[:2]))
    store = RunStore.create(out, fewer)
    kept = [record for record in store.records() if record.case == "cat_ink"]
    content = (out / "records.jsonl").read_bytes()
    store.tidy()
    assert len(kept) == 4
    lines = (out / "records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record.to_json() for record in kept]
    assert len(content.splitlines()) == 8
    unchanged = (out / "records.jsonl").stat().st_mtime_ns
    store.tidy()
    assert (out / "records.jsonl").stat().st_mtime_ns == unchanged
    RunStore.create(out, whole.spec)
    again = Brightness()
    score_all(whole, again)
    assert again.batches == []  # all have their scores
    whole.tidy()
    assert len((out / "records.jsonl").read_text().splitlines()) == 6
    assert (out / "unlisted.jsonl").read_text() == ""


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_no_score_is_lost_if_setting_aside_is_killed(
    world, folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    out, replace = folder / "mars2-scores", JsonLines.replace
    text = "image,subject,style\ncat_ink/0.png,cat,ink\n"
    whole = manifest(world, folder, f"{text}cat_ink/1.png,cat,ink\ndog_oil/0.png,dog,oil\n")
    store = RunStore.create(out, whole)
    score_all(store, Brightness())
    made = []

    def killed(file: JsonLines, rows: object) -> None:
        if len(made) == writes:
            raise KeyboardInterrupt
        made.append(replace(file, rows))

    one, other = text, "image,subject,style\ndog_oil/0.png,dog,oil\n"
    for listed in (one, other):  # the first goes and the other comes back, in one go
        RunStore.create(out, manifest(world, folder, listed)).tidy()
    swapped = RunStore.create(out, manifest(world, folder, one))
    monkeypatch.setattr(JsonLines, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        swapped.tidy()
    assert len(swapped.records()) == 6


def test_a_manifest_lists_as_many_images_of_each_pair_or_is_partial(world, folder: Path) -> None:
    header, rows = "image,subject,style\n", ["cat_ink/0.png,cat,ink", "dog_oil/0.png,dog,oil"]
    whole = header + "\n".join(rows)
    assert len(manifest(world, folder, whole, partial=False).images) == 2  # not all of the suite
    more = f"{whole}\ncat_ink/1.png,cat,ink\n"
    with pytest.raises(RunError, match=r"missing: mine/dog_oil \(1 of 2\); mend that, or give"):
        manifest(world, folder, more, partial=False)
    assert len(manifest(world, folder, more).images) == 3


def test_a_manifest_without_seeds_numbers_images_as_their_folders_do(world, folder: Path) -> None:
    (folder / "cat_ink/0.png").rename(folder / "cat_ink/7.png")
    listed = "cat_ink/7.png,cat,ink\ncat_ink/1.png,cat,ink\n"
    spec = manifest(world, folder, f"image,subject,style\n{listed}")
    by_folder = matched(world, folder)
    of_pair = [image for image in by_folder.images if image.case == "cat_ink"]
    assert [(i.seed, i.file) for i in spec.images] == [(i.seed, i.file) for i in of_pair]
    assert [image.seed for image in of_pair] == [1, 7]
    (folder / "cat_ink/7.png").rename(folder / "cat_ink/last.png")
    listed = "cat_ink/last.png,cat,ink\ncat_ink/1.png,cat,ink\n"
    spec = manifest(world, folder, f"image,subject,style\n{listed}")
    assert [Path(image.file).stem for image in spec.images] == ["last", "1"]  # in the list's order


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "image,subject,style,seed\ncat_ink/0.png,cat,ink,3\ncat_ink/1.png,cat,ink,\n",
            "line 3: it has no seed, which other images of mine, cat, ink have",
        ),
        ("image,subject\na,b\n", r"columns \['image', 'subject'\]; it needs image, subject, style"),
        ("image,subject,style,sead\na,b,c,1\n", "sead"),
        ("image,subject,style\n", "lists no images"),
        ("image,subject,style\nno.png,cat,ink\n", r"line 2: there is no image .*no\.png"),
        ("image,subject,style\ncat_ink/0.png,cta,ink\n", "line 2: .*no subject 'cta'.*mean cat"),
        ("image,subject,style\ncat_ink/0.png,cat,\n", "line 2: it needs"),
        ("image,subject,style\ncat_ink/0.png,cat,ink,x\n", "line 2: it needs"),
        ("image,subject,style,seed\ncat_ink/0.png,cat,ink,x\n", "line 2: seed is 'x'"),
        (
            "image,subject,style,seed\ncat_ink/0.png,cat,ink,1\ncat_ink/1.png,cat,ink,1\n",
            "line 3: seed 1 of mine, cat_ink is given twice",
        ),
        (
            "image,subject,style\ncat_ink/0.png,cat,ink\ncat_ink/0.png,cat,oil\n",
            "line 3: image .* is given twice",
        ),
    ],
)
def test_wrong_manifests(world, folder: Path, text: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        manifest(world, folder, text)


def test_one_pair_by_its_references(world, folder: Path, tmp_path: Path) -> None:
    paint(tmp_path / "toy/a.png")
    paint(tmp_path / "toy/b.png")
    paint(tmp_path / "crayon2/a.png")
    out = tmp_path / "out"
    spec = single_pair(
        folder / "cat_ink", tmp_path / "toy", tmp_path / "crayon2", "wax crayon", out=out
    )
    store = RunStore.create(out, spec)
    score_all(store, Brightness())
    records = RunStore.open(out).records()
    assert [(r.case, r.seed, r.metric, r.value) for r in records] == [
        ("toy_crayon2", 0, "brightness", 0.0),
        ("toy_crayon2", 0, "references", 2.0),
        ("toy_crayon2", 1, "brightness", 1.0),
        ("toy_crayon2", 1, "references", 2.0),
    ]
    assert records[1].detail == {"why": "wax crayon"}


def test_one_pair_needs_images_and_a_name(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty has no images"):
        single_pair(folder / "cat_ink", tmp_path / "empty", folder / "cat_oil", "oil", out=tmp_path)
    with pytest.raises(RunError, match="--style-name is empty"):
        single_pair(folder / "cat_ink", folder / "cat_ink", folder / "cat_oil", " ", out=tmp_path)


def test_all_is_scored_once_in_batches(world, folder: Path) -> None:
    store = store_of(world, folder)
    metric = Brightness()
    score_all(store, metric, batch_size=3)
    assert [len(batch) for batch in metric.batches] == [3, 3, 2]
    values = {(r.case, r.seed): r.value for r in store.records() if r.metric == "brightness"}
    assert values == {(c, s): 10.0 * n + s for n, c in enumerate(CASES) for s in (0, 1)}
    record = store.records()[0]
    image = folder / "cat_ink/0.png"
    assert record.image == hashlib.sha256(image.read_bytes()).hexdigest()
    assert record.judge == "brightness@1"
    again = Brightness()
    score_all(store, again)
    assert again.batches == []


def test_an_interrupted_scoring_goes_on(world, folder: Path) -> None:
    whole = store_of(world, folder)
    score_all(whole, Brightness(), batch_size=3)
    expected = (folder / "mars2-scores/records.jsonl").read_bytes()
    shutil.rmtree(folder / "mars2-scores")
    store = store_of(world, folder)
    with pytest.raises(KeyboardInterrupt):
        score_all(store, Brightness(break_after=1), batch_size=3)
    path = folder / "mars2-scores/records.jsonl"
    assert path.read_bytes().count(b"\n") == 6
    path.write_bytes(path.read_bytes()[:-10])  # the last line torn: its image is scored again
    metric = Brightness()
    score_all(store, metric, batch_size=3)
    assert [len(batch) for batch in metric.batches] == [3, 3]
    assert len(store.records()) == 16
    lines = path.read_bytes().splitlines()
    assert {*lines} == {*expected.splitlines()}


def test_what_failed_is_scored_again(world, folder: Path) -> None:
    class Patchy(Brightness):
        """Cannot be asked about the second image of a pair."""

        def score(
            self, items: Sequence[Evaluated], *, progress: object = None
        ) -> list[list[Score]]:
            scores = super().score(items)
            for item, row in zip(items, scores, strict=True):
                if item.sample.seed == 1:
                    row[0] = Score("brightness", None, failed="the server is gone")
            return scores

    whole = store_of(world, folder)
    score_all(whole, Brightness())
    expected = whole.records()
    shutil.rmtree(folder / "mars2-scores")
    store = store_of(world, folder)
    steps = list(score(store, Patchy(), find_references(store), batch_size=4))
    assert [len(step.failed) for step in steps] == [2, 4]
    assert set(steps[-1].failed) == {"the server is gone"}
    assert sum(record.value is None for record in store.records()) == 4
    again = Brightness()
    score_all(store, again)
    assert again.batches == [["1.png"] * 4]
    assert sorted(map(repr, store.records())) == sorted(map(repr, expected))


def test_what_changed_is_scored_again(world, folder: Path) -> None:
    store = store_of(world, folder)
    score_all(store, Brightness())
    paint(folder / "dog_ink/1.png", 99)
    metric = Brightness()
    score_all(store, metric)
    assert metric.batches == [["1.png"]]
    values = {(r.case, r.seed): r.value for r in store.records() if r.metric == "brightness"}
    assert values["dog_ink", 1] == 99.0
    assert len(values) == 8


def test_other_references_are_scored_again(world, folder: Path, tmp_path: Path) -> None:
    for name in ("toy", "crayon"):
        paint(tmp_path / name / "a.png")

    def scored(style_name: str) -> int:
        spec = single_pair(
            folder / "cat_ink",
            tmp_path / "toy",
            tmp_path / "crayon",
            style_name,
            out=tmp_path / "o",
        )
        metric = Brightness()
        score_all(RunStore.create(tmp_path / "o", spec), metric)
        return sum(map(len, metric.batches))

    assert [scored("wax"), scored("wax"), scored("oil")] == [2, 0, 2]
    paint(tmp_path / "crayon/a.png", 50)
    assert scored("oil") == 2


def test_a_truncated_image_stops_before_anything_is_judged(world, folder: Path) -> None:
    path = folder / "dog_oil/1.png"
    path.write_bytes(path.read_bytes()[:-30])
    store = store_of(world, folder)
    metric = Brightness()
    with pytest.raises(RunError, match=r"dog_oil/1\.png is no image that can be read"):
        score_all(store, metric)
    assert metric.batches == []


def test_all_broken_images_are_told_at_once(world, folder: Path) -> None:
    for name in ("cat_ink/0.png", "dog_oil/1.png"):
        (folder / name).write_bytes(b"no image")
    words = r"2 images are broken: .*cat_ink/0\.png.*; .*dog_oil/1\.png"
    with pytest.raises(RunError, match=words):
        score_all(store_of(world, folder), Brightness())


def test_missing_images_fail_unless_partial(world, folder: Path) -> None:
    store = store_of(world, folder)
    (folder / "dog_oil/1.png").unlink()
    with pytest.raises(RunError, match=r"images are missing: .*dog_oil/1\.png"):
        score_all(store, Brightness())
    score_all(store, Brightness(), partial=True)
    assert len(store.records()) == 14


def test_a_changed_suite_is_refused(world, folder: Path) -> None:
    store = store_of(world, folder)
    path = Path(world.suite)
    path.write_text(path.read_text().replace('phrase = "cat"', 'phrase = "kitten"'))
    with pytest.raises(RunError, match="made with revision"):
        find_references(store)


KILLED = """
import sys, time
from pathlib import Path
from mars2.metrics import Score
from mars2.references import find_references
from mars2.score import score
from mars2.store import RunStore

class Slow:
    id, names, higher_is_better = "slow@1", ("slow",), True
    def score(self, items, *, progress=None):
        time.sleep(float(sys.argv[2]))
        return [[Score("slow", 1.0, {"text": "x" * 20000})] for item in items]

store = RunStore.open(Path(sys.argv[1]))
for step in score(store, Slow(), find_references(store), batch_size=1):
    pass
"""


@pytest.mark.slow
def test_a_killed_scoring_goes_on(world, folder: Path) -> None:
    store = store_of(world, folder)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(folder)]
    process = subprocess.Popen([*command, "0.2"], env=env)
    path = folder / "mars2-scores/records.jsonl"
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = store.records()
    assert 2 <= len(done) < 8
    subprocess.run([*command, "0"], env=env, check=True)
    assert store.records()[: len(done)] == done
    assert len(path.read_bytes().splitlines()) == len(store.records()) == 8
