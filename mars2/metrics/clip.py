"""CLIP-I and CLIP-T: cosines between CLIP's features of images, and of an image and its prompt.

CLIP-I is the mean over references; against the style's image it rewards copying that image's
content too, so style and subject are both given. Models are open_clip's.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor

from mars2.judges import JudgeError
from mars2.judges.sources import file_revision, folder_revision
from mars2.metrics import Evaluated, Progress, Score
from mars2.metrics.features import ImageFeatures, unit

LOCAL = "local-dir:"
LOCAL_FILES = ("*.json", "*.safetensors", "merges.txt")


class ClipMetric:
    """Compares images with the references of their style and subject, and with their prompt.

    Args:
        model: An open_clip model.
        preprocess: Its own preprocessing, an image to pixels (3, height, width).
        tokenize: Its tokenizer, prompts to ids (n, context).
        name: Model and weights.
        device: Where it computes; float32.
        batch_size: Images at once.
    """

    names = ("clip_i_style", "clip_i_subject", "clip_t")
    higher_is_better = True

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Image.Image], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        *,
        name: str,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        self._model = model.to(device=device, dtype=torch.float32).eval()
        self._preprocess = preprocess
        self._tokenize = tokenize
        self._device = device
        self._features = ImageFeatures(self._embed, batch_size)
        self._batch_size = batch_size
        self._prompts: dict[str, Tensor] = {}
        self.id = name

    @classmethod
    def load(cls, source: str, *, device: str = "auto", batch_size: int = 32) -> "ClipMetric":
        """Return the metric with an open_clip model.

        Args:
            source: ``ARCHITECTURE:PRETRAINED``, such as ``ViT-B-32-quickgelu:openai``, where
                PRETRAINED may be a file, too; or ``local-dir:FOLDER`` with open_clip_config.json
                and safetensors weights in it.
            device: As torch names it; "auto": a GPU if there is one.
            batch_size: Images at once.

        Raises:
            JudgeError: There is no such model, or its weights cannot be had.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        name, pretrained = _parse(source)
        shown = shown_name(source)
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, precision="fp32", require_pretrained=True
            )
            tokenize = open_clip.get_tokenizer(name)
        except (OSError, ValueError, RuntimeError) as error:
            raise JudgeError(f"CLIP model {source} cannot be loaded: {error}") from error
        settings = open_clip.get_model_preprocess_cfg(model)
        used = " ".join(f"{key}={_short(settings[key])}" for key in sorted(settings))
        return cls(
            model,
            preprocess,
            tokenize,
            name=f"{shown} {used}",
            device=device,
            batch_size=batch_size,
        )

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the features (n, d) of images, of length 1."""
        return self._features.of(images)

    def score(
        self, items: Sequence[Evaluated], *, progress: Progress | None = None
    ) -> list[list[Score]]:
        """Return for each image the mean cosines with its references and that with its prompt.

        All in ``[-1, 1]``; clip_t is None if the prompt is unknown.
        """
        results: list[list[Score]] = []
        for start in range(0, len(items), self._batch_size):
            batch = items[start : start + self._batch_size]
            features = self._features.of([item.image for item in batch])
            for item, own in zip(batch, features, strict=True):
                results.append(
                    [
                        self._features.compare("clip_i_style", own, item.style_references),
                        self._features.compare("clip_i_subject", own, item.subject_references),
                        self._compare_text(own, item.prompt),
                    ]
                )
            if progress is not None:
                progress(len(batch))
        return results

    def _compare_text(self, own: Tensor, prompt: str | None) -> Score:
        if prompt is None:
            return Score("clip_t", None, {"prompt": None})
        if prompt not in self._prompts:
            with torch.inference_mode():
                ids = self._tokenize([prompt]).to(self._device)
                self._prompts[prompt] = unit(self._model.encode_text(ids)).cpu()[0]
        return Score("clip_t", float(own @ self._prompts[prompt]), {"prompt": prompt})

    def _embed(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([self._preprocess(image.convert("RGB")) for image in images])
        features: Tensor = self._model.encode_image(pixels.to(self._device))
        return features


def shown_name(source: str) -> str:
    """Return a model's name and the revision of its weights, as ids begin.

    Raises:
        JudgeError: It is no name of a model, or its weights cannot be had.
    """
    name, pretrained = _parse(source)
    if pretrained is None:
        folder = Path(name.removeprefix(LOCAL))
        return f"{folder.name}@{folder_revision(folder, LOCAL_FILES)}"
    path = _weights(name, pretrained)
    shown = pretrained if path != Path(pretrained) else path.name
    return f"{name}:{shown}@{file_revision(path)}"


def check_source(source: str) -> None:
    """Find what is wrong with a model's name, without downloading anything.

    Raises:
        JudgeError: It is no name of a model, or open_clip knows no such weights and no file is
            there.
    """
    name, pretrained = _parse(source)
    if pretrained is not None and not open_clip.get_pretrained_cfg(name, pretrained):
        _check_file(name, pretrained, Path(pretrained))


def _weights(name: str, pretrained: str) -> Path:
    """Return the file of a model's weights, which is downloaded once if it is not here."""
    published = open_clip.get_pretrained_cfg(name, pretrained)
    try:
        path = Path(open_clip.download_pretrained(published) if published else pretrained)
    except (OSError, ValueError, RuntimeError) as error:
        raise JudgeError(f"CLIP model {name}:{pretrained} cannot be loaded: {error}") from error
    _check_file(name, pretrained, path)
    return path


def _check_file(name: str, pretrained: str, path: Path) -> None:
    if not path.is_file():
        raise JudgeError(
            f"CLIP model {name}:{pretrained} cannot be loaded: there is no such file; open_clip "
            f"knows of {name}: {', '.join(open_clip.list_pretrained_tags_by_model(name)) or '-'}"
        )


def _parse(source: str) -> tuple[str, str | None]:
    """Return open_clip's name of a model and of its weights."""
    if source.startswith(LOCAL):
        folder = Path(source.removeprefix(LOCAL)).expanduser()
        for needed in ("open_clip_config.json", "*.safetensors"):
            if not list(folder.glob(needed)):
                raise JudgeError(f"CLIP model {source}: there is no {needed} in {folder}")
        return f"{LOCAL}{folder.resolve()}", None
    name, _, pretrained = source.partition(":")
    if not pretrained:
        raise JudgeError(
            f"CLIP model {source!r} names no weights: write ARCHITECTURE:PRETRAINED, such as "
            f"ViT-B-32-quickgelu:openai, or {LOCAL}FOLDER"
        )
    return name, pretrained


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value)
    return str(value)
