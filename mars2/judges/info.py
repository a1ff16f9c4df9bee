"""What a judge is, told from its files without loading it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mars2.judges import JUDGES, TEMPLATES, JudgeError, load_templates
from mars2.judges.llava_checkpoint import TRANSFORMERS, describe, placed_keys
from mars2.judges.llava_onevision import check_layout, is_published
from mars2.judges.prompts import choose, digest
from mars2.judges.qwen_vl import qwen_config
from mars2.judges.room import Need, free_memory, memory_need
from mars2.judges.sources import find_model
from mars2.judges.weights import (
    DTYPES,
    StoredWeight,
    count_parameters,
    main_dtype,
    resolve,
    stored_weights,
)


@dataclass(frozen=True)
class JudgeInfo:
    """What would be loaded.

    Attributes:
        model: Name and revision.
        architecture: Class that its config.json names.
        files: "transformers' layout" or "LLaVA-NeXT's layout".
        layout: How two images would be shown; "" for a judge with one way only.
        stored_dtype: Of most weights in the files.
        dtype: It would be computed in.
        device: It would be computed on.
        parameters: Their number.
        need: Memory that they and one question take.
        free: Memory there is, bytes; None: not told.
        prompts: 12 hex of the question templates' digest.
        published: Whether it would be the published judge in its published setting.
    """

    model: str
    architecture: str
    files: str
    layout: str
    stored_dtype: str
    dtype: str
    device: str
    parameters: int
    need: Need
    free: int | None
    prompts: str
    published: bool


def inspect_judge(
    spec: str,
    *,
    dtype: str | None = None,
    device: str = "auto",
    layout: str = "anyres",
    prompts: Path | None = None,
) -> JudgeInfo:
    """Return what a judge is; its files are fetched if need be, no weight is loaded.

    Args:
        spec: ``NAME:SOURCE``, see `load_judge`.
        dtype: See `load_judge`.
        device: See `load_judge`.
        layout: "anyres" or "pad".
        prompts: TOML file of question templates; None: ours.

    Raises:
        JudgeError: It has no weights of its own, or they do not fit together.
        PluginError: There is no such judge.
    """
    name, _, source = spec.partition(":")
    JUDGES.get(name)
    if name not in _READERS or not source:
        raise JudgeError(
            f"judge {spec!r} has no weights to tell of: give NAME:MODEL with one of "
            f"{', '.join(_READERS)}"
        )
    check_layout(layout)
    dtype, device = resolve(name, dtype, device)
    found = find_model(source)
    weights = stored_weights(found.folder)
    architecture, files, config = _READERS[name](found.folder, weights)
    parameters = count_parameters(weights)
    templates = TEMPLATES if prompts is None else load_templates(prompts)
    return JudgeInfo(
        model=found.id,
        architecture=architecture,
        files=files,
        layout=layout if name == "llava_onevision" else "",
        stored_dtype=main_dtype(weights),
        dtype=dtype,
        device=device,
        parameters=parameters,
        need=memory_need(config, parameters, DTYPES[dtype]),
        free=free_memory(device),
        prompts=digest(*choose(templates).values()),
        published=name == "llava_onevision" and is_published(found, layout, dtype),
    )


def _llava(folder: Path, weights: Mapping[str, StoredWeight]) -> tuple[str, str, Any]:
    described = describe(folder)
    placed_keys(folder, described, weights)
    whose = "transformers'" if described.architecture == TRANSFORMERS else "LLaVA-NeXT's"
    return described.architecture, f"{whose} layout", described.config


def _qwen(folder: Path, weights: Mapping[str, StoredWeight]) -> tuple[str, str, Any]:
    architecture, config = qwen_config(folder)
    return architecture, "transformers' layout", config


_Reader = Callable[[Path, Mapping[str, StoredWeight]], tuple[str, str, Any]]
_READERS: Mapping[str, _Reader] = {"llava_onevision": _llava, "qwen_vl": _qwen}
