"""What a suite says: subjects, styles, their reference images, pairs, prompts, models, settings.

A suite is data: `benchmark_data.load` reads one from a TOML file and checks it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Role = Literal["subject", "style"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class SuiteError(ValueError):
    """A suite that cannot be used as it is, or a reference image that is missing or broken."""


@dataclass(frozen=True)
class Reference:
    """A reference image.

    Attributes:
        path: Where the image lies; None: it has to be fetched first.
        file: Its name in the cache; of an image that comes with the suite, its path as written.
        url: Where it can be had; "": it comes with the suite.
        licence: On what terms, or "".
        sha256: What the suite demands of the file's content; None: nothing.
        manual: How to fetch it by hand, if it cannot be downloaded by a program; else "".
        prompt: What to train with on this image, if it is not the concept's prompt; else "".
    """

    path: Path | None
    file: str
    url: str = ""
    licence: str = ""
    sha256: str | None = None
    manual: str = ""
    prompt: str = ""

    @property
    def local(self) -> bool:
        """Whether it comes with the suite, so that there is nothing to fetch."""
        return not self.url and not self.manual


@dataclass(frozen=True)
class Concept:
    """A subject or a style.

    Attributes:
        id: Lower-case letters, digits and ``_``; unique among subjects and styles together.
        role: Which of the two it is.
        split: The one split it belongs to.
        phrase: A subject's class noun; a style's name, as in "``{phrase}`` style".
        prompt: The prompt its LoRA is trained with, where a reference has none of its own.
        validation_prompt: A prompt to look at its LoRA with, or "".
        references: Its images, at least one.
        question_style: A style's name in the judge's question; "" for a subject. If a suite does
            not say, the id less one trailing digit and ``_`` as space, as the protocol has it.
    """

    id: str
    role: Role
    split: Split
    phrase: str
    prompt: str
    validation_prompt: str
    references: tuple[Reference, ...]
    question_style: str = ""

    @property
    def prompts(self) -> tuple[str, ...]:
        """What to train with on each reference: its own prompt, or the concept's."""
        return tuple(reference.prompt or self.prompt for reference in self.references)


@dataclass(frozen=True)
class Case:
    """A subject to be shown in a style.

    Attributes:
        id: ``SUBJECT_STYLE``, which is the folder's name in the field's scripts, too.
        subject: The subject.
        style: The style, of the same split.
        prompt: The prompt to generate with.
        seeds: One image each.
    """

    id: str
    subject: Concept
    style: Concept
    prompt: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Models:
    """The models a suite is run and scored with, each a folder or an id on the hub.

    Attributes:
        base: SDXL pipeline.
        judge: ``NAME:MODEL``, as `mars2.judges.load_judge` takes it.
        clip: ``ARCHITECTURE:PRETRAINED`` or ``local-dir:FOLDER`` of open_clip.
        dino: DINO in transformers' layout.
    """

    base: str
    judge: str
    clip: str
    dino: str


@dataclass(frozen=True)
class Generation:
    """How images are generated.

    Attributes:
        resolution: Pixels a side, a multiple of 8.
        steps: Denoising steps.
        guidance_scale: Strength of classifier-free guidance, ``>= 0``.
        negative_prompt: "": none.
    """

    resolution: int
    steps: int
    guidance_scale: float
    negative_prompt: str = ""


@dataclass(frozen=True)
class Suite:
    """All that a benchmark fixes.

    Attributes:
        name: Its name.
        title: A line about it.
        revision: 12 hex of the sha256 of its content: another formatting, title, licence or notes
            give the same one; anything else, and other bytes of its own images, another.
        subjects: Id -> subject, in the order of the file.
        styles: Id -> style, in the order of the file.
        cases: Split -> pairs, of the splits that have any; subjects vary slowest.
        models: What it is run and scored with.
        generation: How images are generated.
        method_options: Method -> options that the suite supplies.
        training: "subject_lora", "style_lora", "joint_lora" and "hypernetwork" -> options of their
            training.
        adapters: Folder of the suite's own ``CONCEPT.safetensors``; None: the user gives one.
        source: The file it was read from.
        licence: On what terms it may be used.
        notes: What else a user should know.
        supersedes: Name of the suite it replaces, or "".
    """

    name: str
    title: str
    revision: str
    subjects: Mapping[str, Concept]
    styles: Mapping[str, Concept]
    cases: Mapping[str, tuple[Case, ...]]
    models: Models
    generation: Generation
    method_options: Mapping[str, Mapping[str, object]]
    training: Mapping[str, Mapping[str, object]]
    adapters: Path | None
    source: Path
    licence: str = ""
    notes: str = ""
    supersedes: str = ""

    @property
    def concepts(self) -> dict[str, Concept]:
        """Id -> concept: subjects, then styles."""
        return {**self.subjects, **self.styles}
