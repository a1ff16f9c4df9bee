"""What does a method cost as a whole, and from how many pairs on does it pay?

A run knows what merging and generating took; training the LoRAs and the hypernetwork, and judging,
happened elsewhere, so those times are told. Costs that come once are spread over the pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mars2.job import CONTROLS, RunError, RunSpec
from mars2.report.formatting import count, seconds, size_in_bytes
from mars2.report.plots import COLORS
from mars2.stats import Estimate, cluster_mean
from mars2.store import Cost, RunStore
from mars2.studies.result import STYLE, Result, Sheet, Value
from mars2.wording import listed

PAIRS = (1, 10, 100, 1000)
NAMED_CURVES = 6


@dataclass(frozen=True)
class Elsewhere:
    """Times that a run does not know; None: not told.

    Attributes:
        lora_seconds: To train one LoRA.
        hypernetwork_seconds: To train the hypernetwork, once.
        judge_seconds: To judge one image.
        trained: Methods that need the hypernetwork.
    """

    lora_seconds: float | None = None
    hypernetwork_seconds: float | None = None
    judge_seconds: float | None = None
    trained: tuple[str, ...] = ("lorarar",)


@dataclass(frozen=True)
class _Costs:
    """Of one method: seconds a pair of each stage, None if not known, and seconds once."""

    merge: Estimate
    generation: Estimate
    once: float | None
    stages: Mapping[str, float | None]
    peak: int | None
    merge_peak: int | None
    memory: str
    parameters: int
    jobs: int

    def total(self, pairs: int) -> float:
        """Return the known seconds for so many pairs."""
        return (self.once or 0.0) + pairs * sum(value or 0.0 for value in self.stages.values())


def study_cost(
    stores: Sequence[RunStore],
    elsewhere: Elsewhere = Elsewhere(),
    *,
    against: str | None = None,
) -> Result:
    """Return the study of what the methods of one or several runs took.

    Args:
        stores: Runs; a method in several of them has the jobs of all.
        elsewhere: Times that runs do not know.
        against: Method that the others have to pay against; None: ziplora, if it is there.

    Raises:
        RunError: No run has costs or the method that is named, or memory was measured in
            different ways.
    """
    costs: dict[str, list[Cost]] = {}
    names: dict[str, str] = {}
    for store in stores:
        if not isinstance(store.spec, RunSpec):
            raise RunError(f"{store.folder} is no run of `mars2 run`: what it cost is not known")
        names |= {method.label: method.name for method in store.spec.methods}
        # A pair that a method was run on again, after its code had changed, counts as it was last.
        last = {(cost.method, cost.case): cost for cost in store.costs()}
        for cost in last.values():
            costs.setdefault(cost.method, []).append(cost)
    if not costs:
        raise RunError(f"{', '.join(str(store.folder) for store in stores)} has no finished job")
    kinds = {cost.memory for own in costs.values() for cost in own}
    if len(kinds) > 1:
        raise RunError(
            f"the runs measured memory as {' and '.join(sorted(kinds))}, which do not compare: "
            "give runs of one device"
        )
    found = {label: _of(own, names[label], elsewhere) for label, own in costs.items()}
    base = next((x for x in found if (against or "ziplora") in (names[x], x)), None)
    if against and base is None:
        raise RunError(f"no job of {against!r} is finished; there are {listed(found)}")
    against = against or "ziplora"
    rows = [_row(label, one, found.get(base) if base else None) for label, one in found.items()]
    stages = ("LoRAs", "merge", "generation", "judging")
    parts = [
        (label, stage, "pair", one.stages[stage])
        for label, one in found.items()
        for stage in stages
    ]
    parts += [(label, "hypernetwork", "once", one.once) for label, one in found.items() if one.once]
    as_seconds = dict.fromkeys(("merge", "generation", "a pair", *_headings()), seconds)
    sheets = (
        Sheet(
            "cost", "What each method takes",
            ("method", "merge", "generation", "a pair", *_headings(), "pays from", "memory",
             "merge memory", "stored", "pairs"), rows,
            ("method", "merge", "a pair", *_headings(), "pays from", "memory", "stored"),
            (f"Seconds a pair; in brackets: 95 % interval of the mean, bootstrap over pairs. a "
             "pair: all that comes with each pair, as far as it is known; of 10, of 100, ...: with "
             f"what comes once spread over so many pairs. pays from: number of pairs from which on "
             f"the whole is less than with {against}. memory: highest of a job "
             f"({kinds.pop()}). stored: numbers in a merged adapter.",
             _unknown(elsewhere)),
            {**as_seconds, "memory": lambda value: size_in_bytes(int(value)),
             "merge memory": lambda value: size_in_bytes(int(value)),
             "stored": lambda value: count(int(value))},
        ),
        Sheet("stages", "Seconds of each stage", ("method", "stage", "per", "seconds"), parts),
    )  # fmt: skip
    return Result(
        "cost", "What does a method cost as a whole?", _text(found, names, base, elsewhere),
        sheets, {"cost": _figure(found, names)},
        {"runs": [str(store.folder) for store in stores], **vars(elsewhere), "against": against},
    )  # fmt: skip


def _headings() -> tuple[str, ...]:
    return tuple(f"of {number}" for number in PAIRS)


def _of(own: Sequence[Cost], name: str, elsewhere: Elsewhere) -> _Costs:
    cases = [cost.case for cost in own]
    merge = cluster_mean([cost.merge_seconds for cost in own], cases)
    generation = cluster_mean([cost.generation_seconds for cost in own], cases)
    images = sum(cost.images for cost in own) / len(own)
    judging = elsewhere.judge_seconds
    loras = {"base": 0, "subject_only": 1, "style_only": 1}.get(name, 2)
    lora = elsewhere.lora_seconds
    peaks = [cost.peak_bytes for cost in own if cost.peak_bytes is not None]
    merge_peaks = [cost.merge_peak_bytes for cost in own if cost.merge_peak_bytes is not None]
    return _Costs(
        merge,
        generation,
        elsewhere.hypernetwork_seconds if name in elsewhere.trained else 0.0,
        {
            "LoRAs": 0.0 if loras == 0 else None if lora is None else loras * lora,
            "merge": merge.value,
            "generation": generation.value,
            "judging": None if judging is None else judging * images,
        },
        max(peaks, default=None),
        max(merge_peaks, default=None),
        own[0].memory,
        max(cost.parameters for cost in own),
        len(own),
    )


def break_even(once: float, pair: float, other_pair: float) -> float | None:
    """Return the number of pairs from which on something that costs `once` takes less in all.

    None if it never does.

    >>> break_even(100.0, 1.0, 11.0), break_even(100.0, 2.0, 1.0), break_even(0.0, 1.0, 2.0)
    (11, None, 1)
    """
    if pair >= other_pair:
        return None
    return math.floor(once / (other_pair - pair)) + 1


def _row(label: str, own: _Costs, other: _Costs | None) -> tuple[Value, ...]:
    pays: Value = None
    if other is not None and own is not other and own.once is not None:
        pays = break_even(own.once, own.total(1) - own.once, other.total(1))
    return (
        label, own.merge, own.generation, own.total(1) - (own.once or 0.0),
        *(own.total(number) / number for number in PAIRS), pays, own.peak, own.merge_peak,
        own.parameters, own.jobs,
    )  # fmt: skip


def _unknown(elsewhere: Elsewhere) -> str:
    told = {
        "training a LoRA": elsewhere.lora_seconds,
        "training the hypernetwork": elsewhere.hypernetwork_seconds,
        "judging an image": elsewhere.judge_seconds,
    }
    lacking = [what for what, value in told.items() if value is None]
    given = [f"{what} {seconds(value)}" for what, value in told.items() if value is not None]
    parts = [f"Told: {', '.join(given)}."] if given else []
    parts += [f"Not told, and counted as nothing: {', '.join(lacking)}."] if lacking else []
    return " ".join(parts)


def _text(
    found: Mapping[str, _Costs], names: Mapping[str, str], base: str | None, elsewhere: Elsewhere
) -> str:
    sentences = []
    if base is not None:
        other = found[base]
        for label, own in found.items():
            if names[label] not in elsewhere.trained or own is other:
                continue
            sentences.append(
                f"{label} merges a pair in {seconds(own.merge.value or 0)} and {base} in "
                f"{seconds(other.merge.value or 0)} (means of {own.jobs} and {other.jobs} pairs)."
            )
            if own.once is None:
                sentences.append(
                    "From how many pairs on it pays is not known without the time that training "
                    "the hypernetwork took."
                )
                continue
            pays = break_even(own.once, own.total(1) - own.once, other.total(1))
            sentences.append(
                f"With {seconds(own.once)} of training, once, it takes less in all than {base} "
                + (f"from {pays} pairs on." if pays else "never.")
            )
    share = [
        (one.generation.value or 0) / max(one.total(1) - (one.once or 0), 1e-9)
        for label, one in found.items()
        if names[label] not in CONTROLS
    ]
    if share:
        sentences.append(
            f"Generating takes {min(share):.0%} to {max(share):.0%} of what is known of a pair."
        )
    sentences.append(
        "\n\n**What this cannot say.** Seconds are of the machine that the runs were made on, with "
        "whatever else it did then; ratios carry over better than seconds, and neither carries "
        "over from a miniature to SDXL, where a step costs a thousand times more and fixed costs "
        "vanish. The LoRAs of train pairs, which a hypernetwork needs first, are no part of its "
        "training here unless they are told with it. " + _unknown(elsewhere)
    )
    return " ".join(sentences).replace(" \n\n", "\n\n")


def _figure(found: Mapping[str, _Costs], names: Mapping[str, str]) -> Figure:
    shown = {label: one for label, one in found.items() if names[label] not in CONTROLS} or found
    grid = np.unique(np.round(np.logspace(0, 4, 60))).astype(int)
    curves = {
        label: (one.once or 0) + grid * (one.stages["merge"] or 0) for label, one in shown.items()
    }
    # of the first pair, so that what is trained once is named; the rest lie close together below
    named = sorted(curves, key=lambda label: -curves[label][0])[:NAMED_CURVES]
    with mpl.rc_context(STYLE):
        height = max(3.9, 0.22 * len(shown) + 1.3)
        figure = Figure(figsize=(9.5, height), layout="constrained")
        left, right = figure.subplots(1, 2)
        others = [label for label in curves if label not in named]
        for label in others:
            left.plot(grid, curves[label], color="0.8", linewidth=1)
        for place, label in enumerate(label for label in curves if label in named):
            color = COLORS[place % len(COLORS)]
            style = "-" if place % 2 == 0 else "--"  # of two that lie on each other both are seen
            left.plot(grid, curves[label], style, color=color, label=label)
        if others:
            left.plot([], [], color="0.8", linewidth=1, label=f"{len(others)} others")
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xlabel("pairs")
        left.set_ylabel("seconds: training once, and merging")
        left.legend(fontsize=8)
        left.set_title("Merging so many pairs", fontweight="bold")
        stages = ("LoRAs", "merge", "generation", "judging")
        start = np.zeros(len(shown))
        for place, stage in enumerate(stages):
            values = np.array([one.stages[stage] or 0.0 for one in shown.values()])
            if not values.any():
                continue
            right.barh(range(len(shown)), values, left=start, color=COLORS[place], label=stage)
            start += values
        right.set_yticks(range(len(shown)), list(shown))
        right.invert_yaxis()
        right.set_xlabel("seconds a pair")
        right.set_title("A pair, by stage", fontweight="bold")
        handles, texts = right.get_legend_handles_labels()
        figure.legend(handles, texts, fontsize=8, loc="outside lower right", ncols=4)
        return figure
