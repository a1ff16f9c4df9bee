"""NP-LoRA (arXiv 2511.11051, id not verified): the subject, kept out of what the style reads.

    dW = dW_style + dW_subject (I - mu / (1 + mu) Q Q^T)

Q (d_in, r_style) is an orthonormal basis of the rows of the style's update. mu = 0 is the direct
sum; the larger mu, the less of the subject is left in the style's row space, and it ends at a
projection onto the null space of the style's update. The paper takes Q from a QR decomposition of
A_style^T; here it comes from the update's SVD, which spans the same unless B_style has dependent
columns (so that a style that is zero leaves the subject alone). Exact, and of rank r_subject +
r_style.
"""

from collections.abc import Sequence

from baselines.adapter import AdapterError, LowRankDelta, significant
from baselines.pair import subject_and_style
from baselines.registry import layer_method


@layer_method("np_lora", paper="https://arxiv.org/abs/2511.11051")
def np_lora(
    deltas: Sequence[LowRankDelta],
    *,
    mu: float = 0.5,
    w_subject: float = 1.0,
    w_style: float = 1.0,
) -> LowRankDelta:
    """Add the updates, the subject's damped on the row space of the style's.

    Args:
        deltas: The subject's and the style's update.
        mu: How strongly, at least 0: a share of mu / (1 + mu) is taken out.
        w_subject: Weight of the subject's update.
        w_style: Weight of the style's.

    Raises:
        AdapterError: If there are not two updates or ``mu`` is negative.
    """
    subject, style = subject_and_style("np_lora", deltas)
    if mu < 0.0:
        raise AdapterError(f"np_lora: mu is {mu}: it must be at least 0; 0 is the direct sum")
    _, values, right = style.svd()
    exact = subject.full_precision()
    basis = right[: significant(values)].to(exact.down)  # (k, d_in): Q^T
    damped = exact.down - mu / (1.0 + mu) * (exact.down @ basis.T) @ basis
    return w_subject * LowRankDelta(exact.up, damped) + w_style * style
