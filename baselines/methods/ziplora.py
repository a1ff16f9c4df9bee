"""ZipLoRA (Shah et al. 2023, arXiv 2311.13600): merging coefficients optimised for each pair.

    dW = dW_c diag(m_c) + dW_s diag(m_s), with m_c and m_s minimising the merging loss

Both vectors start at 1, that is at the plain sum, as in the re-implementation
mkshing/ziplora-pytorch (the paper does not say); 100 steps of AdamW with rate 0.01 and lambda 0.01
are the paper's. The merge is a normal low-rank adapter, whose rank is the sum of the two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta, check_same_layers
from baselines.merging_loss import (
    PairTask,
    Regularizer,
    draw_batch,
    encode_concept,
    merge_with_coefficients,
    merging_loss,
)
from baselines.registry import fit_method
from baselines.training import generator_for


@fit_method("ziplora", paper="https://arxiv.org/abs/2311.13600")
def ziplora(
    adapters: Sequence[LoraAdapter],
    task: PairTask,
    *,
    seed: int,
    steps: int = 100,
    lr: float = 0.01,
    weight_decay: float = 1e-4,
    lambda_: float = 0.01,
    batch_size: int = 1,
    init: float = 1.0,
    regularizer: Regularizer = "abs_cos",
    gradient_checkpointing: bool = False,
) -> LoraAdapter:
    """Optimise the coefficients of every layer's columns on the pair's reference images.

    Args:
        adapters: The subject's and the style's, with the same layers.
        task: The base model, reference images and training prompts of both.
        seed: Seeds every step's images, timesteps and noise.
        steps: Steps of AdamW.
        lr: Its learning rate.
        weight_decay: Its weight decay, which pulls the coefficients to 0.
        lambda_: Weight of the regularizer.
        batch_size: Images of the subject, and of the style, a step.
        init: What every coefficient starts at.
        regularizer: See ``baselines.merging_loss.regularize``.
        gradient_checkpointing: Trade time for memory.

    Raises:
        AdapterError: If there are not two adapters, they do not fit together or to the base
            model, an option is out of range, or the loss stops being finite.
    """
    if len(adapters) != 2:
        raise AdapterError(f"ziplora merges a subject and a style, not {len(adapters)} adapters")
    for name, value in (("steps", steps), ("lr", lr), ("batch_size", batch_size)):
        if not value > 0:
            raise AdapterError(f"ziplora: {name} is {value}: it must be positive")
    denoiser = task.denoiser
    home = next(iter(adapters[0].deltas.values())).down.device
    subject, style = (adapter.to(device=denoiser.device) for adapter in adapters)
    check_same_layers([subject, style])

    coefficients = {
        layer: (_start(delta, init), _start(delta, init)) for layer, delta in subject.deltas.items()
    }
    optimizer = torch.optim.AdamW(
        [vector for pair in coefficients.values() for vector in pair],
        lr=lr,
        weight_decay=weight_decay,
    )
    of_subject = encode_concept(denoiser, task.subject_images, task.subject_prompts)
    of_style = encode_concept(denoiser, task.style_images, task.style_prompts)
    with denoiser.gradient_checkpointing(enabled=gradient_checkpointing):
        for step in range(steps):
            batch = draw_batch(
                denoiser, of_subject, of_style, batch_size, generator_for(seed, "ziplora", step)
            )
            loss = merging_loss(
                batch,
                subject,
                style,
                coefficients,
                regularizer=regularizer,
                weight=lambda_,
                backward=True,
            )
            if not torch.isfinite(loss.total):
                raise AdapterError(
                    f"ziplora's loss is {loss.total.item()} at step {step + 1}: lower lr, or use "
                    "bfloat16 or float32 instead of float16"
                )
            optimizer.step()
            optimizer.zero_grad()

    final = {
        layer: (m_subject.detach(), m_style.detach())
        for layer, (m_subject, m_style) in coefficients.items()
    }
    return merge_with_coefficients(subject, style, final).to(device=home)


def _start(delta: LowRankDelta, init: float) -> Tensor:
    d_in = delta.shape[1]
    return torch.full((d_in,), init, device=delta.down.device, requires_grad=True)
