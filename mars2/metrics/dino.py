"""DINO: how much an image resembles references, by the cosine of a self-supervised ViT's features.

Class token of the last layer, as in DreamBooth (Ruiz et al. 2023, section 4.1); the mean over the
references. Against the subject's images it rewards a subject kept as it was, style included.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torchvision import transforms
from transformers import ViTConfig, ViTModel

from mars2.judges import JudgeError
from mars2.judges.sources import MODEL_FILES, find_model, read_config
from mars2.metrics import Evaluated, Progress, Score
from mars2.metrics.features import ImageFeatures
from mars2.quiet import no_bars

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
DINO_FILES = (*MODEL_FILES, "pytorch_model.bin")


def preprocessing(size: int) -> transforms.Compose:
    """Return DreamBooth's: bicubic to 256 for a crop of 224, in this proportion for other sizes."""
    return transforms.Compose(
        [
            transforms.Resize(
                round(size * 256 / 224), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def metric_id(name: str, size: int) -> str:
    """Return the id of the metric, given its model's name and revision, and its image size."""
    return f"{name} resize {round(size * 256 / 224)} bicubic, crop {size}, imagenet"


class DinoMetric:
    """Compares images with the references of their style and of their subject.

    Args:
        model: Without pooling layer.
        name: Name and revision.
        device: Where it computes; float32.
        batch_size: Images at once.
    """

    names = ("dino_style", "dino_subject")
    higher_is_better = True

    def __init__(
        self,
        model: Any,  # ViTModel, whose annotations do not hold
        *,
        name: str,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        size = model.config.image_size
        self._model = model.to(device=device, dtype=torch.float32).eval()
        self._preprocess = preprocessing(size)
        self._features = ImageFeatures(self._embed, batch_size)
        self._batch_size = batch_size
        self.id = metric_id(name, size)

    @classmethod
    def load(cls, source: str, *, device: str = "auto", batch_size: int = 32) -> "DinoMetric":
        """Return the metric with a ViT from a folder in transformers' layout, or a hub id.

        Raises:
            JudgeError: It is not there, or no ViT.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        # the original is published as a torch file; transformers reads it with weights_only
        found = find_model(source, DINO_FILES)
        config = read_config(found.folder)
        if config.get("model_type") != "vit":
            raise JudgeError(
                f"{source} is of type {config.get('model_type')!r}; DINO is a 'vit', such as "
                "facebook/dino-vits16"
            )
        architecture: Any = ViTModel
        try:
            with no_bars():
                model, info = architecture.from_pretrained(
                    found.folder,
                    config=ViTConfig.from_dict(config),
                    add_pooling_layer=False,
                    dtype=torch.float32,
                    local_files_only=True,
                    output_loading_info=True,
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise JudgeError(f"the model {source} cannot be loaded: {error}") from error
        if info["missing_keys"]:
            raise JudgeError(f"the weights of {source} lack {sorted(info['missing_keys'])[:3]}")
        return cls(model, name=found.id, device=device, batch_size=batch_size)

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the features (n, d) of images, of length 1."""
        return self._features.of(images)

    def score(
        self, items: Sequence[Evaluated], *, progress: Progress | None = None
    ) -> list[list[Score]]:
        """Return for each image the mean cosine, in ``[-1, 1]``, with its style's and subject's."""
        results: list[list[Score]] = []
        for start in range(0, len(items), self._batch_size):
            batch = items[start : start + self._batch_size]
            features = self._features.of([item.image for item in batch])
            for item, own in zip(batch, features, strict=True):
                results.append(
                    [
                        self._features.compare("dino_style", own, item.style_references),
                        self._features.compare("dino_subject", own, item.subject_references),
                    ]
                )
            if progress is not None:
                progress(len(batch))
        return results

    def _embed(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([self._preprocess(image.convert("RGB")) for image in images])
        output = self._model(pixel_values=pixels.to(self._model.device))
        tokens: Tensor = output.last_hidden_state  # (n, 1 + patches, d)
        return tokens[:, 0]
