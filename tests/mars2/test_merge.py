"""`mars2 merge` and `mars2 inspect` on files."""

import hashlib
import json
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import mars2
from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.formats import load_adapter, save_adapter
from baselines.registry import METHODS
from lorarar.checkpoints import Provenance, save_checkpoint
from lorarar.hypernet import HyperNetwork
from mars2.cli import app
from mars2.job import RunError
from mars2.merge import merge_files

Adapter = Callable[..., LoraAdapter]


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, str] = json.loads(file.metadata()["adapter_metadata"])
    return found


@pytest.fixture
def files(tmp_path: Path, random_adapter: Adapter) -> list[Path]:
    """A subject of rank 2 and a style of rank 4, the style in kohya's spelling."""
    paths = [tmp_path / "cat.safetensors", tmp_path / "ink.safetensors"]
    save_adapter(random_adapter(1, rank=2), paths[0])
    save_adapter(random_adapter(2, rank=4), paths[1], spelling="kohya")
    return paths


@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_the_file_says_where_it_comes_from(
    files: list[Path], random_adapter: Adapter, spelling: str, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out.safetensors"
    said = merge_files(files, out, method="direct_sum:w_style=0.5", seed=3, spelling=spelling)
    assert len(said) == 1
    what = "direct_sum:w_style=0.5 of cat.safetensors, ink.safetensors"
    assert said[0].startswith(f"{out}: {what}; {len(random_adapter(1).deltas)} layers, rank 6, ")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert metadata(out) == {
        "method": "direct_sum",
        "method_options": "w_subject=1.0,w_style=0.5",
        "merged_from": "cat, ink",
        "mars2_version": mars2.__version__,
        "seed": "3",
        "sources": f"cat.safetensors sha256:{digests[0]}, ink.safetensors sha256:{digests[1]}",
    }
    expected = [random_adapter(1, rank=2).deltas, random_adapter(2, rank=4).deltas]
    for layer, delta in load_adapter(out).deltas.items():
        dense = expected[0][layer].dense() + 0.5 * expected[1][layer].dense()
        torch.testing.assert_close(delta.dense(), dense, rtol=1e-5, atol=1e-6)
    assert any(key.startswith("lora_unet_") for key in load_file(out)) == (spelling == "kohya")


def test_truncation_keeps_the_largest_part_and_says_how_much(
    files: list[Path], random_adapter: Adapter, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    said = merge_files(files, out, method="average", rank=3)
    kept = total = 0.0
    for layer, delta in load_adapter(out).deltas.items():
        pair = [random_adapter(seed, rank=2 * seed).deltas[layer].dense() for seed in (1, 2)]
        values = torch.linalg.svdvals((pair[0] + pair[1]) / 2)
        assert delta.rank == 3
        torch.testing.assert_close(
            torch.linalg.svdvals(delta.dense())[:3], values[:3], rtol=1e-4, atol=1e-5
        )
        kept += float((values[:3] ** 2).sum())
        total += float((values**2).sum())
    assert said[1].startswith("truncated: to rank 3, which keeps ")
    share = float(metadata(out)["truncated"].split()[5])
    assert share == pytest.approx(100 * kept / total, abs=0.006)


def test_a_rank_that_no_layer_passes_truncates_nothing(files: list[Path], tmp_path: Path) -> None:
    said = merge_files(files, tmp_path / "out.safetensors", method="average", rank=60)
    assert said[1] == "truncated: no layer, all are of rank 60 or less"
    whole = merge_files(files, tmp_path / "whole.safetensors", method="average")
    assert not any("truncated" in line for line in whole)
    merged, expected = (
        load_adapter(tmp_path / f"{name}.safetensors").deltas for name in ("out", "whole")
    )
    for layer, delta in merged.items():
        torch.testing.assert_close(delta.dense(), expected[layer].dense())


def test_the_type_is_the_files(files: list[Path], random_adapter: Adapter, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"

    def types() -> set[torch.dtype]:
        return {value.dtype for value in load_file(out).values()}

    save_adapter(random_adapter(1), files[0], dtype=torch.float16)
    merge_files(files, out, method="direct_sum")
    assert types() == {torch.float32}
    merge_files([files[0], files[0]], out, method="direct_sum")
    assert types() == {torch.float16}
    merge_files([files[0], files[0]], out, method="direct_sum", dtype="bfloat16")
    assert types() == {torch.bfloat16}


def test_unlike_layers(files: list[Path], random_adapter: Adapter, tmp_path: Path) -> None:
    whole = random_adapter(1)
    first, *_, last = whole.layers
    out = tmp_path / "out.safetensors"
    for path, lacks in zip(files, (first, last), strict=True):
        save_adapter(LoraAdapter({k: v for k, v in whole.deltas.items() if k != lacks}), path)
    with pytest.raises(AdapterError, match=f"updates {last}.*, or say layers=union"):
        merge_files(files, out, method="direct_sum")
    assert not out.exists()
    count = len(whole.layers)
    said = merge_files(files, out, method="direct_sum", layers="union")
    assert said[1] == (
        f"layers: {count} layers are merged; taken as an update of zero: 1 in cat, 1 in ink"
    )
    merged = load_adapter(out)
    assert merged.layers == whole.layers
    for layer, times in ((first, 1.0), (last, 1.0), (whole.layers[1], 2.0)):
        torch.testing.assert_close(
            merged.deltas[layer].dense(), times * whole.deltas[layer].dense(), rtol=1e-5, atol=1e-6
        )
    said = merge_files(files, out, method="direct_sum", layers="intersection")
    assert said[1].endswith("all files touch are merged; dropped: 1 of cat, 1 of ink")
    assert load_adapter(out).layers == whole.layers[1:-1]
    assert metadata(out)["layers"] == said[1].removeprefix("layers: ")


def test_a_text_encoder_is_left_out_when_asked(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    extra = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)}
    save_file({**load_file(files[1]), **extra}, files[1])
    with pytest.raises(AdapterError, match=r"ink\.safetensors: the file holds.*lora_te1"):
        merge_files(files, out, method="direct_sum")
    said = merge_files(files, out, method="direct_sum", ignore_text_encoder=True)
    assert said[1:] == ["left out: lora_te1 (1 tensors) of ink"]
    assert metadata(out)["left_out"] == "lora_te1 (1 tensors) of ink"


def test_one_file_is_converted(files: list[Path], random_adapter: Adapter, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    merge_files(files[1:], out, method="subject_only", spelling="diffusers")
    assert load_adapter(out).digest() == random_adapter(2, rank=4).digest()
    assert all(key.startswith("unet.") for key in load_file(out))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "ziplora"}, RunError, "optimises for a pair"),
        ({"method": "base"}, RunError, "nothing to save"),
        ({"layers": "all"}, AdapterError, "layers is 'all'"),
        ({"spelling": "comfyui"}, AdapterError, "it must be diffusers or kohya"),
    ],
)
def test_refusals(
    files: list[Path], tmp_path: Path, options: dict, error: type[Exception], words: str
) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(error, match=words):
        merge_files(files, out, **{"method": "direct_sum", **options})
    with pytest.raises(RunError, match=r"there is no LoRA file .*nowhere"):
        merge_files([tmp_path / "nowhere"], out, method="direct_sum")
    with pytest.raises(RunError, match="there is one file; --method subject_only converts one"):
        merge_files(files[:1], out, method="average")
    assert not out.exists()


def test_two_files_of_the_same_content_are_told(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    note = "note: two of the files have the same content"
    assert note in merge_files([files[0], files[0]], out, method="average")
    assert note not in merge_files(files, out, method="average")


def test_the_command_hands_its_options_on(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    options = "--method average --rank 2 --format kohya --dtype float16 --layers union"
    result = CliRunner().invoke(
        app, ["merge", *map(str, files), *options.split(), "-o", str(out), "--ignore-text-encoder"]
    )
    assert result.exit_code == 0, result.output
    assert "rank 2, " in result.output
    assert "float16, spelled as kohya does" in result.output.replace("\n", " ")
    assert metadata(out)["method"] == "average"
    # what is there is not written over unasked
    again = ["merge", *map(str, files), "-o", str(out), "--ignore-text-encoder"]
    refused = CliRunner().invoke(app, again)
    assert "is there already" in str(refused.exception)
    assert metadata(out)["method"] == "average"
    factors = [value for key, value in load_file(out).items() if not key.endswith(".alpha")]
    assert {value.dtype for value in factors} == {torch.float16}
    assert CliRunner().invoke(app, [*again, "--overwrite"]).exit_code == 0
    assert metadata(out)["method"] == "direct_sum"


# --- memory

LAYER = 4 * 256 * 32 * 2
"""Bytes of a layer's factors below, in float32."""


def large_files(folder: Path, count: int) -> list[Path]:
    """Two LoRAs of rank 32 with that many layers of 256 x 256."""
    paths = []
    for which in range(2):
        generator = torch.Generator().manual_seed(which)
        deltas = {
            f"mid_block.attentions.{index}.transformer_blocks.0.attn1.to_q": LowRankDelta(
                torch.randn(256, 32, generator=generator), torch.randn(32, 256, generator=generator)
            )
            for index in range(count)
        }
        paths.append(folder / f"{count}-{which}.safetensors")
        save_adapter(LoraAdapter(deltas), paths[-1])
    return paths


class LiveDeltas:
    """Counts the bytes of all updates that are alive, each factor once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: weakref.WeakSet[LowRankDelta] = weakref.WeakSet()
        self.most = 0
        check = LowRankDelta.__post_init__

        def note(delta: LowRankDelta) -> None:
            check(delta)
            self.alive.add(delta)
            factors = [factor for one in self.alive for factor in (one.up, one.down)]
            stores = {f.untyped_storage().data_ptr(): f.untyped_storage() for f in factors}
            self.most = max(self.most, sum(store.nbytes() for store in stores.values()))

        monkeypatch.setattr(LowRankDelta, "__post_init__", note)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("direct_sum", {}),
        ("direct_sum", {"rank": 8, "dtype": "float16", "spelling": "kohya"}),
        ("knots", {}),
        ("subject_only", {"layers": "union"}),
        ("lorarar:checkpoint=NETWORK", {}),
    ],
    ids=["sum", "cut", "knots", "convert", "lorarar"],
)
def test_a_merge_holds_a_few_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: dict
) -> None:
    network = tmp_path / "network.safetensors"
    save_checkpoint(HyperNetwork([256], hidden=16), network, Provenance())
    method = method.replace("NETWORK", str(network))
    most, python = [], []
    for count in (6, 30):
        files = large_files(tmp_path, count)
        out = tmp_path / "out.safetensors"
        with monkeypatch.context() as patch:
            live = LiveDeltas(patch)
            tracemalloc.start()
            merge_files(files, out, method=method, **options)
            python.append(tracemalloc.get_traced_memory()[1])  # buffers and texts
            tracemalloc.stop()
        most.append(live.most)
        assert not live.alive
        assert len(load_adapter(out).layers) == count
    assert most[0] == most[1] <= 12 * LAYER
    assert python[1] - python[0] < 3 * LAYER  # headers


def test_a_merge_from_files_is_the_merge_in_memory(files: list[Path], tmp_path: Path) -> None:
    for method in ("ties", "dare", "iso_c", "ties_factors"):
        merge_files(files, tmp_path / "out.safetensors", method=method, seed=7)
        inputs = [load_adapter(path) for path in files]
        expected = METHODS.get(method)(inputs, seed=7)
        assert load_adapter(tmp_path / "out.safetensors").digest() == expected.digest(), method


def test_values_that_are_not_finite_leave_nothing_behind(files: list[Path], tmp_path: Path) -> None:
    tensors = load_file(files[1])
    name = sorted(key for key in tensors if key.endswith("lora_up.weight"))[-1]
    tensors[name][0, 0] = float("nan")
    save_file(tensors, files[1])
    before = set(tmp_path.iterdir())
    with pytest.raises(AdapterError, match=r"ink\.safetensors: layer .* not finite"):
        merge_files(files, tmp_path / "out.safetensors", method="direct_sum")
    assert set(tmp_path.iterdir()) == before


# --- inspect


def test_inspect_shows_what_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{stem}.lora_down.weight": torch.ones(4, 2048, dtype=torch.float16),
        f"{stem}.lora_up.weight": torch.ones(640, 4, dtype=torch.float16),
        f"{stem}.alpha": torch.tensor(2.0),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
    }
    path = tmp_path / "kohya.safetensors"
    save_file(tensors, path, metadata={"ss_network_dim": "4", "ss_tags": "x" * 999})
    result = CliRunner().invoke(app, ["inspect", str(path)])
    assert result.exit_code == 0, result.output
    for words in (
        "SDXL, or a smaller model of its widths",
        "kohya with original block names (2 keys)",
        "lora_te1 (1 tensors), which are not merged",
        "1 layers, 10752 parameters",
        "float16",
        "ss_network_dim: 4",
    ):
        assert words in result.output
    row = next(line for line in result.output.splitlines() if "down_blocks.1" in line)
    norm = 0.5 * 4 * (640 * 2048) ** 0.5
    cells = ["down_blocks.1.attentions.0", "1", "4", "0.5", f"{norm:.3g}", "1", "k"]
    assert row.split() == [*cells, "transformer_blocks.0.attn2.to_k"]
    assert max(map(len, result.output.splitlines())) <= 120
    assert 400 < result.output.count("x") < 600  # much of a long line, in several
    monkeypatch.setenv("COLUMNS", "80")
    narrow = CliRunner().invoke(app, ["inspect", str(path)]).output
    row = next(line for line in narrow.splitlines() if "down_blocks.1" in line)
    assert row.split() == cells
    assert max(map(len, narrow.splitlines())) <= 80


def test_inspect_says_what_is_not_finite_and_where_a_merge_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "merged.safetensors"
    delta = LowRankDelta(torch.ones(2, 1), torch.ones(1, 3))
    save_adapter(LoraAdapter({"mid_block.x": delta}, metadata={"method": "average"}), path)
    assert "method: average" in CliRunner().invoke(app, ["inspect", str(path)]).output
    tensors = {key: value * float("inf") for key, value in load_file(path).items()}
    save_file(tensors, path)
    assert "not finite" in CliRunner().invoke(app, ["inspect", str(path)]).output
