"""Raters at work while the server is killed and started again."""

import csv
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mars2.rating.database import RatingDatabase
from mars2.rating.export import export
from mars2.store import RunStore

hammer = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("hammer.py"))))


@pytest.mark.slow
def test_nothing_is_lost_or_double(new_run: Callable[..., RunStore], tmp_path: Path):
    run = new_run(tmp_path, seeds=2).folder
    out = tmp_path / "rating"
    options = ["--mode", "both", "--aspects", "subject,style", "--check-every", "10"]
    outcome = hammer.hammer(run, out, raters=12, kills=2, options=options)
    assert outcome.kills == 2
    assert outcome.code == 0  # of Ctrl-C
    assert outcome.sent >= outcome.acknowledged == len(outcome.meant)
    assert hammer.differences(run, out, outcome) == []
    database = RatingDatabase(out / "study.sqlite", run)
    written = export(database, tmp_path)
    database.close()
    # methods or pairs of them, pairs and seeds, aspects, raters
    assert written["ratings.csv"] == written["pairs.csv"] == 3 * 8 * 2 * 12
    with (tmp_path / "ratings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("item", "method", "seed", "rater", "aspect")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
