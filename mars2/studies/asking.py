"""The ways to ask a judge about the same images, one thing changed at a time; and the asking."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from mars2.files import read_image
from mars2.job import RunError
from mars2.judge_check import Control
from mars2.judges import Judge, Question, Template, Verdict
from mars2.judges.cached import CachedJudge
from mars2.judges.prompts import TEMPLATES, Aspect, choose, load_templates
from mars2.references import References
from mars2.store import RunStore, Sample
from mars2.studies import runs

PARAPHRASES = Path(__file__).with_name("paraphrases.toml")
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
DRAWS = 3


@dataclass(frozen=True)
class Variant:
    """One way to ask.

    Attributes:
        family: What kind of change it is.
        name: Of the variant.
        templates: Wording of both questions.
        reference: Number of the reference that is shown.
        swapped: Whether the test image is shown first.
        change: What is done to the test image.
        wrong: Whether the reference is of another concept.
        judge: Name of another judge, or "".
        fresh: Whether kept answers must not be used.
        draw: Number of a draw from the usual chances of yes, for which nothing is asked; 0: none.
    """

    family: str
    name: str
    templates: Mapping[Aspect, Template]
    reference: int = 0
    swapped: bool = False
    change: Callable[[Image.Image], Image.Image] | None = None
    wrong: bool = False
    judge: str = ""
    fresh: bool = False
    draw: int = 0


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Return what makes of an image the same after JPEG of a quality."""

    def change(image: Image.Image) -> Image.Image:
        data = io.BytesIO()
        image.save(data, format="JPEG", quality=quality)
        return Image.open(data).convert("RGB")

    return change


def halved(image: Image.Image) -> Image.Image:
    """Return an image of half the size, brought back to its own."""
    small = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
    return small.resize(image.size, Image.Resampling.BICUBIC)


def plan_variants(others: Mapping[str, str] | None = None, *, forms: bool = True) -> list[Variant]:
    """Return the ways to ask: the first is the usual one.

    Args:
        others: Names of other judges that are asked the usual questions, and the family of each:
            "judge", or "dtype", "layout" or "temperature" if it is the same one in another.
        forms: Whether to ask for explanations and scores, which take many more tokens.
    """
    usual = choose(TEMPLATES)
    paraphrases = load_templates(PARAPHRASES)
    by_aspect = {a: [t for t in paraphrases.values() if t.aspect == a] for a in ASPECTS}
    variants = [
        Variant("usual", "usual", usual),
        Variant("repeat", "repeat", usual, fresh=True),
    ]
    for number, pair in enumerate(zip(*by_aspect.values(), strict=True), start=1):
        templates = dict(zip(by_aspect, pair, strict=True))
        variants.append(Variant("wording", f"wording {number}", templates))
    if forms:
        variants += [
            Variant("form", "explained", choose(TEMPLATES, "explained")),
            Variant("form", "score", choose(TEMPLATES, "score")),
        ]
    variants += [
        Variant("order", "order swapped", usual, swapped=True),
        Variant("reference", "second reference", usual, reference=1),
        Variant("picture", "JPEG 75", usual, change=jpeg(75)),
        Variant("picture", "JPEG 30", usual, change=jpeg(30)),
        Variant("picture", "half size", usual, change=halved),
        *(Variant("temperature", f"draw {k}", usual, draw=k) for k in range(1, DRAWS + 1)),
        Variant("wrong reference", "wrong reference", usual, wrong=True),
    ]
    others = others or {}
    variants += [
        Variant(family, name if family == "judge" else f"{family} {name}", usual, judge=name)
        for name, family in others.items()
    ]
    return variants


@dataclass(frozen=True)
class Plan:
    """What will be asked.

    Attributes:
        samples: Images, as many of each method.
        variants: Ways to ask about each.
        controls: Questions of known answer, asked in the usual way and in other wordings.
        crossed: Wordings that are asked with the second reference, too.
    """

    samples: tuple[Sample, ...]
    variants: tuple[Variant, ...]
    controls: tuple[Control, ...] = ()
    crossed: tuple[Variant, ...] = field(default=())

    @property
    def questions(self) -> int:
        """How many questions that is."""
        worded = sum(one.family in ("usual", "wording", "form") for one in self.variants)
        asked = sum(not one.draw for one in self.variants) + len(self.crossed)
        return len(ASPECTS) * len(self.samples) * asked + worded * len(self.controls)


def plan_study(
    store: RunStore,
    references: References,
    controls: Sequence[Control] = (),
    *,
    images: int = 200,
    others: Mapping[str, str] | None = None,
    forms: bool = True,
) -> Plan:
    """Return what will be asked about a run.

    Args:
        store: The run.
        references: Of its concepts.
        controls: Questions of known answer.
        images: Images in all, spread over methods and pairs.
        others: Names of other judges, and the family of each.
        forms: Whether to ask for explanations and scores.

    Raises:
        RunError: There are no images.
    """
    methods = runs.labels(store)
    each = max(1, images // max(1, len(methods)))
    there = [sample for sample in store.samples() if sample.path.is_file()]
    samples = [
        sample
        for method in methods
        for sample in runs.few([one for one in there if one.method == method], each)
    ]
    if not samples:
        raise RunError(f"{store.folder} has no images to ask about")
    variants = plan_variants(others, forms=forms)
    several = all(
        len(references.files[concept]) > 1
        for sample in samples
        for concept in (sample.subject, sample.style)
    )
    if any(len({getattr(sample, aspect) for sample in samples}) < 2 for aspect in ASPECTS):
        raise RunError(
            f"{store.folder} has images of one subject or one style only: none could be shown as a "
            "wrong reference; give a run of several, or more --images"
        )
    if not several:
        variants = [one for one in variants if one.family != "reference"]
    crossed = [
        replace(one, name=f"{one.name}, second reference", reference=1)
        for one in variants
        if several and one.family == "wording"
    ]
    return Plan(tuple(samples), tuple(variants), tuple(controls), tuple(crossed))


@dataclass
class Asker:
    """Puts the questions of a plan to judges, of which one is in memory at a time.

    Attributes:
        judges: What loads them, by name; the usual one's is "".
        references: Of the run's concepts.
        batch_size: Questions put to a judge together.
        progress: Called with the number of questions answered since the last call.
        ids: Of the judges that were asked, by name.
    """

    judges: Mapping[str, Callable[[], Judge]]
    references: References
    batch_size: int
    progress: Callable[[int], None] | None
    ids: dict[str, str] = field(default_factory=dict)
    _loaded: tuple[str, Judge] | None = None

    def about(self, samples: Sequence[Sample], variant: Variant, aspect: Aspect) -> list[Verdict]:
        """Return the verdicts about images, asked in one way."""
        judge = self._judge(variant.judge)
        if variant.fresh and isinstance(judge, CachedJudge):
            judge = judge.judge
        questions = [self._question(samples, sample, variant, aspect) for sample in samples]
        return self._ask(judge, questions)

    def _judge(self, name: str) -> Judge:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None  # gone before the next one comes
            self._loaded = (name, self.judges[name]())
            self.ids[name] = self._loaded[1].id
        return self._loaded[1]

    def _question(
        self, samples: Sequence[Sample], sample: Sample, variant: Variant, aspect: Aspect
    ) -> Question:
        concept = getattr(sample, aspect)
        if variant.wrong:
            others = list(dict.fromkeys(getattr(one, aspect) for one in samples))
            concept = others[(others.index(concept) + 1) % len(others)]
        reference = self.references.images(concept)[variant.reference]
        image = read_image(sample.path)
        image = variant.change(image) if variant.change else image
        first, second = (image, reference) if variant.swapped else (reference, image)
        style = self.references.phrases[concept] if aspect == "style" else ""
        return Question(aspect, first, second, style, variant.templates[aspect])

    def known(self, plan: Plan) -> dict[str, list[Verdict]]:
        """Return the verdicts on questions of known answer, by wording."""
        found = {}
        for variant in plan.variants:
            if variant.family in ("usual", "wording", "form") and plan.controls:
                questions = [
                    Question(
                        control.aspect, read_image(control.reference), read_image(control.test),
                        control.style, variant.templates[control.aspect],
                    )
                    for control in plan.controls
                ]  # fmt: skip
                found[variant.name] = self._ask(self._judge(""), questions)
        return found

    def _ask(self, judge: Judge, questions: Sequence[Question]) -> list[Verdict]:
        verdicts = []
        for start in range(0, len(questions), self.batch_size):
            batch = questions[start : start + self.batch_size]
            verdicts += judge.ask(batch)
            if self.progress is not None:
                self.progress(len(batch))
        return verdicts


def drawn(verdicts: Sequence[Verdict], rng: np.random.Generator) -> list[Verdict]:
    """Return what a judge might have said that draws yes or no by its chances, at temperature 1.

    Without a chance there is no answer. Tokens that are neither yes nor no are not drawn.
    """
    numbers = rng.random(len(verdicts))
    return [
        Verdict(None if one.p_yes is None else bool(number < one.p_yes), None, None, "drawn")
        for one, number in zip(verdicts, numbers, strict=True)
    ]
