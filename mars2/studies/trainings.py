"""Hypernetworks that a study compares: trained, a folder each, and run as methods of one run.

A training is done when its folder has `training.json`, which is written last; one that was cut
short goes on from its state. All of them, and merges that need no training, are then methods of a
single run: images, records and costs are those of `mars2 run` and `mars2 score`.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.adapter import AdapterError
from baselines.denoiser import Denoiser
from baselines.training import load_tensors
from benchmark_data.references import file_digest
from benchmark_data.suite import Suite
from lorarar.checkpoints import Provenance, load_checkpoint, save_checkpoint
from lorarar.pairs import TrainingPair, training_pairs
from lorarar.train import HyperTraining, held_out_loss, train_hypernetwork
from mars2.files import read_json, write_json
from mars2.job import Choices, RunError
from mars2.prepare import Plan, prepare, resolve_methods
from mars2.store import RunStore

UNTRAINED = ("direct_sum", "average")
"""Merges beside the networks, which need no training."""
NETWORK = "hypernetwork.safetensors"
TRAINING = "training.json"
_STATE = ".training.safetensors"


@dataclass(frozen=True)
class Training:
    """A hypernetwork to train.

    Attributes:
        arm: What is compared, such as "16-wide"; the trainings of an arm differ by their seed only.
        pairs: What it is trained on.
        settings: Its seed among them.
    """

    arm: str
    pairs: tuple[TrainingPair, ...]
    settings: HyperTraining

    @property
    def label(self) -> str:
        """Name of its folder, and of its method in the run."""
        return f"{self.arm}-seed{self.settings.seed}"


@dataclass(frozen=True)
class Trained:
    """A finished training: the content of training.json, without what it was made from.

    Attributes:
        training: What was trained.
        network: The hypernetwork's file.
        parameters: Numbers in it.
        seconds: Median of a step times the steps; None: an earlier process did all but one of them,
            and was cut short before it could tell.
        loss: Mean over the last tenth of the steps, regularizer included.
        val_loss: Merging loss on the suite's val pairs, without the regularizer; None: there are
            none.
    """

    training: Training
    network: Path
    parameters: int
    seconds: float | None
    loss: float
    val_loss: float | None


class Workshop:
    """Where the trainings of a study lie, and what they are made from.

    Attributes:
        folder: Of the study; trainings lie in `trainings/LABEL`, the run in `run-PAIRSxIMAGES`.
        suite: Whose pairs they are.
        model: Revision of the base model.
    """

    def __init__(self, folder: Path, suite: Suite, model: str) -> None:
        self.folder = folder
        self.suite = suite
        self.model = model
        self._digests: dict[Path, str] = {}

    def place(self, training: Training) -> Path:
        """Return the folder of a training, whether or not it exists."""
        return self.folder / "trainings" / training.label

    def run_folder(self, cases: int, images: int) -> Path:
        """Return the folder of the run on so many pairs with so many images each."""
        return self.folder / f"run-{cases}x{images}"

    def find(self, training: Training) -> Trained | None:
        """Return a training that is done; None: it is not.

        Raises:
            RunError: It was made from something else: other settings, pairs, LoRAs or base model.
        """
        path = self.place(training) / TRAINING
        if not path.exists():
            return None
        there = read_json(path)
        wanted = self._made_from(training)
        changed = [name for name, value in wanted.items() if there.get(name) != value]
        if changed:
            told = {"settings": _changes(there.get("settings", {}), wanted["settings"])}
            what = "; ".join(told.get(name) or f"other {name}" for name in changed)
            raise RunError(
                f"{path.parent} was trained otherwise ({what}): give another --out, or delete the "
                "folder to train it anew"
            )
        result = there["result"]
        return Trained(training, path.parent / NETWORK, **result)

    def train(
        self,
        training: Training,
        denoiser: Denoiser,
        val_pairs: Sequence[TrainingPair] = (),
        *,
        progress: Callable[[int, float], None] | None = None,
    ) -> Trained:
        """Train, from where an earlier call was cut short, and return what came of it.

        Args:
            training: What to train.
            denoiser: The base model.
            val_pairs: Pairs of the split val, to compute the loss on.
            progress: As of `train_hypernetwork`.

        Raises:
            AdapterError: As `train_hypernetwork`.
        """
        folder = self.place(training)
        folder.mkdir(parents=True, exist_ok=True)
        state = folder / _STATE
        times: list[float] = []

        def clock(step: int, loss: float) -> None:
            times.append(time.perf_counter())
            if progress is not None:
                progress(step, loss)

        network = train_hypernetwork(
            denoiser, training.pairs, training.settings, checkpoint=state, progress=clock
        )
        losses = load_tensors(state)[0]["losses"]
        val_loss = held_out_loss(denoiser, network, val_pairs) if val_pairs else None
        network.to("cpu")
        save_checkpoint(
            network,
            folder / NETWORK,
            Provenance(self.suite.name, self.suite.revision, training.settings.steps),
        )
        result: dict[str, Any] = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "seconds": _median_step(times, training.settings.steps),
            "loss": float(losses[-max(1, len(losses) // 10) :].mean()),
            "val_loss": val_loss,
        }
        write_json(folder / TRAINING, {**self._made_from(training), "result": result})
        state.unlink()
        return Trained(training, folder / NETWORK, **result)

    def _made_from(self, training: Training) -> dict[str, Any]:
        """Return all that the network depends on, as JSON has it."""
        settings = dataclasses.asdict(training.settings)
        for harmless in ("save_every", "adapters_in_memory", "gradient_checkpointing"):
            del settings[harmless]
        concepts = {c.id: c.adapter for pair in training.pairs for c in (pair.subject, pair.style)}
        return {
            "suite revision": self.suite.revision,
            "base model": self.model,
            "settings": {**settings, "projections": list(training.settings.projections)},
            "pairs": [[pair.subject.id, pair.style.id] for pair in training.pairs],
            "LoRAs": {concept: self._digest(path) for concept, path in sorted(concepts.items())},
        }

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = file_digest(path)
        return self._digests[path]


def _median_step(times: Sequence[float], steps: int) -> float | None:
    """Return the median of the times between steps, times their number."""
    if len(times) < 2:
        return None
    return statistics.median(b - a for a, b in itertools.pairwise(times)) * steps


def _changes(there: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    return "; ".join(
        f"{name} was {there.get(name)}, now {value}"
        for name, value in wanted.items()
        if there.get(name) != value
    )


def pairs_to_train_on(
    suite: Suite, adapters: Path | None, *, skip_missing: bool
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Return all train pairs of a suite, and its val pairs, of which there may be none.

    Raises:
        RunError: The suite ships no adapters, and none are given.
        AdapterError: There is no train pair, or something is missing that must not be.
    """
    folder = adapters or suite.adapters
    if folder is None:
        raise RunError(f"suite {suite.name} ships no adapters: give their folder with --adapters")
    pairs = training_pairs(suite, folder, skip_missing=skip_missing)
    try:
        return pairs, training_pairs(suite, folder, split="val", skip_missing=True)
    except AdapterError:  # none of that split
        return pairs, []


def plan_run(
    suite_name: str,
    suite: Suite,
    choices: Choices,
    trained: Sequence[Trained],
    untrained: Sequence[str] = UNTRAINED,
) -> Plan:
    """Return the plan of a run of methods without training and of each network, by its label.

    Raises:
        RunError: As `prepare`.
        AdapterError: As `prepare`, or a network's file cannot be read.
    """
    chosen = dataclasses.replace(choices, methods=tuple(untrained), controls=False)
    plain = prepare(suite_name, suite, chosen, scored=True)
    specs, methods = list(plain.spec.methods), dict(plain.methods)
    for one in trained:
        load_checkpoint(one.network)
        options = {**suite.method_options, "lorarar": {"checkpoint": str(one.network)}}
        own = dataclasses.replace(suite, method_options=options)
        [(spec, method)] = resolve_methods(["lorarar"], own, controls=False)
        specs.append(dataclasses.replace(spec, label=one.training.label))
        methods[one.training.label] = method
    return Plan(dataclasses.replace(plain.spec, methods=tuple(specs)), suite, methods)


@dataclass(frozen=True)
class Rates:
    """Seconds of a step, of an image and of a question to the judge; None: not known."""

    step: float | None = None
    image: float | None = None
    question: float | None = None


MINIATURE = Rates(step=0.2, image=0.4, question=0.01)
"""Measured on two cores, nothing else running on them."""


@dataclass(frozen=True)
class Outlook:
    """What a study would still do.

    Attributes:
        trainings: All of them.
        trainings_left: Those not done.
        images: All of them.
        images_left: Those not drawn.
        questions_left: About the images not drawn, at most.
        steps_left: Of the trainings not done.
        rates: What it takes, as far as it is known.
    """

    trainings: int
    trainings_left: int
    images: int
    images_left: int
    questions_left: int
    steps_left: int
    rates: Rates

    def seconds(self) -> tuple[float | None, float | None, float | None]:
        """Return the time of training, drawing and judging; None: not known."""
        parts = (
            (self.steps_left, self.rates.step),
            (self.images_left, self.rates.image),
            (self.questions_left, self.rates.question),
        )
        first, second, third = (
            0.0 if not count else None if rate is None else count * rate for count, rate in parts
        )
        return first, second, third


def look_ahead(
    workshop: Workshop,
    trainings: Sequence[Training],
    *,
    cases: int | None,
    images: int,
    split: str = "test",
    untrained: Sequence[str] = UNTRAINED,
) -> Outlook:
    """Return what a study would do, without doing any of it.

    Rates are those of what is done; where nothing is, the miniature's, if the suite is that.

    Raises:
        RunError: A training was made otherwise.
    """
    done = [one for one in map(workshop.find, trainings) if one is not None]
    finished = {one.training.label for one in done}
    left = [one for one in trainings if one.label not in finished]
    suite = workshop.suite
    pairs = suite.cases[split]
    count = len(pairs) if cases is None else min(cases, len(pairs))
    labels = [*untrained, *(one.label for one in trainings)]
    folder = workshop.run_folder(count, images)
    drawn = sum(1 for label in labels for _ in (folder / "images" / label).glob("*/[0-9]*.png"))
    total = len(labels) * count * images
    asked = sum(len(c.references) for case in pairs for c in (case.subject, case.style))
    known = MINIATURE if suite.name == "miniworld" else Rates()
    timed = [one for one in done if one.seconds is not None]
    if timed:
        steps = sum(one.training.settings.steps for one in timed)
        seconds = sum(one.seconds or 0.0 for one in timed)
        known = dataclasses.replace(known, step=seconds / steps)
    if (folder / "costs.jsonl").exists():
        costs = RunStore.open(folder).costs()
        if costs:
            generation = sum(cost.generation_seconds for cost in costs)
            known = dataclasses.replace(
                known, image=generation / sum(cost.images for cost in costs)
            )
    return Outlook(
        trainings=len(trainings),
        trainings_left=len(left),
        images=total,
        images_left=max(0, total - drawn),
        questions_left=round(max(0, total - drawn) * asked / len(pairs)),
        steps_left=sum(one.settings.steps for one in left),
        rates=known,
    )
