"""Reads what people and metrics said of images, and puts both side by side by name, never by order.

Ratings are a long table of item, method, rater, aspect, score and, where a method has several
images of an item, seed; metrics one of item, method, metric, score [, aspect, seed]; choices one of
item, method_a, method_b, rater, aspect, choice [, shown_left, seed]. As CSV or parquet.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mars2.job import RunError
from mars2.report.summary import BY_REFERENCE
from mars2.store import RunStore
from mars2.studies.association import Floats

Image = tuple[str, str, str]
"""Item, method and seed; the seed is "" where there is one image a cell."""

CHOICES = ("a", "b", "tie", "both_bad")
IGNORED = ("timestamp",)


@dataclass(frozen=True)
class Rated:
    """What raters gave images for one aspect.

    Attributes:
        images: Sorted.
        raters: Sorted.
        table: (images, raters); NaN: not rated.
        empty: Number of lines without a score.
    """

    images: tuple[Image, ...]
    raters: tuple[str, ...]
    table: Floats
    empty: int = 0


@dataclass(frozen=True)
class Scored:
    """What a metric gave images.

    Attributes:
        name: Of the metric.
        aspect: What it measures; "": any aspect.
        scores: None: it was asked and gave none.
    """

    name: str
    aspect: str
    scores: Mapping[Image, float | None]


@dataclass(frozen=True)
class Choice:
    """What one rater chose between two methods' images of an item.

    Attributes:
        item: The item.
        a: A method.
        b: The other method.
        rater: Who chose.
        aspect: By what.
        choice: Of `CHOICES`.
        left: The method shown on the left; "": not known.
        seed: Of the images, or "".
    """

    item: str
    a: str
    b: str
    rater: str
    aspect: str
    choice: str
    left: str
    seed: str = ""


def read_ratings(path: Path) -> dict[str, Rated]:
    """Return the ratings of a file, by aspect.

    Where people gave yes or no (1 or 0) for subject and style and said nothing of both, both is a
    person's yes to each.

    Raises:
        RunError: The file cannot be read as ratings.
    """
    needed = ("item", "method", "rater", "aspect", "score")
    lines = _read(path, needed, ("seed",))
    found: dict[str, dict[tuple[Image, str], float]] = {}
    empty: dict[str, int] = {}
    seen: set[tuple[Image, str, str]] = set()
    for number, line in lines:
        image, rater, aspect = _image(line), line["rater"], line["aspect"]
        if (image, rater, aspect) in seen:
            raise RunError(
                f"{path} line {number}: rater {rater} rates {_said(image)} for {aspect} a second "
                "time; keep one of the two"
            )
        seen.add((image, rater, aspect))
        score = _number(line["score"], f"{path} line {number}: score")
        found.setdefault(aspect, {})
        if score is None:
            empty[aspect] = empty.get(aspect, 0) + 1
        else:
            found[aspect][image, rater] = score
    if "both" not in found and {"subject", "style"} <= set(found):
        subject, style = found["subject"], found["style"]
        if {*subject.values(), *style.values()} <= {0.0, 1.0}:
            found["both"] = {key: subject[key] * style[key] for key in subject if key in style}
    return {
        aspect: _tabulated(cells, empty.get(aspect, 0))
        for aspect, cells in sorted(found.items())
        if cells
    }


def _tabulated(cells: Mapping[tuple[Image, str], float], empty: int) -> Rated:
    images = tuple(sorted({image for image, _ in cells}))
    raters = tuple(sorted({rater for _, rater in cells}))
    rows, columns = ({name: k for k, name in enumerate(names)} for names in (images, raters))
    table = np.full((len(images), len(raters)), np.nan)
    for (image, rater), score in cells.items():
        table[rows[image], columns[rater]] = score
    return Rated(images, raters, table, empty)


def read_scores(source: Path) -> list[Scored]:
    """Return the metrics' scores in a file, or those in a run's folder.

    Raises:
        RunError: It can be read as neither.
    """
    if source.is_dir():
        return _scores_of_run(RunStore.open(source))
    found: dict[tuple[str, str], dict[Image, float | None]] = {}
    for number, line in _read(source, ("item", "method", "metric", "score"), ("aspect", "seed")):
        image = _image(line)
        own = found.setdefault((line["metric"], line.get("aspect", "")), {})
        if image in own:
            raise RunError(
                f"{source} line {number}: {line['metric']} scores {_said(image)} a second time"
            )
        own[image] = _number(line["score"], f"{source} line {number}: score")
    return [Scored(name, aspect, scores) for (name, aspect), scores in found.items()]


def _scores_of_run(store: RunStore) -> list[Scored]:
    """Return all scores of a run, and the judges' shares of yes and mean chances of yes."""
    found: dict[tuple[str, str], dict[Image, float | None]] = {}
    for record in store.records():
        image = (record.case, record.method, str(record.seed))
        values: dict[str, float | None] = {record.metric: record.value}
        if record.metric in BY_REFERENCE:
            chances = record.detail.get("p_yes") or [None]
            known = [chance for chance in chances if chance is not None]
            values[BY_REFERENCE[record.metric]] = record.detail.get("yes_share")
            if known:
                values[f"{record.metric}_p_yes"] = sum(known) / len(known)
        for name, value in values.items():
            found.setdefault((name, record.judge), {})[image] = value
    if not found:
        raise RunError(f"{store.folder} has no scores yet: run `mars2 score` on it")
    judges: dict[str, list[str]] = {}
    for name, judge in found:
        judges.setdefault(name, []).append(judge)
    return [
        Scored(
            name if len(judges[name]) == 1 else f"{name} ({judge.partition(' ')[0]})",
            aspect_of(name),
            scores,
        )
        for (name, judge), scores in found.items()
    ]


def aspect_of(metric: str) -> str:
    """Return what a score of a run measures.

    >>> aspect_of("dino_style"), aspect_of("mars2_subject_p_yes"), aspect_of("clip_t")
    ('style', 'subject', 'both')
    """
    parts = metric.split("_")
    return next((aspect for aspect in ("subject", "style") if aspect in parts), "both")


def read_choices(path: Path) -> list[Choice]:
    """Return the choices in a file.

    Raises:
        RunError: The file cannot be read as choices.
    """
    needed = ("item", "method_a", "method_b", "rater", "aspect", "choice")
    choices = []
    for number, line in _read(path, needed, ("shown_left", "seed")):
        if line["choice"] not in CHOICES:
            raise RunError(
                f"{path} line {number}: choice is {line['choice']!r}; it must be one of "
                f"{', '.join(CHOICES)}"
            )
        a, b, left = line["method_a"], line["method_b"], line.get("shown_left", "")
        left = {"a": a, "b": b}.get(left, left)
        if a == b or left not in ("", a, b):
            raise RunError(
                f"{path} line {number}: {a!r} against {b!r}, {left!r} on the left; two methods are "
                "compared, one of them on the left"
            )
        choices.append(
            Choice(
                line["item"],
                a,
                b,
                line["rater"],
                line["aspect"],
                line["choice"],
                left,
                line.get("seed", ""),
            )
        )
    return choices


@dataclass(frozen=True)
class Aligned:
    """Ratings and scores of the same images.

    Attributes:
        aspect: What was rated.
        rated: The ratings.
        items: Names, sorted.
        methods: Names, sorted.
        owner: (images,): number of the item.
        method: (images,): number of the method.
        scores: Metric -> (images,); NaN: none.
        unscored: Metric -> images that it was asked about without giving a score.
        missing: Metric -> images that it has no line for.
        unrated: Metric -> images that it has a line for and nobody rated.
    """

    aspect: str
    rated: Rated
    items: tuple[str, ...]
    methods: tuple[str, ...]
    owner: "np.typing.NDArray[np.int_]"
    method: "np.typing.NDArray[np.int_]"
    scores: Mapping[str, Floats]
    unscored: Mapping[str, int]
    missing: Mapping[str, int]
    unrated: Mapping[str, int]


def align(aspect: str, rated: Rated, scored: Sequence[Scored], lower: Sequence[str]) -> Aligned:
    """Return ratings and the scores that are about their aspect, image by image.

    Args:
        aspect: What was rated.
        rated: The ratings.
        scored: All metrics.
        lower: Metrics of which less is better; their sign is turned.

    Raises:
        RunError: No metric is about this aspect, or none scored any of the images.
    """
    fitting = [one for one in scored if one.aspect in ("", aspect)]
    if not fitting:
        aspects = ", ".join(dict.fromkeys(one.aspect for one in scored))
        raise RunError(
            f"people rated {aspect!r}, but the metrics are about {aspects}: name it in the column "
            "aspect, or leave that empty"
        )
    rated_seeds = any(seed for _, _, seed in rated.images)
    scores: dict[str, Floats] = {}
    unscored, missing, unrated = {}, {}, {}
    for one in fitting:
        own = one.scores if rated_seeds else _without_seeds(one)
        found = [own.get(image, ()) for image in rated.images]
        numbers = [np.nan if value in ((), None) else float(value) for value in found]  # type: ignore[arg-type]
        if np.isnan(numbers).all():
            example, other = _said(rated.images[0]), next(iter(own))
            raise RunError(
                f"{one.name} has a score of none of the {len(rated.images)} images rated for "
                f"{aspect}: people rated such as {example}, it scored such as {_said(other)}"
            )
        scores[one.name] = np.array(numbers) * (-1 if one.name in lower else 1)
        unscored[one.name] = sum(value is None for value in found)
        missing[one.name] = sum(value == () for value in found)
        unrated[one.name] = len(set(own) - set(rated.images))
    items = tuple(sorted({item for item, _, _ in rated.images}))
    methods = tuple(sorted({method for _, method, _ in rated.images}))
    return Aligned(
        aspect,
        rated,
        items,
        methods,
        np.array([items.index(item) for item, _, _ in rated.images]),
        np.array([methods.index(method) for _, method, _ in rated.images]),
        scores,
        unscored,
        missing,
        unrated,
    )


def _without_seeds(scored: Scored) -> dict[Image, float | None]:
    bare: dict[Image, float | None] = {}
    for (item, method, _), value in scored.scores.items():
        if (item, method, "") in bare:
            raise RunError(
                f"{scored.name} scores several images of {_said((item, method, ''))}, the ratings "
                "do not say which of them was rated: give them the column seed"
            )
        bare[item, method, ""] = value
    return bare


def _read(
    path: Path, needed: Sequence[str], optional: Sequence[str]
) -> Iterable[tuple[int, dict[str, str]]]:
    """Return the number and the columns of each line, as text."""
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
            frame = frame.astype(object).where(frame.notna(), "").astype(str)
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, ImportError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    columns = [str(name) for name in frame.columns]
    lacking = [name for name in needed if name not in columns]
    unknown = [name for name in columns if name not in (*needed, *optional, *IGNORED)]
    if lacking or unknown:
        raise RunError(
            f"{path} has columns {', '.join(columns)}; it needs {', '.join(needed)} and may have "
            f"{', '.join((*optional, *IGNORED))}"
        )
    if not len(frame):
        raise RunError(f"{path} has no lines")
    records: list[dict[Any, Any]] = frame.to_dict("records")
    lines = []
    for number, record in enumerate(records, start=2):
        line = {str(name): str(value).strip() for name, value in record.items()}
        bare = [name for name in needed if name not in ("score", "aspect") and not line[name]]
        if bare:
            raise RunError(f"{path} line {number}: {', '.join(bare)} is empty")
        lines.append((number, line))
    return lines


def _image(line: Mapping[str, str]) -> Image:
    return line["item"], line["method"], line.get("seed", "")


def _said(image: Image) -> str:
    return "/".join(part for part in image if part)


def _number(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise RunError(f"{where} is {text!r}; give a number, or nothing if there is none") from None
    if not np.isfinite(value):
        raise RunError(f"{where} is {text}; give a number, or nothing if there is none")
    return value
