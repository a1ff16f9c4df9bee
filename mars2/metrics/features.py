"""Features of images and their cosines; those of reference images are computed once."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from mars2.judges.images import image_digest
from mars2.metrics import Score


def unit(features: Tensor) -> Tensor:
    """Return features (..., d) in float32 and of length 1 (of a zero vector: zeros)."""
    return torch.nn.functional.normalize(features.float(), dim=-1)


def mean_cosine(image: Tensor, references: Tensor) -> float:
    """Return the mean cosine, in ``[-1, 1]``, of an image's (d,) and references' (n, d) features.

    Both are of length 1.
    """
    return float((references @ image).mean())


class ImageFeatures:
    """Computes features of images; those of references once.

    Args:
        embed: Features (n, d) of n images.
        batch_size: Most images given to `embed` at once.
    """

    def __init__(self, embed: Callable[[Sequence[Image.Image]], Tensor], batch_size: int) -> None:
        self._embed = embed
        self._batch_size = batch_size
        self._references: dict[str, Tensor] = {}

    def of(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the features (n, d), of length 1."""
        with torch.inference_mode():
            return torch.cat(
                [
                    unit(self._embed(images[start : start + self._batch_size])).cpu()
                    for start in range(0, len(images), self._batch_size)
                ]
            )

    def of_references(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the same, each image's computed once and kept by its content."""
        digests = [image_digest(image) for image in images]
        new = {
            digest: image
            for digest, image in zip(digests, images, strict=True)
            if digest not in self._references
        }
        if new:
            self._references |= dict(zip(new, self.of(list(new.values())), strict=True))
        return torch.stack([self._references[digest] for digest in digests])

    def compare(self, name: str, own: Tensor, references: Sequence[Image.Image]) -> Score:
        """Return the mean cosine of an image's features (d,) with references; None without any."""
        value = mean_cosine(own, self.of_references(references)) if references else None
        return Score(name, value, {"references": len(references)})
