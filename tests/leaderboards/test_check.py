"""Every kind of tampered or broken entry is refused, with the place and what was found."""

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaderboards.check import Report, check
from leaderboards.draft import named
from leaderboards.facts import SuiteFacts
from leaderboards.records import Records, parse_records, records_bytes
from leaderboards.shape import EntryError

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def run(results: Path, fake: SimpleNamespace) -> Callable[..., Report]:
    """Check the folder, or an entry in it."""

    def call(place: Path = results, facts: SuiteFacts = fake.FACTS) -> Report:
        return check(place, lambda name: facts if name == "tiny" else None)

    return call


def find(results: Path, method: str, end: str = ".json") -> Path:
    (path,) = results.glob(f"tiny/{method}@*{end}")
    return path


def edit(path: Path, change: Edit) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_records(
    results: Path,
    change: Callable[[Records], Records],
    *,
    method: str = "ziplora",
    digest: bool = True,
) -> None:
    """Change an entry's records; with `digest`, the digest in the entry is mended too."""
    path = find(results, method, ".records.parquet")
    content = records_bytes(change(parse_records(path.read_bytes(), file="")))
    replace_file(results, method, content, digest=digest)


def replace_file(results: Path, method: str, content: bytes, *, digest: bool = True) -> None:
    find(results, method, ".records.parquet").write_bytes(content)
    if digest:

        def mend(data: dict[str, Any]) -> None:
            data["records"]["sha256"] = hashlib.sha256(content).hexdigest()
            data["records"]["bytes"] = len(content)

        edit(find(results, method), mend)


def fields(report: Report) -> list[str]:
    return [problem.field for problem in report.problems]


def test_honest_entries_are_sound(run: Callable[..., Report], results: Path) -> None:
    report = run()
    assert report.problems == ()
    assert len(report.sound) == len(report.paths) == 8
    alone = run(find(results, "ziplora"))
    assert (alone.problems, len(alone.paths)) == ((), 1)


def set_(*keys: str | int, value: object) -> Edit:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


TAMPERED: dict[str, tuple[Edit, str]] = {
    "an edited aggregate": (
        set_("scores", "mars2", "average", "value", value=0.99),
        "scores.mars2.average.value",
    ),
    "a narrowed interval": (
        set_("scores", "mars2", "average", "low", value=0.9),
        "scores.mars2.average.low",
    ),
    "an edited best of n": (
        set_("scores", "clip_t", "best_of_n", "value", value=0.9),
        "scores.clip_t.best_of_n.value",
    ),
    "an edited score of a pair": (
        set_("cases", 2, "scores", "mars2_style", value=0.5),
        "cases[2].scores.mars2_style",
    ),
    "hidden unscored images": (
        set_("scores", "mars2", "average", "n", value=35),
        "scores.mars2.average.n",
    ),
    "a score that no record has": (
        lambda data: data["scores"].update(fame=data["scores"]["clip_t"]),
        "scores",
    ),
    "a score left out": (lambda data: data["scores"].pop("mars2_style"), "scores"),
    "another revision of the suite": (
        set_("suite", "revision", value="ffffffffffff"),
        "suite.revision",
    ),
    "another split": (set_("suite", "split", value="train"), "suite.split"),
    "another judge passed off as the suite's": (
        lambda data: data["judge"].update(
            id=data["judge"]["id"].replace("0123456789ab", "999999999999"),
            revision="999999999999",
        ),
        "judge.own",
    ),
    "a judge's part that its id contradicts": (
        set_("judge", "layout", value="pad"),
        "judge.layout",
    ),
    "another base model": (set_("generation", "base", value="mine"), "generation.base"),
    "other files of the base model": (
        set_("generation", "base_revision", value="0" * 12),
        "generation.base_revision",
    ),
    "other adapters": (set_("generation", "adapters", value="cd" * 32), "generation.adapters"),
    "other steps": (set_("generation", "steps", value=200), "generation.steps"),
    "chosen seeds": (set_("seeds", value=[0, 1, 2, 9]), "seeds"),
    "another code under the version": (set_("method", "code", value="00" * 32), "method.version"),
    "other options under the version": (
        set_("method", "resolved", "weight", value=0.7),
        "method.version",
    ),
    "options that are not those used": (
        set_("method", "options", "weight", value=0.6),
        "method.resolved.weight",
    ),
    "a script in a text": (
        set_("method", "summary", value="<script>alert(1)</script>"),
        "method.summary",
    ),
    "a script in an option": (
        set_("method", "options", "a", value="<img src=x onerror=y>"),
        "method.options.a",
    ),
    "a script in the notes": (set_("notes", value="see javascript:alert(1)"), "notes"),
    "a script in a package's version": (
        set_("environment", "x", value="</script >"),
        "environment.x",
    ),
    "a fit that passes as a plain merge": (
        set_("method", "track", value="weights"),
        "method.track",
    ),
    "no licence": (set_("method", "licence", value=""), "method.licence"),
    "a licence there is not": (set_("method", "licence", value="WTF-9"), "method.licence"),
    "a merge that took no time": (set_("costs", "merge_seconds", value=0), "costs.merge_seconds"),
    "no versions": (lambda data: data["environment"].pop("torch"), "environment.torch"),
    "a wrong digest of the records": (
        set_("records", "sha256", value="0" * 64),
        "records.sha256",
    ),
    "a wrong digest of the sheet": (set_("sheet", "sha256", value="0" * 64), "sheet.sha256"),
    "a wrong size": (set_("records", "bytes", value=5), "records.bytes"),
    "records of another entry": (
        set_("records", "file", value="average@00000000.records.parquet"),
        "records.file",
    ),
    "a path out of the folder": (set_("records", "file", value="../../secret"), "records.file"),
    "NaN": (set_("costs", "merge_seconds", value=float("nan")), ""),
    "an infinity": (set_("costs", "merge_seconds", value=float("inf")), ""),
    "a huge number": (set_("costs", "parameters", value=10**40), "costs.parameters"),
    "a schema of the future": (set_("schema", value=2), "schema"),
    "an unknown field": (set_("method", "stars", value=5), "method.stars"),
    "a pair left out": (lambda data: data["cases"].pop(), "cases"),
    "pairs in another order": (lambda data: data["cases"].reverse(), "cases"),
    "another prompt": (set_("cases", 0, "prompt", value="a great picture"), "cases"),
    "an unknown suite": (set_("suite", "name", value="other"), "suite.name"),
    "another sheet's seed": (set_("sheet", "seed", value=3), "sheet.seed"),
    "a sheet of another shape": (set_("sheet", "side", value=32), ""),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_refuses(run: Callable[..., Report], results: Path, kind: str) -> None:
    change, field = TAMPERED[kind]
    edit(find(results, "ziplora"), change)
    report = run()
    assert field in fields(report)
    assert all("ziplora" in problem.file for problem in report.problems if problem.field == field)
    assert len(report.sound) < 8


def _change_row(records: Records, number: int, **values: object) -> Records:
    rows = list(records.rows)
    rows[number] = dataclasses.replace(rows[number], **values)
    return dataclasses.replace(records, rows=tuple(rows))


def test_refuses_an_edited_record(run: Callable[..., Report], results: Path) -> None:
    edit_records(
        results, lambda r: _change_row(r, 5, subject="yyy", style="y"), method="base", digest=False
    )
    assert "records.sha256" in fields(run())


def test_refuses_an_edited_record_with_a_mended_digest(
    run: Callable[..., Report], results: Path
) -> None:
    edit_records(results, lambda r: _change_row(r, 5, subject="yyy", style="y"), method="base")
    assert "scores.mars2.average.value" in fields(run())


def test_refuses_a_missing_seed(run: Callable[..., Report], results: Path) -> None:
    edit_records(results, lambda r: dataclasses.replace(r, rows=r.rows[:6] + r.rows[7:]))
    (problem,) = [p for p in run().problems if p.field == "rows"]
    assert problem.found == "without cat_ink/2"


def test_refuses_a_seed_given_twice(run: Callable[..., Report], results: Path) -> None:
    edit_records(results, lambda r: dataclasses.replace(r, rows=(*r.rows, r.rows[0])))
    assert [p.found for p in run().problems if p.field == "rows"] == ["twice cat_neon/0"]


def test_refuses_a_seed_that_is_not_asked_for(run: Callable[..., Report], results: Path) -> None:
    edit_records(results, lambda r: _change_row(r, 3, seed=77))
    found = [p.found for p in run().problems if p.field == "rows"]
    assert found == ["without cat_neon/3", "also cat_neon/77"]


def test_refuses_records_in_another_order(run: Callable[..., Report], results: Path) -> None:
    edit_records(results, lambda r: dataclasses.replace(r, rows=r.rows[::-1]))
    assert [p.found for p in run().problems if p.field == "rows"] == ["another order"]


def test_refuses_references_that_the_judge_was_not_asked_about(
    run: Callable[..., Report], results: Path
) -> None:
    edit_records(results, lambda r: _change_row(r, 0, subject="y"))
    assert "subject, style" in fields(run())


def test_refuses_the_same_image_for_two_seeds(run: Callable[..., Report], results: Path) -> None:
    edit_records(results, lambda r: _change_row(r, 1, image=r.rows[0].image))
    assert "image" in fields(run())


def test_refuses_many_unscored_images(
    run: Callable[..., Report], results: Path, fake: SimpleNamespace
) -> None:
    def forget(records: Records) -> Records:
        for number in range(4):
            records = _change_row(records, number, style="?", subject="yyy")
        return records

    edit_records(results, forget)
    (problem,) = [
        p for p in run().problems if p.field == "scores.mars2.average.n_unscored" and "%" in p.found
    ]
    assert problem.found == "11%"


@pytest.mark.parametrize(
    ("column", "values", "field"),
    [
        ("clip_t", [float("nan")] * 36, "row 0, clip_t"),
        ("clip_t", [float("inf")] * 36, "row 0, clip_t"),
        ("clip_t", [1e30] * 36, "row 0, clip_t"),
        ("case", ["../x"] * 36, "row 0, case"),
        ("case", [None] * 36, "column case"),
        ("case", ["a", None] * 18, "row 1, case"),
        ("style", ["maybe"] * 36, "row 0, style"),
        ("image", ["<b>"] * 36, "row 0, image"),
        ("seed", [-1] * 36, "row 0, seed"),
        ("seed", ["0"] * 36, "column seed"),
        ("mars2", [1.0] * 36, "columns"),
        ("<b>", [1.0] * 36, "columns"),
        ("fame", ["1"] * 36, "column fame"),
    ],
)
def test_refuses_records_with_wrong_cells(
    run: Callable[..., Report], results: Path, column: str, values: list[Any], field: str
) -> None:
    table = pq.read_table(find(results, "ziplora", ".records.parquet"))
    columns = {name: table[name].to_pylist() for name in table.column_names} | {column: values}
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target)
    replace_file(results, "ziplora", target.getvalue())
    assert field in fields(run())


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" * 50, b"\x80\x04pickle"])
def test_refuses_records_that_are_no_parquet(
    run: Callable[..., Report], results: Path, content: bytes
) -> None:
    replace_file(results, "ziplora", content)
    assert any(p.expected == "a parquet file" for p in run().problems)


def test_refuses_records_that_unpack_to_much(run: Callable[..., Report], results: Path) -> None:
    target = io.BytesIO()
    pq.write_table(pa.table({"case": ["a" * 1000] * 100_001}), target, compression="zstd")
    assert len(target.getvalue()) < 200_000
    replace_file(results, "ziplora", target.getvalue())
    assert any("100001 rows" in p.found for p in run().problems)


def test_refuses_files_that_are_too_large(run: Callable[..., Report], results: Path) -> None:
    replace_file(results, "ziplora", b"x" * 200_001)
    find(results, "average", ".webp").write_bytes(b"x" * 300_001)
    find(results, "ties").write_bytes(b" " * 300_000)
    expected = [p.expected for p in run().problems]
    assert "at most 200000 bytes" in expected
    assert "at most 300000 bytes" in expected
    assert "at most 262144 bytes" in expected


def test_refuses_a_missing_file_and_a_link(run: Callable[..., Report], results: Path) -> None:
    find(results, "ziplora", ".records.parquet").unlink()
    sheet = find(results, "average", ".webp")
    sheet.rename(results / "elsewhere.webp")
    sheet.symlink_to(results / "elsewhere.webp")
    report = run()
    assert {"records.file", "sheet.file"} <= set(fields(report))


def test_refuses_the_same_method_twice(
    run: Callable[..., Report], results: Path, fake: SimpleNamespace
) -> None:
    other = dataclasses.replace(fake.GENERATION, device="cuda")
    path = find(results, "ziplora")
    data = json.loads(path.read_text())
    data["generation"]["device"] = other.device
    copy = path.with_name(path.name.replace("ziplora@", "ziplora@0"))
    copy.write_text(json.dumps(data))
    report = run()
    assert {"the file's name", "method", "records"} <= set(fields(report))


def test_refuses_images_of_another_method(
    run: Callable[..., Report], results: Path, fake: SimpleNamespace
) -> None:
    copied = fake.draft("ziplora", fake.SKILL["ziplora"])
    stolen = dataclasses.replace(copied.entry.method, name="mine", label="mine", code="12" * 32)
    entry = named(dataclasses.replace(copied.entry, method=stolen))
    dataclasses.replace(copied, entry=entry).write(results)
    (problem,) = run().problems
    assert (problem.field, problem.expected) == ("records", "images of its own")


def test_refuses_a_board_without_controls(run: Callable[..., Report], results: Path) -> None:
    for path in results.glob("tiny/style_only@*"):
        path.unlink()
    problems = run().problems
    assert {(p.field, p.found) for p in problems} == {("the board", "no style_only")}
    assert len(problems) == 7


def test_a_labelled_judge_of_ones_own_is_sound(
    run: Callable[..., Report], results: Path, fake: SimpleNamespace
) -> None:
    judge = dataclasses.replace(
        fake.JUDGE, id=f"gpt@x prompts {fake.PROMPTS}", model="gpt", revision="x",
        layout="", dtype="", own=False,
    )  # fmt: skip
    shutil.rmtree(results)
    fake.write(results, [fake.draft(name, (0.5, 0.5), judge=judge) for name in fake.SKILL])
    assert run().problems == ()


def test_refuses_strays_and_wrong_folders(run: Callable[..., Report], results: Path) -> None:
    (results / "tiny" / "notes.txt").write_text("x")
    (results / "other").mkdir()
    for end in (".json", ".records.parquet", ".webp"):
        path = find(results, "ties", end)
        path.rename(results / "other" / path.name)
    report = run()
    assert any(p.file.endswith("notes.txt") for p in report.problems)
    assert "the folder's name" in fields(report)


def test_tells_all_problems_of_all_entries_at_once(
    run: Callable[..., Report], results: Path
) -> None:
    edit(find(results, "ziplora"), set_("scores", "mars2", "average", "value", value=0.99))
    edit(find(results, "ziplora"), set_("suite", "revision", value="ffffffffffff"))
    edit(find(results, "average"), set_("method", "licence", value="x"))
    report = run()
    assert {"scores.mars2.average.value", "suite.revision", "method.licence"} <= set(fields(report))
    assert len(report.sound) == 0 or all(e.method.name != "ziplora" for e, _ in report.sound)
    with pytest.raises(EntryError, match="no folder"):
        run(results / "none")
