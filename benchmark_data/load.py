"""Reads a suite from a TOML file and checks it: `load_suite("lorarar")`, `load_suite("my.toml")`.

docs/architecture.md says what a suite holds, benchmark_data/suites has examples of the format.
Paths that begin with ``package:`` are inside benchmark_data; others are relative to the TOML file.
In the names of models and in options of methods only ``./`` and ``../`` begin a relative path.
"""

import hashlib
import itertools
import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark_data.checks import check_ids, check_images, pair_of, split_of
from benchmark_data.references import (
    file_digest,
    load_references,
    locate,
    open_references,
)
from benchmark_data.suite import (
    SPLITS,
    Case,
    Concept,
    Generation,
    Models,
    Reference,
    Role,
    Suite,
    SuiteError,
)
from benchmark_data.tables import Table, checked, nearest, read_toml

__all__ = ["load_references", "load_suite", "open_references", "suite_names"]

PACKAGE = Path(__file__).parent
TRAININGS = ("subject_lora", "style_lora", "joint_lora", "hypernetwork")
WORDS = ("title", "licence", "notes")
"""What a suite says of itself, which changes no image and no score, so not the revision either."""


def suite_names() -> tuple[str, ...]:
    """Return the names of the suites that come with the package, sorted."""
    return tuple(sorted(path.stem for path in (PACKAGE / "suites").glob("*.toml")))


def load_suite(name_or_path: str | Path, root: Path | None = None) -> Suite:
    """Return a suite.

    Args:
        name_or_path: One of `suite_names`, or a TOML file.
        root: The cache with its fetched images; None: as `benchmark_data.references.cache_root`.

    Raises:
        SuiteError: There is no such suite, or something is wrong in it.
    """
    text = str(name_or_path)
    names = suite_names()
    if text in names:
        return locate(_Reader(PACKAGE / "suites" / f"{text}.toml").suite(), root)
    if not text.endswith(".toml"):
        raise SuiteError(
            f"there is no suite {text!r}; {nearest(text, names)}; a file must end in .toml"
        )
    return locate(_Reader(Path(text).expanduser().resolve()).suite(), root)


@dataclass(frozen=True)
class _Source:
    """What references from one place share: licence, and URL with ``{concept}`` and ``{file}``."""

    licence: str = ""
    url: str = ""


class _Reader:
    """Turns one TOML file into a suite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.top = read_toml(path)
        self.sources = {"": _Source()}

    def suite(self) -> Suite:
        top = self.top
        name = top.text("name")
        if not re.fullmatch(r"[a-z0-9_-]+", name):
            raise SuiteError(f"{top.where}: name {name!r} must be made of a-z, 0-9, _ and -")
        if self.path.parent == PACKAGE / "suites" and name != self.path.stem:
            raise SuiteError(f"{top.where}: name {name!r} must be the file's, {self.path.stem!r}")
        for key, table in top.table("sources", optional=True).tables().items():
            self.sources[key] = _Source(table.text("licence", ""), table.text("url", ""))
            table.finish()
        subjects, styles = self.concepts("subject"), self.concepts("style")
        adapters = top.text("adapters", "")
        folder = self.located(adapters) if adapters else None
        generation, seeds = self.generation()
        suite = Suite(
            name=name,
            title=top.text("title"),
            revision="",
            subjects=subjects,
            styles=styles,
            cases=self.cases(subjects, styles, seeds, folder),
            models=self.models(),
            generation=generation,
            method_options=self.options("method_options"),
            training=self.options("training", TRAININGS),
            adapters=folder,
            source=self.path,
            licence=top.text("licence", ""),
            notes=top.text("notes", ""),
            supersedes=top.text("supersedes", ""),
        )
        top.finish()
        check_images(top.where, suite)
        return replace(suite, revision=self.revision(suite))

    # --- concepts ---

    def concepts(self, role: Role) -> dict[str, Concept]:
        tables = self.top.table(f"{role}s").tables()
        return {id_: self.concept(id_, role, table) for id_, table in tables.items()}

    def concept(self, id_: str, role: Role, table: Table) -> Concept:
        if not re.fullmatch(r"[a-z0-9_]+", id_):
            raise SuiteError(f"{table.where}: id {id_!r} must be made of a-z, 0-9 and _")
        question_style = table.text("question_style", "") if role == "style" else ""
        source = table.text("source", "")
        if source not in self.sources:
            known = [name for name in self.sources if name]
            raise SuiteError(
                f"{table.where}: source {source!r} is not in [sources]; {nearest(source, known)}"
            )
        rows = table.take("references", list)
        concept = Concept(
            id=id_,
            role=role,
            split=split_of(table),
            phrase=table.text("phrase"),
            prompt=table.text("prompt"),
            validation_prompt=table.text("validation_prompt", ""),
            references=tuple(
                self.reference(row, id_, self.sources[source], f"{table.where} reference {number}")
                for number, row in enumerate(rows, start=1)
            ),
            question_style=question_style or ("" if role == "subject" else _spoken(id_)),
        )
        table.finish()
        files = [reference.file for reference in concept.references]
        if not files:
            raise SuiteError(f"{table.where}: references is empty; a {role} needs at least one")
        if len(set(files)) < len(files):
            raise SuiteError(f"{table.where}: references names a file twice")
        return concept

    def reference(self, row: object, concept: str, source: _Source, where: str) -> Reference:
        table = Table({"file": row} if isinstance(row, str) else checked(row, dict, where), where)
        file, manual = table.text("file"), table.text("manual", "")
        if set(re.findall(r"{(.*?)}", source.url)) - {"concept", "file"}:
            raise SuiteError(f"{where}: url {source.url!r} may have {{concept}} and {{file}} only")
        url = table.text("url", source.url.replace("{concept}", concept).replace("{file}", file))
        licence, sha256 = table.text("licence", source.licence), table.text("sha256", "")
        prompt = table.text("prompt", "")
        table.finish()
        if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise SuiteError(f"{where}: sha256 {sha256!r} must be 64 hexadecimal digits")
        if url and not re.match(r"https?://[^/\s]", url):
            raise SuiteError(f"{where}: url {url!r} must begin with https:// or http://")
        if not url and not manual:
            return Reference(self.located(file), file, "", licence, sha256 or None, "", prompt)
        if not re.fullmatch(r"[^./\\\s][^/\\]*", file):
            raise SuiteError(f"{where}: file {file!r} must be a plain name to keep the image under")
        return Reference(None, file, url, licence, sha256 or None, manual, prompt)

    # --- pairs ---

    def cases(
        self,
        subjects: Mapping[str, Concept],
        styles: Mapping[str, Concept],
        seeds: tuple[int, ...],
        adapters: Path | None,
    ) -> dict[str, tuple[Case, ...]]:
        where = self.top.where
        check_ids(where, subjects, styles)
        template = self.prompt_template()
        table = self.top.table("cases", optional=True)
        only_shipped = table.take("only_shipped", bool, default=False)
        if only_shipped and adapters is None:
            raise SuiteError(f"{table.where}: only_shipped needs the suite's adapters")
        shipped = {path.stem for path in adapters.glob("*.safetensors")} if adapters else set()
        cases: dict[str, tuple[Case, ...]] = {}
        for split in SPLITS:
            rows = table.take(split, list, [])
            if split in table.data:
                pairs = [pair_of(row, subjects, styles, split, table.where) for row in rows]
            else:
                members = itertools.product(subjects.values(), styles.values())
                pairs = [(a, b) for a, b in members if a.split == b.split == split]
            if only_shipped and shipped:
                pairs = [(a, b) for a, b in pairs if {a.id, b.id} <= shipped]
            ids = [f"{subject.id}_{style.id}" for subject, style in pairs]
            if len(set(ids)) < len(ids):
                raise SuiteError(f"{table.where}: {split} has a pair twice")
            if pairs:
                cases[split] = tuple(
                    Case(id_, a, b, template.format(subject=a.phrase, style=b.phrase), seeds)
                    for id_, (a, b) in zip(ids, pairs, strict=True)
                )
        table.finish()
        if not cases:
            raise SuiteError(f"{where}: no split has both a subject and a style, so no pair")
        return cases

    def prompt_template(self) -> str:
        template = self.top.text("case_prompt")
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
        except ValueError as error:
            raise SuiteError(f"{self.top.where}: case_prompt {template!r}: {error}") from error
        if sorted(fields) != ["style", "subject"]:
            raise SuiteError(
                f"{self.top.where}: case_prompt {template!r} must have {{subject}} and {{style}}, "
                "once each, and no other braces"
            )
        return template

    # --- settings ---

    def generation(self) -> tuple[Generation, tuple[int, ...]]:
        table = self.top.table("generation")
        if ("seeds" in table.data) == ("num_seeds" in table.data):
            raise SuiteError(f"{table.where}: give either num_seeds or a list seeds")
        if "seeds" in table.data:
            where = f"{table.where}: a seed"
            seeds = tuple(checked(seed, int, where) for seed in table.take("seeds", list))
        else:
            seeds = tuple(range(table.take("num_seeds", int)))
        generation = Generation(
            resolution=table.take("resolution", int),
            steps=table.take("steps", int),
            guidance_scale=table.take("guidance_scale", float),
            negative_prompt=table.text("negative_prompt", ""),
        )
        table.finish()
        problems = {
            "there must be at least one seed": not seeds,
            f"seeds {list(seeds)} must be different": len(set(seeds)) < len(seeds),
            f"seeds {list(seeds)} must not be negative": any(seed < 0 for seed in seeds),
            f"resolution {generation.resolution} must be a positive multiple of 8": (
                generation.resolution <= 0 or generation.resolution % 8 != 0
            ),
            f"steps {generation.steps} must be positive": generation.steps <= 0,
            f"guidance_scale {generation.guidance_scale} must be 0 or more": not (
                0 <= generation.guidance_scale < math.inf
            ),
        }
        for problem, there in problems.items():
            if there:
                raise SuiteError(f"{table.where}: {problem}")
        return generation, seeds

    def models(self) -> Models:
        table = self.top.table("models")
        names = [self.resolved(table.text(key)) for key in ("base", "judge", "clip", "dino")]
        table.finish()
        return Models(*names)

    def options(self, key: str, known: Sequence[str] = ()) -> dict[str, dict[str, object]]:
        parent = self.top.table(key, optional=True)
        options: dict[str, dict[str, object]] = {}
        for name, table in parent.tables().items():
            if known and name not in known:
                raise SuiteError(f"{parent.where}: unknown key {name!r}; {nearest(name, known)}")
            for option, value in table.data.items():
                if not isinstance(value, str | int | float | list):
                    raise SuiteError(f"{table.where}: {option} is {value!r}; give text or numbers")
            options[name] = {
                option: self.resolved(value) if isinstance(value, str) else value
                for option, value in table.data.items()
            }
        return options

    # --- paths and revision ---

    def located(self, text: str) -> Path:
        """Return the file or folder that a text names."""
        if not text.startswith("package:"):
            return self.path.parent / text
        path = (PACKAGE / text.removeprefix("package:")).resolve()
        if not path.is_relative_to(PACKAGE.resolve()):
            raise SuiteError(f"{self.top.where}: {text!r} leaves the package")
        return path

    def resolved(self, text: str) -> str:
        """Return a text with the path that it may end in, behind a colon or alone, in full."""
        match = re.fullmatch(r"(|.*?:)((?:package:|\.\.?/).*)", text)
        return match[1] + str(self.located(match[2])) if match else text

    def revision(self, suite: Suite) -> str:
        """Return 12 hex of all in the file but words about it, its pairs and its own images."""
        own = [
            (f"{concept.id}/{reference.file}", file_digest(reference.path))
            for concept in suite.concepts.values()
            for reference in concept.references
            if reference.local and reference.path is not None and reference.path.is_file()
        ]
        content = {key: value for key, value in self.top.data.items() if key not in WORDS}
        cases = {split: [case.id for case in cases] for split, cases in suite.cases.items()}
        try:
            text = json.dumps([content, cases, own], sort_keys=True)
        except TypeError as error:
            raise SuiteError(f"{self.top.where}: {error}; write dates as texts") from error
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _spoken(style: str) -> str:
    """Return a style's id as the protocol's question says it.

    >>> _spoken("oil_painting2")
    'oil painting'
    """
    return re.sub(r"\d$", "", style).replace("_", " ").strip() or style
