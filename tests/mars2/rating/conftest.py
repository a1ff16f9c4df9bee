"""A made-up run of a suite with references, and studies on it."""

import runpy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmark_data.load import load_suite
from mars2.files import write_image
from mars2.job import MethodSpec
from mars2.rating.database import RatingDatabase
from mars2.rating.plan import plan_rating
from mars2.rating.questions import Design
from mars2.rating.server import make_server
from mars2.references import References, find_references
from mars2.store import RunStore

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fake_run.py")))

METHODS = ("direct_sum", "average", "lorarar")
CLASSES = {"striped_cat": "cat", "spotted_teapot": "teapot"}

SUITE = """
name = "made_up"
title = "Two subjects, two styles"
case_prompt = "a {subject} in {style} style"

[models]
base = "none"
judge = "scripted:none"
clip = "none:none"
dino = "none"

[generation]
resolution = 16
steps = 2
guidance_scale = 4.0
num_seeds = 3
"""
CONCEPT = """
[{role}s.{name}]
split = "test"
phrase = "{phrase}"
prompt = "a {phrase}"
references = {files}
"""


def make_run(folder: Path, *, seeds: int = 3, methods: int = 3) -> RunStore:
    """Write a suite and a run of its four pairs, the control `base` among its methods."""
    subjects, styles = fake.SUBJECTS[:2], fake.STYLES[:2]
    files = fake.references(folder / "suite", [*subjects], size=16)
    for style in styles:
        files[style] = [folder / "suite" / f"{style}-{number}.png" for number in range(3)]
        for number, path in enumerate(files[style]):
            write_image(path, fake.picture("sun", style, number, 16))
    text = SUITE
    for role, names in (("subject", subjects), ("style", styles)):
        for name in names:
            phrase = CLASSES.get(name, name.replace("_", " "))
            shown = [path.name for path in files[name]]
            text += CONCEPT.format(role=role, name=name, phrase=phrase, files=shown)
    suite = folder / "suite" / "made_up.toml"
    suite.write_text(text)
    specs = [MethodSpec("base"), *(MethodSpec(name) for name in METHODS[:methods])]
    spec = fake.make_spec(methods=specs, seeds=range(seeds), size=16)
    spec = replace(spec, suite=str(suite), suite_revision=load_suite(str(suite)).revision)
    store = RunStore.create(folder / "run", spec)
    fake.fill(store, size=16)
    return store


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Four methods, of them one a control, on four pairs and three seeds; for reading only."""
    return make_run(tmp_path_factory.mktemp("rated"))


@pytest.fixture(scope="session")
def references(run: RunStore) -> References:
    return find_references(run)


@pytest.fixture
def begin(
    run: RunStore, references: References, tmp_path: Path
) -> Iterator[Callable[..., RatingDatabase]]:
    """``begin(mode="pairs", ...)``: a new study on the run, of one rater unless said otherwise."""
    opened: list[RatingDatabase] = []

    def make(**wanted: object) -> RatingDatabase:
        wanted = {"mode": "yes_no", "methods": METHODS, "raters": 1, "per_item": 1} | wanted
        plan = plan_rating(run, references, Design(**wanted), CLASSES)
        path = tmp_path / f"study-{len(opened)}" / "study.sqlite"
        opened.append(RatingDatabase.create(path, run.folder, plan))
        return opened[-1]

    yield make
    for database in opened:
        database.close()


@contextmanager
def served(database: RatingDatabase, port: int = 0) -> Iterator[str]:
    """Show a study by a server in a thread; give the beginning of its addresses."""
    server = make_server(database, port=port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def show() -> Callable[..., AbstractContextManager[str]]:
    """``with show(database, port=0) as base``: a server, where its addresses begin."""
    return served


@pytest.fixture
def new_run() -> Callable[..., RunStore]:
    """``new_run(folder, seeds=3, methods=3)``: a run of one's own."""
    return make_run
