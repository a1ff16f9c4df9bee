"""Writes scores.json: a summary as data, the same bytes for the same records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mars2.files import write_json
from mars2.report.summary import SEED, Summary
from mars2.report.verdicts import is_published
from mars2.stats import LEVEL, RESAMPLES

SCHEMA = 1


def write_scores(summary: Summary, path: Path) -> None:
    """Write scores.json, atomically; without times and memory, which no two runs share."""
    write_json(path, _rounded(_scores(summary)))


def _scores(summary: Summary) -> dict[str, Any]:
    corrected = {} if not summary.controls else _corrected(summary)
    return {
        **corrected,
        "schema": SCHEMA,
        "suite": summary.suite,
        "suite_revision": summary.suite_revision,
        "split": summary.split,
        "cases": list(summary.cases),
        "images_per_case": list(summary.images_per_case),
        "references": dict(summary.references),
        "interval": {
            "method": "percentile bootstrap over cases",
            "level": LEVEL,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "published_judges": [judge for judge in summary.judges if is_published(judge)],
        "reference_method": summary.reference,
        "methods": [
            {
                "method": method.label,
                "control": method.control,
                "images": method.images,
                "missing": method.missing,
                "stored_parameters": None if method.cost is None else method.cost.parameters,
            }
            for method in summary.methods
        ],
        "scores": [
            {
                "method": method.label,
                "metric": source.metric,
                "judge": source.judge,
                "average": vars(score.average),
                "best_of_n": vars(score.best_of_n),
                "difference": None if score.difference is None else vars(score.difference),
                "subjects": {name: vars(estimate) for name, estimate in score.subjects.items()},
                "styles": {name: vars(estimate) for name, estimate in score.styles.items()},
                "pending": score.pending,
            }
            for method in summary.methods
            for source, score in method.scores.items()
        ],
    }


def _corrected(summary: Summary) -> dict[str, Any]:
    """Return what the judges answered to known questions, and the shares corrected by it."""
    return {
        "controls": [
            {
                "judge": judge,
                "suite": controls.suite,
                "suite_revision": controls.suite_revision,
                "sensitivity": {a: vars(controls.sensitivity(a)) for a in controls.tallies},
                "specificity": {a: vars(controls.specificity(a)) for a in controls.tallies},
            }
            for judge, controls in summary.controls.items()
        ],
        "corrected": [
            {
                "method": method.label,
                "judge": judge,
                "share": name,
                "raw": vars(share.raw),
                "corrected": vars(share.corrected),
            }
            for method in summary.methods
            for judge, shares in method.corrected.items()
            for name, share in shares.items()
        ],
    }


def _rounded(value: Any) -> Any:
    """Return JSON data with sorted keys, and floats to nine decimals."""
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, Mapping):
        return {key: _rounded(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
