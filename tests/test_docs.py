"""The documentation is true: the reference is current, and the tutorial's every block runs."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from baselines import METHODS
from mars2.cli import app
from mars2.job import CONTROLS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_reference_is_current() -> None:
    path = ROOT / "docs" / "make_reference.py"
    result = subprocess.run(
        [sys.executable, "-c", f"import runpy; m = runpy.run_path({str(path)!r}); "
         "import sys; sys.stdout.write(m['reference']())"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (ROOT / "docs" / "reference.md").read_text() == result.stdout, (
        "run `python docs/make_reference.py`"
    )


def test_tables_of_the_first_board_are_current() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))["pages"]()
    assert len(made) == 2
    for path, text in made.items():
        assert path.read_text() == text, "run `python docs/make_tables.py`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_docs_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["mars2"]:
                continue
            command = group
            rest = words[1:]
            while hasattr(command, "commands"):
                assert rest[0] in command.commands, line
                command, rest = command.commands[rest[0]], rest[1:]
            known = {
                name
                for parameter in command.params
                for name in (*parameter.opts, *parameter.secondary_opts)
            }
            assert {word for word in rest if word.startswith("--")} <= known, line


def test_every_method_and_each_of_its_options_is_explained() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    table = page.partition("## All of them")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", table, re.MULTILINE))
    for name in METHODS.names():
        method = METHODS.get(name)
        if method.function.__module__.split(".")[0] not in {"baselines", "lorarar"}:
            continue  # another test's
        assert name in rows
        assert [option for option in method.parameters if f"`{option}`" not in rows[name]] == []


def test_every_method_is_in_the_track_of_what_it_is_given_and_its_paper_in_the_references() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    table = page.partition("## Tracks")[2].partition("\n## ")[0]
    tracks = dict(re.findall(r"^\| ([\w ]+) \|.*\|(.*)\|$", table, re.MULTILINE))
    named = {track: re.findall(r"`(\w+)`", cell) for track, cell in tracks.items()}
    kinds = {"layer": "weights only", "adapter": "weights only", "fit": "fit", "policy": "policy"}
    references = page.partition("## References")[2]
    shipped = []
    for name in METHODS.names():
        method = METHODS.get(name)
        if method.function.__module__.split(".")[0] not in {"baselines", "lorarar"}:
            continue  # another test's
        shipped.append(name)
        track = "control" if name in CONTROLS else kinds[method.kind]
        assert name in named["trained" if name == "lorarar" else track]
        assert not method.paper or f"({method.paper})" in references, name
    assert sorted(name for own in named.values() for name in own) == sorted(shipped)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.slow
def test_the_tutorial_ends_with_two_rows_in_the_table(tmp_path: Path) -> None:
    page = ROOT / "docs" / "tutorial.md"
    python, bash = blocks(page, "python"), blocks(page, "bash")
    assert len(python) == 4
    assert len(bash) == 3
    program = Path(sys.executable).with_name("mars2")

    def shell(block: str) -> str:
        words = shlex.split(block)
        assert words[0] == "mars2"
        result = subprocess.run(
            [program, *words[1:], "--device", "cpu"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    (tmp_path / "mine.py").write_text(python[0])
    assert "8 images" in shell(bash[0])
    assert not (tmp_path / "runs").exists()
    assert "halves" in shell(bash[1])
    (tmp_path / "louder.py").write_text(python[1])
    subprocess.run([sys.executable, "-c", python[2]], check=True, cwd=tmp_path)
    (tmp_path / "named.py").write_text(python[3])
    checks = python[2].replace("louder", "by_attention").replace("by_attention  #", "named  #")
    subprocess.run([sys.executable, "-c", checks], check=True, cwd=tmp_path)
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("images/**/*.png")
    }
    table = shell(bash[2])
    assert "halves" in table
    assert "louder:sharpness=8" in table
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    scores = json.loads((tmp_path / "runs" / "tutorial" / "scores.json").read_text())
    assert len(before) == 8
    assert scores
