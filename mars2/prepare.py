"""Plans a run: looks up and checks methods, adapters, reference images and the base model."""

import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import constants as hub

from baselines.adapter import AdapterError
from baselines.formats import load_adapter
from baselines.registry import MergeMethod, parse_method
from benchmark_data.references import file_digest, reference_paths
from benchmark_data.suite import Concept, Suite, SuiteError
from mars2 import __version__
from mars2.job import (
    CONTROLS,
    Choices,
    MethodSpec,
    NotReadyError,
    PlannedCase,
    RunError,
    RunSpec,
    method_label,
    spread,
)
from mars2.judges.errors import JudgeError
from mars2.pipelines import model_revision
from mars2.wording import few

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")  # an option that ends so names a file
DEFAULT_METHODS = ("direct_sum", "average", "ziplora", "lorarar")


@dataclass(frozen=True)
class Plan:
    """A run ready to start: its description, and the code and data behind the names in it."""

    spec: RunSpec
    suite: Suite
    methods: Mapping[str, MergeMethod]

    def adapter_path(self, concept: str) -> Path:
        """Return where a concept's adapter lies."""
        return Path(self.spec.adapters) / f"{concept}.safetensors"

    def within(self, run: RunSpec) -> "Plan":
        """Return the plan of the same methods on all pairs and seeds of the run they belong to."""
        digests = {**run.adapter_digests, **self.spec.adapter_digests}
        spec = replace(self.spec, cases=run.cases, seeds=run.seeds, adapter_digests=digests)
        return replace(self, spec=spec)


def prepare(
    suite_name: str,
    suite: Suite,
    choices: Choices,
    *,
    scored: bool = False,
    checks: Sequence[Callable[[], object]] = (),
) -> Plan:
    """Return the plan of a run, everything looked up and checked that needs no model.

    What has to be made or fetched first (adapters, reference images, files that methods name, the
    base model) is told all at once. A base model on the hub is looked up, and that is downloaded,
    only when the rest is there.

    Args:
        suite_name: Name or path of the suite, as given.
        suite: What is in it.
        choices: What to run of it.
        scored: Whether the images will be scored, for which reference images are needed.
        checks: What else may raise a public error, such as of a judge that is not here.

    Raises:
        RunError: An unknown split, a method given twice, ...
        NotReadyError: More than one thing that has to be made or fetched is missing.
        PluginError: An unknown method or option.
        AdapterError: An adapter that cannot be read, or with values that are not finite.
        SuiteError: Reference images are missing that the scoring or a method needs.
        JudgeError: What a check raises.
    """
    if choices.split not in suite.cases:
        raise RunError(
            f"suite {suite.name} has no split {choices.split!r}; it has {', '.join(suite.cases)}"
        )
    cases = suite.cases[choices.split]
    cases = tuple(
        cases[index]
        for index in spread([(case.subject.id, case.style.id) for case in cases], choices.limit)
    )
    methods = resolve_methods(choices.methods or DEFAULT_METHODS, suite, controls=choices.controls)
    device = find_device(choices.device)
    concepts = {concept.id: concept for case in cases for concept in (case.subject, case.style)}
    adapters = choices.adapters or suite.adapters
    if adapters is None:
        raise RunError(f"suite {suite.name} ships no adapters: give their folder with --adapters")
    seeds = choices.seeds or _suite_seeds(suite, choices.split)
    generation = suite.generation
    model = choices.model or suite.models.base
    found: list[Exception] = []
    digests: dict[str, str] = {}
    revision = ""
    with _noted(found):
        _check_files(methods)
    with _noted(found):
        digests = _adapter_digests(Path(adapters), list(concepts.values()), suite_name)
    if scored or any(method_spec.kind == "fit" for method_spec, _ in methods):
        with _noted(found):
            reference_paths(list(concepts.values()), suite_name)
    for check in checks:
        with _noted(found):
            check()
    if not found or Path(model).is_dir() or hub.HF_HUB_OFFLINE:
        with _noted(found):
            revision = model_revision(model)
    if len(found) == 1:
        raise found[0]
    if found:
        raise NotReadyError([str(error) for error in found])
    spec = RunSpec(
        suite=suite_name,
        suite_revision=suite.revision,
        split=choices.split,
        cases=tuple(
            PlannedCase(case.id, case.subject.id, case.style.id, case.prompt) for case in cases
        ),
        methods=tuple(method_spec for method_spec, _ in methods),
        model=model,
        model_revision=revision,
        dtype=choices.dtype or ("float32" if device == "cpu" else "float16"),
        device=device,
        adapters=str(adapters),
        adapter_digests=digests,
        seeds=seeds,
        steps=generation.steps if choices.steps is None else choices.steps,
        guidance_scale=generation.guidance_scale,
        negative_prompt=generation.negative_prompt,
        resolution=generation.resolution,
        limit=choices.limit,
        environment=environment(device),
    )
    return Plan(spec, suite, {method_spec.label: method for method_spec, method in methods})


@contextmanager
def _noted(found: list[Exception]) -> Iterator[None]:
    """Keep an error of what is checked, so that the next thing can be checked as well."""
    try:
        yield
    except (AdapterError, JudgeError, RunError, SuiteError) as error:
        found.append(error)


def _check_files(methods: Sequence[tuple[MethodSpec, MergeMethod]]) -> None:
    """Check that the files of weights are there that options of methods name.

    Raises:
        RunError: One is not.
    """
    missing = [
        f"{method.label.partition(':')[0]}:{name}={value}"
        for method, _ in methods
        for name, value in method.resolved.items()
        if isinstance(value, str)
        and Path(value).suffix in WEIGHTS
        and not Path(value).expanduser().is_file()
    ]
    if missing:
        raise RunError(f"{few(missing)}: no such file")


def resolve_methods(
    texts: Sequence[str], suite: Suite, *, controls: bool
) -> list[tuple[MethodSpec, MergeMethod]]:
    """Return the methods of a run, controls first, options filled from the suite and defaults.

    Raises:
        PluginError: An unknown method or option.
    """
    found = []
    if controls:
        texts = [*CONTROLS, *(text for text in texts if text not in CONTROLS)]
    for text in texts:
        method, passed = parse_method(text)
        resolved = method.resolve({**suite.method_options.get(method.name, {}), **passed})
        found.append(
            (
                MethodSpec(
                    name=method.name,
                    options=passed,
                    resolved=resolved,
                    label=method_label(method.name, passed),
                    kind=method.kind,
                    source=method.source,
                    files={
                        name: file_digest(Path(value))
                        for name, value in resolved.items()
                        if isinstance(value, str) and value and Path(value).is_file()
                    },
                ),
                method,
            )
        )
    return found


def find_device(device: str) -> str:
    """Return a torch device; "auto" is the first GPU, or the CPU.

    Raises:
        RunError: There is no such device here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"--device is {device!r}; give auto, cpu or cuda") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise RunError(f"--device is {device}, but torch sees no CUDA device here; give cpu")
    try:
        torch.zeros(1, device=place).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # as the kinds of devices do
        raise RunError(
            f"--device is {device}, but torch can place nothing there; give auto, cpu or cuda"
        ) from error
    return device


def environment(device: str = "cpu") -> dict[str, str]:
    """Return what a run was made with: versions, git revision, platform, GPU and time."""
    packages = ("diffusers", "transformers", "peft", "numpy", "pillow")
    gpu = torch.device(device).type == "cuda"
    return {
        "mars2": __version__,
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        **({"gpu": torch.cuda.get_device_name(device)} if gpu else {}),
        "git": _git_revision(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _git_revision() -> str:
    """Return the commit this code was run from, "+" behind it if changed; "" if not known."""
    here = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def _suite_seeds(suite: Suite, split: str) -> tuple[int, ...]:
    seeds = {case.seeds for case in suite.cases[split]}
    if len(seeds) != 1:
        raise RunError(f"the cases of {suite.name}/{split} have different seeds: give --seeds")
    return tuple(seeds.pop())


def _adapter_digests(folder: Path, concepts: Sequence[Concept], suite_name: str) -> dict[str, str]:
    """Concept -> digest of its adapter; all that are missing are named at once."""
    files = {concept.id: folder / f"{concept.id}.safetensors" for concept in concepts}
    missing = [concept.id for concept in concepts if not files[concept.id].is_file()]
    if missing:
        which = "".join(f" --concept {name}" for name in missing) if len(missing) <= 3 else " --all"
        raise RunError(
            f"{len(missing)} of {len(files)} adapters are missing in {folder}: {few(missing)}; "
            f"train them with `mars2 train lora --suite {suite_name}{which} --out {folder}`"
        )
    digests = {}
    for name, file in files.items():
        adapter = load_adapter(file, name=name)
        adapter.check_finite()
        digests[name] = adapter.digest()
    return digests
