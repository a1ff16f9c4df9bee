"""Results that papers report and nobody has reproduced here: shown apart, each with its source."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from leaderboards.entry import Line, Name, Url
from leaderboards.shape import Count, EntryError, Number, Problem, read

FILE = Path(__file__).with_name("reported.toml")


@dataclass(frozen=True)
class Source:
    """Where figures come from, and what they measure."""

    id: Name
    suite: Name
    """Suite whose board they stand below."""
    measure: Line
    source: Line
    url: Url


@dataclass(frozen=True)
class Figure:
    """One figure of a source."""

    source: Name
    method: Line
    value: Annotated[float, Number(0, 1)]


@dataclass(frozen=True)
class Reported:
    """All reported results."""

    sources: Annotated[tuple[Source, ...], Count(1000)]
    figures: Annotated[tuple[Figure, ...], Count(10000)]

    def of(self, suite: str) -> list[tuple[Source, list[Figure]]]:
        """Return a suite's sources with their figures, the best first."""
        return [
            (one, sorted((f for f in self.figures if f.source == one.id), key=lambda f: -f.value))
            for one in self.sources
            if one.suite == suite
        ]


def read_reported(path: Path = FILE) -> Reported:
    """Return the reported results in a TOML file.

    Raises:
        EntryError: It cannot be read, has other fields, or figures without a source.
    """
    try:
        data: Mapping[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EntryError([Problem(str(path), "", "TOML", str(error))]) from error
    reported = read(Reported, data, file=str(path))
    known = {source.id for source in reported.sources}
    problems = [
        Problem(str(path), f"figures[{number}].source", "one of the sources", figure.source)
        for number, figure in enumerate(reported.figures)
        if figure.source not in known
    ]
    if problems:
        raise EntryError(problems)
    return reported
