import weakref
from types import SimpleNamespace

import pytest
import torch

from mars2.judges import JudgeError, load_judge, room
from mars2.judges.room import (
    Need,
    free_in_group,
    free_memory,
    halving,
    memory_need,
    require_room,
)

GIB = 2**30


def test_need_by_hand():
    text = SimpleNamespace(
        num_hidden_layers=3,
        num_key_value_heads=2,
        num_attention_heads=4,
        hidden_size=20,
        intermediate_size=50,
    )
    need = memory_need(SimpleNamespace(text_config=text), 1000, torch.float16)
    keys_and_values = 2 * 3 * 2 * (20 // 4)  # both, layers, heads, width of a head
    widest = 3 * 50 + 6 * 20
    assert need.weights == 2000
    features = 40 * 3750 * 20
    assert need.working == 2 * (11250 * keys_and_values + 7500 * widest + features)
    assert need.total == need.weights + need.working


def test_need_of_the_published_judge():
    text = SimpleNamespace(
        num_hidden_layers=28,
        num_key_value_heads=4,
        num_attention_heads=28,
        hidden_size=3584,
        intermediate_size=18944,
    )
    need = memory_need(text, 8_030_000_000, torch.float16)
    assert need.weights == 16_060_000_000
    assert 1 * GIB < need.working < 4 * GIB


def test_free_memory_of_this_machine_is_some():
    free = free_memory("cpu")
    assert free is not None
    assert free > 2**20


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    assert free_in_group(tmp_path) is None
    for name, content in (
        ("memory.max", str(4 * GIB)),
        ("memory.current", str(3 * GIB)),
        ("memory.stat", f"anon 5\ninactive_file {GIB // 2}\nactive_file 9\n"),
    ):
        (tmp_path / name).write_text(f"{content}\n")
    assert free_in_group(tmp_path) == GIB + GIB // 2
    monkeypatch.setattr(room, "free_in_group", lambda: 7)
    assert free_memory("cpu") == 7
    (tmp_path / "memory.max").write_text("max\n")
    assert free_in_group(tmp_path) is None


def test_free_memory_of_a_gpu_is_torchs(monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: asked.append(device) or (5 * GIB, 9 * GIB)
    )
    assert free_memory("cuda:1") == 5 * GIB
    assert asked == ["cuda:1"]


@pytest.mark.parametrize(
    ("device", "free", "said"),
    [
        ("cpu", {"cpu": 18 * GIB}, None),
        ("cpu", {"cpu": 17 * GIB}, "cpu has 17.0 GiB free"),
        ("cuda", {"cpu": 17 * GIB, "cuda": 24 * GIB}, None),
        ("cuda", {"cpu": 99 * GIB, "cuda": 16 * GIB}, "cuda has 16.0 GiB free"),
        ("cuda", {"cpu": 9 * GIB, "cuda": 24 * GIB}, "cpu has 9.0 GiB free"),
        ("cpu", {"cpu": None}, None),
    ],
)
def test_says_so_before_loading(monkeypatch, device, free, said):
    monkeypatch.setattr(room, "free_memory", lambda where: free[where])
    need = Need(weights=15 * GIB, working=3 * GIB)
    if said is None:
        require_room(need, name="critic", dtype="float16", device=device)
        return
    with pytest.raises(JudgeError, match=r"takes 15\.0 GiB and about 3\.0 GiB .* --dtype") as error:
        require_room(need, name="critic", dtype="float16", device=device)
    assert said in str(error.value)


def test_a_judge_that_does_not_fit_is_not_loaded(monkeypatch, tiny_llava):
    monkeypatch.setattr(room, "free_memory", lambda where: 1000)
    monkeypatch.setattr("mars2.judges.llava_onevision.load_checkpoint", None)
    with pytest.raises(JudgeError, match=r"critic@\w+ in float32 takes 0.0 GiB .* server"):
        load_judge(f"llava_onevision:{tiny_llava}", device="cpu")


def most(limit, asked):
    def function(items):
        asked.append(len(items))
        if len(items) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * item for item in items]

    return function


def test_batches_are_halved_until_they_fit():
    asked, failed = [], []
    got = halving(most(2, asked), list(range(7)), failed=failed.append)
    assert got == [0, 2, 4, 6, 8, 10, 12]
    assert asked == [7, 3, 1, 2, 4, 2, 2]
    assert failed == [7, 3, 4]


def test_out_of_memory_at_one_is_a_clear_error():
    with pytest.raises(JudgeError, match="out of memory at a single question"):
        halving(most(0, []), [1, 2])


def test_one_is_tried_again_when_something_was_dropped():
    dropped = []

    def function(items):
        if not dropped:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return items

    assert halving(function, [5], failed=dropped.append) == [5]
    assert dropped == [1]
    with pytest.raises(JudgeError, match="out of memory at a single question"):
        halving(most(0, []), [1], failed=dropped.append)
    assert dropped == [1, 1]


def test_what_earlier_models_left_on_a_gpu_is_given_back_before_it_is_asked(monkeypatch):
    done = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: done.append("empty_cache"))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: done.append("asked") or (7, 9))
    cycle = []
    cycle.append(cycle)
    gone = weakref.ref(_Kept(cycle))
    cycle.append(gone())
    del cycle
    assert free_memory("cuda:0") == 7
    assert done == ["empty_cache", "asked"]
    assert gone() is None


class _Kept(list):
    """Something that a cycle can hold."""


def test_other_errors_pass_through():
    def broken(items):
        raise RuntimeError("not memory")

    with pytest.raises(RuntimeError, match="not memory"):
        halving(broken, [1, 2])


def test_features_of_a_batch_and_of_its_references_are_kept_together():
    # what `mars2 score` asks at once, of five references of the subject and three of the style;
    # 3699 positions: the largest image's, docs/judges.md
    assert room.KEPT_FEATURES >= (32 + 5 + 3) * 3699
