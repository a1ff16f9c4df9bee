"""Joint training, as LoRA.rar compares (arXiv 2412.05148): one LoRA trained on both concepts.

DreamBooth LoRA (``baselines.dreambooth``) on the subject's and the style's reference images
together, each with its own training prompt. Nothing is merged: the adapters given only say which
rank the new one has, unless ``rank`` does. The defaults are the settings of a single LoRA's
training in the paper, which does not say whether joint training had more; each pass over the images
shows each once, so the concept with more references is seen more often.
"""

from collections.abc import Sequence

from baselines.adapter import AdapterError, LoraAdapter
from baselines.dreambooth import LoraTraining, train_lora
from baselines.merging_loss import PairTask
from baselines.pair import subject_and_style
from baselines.registry import fit_method


@fit_method("joint_training", paper="https://arxiv.org/abs/2412.05148")
def joint_training(
    adapters: Sequence[LoraAdapter],
    task: PairTask,
    *,
    seed: int,
    steps: int = 1000,
    lr: float = 5e-5,
    rank: int | None = None,
    batch_size: int = 1,
    weight_decay: float = 1e-4,
    gradient_checkpointing: bool = False,
) -> LoraAdapter:
    """Train one LoRA on the reference images of both, from nothing.

    Args:
        adapters: The subject's and the style's; only their ranks are looked at.
        task: The base model, reference images and training prompts of both.
        seed: Seeds the factors and every step's images, timesteps and noise.
        steps: Steps of AdamW.
        lr: Its learning rate.
        rank: Of every update; None: the highest of the adapters'.
        batch_size: Images a step.
        weight_decay: AdamW's.
        gradient_checkpointing: Trade time for memory.

    Raises:
        AdapterError: If there are not two adapters, an option is out of range, or the loss stops
            being finite.
    """
    subject_and_style("joint_training", adapters)
    ranks = [delta.rank for adapter in adapters for delta in adapter.deltas.values()]
    try:
        settings = LoraTraining(
            rank=max(ranks, default=1) if rank is None else rank,
            lr=lr,
            weight_decay=weight_decay,
            steps=steps,
            batch_size=batch_size,
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
        )
    except ValueError as error:
        raise AdapterError(f"joint_training: {error}") from error
    prompts = [*task.subject_prompts, *task.style_prompts]
    images = [*task.subject_images, *task.style_images]
    trained = train_lora(task.denoiser, images, prompts, settings)
    home = next((d.down.device for a in adapters for d in a.deltas.values()), None)
    return trained.to(device=home)
