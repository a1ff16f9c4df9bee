"""Adapters, images and pairs to train a hypernetwork on."""

from collections.abc import Callable

import pytest
from PIL.Image import Image

from baselines.adapter import LoraAdapter
from baselines.formats import save_adapter
from lorarar.pairs import TrainingConcept, TrainingPair


@pytest.fixture(scope="session")
def pairs(
    tmp_path_factory: pytest.TempPathFactory,
    random_adapter: Callable[..., LoraAdapter],
    random_image: Callable[..., Image],
) -> list[TrainingPair]:
    """Two subjects with two styles on the small pipeline."""
    folder = tmp_path_factory.mktemp("pairs")

    def concept(number: int, prompt: str) -> TrainingConcept:
        adapter, image = folder / f"{number}.safetensors", folder / f"{number}.png"
        save_adapter(random_adapter(30 + number, strength=0.6), adapter)
        random_image(30 + number).save(image)
        return TrainingConcept(f"c{number}", adapter, (image,), (prompt,))

    subjects = [concept(0, "a dog"), concept(1, "a mug")]
    styles = [concept(2, "a house in oil style"), concept(3, "a house in crayon style")]
    return [TrainingPair(subject, style) for subject in subjects for style in styles]
