"""Running a suite: planned, resumed, the same bytes twice, and refused with a reason."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.formats import load_adapter, save_adapter
from baselines.registry import PluginError
from benchmark_data.load import load_suite
from mars2.job import Choices, RunError, plan
from mars2.pipelines import SdxlPipeline
from mars2.prepare import Plan, prepare
from mars2.run import run, unfinished
from mars2.store import RunStore

WEIGHTS_ONLY = Choices(methods=("direct_sum", "average"), device="cpu")
LABELS = ("base", "subject_only", "style_only", "direct_sum", "average")


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl: Path) -> SdxlPipeline:
    return SdxlPipeline.load(
        tiny_sdxl, dtype="float32", device="cpu", resolution=16, steps=2, guidance_scale=4.0
    )


def prepared(world, choices: Choices = WEIGHTS_ONLY) -> Plan:
    return prepare(world.suite, load_suite(world.suite), choices)


def files(folder: Path, pattern: str = "images/**/*.png") -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))
    }


class Counting:
    """A pipeline that counts what is drawn, and breaks when told to."""

    def __init__(self, pipeline: SdxlPipeline, *, break_at: int | None = None) -> None:
        self.pipeline = pipeline
        self.break_at = break_at
        self.calls = 0

    def generate(
        self, adapter: LoraAdapter | None, prompt: str, seeds: Sequence[int]
    ) -> list[Image.Image]:
        if self.calls == self.break_at:
            raise KeyboardInterrupt
        self.calls += 1
        return self.pipeline.generate(adapter, prompt, seeds)

    def denoiser(self):
        return self.pipeline.denoiser()


def test_a_run_gives_all_images_and_costs(world, pipeline: SdxlPipeline, tmp_path: Path) -> None:
    run_plan = prepared(world)
    store = RunStore.create(tmp_path / "run", run_plan.spec)
    costs = list(run(run_plan, store, pipeline))
    assert run_plan.spec.labels == LABELS
    assert len(costs) == 4 * 5
    assert all(sample.path.is_file() for sample in store.samples())
    assert len(store.samples()) == 4 * 5 * 2
    assert store.costs() == costs
    base, subject, style, both, _ = costs[:5]
    assert base.parameters == 0
    assert subject.parameters == load_adapter(world.adapters / "cat.safetensors").parameters()
    assert both.parameters == subject.parameters + style.parameters
    assert all(cost.merge_seconds >= 0 and cost.generation_seconds > 0 for cost in costs)
    assert all(cost.peak_bytes and cost.peak_bytes > 50e6 for cost in costs)
    assert {cost.memory for cost in costs} == {"resident set"}


def test_the_base_model_is_let_go_after_a_run(world, tiny_sdxl: Path, tmp_path: Path) -> None:
    plan = prepared(world)
    loaded = SdxlPipeline.of_spec(plan.spec)
    kept = weakref.ref(loaded)
    gc.collect()
    gc.disable()  # no collector but the end of its last use
    try:
        for _ in run(plan, RunStore.create(tmp_path / "run", plan.spec), loaded):
            pass
        del loaded
        assert kept() is None
    finally:
        gc.enable()


def test_out_of_memory_names_the_job_and_what_to_do(
    world, pipeline: SdxlPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipeline, "generate", full)
    plan = prepared(world)
    store = RunStore.create(tmp_path / "run", plan.spec)
    with pytest.raises(RunError, match=r"on cat_ink: out of memory: .*--batch-size 1"):
        list(run(plan, store, pipeline))
    assert files(tmp_path) == {}


def test_controls_show_what_their_names_say(world, pipeline: SdxlPipeline, tmp_path: Path) -> None:
    run_plan = prepared(world, replace(WEIGHTS_ONLY, limit=1))
    store = RunStore.create(tmp_path / "run", run_plan.spec)
    list(run(run_plan, store, pipeline))
    case = run_plan.spec.cases[0]
    for label, concept in (
        ("base", None),
        ("subject_only", case.subject),
        ("style_only", case.style),
    ):
        adapter = concept and load_adapter(world.adapters / f"{concept}.safetensors")
        [expected] = pipeline.generate(adapter or None, case.prompt, [0])
        shown = Image.open(store.image_path(label, case.id, 0))
        assert shown.tobytes() == expected.tobytes(), label


def test_the_same_command_twice_gives_the_same_bytes(
    world, pipeline: SdxlPipeline, tmp_path: Path
) -> None:
    choices = replace(WEIGHTS_ONLY, methods=("average", "ziplora:steps=2"), limit=1)
    for name in ("a", "b"):
        run_plan = prepared(world, choices)
        list(run(run_plan, RunStore.create(tmp_path / name, run_plan.spec), pipeline))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "a")) == 5 * 2


def test_fit_methods_leave_the_base_alone(world, pipeline: SdxlPipeline, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in pipeline.pipe.unet.state_dict().items()}
    choices = replace(WEIGHTS_ONLY, methods=("ziplora:steps=2",), limit=1)
    run_plan = prepared(world, choices)
    costs = list(run(run_plan, RunStore.create(tmp_path / "run", run_plan.spec), pipeline))
    assert costs[-1].method == "ziplora:steps=2"
    after = pipeline.pipe.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_policies_run_resume_and_give_the_same_bytes(
    world, pipeline: SdxlPipeline, tmp_path: Path
) -> None:
    methods = ("switch:tau=1", "k_lora", "composite")
    run_plan = prepared(world, replace(WEIGHTS_ONLY, methods=methods, limit=1, controls=False))
    whole = RunStore.create(tmp_path / "whole", run_plan.spec)
    costs = list(run(run_plan, whole, pipeline, save_adapters=True))
    store = RunStore.create(tmp_path / "run", run_plan.spec)
    with pytest.raises(KeyboardInterrupt):
        list(run(run_plan, store, Counting(pipeline, break_at=1)))
    rest = Counting(pipeline)
    list(run(run_plan, RunStore.create(tmp_path / "run", run_plan.spec), rest))
    assert rest.calls == 2
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert len(set(files(tmp_path / "run").values())) == 3 * 2
    stored = sum(
        load_adapter(world.adapters / f"{concept}.safetensors").parameters()
        for concept in ("cat", "ink")
    )
    assert {cost.parameters for cost in costs} == {stored}
    assert not (tmp_path / "whole" / "adapters").exists()
    assert run_plan.spec.methods[0].kind == "policy"


def test_an_interrupted_run_goes_on(world, pipeline: SdxlPipeline, tmp_path: Path) -> None:
    run_plan = prepared(world, replace(WEIGHTS_ONLY, limit=2))
    whole = RunStore.create(tmp_path / "whole", run_plan.spec)
    list(run(run_plan, whole, pipeline))
    store = RunStore.create(tmp_path / "run", run_plan.spec)
    first = Counting(pipeline, break_at=6)
    with pytest.raises(KeyboardInterrupt):
        list(run(run_plan, store, first))
    second = Counting(pipeline)
    list(run(run_plan, RunStore.create(tmp_path / "run", run_plan.spec), second))
    assert (first.calls, second.calls) == (6, 4)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert [cost.job for cost in store.costs()] == [job.id for job in plan(run_plan.spec)]
    assert len((tmp_path / "run/costs.jsonl").read_text().splitlines()) == 10


def test_a_lost_image_is_made_again_and_nothing_else(
    world, pipeline: SdxlPipeline, tmp_path: Path
) -> None:
    run_plan = prepared(world, replace(WEIGHTS_ONLY, limit=1))
    store = RunStore.create(tmp_path / "run", run_plan.spec)
    list(run(run_plan, store, pipeline))
    before = files(tmp_path / "run")
    store.image_path("average", run_plan.spec.cases[0].id, 1).unlink()
    jobs = plan(run_plan.spec)
    assert [job.method for job in unfinished(store, jobs)] == ["average"]
    list(run(run_plan, store, pipeline))
    assert files(tmp_path / "run") == before
    assert unfinished(store, jobs) == []


def test_a_method_is_added_to_a_run(world, pipeline: SdxlPipeline, tmp_path: Path) -> None:
    first = prepared(world, replace(WEIGHTS_ONLY, methods=("average",), limit=1))
    list(run(first, RunStore.create(tmp_path / "run", first.spec), pipeline))
    second = prepared(world, replace(WEIGHTS_ONLY, methods=("direct_sum",), limit=1))
    store = RunStore.create(tmp_path / "run", second.spec)
    counting = Counting(pipeline)
    list(run(second, store, counting))
    assert counting.calls == 1
    assert store.spec.labels == ("base", "subject_only", "style_only", "average", "direct_sum")
    assert all(sample.path.is_file() for sample in store.samples())


def test_merged_adapters_are_kept(world, pipeline: SdxlPipeline, tmp_path: Path) -> None:
    run_plan = prepared(world, replace(WEIGHTS_ONLY, methods=("average",), limit=1))
    store = RunStore.create(tmp_path / "run", run_plan.spec)
    list(run(run_plan, store, pipeline, save_adapters=True))
    case = run_plan.spec.cases[0]
    kept = load_adapter(store.adapter_path("average", case.id))
    [again] = pipeline.generate(kept, case.prompt, [0])
    shown = Image.open(store.image_path("average", case.id, 0))
    assert again.tobytes() == shown.tobytes()
    assert not store.adapter_path("base", case.id).exists()


def test_options_are_kept_as_passed_and_as_resolved(world, tmp_path: Path) -> None:
    spec = prepared(world, replace(WEIGHTS_ONLY, methods=("ziplora:steps=7",))).spec
    method = spec.methods[-1]
    assert dict(method.options) == {"steps": 7}
    assert method.resolved["steps"] == 7
    assert method.resolved.keys() > {"steps", "lr"}
    assert (method.label, method.kind) == ("ziplora:steps=7", "fit")
    RunStore.create(tmp_path / "run", spec)
    written = json.loads((tmp_path / "run/run.json").read_text())
    assert written["methods"][-1]["resolved"]["steps"] == 7
    assert written["environment"]["torch"] == torch.__version__


def test_a_suite_supplies_options(world) -> None:
    path = Path(world.suite)
    path.write_text(path.read_text() + "[method_options.ziplora]\nsteps = 3\nlr = 0.5\n")
    spec = prepared(world, replace(WEIGHTS_ONLY, methods=("ziplora:lr=0.1",))).spec
    assert (spec.methods[-1].resolved["steps"], spec.methods[-1].resolved["lr"]) == (3, 0.1)


def test_the_suite_gives_what_is_not_chosen(world, tiny_sdxl: Path) -> None:
    spec = prepared(world).spec
    assert (spec.model, spec.steps, spec.seeds, spec.dtype) == (
        str(tiny_sdxl),
        2,
        (0, 1),
        "float32",
    )
    assert [case.id for case in spec.cases] == ["cat_ink", "cat_oil", "dog_ink", "dog_oil"]
    assert spec.cases[1].prompt == "a cat in oil painting style"
    chosen = prepared(world, replace(WEIGHTS_ONLY, seeds=(5,), steps=9, limit=2)).spec
    assert (chosen.steps, chosen.seeds) == (9, (5,))
    assert [case.id for case in chosen.cases] == ["cat_ink", "dog_oil"]


def nan_adapter(adapter: LoraAdapter) -> LoraAdapter:
    layer, delta = next(iter(adapter.deltas.items()))
    up = delta.up.clone()
    up[0, 0] = float("nan")
    return LoraAdapter({**adapter.deltas, layer: LowRankDelta(up, delta.down)})


def test_a_missing_adapter_is_named_and_how_to_train_it(world) -> None:
    (world.adapters / "dog.safetensors").unlink()
    with pytest.raises(RunError, match=r"1 of 4 adapters are missing in .*: dog; train") as e:
        prepared(world)
    assert f"mars2 train lora --suite {world.suite} --concept dog" in str(e.value)


def test_all_missing_adapters_are_named_at_once(world) -> None:
    for path in world.adapters.iterdir():
        path.unlink()
    with pytest.raises(RunError, match="4 of 4 adapters are missing") as e:
        prepared(world)
    assert "and 1 more" in str(e.value)
    assert f"mars2 train lora --suite {world.suite} --all" in str(e.value)


def test_a_broken_method_fails_before_the_first_image(
    world, pipeline: SdxlPipeline, tmp_path: Path
) -> None:
    broken = tmp_path / "mine.py"
    broken.write_text(
        "from baselines import layer_method\n\n"
        "@layer_method('broken')\n"
        "def broken(deltas, *, weight: float = 1.0):\n"
        "    return deltas[0].up @ deltas[1].up\n"
    )
    choices = replace(WEIGHTS_ONLY, methods=("direct_sum", f"{broken}:broken"))
    run_plan = prepared(world, choices)
    store = RunStore.create(tmp_path / "run", run_plan.spec)
    with pytest.raises(PluginError, match="broken on cat_ink"):
        list(run(run_plan, store, pipeline))
    assert not list(store.folder.rglob("*.png"))
    broken.write_text(broken.read_text().replace("deltas[0].up @ deltas[1].up", "deltas[0]"))
    mended = prepared(world, choices)
    assert mended.spec.methods != run_plan.spec.methods
    again = RunStore.create(tmp_path / "run", mended.spec)  # what drew nothing may change
    assert again.spec.methods == mended.spec.methods
    list(run(mended, again, pipeline))
    broken.write_text(broken.read_text().replace("return deltas[0]", "return deltas[1]"))
    other = prepared(world, choices).spec
    with pytest.raises(
        RunError, match=r"the code of broken has changed .*: delete .*images/broken, and the same"
    ):
        RunStore.create(tmp_path / "run", other)
    label = next(method.label for method in other.methods if "broken" in method.label)
    shutil.rmtree(tmp_path / "run/images" / label)
    assert RunStore.create(tmp_path / "run", other).spec.methods == other.methods


def test_nan_weights_are_refused(world, random_adapter: Callable[..., LoraAdapter]) -> None:
    # not through save_adapter, which may refuse them itself
    from safetensors.torch import load_file, save_file

    path = world.adapters / "ink.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(AdapterError, match="ink"):
        prepared(world)


def test_adapters_of_different_layers_are_refused(
    world, pipeline: SdxlPipeline, tmp_path: Path, random_adapter: Callable[..., LoraAdapter]
) -> None:
    adapter = random_adapter(3)
    layers = dict(list(adapter.deltas.items())[:-1])
    save_adapter(LoraAdapter(layers), world.adapters / "ink.safetensors")
    run_plan = prepared(world, replace(WEIGHTS_ONLY, limit=1))
    with pytest.raises(AdapterError, match="direct_sum on cat_ink"):
        list(run(run_plan, RunStore.create(tmp_path / "run", run_plan.spec), pipeline))


@pytest.mark.parametrize(
    ("methods", "words"),
    [(("direct_sun",), "direct_sum"), (("ziplora:step=3",), "steps"), (("average:x=1",), "x")],
)
def test_unknown_methods_and_options_name_the_nearest(
    world, methods: tuple[str, ...], words: str
) -> None:
    with pytest.raises(PluginError, match=words):
        prepared(world, replace(WEIGHTS_ONLY, methods=methods))


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (replace(WEIGHTS_ONLY, split="tset"), "no split 'tset'; it has"),
        (replace(WEIGHTS_ONLY, device="tpu9"), "--device is 'tpu9'"),
        (replace(WEIGHTS_ONLY, methods=("average", "average")), "given twice: average"),
    ],
)
def test_wrong_choices_are_refused(world, choices: Choices, words: str) -> None:
    with pytest.raises(RunError, match=words):
        prepared(world, choices)


def test_a_black_image_names_the_job_and_is_not_kept(
    world, pipeline: SdxlPipeline, tmp_path: Path
) -> None:
    class Black(Counting):
        def generate(self, adapter, prompt, seeds):
            raise RunError("the image of seed 0 is black")

    run_plan = prepared(world, replace(WEIGHTS_ONLY, limit=1))
    store = RunStore.create(tmp_path / "run", run_plan.spec)
    with pytest.raises(RunError, match="base on cat_ink: the image of seed 0 is black"):
        list(run(run_plan, store, Black(pipeline)))
    assert files(tmp_path / "run") == {}
    assert store.costs() == []


def test_a_missing_reference_is_refused_where_it_is_needed(
    world, pipeline: SdxlPipeline, tmp_path: Path
) -> None:
    choices = replace(WEIGHTS_ONLY, methods=("ziplora:steps=1",), limit=1)
    run_plan = prepared(world, choices)
    (world.folder / "ink_0.png").unlink()
    with pytest.raises(ValueError, match="ink_0"):
        list(run(run_plan, RunStore.create(tmp_path / "run", run_plan.spec), pipeline))


@pytest.mark.slow
def test_a_killed_run_goes_on(world, tmp_path: Path, tiny_sdxl: Path) -> None:
    run_plan = prepared(world, replace(WEIGHTS_ONLY, methods=("average",), steps=8, limit=2))
    command = [sys.executable, "-m", "mars2", "run", "--suite", world.suite, "--no-score"]
    command += ["--method", "average", "--steps", "8", "--limit", "2", "--batch-size", "1"]
    command += ["--device", "cpu", "--out", str(tmp_path / "run")]
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env)
    costs = tmp_path / "run/costs.jsonl"
    deadline = time.monotonic() + 120
    while not (costs.exists() and costs.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = RunStore.open(tmp_path / "run").costs()
    assert 2 <= len(done) < 8
    pipeline = SdxlPipeline.of_spec(run_plan.spec)
    store = RunStore.create(tmp_path / "run", run_plan.spec)
    list(run(run_plan, store, pipeline))
    assert store.costs()[: len(done)] == done
    assert len(costs.read_text().splitlines()) == 8
    whole = RunStore.create(tmp_path / "whole", run_plan.spec)
    list(run(run_plan, whole, pipeline))
    assert files(tmp_path / "run") == files(tmp_path / "whole")
