"""Finds out which pair each image of a folder shows: by folder names or a manifest."""

import csv
import difflib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark_data.suite import Case, Suite
from mars2.job import RunError
from mars2.store import SCORES_FOLDER, FoundImage, ImagesSpec
from mars2.wording import listed

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def match_folder(
    folder: Path,
    suite_name: str,
    suite: Suite,
    *,
    out: Path,
    split: str | None = None,
    partial: bool = False,
) -> ImagesSpec:
    """Return the images in CASE/ or METHOD/CASE/ folders, named exactly as a suite's cases.

    Args:
        folder: Where the folders are; without METHOD folders its own name is the method.
        suite_name: Name or path of the suite, as given.
        suite: What the case ids mean.
        out: Folder of the results; the paths of the images are kept relative to it.
        split: The only split to match; None: the one to which all folders belong.
        partial: Whether pairs of the split may be missing, or have fewer images than others.

    Raises:
        RunError: There are no images, a folder's name is no case id, folders of cases and of
            methods stand side by side, or the images are not complete and need not be partial.
    """
    cases = _cases(suite, split)
    _check_folder(folder)
    children = _folders(folder)
    loose = list_images(folder)
    if loose:
        raise RunError(
            f"{loose[0]} lies in no SUBJECT_STYLE folder: move it, or say what it shows with "
            f"--manifest, or --subject-refs, --style-refs and --style-name. {_expected(cases)}"
        )
    if not children:
        raise RunError(f"{folder} has no images. {_expected(cases)}")
    methods = [child for child in children if child.name not in cases and _folders(child)]
    if methods and len(methods) < len(children):
        other = next(child for child in children if child not in methods)
        raise RunError(
            f"{folder} is ambiguous: {methods[0].name}/ looks like a method's folder, "
            f"{other.name}/ like a pair's. {_expected(cases)}"
        )
    groups = [(child.name, _folders(child)) for child in methods] or [(_name(folder), children)]
    found: list[FoundImage] = []
    for method, places in groups:
        for place in sorted(places, key=lambda place: list(cases).index(_match(place, cases).id)):
            found += _case_images(method, place, _match(place, cases), out)
    splits = sorted(
        {
            name
            for name, members in suite.cases.items()
            if {case.id for case in members} & {image.case for image in found}
        }
    )
    if len(splits) > 1:
        raise RunError(
            f"{folder} has pairs of several splits ({', '.join(splits)}): give one with --split"
        )
    others = "" if partial else uneven(found, [case.id for case in suite.cases[splits[0]]])
    if others:
        raise RunError(f"{others}; mend that, or give --partial to score what is there")
    return ImagesSpec(str(folder), tuple(found), suite_name, suite.revision, splits[0])


def read_manifest(
    manifest: Path,
    folder: Path,
    suite_name: str,
    suite: Suite,
    *,
    out: Path,
    partial: bool = False,
) -> ImagesSpec:
    """Return the images a CSV file lists.

    Its columns are image, subject, style and, if wanted, method, seed and prompt; paths are
    relative to `folder`, subject and style are concept ids of the suite. Without a seed the images
    of a pair are numbered as `match_folder` does, by their names or in order. Pairs that it lists
    may have unequal numbers of images, or lack some methods', only if they may be `partial`.

    Raises:
        RunError: An unknown column or concept, a missing image, an image or seed given twice, seeds
            of some images of a pair alone, or images that are not complete and need be.
    """
    rows = _read_rows(manifest)
    seeds = _manifest_seeds(manifest, folder, rows)
    by_pair = {(case.subject.id, case.style.id): case for case in _cases(suite, None).values()}
    found: list[FoundImage] = []
    for number, row in rows:
        where = f"{manifest} line {number}"
        path = folder / row["image"]
        if not path.is_file():
            raise RunError(f"{where}: there is no image {path}")
        subject = _concept(row["subject"], suite.subjects, "subject", where)
        style = _concept(row["style"], suite.styles, "style", where)
        case = by_pair.get((subject, style))
        case_id = case.id if case else f"{subject}_{style}"
        method = row.get("method") or _name(folder)
        file = _relative(path, out)
        if any(image.file == file for image in found):
            raise RunError(f"{where}: image {path} is given twice")
        seed = seeds[number]
        if any(
            (image.method, image.case, image.seed) == (method, case_id, seed) for image in found
        ):
            raise RunError(f"{where}: seed {seed} of {method}, {case_id} is given twice")
        prompt = row.get("prompt") or (case.prompt if case else None)
        found.append(FoundImage(method, case_id, seed, file, subject, style, prompt))
    found.sort(key=lambda image: (image.method, image.case, image.seed))
    others = "" if partial else uneven(found, sorted({image.case for image in found}))
    if others:
        raise RunError(f"{manifest}: {others}; mend that, or give --partial to score what it lists")
    return ImagesSpec(str(folder), tuple(found), suite_name, suite.revision)


def _manifest_seeds(
    manifest: Path, folder: Path, rows: Sequence[tuple[int, Mapping[str, str]]]
) -> dict[int, int]:
    """Return the seed of each row, by its line."""
    groups: dict[tuple[str, str, str], list[tuple[int, Mapping[str, str]]]] = {}
    for number, row in rows:
        key = (row.get("method") or _name(folder), row["subject"], row["style"])
        groups.setdefault(key, []).append((number, row))
    seeds: dict[int, int] = {}
    for key, members in groups.items():
        given = [number for number, row in members if row.get("seed")]
        if not given:
            named = _with_seeds([Path(row["image"]) for _, row in members])
            order = {path: seed for seed, path in named}
            seeds |= {number: order[Path(row["image"])] for number, row in members}
        elif len(given) < len(members):
            bare = next(number for number, row in members if not row.get("seed"))
            raise RunError(
                f"{manifest} line {bare}: it has no seed, which other images of {', '.join(key)} "
                "have; give all of them one, or none"
            )
        else:
            seeds |= {
                number: _seed(row["seed"], f"{manifest} line {number}") for number, row in members
            }
    return seeds


def single_pair(
    folder: Path, subject_references: Path, style_references: Path, style_name: str, *, out: Path
) -> ImagesSpec:
    """Return all images of a folder as pictures of one pair, known by its reference images.

    Raises:
        RunError: A folder has no images, or the style's name is empty.
    """
    if not style_name.strip():
        raise RunError(
            "--style-name is empty; it goes into the judge's question, as in 'oil painting'"
        )
    subject, style = f"subject:{_name(subject_references)}", f"style:{_name(style_references)}"
    case = f"{_name(subject_references)}_{_name(style_references)}"
    references = {}
    for concept, place in ((subject, subject_references), (style, style_references)):
        _check_folder(place)
        references[concept] = tuple(_relative(path, out) for path in _some_images(place))
    _check_folder(folder)
    files = _some_images(folder)
    return ImagesSpec(
        source=str(folder),
        images=tuple(
            FoundImage(_name(folder), case, seed, _relative(path, out), subject, style)
            for seed, path in _with_seeds(files)
        ),
        references=references,
        phrases={style: style_name},
    )


def list_images(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES
    )


def _cases(suite: Suite, split: str | None) -> dict[str, Case]:
    if split is not None and split not in suite.cases:
        raise RunError(
            f"suite {suite.name} has no split {split!r}; it has {', '.join(suite.cases)}"
        )
    return {
        case.id: case
        for name in sorted(suite.cases, key=lambda name: name != "test")  # told first of them
        if split in (None, name)
        for case in suite.cases[name]
    }


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder")


def _folders(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name != SCORES_FOLDER and not path.name.startswith(".")
    )


def _some_images(folder: Path) -> list[Path]:
    images = list_images(folder)
    if not images:
        raise RunError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
    return images


def _match(place: Path, cases: Mapping[str, Case]) -> Case:
    if place.name not in cases:
        near = _nearest_case(place.name, cases)
        hint = f" Did you mean {near}?" if near else ""
        raise RunError(f"folder {place} matches no pair of the suite.{hint} {_expected(cases)}")
    return cases[place.name]


def _nearest_case(name: str, cases: Mapping[str, Case]) -> str:
    """Return the case that a misspelt folder probably means, or ""; also STYLE_SUBJECT is one."""
    spellings = {case.lower(): case for case in cases}
    spellings |= {f"{case.style.id}_{case.subject.id}".lower(): case.id for case in cases.values()}
    spelt = name.lower().replace("-", "_").replace(" ", "_")
    near = difflib.get_close_matches(spelt, spellings, n=1)
    return spellings[near[0]] if near else ""


def _case_images(method: str, place: Path, case: Case, out: Path) -> list[FoundImage]:
    return [
        FoundImage(
            method, case.id, seed, _relative(path, out), case.subject.id, case.style.id, case.prompt
        )
        for seed, path in _with_seeds(_some_images(place))
    ]


def _with_seeds(files: Sequence[Path]) -> list[tuple[int, Path]]:
    """Number images by their names if these are different numbers, else in the order of names."""
    if all(file.stem.isdecimal() for file in files):
        numbered = sorted((int(file.stem), file) for file in files)
        if len({number for number, _ in numbered}) == len(files):
            return numbered
    return list(enumerate(files))


def uneven(found: Sequence[FoundImage], cases: Sequence[str]) -> str:
    """Say which pairs, by method, have fewer or more images than most; "" if all have as many.

    Such as `images are missing: ties/cat_ink (3 of 10)`. Of two numbers that are as frequent the
    larger is the usual one.
    """
    methods = dict.fromkeys(image.method for image in found)
    counts = {(method, case): 0 for method in methods for case in cases}
    for image in found:
        counts[image.method, image.case] += 1
    often = Counter(count for count in counts.values() if count)
    usual = max(often, key=lambda count: (often[count], count))
    told = {key: f"{'/'.join(key)} ({count} of {usual})" for key, count in counts.items()}
    fewer = [told[key] for key, count in counts.items() if count < usual]
    more = [told[key] for key, count in counts.items() if count > usual]
    parts = [f"images are missing: {listed(fewer)}"] if fewer else []
    parts += [f"there are more images than of other pairs: {listed(more)}"] if more else []
    return "; ".join(parts)


def misplaced(found: Sequence[FoundImage], suite: Suite) -> list[str]:
    """Say which images a manifest gives to another pair than their folder's name does.

    Such as `cat2_ink/0.png is listed as dog_oil`.
    """
    known = _cases(suite, None)
    return [
        f"{folder}/{Path(image.file).name} is listed as {image.case}"
        for image in found
        if (folder := Path(image.file).parent.name) in known and folder != image.case
    ]


def _read_rows(manifest: Path) -> list[tuple[int, dict[str, str]]]:
    needed, optional = ("image", "subject", "style"), ("method", "seed", "prompt")
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            separator = max(",;\t", key=header.count)
            reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            rows = [(reader.line_num, _stripped(row)) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"manifest {manifest} cannot be read: {error}") from error
    unknown = [name for name in columns if name not in needed + optional]
    missing = [name for name in needed if name not in columns]
    if unknown or missing:
        raise RunError(
            f"manifest {manifest} has columns {columns}; it needs {', '.join(needed)} and may have "
            f"{', '.join(optional)}"
        )
    if not rows:
        raise RunError(f"manifest {manifest} lists no images")
    for number, row in rows:
        if None in row or not all(row.get(name) for name in needed):
            raise RunError(
                f"{manifest} line {number}: it needs {', '.join(needed)}, and no more "
                "values than columns"
            )
    return rows


def _stripped(row: dict[str, Any]) -> dict[str, str]:
    """A row without spaces around its values; too many or too few of these stay as they are."""
    return {key: one.strip() if isinstance(one, str) else one for key, one in row.items()}


def _concept(name: str, known: Mapping[str, object], role: str, where: str) -> str:
    spelt = name.replace(" ", "_")  # as tables print it
    if spelt not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {listed(known)}"
        raise RunError(f"{where}: the suite has no {role} {name!r}; {hint}")
    return spelt


def _seed(text: str, where: str) -> int:
    if not text.isdecimal():
        raise RunError(f"{where}: seed is {text!r}; it must be a whole number")
    return int(text)


def _expected(cases: Iterable[str]) -> str:
    return f"Expected folders named {listed(cases)}"


def _name(folder: Path) -> str:
    return folder.resolve().name


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
