"""How well does the train split cover the test split?

By pictures (features of the reference images), by the LoRAs themselves (do their updates live in
the same directions?), and by words (classes and style names in both splits).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from baselines.adapter import LoraAdapter
from baselines.formats import load_adapter
from benchmark_data.suite import Concept, Suite
from mars2.job import RunError
from mars2.studies.association import Floats
from mars2.studies.embeddings import Embedder, concept_features, distance, nearest, own_distance
from mars2.studies.result import STYLE, Result, Sheet, Value

ROLES = ("subject", "style")


def study_diversity(
    suite: Suite,
    embedders: Mapping[str, Embedder],
    adapters: Path | None = None,
    *,
    split: str = "test",
    against: str = "train",
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Return the study of a suite.

    Args:
        suite: The suite, its reference images there.
        embedders: Name -> what gives features; the first is shown in the figure.
        adapters: Folder of CONCEPT.safetensors; None: LoRAs are not compared.
        split: Whose concepts are looked at.
        against: By which others they should be covered.
        progress: Called after each adapter with 1.

    Raises:
        SuiteError: Reference images are not there.
        RunError: A split has no concepts.
        AdapterError: An adapter cannot be read.
    """
    ours, theirs = ([c for c in suite.concepts.values() if c.split == s] for s in (split, against))
    if not ours or not theirs:
        raise RunError(f"suite {suite.name} has no concepts of split {split!r} or of {against!r}")
    features = {name: concept_features(suite, one) for name, one in embedders.items()}
    spaces = {}
    if adapters is not None:
        for concept in (*ours, *theirs):
            path = adapters / f"{concept.id}.safetensors"
            if path.is_file():
                spaces[concept.id] = directions(load_adapter(path))
            if progress is not None:
                progress(1)
    pictures = _pictures(suite, ours, features, against)
    loras = _loras(ours, theirs, spaces)
    words = _words(ours, theirs)
    return Result(
        "diversity", "How well does the train split cover the test split?",
        _text(suite, pictures, loras, words, split, against), (pictures, loras, words),
        {"diversity": _figure(ours, theirs, next(iter(features.items())), spaces)},
        {"suite": suite.name, "suite_revision": suite.revision, "split": split,
         "against": against, "features": list(features), "adapters": len(spaces)},
    )  # fmt: skip


Spaces = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Layer -> orthonormal bases of an update's column space (d_out, r) and row space (d_in, r)."""


def directions(adapter: LoraAdapter) -> Spaces:
    """Return the spaces of all layers of an adapter, without directions of no strength."""
    found = {}
    for layer, delta in adapter.deltas.items():
        u, values, v = delta.to(dtype=torch.float64).svd()
        strong = values > 1e-9 * values.max().clamp_min(1e-300)
        v = v if v.shape[0] == delta.shape[1] else v.T
        found[layer] = u[:, strong], v[:, strong]
    return found


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean squared cosine of the principal angles of two spaces, in ``[0, 1]``.

    Over as many angles as the smaller space has; of random spaces of dimension r and s in d, it is
    max(r, s) / d on average.

    Args:
        one: (d, r), orthonormal columns.
        other: (d, s), likewise.
    """
    return float((one.T @ other).square().sum() / min(one.shape[1], other.shape[1]))


def alikeness(one: Spaces, other: Spaces) -> tuple[float, float, float]:
    """Return the mean overlap of column spaces and of row spaces, and that of random ones."""
    values = []
    for layer in one:
        if layer not in other:
            continue
        (u, v), (s, t) = one[layer], other[layer]
        widest = max(u.shape[1], s.shape[1])
        by_chance = (widest / u.shape[0] + widest / v.shape[0]) / 2
        values.append((overlap(u, s), overlap(v, t), by_chance))
    columns, rows, chance = np.mean(values, axis=0)
    return float(columns), float(rows), float(chance)


def _pictures(
    suite: Suite,
    ours: Sequence[Concept],
    features: Mapping[str, Mapping[str, Floats]],
    against: str,
) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    for concept in ours:
        for name, own in features.items():
            near = nearest(concept, suite, own, against)
            others = [
                distance(own[concept.id], own[other.id])
                for other in suite.concepts.values()
                if other.role == concept.role and other.split == against
            ]
            rows.append(
                (
                    concept.id, concept.role, name, near[0] if near else None,
                    near[1] if near else None, float(np.median(others)) if others else None,
                    own_distance(own[concept.id]), len(own[concept.id]), len(others),
                )
            )  # fmt: skip
    columns = ("concept", "role", "by", "nearest", "distance", "median", "own", "images", "others")
    return Sheet(
        "pictures", "Nearest train concept by reference images", columns, rows, columns,
        ("distance: 1 less the mean cosine of the features of both concepts' images; median: to "
         "all concepts of the other split; own: between the concept's own images, which nothing "
         "else can be expected to fall below. images, others: how many it is over.",),
    )  # fmt: skip


def _loras(
    ours: Sequence[Concept], theirs: Sequence[Concept], spaces: Mapping[str, Spaces]
) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    for concept in ours:
        found = [
            (*alikeness(spaces[concept.id], spaces[other.id]), other.id)
            for other in theirs
            if other.role == concept.role and concept.id in spaces and other.id in spaces
        ]
        if found:
            best = max(found, key=lambda one: one[0] + one[1])
            middle = [float(np.median([one[k] for one in found])) for k in (0, 1)]
            rows.append(
                (concept.id, concept.role, best[3], *best[:2], *middle, best[2], len(found))
            )
    columns = ("concept", "role", "nearest", "columns", "rows", "median columns", "median rows",
               "by chance", "others")  # fmt: skip
    return Sheet(
        "loras", "Nearest train LoRA by the directions of the updates", columns, rows,
        columns if rows else (),
        ("columns, rows: mean squared cosine of the principal angles between the column spaces "
         "(what is written) and the row spaces (what is read) of both LoRAs' updates, mean over "
         "layers; 1: the same space. by chance: of random spaces of this size.",),
    )  # fmt: skip


def _words(ours: Sequence[Concept], theirs: Sequence[Concept]) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    for role in ROLES:
        known = {other.phrase for other in theirs if other.role == role}
        spoken = {word for phrase in known for word in phrase.split()}
        own = [concept for concept in ours if concept.role == role]
        same = [concept.phrase for concept in own if concept.phrase in known]
        some = [
            concept.phrase
            for concept in own
            if concept.phrase not in known and set(concept.phrase.split()) & spoken
        ]
        rows.append((role, len(own), len(known), len(same), len(some), ", ".join(same)))
    columns = ("role", "concepts", "train phrases", "shared", "a word shared", "which")
    return Sheet(
        "words", "Classes and style names in both splits", columns, rows, columns,
        ("shared: concepts whose class, or style's name, is one of the train split; a word shared: "
         "whose name is not, but has a word of one.",),
    )  # fmt: skip


def _text(
    suite: Suite, pictures: Sheet, loras: Sheet, words: Sheet, split: str, against: str
) -> str:
    sentences = []
    for role in ROLES:
        own = [row for row in pictures.rows if row[1] == role]
        for name in dict.fromkeys(row[2] for row in own):
            rows = [row for row in own if row[2] == name and row[4] is not None]
            if not rows:
                continue
            far = max(rows, key=lambda row: _float(row[4]))
            close = [row for row in rows if row[6] is not None and _float(row[4]) < _float(row[6])]
            sentences.append(
                f"By {name} the {role} of {split} farthest from {against} is {far[0]} "
                f"({_float(far[4]):.2f} from {far[3]}); "
                f"{len(close)} of {len(rows)} are nearer to a {against} concept than their own "
                "images are to each other."
            )
        own = [row for row in loras.rows if row[1] == role]
        if own:
            reads, chance = (float(np.mean([_float(row[k]) for row in own])) for k in (4, 7))
            writes = float(np.mean([_float(row[3]) for row in own]))
            sentences.append(
                f"The nearest {against} LoRA of a {role} shares {writes:.0%} of what is written "
                f"and {reads:.0%} of what is read ({chance:.0%} by chance, n = {len(own)})."
            )
    for row in words.rows:
        shared = f" ({row[5]})" if row[5] else ""
        named = f"{row[3]} of {row[1]} {row[0]}s of {split} have a name of {against}"
        sentences += [f"{named}{shared}."]
    limits = (
        f"**What this cannot say.** These are facts about {suite.name}, not a sample of anything: "
        "there is no interval. A small distance does not make a test easy, nor a large one hard "
        "(`mars2 study failures` looks at that). Features of a style's pictures hold their "
        "subjects as well. LoRAs overlap by what all training shares, whatever the concept: those "
        "that start from the same random factors read much the same for that alone."
    )
    return " ".join(sentences) + "\n\n" + limits


def _float(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _figure(
    ours: Sequence[Concept],
    theirs: Sequence[Concept],
    features: tuple[str, Mapping[str, Floats]],
    spaces: Mapping[str, Spaces],
) -> Figure:
    name, own = features
    with mpl.rc_context({**STYLE, "axes.grid": False, "font.size": 8}):
        lines = 1 + bool(spaces)
        counts = [sum(one.role == role for one in ours) for role in ROLES]
        figure = Figure(figsize=(11, lines * (0.3 * max(counts) + 1.5)), layout="constrained")
        panels = figure.subplots(lines, 2, squeeze=False)
        for column, role in enumerate(ROLES):
            here = [one for one in ours if one.role == role]
            there = [one for one in theirs if one.role == role]
            tables = [
                (f"distance by {name}", _table(here, there, lambda a, b: distance(own[a], own[b])))
            ]
            if spaces:
                tables.append(("overlap of the LoRAs' column spaces", _table(
                    here, there,
                    lambda a, b: alikeness(spaces[a], spaces[b])[0]
                    if a in spaces and b in spaces else float("nan"),
                )))  # fmt: skip
            for line, (title, table) in enumerate(tables):
                panel = panels[line, column]
                image = panel.imshow(
                    table, aspect="auto", cmap="viridis_r" if line == 0 else "viridis"
                )
                panel.set_xticks(range(len(there)), [one.id for one in there], rotation=70)
                panel.set_yticks(range(len(here)), [one.id for one in here])
                panel.set_title(f"{role}s: {title}")
                figure.colorbar(image, ax=panel, shrink=0.9)
        return figure


def _table(
    here: Sequence[Concept], there: Sequence[Concept], value: Callable[[str, str], float]
) -> Floats:
    return np.array([[value(one.id, other.id) for other in there] for one in here])
