"""Descriptions of runs: identity of jobs, what forbids to go on, the spread of a limit."""

import dataclasses
import subprocess
import sys

import pytest

from mars2.job import MethodSpec, PlannedCase, RunError, RunSpec, method_label, plan, spread


def make_spec(**changes: object) -> RunSpec:
    spec = RunSpec(
        suite="world",
        suite_revision="abc",
        split="test",
        cases=(
            PlannedCase("cat_ink", "cat", "ink", "a cat in ink style"),
            PlannedCase("dog_oil", "dog", "oil", "a dog in oil style"),
        ),
        methods=(MethodSpec("base"), MethodSpec("sum", {"w": 0.5}, {"w": 0.5, "v": 1})),
        model="models/x",
        model_revision="123",
        dtype="float32",
        device="cpu",
        adapters="loras",
        adapter_digests={"cat": "c", "dog": "d", "ink": "i", "oil": "o"},
        seeds=(0, 1),
        steps=4,
        guidance_scale=5.0,
        negative_prompt="",
        resolution=16,
        limit=2,
        environment={"torch": "2"},
    )
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]  # fields by name


def test_spec_survives_json() -> None:
    import json

    spec = make_spec()
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("change", "words"),
    [({"schema": 99}, "schema 99"), ({"nonsense": 1}, "unknown: \\['nonsense'\\]")],
)
def test_foreign_json_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(RunError, match=words):
        RunSpec.from_json({**make_spec().to_json(), **change})


def test_json_without_a_field_is_refused() -> None:
    data = make_spec().to_json()
    del data["steps"]
    with pytest.raises(RunError, match="missing: \\['steps'\\]"):
        RunSpec.from_json(data)


def test_a_job_is_a_case_and_a_method_case_by_case() -> None:
    jobs = plan(make_spec())
    assert [(job.case_id, job.method) for job in jobs] == [
        ("cat_ink", "base"),
        ("cat_ink", "sum:w=0.5"),
        ("dog_oil", "base"),
        ("dog_oil", "sum:w=0.5"),
    ]
    assert (jobs[1].subject_adapter, jobs[1].style_adapter) == ("c", "i")
    assert len({job.id for job in jobs}) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"model_revision": "124"},
        {"dtype": "float16"},
        {"steps": 5},
        {"guidance_scale": 5.1},
        {"negative_prompt": "blurry"},
        {"resolution": 32},
        {"seeds": (0, 2)},
        {"suite_revision": "abd"},
        {"adapter_digests": {"cat": "c2", "dog": "d", "ink": "i", "oil": "o"}},
        {"methods": (MethodSpec("base", source="changed"),)},
        {"methods": (MethodSpec("base", resolved={"v": 2}),)},
    ],
)
def test_what_changes_images_changes_the_id(change: dict[str, object]) -> None:
    assert plan(make_spec(**change))[0].id != plan(make_spec())[0].id


@pytest.mark.parametrize(
    "change",
    [
        {"model": "elsewhere/x"},
        {"adapters": "elsewhere"},
        {"suite": "./world.toml"},
        {"environment": {}},
    ],
)
def test_where_files_lie_changes_nothing(change: dict[str, object]) -> None:
    assert [job.id for job in plan(make_spec(**change))] == [job.id for job in plan(make_spec())]
    assert make_spec().differences(make_spec(**change)) == []


def test_another_gpu_goes_on_with_a_run_and_is_the_one_that_draws() -> None:
    first, second, cpu = (make_spec(device=name) for name in ("cuda:0", "cuda:1", "cpu"))
    assert first.differences(second) == []
    assert first.grown_to(second).device == "cuda:1"
    assert [job.id for job in plan(first)] == [job.id for job in plan(second)]
    assert first.differences(cpu) == ["device was cuda:0, now cpu"]
    assert plan(first)[0].id != plan(cpu)[0].id


def test_a_file_option_counts_by_its_content() -> None:
    def job_id(path: str, content: str) -> str:
        method = MethodSpec("hyper", {}, {"checkpoint": path}, files={"checkpoint": content})
        return plan(make_spec(methods=(method,)))[0].id

    assert job_id("/a/net", "1") == job_id("/b/net", "1")
    assert job_id("/a/net", "1") != job_id("/a/net", "2")


def test_differences_of_adapters_name_a_few_and_count_them() -> None:
    digests = {f"concept{number}": "a" * 64 for number in range(30)}
    old = make_spec(adapter_digests={**make_spec().adapter_digests, **digests})
    one = make_spec(adapter_digests={**old.adapter_digests, "concept7": "b" * 64})
    assert old.differences(one) == ["adapters of 1 concept differ: concept7"]
    all_ = make_spec(adapter_digests={**old.adapter_digests, **dict.fromkeys(digests, "b" * 64)})
    assert old.differences(all_) == [
        "adapters of 30 concepts differ: concept0, concept1, concept2 and 27 more"
    ]
    # concepts of other pairs are told as pairs
    assert old.differences(make_spec()) == make_spec().differences(old) == []


def test_differences_of_a_methods_file_are_short() -> None:
    old, new = (
        make_spec(methods=(MethodSpec("hyper", {}, {"net": "x"}, files={"net": digest * 64}),))
        for digest in "ab"
    )
    assert old.differences(new) == [f"hyper net was {'a' * 12}, now {'b' * 12}"]


def test_differences_of_pairs_name_those_that_are_gone() -> None:
    spec = make_spec()
    other = PlannedCase("fox_ink", "fox", "ink", "a fox in ink style")
    digests = {**spec.adapter_digests, "fox": spec.adapter_digests["cat"]}
    moved = make_spec(cases=(spec.cases[0], other), adapter_digests=digests)
    (line,) = spec.differences(moved)
    assert line == f"pairs were 2, now 2 (without {spec.cases[1].id}, and new: fox_ink)"


def test_fewer_pairs_and_seeds_are_of_those_that_are_there() -> None:
    whole = make_spec(seeds=(0, 1, 3))
    few = make_spec(cases=whole.cases[:1], seeds=(1,), limit=1)
    assert whole.differences(few) == []
    assert whole.grown_to(few) == whole
    assert whole.resizing(few) == [
        "it keeps all of its 2 pairs, though fewer are asked for (1)",
        "it keeps all of its 3 seeds, though fewer are asked for (1)",
    ]
    others = make_spec(seeds=(1, 2))
    assert whole.differences(others) == ["seeds was 0-1,3, now 1-2"]
    more_and_less = make_spec(cases=whole.cases[:1], seeds=(0, 1, 3))
    assert more_and_less.grown_to(make_spec(seeds=(1,))) == whole
    assert more_and_less.resizing(whole) == ["pairs grow from 1 to 2"]
    assert few.resizing(whole)[1].startswith("seeds grow from 1 to 0-1,3: pairs that are")


def test_differences_name_field_and_both_values() -> None:
    assert make_spec().differences(make_spec(steps=8)) == ["steps was 4, now 8"]
    changed = make_spec(methods=(MethodSpec("base", source="new"),))
    assert make_spec().differences(changed) == []
    assert make_spec().recoded(changed) == ["base"]
    assert make_spec().recoded(make_spec()) == []


def test_methods_may_be_added() -> None:
    more = make_spec(methods=(MethodSpec("base"), MethodSpec("mean")))
    assert make_spec().differences(more) == []
    assert make_spec().grown_to(more).labels == ("base", "sum:w=0.5", "mean")
    assert make_spec().resizing(more) == ["it keeps sum:w=0.5, too, though not asked for"]


def test_pairs_may_be_added_for_all_methods() -> None:
    whole = make_spec()
    trial = make_spec(
        cases=whole.cases[1:],
        limit=1,
        adapter_digests={name: whole.adapter_digests[name] for name in ("dog", "oil")},
    )
    assert trial.differences(whole) == []
    assert trial.grown_to(whole) == whole  # in the suite's order, with all digests
    kept = {job.id for job in plan(trial)}
    assert kept < {job.id for job in plan(whole)}
    fewer = make_spec(methods=whole.methods[:1])
    assert trial.differences(fewer) == [
        "there are more pairs, which sum:w=0.5 would lack (add --method sum:w=0.5)"
    ]
    no_controls = make_spec(methods=whole.methods[1:])
    assert trial.differences(no_controls) == [
        "there are more pairs, which base would lack (leave out --no-controls)"
    ]
    one_more = make_spec(methods=(MethodSpec("mean"),))
    assert trial.differences(one_more) == [
        "there are more pairs, which base, sum:w=0.5 would lack (add --method sum:w=0.5 and leave "
        "out --no-controls)"
    ]
    with_another = make_spec(methods=(*whole.methods, MethodSpec("mean")))
    assert trial.differences(with_another) == []
    assert trial.grown_to(with_another) == with_another


def test_seeds_may_be_added_for_all_methods() -> None:
    few_seeds = make_spec(seeds=(3,))
    more = make_spec(seeds=(0, 3))
    assert few_seeds.differences(more) == []
    assert few_seeds.grown_to(more) == more
    assert not {job.id for job in plan(few_seeds)} & {job.id for job in plan(more)}
    fewer = make_spec(methods=more.methods[:1], seeds=(0, 3))
    assert few_seeds.differences(fewer) == [
        "there are more seeds, which sum:w=0.5 would lack (add --method sum:w=0.5)"
    ]
    smaller = make_spec(cases=more.cases[:1], seeds=(3,), limit=1)
    assert smaller.differences(more) == []
    assert smaller.grown_to(more) == more  # both at once


def test_methods_seeds_and_cases_are_there_once() -> None:
    with pytest.raises(RunError, match="methods given twice: base"):
        make_spec(methods=(MethodSpec("base"), MethodSpec("base")))
    with pytest.raises(RunError, match="seeds given twice: 3"):
        make_spec(seeds=(3, 1, 3))
    with pytest.raises(RunError, match="a run needs methods"):
        make_spec(methods=())


def test_labels_are_folder_names() -> None:
    assert method_label("x", {"file": "/a/b", "n": 3}) == "x:file=_a_b,n=3"


GRID = [(subject, style) for subject in "abcd" for style in "wxyz"]


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_a_small_limit_repeats_no_subject_and_no_style(limit: int) -> None:
    chosen = [GRID[index] for index in spread(GRID, limit)]
    assert len(chosen) == limit
    assert len({subject for subject, _ in chosen}) == limit
    assert len({style for _, style in chosen}) == limit


def test_a_larger_limit_stays_balanced() -> None:
    chosen = [GRID[index] for index in spread(GRID, 8)]
    for position in (0, 1):
        assert {[pair[position] for pair in chosen].count(x) for x in dict(GRID)} <= {0, 2}


def test_limits_out_of_range() -> None:
    assert spread(GRID, 99) == list(range(16))
    assert spread(GRID, None) == list(range(16))
    with pytest.raises(RunError, match="limit is 0"):
        spread(GRID, 0)


def test_describing_a_run_imports_no_torch() -> None:
    code = "import sys, mars2, mars2.job, mars2.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
