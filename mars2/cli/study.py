"""`mars2 study`: is the measure right, and what do the methods do?"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mars2.cli import threads
from mars2.cli.options import (
    BaseUrl,
    Clip,
    ControlFiles,
    Device,
    Dino,
    JudgeConcurrency,
    JudgeDtype,
    JudgeName,
    JudgeRetries,
    JudgeTemperature,
    JudgeTimeout,
    Layout,
    SuiteName,
    parse_dtype,
)
from mars2.cli.printing import PROSE, make_console
from mars2.cli.progress import progress
from mars2.job import RunError
from mars2.store import RunStore
from mars2.studies import STUDIES

app = typer.Typer(
    invoke_without_command=True,
    help="Make a study: tables (CSV), figures (PNG, SVG) and what they mean, in a folder.",
)

Out = Annotated[
    Path | None, typer.Option(help="Folder of the study.  [default: beside what is studied]")
]
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap samples of an interval.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the resampling.")]
Run = Annotated[Path, typer.Argument(help="Folder of a run, or of scored images.")]


@app.callback()
def study(context: typer.Context) -> None:
    """List the studies."""
    if context.invoked_subcommand is None:
        for name, question in STUDIES.items():
            print(f"{name:<10} {question}")


@app.command()
def humans(
    ratings: Annotated[
        Path,
        typer.Option(help="CSV or parquet of item, method, rater, aspect, score [, seed]."),
    ],
    metrics: Annotated[
        Path,
        typer.Option(
            help="CSV or parquet of item, method, metric, score [, aspect, seed]; or a run's "
            "folder."
        ),
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="CSV or parquet of item, method_a, method_b, rater, aspect, choice (a, b, tie, "
            "both_bad) [, shown_left, seed]."
        ),
    ] = None,
    lower: Annotated[
        str, typer.Option(help="Metrics of which less is better, with commas between.")
    ] = "",
    out: Out = None,
    resamples: Resamples = 1000,
    permutations: Annotated[
        int, typer.Option(min=1, help="Exchanges of a permutation test.")
    ] = 1000,
    seed: Seed = 0,
) -> None:
    """Compare metrics with people: agreement, ceiling, correlations in every grouping, tests."""
    import sys

    from mars2.studies.humans import Settings, study_humans

    names = tuple(name.strip() for name in lower.split(",") if name.strip())
    result = study_humans(
        ratings,
        metrics,
        pairs=pairs,
        settings=Settings(resamples, permutations, seed, names),
        progress=lambda text: print(text, file=sys.stderr),
    )
    show_result(result, out or ratings.parent / "study-humans")


def _suite_of(store: RunStore, suite: str | None) -> str:
    """Return the suite that a store's concepts are in.

    Raises:
        RunError: It knows none: its references were given as folders.
    """
    name = suite or store.spec.suite
    if not name:
        raise RunError(f"{store.folder} was scored without a suite: give the one it is of, --suite")
    return name


def show_result(result: Any, folder: Path) -> None:
    """Print and write a `mars2.studies.result.Result`, whose module imports matplotlib."""
    from rich.markdown import Markdown

    from mars2.report import print_table
    from mars2.studies.result import write

    console = make_console()
    said: set[str] = set()
    for sheet in result.sheets:
        if sheet.shown:
            print_table(sheet.table(), console, said)
    for paragraph in result.text.split("\n\n"):
        console.print(Markdown(paragraph), width=min(PROSE, console.width))
        console.print()
    write(result, folder)
    print(folder)


@app.command()
def agreement(
    run: Run,
    judges: Annotated[
        str,
        typer.Option(
            help="Parts of the ids of judges that scored it, with commas between.  "
            "[default: all that did]"
        ),
    ] = "",
    controls: ControlFiles = None,
    out: Out = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Compare the judges that scored a run with each other, and with what is known."""
    from mars2.controls import find_controls, read_controls
    from mars2.studies.agreement import study_agreement
    from mars2.studies.runs import judges as scored_by

    store = RunStore.open(run)
    names = [name.strip() for name in judges.split(",") if name.strip()]
    known = (
        [read_controls(path) for path in controls]
        if controls
        else find_controls(list(scored_by(store)), store.spec.suite_revision)
    )
    result = study_agreement(store, names, known, resamples=resamples, seed=seed)
    show_result(result, out or store.folder / "studies" / "agreement")


@app.command()
def failures(
    run: Run,
    suite: Annotated[
        str | None, typer.Option(help="Where the run's suite lies now.  [default: the run's]")
    ] = None,
    judge: Annotated[
        str, typer.Option(help="Part of the id of the judge whose scores count.  [default: last]")
    ] = "",
    dino: Dino = None,
    leak: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images of each method that the suite's judge is asked about leaked content.",
        ),
    ] = 0,
    out: Out = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Tell what fails in a run: which part, which pairs, and how far from the train split."""
    from benchmark_data.load import load_suite
    from mars2.judges import load_judge
    from mars2.metrics.dino import DinoMetric
    from mars2.references import find_references
    from mars2.studies.failures import Leak, study_failures

    store = RunStore.open(run)
    references = find_references(store, suite)
    loaded = load_suite(_suite_of(store, suite))
    threads.fit_threads(loaded.models.judge, dino or loaded.models.dino)
    embedder = DinoMetric.load(dino or loaded.models.dino, device=device)
    asked = load_judge(loaded.models.judge, device=device, cache=True) if leak else None
    result = study_failures(
        store,
        loaded,
        references.files,
        judge=judge,
        embedder=embedder,
        leak=None if asked is None else Leak(asked, leak),
        resamples=resamples,
        seed=seed,
    )
    show_result(result, out or store.folder / "studies" / "failures")


@app.command()
def cost(
    run: Annotated[list[Path], typer.Argument(help="Folders of runs on one machine.")],
    lora_seconds: Annotated[
        float | None, typer.Option(min=0, help="Seconds to train one LoRA.")
    ] = None,
    hypernetwork_seconds: Annotated[
        float | None, typer.Option(min=0, help="Seconds to train the hypernetwork.")
    ] = None,
    judge_seconds: Annotated[
        float | None, typer.Option(min=0, help="Seconds to judge one image.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Method that the others have to pay against.  [default: ziplora]"),
    ] = None,
    out: Out = None,
) -> None:
    """Tell what each method takes as a whole, and from how many pairs on it pays."""
    from mars2.studies.cost import Elsewhere, study_cost

    stores = [RunStore.open(folder) for folder in run]
    elsewhere = Elsewhere(lora_seconds, hypernetwork_seconds, judge_seconds)
    result = study_cost(stores, elsewhere, against=against)
    show_result(result, out or stores[0].folder / "studies" / "cost")


@app.command()
def layers(
    source: Annotated[
        Path,
        typer.Argument(help="A hypernetwork's file, or a run's folder with --save-adapters."),
    ],
    suite: SuiteName = "miniworld",
    adapters: Annotated[
        Path | None,
        typer.Option(help="Folder of CONCEPT.safetensors.  [default: the suite's own]"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many pairs of a hypernetwork.")
    ] = None,
    out: Out = None,
) -> None:
    """Show coefficients by layer, block and projection, and where subject or style dominates.

    Of a hypernetwork, for the test pairs of a suite; of a run, for each method that kept its merged
    adapters, with their likeness to ziplora's if it is one of them.
    """
    from benchmark_data.load import load_suite
    from mars2.studies.layers import merged_by_hypernetwork, merged_in_run, study_layers

    if source.is_dir():
        store = RunStore.open(source)
        merged, folder = merged_in_run(store), store.folder / "studies" / "layers"
        inputs = {"run": str(source)}
    else:
        loaded = load_suite(suite)
        files = adapters or loaded.adapters
        if files is None:
            raise RunError(f"suite {loaded.name} ships no adapters: give their folder, --adapters")
        merged = merged_by_hypernetwork(source, loaded, files, limit=limit)
        folder = Path("studies") / "layers"
        inputs = {"hypernetwork": str(source), "suite": loaded.name, "revision": loaded.revision}
    show_result(study_layers(merged, inputs), out or folder)


@app.command()
def diversity(
    suite: Annotated[str, typer.Argument(help="Name of a suite or a TOML file.")],
    adapters: Annotated[
        Path | None,
        typer.Option(help="Folder of CONCEPT.safetensors.  [default: the suite's own, if any]"),
    ] = None,
    clip: Clip = None,
    dino: Dino = None,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """Tell how well a suite's train split covers its test split: pictures, LoRAs, words."""
    from benchmark_data.load import load_suite
    from mars2.metrics.clip import ClipMetric
    from mars2.metrics.dino import DinoMetric
    from mars2.studies.diversity import study_diversity
    from mars2.studies.embeddings import Embedder

    loaded = load_suite(suite)
    embedders: dict[str, Embedder] = {
        "DINO": DinoMetric.load(dino or loaded.models.dino, device=device),
        "CLIP": ClipMetric.load(clip or loaded.models.clip, device=device),
    }
    result = study_diversity(loaded, embedders, adapters or loaded.adapters)
    show_result(result, out or Path("studies") / "diversity")


@app.command()
def prompts(
    run: Run,
    suite: Annotated[
        str | None, typer.Option(help="Where the run's suite lies now.  [default: the run's]")
    ] = None,
    judge: JudgeName = None,
    images: Annotated[int, typer.Option(min=2, help="Images that are asked about.")] = 200,
    known: Annotated[
        int,
        typer.Option(min=0, help="Most questions of one known truth a subject or style."),
    ] = 2,
    other: Annotated[
        list[str] | None,
        typer.Option(help="Another judge, NAME:MODEL, asked in the usual way; repeat it."),
    ] = None,
    other_dtype: Annotated[
        list[str] | None,
        typer.Option(help="Ask the same judge also in this dtype; repeat it."),
    ] = None,
    other_layout: Annotated[
        list[str] | None,
        typer.Option(help="Ask the same judge also in this layout; repeat it."),
    ] = None,
    other_temperature: Annotated[
        list[float] | None,
        typer.Option(min=0, help="Ask the same judge, a server's, also at this one; repeat it."),
    ] = None,
    forms: Annotated[
        bool, typer.Option(help="Ask for explanations and scores, too, which takes long.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many questions would be asked.")
    ] = False,
    layout: Layout = "anyres",
    dtype: JudgeDtype = None,
    base_url: BaseUrl = None,
    judge_timeout: JudgeTimeout = 120.0,
    judge_concurrency: JudgeConcurrency = 8,
    judge_retries: JudgeRetries = 5,
    judge_temperature: JudgeTemperature = 0.0,
    device: Device = "auto",
    out: Out = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Ask a judge about a run's images in many ways, and tell what changes its answers."""
    import sys

    from benchmark_data.load import load_suite
    from mars2.judge_check import plan_controls
    from mars2.judges import ServerSettings, identify_judge, load_judge
    from mars2.references import find_references
    from mars2.studies.asking import plan_study
    from mars2.studies.prompts import study_prompts

    store = RunStore.open(run)
    references = find_references(store, suite)
    loaded = load_suite(_suite_of(store, suite))
    controls = plan_controls(loaded, per_concept=known) if known else ()
    server = ServerSettings(
        base_url or "", judge_timeout, judge_concurrency, judge_retries, judge_temperature
    )
    name = judge or loaded.models.judge
    same: dict[str, Any] = {"dtype": dtype, "device": device, "layout": layout, "server": server}
    changed = {
        **{one: ("judge", {**same, "layout": "anyres"}) for one in other or ()},
        **{one: ("dtype", {**same, "dtype": parse_dtype(one)}) for one in other_dtype or ()},
        **{one: ("layout", {**same, "layout": one}) for one in other_layout or ()},
        **{
            f"{one:g}": ("temperature", {**same, "server": replace(server, temperature=one)})
            for one in other_temperature or ()
        },
    }
    usual = identify_judge(name, **same) if changed else None
    others = {}
    for label, (family, settings) in changed.items():
        spec = label if family == "judge" else name
        if usual is not None and identify_judge(spec, **settings) == usual:
            raise RunError(f"{label} is no other {family}: {usual} is asked anyway")
        others[label] = partial(load_judge, spec, **settings, cache=True)
    families = {label: family for label, (family, _) in changed.items()}
    plan = plan_study(store, references, controls, images=images, others=families, forms=forms)
    ways = sum(not one.draw for one in (*plan.variants, *plan.crossed))
    print(
        f"{len(plan.samples)} images, {ways} ways to ask: {plan.questions} questions",
        file=sys.stderr,
    )
    if dry_run:
        return
    threads.fit_threads(name)
    with progress("ask", unit="question", total=plan.questions) as bar:
        result = study_prompts(
            store,
            plan,
            partial(load_judge, name, **same, cache=True),
            references,
            others=others,
            resamples=resamples,
            seed=seed,
            progress=lambda count: (bar.update(count), None)[1],
        )
    show_result(result, out or store.folder / "studies" / "prompts")
