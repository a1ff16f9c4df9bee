"""The pairs a hypernetwork is trained on: a suite's train subjects with its train styles.

Only what made the LoRAs is used, reference images and training prompts: never a test prompt.
Everything is sorted, so that a seed means the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from baselines.adapter import AdapterError
from benchmark_data.suite import Concept, Suite


@dataclass(frozen=True)
class TrainingConcept:
    """A subject or a style with its adapter.

    Attributes:
        id: The concept's id.
        adapter: Its LoRA file.
        images: Its reference images, sorted.
        prompts: For each image, the prompt its LoRA was trained with.
    """

    id: str
    adapter: Path
    images: tuple[Path, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class TrainingPair:
    """One subject with one style."""

    subject: TrainingConcept
    style: TrainingConcept


def training_pairs(
    suite: Suite, adapters: Path, *, split: str = "train", skip_missing: bool = False
) -> list[TrainingPair]:
    """Every subject of ``split`` with every style of it, sorted by subject and then style.

    Args:
        suite: Where concepts, prompts and images come from.
        adapters: Folder of ``CONCEPT.safetensors``.
        split: "train", or "val" to choose settings on.
        skip_missing: Leave out concepts without adapter or images, instead of refusing.

    Raises:
        AdapterError: If an adapter or all images of a concept are missing (unless skipped), or no
            pair is left.
        ValueError: For the split "test", which is measured on.
    """
    if split == "test":
        raise ValueError("a hypernetwork must not be trained on the test split")
    problems: list[str] = []
    subjects = _concepts(list(suite.subjects.values()), adapters, split, problems)
    styles = _concepts(list(suite.styles.values()), adapters, split, problems)
    if problems and not skip_missing:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise AdapterError(
            f"{problems[0]}{more}: train or fetch what is missing, or leave such concepts out"
        )
    pairs = [TrainingPair(subject, style) for subject in subjects for style in styles]
    if not pairs:
        raise AdapterError(
            f"suite {suite.name} gives no pair of split {split!r} with adapters in {adapters}"
        )
    return pairs


def _concepts(
    concepts: list[Concept], adapters: Path, split: str, problems: list[str]
) -> list[TrainingConcept]:
    """The usable concepts of the split; what is missing of the others goes into ``problems``."""
    usable = []
    for concept in sorted(concepts, key=lambda concept: concept.id):
        if concept.split != split:
            continue
        adapter = adapters / f"{concept.id}.safetensors"
        images = sorted(
            (reference.path, prompt)
            for reference, prompt in zip(concept.references, concept.prompts, strict=True)
            if reference.path is not None and reference.path.is_file()
        )
        if not adapter.is_file():
            problems.append(f"{concept.role} {concept.id} has no adapter {adapter}")
        elif not images:
            problems.append(f"{concept.role} {concept.id} has no reference image on this machine")
        else:
            paths, prompts = zip(*images, strict=True)
            usable.append(TrainingConcept(concept.id, adapter, paths, prompts))
    return usable
