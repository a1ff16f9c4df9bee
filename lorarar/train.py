"""Trains a hypernetwork with the merging loss over many pairs.

Each step takes the next pairs of shuffled passes over all of them, so that each is seen, and draws
images, timesteps and noise from (seed, step): a resumed training gives the same bytes as an
uninterrupted one. (The released code draws one pair with replacement and calls that an epoch.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from PIL import Image

from baselines.adapter import AdapterError, LoraAdapter, check_same_layers
from baselines.denoiser import Denoiser
from baselines.formats import load_adapter
from baselines.merging_loss import (
    EncodedConcept,
    Regularizer,
    draw_batch,
    encode_concept,
    merging_loss,
)
from baselines.training import generator_for, load_state, save_state, shuffled_passes
from lorarar.hypernet import PROJECTIONS, HyperNetwork, Reads
from lorarar.pairs import TrainingConcept, TrainingPair


@dataclass(frozen=True)
class HyperTraining:
    """Settings of a hypernetwork's training.

    Attributes:
        steps: Steps of AdamW.
        lr: Its learning rate; the paper's.
        weight_decay: Its weight decay; the released code's.
        pairs_per_step: Pairs whose losses are averaged for a step.
        batch_size: Images of the subject, and of the style, a pair and step.
        hidden: Size of the hidden layer; the paper's.
        projections: Which attention projections are predicted; the paper's.
        normalize: See ``HyperNetwork``; the published network has none.
        kv_weight: Weight of both updates in the layers that are not predicted; the paper's average.
        reads: "columns", as the paper, or "features" of them, which serve any width.
        single_input: Whether all widths share one input layer; the released code has one for each.
        attention: Whether the columns of a layer see each other; the paper's do not.
        whole_matrix: Whether all columns of a layer share their coefficients; the paper's do not.
        regularizer: See ``baselines.merging_loss.regularize``.
        lambda_: The regularizer's weight; the paper's.
        gradient_checkpointing: Trade time for memory.
        adapters_in_memory: Adapters kept loaded at a time; at least 2.
        save_every: Steps between two writes of the checkpoint, when one is asked for.
        seed: Seeds the weights, the order of the pairs and every step's draws.
    """

    steps: int = 5000
    lr: float = 0.01
    weight_decay: float = 1e-4
    pairs_per_step: int = 1
    batch_size: int = 1
    hidden: int = 128
    projections: tuple[str, ...] = PROJECTIONS
    normalize: bool = False
    kv_weight: float = 0.5
    reads: Reads = "columns"
    single_input: bool = False
    attention: bool = False
    whole_matrix: bool = False
    regularizer: Regularizer = "abs_cos"
    lambda_: float = 0.01
    gradient_checkpointing: bool = False
    adapters_in_memory: int = 16
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "pairs_per_step", "batch_size", "hidden", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
        if self.adapters_in_memory < 2:
            raise ValueError(f"adapters_in_memory is {self.adapters_in_memory}: a pair needs 2")
        if self.reads not in get_args(Reads):
            raise ValueError(f"reads is {self.reads!r}: it must be columns or features")
        if self.reads == "features" and self.single_input:
            raise ValueError("single_input is for columns: features have one input layer anyway")


def train_hypernetwork(
    denoiser: Denoiser,
    pairs: Sequence[TrainingPair],
    settings: HyperTraining,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> HyperNetwork:
    """Train a hypernetwork on ``pairs``, for all the widths in their adapters.

    Args:
        denoiser: The frozen base model of the adapters.
        pairs: What ``training_pairs`` gave; their order does not matter beyond the seed.
        settings: Steps, rates and so on.
        checkpoint: Where the training's state is kept; if the file exists, training goes on from
            it. The finished network is saved with ``lorarar.checkpoints.save_checkpoint``.
        progress: Called with the number of steps done and the step's loss.

    Raises:
        ValueError: If there are no pairs.
        AdapterError: If the adapters do not fit together, a loss is not finite, or the checkpoint
            belongs to another training.
    """
    if not pairs:
        raise ValueError("no pairs to train on")
    adapters = _Adapters(settings.adapters_in_memory, denoiser.device)
    widths, digests = _survey(pairs, settings, adapters)
    network = HyperNetwork(
        widths if settings.reads == "columns" else (),
        hidden=settings.hidden,
        projections=settings.projections,
        normalize=settings.normalize,
        kv_weight=settings.kv_weight,
        reads=settings.reads,
        single_input=settings.single_input,
        attention=settings.attention,
        whole_matrix=settings.whole_matrix,
        seed=settings.seed,
    ).to(denoiser.device)
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    fingerprint = _fingerprint(settings, pairs, digests)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        losses = load_state(checkpoint, parameters, optimizer, fingerprint=fingerprint)

    encoded = _Encoded(denoiser)
    count = settings.pairs_per_step
    with denoiser.gradient_checkpointing(enabled=settings.gradient_checkpointing):
        for step in range(len(losses), settings.steps):
            total = 0.0
            chosen = shuffled_passes(
                len(pairs), step * count, count, seed=settings.seed, label="pairs"
            )
            for place, index in enumerate(chosen):
                pair = pairs[index]
                subject = adapters.get(pair.subject.adapter)
                style = adapters.get(pair.style.adapter)
                batch = draw_batch(
                    denoiser,
                    encoded.get(pair.subject),
                    encoded.get(pair.style),
                    settings.batch_size,
                    generator_for(settings.seed, "lorarar", step, place),
                )
                loss = merging_loss(
                    batch,
                    subject,
                    style,
                    network(subject, style),
                    regularizer=settings.regularizer,
                    weight=settings.lambda_,
                    default=settings.kv_weight,
                    backward=True,
                )
                total += loss.total.item() / count
            if not torch.isfinite(torch.tensor(total)):
                raise AdapterError(
                    f"the loss is {total} at step {step + 1}: lower lr, or use bfloat16 or float32 "
                    "instead of float16"
                )
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.grad /= count
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
            if checkpoint is not None and (
                len(losses) % settings.save_every == 0 or len(losses) == settings.steps
            ):
                save_state(checkpoint, parameters, optimizer, losses, fingerprint=fingerprint)
            if progress is not None:
                progress(len(losses), total)
    return network.requires_grad_(False).eval()


def held_out_loss(
    denoiser: Denoiser,
    network: HyperNetwork,
    pairs: Sequence[TrainingPair],
    *,
    draws: int = 8,
    batch_size: int = 4,
    seed: int = 0,
) -> float:
    """The merging loss without its regularizer, averaged over pairs that were not trained on.

    Images, timesteps and noise depend on the seed and the pair alone, so that the losses of two
    networks on the same pairs are paired.

    Args:
        denoiser: The frozen base model of the adapters.
        network: A trained hypernetwork, on the denoiser's device.
        pairs: At least one.
        draws: Batches a pair.
        batch_size: Images of the subject, and of the style, a batch.
        seed: Of the draws.
    """
    encoded = _Encoded(denoiser)
    total = 0.0
    for pair in pairs:
        subject, style = (
            load_adapter(concept.adapter).to(device=denoiser.device)
            for concept in (pair.subject, pair.style)
        )
        with torch.no_grad():
            coefficients = network(subject, style)
            for draw in range(draws):
                batch = draw_batch(
                    denoiser,
                    encoded.get(pair.subject),
                    encoded.get(pair.style),
                    batch_size,
                    generator_for(seed, "held out", pair.subject.id, pair.style.id, draw),
                )
                loss = merging_loss(batch, subject, style, coefficients, default=network.kv_weight)
                total += (loss.subject + loss.style).item()
    return total / (len(pairs) * draws)


class _Adapters:
    """The adapters used last, loaded."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._capacity = capacity
        self._device = device
        self._loaded: OrderedDict[Path, LoraAdapter] = OrderedDict()

    def get(self, path: Path) -> LoraAdapter:
        if path not in self._loaded:
            while len(self._loaded) >= self._capacity:
                self._loaded.popitem(last=False)
            self._loaded[path] = load_adapter(path).to(device=self._device)
        self._loaded.move_to_end(path)
        return self._loaded[path]


class _Encoded:
    """Latents and prompt embeddings of the concepts seen so far: small, so all are kept."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._concepts: dict[str, EncodedConcept] = {}

    def get(self, concept: TrainingConcept) -> EncodedConcept:
        if concept.id not in self._concepts:
            images = []
            for path in concept.images:
                with Image.open(path) as image:
                    images.append(image.convert("RGB"))
            self._concepts[concept.id] = encode_concept(self._denoiser, images, concept.prompts)
        return self._concepts[concept.id]


def _survey(
    pairs: Sequence[TrainingPair], settings: HyperTraining, adapters: _Adapters
) -> tuple[list[int], dict[Path, str]]:
    """Read every adapter once: widths of the predicted layers, digests; refuse misfits early."""
    endings = tuple("." + projection for projection in settings.projections)
    paths = sorted({c.adapter for pair in pairs for c in (pair.subject, pair.style)})
    first = adapters.get(paths[0])
    digests = {}
    for path in paths:
        adapter = adapters.get(path)
        try:
            check_same_layers([first, adapter])
        except AdapterError as error:
            raise AdapterError(f"{paths[0]} and {path}: {error}") from error
        digests[path] = adapter.digest()
    widths = {delta.shape[0] for name, delta in first.deltas.items() if name.endswith(endings)}
    if not widths:
        raise AdapterError(
            f"{paths[0]}: no layer ends with {' or '.join(settings.projections)}: "
            "there is nothing to predict"
        )
    return sorted(widths), digests


def _fingerprint(
    settings: HyperTraining, pairs: Sequence[TrainingPair], digests: dict[Path, str]
) -> str:
    """Digest of all that the training's state depends on; more steps go on from fewer."""
    kept = dataclasses.asdict(settings)
    for harmless in ("steps", "save_every", "adapters_in_memory", "gradient_checkpointing"):
        del kept[harmless]
    for variant in ("reads", "single_input", "attention", "whole_matrix"):
        if kept[variant] == getattr(HyperTraining, variant):
            del kept[variant]  # states from before there were variants are gone on with
    concepts = [
        [c.id, digests[c.adapter], c.prompts, [path.name for path in c.images]]
        for pair in pairs
        for c in (pair.subject, pair.style)
    ]
    return hashlib.sha256(json.dumps([kept, concepts]).encode()).hexdigest()
