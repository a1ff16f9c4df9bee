"""Asks a suite's judge again about images that entries were made of."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark_data.load import load_suite
from leaderboards.entry import Entry
from leaderboards.records import Records
from leaderboards.shape import Problem
from mars2.job import RunError
from mars2.store import RunStore

if TYPE_CHECKING:
    from mars2.metrics import MetricSettings


def _settings(judge: str, entries: Sequence[Entry]) -> "MetricSettings":
    """The suite's judge, as it was asked for the entries: another dtype is another judge.

    Raises:
        RunError: The entries were not all judged alike.
    """
    from mars2.metrics import MetricSettings

    asked = {(entry.judge.dtype, entry.judge.layout) for entry in entries}
    if len(asked) > 1:
        told = ", ".join(sorted(" ".join(parts) for parts in asked))
        raise RunError(f"these entries were judged in different ways ({told}): check them apart")
    [(dtype, layout)] = asked
    return MetricSettings(judge=judge, dtype=dtype or None, layout=layout or "anyres", cache=False)


def rejudge(
    entries: Sequence[tuple[Entry, Records]],
    run: Path,
    *,
    count: int,
    seed: int = 0,
    judge: Any = None,
) -> list[Problem]:
    """Ask the suite's judge again about some images of a run, and compare with the entries.

    Args:
        entries: With their records; those whose methods the run has are sampled, evenly.
        run: Where the images lie.
        count: Images in all.
        seed: Which images.
        judge: Whom to ask; None: the suite's own judge.

    Raises:
        RunError: The run is of another suite, no entry's method is in it, or entries were judged
            in different ways.
        JudgeError: The judge cannot be loaded.
    """
    from mars2.judges import TEMPLATES
    from mars2.metrics import load_metric
    from mars2.metrics.mars2 import Mars2Metric
    from mars2.references import find_references
    from mars2.score import evaluated

    store = RunStore.open(run)
    references = find_references(store)
    paths = {(s.method, s.case, s.seed): s for s in store.samples()}
    found = [
        (entry, row, paths[entry.method.label, row.case, row.seed])
        for entry, records in entries
        for row in records.rows
        if (entry.method.label, row.case, row.seed) in paths
    ]
    if not found:
        raise RunError(f"{run} has no images of the entries' methods")
    drawn = random.Random(seed).sample(found, min(count, len(found)))
    models = load_suite(store.spec.suite).models
    metric = (
        load_metric("mars2", _settings(models.judge, [entry for entry, _, _ in found]))
        if judge is None
        else Mars2Metric(judge, TEMPLATES)
    )
    problems = []
    for entry, row, sample in drawn:
        file = f"{entry.name}.records.parquet"
        at = f"{row.case}/{row.seed}"
        image = hashlib.sha256(sample.path.read_bytes()).hexdigest()[:16]
        if image != row.image:
            problems.append(Problem(file, at, f"image {row.image}", f"{image} at {sample.path}"))
            continue
        scores = metric.score([evaluated(sample, references)])[0]
        for score in scores:
            claimed = row.value(score.metric)
            if score.value != claimed:
                told = f"{score.value}, as {metric.id} says"
                problems.append(Problem(file, f"{at} {score.metric}", told, str(claimed)))
    return problems
