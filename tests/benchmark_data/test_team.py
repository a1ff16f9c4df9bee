"""Processes that train together: the same gradients as one process, errors and waiting."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark_data.miniworld.train.team import ALONE, Team, run_team


def gradients(team: Team, folder: Path) -> None:
    """Write the gradients of a mean loss, of which each process computes its part."""
    generator = torch.Generator().manual_seed(3)
    weight, bias = (
        torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 6), (4,))
    )
    unused = torch.nn.Parameter(torch.zeros(2))
    inputs = torch.randn((8, 6), generator=generator)
    mine = inputs[team.rank :: team.size]
    torch.nn.functional.linear(mine, weight, bias).square().mean().backward()
    team.average([weight, bias, unused])
    assert unused.grad is None
    assert weight.grad is not None
    assert bias.grad is not None
    save_file(
        {"weight": weight.grad, "bias": bias.grad},
        folder / f"{team.size}-{team.rank}.safetensors",
    )


def fail_second(team: Team, folder: Path) -> None:
    if team.rank == 1:
        raise ValueError("the second has no data")
    team.wait()
    (folder / "went on").touch()


def test_parts_of_a_batch_give_the_batchs_gradients(tmp_path: Path) -> None:
    run_team(1, gradients, tmp_path)
    run_team(2, gradients, tmp_path)
    alone, first, second = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1")
    )
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(first[name], second[name])


def test_an_error_in_one_ends_all(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="the second has no data"):
        run_team(2, fail_second, tmp_path)
    assert not (tmp_path / "went on").exists()


def test_one_waits_for_nobody() -> None:
    ALONE.wait()
    assert (ALONE.rank, ALONE.size) == (0, 1)
