"""How many threads compute: one where all models are small, unless the user says."""

from pathlib import Path

import pytest
import torch

from mars2.cli import threads as rule


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(rule, "SMALL_MODEL", 10)
    return asked


def model(folder: Path, size: int) -> str:
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights.safetensors").write_bytes(b"x" * size)
    return str(folder)


def test_small_models_get_one_thread(threads: list[int], tmp_path: Path) -> None:
    rule.fit_threads(model(tmp_path / "a", 10), f"kind:{model(tmp_path / 'b', 9)}", None, "")
    assert threads == [1]


def test_a_large_model_a_remote_one_or_none_changes_nothing(
    threads: list[int], tmp_path: Path
) -> None:
    small = model(tmp_path / "small", 3)
    rule.fit_threads(small, model(tmp_path / "large", 11))
    rule.fit_threads(small, "somebody/model-7b")
    rule.fit_threads(small, "kind:somebody/model-7b")
    rule.fit_threads()
    assert threads == []


def test_the_users_own_number_stands(
    threads: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    rule.fit_threads(model(tmp_path / "a", 1))
    assert threads == []
