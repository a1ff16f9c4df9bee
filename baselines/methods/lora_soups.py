"""LoRA Soups, CAT (Prabhakar et al. 2024, arXiv 2410.13025): one learnt weight a layer and LoRA.

    dW = a_c dW_c + a_s dW_s, with the two numbers of every layer minimising the training loss

CAT concatenates the factors, [B_c B_s] [a_c A_c; a_s A_s], and learns nothing but the numbers a, on
a few examples of both tasks, by the loss that the LoRAs themselves were trained with: here the mean
squared error of the noise on the subject's and on the style's reference images with their prompts.
The paper is about language models; the rate, the 100 steps (ZipLoRA's budget) and the start at 1,
the plain sum, are ours. The merge is a normal low-rank adapter, whose rank is the sum of the two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from baselines.adapter import AdapterError, LoraAdapter, check_same_layers
from baselines.attach import adapter_updates, attached
from baselines.merging_loss import PairTask, draw_batch, encode_concept
from baselines.pair import subject_and_style
from baselines.registry import fit_method
from baselines.training import generator_for


@fit_method("lora_soups", paper="https://arxiv.org/abs/2410.13025")
def lora_soups(
    adapters: Sequence[LoraAdapter],
    task: PairTask,
    *,
    seed: int,
    steps: int = 100,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    batch_size: int = 1,
    init: float = 1.0,
    gradient_checkpointing: bool = False,
) -> LoraAdapter:
    """Learn every layer's two weights on the pair's reference images.

    Args:
        adapters: The subject's and the style's, with the same layers.
        task: The base model, reference images and training prompts of both.
        seed: Seeds every step's images, timesteps and noise.
        steps: Steps of AdamW.
        lr: Its learning rate.
        weight_decay: Its weight decay, which pulls the weights to 0.
        batch_size: Images of the subject, and of the style, a step.
        init: What every weight starts at.
        gradient_checkpointing: Trade time for memory.

    Raises:
        AdapterError: If there are not two adapters, they do not fit together or to the base
            model, an option is out of range, or the loss stops being finite.
    """
    subject, style = subject_and_style("lora_soups", adapters)
    for name, value in (("steps", steps), ("lr", lr), ("batch_size", batch_size)):
        if not value > 0:
            raise AdapterError(f"lora_soups: {name} is {value}: it must be positive")
    denoiser = task.denoiser
    home = next(iter(subject.deltas.values())).down.device
    subject, style = subject.to(device=denoiser.device), style.to(device=denoiser.device)
    check_same_layers([subject, style])

    layers = subject.layers
    weights = torch.full((len(layers), 2), init, device=denoiser.device, requires_grad=True)
    optimizer = torch.optim.AdamW([weights], lr=lr, weight_decay=weight_decay)
    of_subject = encode_concept(denoiser, task.subject_images, task.subject_prompts)
    of_style = encode_concept(denoiser, task.style_images, task.style_prompts)
    with denoiser.gradient_checkpointing(enabled=gradient_checkpointing):
        for step in range(steps):
            batch = draw_batch(
                denoiser, of_subject, of_style, batch_size, generator_for(seed, "soups", step)
            )
            with attached(denoiser.unet, adapter_updates(_soup(subject, style, weights))):
                answer = denoiser.predict(batch.noisy, batch.timesteps, batch.conditioning)
                loss = functional.mse_loss(answer.float(), batch.target.float())
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            if not torch.isfinite(loss):
                raise AdapterError(
                    f"lora_soups' loss is {loss.item()} at step {step + 1}: lower lr, or use "
                    "bfloat16 or float32 instead of float16"
                )
            optimizer.step()
            optimizer.zero_grad()
    return _soup(subject, style, weights.detach()).to(device=home)


def _soup(subject: LoraAdapter, style: LoraAdapter, weights: Tensor) -> LoraAdapter:
    """The sum of both with ``weights``, ``(layers, 2)``; differentiable in them."""
    merged = {}
    for (layer, delta), (of_subject, of_style) in zip(subject.deltas.items(), weights, strict=True):
        ones = torch.ones(delta.shape[1], device=weights.device)
        merged[layer] = delta.scale_columns(of_subject * ones) + style.deltas[layer].scale_columns(
            of_style * ones
        )
    return LoraAdapter(merged)
