"""What `make bench` compares is the same."""

import pytest
import torch
from PIL import Image

from benchmarks.judge import WORLD, bench_miniature, compare, subject_questions
from mars2.judges import Verdict
from mars2.judges.llava_checkpoint import load_checkpoint
from mars2.judges.llava_onevision import LlavaOnevisionJudge


def test_the_judge_agrees_with_one_generate_a_question():
    line = bench_miniature(3)
    assert "1 reference x 3 images" in line
    assert "the same" in line


def test_a_judge_that_differs_is_not_timed(monkeypatch):
    monkeypatch.setattr(
        LlavaOnevisionJudge, "ask", lambda judge, questions: [Verdict(None, None, None, "?")]
    )
    checkpoint = load_checkpoint(WORLD / "weights" / "critic", torch.float32)
    images = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    with pytest.raises(ValueError, match="are inf apart"):
        compare("critic", checkpoint, subject_questions(images), tokens=4)
