"""What must hold in a suite: splits and folder names that cannot be mistaken for one another."""

import itertools
from collections.abc import Mapping

from benchmark_data.suite import SPLITS, Concept, Split, Suite, SuiteError
from benchmark_data.tables import Table, nearest


def split_of(table: Table) -> Split:
    """Return the one split that a concept's table states."""
    value = table.data.get("split")
    if isinstance(value, list):
        raise SuiteError(
            f"{table.where} is in splits {', '.join(map(str, value))}: splits must not overlap, "
            "so choose one"
        )
    text = table.text("split")
    for split in SPLITS:
        if text == split:
            return split
    raise SuiteError(f"{table.where}: split is {text!r}; {nearest(text, SPLITS)}")


def pair_of(
    row: object,
    subjects: Mapping[str, Concept],
    styles: Mapping[str, Concept],
    split: str,
    where: str,
) -> tuple[Concept, Concept]:
    """Return the subject and the style of one row of ``[cases]``."""
    if not (isinstance(row, list) and len(row) == 2 and all(isinstance(id_, str) for id_ in row)):
        raise SuiteError(f'{where}: {split} holds {row!r}; a pair is ["SUBJECT", "STYLE"]')
    for id_, known, role in zip(row, (subjects, styles), ("subject", "style"), strict=True):
        if id_ not in known:
            raise SuiteError(f"{where}: there is no {role} {id_!r}; {nearest(id_, list(known))}")
        if known[id_].split != split:
            raise SuiteError(
                f"{where}: pair {row[0]}, {row[1]} of split {split} uses {role} {id_}, which "
                f"belongs to split {known[id_].split}: splits must not overlap"
            )
    return subjects[row[0]], styles[row[1]]


def check_ids(where: str, subjects: Mapping[str, Concept], styles: Mapping[str, Concept]) -> None:
    """Refuse an id that is a subject and a style, and two pairs of one folder name."""
    for id_ in subjects:
        if id_ in styles:
            raise SuiteError(f"{where}: {id_!r} is a subject and a style: rename one")
    spelt: dict[str, tuple[str, str]] = {}
    for pair in itertools.product(subjects, styles):
        other = spelt.setdefault("_".join(pair), pair)
        if other != pair:
            raise SuiteError(
                f"{where}: folder name {'_'.join(pair)} is ambiguous: subject {other[0]} in style "
                f"{other[1]}, or subject {pair[0]} in style {pair[1]}: rename one"
            )


def check_images(where: str, suite: Suite) -> None:
    """Refuse an image that concepts of two splits share: the test split would be trained on."""
    owners: dict[str, Concept] = {}
    for concept in suite.concepts.values():
        for reference in concept.references:
            for key in (str(reference.path or ""), reference.url, reference.sha256 or ""):
                other = owners.setdefault(key, concept) if key else concept
                if other.split != concept.split:
                    raise SuiteError(
                        f"{where}: splits overlap: {other.id} ({other.split}) and {concept.id} "
                        f"({concept.split}) have the same image, {reference.file}"
                    )
