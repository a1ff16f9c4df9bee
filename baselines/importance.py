"""Choosing one adapter a layer and step by importance, the style's growing with time.

    subject if S_c >= gamma s(t) S_s, else style,    s(t) = alpha t / T + beta

with S_c and S_s the importance of a layer's updates, t the step, counted from 0, and T the number
of steps. What the importance is makes the method.
"""

from collections.abc import Mapping

from baselines.policy import LayerWeights

SUBJECT, STYLE = (1.0, 0.0), (0.0, 1.0)


def more_important(
    importance: Mapping[str, tuple[float, float]], *, alpha: float, beta: float, gamma: float
) -> LayerWeights:
    """The policy that lets the more important update of a layer speak alone.

    Args:
        importance: Layer -> S_c and S_s, not negative.
        alpha: How much more the style counts at the end than at the start.
        beta: What the style counts at the start.
        gamma: What the style counts all the time.
    """

    def weights(layer: str, step: int, total_steps: int) -> tuple[float, float]:
        of_subject, of_style = importance[layer]
        scale = gamma * (alpha * step / total_steps + beta)
        return SUBJECT if of_subject >= scale * of_style else STYLE

    return weights


def ratio(of_subject: float, of_style: float) -> float:
    """How many times larger the subject's total is; 1 where either is 0."""
    return of_subject / of_style if of_subject and of_style else 1.0
