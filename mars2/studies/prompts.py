"""Does the judge's answer hang on the wording, the order or the picture's quality?

The same images are asked about again and again, each time with one thing changed. Two baselines say
how to read the rest: identical repeats (what the judge changes for no reason) and a reference of
something else (what it must change). A judge that always says yes is perfectly robust.
"""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mars2.files import read_image
from mars2.job import RunError
from mars2.judge_check import Control
from mars2.judges import Judge, Question, Template, Verdict
from mars2.judges.prompts import TEMPLATES, Aspect, choose, load_templates
from mars2.references import References
from mars2.report.plots import COLORS
from mars2.stats import Estimate
from mars2.store import RunStore, Sample
from mars2.studies import raters, runs
from mars2.studies.agreement import concordance
from mars2.studies.association import Floats, by_rows
from mars2.studies.result import STYLE, Result, Sheet, Value, estimate, p_value, spoken
from mars2.studies.variance import components, dependability

PARAPHRASES = Path(__file__).with_name("paraphrases.toml")
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
BASELINES = ("repeat", "wrong reference")
ENOUGH = 0.8
COMPONENT_RESAMPLES = 200


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


def plan_variants(others: Sequence[str] = (), *, forms: bool = True) -> list[Variant]:
    """Return the ways to ask: the first is the usual one.

    Args:
        others: Names of other judges that are asked the usual questions.
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
        Variant("wrong reference", "wrong reference", usual, wrong=True),
    ]
    variants += [Variant("judge", name, usual, judge=name) for name in others]
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
        asked = len(self.variants) + len(self.crossed)
        return len(ASPECTS) * len(self.samples) * asked + worded * len(self.controls)


def plan_study(
    store: RunStore,
    references: References,
    controls: Sequence[Control] = (),
    *,
    images: int = 200,
    others: Sequence[str] = (),
    forms: bool = True,
) -> Plan:
    """Return what will be asked about a run.

    Args:
        store: The run.
        references: Of its concepts.
        controls: Questions of known answer.
        images: Images in all, spread over methods and pairs.
        others: Names of other judges.
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


Answers = Mapping[tuple[str, Aspect], Sequence[Verdict]]
"""Variant and aspect -> a verdict an image."""


def study_prompts(
    store: RunStore,
    plan: Plan,
    judge: Judge,
    references: References,
    *,
    fresh: Judge | None = None,
    others: Mapping[str, Judge] | None = None,
    batch_size: int = 64,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Return the study of a judge on a run's images.

    Args:
        store: The run.
        plan: What is asked.
        judge: Who is asked.
        references: Of the run's concepts.
        fresh: The same judge without kept answers, for repeats; None: `judge` keeps none.
        others: Other judges by name.
        batch_size: Questions put to a judge together.
        resamples: Bootstrap samples of pairs.
        seed: Of the resampling.
        progress: Called with the number of questions answered since the last call.

    Raises:
        JudgeError: A judge fails.
    """
    asker = _Asker(judge, fresh or judge, others or {}, references, batch_size, progress)
    answers: dict[tuple[str, Aspect], list[Verdict]] = {}
    for variant in (*plan.variants, *plan.crossed):
        for aspect in ASPECTS:
            answers[variant.name, aspect] = asker.about(plan.samples, variant, aspect)
    truths = asker.known(plan)
    clusters = runs.Clusters.draw(
        [sample.case for sample in plan.samples], resamples=resamples, seed=seed
    )
    variants = _variants(plan, answers, clusters)
    families = _families(plan, answers, clusters)
    rankings = _rankings(plan, answers)
    sources, decisions = _components(plan, answers, clusters, seed)
    truth = _truth(plan, truths, seed)
    sheets = (families, variants, rankings, sources, decisions, truth)
    return Result(
        "prompts", "Does the judge's answer hang on how it is asked?",
        _text(plan, judge, families, variants, rankings, decisions, truth), sheets,
        {"prompts": _figure(plan, variants, answers)},
        {"run": str(store.folder), "judge": judge.id, "images": len(plan.samples),
         "questions": plan.questions, "resamples": resamples, "seed": seed,
         "others": {name: one.id for name, one in (others or {}).items()}},
    )  # fmt: skip


@dataclass
class _Asker:
    judge: Judge
    fresh: Judge
    others: Mapping[str, Judge]
    references: References
    batch_size: int
    progress: Callable[[int], None] | None

    def about(self, samples: Sequence[Sample], variant: Variant, aspect: Aspect) -> list[Verdict]:
        """Return the verdicts about images, asked in one way."""
        asked = self.others[variant.judge] if variant.judge else self.judge
        questions = [self._question(samples, sample, variant, aspect) for sample in samples]
        return self._ask(self.fresh if variant.fresh else asked, questions)

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
                found[variant.name] = self._ask(self.judge, questions)
        return found

    def _ask(self, judge: Judge, questions: Sequence[Question]) -> list[Verdict]:
        verdicts = []
        for start in range(0, len(questions), self.batch_size):
            batch = questions[start : start + self.batch_size]
            verdicts += judge.ask(batch)
            if self.progress is not None:
                self.progress(len(batch))
        return verdicts


def _yes(verdicts: Sequence[Verdict]) -> list[float | None]:
    return [None if one.answer is None else float(one.answer) for one in verdicts]


def _gaps(one: Sequence[Verdict], other: Sequence[Verdict]) -> list[float | None]:
    """Return the differences of the chances of yes; of the answers, where no chance is given."""
    gaps: list[float | None] = []
    for a, b in zip(one, other, strict=True):
        if a.p_yes is not None and b.p_yes is not None:
            gaps.append(abs(a.p_yes - b.p_yes))
        elif a.answer is not None and b.answer is not None:
            gaps.append(float(a.answer != b.answer))
        else:
            gaps.append(None)
    return gaps


def _variants(plan: Plan, answers: Answers, clusters: runs.Clusters) -> Sheet:
    cases = [sample.case for sample in plan.samples]
    rows: list[tuple[Value, ...]] = []
    for aspect in ASPECTS:
        usual = answers["usual", aspect]
        base = _yes(usual)
        for variant in plan.variants:
            own = answers[variant.name, aspect]
            yes = _yes(own)
            flips = [
                None if a is None or b is None else float(a != b)
                for a, b in zip(base, yes, strict=True)
            ]
            shifts = [
                None if a is None or b is None else b - a for a, b in zip(base, yes, strict=True)
            ]
            n = sum(one is not None for one in flips)
            values = [
                clusters.estimate(clusters.mean(column, cases), n, len(own) - n)
                for column in (
                    [float(one is not None) for one in yes], flips, _gaps(usual, own), yes, shifts,
                )
            ]  # fmt: skip
            rows.append((f"{aspect}: {variant.name}", variant.family, *values, n))
    columns = ("variant", "family", "read", "flips", "gap", "yes", "shift", "n")
    return Sheet(
        "variants", "Each way to ask against the usual one", columns, rows, columns,
        ("read: share of answers that are yes or no; flips: share of images whose answer is "
         "another than the usual one; gap: mean absolute difference of the chance of yes (ProSA's "
         "PSS, against the usual way); shift: of the share of yes. Grouping: all images, one "
         "reference each; in brackets 95 % interval, bootstrap over pairs.",),
    )  # fmt: skip


def _of_family(plan: Plan, family: str) -> list[str]:
    return ["usual", *(one.name for one in plan.variants if one.family == family)]


def _family_names(plan: Plan) -> list[str]:
    return [f for f in dict.fromkeys(one.family for one in plan.variants) if f != "usual"]


def _shares(plan: Plan, verdicts: Sequence[Verdict]) -> Floats:
    """Return each method's share of yes, NaN if it has no answer."""
    methods = list(dict.fromkeys(sample.method for sample in plan.samples))
    found = []
    for method in methods:
        own = [
            yes
            for sample, yes in zip(plan.samples, _yes(verdicts), strict=True)
            if sample.method == method and yes is not None
        ]
        found.append(float(np.mean(own)) if own else np.nan)
    return np.array(found)


def _families(plan: Plan, answers: Answers, clusters: runs.Clusters) -> Sheet:
    cases = [sample.case for sample in plan.samples]
    owner = np.array([clusters.cases.index(case) for case in cases])
    methods = list(dict.fromkeys(sample.method for sample in plan.samples))
    rows: list[tuple[Value, ...]] = []
    for aspect in ASPECTS:
        for family in _family_names(plan):
            names = _of_family(plan, family)
            table = np.array(
                [
                    [np.nan if v is None else v for v in _yes(answers[name, aspect])]
                    for name in names
                ]
            ).T  # (images, variants)
            alpha = raters.krippendorff(table, owner, clusters.weights, "nominal")
            same: list[float | None] = [
                None if np.isnan(row).any() else float((row == row[0]).all()) for row in table
            ]
            pairs = [
                _gaps(answers[a, aspect], answers[b, aspect])
                for a, b in itertools.combinations(names, 2)
            ]
            gap = [
                float(np.mean(own)) if (own := [g for g in column if g is not None]) else None
                for column in zip(*pairs, strict=True)
            ]
            shares = np.stack([_shares(plan, answers[name, aspect]) for name in names])
            whole = shares[~np.isnan(shares).any(axis=1)]
            tops = [methods[int(np.argmax(row))] for row in whole]
            tau = [float(by_rows("kendall", row[None], whole[:1])[0]) for row in whole[1:]]
            lowest = min((t for t in tau if not np.isnan(t)), default=None)
            rows.append(
                (
                    f"{aspect}: {family}", len(names) - 1,
                    clusters.estimate(clusters.mean(same, cases), sum(s is not None for s in same)),
                    clusters.estimate(alpha, len(table)),
                    clusters.estimate(clusters.mean(gap, cases), len(table)),
                    concordance(whole) if len(whole) > 1 else None,
                    lowest, sum(top != tops[0] for top in tops[1:]), len(table),
                )
            )  # fmt: skip
    columns = (
        "family",
        "variants",
        "all alike",
        "alpha",
        "PSS",
        "W",
        "lowest tau",
        "other top",
        "n",
    )
    return Sheet(
        "families", "How robust the judge is, by what is changed", columns, rows, columns,
        ("all alike: share of images with one answer from the usual way and all variants of the "
         "family; alpha: Krippendorff's over them, nominal; PSS: mean absolute difference of the "
         "chance of yes over pairs of variants. W: Kendall's of the methods' rankings by share of "
         "yes; lowest tau: of a variant's ranking with the usual one; other top: variants with "
         "another method at the top. Read `all alike` with alpha: where nearly all answers are "
         "no, few differ and alpha is low for all that.",
         "repeat is the noise floor. wrong reference is no perturbation but what a judge must "
         "notice: the less alike, the better."),
    )  # fmt: skip


def _rankings(plan: Plan, answers: Answers) -> Sheet:
    methods = list(dict.fromkeys(sample.method for sample in plan.samples))
    rows: list[tuple[Value, ...]] = []
    for aspect in ASPECTS:
        for variant in plan.variants:
            shares = _shares(plan, answers[variant.name, aspect])
            order = np.argsort(-np.nan_to_num(shares, nan=-1), kind="stable")
            rows.append(
                (aspect, variant.name, *shares.tolist(), " > ".join(methods[k] for k in order))
            )
    return Sheet(
        "rankings", "Share of yes of each method, by how it is asked",
        ("aspect", "variant", *methods, "ranking"), rows,
    )  # fmt: skip


def _cells(plan: Plan, answers: Answers, aspect: Aspect) -> tuple[Floats, tuple[str, ...]]:
    """Return the chances of yes by image, wording [and reference], and the facets' names."""
    worded = [one.name for one in plan.variants if one.family in ("usual", "wording")]

    def values(name: str) -> list[float]:
        return [
            one.p_yes if one.p_yes is not None else np.nan if one.answer is None else one.answer
            for one in answers[name, aspect]
        ]

    first = np.array([values(name) for name in worded]).T  # (images, wordings)
    if not plan.crossed:
        return first, ("wording",)
    second = np.array(
        [
            values("second reference" if name == "usual" else f"{name}, second reference")
            for name in worded
        ]
    ).T
    return np.stack([first, second], axis=2), ("wording", "reference")


def _components(
    plan: Plan, answers: Answers, clusters: runs.Clusters, seed: int
) -> tuple[Sheet, Sheet]:
    rows: list[tuple[Value, ...]] = []
    decisions: list[tuple[Value, ...]] = []
    for aspect in ASPECTS:
        table, facets = _cells(plan, answers, aspect)
        whole = np.asarray(~np.isnan(table).any(axis=tuple(range(1, table.ndim))))
        table = table[whole]
        owner = np.array(
            [
                clusters.cases.index(s.case)
                for s, kept in zip(plan.samples, whole, strict=True)
                if kept
            ]
        )
        if len(table) < 2 or table.shape[1] < 2:
            continue
        rng = np.random.default_rng([seed, 1])
        tables = [table]
        for _ in range(COMPONENT_RESAMPLES):
            drawn = rng.integers(0, len(clusters.cases), len(clusters.cases))
            places = np.concatenate([np.flatnonzero(owner == case) for case in drawn])
            if len(places) > 1:
                tables.append(table[places])
        found = [components(one) for one in tables]
        names = ("image", *facets)
        total = np.array([max(sum(one.values()), 1e-300) for one in found])
        for effect in found[0]:
            label = " x ".join(names[axis] for axis in sorted(effect))
            label += ", error" if len(effect) == table.ndim else ""
            variance = np.array([one[effect] for one in found])
            n = len(table)
            rows.append(
                (f"{aspect}: {label}", estimate(variance, n, len(clusters.cases)),
                 estimate(variance / total, n, len(clusters.cases)), n)
            )  # fmt: skip
        for numbers in itertools.product(
            (1, 2, 3, 5, 8), *([(1, 2, 4)] if len(facets) > 1 else [])
        ):
            both = np.array(
                [[np.nan if v is None else v for v in dependability(one, numbers)] for one in found]
            )
            values = [estimate(both[:, k], len(table), len(clusters.cases)) for k in (0, 1)]
            filled = (*numbers, *([1] if len(facets) == 1 else []))
            decisions.append((aspect, *filled, *values, len(table)))
    sources = Sheet(
        "components", "Where differences of the chance of yes come from",
        ("source", "variance", "share", "images"), rows,
        ("source", "variance", "share", "images") if rows else (),
        ("Variance components of images crossed with wordings (and the first two references): the "
         "more is due to the image, the better. Below 0 is given as 0. In brackets: 95 % interval, "
         "bootstrap over pairs.",),
    )  # fmt: skip
    plans = Sheet(
        "decisions", "How many wordings and references a question should have",
        ("aspect", "wordings", "references", "generalizability", "phi", "images"), decisions,
        ("aspect", "wordings", "references", "generalizability", "phi", "images")
        if decisions
        else (),
        (f"For the mean over so many of each. phi {ENOUGH} is a usual demand; generalizability is "
         "about the order of images alone. Repeats of one wording add nothing to a judge that does "
         "not draw its answers.",),
    )  # fmt: skip
    return sources, plans


def _truth(plan: Plan, truths: Mapping[str, Sequence[Verdict]], seed: int) -> Sheet:
    """Return the share of right answers to known questions by wording, against the usual one."""
    rows: list[tuple[Value, ...]] = []
    for aspect in ASPECTS:
        own = [k for k, control in enumerate(plan.controls) if control.aspect == aspect]
        truth = [plan.controls[k].compared == "itself" for k in own]
        concepts = [plan.controls[k].concept for k in own]
        base: list[float] = []
        for name, verdicts in truths.items() if own else ():
            right = [float(verdicts[k].answer is t) for k, t in zip(own, truth, strict=True)]
            clusters = runs.Clusters.draw(concepts, resamples=1000, seed=seed)
            values: list[Estimate] = [
                clusters.estimate(clusters.mean(list(right), concepts), len(right))
            ]
            p: float | None = None
            if not base:
                base = right
            else:
                change = [a - b for a, b in zip(right, base, strict=True)]
                values.append(clusters.estimate(clusters.mean(list(change), concepts), len(own)))
                p = sign_test(np.array(change), seed)
            rows.append((f"{aspect}: {name}", *values, *([None] if len(values) == 1 else []), p,
                         len(own)))  # fmt: skip
    columns = ("wording", "right", "change", "p", "n")
    return Sheet(
        "truth", "Right answers to questions of known answer", columns, rows,
        columns if rows else (),
        ("Between references; an answer that is neither yes nor no counts as wrong. p: two-sided, "
         "by exchanging the two answers question by question. In brackets: 95 % interval, "
         "bootstrap over concepts.",),
        {"p": p_value},
    )  # fmt: skip


def sign_test(differences: Floats, seed: int = 0, permutations: int = 2000) -> float:
    """Return the two-sided p of a mean difference, by random signs."""
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (permutations, len(differences))) * 2 - 1
    drawn = np.abs((signs * differences).sum(axis=1))
    return float((1 + (drawn >= abs(differences.sum()) - 1e-9).sum()) / (permutations + 1))


def _number(value: Value) -> float:
    if isinstance(value, Estimate):
        value = value.value
    return float(value) if isinstance(value, int | float) else float("nan")


def _spoken(value: Value) -> str:
    return spoken(value) if isinstance(value, Estimate) else "-"


def _text(
    plan: Plan,
    judge: Judge,
    families: Sheet,
    variants: Sheet,
    rankings: Sheet,
    decisions: Sheet,
    truth: Sheet,
) -> str:
    sentences = [
        f"{judge.id.partition(' ')[0]} was asked {plan.questions} questions about "
        f"{len(plan.samples)} images."
    ]
    by_name = {str(row[0]): row for row in families.rows}
    for aspect in ASPECTS:
        own = [row for row in variants.rows if str(row[0]).startswith(f"{aspect}: ")]
        floor, wrong = (next(row for row in own if row[1] == family) for family in BASELINES)
        changed = [row for row in own if row[1] not in (*BASELINES, "usual")]
        worst = max(changed, key=lambda row: np.nan_to_num(_number(row[3]), nan=-1.0))
        unread = [str(row[0]).partition(": ")[2] for row in changed if _number(row[2]) < 0.9]
        wording = by_name[f"{aspect}: wording"]
        sentences.append(
            f"On the {aspect}, identical repeats flip {_number(floor[3]):.0%} of the answers, and "
            f"a wrong reference {_spoken(wrong[3])} of them (the usual share of yes is "
            f"{_number(own[0][5]):.2f}). Over {wording[1]} wordings all answers are alike in "
            f"{_spoken(wording[2])} of the images, alpha {_spoken(wording[3])}; what changes most "
            f"is {str(worst[0]).partition(': ')[2]} (flips {_spoken(worst[3])})."
        )
        if unread:
            sentences.append(
                f"Fewer than 90 % of the answers can be read for: {', '.join(unread)}."
            )
        tops = [
            str(row[0]).partition(": ")[2]
            for row in families.rows
            if str(row[0]).startswith(aspect) and row[7] and "wrong" not in str(row[0])
        ]
        sentences.append(
            f"Another method comes out on top under some change of: {', '.join(tops)}."
            if tops
            else "No change of how it is asked puts another method on top."
        )
        enough = [
            row for row in decisions.rows
            if row[0] == aspect and _number(row[4]) >= ENOUGH
        ]  # fmt: skip
        if enough:
            least = min(
                enough, key=lambda row: (_number(row[1]) * _number(row[2]), _number(row[1]))
            )
            sentences.append(
                f"Phi reaches {ENOUGH} with {least[1]} wording(s) and {least[2]} reference(s) "
                f"({_spoken(least[4])})."
            )
        elif decisions.rows:
            sentences.append(f"No number of wordings and references tried brings phi to {ENOUGH}.")
    harmed = [
        str(row[0]) for row in truth.rows
        if _number(row[3]) <= 0.05 and _number(row[2]) < 0
    ]  # fmt: skip
    if harmed:
        sentences.append(f"Known questions are answered worse, at 5 %, by: {', '.join(harmed)}.")
    limits = (
        "**What this cannot say.** Robust is not right: only the wrong reference and the known "
        "questions tell a judge that looks from one that does not. Wordings are ours, and a "
        "sample of nothing; a judge tuned on one wording, as the miniature's critic is, may well "
        "fail at all others, which says little of judges that were trained on many. One reference "
        "is shown a question, so flips here are of answers and not of majorities."
    )
    return " ".join(sentences) + "\n\n" + limits


def _figure(plan: Plan, variants: Sheet, answers: Answers) -> Figure:
    families = _family_names(plan)
    methods = list(dict.fromkeys(sample.method for sample in plan.samples))
    palette = {
        family: "#8a8a8a" if family in BASELINES
        else COLORS[[f for f in families if f not in BASELINES].index(family) % len(COLORS)]
        for family in families
    }  # fmt: skip
    with mpl.rc_context({**STYLE, "font.size": 9}):
        names = [one.name for one in plan.variants]
        figure = Figure(figsize=(11.5, 0.52 * len(names) + 1.6), layout="constrained")
        panels = figure.subplots(2, 2, width_ratios=(1, 1.25))
        for line, aspect in enumerate(ASPECTS):
            rows = [row for row in variants.rows if str(row[0]).startswith(f"{aspect}: ")][1:]
            left, right = panels[line]
            for k, row in enumerate(rows):
                value, color = row[3], palette[str(row[1])]
                if not isinstance(value, Estimate) or value.value is None:
                    continue
                left.barh(k, value.value, color=color, alpha=0.75)
                if value.low is not None and value.high is not None:
                    left.hlines(k, value.low, value.high, color="#222222", linewidth=1)
            left.set_yticks(range(len(rows)), [str(row[0]).partition(": ")[2] for row in rows])
            left.set_ylim(len(rows) - 0.5, -0.5)
            left.set_xlim(0, 1)
            left.set_xlabel("share of answers that flip" if line else "")
            left.set_title(f"{aspect}: against the usual way", fontweight="bold")
            table = np.stack([_shares(plan, answers[name, aspect]) for name in names])
            image = right.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=1)
            right.grid(visible=False)
            right.set_yticks(range(len(names)), names)
            right.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
            right.set_title(f"{aspect}: share of yes; dot: the top method", fontweight="bold")
            for k, row in enumerate(table):
                if not np.isnan(row).all() and np.nanmax(row) > np.nanmin(row):
                    right.plot(int(np.nanargmax(row)), k, "o", color="#d55e00", markersize=4)
            figure.colorbar(image, ax=right)
        return figure
