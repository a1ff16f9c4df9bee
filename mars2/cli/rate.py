"""`mars2 rate`: people rate a run's images on a local page."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from mars2.job import RunError


def rate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of scored images.")],
    mode: Annotated[
        str | None,
        typer.Option(
            help="yes_no: are subject and style of an image right? pairs: which of two methods' "
            "images is better? both: one after the other.  [default: yes_no]"
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of a method to be rated; repeat it. all: all of the run, controls too.  "
            "[default: those that merge]"
        ),
    ] = None,
    aspects: Annotated[
        str | None,
        typer.Option(
            help="By what two images are compared: subject, style, both, with commas between.  "
            "[default: both]"
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            help="Images of each method, spread over subjects and styles, the same pairs and seeds "
            "of all.  [default: all]"
        ),
    ] = None,
    raters: Annotated[int | None, typer.Option(help="People who take part.  [default: 3]")] = None,
    per_item: Annotated[
        int | None,
        typer.Option(
            help="How many of them rate the same image, or pair of images.  [default: 3, or all if "
            "they are fewer]"
        ),
    ] = None,
    check_every: Annotated[
        int | None,
        typer.Option(
            help="One attention check, of known answer, in so many questions; 0: none.  "
            "[default: 20]"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of who gets what in which order.  [default: 0]")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Where the run's suite lies now.  [default: where it lay]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study.  [default: rating/ in the run's]")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: whoever reaches this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8741,
    url: Annotated[
        str | None,
        typer.Option(
            help="What raters' links begin with, if a proxy or tunnel leads here.  [default: from "
            "--host and --port]"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell how many questions and minutes it takes.")
    ] = False,
    export: Annotated[
        bool, typer.Option("--export", help="Write the answers as CSV files, and stop.")
    ] = False,
    min_checks: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="With --export: leave out raters with a smaller share of right answers to "
            "attention checks.",
        ),
    ] = 0.0,
) -> None:
    """Let people rate a run's images in the browser, blind; go on with it by the same command.

    Every answer is in RUN/rating/study.sqlite, or below --out, before the page says so. The
    settings of a study are fixed once it has begun.
    """
    from mars2.rating.database import RatingDatabase
    from mars2.store import RunStore

    if min_checks and not export:
        raise RunError("--min-checks leaves raters out of what is exported: give --export, too")
    serve = None if dry_run or export else _server()
    store = RunStore.open(run)
    folder = out or store.folder / "rating"
    path = folder / "study.sqlite"
    wanted = {
        "mode": mode,
        "methods": _methods(store, method),
        "aspects": None if aspects is None else tuple(a.strip() for a in aspects.split(",")),
        "sample": sample,
        "raters": raters,
        "per_item": per_item,
        "check_every": check_every,
        "seed": seed,
    }
    if RatingDatabase.exists(path):
        database = RatingDatabase(path, store.folder)
        database.design.confirm(path, wanted)
    elif export:
        raise RunError(f"{folder} has no rating study yet: begin one with `mars2 rate {run}`")
    else:
        plan = _plan(store, wanted, suite)
        if dry_run:
            _tell(plan.design, plan.tasks, plan.left_out)
            return
        database = RatingDatabase.create(path, store.folder, plan)
    with closing(database):
        if export:
            _export(database, folder, run, min_checks)
            return
        tasks = [database.tasks(seat.rater) for seat in database.seats()]
        _tell(database.design, tasks, database.left_out)
        if serve is not None:
            _serve(serve, database, folder, host, port, url)


def _methods(store: Any, labels: Sequence[str] | None) -> tuple[str, ...] | None:
    if not labels:
        return None
    return tuple(store.spec.labels) if list(labels) == ["all"] else tuple(labels)


def _plan(store: Any, wanted: Mapping[str, Any], suite: str | None) -> Any:
    from benchmark_data.load import load_suite
    from mars2.rating.plan import default_methods, plan_rating
    from mars2.rating.questions import Design
    from mars2.references import find_references

    given = {name: value for name, value in wanted.items() if value is not None}
    given.setdefault("mode", "yes_no")
    given.setdefault("methods", default_methods(store))
    given.setdefault("per_item", min(3, given.get("raters", 3)))
    design = Design(**given)
    references = find_references(store, suite)
    name = suite or store.spec.suite
    classes = (
        {concept.id: concept.phrase for concept in load_suite(name).concepts.values()}
        if name
        else {}
    )
    return plan_rating(store, references, design, classes)


def _tell(design: Any, tasks: Sequence[Sequence[Any]], left_out: int) -> None:
    """Print how much there is to do."""
    counts = [len(own) for own in tasks]
    checks = [sum(bool(task.truth) for task in own) for own in tasks]
    minutes = [sum(task.seconds for task in own) / 60 for own in tasks]
    kinds = {"yes_no": "images", "pairs": "pairs of images", "both": "images and pairs of images"}
    print(
        f"{sum(counts) - sum(checks)} ratings of {kinds[design.mode]} by {len(design.methods)} "
        f"methods, {design.per_item} rater{'s' * (design.per_item != 1)} each, "
        f"and {sum(checks)} attention checks"
    )
    long = _span([max(1, round(one)) for one in minutes])
    print(
        f"{_span(counts)} questions for each of {design.raters} rater{'s' * (design.raters != 1)}, "
        f"about {long} minute{'s' * (long != '1')}"
    )
    if left_out:
        print(f"{left_out} pairs and seeds are left out: a method has no image of them")
    if design.check_every and not sum(checks):
        print("no attention checks: the references have nothing to tell apart")


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _export(database: Any, folder: Path, run: Path, min_checks: float) -> None:
    from mars2.rating.export import export as write

    written = write(database, folder, min_checks=min_checks)
    for name, lines in written.items():
        if lines:
            print(f"{folder / name}: {lines} lines")
    if not written["ratings.csv"]:
        print("no single image is rated yet", file=sys.stderr)
        return
    pairs = f" --pairs {folder / 'pairs.csv'}" if written["pairs.csv"] else ""
    print(f"next: mars2 study humans --ratings {folder / 'ratings.csv'}{pairs} --metrics {run}")


def _serve(
    serve: Callable[..., None],
    database: Any,
    folder: Path,
    host: str,
    port: int,
    url: str | None,
) -> None:
    from mars2.rating.export import write_table

    database.check_images()

    def ready(bound: int) -> None:
        base = (url or _address(host, bound)).rstrip("/")
        seats = database.seats()
        lines = [
            {"rater": seat.code, "name": seat.name, "link": f"{base}/{seat.token}/"}
            for seat in seats
        ]
        write_table(folder / "links.csv", ("rater", "name", "link"), lines, private=True)
        begun = sum(bool(database.answers(seat.rater)) for seat in seats)
        print(f"{begun} of {len(seats)} raters have begun")
        print(f"for all raters, who get a place each: {base}/{database.join_token}/")
        print(f"a link for each place, if you give them out yourself: {folder / 'links.csv'}")
        if host not in ("127.0.0.1", "localhost", "::1"):
            print(
                "whoever has a link and reaches this machine can rate; the connection is not "
                "encrypted",
                file=sys.stderr,
            )
        print("Ctrl-C ends it; the same command goes on", flush=True)

    serve(database, host, port, ready)


def _server() -> Callable[..., None]:
    """Return what shows the page.

    Raises:
        RunError: Starlette or uvicorn is not installed.
    """
    try:
        from mars2.rating.server import serve
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise RunError(
            f"the rating page needs {missing}, which is not installed: pip install -e '.[serve]'"
        ) from error
    return serve


def _address(host: str, port: int) -> str:
    import socket

    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
