"""Checkpoints come back as they went; the published layout is read safely, from any device tag."""

from pathlib import Path

import pytest
import torch

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.training import load_tensors, save_tensors
from lorarar.checkpoints import Provenance, load_checkpoint, read_provenance, save_checkpoint
from lorarar.hypernet import HyperNetwork


def published_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors under the released code's keys and shapes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "input_1.weight": (128, 1280),
        "input_1.bias": (128,),
        "input_2.weight": (128, 2560),
        "input_2.bias": (128,),
        "output.1.weight": (2, 128),
        "output.1.bias": (2,),
    }
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def save_from_cuda(
    tensors: dict[str, torch.Tensor], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Save as a CUDA machine would: every storage carries the tag "cuda:0"."""
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda _storage: "cuda:0")
        torch.save(tensors, path)


def test_published_layout_from_a_cuda_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tensors = published_tensors()
    path = tmp_path / "hypernet.pth"
    save_from_cuda(tensors, path, monkeypatch)
    if not torch.cuda.is_available():  # the tag is really there
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)  # noqa: TID251  # what must not be done
    network = load_checkpoint(path)
    assert network.widths == (640, 1280)
    assert network.projections == ("to_q", "to_out.0")
    assert network.kv_weight == 1.0
    assert not network.normalize
    assert sum(parameter.numel() for parameter in network.parameters()) == 492_034
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())
    assert torch.equal(network.inputs["640"].weight, tensors["input_1.weight"])
    assert torch.equal(network.output.bias, tensors["output.1.bias"])


@pytest.mark.parametrize(("width", "number"), [(640, 1), (1280, 2)])
def test_published_coefficients_equal_the_dense_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, number: int
):
    tensors = published_tensors(number)
    save_from_cuda(tensors, tmp_path / "h.pth", monkeypatch)
    network = load_checkpoint(tmp_path / "h.pth")
    generator = torch.Generator().manual_seed(1)
    adapters = [
        LoraAdapter(
            {
                "b.to_out.0": LowRankDelta(
                    0.05 * torch.randn(width, 64, generator=generator),
                    0.05 * torch.randn(64, width, generator=generator),
                )
            }
        )
        for _ in range(2)
    ]
    coefficients = network(*adapters)["b.to_out.0"]
    # the dense formula, from the file's own tensors
    columns = torch.cat([adapter.deltas["b.to_out.0"].dense() for adapter in adapters]).T
    hidden = columns @ tensors[f"input_{number}.weight"].T + tensors[f"input_{number}.bias"]
    expected = hidden.relu() @ tensors["output.1.weight"].T + tensors["output.1.bias"]
    for ours, dense in zip(coefficients, expected.T, strict=True):
        assert (ours - dense).norm() < 1e-5 * dense.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_1.weight": None}, r"input_1\.weight must be \(hidden, 2 \* width\), not None"),
        ({"input_3.scale": torch.ones(1)}, r"unknown key 'input_3\.scale'"),
        ({"head.weight": torch.ones(1)}, r"unknown key 'head\.weight'"),
        ({"input_1.weight": torch.ones(128, 7)}, r"not \(128, 7\)"),
        ({"input_1.weight": torch.ones(64, 1280)}, r"is \(64, 1280\), but \(128, 1280\)"),
        ({"output.1.weight": None, "output.1.bias": None}, r"output\.1\.weight are missing"),
        ({"output.1.bias": None}, r"'output\.bias' is missing"),
        ({"output.1.bias": torch.tensor([1.0, torch.nan])}, "NaN"),
        ({"output.1.bias": "text"}, "not a dictionary of tensors"),
    ],
)
def test_refuses_another_layout(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
):
    tensors = published_tensors() | change
    path = tmp_path / "h.pth"
    torch.save({key: value for key, value in tensors.items() if value is not None}, path)
    with pytest.raises(AdapterError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


class Code:
    """Stands for anything that is not a tensor."""


@pytest.mark.parametrize("content", [b"", b"no pickle", Code()], ids=["empty", "garbage", "code"])
def test_runs_no_code_and_names_unreadable_files(tmp_path: Path, content: object):
    path = tmp_path / "h.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"input_1.weight": content}, path)
    with pytest.raises(AdapterError, match=r"h\.pth: not a file of tensors"):
        load_checkpoint(path)


def test_ours_come_back_as_they_went(tmp_path: Path):
    network = HyperNetwork(
        [32, 64], hidden=16, projections=["to_q", "to_v"], normalize=True, kv_weight=0.3, seed=4
    )
    path = tmp_path / "folder" / "h.safetensors"
    provenance = Provenance("miniworld", "0123456789ab", 700)
    save_checkpoint(network, path, provenance)
    loaded = load_checkpoint(path)
    for field in ("widths", "hidden", "projections", "normalize", "kv_weight"):
        assert getattr(loaded, field) == getattr(network, field)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert read_provenance(path) == provenance
    save_checkpoint(loaded, tmp_path / "again.safetensors", provenance)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_our_default_averages_keys_and_values(tmp_path: Path):
    save_checkpoint(HyperNetwork([4]), tmp_path / "h.safetensors", Provenance())
    assert load_checkpoint(tmp_path / "h.safetensors").kv_weight == 0.5


def test_refuses_files_that_are_not_ours(tmp_path: Path):
    path = tmp_path / "h.safetensors"
    with pytest.raises(AdapterError, match="no such file"):
        load_checkpoint(path)
    save_tensors(path, {"a": torch.ones(1)}, {})
    with pytest.raises(AdapterError, match=r"format '\(none\)'"):
        load_checkpoint(path)
    save_checkpoint(HyperNetwork([4]), path, Provenance())
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {**metadata, "widths": "["})
    with pytest.raises(AdapterError, match="header"):
        load_checkpoint(path)
    del metadata["hidden"]
    save_tensors(path, tensors, metadata)
    with pytest.raises(AdapterError, match="header"):
        load_checkpoint(path)
