"""Who gets which images, in which order and on which side."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mars2.job import RunError
from mars2.rating.plan import (
    assign,
    default_methods,
    mixed,
    plan_rating,
)
from mars2.rating.questions import ANSWERS, MOST_REFERENCES, Design, Task
from mars2.references import References
from mars2.store import RunStore

METHODS = ("direct_sum", "average", "lorarar")
CLASSES = {"striped_cat": "cat", "spotted_teapot": "teapot"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def design(mode: str = "yes_no", **other: object) -> Design:
    return Design(**{"mode": mode, "methods": METHODS, "check_every": 0, **other})


@pytest.mark.parametrize(
    ("groups", "raters", "per_item"),
    [
        ([0] * 10, 4, 3),
        ([0] * 7 + [1] * 7 + [2] * 7, 5, 2),
        ([k for k in range(15) for _ in range(20)], 12, 3),
        ([0, 1, 2], 3, 3),
        ([k % 6 for k in range(100)], 50, 1),
    ],
)
def test_each_item_has_so_many_raters_and_shares_are_even(groups, raters, per_item):
    for seed in range(5):
        dealt = assign(groups, raters, per_item, rng(seed))
        assert all(len(set(own)) == per_item for own in dealt)
        total = Counter(rater for own in dealt for rater in own)
        shares = [total[rater] for rater in range(raters)]
        assert max(shares) - min(shares) <= 1
        for group in set(groups):
            here = Counter(
                rater for own, g in zip(dealt, groups, strict=True) if g == group for rater in own
            )
            shares = [here[rater] for rater in range(raters)]
            assert max(shares) - min(shares) <= 1


def test_raters_meet_in_all_combinations():
    dealt = assign([0] * 300, 6, 3, rng())
    assert len(set(dealt)) == 20  # 6 choose 3: nobody always rates with the same two


def test_no_case_twice_in_a_row_where_there_is_another():
    tasks = [
        Task("yes_no", (), (), (), "", (), case=case, seed=seed)
        for case, count in (("a", 6), ("b", 3), ("c", 2))
        for seed in range(count)
    ]
    for seed in range(20):
        ordered = mixed(tasks, rng(seed))
        key = lambda task: (task.case, task.seed)  # noqa: E731
        assert sorted(map(key, ordered)) == sorted(map(key, tasks))
        assert all(a.case != b.case for a, b in itertools.pairwise(ordered))
    assert [task.case for task in mixed(tasks[:3], rng())] == ["a", "a", "a"]


def test_single_images_are_rated_by_as_many_and_methods_equally_often(
    run: RunStore, references: References
):
    plan = plan_rating(run, references, design(raters=4, per_item=3))
    seen = Counter((task.methods[0], task.case, task.seed) for own in plan.tasks for task in own)
    assert len(seen) == 3 * 4 * 3  # methods, pairs, seeds
    assert set(seen.values()) == {3}
    for own in plan.tasks:
        assert len({(t.methods, t.case, t.seed) for t in own}) == len(own) == 27
        assert set(Counter(task.methods[0] for task in own).values()) == {9}
        # whole pairs and seeds: a severe rater is so to all methods
        assert set(Counter((task.case, task.seed) for task in own).values()) == {3}


def test_two_methods_stand_left_equally_often(run: RunStore, references: References):
    plan = plan_rating(run, references, design("pairs", raters=4, per_item=2))
    seen: Counter[object] = Counter()
    left: Counter[object] = Counter()
    for rater, own in enumerate(plan.tasks):
        for task in own:
            a, b = sorted(task.methods)
            seen[a, b, task.case, task.seed] += 1
            sign = 1 if task.methods == (a, b) else -1
            left[rater, a, b] += sign
            left[a, b] += sign
            left["item", a, b, task.case, task.seed] += sign
            assert {path.parts[-3] for path in task.images} == {a, b}
            assert {path.parts[-2:] for path in task.images} == {(task.case, f"{task.seed}.png")}
    assert len(seen) == 3 * 4 * 3
    assert set(seen.values()) == {2}
    assert max(abs(excess) for key, excess in left.items() if isinstance(key[0], int)) <= 1
    assert max(abs(excess) for key, excess in left.items() if len(key) == 2) <= 1


def test_the_plan_depends_on_the_seed_only(run: RunStore, references: References):
    one, same, other = (
        plan_rating(run, references, design("both", raters=3, per_item=2, seed=seed)).tasks
        for seed in (0, 0, 1)
    )
    assert one == same != other


def test_both_modes_come_one_after_the_other(run: RunStore, references: References):
    (own,) = plan_rating(run, references, design("both", raters=1, per_item=1)).tasks
    modes = [task.mode for task in own]
    assert modes == sorted(modes, key=("yes_no", "pairs").index)
    assert set(modes) == {"yes_no", "pairs"}


def test_a_sample_is_the_same_for_all_methods_and_spread(run: RunStore, references: References):
    (own,) = plan_rating(run, references, design(raters=1, per_item=1, sample=6)).tasks
    by_method = {
        method: sorted((task.case, task.seed) for task in own if task.methods == (method,))
        for method in METHODS
    }
    assert len(set(map(tuple, by_method.values()))) == 1
    assert sorted(Counter(case for case, _ in by_method["lorarar"]).values()) == [1, 1, 2, 2]


def test_checks_have_the_truth_that_they_say(run: RunStore, references: References):
    plan = plan_rating(
        run,
        references,
        design("both", aspects=("subject", "style", "both"), raters=3, per_item=3, check_every=4),
        CLASSES,
    )
    kinds = Counter()
    owner = {path: name for name, files in references.files.items() for path in files}
    for own in plan.tasks:
        for mode in ANSWERS:
            part = [task for task in own if task.mode == mode]
            checks = [task for task in part if task.truth]
            assert len(checks) == -(-(len(part) - len(checks)) // 4)
            for task in checks:
                ((aspect, truth),) = task.truth.items()
                kinds[mode, aspect, truth] += 1
                assert task.methods == ()
                shown = {"subject": owner[task.subject[0]], "style": owner[task.style[0]]}
                right = [owner[image] in shown.values() for image in task.images]
                assert right == {
                    "yes": [True], "no": [False], "left": [True, False], "right": [False, True]
                }[truth]  # fmt: skip
                assert not set(task.images) & {*task.subject, *task.style}
                if aspect != "both":
                    roles = {owner[image] in CLASSES for image in task.images}
                    assert roles == {aspect == "subject"}
    assert len(kinds) == 4 + 6
    assert max(kinds.values()) - min(kinds.values()) <= 12


def test_examples_show_a_yes_and_a_no_of_each(run: RunStore, references: References):
    plan = plan_rating(run, references, design(raters=1, per_item=1), CLASSES)
    said = [(one.aspect, one.answer) for one in plan.examples]
    assert said == list(itertools.product(("subject", "style"), ("yes", "no")))


def test_subjects_of_one_class_are_no_known_no(run: RunStore, references: References):
    alike = dict.fromkeys(CLASSES, "cat")
    plan = plan_rating(run, references, design(raters=1, per_item=1, check_every=5), alike)
    truths = {item for own in plan.tasks for task in own for item in task.truth.items()}
    assert truths == {("subject", "yes"), ("style", "yes"), ("style", "no")}


def test_few_references_are_shown(run: RunStore, references: References):
    many = References({k: [*v] * 5 for k, v in references.files.items()}, references.phrases)
    (own,) = plan_rating(run, many, design(raters=1, per_item=1)).tasks
    assert {len(files) for task in own for files in (task.subject, task.style)} == {MOST_REFERENCES}


def test_controls_are_left_out_unless_asked_for(run: RunStore):
    assert default_methods(run) == METHODS
    assert "base" in run.spec.labels


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"mode": "yesno"}, "--mode is 'yesno'; give yes_no, pairs, both"),
        ({"mode": "pairs", "aspects": ("looks",)}, "--aspects is 'looks'"),
        ({"per_item": 4}, "--per-item is 4 of --raters 3"),
        ({"mode": "pairs", "methods": ("average",)}, "--method is average; mode pairs needs 2"),
        ({"methods": ("average", "average")}, "each once"),
        ({"sample": 0}, "--sample is 0; it must be at least 1"),
        ({"check_every": -1}, "--check-every is -1"),
        ({"methods": ("nothing",)}, "has no method nothing; it has base, direct_sum"),
        ({"raters": 50, "per_item": 1, "sample": 4}, "50 raters are too many for 4"),
    ],
)
def test_what_cannot_be_is_refused(run: RunStore, references: References, wanted, said: str):
    with pytest.raises(RunError, match=said):
        plan_rating(run, references, design(**wanted))


def test_what_a_method_has_no_image_of_is_left_out_of_all(
    run: RunStore, references: References, tmp_path: Path
):
    moved = RunStore(tmp_path, run.spec)
    for sample in run.samples():
        if (sample.method, sample.seed) != ("average", 2):
            path = moved.image_path(sample.method, sample.case, sample.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(sample.path)
    plan = plan_rating(moved, references, design(raters=1, per_item=1))
    assert plan.left_out == 4
    assert {task.seed for own in plan.tasks for task in own} == {0, 1}
    with pytest.raises(RunError, match="has no pair and seed of which all of"):
        plan_rating(
            RunStore(tmp_path / "none", run.spec), references, replace(design(), per_item=1)
        )


def test_more_images_than_there_are_cannot_be_had(run: RunStore, references: References) -> None:
    there = len({(sample.case, sample.seed) for sample in run.samples()})
    everything = plan_rating(run, references, design(raters=1, per_item=1, sample=there))
    assert sum(map(len, everything.tasks)) == there * len(METHODS)
    with pytest.raises(RunError, match=f"--sample is {there + 1}, but .* has {there} images"):
        plan_rating(run, references, design(raters=1, per_item=1, sample=there + 1))
