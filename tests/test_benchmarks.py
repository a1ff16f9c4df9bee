"""What `make bench` compares is the same."""

import re

import pytest
import torch
from PIL import Image

from benchmarks.judge import WORLD, bench_miniature, bench_random, compare, subject_questions
from benchmarks.lorarar import bench_lorarar, bench_scaling
from benchmarks.peft_merges import bench_peft
from benchmarks.sdxl import sdxl_layers
from benchmarks.ziplora import bench_ziplora
from mars2.judges import Verdict
from mars2.judges.llava_checkpoint import load_checkpoint
from mars2.judges.llava_onevision import LlavaOnevisionJudge


def test_the_judge_agrees_with_one_generate_a_question():
    line = bench_miniature(3)
    assert "1 reference x 3 images" in line
    assert "the same" in line


def test_they_agree_on_a_random_model_and_long_questions():
    line = bench_random(3, width=32)
    assert re.search(r", 1[5-7]\d\d positions a question", line)
    assert re.search(r"the same [12] yes and [12] no", line)


def test_a_judge_that_differs_is_not_timed(monkeypatch):
    monkeypatch.setattr(
        LlavaOnevisionJudge, "ask", lambda judge, questions: [Verdict(None, None, None, "?")]
    )
    checkpoint = load_checkpoint(WORLD / "weights" / "critic", torch.float32)
    images = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    with pytest.raises(ValueError, match="are inf apart"):
        compare("critic", checkpoint, subject_questions(images), tokens=4)


def test_sdxls_shapes_are_the_papers():
    layers = sdxl_layers()
    assert len(layers) == 560
    adapter_size = sum(64 * (d_out + d_in) for d_out, d_in in layers.values())
    assert round(2 * adapter_size / 1e6) == 186  # MB in fp16, as published for rank 64
    assert round(sum(d_out * d_in for d_out, d_in in layers.values()) / 1e6) == 955


def test_merges_and_steps_agree_with_the_plain_way():
    """Each raises if the numbers differ; sizes are small, so that speeds mean nothing."""
    said = bench_lorarar(every=35, dense_every=2, repeats=1)
    assert "lorarar, 16 layers of SDXL" in said
    assert re.search(r"files \d+ MB, output \d+ MB", said)
    assert bench_scaling(14, 1).count("with a line") == 3
    said = bench_ziplora((32, 64, 64), side=8, depths=(1, 1, 1))
    assert "loss the same to 1e-04" in said
    assert "CPU-h a pair" in said


def test_pefts_merge_of_factors_is_ours():
    said = bench_peft(rank=8, largest=640)
    assert "ties_factors, 60 layers" in said
    assert "the same to 1e-5" in said
