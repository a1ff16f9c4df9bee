"""Reading entries of strangers: what is taken, and that all that is wrong is told."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from leaderboards.draft import Draft
from leaderboards.entry import (
    ENTRY_BYTES,
    Entry,
    entry_bytes,
    entry_schema,
    read_entries,
    read_entry,
    split_judge,
)
from leaderboards.shape import EntryError, read

ORACLE = jsonschema.Draft202012Validator(entry_schema())
SCHEMA_FILE = Path(__file__).parents[2] / "leaderboards" / "schema" / "entry-1.json"


@pytest.fixture
def data(drafts: list[Draft]) -> dict[str, Any]:
    return json.loads(entry_bytes(drafts[5].entry))


def write(folder: Path, data: object) -> Path:
    path = folder / "entry.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def change(data: dict[str, Any], at: str, value: object) -> dict[str, Any]:
    """Set a value by its place, such as "cases.0.id"."""
    changed = copy.deepcopy(data)
    *parents, last = at.split(".")
    place: Any = changed
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return changed


def test_what_is_written_is_read_back(tmp_path: Path, drafts: list[Draft]) -> None:
    for draft in drafts:
        path = write(tmp_path, entry_bytes(draft.entry).decode())
        assert read_entry(path) == draft.entry


def test_files_are_the_same_bytes_again(fake: SimpleNamespace, drafts: list[Draft]) -> None:
    again = fake.draft("ziplora", fake.SKILL["ziplora"])
    assert again.files == drafts[5].files


WRONG = {
    "an unknown field": ("method.stars", 5, "method.stars"),
    "an unknown field at the top": ("extra", {}, "extra"),
    "a text for a number": ("costs.merge_seconds", "fast", "costs.merge_seconds"),
    "a truth for a number": ("costs.parameters", True, "costs.parameters"),
    "a fraction for a count": ("costs.batch_size", 1.5, "costs.batch_size"),
    "a number for a truth": ("judge.own", 1, "judge.own"),
    "a huge number": ("costs.merge_seconds", 1e300, "costs.merge_seconds"),
    "a huge whole number": ("costs.parameters", 10**400, "costs.parameters"),
    "a huge score": ("scores.mars2.average.value", 1e6, "scores.mars2.average.value"),
    "a path for a name": ("method.name", "../../etc/passwd", "method.name"),
    "a path for a file": ("records.file", "../x.parquet", "records.file"),
    "a hidden file": ("sheet.file", ".htaccess", "sheet.file"),
    "a path for a suite": ("suite.name", "a/b", "suite.name"),
    "a control character": ("method.summary", "a\x1b[2Jb", "method.summary"),
    "a line end in a name": ("cases.0.id", "cat_neon\n", "cases[0].id"),
    "a character that turns the text": ("method.label", "a\u202eb", "method.label"),
    "a character that is not seen": ("notes", "a\u200bb", "notes"),
    "a text that is too long": ("method.summary", "x" * 400, "method.summary"),
    "no list": ("seeds", "0-9", "seeds"),
    "an empty list": ("seeds", [], "seeds"),
    "a negative seed": ("seeds.0", -1, "seeds[0]"),
    "a track there is not": ("method.track", "cheating", "method.track"),
    "a program for a link": ("method.paper", "javascript:alert(1)", "method.paper"),
    "a link without encryption": ("method.url", "http://example.org", "method.url"),
    "a digest that is none": ("records.sha256", "zz" * 32, "records.sha256"),
    "an object for an option": ("method.options", {"a": {}}, "method.options.a"),
    "null for a name": ("judge.id", None, "judge.id"),
    "too many options": (
        "method.options",
        {f"o{number}": 1 for number in range(65)},
        "method.options",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_refuses(tmp_path: Path, data: dict[str, Any], kind: str) -> None:
    at, value, field = WRONG[kind]
    changed = change(data, at, value)
    with pytest.raises(EntryError) as error:
        read_entry(write(tmp_path, changed))
    assert field in [problem.field for problem in error.value.problems]
    if not kind.startswith("a line end"):  # Python's $ takes one at the end, JSON Schema's does not
        assert not ORACLE.is_valid(changed)


def test_the_published_schema_is_that_of_the_types(data: dict[str, Any]) -> None:
    published = json.loads(SCHEMA_FILE.read_text())
    assert published == json.loads(json.dumps(entry_schema())), (
        "run `python -m leaderboards.schema`"
    )
    jsonschema.Draft202012Validator.check_schema(published)
    assert ORACLE.is_valid(data)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "JSON"),
        ("[]", "an object"),
        ('{"schema": 1, "schema": 1}', "given twice"),
        ('{"schema": NaN}', "NaN is no number"),
        ('{"schema": -Infinity}', "-Infinity is no number"),
        ("[" * 100_000, "JSON"),
        ('{"schema": ' + "9" * 5000 + "}", "JSON"),
        ('{"schema": 2}', "newer mars2"),
        ('{"schema": true}', "expected 1"),
        ("{}", "schema"),
    ],
)
def test_refuses_files_that_are_no_entry(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(EntryError, match=told):
        read_entry(write(tmp_path, text))


def test_refuses_numbers_beyond_floats(tmp_path: Path, data: dict[str, Any]) -> None:
    text = json.dumps(data).replace(str(data["costs"]["merge_seconds"]), "1e999", 1)
    with pytest.raises(EntryError, match="inf"):
        read_entry(write(tmp_path, text))


def test_refuses_a_file_that_is_too_large_or_a_link(tmp_path: Path, data: dict[str, Any]) -> None:
    path = write(tmp_path, " " * ENTRY_BYTES + json.dumps(data))
    with pytest.raises(EntryError, match=f"at most {ENTRY_BYTES} bytes"):
        read_entry(path)
    (tmp_path / "link.json").symlink_to(path)
    with pytest.raises(EntryError, match="a plain file"):
        read_entry(tmp_path / "link.json")


def test_tells_all_that_is_wrong_with_place_and_value(tmp_path: Path, data: dict[str, Any]) -> None:
    del data["costs"]["memory"]
    changed = change(change(data, "seeds.1", "one"), "suite.name", "a b")
    path = write(tmp_path, changed)
    with pytest.raises(EntryError) as error:
        read_entry(path)
    assert [problem.field for problem in error.value.problems] == [
        "suite.name",
        "seeds[1]",
        "costs.memory",
    ]
    assert str(error.value.problems[1]) == (
        f"{path}: seeds[1]: expected a whole number; found 'one'"
    )


def test_right_to_left_letters_and_quotes_are_text(tmp_path: Path, data: dict[str, Any]) -> None:
    label = "\u05ea\u05ea \"'&<b>"
    assert read_entry(write(tmp_path, change(data, "method.label", label))).method.label == label


def test_another_code_option_or_judge_is_another_version(data: dict[str, Any]) -> None:
    versions = set()
    for at, value in (
        ("notes", "the same"),
        ("method.code", "00" * 32),
        ("method.resolved", {"weight": 0.6}),
        ("method.files", {"checkpoint": "ee" * 32}),
        ("judge.id", "other prompts short@000000000000"),
        ("generation.base_revision", "beef" * 3),
    ):
        versions.add(read(Entry, change(data, at, value), file="").version)
    assert len(versions) == 6
    assert data["method"]["version"] in versions


def test_all_entries_of_a_folder_are_read_sorted_and_problems_collected(results: Path) -> None:
    entries = read_entries(results)
    assert [entry.method.name for entry in entries] == sorted(e.method.name for e in entries)
    for path in sorted(results.rglob("*.json"))[:2]:
        path.write_text("{}")
    with pytest.raises(EntryError) as error:
        read_entries(results)
    assert len(error.value.problems) == 2
    with pytest.raises(EntryError, match="no folder"):
        read_entries(results / "none")


def test_parts_of_a_judges_id() -> None:
    assert split_judge("openai:gpt@host:80 prompts score@0123456789ab") == {
        "model": "openai:gpt",
        "revision": "host:80",
        "layout": "",
        "dtype": "",
        "prompts": "score@0123456789ab",
    }
