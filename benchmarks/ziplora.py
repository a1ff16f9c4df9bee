"""ZipLoRA's step against the plain one: dense updates and four separate forward passes.

On a random UNet with SDXL's blocks at half its widths, one layer of each where SDXL has two, 32 x
32 latents and half of SDXL's rank, so that factors and updates are in SDXL's proportion. Its
transformers are as deep as SDXL's: convolutions, which both ways compute alike, have SDXL's share,
a quarter of the operations.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from baselines import LoraAdapter, load_adapter
from baselines.attach import attached
from baselines.denoiser import Conditioning
from baselines.merging_loss import Coefficients, PairTask, TaskBatch, merging_loss, regularize
from baselines.methods.ziplora import ziplora
from baselines.registry import METHODS
from benchmark_data.load import load_suite
from benchmark_data.references import open_image, reference_paths
from benchmarks.sdxl import CONFIG, RANK, cpu_seconds, layers_of, meta_unet, random_adapter
from mars2.pipelines import SdxlPipeline

DEPTHS = (1, 2, 10)
"""Transformer layers in each of SDXL's blocks."""
STEPS = 100
"""Of ZipLoRA, a pair."""
TOLERANCE = 1e-4


class RandomDenoiser:
    """What the merging loss needs of a base model, with random weights."""

    def __init__(self, widths: tuple[int, int, int], depths: tuple[int, int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        heads = tuple(max(1, width // 64) for width in widths)
        smaller = {
            "block_out_channels": widths,
            "layers_per_block": 1,
            "transformer_layers_per_block": depths,
            "attention_head_dim": heads,
            "cross_attention_dim": 1024,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
        }
        self.unet: Any = UNet2DConditionModel(**{**CONFIG, **smaller})
        self.unet.eval().requires_grad_(False)
        for parameter in self.unet.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's answer."""
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
        return self.unet(noisy, timesteps, conditioning.embeddings, added_cond_kwargs=added).sample

    def batch(self, side: int) -> TaskBatch:
        """Return a subject row and a style row of noise."""
        generator = torch.Generator().manual_seed(1)
        return TaskBatch(
            self,
            torch.randn(2, 4, side, side, generator=generator),
            torch.tensor([500, 500]),
            Conditioning(
                torch.randn(2, 77, 1024, generator=generator),
                torch.randn(2, 16, generator=generator),
                torch.ones(2, 6),
            ),
            torch.zeros(2, 4, side, side),
        )


def dense_step(
    batch: TaskBatch,
    dense: dict[str, tuple[Tensor, Tensor]],
    coefficients: Coefficients,
) -> Tensor:
    """Return the loss after a backward pass: every update built, four forward passes."""
    denoiser, total = batch.denoiser, torch.zeros(())

    def teacher(which: int) -> dict[str, Any]:
        return {n: lambda x, w=both[which]: functional.linear(x, w) for n, both in dense.items()}

    def merged(name: str) -> Any:
        (one, other), (m_one, m_other) = dense[name], coefficients[name]
        return lambda x: functional.linear(x, one * m_one + other * m_other)

    for row in (0, 1):
        given = (batch.noisy[row : row + 1], batch.timesteps[row : row + 1])
        conditioning = batch.conditioning[[row]]
        with torch.no_grad(), attached(denoiser.unet, teacher(row)):
            expected = denoiser.predict(*given, conditioning)
        with attached(denoiser.unet, {name: merged(name) for name in dense}):
            total = total + (denoiser.predict(*given, conditioning) - expected).square().mean()
    total = total + 0.01 * regularize(coefficients)
    total.backward()
    return total.detach()


def start(adapter: LoraAdapter) -> Coefficients:
    """Return coefficients that are all 1."""
    return {
        name: (torch.ones(d_in, requires_grad=True), torch.ones(d_in, requires_grad=True))
        for name, (_, d_in) in adapter.shapes().items()
    }


def bench_ziplora(
    widths: tuple[int, int, int] = (160, 320, 640),
    side: int = 32,
    depths: tuple[int, int, int] = DEPTHS,
) -> str:
    """Compare one step, and scale it to SDXL by floating-point operations."""
    denoiser = RandomDenoiser(widths, depths)
    rank = max(1, RANK * widths[-1] // 1280)
    layers = layers_of(denoiser.unet)
    pair = [random_adapter(layers, rank, seed) for seed in (0, 1)]
    batch = denoiser.batch(side)
    dense = {n: (d.dense(), pair[1].deltas[n].dense()) for n, d in pair[0].deltas.items()}
    ours, theirs = start(pair[0]), start(pair[0])
    losses: list[Tensor] = []
    expected: list[Tensor] = []

    def step() -> None:
        losses.append(merging_loss(batch, *pair, ours, backward=True).total.detach())

    # twice each: the first step also grows the process' memory
    fast = cpu_seconds(step, 2)
    plain = cpu_seconds(lambda: expected.append(dense_step(batch, dense, theirs)), 2)
    torch.testing.assert_close(losses, expected, rtol=TOLERANCE, atol=0.0)
    grown = sum(d_out * d_in for d_out, d_in in layers.values())
    kept = sum(adapter.parameters() for adapter in pair)
    scale = sdxl_flops() / flops(denoiser.unet, side, text=1024, pooled=16)
    return (
        f"ziplora step, {len(layers)} layers of widths {widths}, rank {rank}, latents {side} x "
        f"{side}: dense, four passes {plain:.1f} CPU-s, here {fast:.1f} CPU-s, {plain / fast:.1f} "
        f"x; loss the same to {TOLERANCE:.0e}; adapters {kept / 1e6:.1f} M numbers instead of "
        f"{2 * grown / 1e6:.1f} M ({kept / (2 * grown):.3f})\n"
        f"  SDXL at 128 x 128 has {scale:.0f} x the operations of this UNet: {fast * scale:.0f} "
        f"CPU-s a step, {STEPS * fast * scale / 3600:.1f} CPU-h a pair"
    )


def flops(unet: nn.Module, side: int, *, text: int, pooled: int) -> int:
    """Return the floating-point operations of one forward pass of one image."""
    device = next(unet.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(
            torch.zeros(1, 4, side, side, device=device),
            torch.zeros(1, device=device),
            torch.zeros(1, 77, text, device=device),
            added_cond_kwargs={
                "text_embeds": torch.zeros(1, pooled, device=device),
                "time_ids": torch.zeros(1, 6, device=device),
            },
        )
    return counter.get_total_flops()


def sdxl_flops() -> int:
    """Return those of SDXL at 1024 pixels; counted without weights."""
    return flops(meta_unet(), 128, text=2048, pooled=1280)


def bench_pair(steps: int = 2) -> str:
    """Compare LoRA.rar with ZipLoRA on a pair of the miniature world: seconds a pair."""
    suite = load_suite("miniworld")
    case = suite.cases["test"][0]
    denoiser = SdxlPipeline.load(
        suite.models.base,
        dtype="float32",
        device="cpu",
        resolution=suite.generation.resolution,
        steps=1,
        guidance_scale=1.0,
    ).denoiser()
    pair = [
        load_adapter(suite.adapters / f"{concept.id}.safetensors")
        for concept in (case.subject, case.style)
    ]
    images = [
        [open_image(path) for path in reference_paths([concept], suite.name)]
        for concept in (case.subject, case.style)
    ]
    task = PairTask(denoiser, images[0], case.subject.prompts, images[1], case.style.prompts)
    lorarar = METHODS.get("lorarar")
    options = suite.method_options["lorarar"]
    lorarar(pair, **options)  # reads the checkpoint
    merge = cpu_seconds(lambda: lorarar(pair, **options), 3)
    once = cpu_seconds(lambda: ziplora(pair, task, seed=0, steps=1))
    more = cpu_seconds(lambda: ziplora(pair, task, seed=0, steps=1 + steps))
    step = (more - once) / steps
    whole = once + (STEPS - 1) * step
    return (
        f"a pair of the miniature world: lorarar {1000 * merge:.1f} CPU-ms; ziplora "
        f"{whole:.1f} CPU-s ({STEPS} steps of {step:.2f}, {steps} measured), {whole / merge:.0f} x "
        "(the paper at SDXL's size: more than 4000 x)"
    )
