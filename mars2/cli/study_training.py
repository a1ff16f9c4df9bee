"""`mars2 study scaling` and `columns`: studies that train hypernetworks, run and score them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark_data.suite import Suite
from mars2.cli import generating, measuring
from mars2.cli.options import (
    BatchSize,
    Device,
    Dtype,
    JudgeName,
    Model,
    SuiteName,
    parse_dtype,
    parse_seeds,
)
from mars2.cli.progress import progress
from mars2.cli.study import Resamples, Seed, show_result
from mars2.job import Choices, RunError

if TYPE_CHECKING:  # they import torch, which `--help` has no time for
    from lorarar.pairs import TrainingPair
    from lorarar.train import HyperTraining
    from mars2.studies.arms import Scored
    from mars2.studies.trainings import Outlook, Trained, Training, Workshop

Adapters = Annotated[
    Path | None, typer.Option(help="Folder of CONCEPT.safetensors.  [default: the suite's own]")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Of each training.  [default: the suite's]")]
TrainingSeeds = Annotated[
    str, typer.Option(help="One training of everything with each: such as 0-2 or 0,3.")
]
Images = Annotated[int, typer.Option(min=1, help="Images of each test pair and network.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Only so many test pairs, spread over the split.")
]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="Leave out concepts without adapter or image.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the study; what is done there is not done again.  "
        "[default: studies/ and its name]"
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be trained, drawn and asked.")
]


def scaling(
    suite: SuiteName = "miniworld",
    sizes: Annotated[
        str | None,
        typer.Option(help="Numbers of train pairs, such as 1,16,all.  [default: 1,4,16,...,all]"),
    ] = None,
    order: Annotated[
        list[str] | None,
        typer.Option(
            help="wide: of as many concepts as there are; narrow: of few.  [default: both]"
        ),
    ] = None,
    seeds: TrainingSeeds = "0-2",
    steps: Steps = None,
    images: Images = 4,
    limit: Limit = None,
    adapters: Adapters = None,
    model: Model = None,
    dtype: Dtype = None,
    device: Device = "auto",
    judge: JudgeName = None,
    batch_size: BatchSize = 4,
    skip_missing: SkipMissing = False,
    dry_run: DryRun = False,
    out: Out = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Train hypernetworks on more and more train pairs, of many concepts and of few; compare them.

    Every network draws the same test pairs. A study that was cut short goes on where it was.
    """
    from mars2.studies.scaling import ORDERS, plan_scaling, sizes_of, study_scaling

    chosen = [one for one in ORDERS if not order or one in order]
    wrong = [one for one in order or () if one not in ORDERS]
    if wrong:
        raise RunError(f"--order is {wrong[0]!r}; give wide or narrow, or leave it out for both")
    bench = _Bench(suite, adapters, model, dtype, device, skip_missing=skip_missing)
    settings = bench.settings(steps)
    found = sizes_of(bench.pairs, _numbers(sizes, len(bench.pairs)), chosen)
    trainings = plan_scaling(bench.pairs, found, settings, parse_seeds(seeds))
    drawing = _Drawing(images, limit, judge, batch_size)
    out = out or Path("studies") / "scaling"
    scored = bench.carry_out(trainings, out, drawing, dry_run=dry_run, draws=(resamples, seed))
    if scored is not None:
        show_result(study_scaling(scored, found, bench.inputs(trainings)), out)


def columns(
    suite: SuiteName = "miniworld",
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="attention, whole-matrix, q, out, k+v, q+k+v+out, single-input or features; "
            "repeat it for several.  [default: all]"
        ),
    ] = None,
    seeds: TrainingSeeds = "0-2",
    steps: Steps = None,
    images: Images = 4,
    limit: Limit = None,
    adapters: Adapters = None,
    model: Model = None,
    dtype: Dtype = None,
    device: Device = "auto",
    judge: JudgeName = None,
    batch_size: BatchSize = 4,
    skip_missing: SkipMissing = False,
    dry_run: DryRun = False,
    out: Out = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Train LoRA.rar's hypernetwork and variants of it equally long, and compare them.

    Are columns independent, which projections have to be predicted, and what has to be read? A
    study that was cut short goes on where it was.
    """
    from mars2.studies.columns import plan_columns, study_columns

    bench = _Bench(suite, adapters, model, dtype, device, skip_missing=skip_missing)
    trainings = plan_columns(bench.pairs, variant or (), bench.settings(steps), parse_seeds(seeds))
    drawing = _Drawing(images, limit, judge, batch_size)
    out = out or Path("studies") / "columns"
    scored = bench.carry_out(trainings, out, drawing, dry_run=dry_run, draws=(resamples, seed))
    if scored is not None:
        show_result(study_columns(scored, bench.inputs(trainings)), out)


@dataclass(frozen=True)
class _Drawing:
    """How the networks are tried; see the options."""

    images: int
    limit: int | None
    judge: str | None
    batch_size: int


class _Bench:
    """A suite with its train pairs and base model: what both studies train, run and score on."""

    def __init__(
        self,
        name: str,
        adapters: Path | None,
        model: str | None,
        dtype: str | None,
        device: str,
        *,
        skip_missing: bool,
    ) -> None:
        from benchmark_data.load import load_suite
        from mars2.studies.trainings import pairs_to_train_on

        self.name = name
        self.suite: Suite = load_suite(name)
        self.adapters = adapters
        self.model = model
        self.dtype = parse_dtype(dtype)
        self.device = device
        self.pairs: list[TrainingPair]
        self.pairs, self.val_pairs = pairs_to_train_on(
            self.suite, adapters, skip_missing=skip_missing
        )

    def settings(self, steps: int | None) -> "HyperTraining":
        """Return the suite's settings of a training."""
        from lorarar.train import HyperTraining

        return generating.training_settings(
            HyperTraining, self.suite, "hypernetwork", {"steps": steps}
        )

    def inputs(self, trainings: "Sequence[Training]") -> dict[str, object]:
        """Return what a study was made from, for study.json."""
        from dataclasses import asdict

        return {
            "suite": self.name,
            "revision": self.suite.revision,
            "trainings": [one.label for one in trainings],
            "settings": {**asdict(trainings[0].settings), "seed": None},
        }

    def carry_out(
        self,
        trainings: "Sequence[Training]",
        out: Path,
        drawing: _Drawing,
        *,
        dry_run: bool,
        draws: tuple[int, int],
    ) -> "Scored | None":
        """Train, draw and score what is not done, and return the scores; None: it is a dry run."""
        from mars2.pipelines import model_revision
        from mars2.studies.arms import Scored
        from mars2.studies.trainings import Workshop, look_ahead, plan_run

        base = self.model or self.suite.models.base
        shop = Workshop(out, self.suite, model_revision(base))
        outlook = look_ahead(shop, trainings, cases=drawing.limit, images=drawing.images)
        _say(self.suite, trainings, outlook)
        choices = Choices(
            model=self.model,
            dtype=self.dtype,
            device=self.device,
            adapters=self.adapters,
            seeds=tuple(range(drawing.images)),
            limit=drawing.limit,
        )
        scoring = measuring.Scoring(metrics="mars2", judge=drawing.judge, device=self.device)
        # What would stop the run is found before an hour of training.
        plan_run(self.name, self.suite, choices, ())
        measuring.check_scoring(self.suite, scoring)
        if dry_run:
            return None
        measuring.fetch_models(self.suite, scoring)
        trained = self._train(shop, trainings)
        run_plan = plan_run(self.name, self.suite, choices, trained)
        folder = shop.run_folder(len(run_plan.spec.cases), drawing.images)
        store = generating.carry_out(
            run_plan, folder, batch_size=drawing.batch_size, scoring=scoring
        )
        # Networks of an earlier, larger study that was cut short may lack images.
        failed = measuring.score(store, scoring, partial=True)
        measuring.exit_if_failed(failed)
        resamples, seed = draws
        return Scored(store, trained, judge=self._judge(scoring), resamples=resamples, seed=seed)

    def _judge(self, scoring: measuring.Scoring) -> str:
        """Return the id in the records of the judge that is asked; "": not known, the last one."""
        from mars2.metrics import MetricSettings, identify_metric

        name = scoring.judge or self.suite.models.judge
        identity = identify_metric("mars2", MetricSettings(judge=name, device=self.device))
        return "" if identity is None else identity.id

    def _train(self, shop: "Workshop", trainings: "Sequence[Training]") -> "list[Trained]":

        from mars2.cli.train import show_step

        denoiser = None
        trained = []
        for number, one in enumerate(trainings, start=1):
            done = shop.find(one)
            if done is None:
                if denoiser is None:
                    denoiser = generating.load_denoiser(
                        self.suite, self.model, dtype=self.dtype, device=self.device
                    )
                name = f"{number}/{len(trainings)} {one.label}"
                with progress(name, unit="step", total=one.settings.steps) as bar:
                    done = shop.train(
                        one, denoiser, self.val_pairs, progress=partial(show_step, bar)
                    )
            trained.append(done)
        return trained


def _say(suite: Suite, trainings: "Sequence[Training]", outlook: "Outlook") -> None:
    """Print what a study would do."""
    from mars2.report.formatting import seconds

    def left(all_of: int, to_do: int) -> str:
        return str(all_of) if all_of == to_do else f"{all_of}, of which {to_do} are left"

    arms = list(dict.fromkeys(one.arm for one in trainings))
    lines = [
        f"suite       {suite.name} {suite.revision}",
        f"trainings   {left(outlook.trainings, outlook.trainings_left)}: "
        f"{len(arms)} networks ({', '.join(arms)}), {outlook.trainings // len(arms)} seeds, "
        f"{trainings[0].settings.steps} steps",
        f"images      {left(outlook.images, outlook.images_left)}",
        f"questions   {outlook.questions_left} to the judge, without those it answered before",
    ]
    parts = [
        f"{name} {seconds(value)}" if value is not None else f"{name} not known yet"
        for name, value in zip(("training", "drawing", "judging"), outlook.seconds(), strict=True)
        if value != 0
    ]
    known = [value for value in outlook.seconds() if value is not None]
    if parts:
        lines.append(f"time        about {seconds(sum(known))}: {', '.join(parts)}")
    sys.stderr.write("\n".join(lines) + "\n")


def _numbers(text: str | None, total: int) -> list[int]:
    """Return the numbers of "1,16,all"."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if any(part != "all" and not part.isdecimal() for part in parts):
        raise RunError(f"--sizes is {text!r}; give numbers of train pairs, such as 1,16,all")
    return [total if part == "all" else int(part) for part in parts]
