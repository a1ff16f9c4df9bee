"""The run folder: atomic, append-only, and whole again after a kill."""

import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from mars2.files import JsonLines, read_image, write_image
from mars2.job import MethodSpec, PlannedCase, RunError, RunSpec
from mars2.store import Cost, FoundImage, ImagesSpec, Record, RunStore


@pytest.fixture
def spec() -> RunSpec:
    return RunSpec(
        suite="world",
        suite_revision="abc",
        split="test",
        cases=(PlannedCase("cat_ink", "cat", "ink", "a cat in ink style"),),
        methods=(MethodSpec("base"), MethodSpec("sum", {"w": 2}, {"w": 2})),
        model="m",
        model_revision="1",
        dtype="float32",
        device="cpu",
        adapters="loras",
        adapter_digests={"cat": "c", "ink": "i"},
        seeds=(3, 1),
        steps=4,
        guidance_scale=5.0,
        negative_prompt="",
        resolution=16,
    )


def record(seed: int = 0, value: float | None = 1.0, **changes: object) -> Record:
    made = Record("sum", "cat_ink", seed, "mars2", value, "sha", "judge", {"answers": [True]})
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # fields by name


def cost(job: str, case: str, seconds: float = 1.0) -> Cost:
    return Cost(job, "sum", case, seconds, 2.0, 2, None, 10, "resident set", 5, 1)


def test_a_run_opens_as_it_was_created(tmp_path: Path, spec: RunSpec) -> None:
    RunStore.create(tmp_path / "run", spec)
    assert RunStore.open(tmp_path / "run").spec == spec


def test_samples_come_by_method_case_and_seed(tmp_path: Path, spec: RunSpec) -> None:
    samples = RunStore.create(tmp_path / "run", spec).samples()
    assert [(s.method, s.seed) for s in samples] == [
        ("base", 3),
        ("base", 1),
        ("sum:w=2", 3),
        ("sum:w=2", 1),
    ]
    assert samples[2].path == tmp_path / "run/images/sum:w=2/cat_ink/3.png"
    assert (samples[0].subject, samples[0].style) == ("cat", "ink")
    assert samples[0].prompt == "a cat in ink style"


def test_the_same_run_goes_on_and_another_does_not(tmp_path: Path, spec: RunSpec) -> None:
    RunStore.create(tmp_path / "run", spec)
    before = (tmp_path / "run/run.json").read_bytes()
    RunStore.create(tmp_path / "run", dataclasses.replace(spec, environment={"created": "later"}))
    assert (tmp_path / "run/run.json").read_bytes() == before
    with pytest.raises(RunError, match=r"other settings: steps was 4, now 5\. Choose another"):
        RunStore.create(tmp_path / "run", dataclasses.replace(spec, steps=5))


def test_changed_code_has_one_remedy(tmp_path: Path, spec: RunSpec) -> None:
    store = RunStore.create(tmp_path / "run", spec)
    changed = dataclasses.replace(spec, methods=(MethodSpec("base", source="new"),))
    RunStore.create(tmp_path / "run", changed)  # nothing is drawn yet
    changed = dataclasses.replace(spec, methods=(MethodSpec("base", source="newer"),))
    drawn = store.image_path("base", "cat_ink", 3)
    drawn.parent.mkdir(parents=True)
    drawn.touch()
    place = tmp_path / "run/images/base"
    with pytest.raises(RunError, match=f"^the code of base has changed .*: delete {place}, and"):
        RunStore.create(tmp_path / "run", changed)
    shutil.rmtree(place)
    assert RunStore.create(tmp_path / "run", changed).spec.methods[0].source == "newer"


def test_a_few_of_many_differences_are_told(tmp_path: Path, spec: RunSpec) -> None:
    RunStore.create(tmp_path / "run", spec)
    other = dataclasses.replace(spec, seeds=(0,), steps=5, dtype="float16", resolution=32)
    other = dataclasses.replace(other, guidance_scale=1.5)
    with pytest.raises(RunError, match=r"now float16; seeds was .*; steps .* and 2 more\. Choose"):
        RunStore.create(tmp_path / "run", other)


def test_methods_are_added_to_a_run(tmp_path: Path, spec: RunSpec) -> None:
    RunStore.create(tmp_path / "run", spec)
    more = dataclasses.replace(spec, methods=(MethodSpec("mean"),))
    RunStore.create(tmp_path / "run", more)
    opened = RunStore.open(tmp_path / "run").spec
    assert opened.labels == ("base", "sum:w=2", "mean")


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path, spec: RunSpec) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="is no run folder"):
        RunStore.create(tmp_path, spec)
    with pytest.raises(RunError, match=r"holds no run\.json"):
        RunStore.open(tmp_path)


def test_checking_only_writes_nothing(tmp_path: Path, spec: RunSpec) -> None:
    RunStore.create(tmp_path / "run", spec, write=False)
    assert not (tmp_path / "run").exists()


def test_a_broken_run_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": 1,')
    with pytest.raises(RunError, match=r"run\.json cannot be read"):
        RunStore.open(tmp_path)


def test_records_come_back(tmp_path: Path, spec: RunSpec) -> None:
    store = RunStore.create(tmp_path / "run", spec)
    written = [record(3), record(1, None, detail={"raw": "maybe… ü"})]
    store.append(written[:1])
    store.append(written[1:])
    assert RunStore.open(tmp_path / "run").records() == written


def test_a_score_given_again_replaces_the_first(tmp_path: Path, spec: RunSpec) -> None:
    store = RunStore.create(tmp_path / "run", spec)
    store.append([record(3), record(1)])
    store.append([record(3, 0.0, image="new"), record(3, judge="other")])
    assert store.records() == [record(1), record(3, 0.0, image="new"), record(3, judge="other")]
    assert len((tmp_path / "run/records.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_is_finite(tmp_path: Path, spec: RunSpec, value: float) -> None:
    store = RunStore.create(tmp_path / "run", spec)
    with pytest.raises(RunError, match="a score is finite or None"):
        store.append([record(value=value)])
    assert store.records() == []


def test_pandas_and_datasets_open_the_records(tmp_path: Path, spec: RunSpec) -> None:
    import datasets

    store = RunStore.create(tmp_path / "run", spec)
    store.append([record(3, None, detail={}), record(1, 1, detail={"other": {"x": 1.5}})])
    path = tmp_path / "run/records.jsonl"
    frame = pd.read_json(path, lines=True)
    assert frame.value.isna().tolist() == [True, False]
    assert [json.loads(text) for text in frame.detail] == [{}, {"other": {"x": 1.5}}]
    loaded = datasets.Dataset.from_json(str(path), cache_dir=str(tmp_path / "cache"))
    assert loaded["value"][:] == [None, 1.0]
    assert loaded["seed"][:] == [3, 1]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_torn_by_a_kill_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "lines.jsonl"
    JsonLines(path).append([{"a": 1}, {"a": 2, "text": "x" * 50}])
    path.write_bytes(path.read_bytes()[:-cut])
    lines = JsonLines(path)
    assert lines.read() == [{"a": 1}]
    lines.append([{"a": 3}])
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(RunError, match=r"lines\.jsonl line 2 is not JSON"):
        JsonLines(path).read()


def test_costs_come_back_the_last_of_each_pair(tmp_path: Path, spec: RunSpec) -> None:
    store = RunStore.create(tmp_path / "run", spec)
    assert store.costs() == []
    again = cost("c", "cat_ink", 9.0)  # another job: with more seeds
    for one in (cost("a", "cat_ink"), cost("b", "dog_ink"), again):
        store.append_cost(one)
    assert store.costs() == [cost("b", "dog_ink"), again]


def test_images_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep/0.png"
    write_image(path, Image.new("RGB", (4, 4), "red"))

    def broken_save(image: Image.Image, target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken_save)
    with pytest.raises(OSError, match="disk full"):
        write_image(path, Image.new("RGB", (4, 4), "blue"))
    assert read_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(RunError, match=r"cut\.png is no image that can be read to its end"):
        read_image(path)


def test_images_are_turned_by_exif_and_made_rgb(tmp_path: Path) -> None:
    image = Image.new("L", (4, 2), 9)
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    read = read_image(tmp_path / "turned.jpg")
    assert (read.size, read.mode) == ((2, 4), "RGB")


def test_a_folder_of_images_knows_them_by_relative_paths(tmp_path: Path) -> None:
    out = tmp_path / "mine/mars2-scores"
    images = (FoundImage("mine", "cat_ink", 0, "../cat_ink/0.png", "cat", "ink"),)
    RunStore.create(out, ImagesSpec("mine", images, "world", "abc", "test"))
    (tmp_path / "mine").rename(tmp_path / "moved")
    store = RunStore.open(tmp_path / "moved")
    assert store.folder == tmp_path / "moved/mars2-scores"
    assert [s.path for s in store.samples()] == [tmp_path / "moved/cat_ink/0.png"]
    assert store.spec.labels == ("mine",)


def test_records_of_earlier_versions_are_read() -> None:
    line = record().to_json()
    del line["inputs"], line["failed"]
    assert Record.from_json(line) == record()
