"""Fixtures shared by the tests of all packages."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from baselines.adapter import LoraAdapter, LowRankDelta
from baselines.denoiser import Denoiser
from baselines.dreambooth import attention_layers

_TINY = runpy.run_path(str(Path(__file__).with_name("tiny_sdxl.py")))
_GPU = runpy.run_path(str(Path(__file__).with_name("pretended_gpu.py")))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of all tests: no test reads or writes the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARS2_CACHE", str(folder))
        yield folder


@pytest.fixture
def pretended_gpu() -> Iterator[None]:
    """A device "cuda" that refuses what a GPU refuses."""
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU")
    with _GPU["pretended_gpu"]():
        yield


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL pipeline of small width, 16 pixels a side, in diffusers' folder layout."""
    return _TINY["build_tiny_sdxl"](tmp_path_factory.mktemp("tiny_sdxl") / "sdxl")


@pytest.fixture(scope="session")
def tiny_denoiser(tiny_sdxl: Path) -> Denoiser:
    """The small pipeline as trainers see it, in float32; frozen, so that tests may share it."""
    return Denoiser.load(tiny_sdxl, resolution=_TINY["RESOLUTION"])


@pytest.fixture(scope="session")
def tiny_denoiser_double(tiny_sdxl: Path) -> Denoiser:
    """The same in float64."""
    return Denoiser.load(tiny_sdxl, dtype=torch.float64, resolution=_TINY["RESOLUTION"])


@pytest.fixture(scope="session")
def random_adapter(tiny_denoiser: Denoiser) -> Callable[..., LoraAdapter]:
    """``random_adapter(seed, rank=4, strength=0.3, dtype=...)``: all attention layers of the UNet.

    ``strength`` is the size of each update against a weight drawn from N(0, 1 / d_in).
    """

    def make(
        seed: int, *, rank: int = 4, strength: float = 0.3, dtype: torch.dtype = torch.float32
    ) -> LoraAdapter:
        generator = torch.Generator().manual_seed(seed)
        deltas = {}
        for name in attention_layers(tiny_denoiser.unet):
            d_out, d_in = tiny_denoiser.unet.get_submodule(name).weight.shape
            up = torch.randn(d_out, rank, generator=generator, dtype=dtype)
            down = torch.randn(rank, d_in, generator=generator, dtype=dtype)
            deltas[name] = LowRankDelta(strength * (rank * d_in) ** -0.5 * up, down)
        return LoraAdapter(deltas, name=f"random-{seed}")

    return make


@pytest.fixture(scope="session")
def random_image() -> Callable[..., Image.Image]:
    """``random_image(seed, size=(16, 16))``: an RGB picture of coarse random blocks."""

    def make(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
        blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(blocks).resize(size, Image.Resampling.BILINEAR)

    return make
