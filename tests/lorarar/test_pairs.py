"""Training pairs: the train split only, sorted, with training prompts and nothing of the test."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from baselines.adapter import AdapterError
from lorarar.pairs import training_pairs


def concept(folder: Path, name: str, role: str, split: str, *, files: int = 2) -> SimpleNamespace:
    """A concept with an adapter and reference images, listed in reverse order."""
    (folder / f"{name}.safetensors").touch()
    paths = [folder / f"{name}{number}.png" for number in reversed(range(files))]
    for path in paths:
        path.touch()
    references = [SimpleNamespace(path=path) for path in paths] + [SimpleNamespace(path=None)]
    return SimpleNamespace(
        id=name,
        role=role,
        split=split,
        prompts=tuple(f"training prompt of {name} {n}" for n in range(files, -1, -1)),
        validation_prompt="TEST CAPTION",
        references=tuple(references),
    )


@pytest.fixture
def suite(tmp_path: Path) -> SimpleNamespace:
    subjects = [("z", "train"), ("a", "train"), ("t", "test"), ("v", "val")]
    styles = [("oil", "train"), ("ink", "train"), ("neon", "test"), ("wax", "val")]
    return SimpleNamespace(
        name="small",
        subjects={n: concept(tmp_path, n, "subject", split) for n, split in subjects},
        styles={n: concept(tmp_path, n, "style", split) for n, split in styles},
    )


def test_crosses_the_train_split_in_order(suite: SimpleNamespace, tmp_path: Path):
    pairs = training_pairs(suite, tmp_path)
    assert [(pair.subject.id, pair.style.id) for pair in pairs] == [
        ("a", "ink"),
        ("a", "oil"),
        ("z", "ink"),
        ("z", "oil"),
    ]
    first = pairs[0].subject
    assert first.adapter == tmp_path / "a.safetensors"
    assert first.images == (tmp_path / "a0.png", tmp_path / "a1.png")
    assert first.prompts == ("training prompt of a 1", "training prompt of a 2")
    assert "TEST CAPTION" not in repr(pairs)


def test_other_splits(suite: SimpleNamespace, tmp_path: Path):
    pairs = training_pairs(suite, tmp_path, split="val")
    assert [(pair.subject.id, pair.style.id) for pair in pairs] == [("v", "wax")]
    with pytest.raises(ValueError, match="test split"):
        training_pairs(suite, tmp_path, split="test")


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (["a.safetensors"], r"subject a has no adapter .*a\.safetensors: train"),
        (["ink0.png", "ink1.png"], "style ink has no reference image"),
        (["a.safetensors", "oil.safetensors"], r"subject a has no adapter .* \(and 1 more\)"),
    ],
)
def test_what_is_missing_is_refused_or_left_out(
    suite: SimpleNamespace, tmp_path: Path, removed: list[str], message: str
):
    for name in removed:
        (tmp_path / name).unlink()
    with pytest.raises(AdapterError, match=message):
        training_pairs(suite, tmp_path)
    rest = training_pairs(suite, tmp_path, skip_missing=True)
    gone = {name.split(".")[0].rstrip("01") for name in removed}
    assert {pair.subject.id for pair in rest} == {"a", "z"} - gone
    assert {pair.style.id for pair in rest} == {"oil", "ink"} - gone


def test_one_missing_image_is_no_matter(suite: SimpleNamespace, tmp_path: Path):
    (tmp_path / "a0.png").unlink()
    assert training_pairs(suite, tmp_path)[0].subject.images == (tmp_path / "a1.png",)


def test_no_pair_is_an_error(suite: SimpleNamespace, tmp_path: Path):
    with pytest.raises(AdapterError, match="suite small gives no pair of split 'extra'"):
        training_pairs(suite, tmp_path, split="extra")
