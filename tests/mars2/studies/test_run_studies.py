"""Agreement, failures and cost of a made-up run, by hand and against scipy."""

import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from mars2.cli import main
from mars2.controls import Controls, Tally
from mars2.job import RunError
from mars2.references import References
from mars2.stats import Estimate
from mars2.store import Record, RunStore
from mars2.studies.agreement import concordance, study_agreement
from mars2.studies.cost import Elsewhere, break_even, study_cost
from mars2.studies.failures import study_failures
from mars2.studies.result import Result, write
from mars2.studies.runs import few

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fake_run.py")))
OTHER = "critic@0123456789ab pad float32 prompts short@abcdef012345"
NO_SUITE = SimpleNamespace()


def sheet(result: Result, name: str) -> list[dict[str, object]]:
    found = next(one for one in result.sheets if one.name == name)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_concordance_is_friedmans_statistic_and_mean_spearman():
    rng = np.random.default_rng(0)
    table = rng.random((4, 6))
    w = concordance(table)
    chi = scipy.stats.friedmanchisquare(*table.T).statistic
    assert w == pytest.approx(chi / (4 * 5), abs=1e-12)
    rhos = [scipy.stats.spearmanr(table[a], table[b]).statistic for a in range(4) for b in range(a)]
    assert np.mean(rhos) == pytest.approx((4 * w - 1) / 3, abs=1e-12)
    tied = np.round(3 * table)
    chi = scipy.stats.friedmanchisquare(*tied.T).statistic
    assert concordance(tied) == pytest.approx(chi / (4 * 5), abs=1e-12)
    assert concordance(np.ones((2, 3))) is None


@pytest.fixture
def judged_twice(tmp_path: Path) -> RunStore:
    """Two methods, two pairs, one seed; two judges who differ on one image of eight answers."""
    store = RunStore.create(
        tmp_path / "run",
        fake.make_spec(methods=fake.METHODS[3:5], subjects=fake.SUBJECTS[:1], seeds=(0,)),
    )
    first = {("direct_sum", 0): True, ("direct_sum", 1): True,
             ("average", 0): False, ("average", 1): False}  # fmt: skip
    for judge, table in ((fake.JUDGE, first), (OTHER, {**first, ("direct_sum", 1): False})):
        for sample in store.samples():
            place = fake.STYLES.index(sample.style)
            answer = table[sample.method, place]
            store.append(
                fake.mars2_records(
                    sample.method, sample.case, 0, [answer, True], [None], judge=judge
                )
            )
    return store


def test_agreement_by_hand(judged_twice: RunStore):
    result = study_agreement(judged_twice, (), resamples=100)
    rows = {(row["aspect"], row["of"]): row for row in sheet(result, "answers")}
    row = rows["subject", "answer"]
    # of 8 answers 7 alike; yes 6 and 5 of 8: by chance 6/8 5/8 + 2/8 3/8 = 36/64
    assert row["agreement"].value == 7 / 8
    assert row["kappa"].value == pytest.approx((7 / 8 - 36 / 64) / (28 / 64))
    assert row["difference"].value == pytest.approx(-1 / 8)
    assert row["alike on yes"].value == pytest.approx(10 / 11)
    assert (row["only first yes"], row["only second yes"], row["n"]) == (1, 0, 8)
    style = rows["style", "answer"]
    assert (style["n"], style["unscored"], style["agreement"].value) == (0, 4, None)
    assert "anyres and pad give the same answer" in result.text


def test_answers_about_other_images_are_not_compared(judged_twice: RunStore):
    records = [r for r in judged_twice.records() if r.judge == OTHER]
    moved = [Record(**{**vars(r), "image": "another"}) for r in records]
    judged_twice.append(moved)
    row = sheet(study_agreement(judged_twice, (), resamples=20), "answers")[0]
    assert (row["n"], row["incomparable"]) == (0, 4)


def test_known_questions_of_both_judges(judged_twice: RunStore):
    controls = [
        Controls(judge, "s", "r", {
            "subject": (Tally("cat", "itself", yes, 4 - yes), Tally("cat", "same class", 1, 3)),
            "style": (Tally("ink", "itself", 4, 0), Tally("ink", "another style", 0, 4)),
        })
        for judge, yes in ((fake.JUDGE, 4), (OTHER, 2), ("somebody else", 0))
    ]  # fmt: skip
    rows = sheet(study_agreement(judged_twice, (), controls, resamples=20), "truth")
    assert len(rows) == 4
    first, second = (row for row in rows if row["aspect"] == "subject")
    assert first["balanced"] == pytest.approx((1 + 3 / 4) / 2)
    assert second["against the first"].value == pytest.approx(5 / 8 - 7 / 8)


def test_one_judge_agrees_with_nobody(made: RunStore):
    with pytest.raises(RunError, match="takes two judges"):
        study_agreement(made, ())
    with pytest.raises(RunError, match="'gpt' is part of the ids of 0 judges"):
        study_agreement(made, ("gpt",))


def test_outcomes_are_counted_by_hand(made: RunStore, references: References, tmp_path: Path):
    result = study_failures(made, NO_SUITE, references.files, resamples=50)
    records = {(r.method, r.case, r.seed, r.metric): r.value for r in made.records()}
    for row in sheet(result, "outcomes"):
        images = [key[:3] for key in records if key[0] == row["method"] and key[3] == "mars2"]
        values = [
            (records[(*key, "mars2_subject")], records[(*key, "mars2_style")]) for key in images
        ]
        assert row["style lost"].value == pytest.approx(values.count((1, 0)) / len(values))
        assert row["subject lost"].value == pytest.approx(values.count((0, 1)) / len(values))
        assert row["no answer"].value == pytest.approx(
            sum(None in pair for pair in values) / len(values)
        )
        assert row["n"] == 16
    for row in sheet(result, "concepts"):  # over the four merges, not the controls
        assert row["n"] == 4 * 2 * 4
    shares = [row["both right"] for row in sheet(result, "pairs")]
    assert shares == sorted(shares)
    files = {path.name for path in write(result, tmp_path / "out")}
    assert {"failures.png", "worst.png"} <= files


def test_one_pair_has_no_hardest_concept(tmp_path: Path, references: References):
    store = RunStore.create(tmp_path / "run", fake.make_spec(subjects=("a",), styles=("b",)))
    fake.fill(store)
    text = study_failures(store, NO_SUITE, references.files, resamples=20).text
    assert "of what fails most is" in text
    assert not {"hardest", "Spearman", "undefined"} & set(re.findall(r"\w+", text))


def test_images_are_spread_over_pairs(made: RunStore):
    own = [sample for sample in made.samples() if sample.method == "average"]
    chosen = few(own, 6)
    assert len({sample.case for sample in chosen[:4]}) == 4
    assert [sample.seed for sample in chosen] == [0, 0, 0, 0, 1, 1]
    two = few(own, 2)
    assert two[0].subject != two[1].subject
    assert two[0].style != two[1].style


@pytest.mark.parametrize(
    ("once", "pair", "other", "pairs"),
    [(100.0, 1.0, 11.0, 11), (99.0, 1.0, 11.0, 10), (0.0, 1.0, 2.0, 1), (5.0, 2.0, 2.0, None)],
)
def test_break_even_is_the_first_number_of_pairs_that_takes_less(
    once: float, pair: float, other: float, pairs: int | None
):
    assert break_even(once, pair, other) == pairs
    if pairs is not None:
        assert once + pairs * pair < pairs * other
        assert pairs == 1 or once + (pairs - 1) * pair >= (pairs - 1) * other


def test_costs_of_a_run_with_what_happened_elsewhere(made: RunStore):
    told = Elsewhere(lora_seconds=10, hypernetwork_seconds=314, judge_seconds=0.5)
    rows = {row["method"]: row for row in sheet(study_cost([made], told), "cost")}
    # two LoRAs, merging .03 s, four images at .9 s and as many judged at .5 s
    assert rows["lorarar"]["a pair"] == pytest.approx(20 + 0.03 + 3.6 + 2)
    assert rows["lorarar"]["of 1"] == pytest.approx(20 + 0.03 + 3.6 + 2 + 314)
    assert rows["lorarar"]["pays from"] == 11  # 314 / 31.37 = 10.01
    assert rows["base"]["a pair"] == pytest.approx(0.0021 + 3.6 + 2)
    assert rows["subject_only"]["a pair"] == pytest.approx(10 + 0.0021 + 3.6 + 2)
    untold = study_cost([made])
    assert "is not known without the time that training" in untold.text
    assert sheet(untold, "cost")[0]["pays from"] is not None  # controls need no training
    assert {row["method"]: row for row in sheet(untold, "cost")}["lorarar"]["pays from"] is None


def test_what_others_pay_against_must_be_there(made: RunStore):
    with pytest.raises(RunError, match="no job of 'nope' is finished; there are "):
        study_cost([made], against="nope")
    told = Elsewhere(lora_seconds=10, hypernetwork_seconds=314, judge_seconds=0.5)
    rows = {
        row["method"]: row for row in sheet(study_cost([made], told, against="average"), "cost")
    }
    assert rows["average"]["pays from"] is None  # itself
    assert rows["base"]["pays from"] == 1  # it needs no LoRA


def test_a_pair_merged_again_counts_as_it_was_last(made: RunStore, tmp_path: Path):
    shutil.copytree(made.folder, tmp_path / "again")
    store = RunStore.open(tmp_path / "again")
    again = [cost for cost in store.costs() if cost.method == "average"]
    for cost in again:
        store.append_cost(type(cost)(**{**vars(cost), "job": f"{cost.job}/2", "merge_seconds": 1}))
    row = {r["method"]: r for r in sheet(study_cost([store]), "cost")}["average"]
    assert isinstance(row["merge"], Estimate)
    assert (row["merge"].value, row["pairs"]) == (1, 4)


def test_the_commands_write_beside_the_run_or_say_in_a_line_what_is_wrong(
    made: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    shutil.copytree(made.folder, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["mars2", "study", "cost", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert (tmp_path / "run" / "studies" / "cost" / "cost.svg").exists()
    assert "pays from" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["mars2", "study", "agreement", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("mars2: ")
