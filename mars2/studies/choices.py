"""What people chose between two images: strengths of methods, metrics that choose alike, and sides.

Part of the study `humans`.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from mars2.stats import Estimate, cluster_mean
from mars2.studies import raters
from mars2.studies.association import best_epsilon, item_weights, settled
from mars2.studies.pairwise import bradley_terry
from mars2.studies.ratings import CHOICES, Choice, Image, Scored
from mars2.studies.result import Sheet, Value, estimate, spoken


def study_choices(
    choices: Sequence[Choice],
    scored: Sequence[Scored],
    *,
    lower: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[list[Sheet], str]:
    """Return the tables of the choices and what they say.

    Args:
        choices: Of all aspects.
        scored: All metrics; those about an aspect are compared with its choices.
        lower: Metrics of which less is better.
        resamples: Bootstrap samples of items.
        seed: Of the resampling.
    """
    counts: list[tuple[Value, ...]] = []
    strengths: list[tuple[Value, ...]] = []
    accuracies: list[tuple[Value, ...]] = []
    texts = []
    for aspect in sorted({choice.aspect for choice in choices}):
        own = [choice for choice in choices if choice.aspect == aspect]
        left = _left(own)
        counts += [(aspect, *row) for row in _counts(own, left)]
        found = _strengths(own, resamples, seed)
        strengths += [(aspect, *row) for row in found]
        people = _people(own)
        rows = [
            _accuracy(one, own, one.name in lower) for one in scored if one.aspect in ("", aspect)
        ]
        rows = [row for row in rows if row[1] is not None]
        accuracies += [(aspect, *row) for row in (*rows, ("one person", *people))]
        texts.append(_said(aspect, own, left, found, rows, people[0]))
    sheets = [
        Sheet(
            "choices", "What was chosen", ("aspect", "what", "value", "n"), counts,
            ("what", "aspect", "value", "n"),
            ("left: share of the choices for one of two that fell on the left image; 0.5 shows no "
             "preference for a side.",),
        ),
        Sheet(
            "strengths", "Strengths of the methods by people's choices (Bradley-Terry)",
            ("aspect", "method", "strength", "won", "comparisons"), strengths,
            ("method", "aspect", "strength", "won", "comparisons"),
            ("strength: the difference of two is the log odds that one is chosen over the other; "
             "their mean is 0. A tie, or that both are bad, is half a win for each. In brackets: "
             "95 % interval, bootstrap over items.",),
        ),
        Sheet(
            "choice_accuracy", "Metrics that choose as people do",
            ("aspect", "metric", "without_ties", "with_ties", "at_epsilon", "always_tie",
             "epsilon", "choices"), accuracies,
            ("metric", "aspect", "without_ties", "with_ties", "at_epsilon", "always_tie",
             "choices"),
            ("without_ties: share of choices for one of two that the metric shares; it gets half "
             "of those that it ties. with_ties: of all choices, ties among them; at_epsilon: where "
             "differences up to the best threshold, chosen on the same data, count as ties. one "
             "person: against another one's choice on the same two images. Grouping: single "
             "choices; bootstrap over items.",),
        ),
    ]  # fmt: skip
    return sheets, "\n\n".join(texts)


def _left(choices: Sequence[Choice]) -> Estimate:
    """Return the share of choices for one of two that fell on the left one."""
    known = [c for c in choices if c.left and c.choice in ("a", "b")]
    return cluster_mean(
        [float(c.left == (c.a if c.choice == "a" else c.b)) for c in known],
        [c.item for c in known],
    )


def _counts(choices: Sequence[Choice], left: Estimate) -> list[tuple[Value, ...]]:
    total = len(choices)
    rows: list[tuple[Value, ...]] = [
        (what, len({getattr(choice, what[:-1]) for choice in choices}), total)
        for what in ("items", "raters")
    ]
    names = dict(zip(CHOICES, ("for the first", "for the second", "ties", "both bad"), strict=True))
    for kind, words in names.items():
        number = sum(choice.choice == kind for choice in choices)
        rows.append((f"choices: {words}", number, total))
    rows.append(("left", left, left.n))
    comparisons = _comparisons(choices)
    table = np.full((len(comparisons), len({choice.rater for choice in choices})), np.nan)
    columns = {name: k for k, name in enumerate(sorted({choice.rater for choice in choices}))}
    items = sorted({choice.item for choice in choices})
    for row, votes in enumerate(comparisons.values()):
        for rater, code in votes:
            table[row, columns[rater]] = code
    owner = np.array([items.index(key[0]) for key in comparisons])
    weights = item_weights(len(items), 1000, np.random.default_rng(0))
    n = int(((~np.isnan(table)).sum(axis=1) > 1).sum())
    alpha = raters.krippendorff(table, owner, weights, "nominal")
    rows.append(("Krippendorff's alpha, nominal", estimate(alpha, n, len(items)), n))
    return rows


def _comparisons(
    choices: Sequence[Choice],
) -> dict[tuple[str, str, str, str], list[tuple[str, int]]]:
    """Return the votes on each two images, by item, first and second method and seed.

    A vote is 1 for the method that is first in the alphabet, -1 for the other, 0 for a tie and 2
    if both are bad.
    """
    found: dict[tuple[str, str, str, str], list[tuple[str, int]]] = {}
    for choice in choices:
        first, second = sorted((choice.a, choice.b))
        code = {"a": 1, "b": -1, "tie": 0, "both_bad": 2}[choice.choice]
        code = -code if choice.a != first and abs(code) == 1 else code
        found.setdefault((choice.item, first, second, choice.seed), []).append((choice.rater, code))
    return found


def _strengths(
    choices: Sequence[Choice], resamples: int, seed: int
) -> list[tuple[str, Estimate, Estimate, int]]:
    items = sorted({choice.item for choice in choices})
    methods = sorted({name for choice in choices for name in (choice.a, choice.b)})
    wins = np.zeros((len(items), len(methods), len(methods)))
    for choice in choices:
        a, b, item = methods.index(choice.a), methods.index(choice.b), items.index(choice.item)
        share = {"a": 1.0, "b": 0.0}.get(choice.choice, 0.5)
        wins[item, a, b] += share
        wins[item, b, a] += 1 - share
    weights = item_weights(len(items), resamples, np.random.default_rng(seed))
    drawn = np.tensordot(weights, wins, axes=1)  # (rows, methods, methods)
    strengths = bradley_terry(drawn)
    games = drawn + drawn.transpose(0, 2, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        won = drawn.sum(axis=2) / games.sum(axis=2)
    rows: list[tuple[str, Estimate, Estimate, int]] = []
    for number, name in enumerate(methods):
        n = int(games[0, number].sum())
        strength = estimate(strengths[:, number], n, len(items))
        rows.append((name, strength, estimate(won[:, number], n, len(items)), n))
    return sorted(rows, key=lambda row: -(row[1].value or 0))


def _accuracy(scored: Scored, choices: Sequence[Choice], lower: bool) -> tuple[Value, ...]:
    """Return how often a metric chooses alike: without ties, with them, at the best epsilon."""
    differences, votes, items = [], [], []
    for choice in choices:
        values = [_score(scored, (choice.item, name, choice.seed)) for name in (choice.a, choice.b)]
        if values[0] is not None and values[1] is not None:
            difference = values[0] - values[1]
            differences.append(-difference if lower else difference)
            votes.append({"a": 1, "b": -1}.get(choice.choice, 0))
            items.append(choice.item)
    if not votes:
        return (scored.name, None)
    differences = settled(np.array(differences)).tolist()
    decided = [
        (0.5 if d == 0 else float(np.sign(d) == v), item)
        for d, v, item in zip(differences, votes, items, strict=True)
        if v
    ]
    # Each choice is a group of its own with two images, which best_epsilon calibrates over.
    first = np.stack([np.array(differences), np.zeros(len(votes))], axis=1).ravel()
    second = np.stack([np.array(votes, dtype=float), np.zeros(len(votes))], axis=1).ravel()
    epsilon, _ = best_epsilon(first, second, np.repeat(np.arange(len(votes)), 2))
    estimates = [
        cluster_mean(
            [
                float((0 if abs(d) <= threshold + 1e-12 else np.sign(d)) == v)
                for d, v in zip(differences, votes, strict=True)
            ],
            items,
        )
        for threshold in (0.0, epsilon)
    ]
    without = cluster_mean([value for value, _ in decided], [item for _, item in decided])
    ties = sum(vote == 0 for vote in votes) / len(votes)
    return (scored.name, without, *estimates, ties, epsilon, len(votes))


def _score(scored: Scored, image: Image) -> float | None:
    if image in scored.scores:
        return scored.scores[image]
    own = [value for key, value in scored.scores.items() if key[:2] == image[:2]]
    return own[0] if len(own) == 1 else None


def _people(choices: Sequence[Choice]) -> tuple[Value, ...]:
    """Return how often two people choose alike, without ties and with them."""
    decided: list[tuple[float, str]] = []
    everything: list[tuple[float, str]] = []
    for key, votes in _comparisons(choices).items():
        for (_, one), (_, other) in itertools.combinations(votes, 2):
            one, other = (0 if abs(code) == 2 else code for code in (one, other))
            everything.append((float(one == other), key[0]))
            if one and other:
                decided.append((float(one == other), key[0]))
    means = [
        cluster_mean([value for value, _ in pairs], [item for _, item in pairs])
        for pairs in (decided, everything)
    ]
    return (*means, None, None, None, len(everything))


def _said(
    aspect: str,
    choices: Sequence[Choice],
    left: Estimate,
    strengths: Sequence[tuple[str, Estimate, Estimate, int]],
    accuracies: Sequence[tuple[Value, ...]],
    person: Value,
) -> str:
    best = strengths[0]
    sentences = [
        f"**Choices, {aspect}.** Of {len(choices)} choices {best[0]} won "
        f"{spoken(best[2])}, the most by Bradley-Terry ({spoken(best[1])})."
    ]
    if left.low is not None and left.high is not None:
        fair = left.low <= 0.5 <= left.high
        sentences.append(
            f"{spoken(left)} of them fell on the left image: "
            + ("no preference for a side." if fair else "people preferred a side.")
        )
    rated = [(str(row[0]), row[1]) for row in accuracies if isinstance(row[1], Estimate)]
    if rated and isinstance(person, Estimate):
        top = max(rated, key=lambda row: row[1].value or 0)
        sentences.append(
            f"{top[0]} chooses as people do in {spoken(top[1])} of the choices for one of two; "
            f"another person in {spoken(person)}."
        )
    return " ".join(sentences)
