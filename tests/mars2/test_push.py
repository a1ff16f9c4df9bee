"""A run as a data set; nothing here touches the network."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from mars2 import push
from mars2.store import RunStore

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_run.py"))))
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    made = RunStore.create(tmp_path / "run", fake.make_spec(methods=fake.METHODS[:4], seeds=(0, 1)))
    fake.fill(made)
    return made


def test_says_what_would_be_sent_and_sends_nothing(
    cli: Cli, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "push", None)
    code, said, _ = cli("push", store.folder)
    assert code == 0
    assert said.startswith("32 images of 4 methods, ")
    assert "nothing was sent" in said
    code, _, wrong = cli("push", store.folder, "--no-dry-run")
    assert (code, wrong) == (2, "mars2: say where to with --repo USER/NAME\n")


def test_sends_where_it_is_told(cli: Cli, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def send(self: datasets.Dataset, repository: str, *, private: bool) -> None:
        sent.append((len(self), repository, private))

    monkeypatch.setattr(datasets.Dataset, "push_to_hub", send)
    code, said, _ = cli("push", store.folder, "--repo", "me/run", "--no-dry-run", "--public")
    assert code == 0
    assert sent == [(32, "me/run", False)]
    assert said.endswith("https://huggingface.co/datasets/me/run\n")


def test_a_hub_that_refuses_is_one_line(
    cli: Cli, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: datasets.Dataset, repository: str, *, private: bool) -> None:
        raise OSError("no such place")

    monkeypatch.setattr(datasets.Dataset, "push_to_hub", refuse)
    code, _, wrong = cli("push", store.folder, "--repo", "me/run", "--no-dry-run")
    assert code == 2
    assert wrong.startswith("mars2: me/run was not pushed: no such place; log in")


def test_rows_have_images_scores_and_answers(store: RunStore) -> None:
    content = push.collect(store)
    made = push.dataset(content)
    row = made[0]
    assert row["image"].size == (64, 64)
    record = next(r for r in store.records() if r.metric == "mars2_subject")
    assert (row["method"], row["case"], row["seed"]) == (record.method, record.case, record.seed)
    assert row["mars2_subject"] == record.value
    assert row["subject_answers"] == record.detail["answers"]
    assert row["judge"] == fake.JUDGE
    assert made.features["mars2"] == datasets.Value("float64")


def test_refuses_a_run_without_images_or_scores(cli: Cli, tmp_path: Path, store: RunStore) -> None:
    store.samples()[0].path.unlink()
    assert "images are missing" in cli("push", store.folder)[2]
    bare = RunStore.create(tmp_path / "bare", fake.make_spec(methods=fake.METHODS[:1]))
    fake.fill(bare, metrics=())
    assert "score it with" in cli("push", bare.folder)[2]
