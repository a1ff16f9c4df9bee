"""Coefficients read off merged adapters, and how far concepts and LoRAs lie apart."""

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from baselines.adapter import LoraAdapter, LowRankDelta
from baselines.merging_loss import merge_with_coefficients
from benchmark_data.load import load_suite
from mars2.job import RunError
from mars2.store import RunStore
from mars2.studies.diversity import alikeness, directions, overlap, study_diversity
from mars2.studies.embeddings import concept_features, distance, nearest, own_distance
from mars2.studies.layers import merged_in_run, place, read_columns, study_layers
from mars2.studies.result import write

SUITE = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))["SUITE"]


def delta(rng: np.random.Generator, d_out: int = 12, d_in: int = 9, rank: int = 3) -> LowRankDelta:
    up, down = rng.normal(size=(d_out, rank)), rng.normal(size=(rank, d_in))
    return LowRankDelta(torch.from_numpy(up), torch.from_numpy(down))


def test_coefficients_are_read_back_exactly():
    rng = np.random.default_rng(0)
    subject, style = delta(rng), delta(rng)
    wanted = [torch.from_numpy(rng.normal(size=9)) for _ in range(2)]
    merged = subject.scale_columns(wanted[0]) + style.scale_columns(wanted[1])
    found = read_columns(merged, subject, style)
    np.testing.assert_allclose(found.subject, wanted[0].numpy(), atol=1e-9)
    np.testing.assert_allclose(found.style, wanted[1].numpy(), atol=1e-9)
    assert found.residual < 1e-10
    parts = [(one.dense() * c).norm(dim=0) for one, c in zip((subject, style), wanted, strict=True)]
    np.testing.assert_array_equal(found.dominates, (parts[0] > parts[1]).numpy())


def test_what_is_not_column_wise_is_left_over():
    rng = np.random.default_rng(1)
    found = read_columns(delta(rng), delta(rng), delta(rng))
    assert found.residual > 0.1


def test_coefficients_that_cannot_be_told_are_none():
    one = delta(np.random.default_rng(2))
    parallel = read_columns(3.0 * one, 2.0 * one, one)
    assert np.isnan(parallel.subject).all()
    assert np.isnan(parallel.style).all()
    assert parallel.dominates.all()  # the longer of the two
    assert parallel.residual < 1e-10
    nothing = read_columns(0.5 * one, 0.0 * one, one)
    assert np.isnan(nothing.subject).all()
    np.testing.assert_allclose(nothing.style, 0.5)
    assert not nothing.dominates.any()


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        ("mid_block.attentions.0.transformer_blocks.1.attn1.to_out.0",
         ("mid_block", "self", "to_out.0")),
        ("up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_k",
         ("up_blocks.0", "cross", "to_k")),
    ],
)  # fmt: skip
def test_a_layer_s_place(layer: str, parts: tuple[str, str, str]):
    assert place(layer) == parts


def test_methods_are_compared_with_ziplora(random_adapter: Callable[..., LoraAdapter]):
    rng = np.random.default_rng(3)
    merged = []
    for number in range(2):
        subject, style = (
            LoraAdapter(dict(list(random_adapter(2 * number + k).deltas.items())[:8]))
            for k in range(2)
        )
        by_columns = {
            layer: tuple(
                torch.from_numpy(rng.uniform(0, 1, one.shape[1])).float() for _ in range(2)
            )
            for layer, one in subject.deltas.items()
        }
        for method, coefficients in (("ziplora", by_columns), ("alike", by_columns), ("sum", {})):
            whole = merge_with_coefficients(subject, style, coefficients)
            merged.append((method, f"case{number}", whole, subject, style))
    result = study_layers(merged, {})
    similar = {(row[0], row[1]): row for row in result.sheets[2].rows}
    assert similar["alike", "subject"][2].value == pytest.approx(1, abs=1e-5)
    assert similar["alike", "style"][3].value == pytest.approx(0, abs=1e-5)
    assert similar["sum", "subject"][2].value is None  # constant: nothing to correlate
    whole = next(row for row in result.sheets[0].rows if row[0] == "sum all")
    assert whole[1].value == pytest.approx(1, abs=1e-5)
    assert set(result.figures) == {"layers", "distributions"}  # drawing them takes long


def test_a_run_without_merged_adapters_is_refused(made: RunStore):
    with pytest.raises(RunError, match="--save-adapters"):
        merged_in_run(made)


def test_overlap_is_the_mean_squared_cosine_of_principal_angles():
    rng = np.random.default_rng(4)
    a, b = (np.linalg.qr(rng.normal(size=(10, r)))[0] for r in (3, 4))
    angles = scipy.linalg.subspace_angles(a, b)
    value = overlap(torch.from_numpy(a), torch.from_numpy(b))
    assert value == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-12)


def test_a_lora_is_wholly_like_itself_and_others_by_chance():
    rng = np.random.default_rng(5)
    one, other = (
        directions(LoraAdapter({f"l{k}": delta(rng, 40, 50, 4) for k in range(30)}))
        for _ in range(2)
    )
    assert alikeness(one, one)[:2] == pytest.approx((1, 1))
    columns, rows, chance = alikeness(one, other)
    assert (columns + rows) / 2 == pytest.approx(chance, abs=0.03)


class Colors:
    """Features of an image: its mean color, of length 1."""

    def features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        means = [np.asarray(image, dtype=float).mean(axis=(0, 1)) + 1 for image in images]
        return torch.nn.functional.normalize(torch.tensor(np.array(means)), dim=1)


@pytest.fixture
def painted(tmp_path: Path) -> Path:
    colors = {"cat_0": "red", "cat_1": "red", "dog_0": "lime", "fox_0": "maroon",
              "ink_0": "blue", "oil_0": "yellow", "flat_0": "navy"}  # fmt: skip
    for name, color in colors.items():
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
    path = tmp_path / "tiny.toml"
    path.write_text(SUITE.format(base="none").replace('adapters = "adapters"\n', ""))
    return path


def test_the_nearest_train_concept(painted: Path):
    suite = load_suite(painted)
    features = concept_features(suite, Colors())
    assert own_distance(features["cat"]) == pytest.approx(0, abs=1e-9)
    assert own_distance(features["dog"]) is None
    near = nearest(suite.concepts["cat"], suite, features)
    assert near == ("fox", pytest.approx(distance(features["cat"], features["fox"])))
    assert near[1] < 1e-3 < distance(features["dog"], features["fox"])
    assert nearest(suite.concepts["ink"], suite, features) == ("flat", pytest.approx(0, abs=1e-3))


def test_a_suite_s_coverage_by_pictures_and_words(painted: Path, tmp_path: Path):
    result = study_diversity(load_suite(painted), {"color": Colors()})
    words = {row[0]: row for row in result.sheets[2].rows}
    assert words["subject"][1:5] == (2, 1, 0, 0)
    assert "the subject of test farthest from train is dog" in result.text
    assert "diversity.png" in {path.name for path in write(result, tmp_path / "out")}
    with pytest.raises(RunError, match="no concepts of split 'val'"):
        study_diversity(load_suite(painted), {"color": Colors()}, split="val")
