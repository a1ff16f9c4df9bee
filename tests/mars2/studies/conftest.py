"""A made-up run, and references for it."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from mars2.references import References
from mars2.store import RunStore

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fake_run.py")))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A run of seven methods on four pairs, scored by one judge; for reading only."""
    store = RunStore.create(tmp_path_factory.mktemp("studied") / "run", fake.make_spec())
    fake.fill(store)
    return store


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    """Four images a subject and one a style, twice over for styles."""
    folder = tmp_path_factory.mktemp("references")
    files = fake.references(folder, [*fake.SUBJECTS, *fake.STYLES])
    files |= {style: files[style] * 2 for style in fake.STYLES}
    return References(files, {style: style.replace("_", " ") for style in fake.STYLES})
