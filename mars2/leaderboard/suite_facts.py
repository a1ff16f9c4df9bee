"""What a suite demands of the entries on its leaderboard."""

import io
from pathlib import Path

from PIL import Image

from baselines import load_adapter
from benchmark_data.load import load_suite
from benchmark_data.references import open_image
from benchmark_data.suite import Concept, Suite
from leaderboards.entry import split_judge
from leaderboards.facts import CaseFacts, SuiteFacts
from mars2.job import digest
from mars2.pipelines import model_revision

SPLIT = "test"
THUMBNAIL = 128
_PACKAGE = Path(__file__).parents[2] / "benchmark_data"


def suite_facts(name: str, *, references: bool = False) -> SuiteFacts:
    """Return what a suite demands of its entries.

    Args:
        name: Name or path of the suite.
        references: Whether small copies of the reference images that come with it are wanted.

    Raises:
        SuiteError: There is no such suite.
        RunError: Its base model is a folder that holds no pipeline.
        JudgeError: Its judge, if it comes with the suite, is not there.
        AdapterError: Likewise an adapter.
    """
    from mars2.judges import TEMPLATES, identify_judge
    from mars2.metrics.mars2 import metric_id

    suite = load_suite(name)
    base = suite.models.base
    kind, _, model = suite.models.judge.partition(":")
    if kind == "scripted" or Path(model).exists():
        own = identify_judge(suite.models.judge, dtype="float32", device="cpu")
    else:
        own = f"{model} anyres"
    parts = split_judge(metric_id(own or model, TEMPLATES))
    cases = suite.cases[SPLIT]
    generation = suite.generation
    return SuiteFacts(
        name=suite.name,
        title=suite.title,
        revision=suite.revision,
        split=SPLIT,
        cases=tuple(CaseFacts(c.id, c.subject.id, c.style.id, c.prompt) for c in cases),
        seeds=cases[0].seeds,
        base=shown_model(base),
        base_revision=model_revision(base) if Path(base).is_dir() else "",
        resolution=generation.resolution,
        steps=generation.steps,
        guidance_scale=generation.guidance_scale,
        negative_prompt=generation.negative_prompt,
        judge=f"{parts['model']}@{parts['revision']}" if parts["revision"] else parts["model"],
        layout=parts["layout"] if kind in ("llava_onevision", "scripted") else "",
        prompts=parts["prompts"],
        adapters=_shipped_adapters(suite),
        licence=suite.licence,
        shown={concept.id: len(concept.references) for concept in suite.concepts.values()},
        references=_thumbnails(suite) if references else {},
    )


def shown_model(model: str) -> str:
    """Return a model's name without where this machine keeps it.

    Of a hub id that id, of a folder that comes with a package ``package:...``, of another its name.
    """
    path = Path(model)
    if not path.is_absolute() and not path.exists():
        return model  # on the hub
    resolved = path.resolve()
    if resolved.is_relative_to(_PACKAGE):
        return f"package:{resolved.relative_to(_PACKAGE).as_posix()}"
    return resolved.name


def _shipped_adapters(suite: Suite) -> str:
    if suite.adapters is None:
        return ""
    used = dict.fromkeys(c for case in suite.cases[SPLIT] for c in (case.subject, case.style))
    return digest(
        {
            concept.id: load_adapter(
                suite.adapters / f"{concept.id}.safetensors", name=concept.id
            ).digest()
            for concept in used
        }
    )


def _thumbnails(suite: Suite) -> dict[str, tuple[bytes, ...]]:
    """Return small copies of the references that come with the suite, and so may be shown."""
    used: dict[str, Concept] = {
        concept.id: concept for case in suite.cases[SPLIT] for concept in (case.subject, case.style)
    }
    return {
        id_: tuple(
            _webp(open_image(reference.path))
            for reference in concept.references
            if reference.local and reference.path is not None
        )
        for id_, concept in used.items()
    }


def _webp(image: Image.Image) -> bytes:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    image.save(target, format="WEBP", quality=84, method=4)
    return target.getvalue()
