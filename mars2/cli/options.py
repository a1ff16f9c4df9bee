"""Options that several commands share, with their help."""

from pathlib import Path
from typing import Annotated

import typer

from mars2.job import RunError

SuiteName = Annotated[str, typer.Option(help="Name of a suite (`mars2 ls suites`) or a TOML file.")]
Model = Annotated[
    str | None,
    typer.Option(help="Base model: folder in diffusers' layout or hub id.  [default: the suite's]"),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, float16 or bfloat16.  [default: float32 on a CPU, else float16]"),
]
TrainingDtype = Annotated[
    str | None,
    typer.Option(help="float32, float16 or bfloat16.  [default: float32 on a CPU, else bfloat16]"),
]
JudgeDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="The judge's: float32, float16 or bfloat16.  "
        "[default: float32 on a CPU, else float16; `qwen_vl`: bfloat16]",
    ),
]


def _device(value: str) -> str:
    """Refuse, before any work, a device that is not here; torch is not imported for the usual."""
    if value not in ("auto", "cpu"):
        from mars2.prepare import find_device

        find_device(value)
    return value


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", callback=_device)]
BatchSize = Annotated[int, typer.Option(min=1, help="Images drawn or scored at once.")]
Metrics = Annotated[str, typer.Option(help="Which to compute (`mars2 ls metrics`).")]
JudgeName = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="NAME:MODEL, such as llava_onevision:FOLDER_OR_HUB_ID (`mars2 ls judges`).  "
        "[default: the suite's]",
    ),
]
Layout = Annotated[
    str, typer.Option(help="How the judge sees two images: anyres (the protocol) or pad.")
]
Prompts = Annotated[
    Path | None, typer.Option(help="TOML file of question templates.  [default: ours]")
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        help="Server of a judge such as openai:MODEL: http://localhost:8000/v1.  "
        "[default: the variable OPENAI_BASE_URL; the key is that in OPENAI_API_KEY]"
    ),
]
JudgeTimeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds that a judge's server may take for a question.")
]
JudgeConcurrency = Annotated[
    int, typer.Option(min=1, help="Questions that a judge's server is asked at once.")
]
JudgeRetries = Annotated[
    int, typer.Option(min=0, help="How often a question to a judge's server is repeated.")
]
JudgeTemperature = Annotated[
    float,
    typer.Option(
        min=0,
        help="At which a judge's server draws its answers; 0: the most likely ones.  Part of the "
        "judge's id: scores at another temperature are another judge's",
    ),
]
Cache = Annotated[
    bool,
    typer.Option(help="Keep the judge's answers, and ask no question twice (`mars2 cache info`)."),
]
ControlFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--controls",
        help="File of `mars2 judge check`, to correct shares of yes for the judge's errors; repeat "
        "it for several judges.  [default: the user's cache, if they are there]",
    ),
]
Clip = Annotated[
    str | None,
    typer.Option(
        help="open_clip model, ARCHITECTURE:PRETRAINED or local-dir:FOLDER.  [default: the suite's]"
    ),
]
Dino = Annotated[str | None, typer.Option(help="DINO folder or hub id.  [default: the suite's]")]


def parse_seeds(text: str | None) -> tuple[int, ...]:
    """Return the seeds of a text such as "0-9" or "0,3,5-7"; none for None.

    >>> parse_seeds("0,3,5-7")
    (0, 3, 5, 6, 7)

    Raises:
        RunError: The text is something else.
    """
    seeds: list[int] = []
    for part in (text or "").split(",") if text is not None else ():
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise RunError(f"--seeds is {text!r}; give numbers such as 0-9 or 0,3,5")
        seeds += range(int(first), int(last if dash else first) + 1)
    if text is not None and not seeds:
        raise RunError(f"--seeds is {text!r}: no seed is in it; give numbers such as 0-9 or 0,3,5")
    return tuple(seeds)


def parse_dtype(text: str | None) -> str | None:
    """Return the name of a floating-point type that models can be run in.

    Raises:
        RunError: The text is something else.
    """
    if text not in (None, "float32", "float16", "bfloat16"):
        raise RunError(f"--dtype is {text!r}; give float32, float16 or bfloat16")
    return text
