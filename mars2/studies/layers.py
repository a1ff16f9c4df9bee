"""Where do subject and style dominate: coefficients by layer, block and projection.

A column-wise merge is m_c of each of the subject's columns plus m_s of each of the style's. The two
are read off a merged adapter by least squares, column by column, so that any method can be looked
at, and what is left over says whether it is column-wise at all.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from baselines.adapter import LoraAdapter, LowRankDelta
from baselines.formats import load_adapter
from benchmark_data.suite import Suite
from mars2.job import CONTROLS, RunError, RunSpec
from mars2.report.plots import COLORS
from mars2.stats import Estimate, cluster_mean
from mars2.store import RunStore
from mars2.studies.association import Floats
from mars2.studies.result import STYLE, Result, Sheet, Value, spoken

Merged = tuple[str, str, LoraAdapter, LoraAdapter, LoraAdapter]
"""Method, case, merged adapter, subject's and style's."""

REFERENCE = "ziplora"
NEGLIGIBLE = 1e-4
"""A column so much shorter than the other's, or two so nearly parallel, have no coefficients."""


@dataclass(frozen=True)
class Columns:
    """What a merge does to the columns of one layer.

    Attributes:
        subject: (d_in,): coefficients of the subject's columns; NaN where they cannot be told.
        style: (d_in,): of the style's, likewise.
        dominates: (d_in,): whether the subject's part of a column is the longer one.
        residual: Share of the merged update's norm that no such coefficients explain.
    """

    subject: Floats
    style: Floats
    dominates: "np.typing.NDArray[np.bool_]"
    residual: float


def read_columns(merged: LowRankDelta, subject: LowRankDelta, style: LowRankDelta) -> Columns:
    """Return the coefficients that come nearest to a merged layer, column by column.

    A column of next to no length has none, and where the columns of both are parallel neither has:
    any share of the one could be the other's. Of these the longer column dominates.
    """
    a, b, c = (
        delta.to(dtype=torch.float64).dense().numpy() for delta in (subject, style, merged)
    )  # (d_out, d_in)
    norms = np.stack([np.linalg.norm(one, axis=0) for one in (a, b)])  # (2, d_in)
    known = norms > NEGLIGIBLE * norms.max(axis=0)
    safe = np.where(known, norms, 1)
    first, second = (one / length for one, length in zip((a, b), safe, strict=True))
    products = np.stack([(one * c).sum(axis=0) for one in (first, second)])
    cosine = np.where(known.all(axis=0), (first * second).sum(axis=0), 0)
    parallel = 1 - cosine**2 <= NEGLIGIBLE
    rest = np.where(parallel, 1, 1 - cosine**2)
    lengths = np.where(known, (products - cosine * products[::-1]) / rest, 0)
    # Of parallel columns the whole part is counted once, as the longer one's.
    lengths[:, parallel] = np.where(
        norms[:, parallel] == norms[:, parallel].max(axis=0), products[:, parallel], 0
    )
    solved = np.where(known & ~parallel, lengths / safe, np.nan)
    left = float(np.linalg.norm(c - first * lengths[0] - second * lengths[1]))
    return Columns(
        solved[0],
        solved[1],
        np.abs(lengths[0]) > np.abs(lengths[1]),
        left / max(float(np.linalg.norm(c)), 1e-300),
    )


def merged_by_hypernetwork(
    path: Path, suite: Suite, adapters: Path, *, split: str = "test", limit: int | None = None
) -> list[Merged]:
    """Return what a hypernetwork makes of a suite's pairs.

    Raises:
        AdapterError: The checkpoint or an adapter cannot be read, or they do not fit.
        RunError: The split has no pairs.
    """
    from lorarar.checkpoints import load_checkpoint

    network = load_checkpoint(path)
    cases = [case for name, own in suite.cases.items() if name == split for case in own]
    if not cases:
        raise RunError(f"suite {suite.name} has no pairs of split {split!r}")
    found = []
    for case in cases[:limit]:
        pair = [
            load_adapter(adapters / f"{one.id}.safetensors") for one in (case.subject, case.style)
        ]
        with torch.no_grad():
            found.append(("lorarar", case.id, network.merge(*pair), pair[0], pair[1]))
    return found


def merged_in_run(store: RunStore) -> list[Merged]:
    """Return the merged adapters that a run kept, without those of controls.

    Raises:
        RunError: It kept none.
        AdapterError: One cannot be read.
    """
    if not isinstance(store.spec, RunSpec):
        raise RunError(f"{store.folder} is no run of `mars2 run`: it has no merged adapters")
    folder = Path(store.spec.adapters)
    found = []
    controls = [one.label for one in store.spec.methods if one.name in CONTROLS]
    for method in (label for label in store.spec.labels if label not in controls):
        for case in store.spec.cases:
            path = store.adapter_path(method, case.id)
            if path.is_file():
                pair = [
                    load_adapter(folder / f"{one}.safetensors")
                    for one in (case.subject, case.style)
                ]
                found.append((method, case.id, load_adapter(path), pair[0], pair[1]))
    if not found:
        raise RunError(
            f"{store.folder} kept no merged adapters: run with --save-adapters, or give the file "
            "of a hypernetwork"
        )
    return found


def study_layers(
    merged: Sequence[Merged],
    inputs: Mapping[str, object],
    *,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Return the study of merged adapters.

    Args:
        merged: Of one or several methods; a method's of the same cases as those of others.
        inputs: Where they come from.
        progress: Called after each with 1.
    """
    found: dict[tuple[str, str], dict[str, Columns]] = {}
    for method, case, whole, subject, style in merged:
        common = [name for name in whole.deltas if name in subject.deltas and name in style.deltas]
        found[method, case] = {
            name: read_columns(whole.deltas[name], subject.deltas[name], style.deltas[name])
            for name in common
        }
        if progress is not None:
            progress(1)
    methods = list(dict.fromkeys(method for method, _ in found))
    layers = _layers(found, methods)
    groups = _groups(found, methods)
    similar = _similarity(found, methods)
    return Result(
        "layers", "Where do subject and style dominate?", _text(found, methods, groups, similar),
        (groups, layers, similar),
        {"layers": _heat_map(found, methods), "distributions": _distributions(found, methods)},
        dict(inputs),
    )  # fmt: skip


def place(layer: str) -> tuple[str, str, str]:
    """Return a layer's block, kind of attention and projection.

    >>> place("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q")
    ('down_blocks.1', 'cross', 'to_q')
    """
    block = re.match(r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)", layer)
    kind = "self" if ".attn1." in layer else "cross" if ".attn2." in layer else "other"
    projection = layer.rpartition("to_")[2] if "to_" in layer else layer.rpartition(".")[2]
    return block[1] if block else "other", kind, ("to_" if "to_" in layer else "") + projection


def _values(
    columns: Sequence[tuple[str, Columns]],
) -> tuple[Estimate, Estimate, Estimate, float, float, float]:
    """Return means over pairs of a set of layers' columns, spreads within a pair, what is left."""
    cases = [case for case, _ in columns]
    means = [
        cluster_mean(values, cases)
        for values in (
            [_mean_of(one.subject) for _, one in columns],
            [_mean_of(one.style) for _, one in columns],
            [float(one.dominates.mean()) for _, one in columns],
        )
    ]
    spreads = [
        float(np.mean([_known(getattr(one, name)).std() for _, one in columns]))
        for name in ("subject", "style")
    ]
    return (*means, *spreads, float(np.mean([one.residual for _, one in columns])))  # type: ignore[return-value]


def _known(values: Floats) -> Floats:
    """Return the coefficients that are defined, or a single 0 if there are none."""
    there = values[~np.isnan(values)]
    return there if len(there) else np.zeros(1)


def _mean_of(values: Floats) -> float | None:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None


def _layers(
    found: Mapping[tuple[str, str], Mapping[str, Columns]], methods: Sequence[str]
) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    for method in methods:
        for layer in _names(found, method):
            own = [(c, layers[layer]) for (m, c), layers in found.items()
                   if m == method and layer in layers]  # fmt: skip
            rows.append((method, layer, *place(layer), *_values(own), len(own)))
    return Sheet(
        "layers", "Coefficients of every layer",
        ("method", "layer", "block", "attention", "projection", "subject", "style",
         "subject_dominates", "subject_spread", "style_spread", "residual", "pairs"), rows,
    )  # fmt: skip


def _groups(
    found: Mapping[tuple[str, str], Mapping[str, Columns]], methods: Sequence[str]
) -> Sheet:
    rows: list[tuple[Value, ...]] = []
    for method in methods:
        names = _names(found, method)
        groups = dict.fromkeys(place(layer) for layer in names)
        keys = [*sorted({g[1:] for g in groups}), *sorted({(g[0],) for g in groups}), ("all",)]
        for key in keys:
            own = [
                (case, columns)
                for (m, case), layers in found.items()
                if m == method
                for layer, columns in layers.items()
                if key == ("all",) or key in (place(layer)[1:], place(layer)[:1])
            ]
            rows.append((f"{method} {' '.join(key)}", *_values(own), len(own)))
    columns = ("layers of", "subject", "style", "subject dominates", "subject spread",
               "style spread", "left over", "n")  # fmt: skip
    return Sheet(
        "groups", "Coefficients by projection and block", columns, rows, columns,
        ("subject, style: mean coefficient of their columns; spread: its standard deviation within "
         "a layer; subject dominates: share of columns whose subject's part is the longer one; "
         "left over: share of the merged update's norm that no coefficients explain (0: the method "
         "is column-wise). n: layers times pairs. In brackets: 95 % interval, bootstrap over "
         "pairs.",),
    )  # fmt: skip


def _similarity(
    found: Mapping[tuple[str, str], Mapping[str, Columns]], methods: Sequence[str]
) -> Sheet:
    """Return how alike a method's coefficients are to the reference's on the same pair."""
    reference = next((m for m in methods if m.partition(":")[0] == REFERENCE), None)
    rows: list[tuple[Value, ...]] = []
    for method in methods if reference else ():
        if method == reference:
            continue
        for name in ("subject", "style"):
            values: list[float | None] = []
            distances: list[float | None] = []
            cases: list[str] = []
            for (m, case), layers in found.items():
                if m != method or (reference, case) not in found:
                    continue
                for layer, columns in layers.items():
                    other = getattr(found[str(reference), case][layer], name)
                    own = getattr(columns, name)
                    both = ~np.isnan(own) & ~np.isnan(other)
                    if not both.any():
                        continue
                    own, other = own[both], other[both]
                    varies = min(own.std(), other.std()) > 1e-3
                    values.append(float(np.corrcoef(own, other)[0, 1]) if varies else None)
                    distances.append(float(np.abs(own - other).mean()))
                    cases.append(case)
            if cases:
                correlation = cluster_mean(values, cases)
                rows.append(
                    (method, name, correlation, cluster_mean(distances, cases),
                     correlation.n_unscored, len(cases))
                )  # fmt: skip
    headings = ("method", "coefficients of", "correlation", "distance", "constant", "n")
    return Sheet(
        "similarity", f"Likeness to {REFERENCE}'s coefficients for the same pair", headings, rows,
        headings if rows else (),
        ("correlation: Pearson's over the columns of a layer, mean over layers and pairs; layers "
         "in which one of the two is constant have none and are counted. distance: mean absolute "
         "difference. In brackets: 95 % interval, bootstrap over pairs.",),
    )  # fmt: skip


def _names(found: Mapping[tuple[str, str], Mapping[str, Columns]], method: str) -> list[str]:
    return list(
        dict.fromkeys(layer for (m, _), layers in found.items() if m == method for layer in layers)
    )


def _text(
    found: Mapping[tuple[str, str], Mapping[str, Columns]],
    methods: Sequence[str],
    groups: Sheet,
    similar: Sheet,
) -> str:
    sentences = []
    for method in methods:
        cases = {case for m, case in found if m == method}
        own = [row for row in groups.rows if str(row[0]).startswith(f"{method} ")]
        whole = own[-1]
        projections = own[: len({place(layer)[1:] for layer in _names(found, method)})]
        low, high = (f(projections, key=lambda row: _mean(row[3])) for f in (min, max))
        sentences.append(
            f"{method}, over {len(cases)} pairs: mean coefficient {_mean(whole[1]):.2f} of the "
            f"subject and {_mean(whole[2]):.2f} of the style; the subject's part is the longer one "
            f"in {_mean(whole[3]):.0%} of the columns, least in {str(low[0])[len(method) + 1 :]} "
            f"({_mean(low[3]):.0%}), most in {str(high[0])[len(method) + 1 :]} "
            f"({_mean(high[3]):.0%})."
        )
        spread = max(_mean(row[4]) for row in projections)
        if spread < 0.05:
            sentences.append(
                f"Within a layer they hardly differ from column to column (spread {spread:.3f})."
            )
    for row in similar.rows:
        likeness = row[2]
        if isinstance(likeness, Estimate) and likeness.value is not None:
            sentences.append(
                f"From column to column {row[0]}'s coefficients of the {row[1]} go with "
                f"{REFERENCE}'s by {spoken(likeness)}."
            )
    limits = (
        "**What this cannot say.** A column that is weighed more need not matter more to the "
        "image: coefficients are no effects. They depend on how long the LoRAs' updates are, hence "
        "on how long those were trained; and two sets of coefficients that differ can give the "
        "same image."
    )
    return " ".join(sentences) + "\n\n" + limits


def _mean(value: Value) -> float:
    if isinstance(value, Estimate):
        value = value.value
    return float(value) if isinstance(value, int | float) else float("nan")


def _heat_map(
    found: Mapping[tuple[str, str], Mapping[str, Columns]], methods: Sequence[str]
) -> Figure:
    names = _names(found, methods[0])
    rows = list(dict.fromkeys(layer.rpartition(".to_")[0] for layer in names))
    projections = list(dict.fromkeys(place(layer)[2] for layer in names))
    with mpl.rc_context({**STYLE, "axes.grid": False, "font.size": 8}):
        figure = Figure(
            figsize=(2.2 + 2.0 * 3, (0.24 * len(rows) + 1.2) * len(methods)), layout="constrained"
        )
        panels = figure.subplots(len(methods), 3, squeeze=False)
        for line, method in enumerate(methods):
            tables = np.full((3, len(rows), len(projections)), np.nan)
            for (m, _), layers in found.items():
                for layer, one in layers.items() if m == method else ():
                    at = rows.index(layer.rpartition(".to_")[0]), projections.index(place(layer)[2])
                    for k, value in enumerate((one.subject, one.style, one.dominates)):
                        before = 0 if np.isnan(tables[(k, *at)]) else tables[(k, *at)]
                        tables[(k, *at)] = before + (_mean_of(value.astype(float)) or 0.0)
            tables /= sum(m == method for m, _ in found)
            most = max(1.0, float(np.nanmax(tables[:2])))
            titles = ("subject's coefficient", "style's coefficient", "subject dominates")
            for k, title in enumerate(titles):
                panel = panels[line, k]
                image = panel.imshow(
                    tables[k], aspect="auto", cmap="viridis" if k < 2 else "coolwarm",
                    vmin=min(0.0, float(np.nanmin(tables[:2]))) if k < 2 else 0,
                    vmax=most if k < 2 else 1,
                )  # fmt: skip
                panel.set_xticks(range(len(projections)), projections, rotation=45)
                short = [_short(row) for row in rows]
                panel.set_yticks(range(len(rows)), short if k == 0 else [""] * len(rows))
                panel.set_title(f"{method}: {title}" if k == 0 else title, fontsize=8)
                figure.colorbar(image, ax=panel, shrink=0.8)
        return figure


def _short(row: str) -> str:
    text = row.replace("_blocks", "").replace("mid_block", "mid").replace("attentions.", "")
    return text.replace("transformer.", "").replace("attn1", "self").replace("attn2", "cross")


def _distributions(
    found: Mapping[tuple[str, str], Mapping[str, Columns]], methods: Sequence[str]
) -> Figure:
    with mpl.rc_context(STYLE):
        kinds = sorted({place(layer)[2] for layer in _names(found, methods[0])})
        figure = Figure(
            figsize=(2.4 * len(kinds) + 1, 1.9 * len(methods) + 0.8), layout="constrained"
        )
        panels = figure.subplots(len(methods), len(kinds), squeeze=False, sharex="row")
        for line, method in enumerate(methods):
            everything = np.concatenate(
                [
                    _known(getattr(one, name))
                    for (m, _), layers in found.items() if m == method
                    for one in layers.values()
                    for name in ("subject", "style")
                ]
            )  # fmt: skip
            low, high = np.quantile(everything, [0.005, 0.995])
            bins = np.linspace(min(low, -0.1), max(high, 1.1), 45)
            for column, kind in enumerate(kinds):
                panel = panels[line, column]
                for color, name in zip(COLORS, ("subject", "style"), strict=False):
                    values = [
                        getattr(one, name)
                        for (m, _), layers in found.items()
                        if m == method
                        for layer, one in layers.items()
                        if place(layer)[2] == kind
                    ]
                    together = _known(np.concatenate(values))
                    panel.hist(
                        together, bins, color=color, alpha=0.55, label=name, histtype="stepfilled"
                    )
                panel.set_yticks([])
                panel.set_title(f"{method} {kind}" if column == 0 else kind, fontsize=9)
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2
        )
        figure.supxlabel("coefficient of a column (the outer 1 % left out)")
        return figure
