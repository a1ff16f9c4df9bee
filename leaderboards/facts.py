"""What a suite demands of its entries; told by whoever knows the suites (`mars2.leaderboard`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from leaderboards.entry import Judge


@dataclass(frozen=True)
class CaseFacts:
    """A pair of the suite."""

    id: str
    subject: str
    style: str
    prompt: str


@dataclass(frozen=True)
class SuiteFacts:
    """A suite as an entry must have it.

    Attributes:
        name: Its name.
        title: A line about it.
        revision: 12 hex of its content.
        split: The split that entries are made on.
        cases: Its pairs, in order.
        seeds: Of each pair.
        base: Base model.
        resolution: Pixels a side.
        steps: Denoising steps.
        guidance_scale: Of classifier-free guidance.
        negative_prompt: What guidance leads away from.
        judge: Model of its judge, ``MODEL@REVISION``, or ``MODEL`` of any revision.
        layout: How its judge sees two images; "" where there is one way only.
        prompts: Form and digest of the questions.
        adapters: Digest of the adapters that it ships; "": entries bring their own.
        licence: On what terms it may be used.
        shown: Concept -> number of its references that the judge is shown.
        references: Concept -> a small WebP of each of its reference images, of those that may be
            shown.
        base_revision: 12 hex of the base model's files, if it is a folder; "": of any revision.
    """

    name: str
    title: str
    revision: str
    split: str
    cases: tuple[CaseFacts, ...]
    seeds: tuple[int, ...]
    base: str
    resolution: int
    steps: int
    guidance_scale: float
    negative_prompt: str
    judge: str
    layout: str
    prompts: str
    adapters: str = ""
    licence: str = ""
    shown: Mapping[str, int] = field(default_factory=dict)
    references: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    base_revision: str = ""

    def is_own(self, judge: Judge) -> bool:
        """Return whether a judge is the suite's: model, revision, layout and questions."""
        models = (judge.model, f"{judge.model}@{judge.revision}")
        wanted = (self.layout, self.prompts)
        return self.judge in models and (judge.layout, judge.prompts) == wanted
