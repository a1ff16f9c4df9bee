"""`mars2 push`: a scored run as a data set on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    run: Annotated[Path, typer.Argument(help="Folder of a finished, scored run.")],
    repository: Annotated[
        str,
        typer.Option("--repo", help="Data set on the hub: USER/NAME.  [default: none is meant]"),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run/--no-dry-run",
            help="Say what would be published, or publish it with your own login.",
        ),
    ] = True,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who may see a new data set.")
    ] = True,
) -> None:
    """Publish the images of a run with their scores as a data set, a row an image.

    Says what would be published; only with --no-dry-run does it touch the network.
    """
    from mars2.job import RunError
    from mars2.push import collect
    from mars2.push import push as upload
    from mars2.store import RunStore

    content = collect(RunStore.open(run))
    methods = dict.fromkeys(row["method"] for row in content.rows)
    print(f"{len(content.rows)} images of {len(methods)} methods, {content.size / 1e6:.1f} MB")
    print(f"columns: {', '.join(content.rows[0])}")
    if dry_run:
        target = repository or "USER/NAME"
        print(f"nothing was sent; --repo {target} --no-dry-run sends it")
        return
    if not repository:
        raise RunError("say where to with --repo USER/NAME")
    print(upload(content, repository, private=private))
