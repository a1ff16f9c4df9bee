"""`mars2 leaderboard`: make entries of a run, check them, and write the site."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # they import torch and pyarrow, which `--help` has no time for
    from leaderboards.draft import Draft
    from leaderboards.entry import Entry
    from leaderboards.facts import SuiteFacts
    from leaderboards.records import Records
    from leaderboards.shape import Problem

app = typer.Typer(no_args_is_help=True, help="Publish results that others can check.")

RESULTS = Path("leaderboards/results")
Results = Annotated[Path, typer.Option(help="Folder of the entries, in a clone of the project.")]


@app.command()
def add(
    run: Annotated[Path, typer.Argument(help="Folder of a finished, scored run.")],
    results: Results = RESULTS,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Label of a method in the run; repeat it.  [default: all, controls too]"),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Where the run's suite lies now.  [default: where it lay]")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Id of the judge, if several scored the run.  [default: the suite's]"),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="SPDX identifier of your method's code, or 'proprietary'.")
    ] = "",
    paper: Annotated[
        str, typer.Option(help="https:// address of your method's paper.  [default: its own]")
    ] = "",
    url: Annotated[str, typer.Option(help="https:// address of your method's code.")] = "",
    track: Annotated[
        str,
        typer.Option(
            help="What your method may use: weights, policy, fit, trained or reference.  "
            "[default: by its kind]"
        ),
    ] = "",
    training: Annotated[
        str, typer.Option(help="What training your method needed beforehand, in words.")
    ] = "",
    notes: Annotated[str, typer.Option(help="Anything else a reader should know.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and what is wrong.")
    ] = False,
) -> None:
    """Make an entry of each method of a run: scores, records and pictures; check it, write it.

    What you say of paper, code, licence and track is of methods that do not come with this package.
    Nothing is written if anything is wrong.
    """
    import tempfile

    from leaderboards.check import check as check_entries
    from mars2.job import RunError
    from mars2.leaderboard import About, make_drafts, suite_facts
    from mars2.store import RunStore

    store = RunStore.open(run)
    if not store.spec.suite and suite is None:
        raise RunError(f"{run} was scored without a suite: an entry needs one")
    facts = suite_facts(suite or store.spec.suite)
    about = About(paper, url, licence, track, training, notes)
    drafts = make_drafts(store, facts, about=about, methods=method or (), judge=judge)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _copy_board(results / facts.name, folder / facts.name, drafts)
        paths = [draft.write(folder) for draft in drafts]
        found = check_entries(folder, lambda name: facts if name == facts.name else None).problems
        files = {str(path): str(results / path.relative_to(folder)) for path in paths}
        own = [problem for problem in found if _of(problem, drafts)]
        _fail_if([_moved(problem, str(folder), str(results)) for problem in own])
    for draft, target in zip(drafts, files.values(), strict=True):
        if not dry_run:
            draft.write(results)
        joint = draft.entry.scores["mars2"].average
        score = "unscored" if joint.value is None else f"{joint.value:.1%}"
        size = sum(map(len, draft.files.values()))
        doing = "would write" if dry_run else "wrote"
        print(f"{doing} {target} and 2 files beside it: MARS2 {score}, {size / 1000:.0f} kB")


@app.command()
def check(
    path: Annotated[
        Path, typer.Argument(help="An entry, a suite's folder, or the folder of all.")
    ] = RESULTS,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="TOML file of a suite that does not come with this package; repeat it."),
    ] = None,
    rejudge: Annotated[
        int, typer.Option(min=0, help="Images to ask the suite's judge about again.")
    ] = 0,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run with the images, for --rejudge.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which images --rejudge draws.")] = 0,
) -> None:
    """Recompute entries from their records, and compare them with their suites.

    Lists all that is wrong, a line each: file, field, what was expected and what was found. Exit
    code 2 if anything is.
    """
    from leaderboards.check import check as check_entries
    from mars2.job import RunError
    from mars2.leaderboard import rejudge as ask_again
    from mars2.store import RUN_FILE

    if (path / RUN_FILE).exists():
        raise RunError(
            f"{path} is a run: `mars2 leaderboard add {path} --dry-run` checks it, and "
            "without --dry-run makes entries of it"
        )
    if (rejudge > 0) != (run is not None):
        raise RunError("--rejudge N and --run FOLDER go together: give both or neither")
    finder = _Finder(suite or ())
    report = check_entries(path, finder)
    problems = list(report.problems)
    if not report.paths:
        raise RunError(f"{path} holds no entry: `mars2 leaderboard add` makes one of a scored run")
    if run is not None and not problems:
        problems += ask_again(report.sound, run, count=rejudge, seed=seed)
    _fail_if(problems)
    entries = "entry" if len(report.paths) == 1 else "entries"
    print(f"{len(report.paths)} {entries} checked, nothing wrong")


@app.command()
def build(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the site.")] = Path("site"),
    results: Results = RESULTS,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="TOML file of a suite that does not come with this package; repeat it."),
    ] = None,
    repository: Annotated[
        str, typer.Option(help="https:// address of the project, linked at the foot of each page.")
    ] = "",
) -> None:
    """Write the site: static pages that any host, or a browser from disk, can show.

    The entries are checked first; nothing is written if anything is wrong. The same entries give
    the same bytes.
    """
    from benchmark_data.load import suite_names
    from leaderboards.check import check as check_entries
    from leaderboards.reported import read_reported
    from leaderboards.site import build_site, read_published, write_site
    from mars2.job import RunError

    if out.is_dir() and any(out.iterdir()) and not (out / "assets" / "site.js").exists():
        raise RunError(f"{out} is not empty, and no site of this command; give another by --out")
    if repository and not repository.startswith("https://"):
        raise RunError(f"--repository is {repository!r}; give an https:// address")
    finder = _Finder(suite or (), references=True)
    report = check_entries(results, finder)
    _fail_if(list(report.problems))
    reported = read_reported()
    known = {source.suite for source in reported.sources} | {e.suite.name for e, _ in report.sound}
    order = [name for name in suite_names() if name in known]
    facts = {name: found for name in [*order, *sorted(known)] if (found := finder(name))}
    links = {"Project": repository} if repository else {}
    pages = build_site(read_published(report.sound, results), facts, reported, links=links)
    write_site(pages, out)
    size = sum(map(len, pages.values()))
    print(f"{out / 'index.html'}: {len(report.sound)} entries, {len(pages)} files, {size} bytes")


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="Folder of results before.")],
    new: Annotated[Path, typer.Argument(help="Folder of results after.")] = RESULTS,
) -> None:
    """Tell what a change of the entries does to the ranking."""
    from leaderboards.changes import compare
    from leaderboards.entry import read_entries
    from leaderboards.records import read_records

    def read(results: Path) -> "list[tuple[Entry, Records]]":
        return [
            (entry, read_records(results / entry.suite.name / entry.records.file))
            for entry in read_entries(results)
        ]

    lines = compare(read(old), read(new))
    print("\n".join(lines) or "the ranking is the same")


class _Finder:
    """Finds what suites demand, each read once."""

    def __init__(self, extra: list[str] | tuple[str, ...], *, references: bool = False) -> None:
        self._references = references
        self._extra = extra
        self._known: dict[str, SuiteFacts] = {}

    def __call__(self, name: str) -> "SuiteFacts | None":
        from benchmark_data.load import suite_names
        from mars2.leaderboard import suite_facts

        if not self._known and self._extra:
            for path in self._extra:
                facts = suite_facts(path, references=self._references)
                self._known[facts.name] = facts
        if name not in self._known and name in suite_names():
            self._known[name] = suite_facts(name, references=self._references)
        return self._known.get(name)


def _copy_board(source: Path, target: Path, drafts: "list[Draft]") -> None:
    """Copy a suite's entries, without those that the drafts take the place of."""
    import shutil

    target.mkdir(parents=True)
    names = {draft.entry.name for draft in drafts}
    for path in sorted(source.glob("*@*")) if source.is_dir() else ():
        if not any(path.name.startswith(f"{name}.") for name in names):
            shutil.copyfile(path, target / path.name)


def _of(problem: "Problem", drafts: "list[Draft]") -> bool:
    name = Path(problem.file).name
    return any(name.startswith(f"{draft.entry.name}.") for draft in drafts)


def _moved(problem: "Problem", before: str, now: str) -> "Problem":
    from dataclasses import replace

    return replace(problem, file=problem.file.replace(before, now, 1))


def _fail_if(problems: "list[Problem]") -> None:
    """List problems, a line each, and end with exit code 2 if there are any."""
    if not problems:
        return
    for problem in problems:
        sys.stderr.write(f"{problem}{os.linesep}")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    sys.stderr.write(f"mars2: {count}; docs/leaderboards.md says what an entry needs\n")
    raise typer.Exit(2)
