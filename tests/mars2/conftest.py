"""A suite of two subjects and two styles on the small random pipeline, as files in a folder."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from baselines.adapter import LoraAdapter
from baselines.formats import save_adapter
from mars2.cli import main

SUITE = """
name = "tiny"
title = "Two subjects, two styles"
case_prompt = "a {{subject}} in {{style}} style"
adapters = "adapters"

[models]
base = "{base}"
judge = "scripted:./judge.json"
clip = "ViT-B-32:openai"
dino = "none"

[generation]
resolution = 16
steps = 2
guidance_scale = 4.0
num_seeds = 2

[subjects.cat]
split = "test"
phrase = "cat"
prompt = "a sks cat"
references = ["cat_0.png", "cat_1.png"]
[subjects.dog]
split = "test"
phrase = "dog"
prompt = "a sks dog"
references = ["dog_0.png"]
[subjects.fox]
split = "train"
phrase = "fox"
prompt = "a sks fox"
references = ["fox_0.png"]

[styles.ink]
split = "test"
phrase = "ink"
prompt = "a house in ink style"
references = ["ink_0.png"]
[styles.oil]
split = "test"
phrase = "oil painting"
prompt = "a house in oil painting style"
references = ["oil_0.png"]
[styles.flat]
split = "train"
phrase = "flat"
prompt = "a house in flat style"
references = ["flat_0.png"]
"""
CONCEPTS = ("cat", "dog", "fox", "ink", "oil", "flat")


@dataclass(frozen=True)
class World:
    """Where the suite's files lie."""

    folder: Path

    @property
    def suite(self) -> str:
        return str(self.folder / "tiny.toml")

    @property
    def adapters(self) -> Path:
        return self.folder / "adapters"


@pytest.fixture
def world(
    tmp_path: Path,
    tiny_sdxl: Path,
    random_adapter: Callable[..., LoraAdapter],
    random_image: Callable[..., Image.Image],
) -> World:
    made = World(tmp_path / "world")
    made.adapters.mkdir(parents=True)
    Path(made.suite).write_text(SUITE.format(base=tiny_sdxl))
    for number, concept in enumerate(CONCEPTS):
        save_adapter(random_adapter(number), made.adapters / f"{concept}.safetensors")
        for index in range(2):
            random_image(10 * number + index).save(made.folder / f"{concept}_{index}.png")
    (made.folder / "judge.json").write_text(json.dumps({"subject": "Yes", "style": "No."}))
    return made


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``cli("run", "--suite", ...)`` -> exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mars2", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capsys.readouterr()
        return int(exit_.value.code or 0), said.out, said.err

    return call
