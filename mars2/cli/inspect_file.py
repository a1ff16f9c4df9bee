"""`mars2 inspect`: what is in a LoRA file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

WIDE = 110
"""Columns of a terminal on which the largest update of each block is shown, too."""
LONGEST = 500
"""Characters of a line of metadata that are shown: trainers store pages of captions there."""


def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file: PEFT, diffusers, kohya or ComfyUI.")],
) -> None:
    """Show what is in a LoRA file: base model, layers, ranks, scales and norms by block."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from baselines.formats import describe, read_lora

    console = Console(highlight=False, soft_wrap=False)
    found = describe(read_lora(file))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    size = f"{file.stat().st_size / 1e6:.1f} MB"
    facts.add_row("file", Text(f"{file}, {size}, {', '.join(found.dtypes) or 'no factors'}"))
    facts.add_row("base model", found.base_model)
    facts.add_row("spelling", _counts(found.spellings, "keys"))
    encoders = _counts(found.text_encoders, "tensors")
    facts.add_row("text encoders", f"{encoders}, which are not merged" if encoders else "none")
    facts.add_row("UNet", f"{found.total.layers} layers, {found.parameters} parameters")
    console.print(facts)

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("block", no_wrap=True)
    for heading in ("layers", "rank", "scale", "norm"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("kinds", overflow="fold")
    wide = console.width >= WIDE
    if wide:
        table.add_column("largest update", overflow="fold")
    for block in (*found.blocks, found.total):
        last = block is (found.blocks or [None])[-1]
        table.add_row(
            block.block or "all",
            str(block.layers),
            _span(block.ranks),
            _span(block.scales),
            "not finite" if block.norm is None else f"{block.norm:.3g}",
            _kinds(block.kinds),
            *([block.largest if block.block else ""] if wide else []),
            end_section=last,
        )
    console.print(table)

    for key, value in sorted(found.metadata.items()):
        line = Text.assemble((f"{key}: ", "dim"), " ".join(value.split()))
        line.truncate(LONGEST, overflow="ellipsis")
        console.print(line, overflow="fold")


def _kinds(kinds: Mapping[str, int]) -> str:
    """How many layers of each kind; kinds of which there are as many stand together."""
    by_count: dict[int, list[str]] = {}
    for kind, count in kinds.items():
        by_count.setdefault(count, []).append(kind)
    return ", ".join(f"{count} {' '.join(names)}" for count, names in by_count.items())


def _counts(counts: Mapping[str, int], of: str) -> str:
    return ", ".join(f"{name} ({count} {of})" for name, count in counts.items())


def _span(values: Sequence[float]) -> str:
    """The smallest and the largest value, or the one there is."""
    return " to ".join(f"{value:.4g}" for value in dict.fromkeys((*values[:1], *values[-1:])))
