"""What a metric is: it gives one or several scores to each image.

A new metric is a class with `id`, `names`, `higher_is_better` and `score`, and a loader registered
in `METRICS`. The loaders import their models' libraries when called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image

from baselines.registry import Registry
from mars2.judges import Judge, ServerSettings, identify_judge, load_judge
from mars2.judges.prompts import TEMPLATES, load_templates
from mars2.store import Sample

__all__ = [
    "METRICS",
    "Evaluated",
    "Identity",
    "Metric",
    "MetricLoader",
    "MetricSettings",
    "Progress",
    "Score",
    "identify_metric",
    "load_metric",
]

Progress = Callable[[int], None]
"""Called with the number of images finished since the last call."""


@dataclass(frozen=True)
class Evaluated:
    """An image to be scored and all that it is compared with.

    Attributes:
        sample: Where it comes from.
        image: RGB.
        subject_references: Images of the subject; RGB.
        style_references: Images in the style; RGB.
        style_phrase: The style in words, as in "``{style_phrase}`` style".
        prompt: What it was generated from; None if unknown.
    """

    sample: Sample
    image: Image
    subject_references: Sequence[Image]
    style_references: Sequence[Image]
    style_phrase: str
    prompt: str | None


@dataclass(frozen=True)
class Score:
    """One number for one image.

    Attributes:
        metric: Name of the score.
        value: None: unscored, which is counted and never averaged.
        detail: What the score came from.
        failed: Why something it needs could not be had this time, or ""; such a score is computed
            again by the next scoring.
    """

    metric: str
    value: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)
    failed: str = ""


class Metric(Protocol):
    """Scores images.

    Attributes:
        id: Model, revision and all settings that change the scores; goes into every record.
        names: Of the scores that each image gets, in this order.
        higher_is_better: Whether more is better.
    """

    @property
    def id(self) -> str: ...  # noqa: D102

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def higher_is_better(self) -> bool: ...  # noqa: D102

    def score(
        self, items: Sequence[Evaluated], *, progress: Progress | None = None
    ) -> list[list[Score]]:
        """Return for each image its scores, in the order of `names`."""
        ...


@dataclass(frozen=True)
class MetricSettings:
    """What the built-in metrics are loaded with; each takes from it what it needs.

    Attributes:
        judge: ``NAME:MODEL``, see `load_judge`; or a judge.
        layout: How the judge sees two images.
        dtype: Of the judge; None: float16 on a GPU, else float32.
        prompts: TOML file of question templates; None: ours.
        clip: open_clip model: ``ARCHITECTURE:PRETRAINED`` or ``local-dir:FOLDER``.
        dino: ViT in transformers' layout: folder or hub id.
        device: As torch names it; "auto": a GPU if there is one.
        server: How to ask a judge that is behind a server.
        cache: Whether a judge loaded by name keeps its answers between runs.
    """

    judge: str | Judge = "llava_onevision:lmms-lab/llava-critic-7b"
    layout: str = "anyres"
    dtype: str | None = None
    prompts: Path | None = None
    clip: str = "ViT-B-32-quickgelu:openai"
    dino: str = "facebook/dino-vits16"
    device: str = "auto"
    server: ServerSettings = field(default_factory=ServerSettings)
    cache: bool = True

    def model_of(self, metric: str) -> str:
        """Return the model of one of the built-in metrics; "" of another."""
        models = {"mars2": str(self.judge), "clip": self.clip, "dino": self.dino}
        return models.get(metric, "")


MetricLoader = Callable[[MetricSettings], Metric]


def load_mars2(settings: MetricSettings) -> Metric:
    """Whether a judge recognises subject and style: mars2, mars2_subject, mars2_style."""
    from mars2.metrics.mars2 import Mars2Metric

    judge = settings.judge
    if isinstance(judge, str):
        judge = load_judge(
            judge,
            dtype=settings.dtype,
            device=settings.device,
            layout=settings.layout,
            server=settings.server,
            cache=settings.cache,
        )
    templates = TEMPLATES if settings.prompts is None else load_templates(settings.prompts)
    return Mars2Metric(judge, templates)


def load_clip(settings: MetricSettings) -> Metric:
    """Cosines of CLIP features: clip_i_style, clip_i_subject and, with the prompt, clip_t."""
    from mars2.metrics.clip import ClipMetric

    return ClipMetric.load(settings.clip, device=settings.device)


def load_dino(settings: MetricSettings) -> Metric:
    """Cosines of DINO features: dino_style, dino_subject."""
    from mars2.metrics.dino import DinoMetric

    return DinoMetric.load(settings.dino, device=settings.device)


METRICS: Registry[MetricLoader] = Registry("metric")
METRICS.register("mars2", load_mars2)
METRICS.register("clip", load_clip)
METRICS.register("dino", load_dino)


@dataclass(frozen=True)
class Identity:
    """What is known of a metric before its model is loaded.

    Attributes:
        names: Of its scores.
        id: Its id, or how that begins.
        whole: Whether it is the whole id.
    """

    names: tuple[str, ...]
    id: str
    whole: bool = True

    def matches(self, judge: str) -> bool:
        """Return whether a record's judge is this metric."""
        return judge == self.id if self.whole else judge.startswith(f"{self.id} ")


def identify_metric(name: str, settings: MetricSettings) -> Identity | None:
    """Return what is known of a metric without loading its model; None: nothing is.

    Raises:
        PluginError: There is no such judge.
        JudgeError: There is no such model, or the settings do not fit.
    """
    if name == "mars2" and isinstance(settings.judge, str):
        from mars2.metrics import mars2

        judge = identify_judge(
            settings.judge,
            dtype=settings.dtype,
            device=settings.device,
            layout=settings.layout,
            server=settings.server,
        )
        if judge is None:
            return None
        templates = TEMPLATES if settings.prompts is None else load_templates(settings.prompts)
        return Identity(mars2.Mars2Metric.names, mars2.metric_id(judge, templates))
    if name == "clip":
        from mars2.metrics import clip

        # behind the name stands the model's preprocessing, which only the model tells
        return Identity(clip.ClipMetric.names, clip.shown_name(settings.clip), whole=False)
    if name == "dino":
        from mars2.judges.sources import find_model, read_config
        from mars2.metrics import dino

        found = find_model(settings.dino, dino.DINO_FILES)
        size = int(read_config(found.folder).get("image_size", 224))
        return Identity(dino.DinoMetric.names, dino.metric_id(found.id, size))
    return None


def load_metric(name: str, settings: MetricSettings) -> Metric:
    """Return the metric of a name.

    Raises:
        PluginError: There is none of this name.
        JudgeError: Its model cannot be loaded.
    """
    return METRICS.get(name)(settings)
