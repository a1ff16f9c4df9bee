"""`mars2 train lora`, `joint` and `hypernet`: make the LoRAs and the hypernetwork of a suite."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmark_data.suite import Case, Concept, Suite
from mars2.cli.generating import load_denoiser, training_settings
from mars2.cli.options import Device, Model, SuiteName, TrainingDtype, parse_dtype
from mars2.cli.progress import progress
from mars2.job import RunError
from mars2.wording import listed

if TYPE_CHECKING:  # they import torch, which `--help` has no time for
    from PIL.Image import Image

    from baselines.denoiser import Denoiser
    from baselines.dreambooth import LoraTraining

TRAINING_KEY = "training"
"""Where the metadata of a LoRA says how it was trained, as JSON."""

Rank = Annotated[int | None, typer.Option(min=1, help="[default: the suite's]")]
LearningRate = Annotated[
    float | None, typer.Option(min=1e-12, help="Learning rate.  [default: the suite's]")
]
Schedule = Annotated[
    str | None,
    typer.Option(
        help="constant, or cosine: the learning rate falls to 0 over the steps.  "
        "[default: the suite's]"
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="[default: the suite's]")]
ImagesAStep = Annotated[
    int | None, typer.Option(min=1, help="Images a step.  [default: the suite's]")
]
FactorSeed = Annotated[int | None, typer.Option(help="Seed of the factors and of each step.")]
Unconditional = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Weight of keeping the base's prediction for the empty prompt, so that guidance "
        "amplifies what the LoRA teaches.  [default: the suite's]",
    ),
]
UnconditionalBelow = Annotated[
    float | None,
    typer.Option(
        help="Keep it only at timesteps below this share of all, above 0 and at most 1.  "
        "[default: the suite's]",
    ),
]
Checkpointing = Annotated[bool | None, typer.Option(help="Trade time for memory.")]

app = typer.Typer(no_args_is_help=True, help="Train LoRAs and hypernetworks; both resume.")


@app.command()
def lora(
    out: Annotated[Path, typer.Option(help="Folder for CONCEPT.safetensors.")],
    suite: SuiteName = "miniworld",
    concept: Annotated[
        list[str] | None, typer.Option(help="Subject or style; repeat it for several.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All subjects and styles.")] = False,
    split: Annotated[str | None, typer.Option(help="With --all: of this split only.")] = None,
    model: Model = None,
    rank: Rank = None,
    lr: LearningRate = None,
    lr_schedule: Schedule = None,
    steps: Steps = None,
    batch_size: ImagesAStep = None,
    unconditional_weight: Unconditional = None,
    unconditional_below: UnconditionalBelow = None,
    seed: FactorSeed = None,
    gradient_checkpointing: Checkpointing = None,
    dtype: TrainingDtype = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained, and what is missing.")
    ] = False,
) -> None:
    """Train LoRAs of a suite's subjects and styles by DreamBooth; what is there is skipped."""
    from baselines.dreambooth import LoraTraining
    from benchmark_data.load import load_suite
    from benchmark_data.references import open_references, reference_paths

    loaded = load_suite(suite)
    concepts = _chosen(loaded, concept or [], every=every, split=split)
    todo = [one for one in concepts if not (out / f"{one.id}.safetensors").exists()]
    reference_paths(todo, suite)  # all that are missing are counted at once
    given = {
        "rank": rank,
        "lr": lr,
        "lr_schedule": lr_schedule,
        "steps": steps,
        "batch_size": batch_size,
        "unconditional_weight": unconditional_weight,
        "unconditional_below": unconditional_below,
        "seed": seed,
        "gradient_checkpointing": gradient_checkpointing,
    }
    wanted = {
        one.id: training_settings(LoraTraining, loaded, f"{one.role}_lora", given)
        for one in concepts
    }
    _check_below(unconditional_below, wanted.values())
    base = Path(model or loaded.models.base).name
    for one in concepts:
        if one not in todo:
            _check_same(out / f"{one.id}.safetensors", _training(wanted[one.id], base, one.prompts))
    if dry_run:
        for one in concepts:
            _tell(out / f"{one.id}.safetensors", one, wanted[one.id], there=one not in todo)
        return
    denoiser = (
        load_denoiser(loaded, model, dtype=parse_dtype(dtype), device=device) if todo else None
    )
    for one in concepts:
        path = out / f"{one.id}.safetensors"
        if denoiser is None or one not in todo:
            print(f"{path} is there already")
            continue
        told = {TRAINING_KEY: json.dumps(_training(wanted[one.id], base, one.prompts))}
        _train(denoiser, open_references(one), one.prompts, wanted[one.id], path, told)


@app.command()
def joint(
    out: Annotated[Path, typer.Option(help="Folder for CASE.safetensors.")],
    suite: SuiteName = "miniworld",
    case: Annotated[
        list[str] | None, typer.Option(help="SUBJECT_STYLE; repeat it for several.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the pairs; all of it without --case.")] = (
        "test"
    ),
    model: Model = None,
    rank: Rank = None,
    lr: LearningRate = None,
    lr_schedule: Schedule = None,
    steps: Steps = None,
    batch_size: ImagesAStep = None,
    unconditional_weight: Unconditional = None,
    unconditional_below: UnconditionalBelow = None,
    seed: FactorSeed = None,
    gradient_checkpointing: Checkpointing = None,
    dtype: TrainingDtype = None,
    device: Device = "auto",
) -> None:
    """Train a LoRA of a subject and a style together, for each pair; what is there is skipped.

    The suite's settings are those of `joint_lora`, or else those of `subject_lora`.
    """
    from baselines.dreambooth import LoraTraining
    from benchmark_data.load import load_suite
    from benchmark_data.references import open_references, reference_paths

    loaded = load_suite(suite)
    cases = _cases(loaded, case or [], split)
    todo = [one for one in cases if not (out / f"{one.id}.safetensors").exists()]
    concepts = {concept.id: concept for one in todo for concept in (one.subject, one.style)}
    reference_paths(list(concepts.values()), suite)  # all that are missing are counted at once
    images = {name: open_references(concept) for name, concept in concepts.items()}
    given = {
        "rank": rank,
        "lr": lr,
        "lr_schedule": lr_schedule,
        "steps": steps,
        "batch_size": batch_size,
        "unconditional_weight": unconditional_weight,
        "unconditional_below": unconditional_below,
        "seed": seed,
        "gradient_checkpointing": gradient_checkpointing,
    }
    table = "joint_lora" if "joint_lora" in loaded.training else "subject_lora"
    settings = training_settings(LoraTraining, loaded, table, given)
    _check_below(unconditional_below, [settings])
    denoiser = (
        load_denoiser(loaded, model, dtype=parse_dtype(dtype), device=device) if todo else None
    )
    for one in cases:
        path = out / f"{one.id}.safetensors"
        if denoiser is None or one not in todo:
            print(f"{path} is there already")
            continue
        shown = [*images[one.subject.id], *images[one.style.id]]
        _train(denoiser, shown, [*one.subject.prompts, *one.style.prompts], settings, path, {})


@app.command()
def hypernet(
    out: Annotated[Path, typer.Option(help="The hypernetwork's file, .safetensors.")],
    suite: SuiteName = "miniworld",
    adapters: Annotated[
        Path | None, typer.Option(help="Folder of CONCEPT.safetensors.  [default: the suite's]")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the pairs; never test.")] = "train",
    model: Model = None,
    steps: Steps = None,
    lr: LearningRate = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images of the subject, and of the style, a step.")
    ] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Width of the hidden layer.")] = None,
    normalize: Annotated[
        bool | None, typer.Option(help="Divide the columns by their root mean square.")
    ] = None,
    predict: Annotated[
        str | None,
        typer.Option(help="Projections to predict, such as q, q+out (the paper's) or q+k+v+out."),
    ] = None,
    reads: Annotated[
        str | None,
        typer.Option(
            help="columns (the paper's), or features, which serve any width and base model."
        ),
    ] = None,
    single_input: Annotated[
        bool | None, typer.Option(help="One input layer for all widths, not one for each.")
    ] = None,
    attention: Annotated[
        bool | None, typer.Option(help="Let the columns of a layer see each other.")
    ] = None,
    whole_matrix: Annotated[
        bool | None, typer.Option(help="One pair of coefficients a layer, not one a column.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out concepts without adapter or image.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the weights and of each step.")] = None,
    gradient_checkpointing: Checkpointing = None,
    dtype: TrainingDtype = None,
    device: Device = "auto",
) -> None:
    """Train LoRA.rar's hypernetwork on the pairs of a suite's train split."""
    from baselines.adapter import AdapterError
    from benchmark_data.load import load_suite
    from lorarar.checkpoints import Provenance, save_checkpoint
    from lorarar.pairs import training_pairs
    from lorarar.train import HyperTraining, train_hypernetwork

    if split == "test":
        raise RunError("--split is test, which is measured on; train on another split")
    if out.exists():
        raise RunError(f"{out} exists; choose another --out")
    loaded = load_suite(suite)
    folder = adapters or loaded.adapters
    if folder is None:
        raise RunError(f"suite {suite} ships no adapters: give their folder with --adapters")
    try:
        pairs = training_pairs(loaded, folder, split=split, skip_missing=skip_missing)
    except AdapterError as error:
        raise RunError(
            f"{error}; `mars2 train lora --suite {suite} --all --split {split} --out {folder}` "
            "trains the adapters, --skip-missing leaves out"
        ) from error
    given = {
        "steps": steps,
        "lr": lr,
        "batch_size": batch_size,
        "hidden": hidden,
        "normalize": normalize,
        "projections": None if predict is None else _projections(predict),
        "reads": reads,
        "single_input": single_input,
        "attention": attention,
        "whole_matrix": whole_matrix,
        "seed": seed,
        "gradient_checkpointing": gradient_checkpointing,
    }
    settings = training_settings(HyperTraining, loaded, "hypernetwork", given)
    denoiser = load_denoiser(loaded, model, dtype=parse_dtype(dtype), device=device)
    state = out.with_name(f".{out.stem}.training.safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    with progress(f"{len(pairs)} pairs", unit="step", total=settings.steps) as bar:
        network = train_hypernetwork(
            denoiser, pairs, settings, checkpoint=state, progress=partial(show_step, bar)
        )
    save_checkpoint(network, out, Provenance(loaded.name, loaded.revision, settings.steps))
    state.unlink(missing_ok=True)
    print(out)


def _train(
    denoiser: "Denoiser",
    images: Sequence["Image"],
    prompts: Sequence[str],
    settings: "LoraTraining",
    path: Path,
    told: Mapping[str, str],
) -> None:
    """Train a LoRA or go on with it, under a bar, and write it with what its metadata tell."""
    from baselines.dreambooth import train_lora
    from baselines.formats import save_adapter

    state = path.with_name(f".{path.stem}.training.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    with progress(path.stem, unit="step", total=settings.steps) as bar:
        adapter = train_lora(
            denoiser,
            images,
            prompts,
            settings,
            checkpoint=state,
            progress=partial(show_step, bar),
        )
    save_adapter(replace(adapter, metadata={**adapter.metadata, **told}), path)
    state.unlink(missing_ok=True)
    print(path)


def _tell(path: Path, concept: Concept, settings: "LoraTraining", *, there: bool) -> None:
    """Print what would be done about a concept's LoRA."""
    if there:
        print(f"{path} is there already")
        return
    state = path.with_name(f".{path.stem}.training.safetensors")
    prompts = sorted(set(concept.prompts))
    print(
        f"would {'go on with' if state.exists() else 'train'} {path}: rank {settings.rank}, "
        f"{settings.steps} steps of {settings.batch_size} at {settings.lr:g}, on "
        f"{len(concept.references)} images, {', '.join(map(repr, prompts))}{_apart(settings)}"
    )


def _check_below(below: float | None, settings: "Iterable[LoraTraining]") -> None:
    """Refuse a share of the timesteps at which nothing is asked for."""
    if below is not None and all(one.unconditional_weight == 0 for one in settings):
        raise RunError(
            f"--unconditional-below is {below:g} and would do nothing: the weight is 0; "
            "give --unconditional-weight, such as 1"
        )


def _apart(settings: "LoraTraining") -> str:
    """How a LoRA is kept out of the empty prompt, in words; "" where it is not."""
    if settings.unconditional_weight == 0:
        return ""
    return (
        f"; kept out of the empty prompt below {settings.unconditional_below:g} of the timesteps "
        f"(weight {settings.unconditional_weight:g})"
    )


def _projections(text: str) -> tuple[str, ...]:
    """Return the layers' endings: "q+out" -> to_q and to_out.0."""
    endings = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    parts = text.split("+")
    if any(part not in endings or parts.count(part) > 1 for part in parts):
        raise RunError(f"--predict is {text!r}; join some of q, k, v and out by +, such as q+out")
    return tuple(endings[part] for part in parts)


def _chosen(suite: Suite, names: list[str], *, every: bool, split: str | None) -> list[Concept]:
    """Return the concepts asked for, in the order of the suite."""
    known = {**suite.subjects, **suite.styles}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise RunError(
            f"suite {suite.name} has no subject or style {unknown[0]!r}; it has {', '.join(known)}"
        )
    if every == bool(names):
        raise RunError("give either --concept, once or more, or --all")
    if split is not None and not every:
        raise RunError("--split goes with --all only")
    chosen = [
        one for one in known.values() if one.id in names or (every and split in (None, one.split))
    ]
    if not chosen:
        raise RunError(f"suite {suite.name} has no subject or style in split {split!r}")
    return chosen


def _cases(suite: Suite, names: list[str], split: str) -> list[Case]:
    """Return the pairs of a split, or those asked for, in the order of the suite."""
    if split not in suite.cases:
        raise RunError(
            f"suite {suite.name} has no split {split!r}; it has {', '.join(suite.cases)}"
        )
    known = {case.id: case for case in suite.cases[split]}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise RunError(
            f"suite {suite.name} has no pair {unknown[0]!r} in split {split!r}; it has "
            f"{listed(known)}"
        )
    return [case for case in known.values() if not names or case.id in names]


def _training(settings: Any, base: str, prompts: Sequence[str]) -> dict[str, Any]:
    """Return what makes a LoRA what it is, as its file tells; not what only costs time."""
    free = ("save_every", "gradient_checkpointing")
    told = {name: value for name, value in asdict(settings).items() if name not in free}
    return {**told, "model": base, "prompts": list(prompts)}


def _check_same(path: Path, wanted: Mapping[str, Any]) -> None:
    """Check that the LoRA in a file was trained as is wanted now; a file may not tell.

    Raises:
        RunError: It was not.
    """
    from baselines.dreambooth import LoraTraining
    from baselines.formats import read_lora

    try:
        told = json.loads(read_lora(path).metadata.get(TRAINING_KEY, "{}"))
    except ValueError:
        told = {}
    if told:  # a setting that is younger than the file was at its default
        told = {**asdict(LoraTraining()), **told}
    changed = [
        f"{name} was {told[name]}, now {value}"
        for name, value in wanted.items()
        if name in told and told[name] != json.loads(json.dumps(value))
    ]
    if changed:
        raise RunError(
            f"{path} was trained with other settings: {'; '.join(changed)}. Give another --out, "
            "delete the file to train it anew, or give the old settings"
        )


def show_step(bar: Any, step: int, loss: float) -> None:
    """Move the bar of a training, a `tqdm`, to a step, with its loss."""
    bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
    bar.update(step - bar.n)
