"""`mars2 merge`: merge LoRA files by a method that needs nothing but weights."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.job import RunError


def merge(
    files: Annotated[list[Path], typer.Argument(help="LoRA files; the subject's, the style's.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The merged LoRA's file.")],
    method: Annotated[str, typer.Option(help="Such as direct_sum or average.")] = "direct_sum",
    seed: Annotated[int, typer.Option(help="For methods that draw random numbers.")] = 0,
) -> None:
    """Merge LoRA files into one that other tools load."""
    from baselines.formats import load_adapter, save_adapter
    from baselines.registry import parse_method

    found, passed = parse_method(method)
    if found.kind == "fit":
        raise RunError(
            f"{found.name} optimises for a pair with the base model and reference images: "
            "use `mars2 run --save-adapters`"
        )
    for path in files:
        if not path.is_file():
            raise RunError(f"there is no LoRA file {path}")
    adapters = [load_adapter(path, name=path.stem) for path in files]
    for adapter in adapters:
        adapter.check_finite()
    merged = found(adapters, seed=seed, **found.resolve(passed))
    if not merged.deltas:
        raise RunError(f"{found.name} leaves the base model as it is: there is nothing to save")
    merged.check_finite()
    output.parent.mkdir(parents=True, exist_ok=True)
    save_adapter(merged, output)
    print(f"{output}: {len(merged.deltas)} layers, {merged.parameters()} parameters")
