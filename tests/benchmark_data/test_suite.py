"""The suites that come with the package: what the paper says, and what the miniature world says."""

import dataclasses
import re
from pathlib import Path

import pytest

import benchmark_data
from benchmark_data.load import load_suite
from benchmark_data.miniworld.train.references import (
    STYLE_REFERENCES,
    SUBJECT_REFERENCES,
    style_things,
)
from benchmark_data.miniworld.world import (
    STYLES,
    SUBJECTS,
    TOKEN,
    prompt,
    style_prompt,
    subject_prompt,
)
from benchmark_data.suite import Concept, Suite

PACKAGE = Path(benchmark_data.__file__).parent
TAV = "\N{HEBREW LETTER TAV}"


@pytest.fixture(scope="module")
def lorarar() -> Suite:
    return load_suite("lorarar")


@pytest.fixture(scope="module")
def miniworld() -> Suite:
    return load_suite("miniworld")


def ids(concepts: object, split: str) -> list[str]:
    assert isinstance(concepts, dict)
    return [concept.id for concept in concepts.values() if concept.split == split]


def test_suites_are_frozen(lorarar: Suite) -> None:
    for thing in (lorarar, lorarar.subjects["dog8"], lorarar.cases["test"][0], lorarar.generation):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, dataclasses.fields(thing)[0].name, "other")


# --- lorarar ---


def test_lorarar_has_the_papers_splits(lorarar: Suite) -> None:
    assert ids(lorarar.subjects, "test") == ["can", "cat2", "dog8", "teapot", "wolf_plushie"]
    assert ids(lorarar.subjects, "val") == ["bear_plushie", "clock", "dog2"]
    assert ids(lorarar.styles, "test") == [
        "3d_rendering4",
        "flat_cartoon_illustration",
        "glowing",
        "oil_painting2",
        "watercolor_painting3",
    ]
    assert ids(lorarar.styles, "val") == ["3d_rendering2", "oil_painting", "watercolor_painting"]
    pairs = {split: len(cases) for split, cases in lorarar.cases.items()}
    assert pairs == {"train": 22 * 18, "val": 3 * 3, "test": 5 * 5}


def test_lorarar_prompts_have_the_rare_token(lorarar: Suite) -> None:
    prompts = {case.id: case.prompt for case in lorarar.cases["test"]}
    assert (
        prompts["wolf_plushie_oil_painting2"]
        == f"a {TAV}{TAV} stuffed animal in oil painting style"
    )
    assert all(text.count(TAV) == 2 and '"' not in text for text in prompts.values())
    for subject in lorarar.subjects.values():
        assert subject.prompt == f"A {TAV}{TAV} {subject.phrase}"
    unlike = [
        style.id
        for style in lorarar.styles.values()
        if not style.prompt.endswith(f"in {style.phrase} style")
    ]
    assert unlike == [
        "abstract_rainbow_colored_flowing_smoke_wave_design",
        "black_statue",
        "wooden_sculpture",
    ]
    assert not any(TAV in style.prompt for style in lorarar.styles.values())


def test_lorarar_asks_as_the_protocol_does(lorarar: Suite) -> None:
    questions = {style.id: style.question_style for style in lorarar.styles.values()}
    assert questions["watercolor_painting3"] == "watercolor painting"
    differ = [id_ for id_, asked in questions.items() if asked != lorarar.styles[id_].phrase]
    assert differ == ["melting_golden_rendering"]


def test_lorarar_references_can_be_had(lorarar: Suite) -> None:
    counts = {id_: len(subject.references) for id_, subject in lorarar.subjects.items()}
    assert (counts["can"], counts["dog8"], counts["duck_toy"]) == (6, 5, 4)
    assert set(counts.values()) == {4, 5, 6}
    assert all(len(style.references) == 1 for style in lorarar.styles.values())
    references = [item for one in lorarar.concepts.values() for item in one.references]
    assert len({item.url for item in references}) == len(references)
    assert all(item.url.startswith("https://") and item.licence for item in references)
    assert [item.file for item in references if item.manual] == ["cartoon_line_drawing.jpg"]
    base = "https://raw.githubusercontent.com/google/dreambooth/main/dataset"
    assert lorarar.subjects["cat2"].references[4].url == f"{base}/cat2/04.jpg"


def test_lorarar_has_the_papers_settings(lorarar: Suite) -> None:
    assert (lorarar.generation.resolution, lorarar.generation.steps) == (1024, 50)
    assert lorarar.cases["test"][0].seeds == tuple(range(10))
    for kind in ("subject_lora", "style_lora"):
        assert lorarar.training[kind] == {"rank": 64, "lr": 5e-5, "steps": 1000, "batch_size": 1}
    assert lorarar.models.judge == "llava_onevision:lmms-lab/llava-critic-7b"


# --- miniworld ---


Row = tuple[str, str, str, str, tuple[str, ...], list[str]]


def world_concepts() -> list[Row]:
    """Id, role, split, phrase, prompts and files of the references, as the world has them."""

    def files(id_: str, count: int) -> list[str]:
        return [f"package:miniworld/references/{id_}/{number}.png" for number in range(count)]

    rows: list[Row] = []
    for s in SUBJECTS.values():
        texts = (subject_prompt(s),) * SUBJECT_REFERENCES
        shown = files(s.id, SUBJECT_REFERENCES)
        rows.append((s.id, "subject", s.split, s.class_noun, texts, shown))
    for s in STYLES.values():
        texts = tuple(style_prompt(thing, s) for thing in style_things(s.id))
        rows.append((s.id, "style", s.split, s.phrase, texts, files(s.id, STYLE_REFERENCES)))
    return rows


def as_row(concept: Concept) -> Row:
    files = [reference.file for reference in concept.references]
    return (concept.id, concept.role, concept.split, concept.phrase, concept.prompts, files)


def test_miniworld_says_what_the_world_says(miniworld: Suite) -> None:
    assert [as_row(concept) for concept in miniworld.concepts.values()] == world_concepts()


def test_miniworld_pairs_have_the_worlds_prompts(miniworld: Suite) -> None:
    assert TOKEN == TAV * 2
    assert miniworld.cases["test"]
    for cases in miniworld.cases.values():
        for case in cases:
            assert case.prompt == prompt(SUBJECTS[case.subject.id], STYLES[case.style.id])


def test_miniworld_has_all_in_the_package(miniworld: Suite) -> None:
    weights = PACKAGE / "miniworld" / "weights"
    models = miniworld.models
    assert [models.base, models.judge, models.clip, models.dino] == [
        str(weights / "sdxl"),
        f"llava_onevision:{weights / 'critic'}",
        f"local-dir:{weights / 'clip'}",
        str(weights / "dino"),
    ]
    assert miniworld.adapters == weights / "loras"
    assert miniworld.method_options["lorarar"]["checkpoint"] == str(
        weights / "hypernetwork.safetensors"
    )
    for concept in miniworld.concepts.values():
        assert all(reference.local for reference in concept.references)


@pytest.mark.parametrize("name", ["lorarar", "miniworld"])
def test_revision_names_no_place_on_this_machine(name: str, tmp_path: Path) -> None:
    """A copy of the file elsewhere is the same suite."""
    copy = tmp_path / "copy.toml"
    copy.write_bytes((PACKAGE / "suites" / f"{name}.toml").read_bytes())
    assert load_suite(copy).revision == load_suite(name).revision
    assert re.fullmatch("[0-9a-f]{12}", load_suite(name).revision)
