"""How far concepts lie apart: cosines of the features of their reference images."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from benchmark_data.references import reference_paths
from benchmark_data.suite import Concept, Suite
from mars2.files import read_image
from mars2.studies.association import Floats


class Embedder(Protocol):
    """What gives features: a CLIP or DINO metric."""

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the features (n, d) of images, of length 1."""
        ...


def concept_features(suite: Suite, embedder: Embedder) -> dict[str, Floats]:
    """Return the features (references, d) of every concept.

    Raises:
        SuiteError: Reference images are not there.
        RunError: An image cannot be read.
    """
    found = {}
    for concept in suite.concepts.values():
        images = [read_image(path) for path in reference_paths([concept], suite.name)]
        found[concept.id] = embedder.features(images).double().numpy()
    return found


def distance(one: Floats, other: Floats) -> float:
    """Return 1 less the mean cosine of two concepts' images, in ``[0, 2]``."""
    return float(1 - (one @ other.T).mean())


def own_distance(features: Floats) -> float | None:
    """Return the same between the images of one concept; None for a single image."""
    count = len(features)
    if count < 2:
        return None
    cosines = features @ features.T
    return float(1 - (cosines.sum() - np.trace(cosines)) / (count * (count - 1)))


def nearest(
    concept: Concept, suite: Suite, features: Mapping[str, Floats], split: str = "train"
) -> tuple[str, float] | None:
    """Return the concept of a split, of the same role, that is nearest, and how near it is."""
    others = [
        (distance(features[concept.id], features[other.id]), other.id)
        for other in suite.concepts.values()
        if other.role == concept.role and other.split == split and other.id != concept.id
    ]
    return (min(others)[1], min(others)[0]) if others else None
