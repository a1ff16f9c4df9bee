"""A scored run as a data set: an image a row, with its scores and what the judge said."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mars2.job import RunError
from mars2.store import RunStore
from mars2.wording import listed

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Content:
    """What would be published.

    Attributes:
        rows: A row an image; `image` is its file.
        scores: Names of the columns of scores, ``METRIC``.
    """

    rows: Sequence[dict[str, Any]]
    scores: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all image files."""
        return sum(Path(row["image"]).stat().st_size for row in self.rows)


def collect(store: RunStore) -> Content:
    """Return the rows of a scored run's data set, in the order of its samples.

    Columns: image, method, case, subject, style, seed, prompt, one a score (None: unscored), the
    judge, and its answers about the subject and the style, one a reference.

    Raises:
        RunError: Images are missing, or nothing is scored.
    """
    samples = store.samples()
    missing = [str(sample.path) for sample in samples if not sample.path.is_file()]
    if missing:
        raise RunError(f"images are missing: {listed(missing)}; finish the run first")
    records = store.records()
    judges = list(dict.fromkeys(r.judge for r in records if r.metric == "mars2"))
    if len(judges) != 1:
        raise RunError(
            f"{store.folder} was scored by {len(judges)} judges; a data set needs exactly one: "
            f"{listed(judges) or 'score it with `mars2 score` first'}"
        )
    by_image: dict[tuple[str, str, int], dict[str, Any]] = {}
    details: dict[tuple[str, str, int], dict[str, Any]] = {}
    for record in records:
        key = (record.method, record.case, record.seed)
        by_image.setdefault(key, {})[record.metric] = record.value
        if record.metric in ("mars2_subject", "mars2_style"):
            details.setdefault(key, {})[record.metric] = list(record.detail.get("answers", ()))
    names = tuple(sorted({record.metric for record in records}))
    rows = []
    for sample in samples:
        key = (sample.method, sample.case, sample.seed)
        scores = by_image.get(key, {})
        answers = details.get(key, {})
        rows.append(
            {
                "image": str(sample.path),
                "method": sample.method,
                "case": sample.case,
                "subject": sample.subject,
                "style": sample.style,
                "seed": sample.seed,
                "prompt": sample.prompt,
                **{name: scores.get(name) for name in names},
                "judge": judges[0],
                "subject_answers": answers.get("mars2_subject", []),
                "style_answers": answers.get("mars2_style", []),
            }
        )
    return Content(rows, names)


def dataset(content: Content) -> "datasets.Dataset":
    """Return the data set; images are embedded when it is uploaded."""
    import datasets

    columns = {name: [row[name] for row in content.rows] for name in content.rows[0]}
    answers = datasets.List(datasets.Value("bool"))
    special = {
        "image": datasets.Image(),
        "seed": datasets.Value("int64"),
        "subject_answers": answers,
        "style_answers": answers,
        **dict.fromkeys(content.scores, datasets.Value("float64")),
    }
    features = {name: special.get(name, datasets.Value("string")) for name in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def push(content: Content, repository: str, *, private: bool) -> str:
    """Upload to the Hugging Face hub, with the user's own login; return where it is.

    Raises:
        RunError: The hub refuses, or cannot be reached.
    """
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        dataset(content).push_to_hub(repository, private=private)
    except (HfHubHTTPError, LocalTokenNotFoundError, httpx.HTTPError, OSError) as error:
        raise RunError(
            f"{repository} was not pushed: {error}; log in with `hf auth login`, and see that the "
            "name is USER/NAME and yours"
        ) from error
    return f"https://huggingface.co/datasets/{repository}"
