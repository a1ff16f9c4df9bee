"""Reference images on this machine: where they are kept, and opening them."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import platformdirs
from PIL import Image, ImageOps

from benchmark_data.suite import Concept, Reference, Suite, SuiteError

if TYPE_CHECKING:
    import datasets

CACHE_VARIABLE = "MARS2_CACHE"

T = TypeVar("T")


def cache_root(root: Path | None = None) -> Path:
    """Return `root`, or else the folder that MARS2_CACHE names, or else the user's cache."""
    given = root or os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else platformdirs.user_cache_path("mars2")


def suite_cache(name: str, root: Path | None = None) -> Path:
    """Return the folder with a suite's fetched images, ``CONCEPT/FILE``; it need not exist."""
    return cache_root(root) / "references" / name


def locate(suite: Suite, root: Path | None = None) -> Suite:
    """Return the suite with the paths of its images as they are now, in another cache if asked."""
    folder = suite_cache(suite.name, root)

    def found(concept: Concept) -> Concept:
        return replace(
            concept,
            references=tuple(
                reference if reference.local else _found(reference, folder / concept.id)
                for reference in concept.references
            ),
        )

    subjects = {id_: found(concept) for id_, concept in suite.subjects.items()}
    styles = {id_: found(concept) for id_, concept in suite.styles.items()}
    return replace(
        suite,
        subjects=subjects,
        styles=styles,
        cases={
            split: tuple(
                replace(case, subject=subjects[case.subject.id], style=styles[case.style.id])
                for case in cases
            )
            for split, cases in suite.cases.items()
        },
    )


def _found(reference: Reference, folder: Path) -> Reference:
    path = folder / reference.file
    return replace(reference, path=path if path.is_file() else None)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_image(path: Path) -> Image.Image:
    """Return a whole image, turned as its EXIF data say, RGB.

    Raises:
        SuiteError: There is no such file, or it is no image, or a truncated one.
    """
    return _read(path, lambda image: ImageOps.exif_transpose(image).convert("RGB"))


def check_image(path: Path) -> None:
    """Decode an image to its end.

    Raises:
        SuiteError: As `open_image`.
    """
    _read(path, lambda image: image.load())


def _read(path: Path, use: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(path) as image:
            return use(image)
    except FileNotFoundError as error:
        raise SuiteError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SuiteError(f"{path} is no image that can be read to its end: {error}") from error


def open_references(concept: Concept) -> list[Image.Image]:
    """Return a concept's reference images in order, turned as their EXIF data say, RGB.

    Raises:
        SuiteError: One is missing, truncated, no image, or not the file the suite demands.
    """
    return [open_image(path) for path in reference_paths([concept])]


def load_references(suite: Suite, root: Path | None = None) -> "datasets.Dataset":
    """Return all reference images of a suite, a row each, without any network.

    Columns: image (`datasets.Image`), concept, role, split, phrase, file.

    Args:
        suite: Which suite.
        root: The cache they were fetched to; None: as `cache_root`.

    Raises:
        SuiteError: Images are missing, truncated, no images, or not the files the suite demands.
    """
    import datasets

    concepts = list(locate(suite, root).concepts.values())
    paths = reference_paths(concepts, suite.name)
    for path in paths:
        check_image(path)
    rows = [(concept, reference) for concept in concepts for reference in concept.references]
    return datasets.Dataset.from_dict(
        {
            "image": [str(path) for path in paths],
            "concept": [concept.id for concept, _ in rows],
            "role": [concept.role for concept, _ in rows],
            "split": [concept.split for concept, _ in rows],
            "phrase": [concept.phrase for concept, _ in rows],
            "file": [reference.file for _, reference in rows],
        }
    ).cast_column("image", datasets.Image())


def reference_paths(concepts: list[Concept], suite: str = "SUITE") -> list[Path]:
    """Return the files of all references, concept by concept.

    Raises:
        SuiteError: One is missing, or not the file the suite demands.
    """
    paths: list[Path] = []
    missing: list[str] = []
    for concept in concepts:
        for reference in concept.references:
            path = reference.path
            if path is None or not path.is_file():
                missing.append(f"{concept.id}: {reference.file}")
            elif reference.sha256 and file_digest(path) != reference.sha256:
                raise SuiteError(
                    f"{path} is not the file that the suite demands (sha256 "
                    f"{reference.sha256[:12]}...): delete it and run `mars2 data fetch {suite}`"
                )
            else:
                paths.append(path)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise SuiteError(
            f"{len(missing)} of {len(missing) + len(paths)} reference images are missing "
            f"({', '.join(missing[:3])}{more}): get them with `mars2 data fetch {suite}`"
        )
    return paths
