"""EST-LoRA (arXiv 2508.02165, id not verified): K-LoRA's choice, by the energy of the updates.

    E = ||dW||_F^2,    subject if E_c >= gamma s(t) E_s,    s(t) = alpha t / T + beta

From the factors: no update is built. Deviations: the paper's style-discrepancy score, which takes
images, is left out, since a policy sees weights alone; gamma = sum E_c / sum E_s over all layers
takes its place (``balance=false``: 1). Written down without the paper at hand; t counts from 0. A
style that is zero leaves the subject alone.
"""

from collections.abc import Sequence

from baselines.adapter import LoraAdapter, check_same_layers
from baselines.importance import more_important, ratio
from baselines.pair import subject_and_style
from baselines.policy import LayerWeights
from baselines.registry import policy_method


@policy_method("est_lora", paper="https://arxiv.org/abs/2508.02165")
def est_lora(
    adapters: Sequence[LoraAdapter],
    *,
    alpha: float = 1.5,
    beta: float = 0.5,
    balance: bool = True,
) -> LayerWeights:
    """Let the LoRA of the larger energy speak alone, layer by layer, the style more with time.

    Args:
        adapters: The subject's and the style's, with the same layers.
        alpha: How much more the style counts at the last step than at the first.
        beta: What the style counts at the first step.
        balance: Whether the style's energies are scaled to the subject's total.

    Raises:
        AdapterError: If there are not two adapters, or their layers differ.
    """
    subject, style = subject_and_style("est_lora", adapters)
    check_same_layers([subject, style])
    energy = {
        layer: (float(delta.norm()) ** 2, float(style.deltas[layer].norm()) ** 2)
        for layer, delta in subject.deltas.items()
    }
    gamma = 1.0
    if balance:
        gamma = ratio(sum(pair[0] for pair in energy.values()), sum(p[1] for p in energy.values()))
    return more_important(energy, alpha=alpha, beta=beta, gamma=gamma)
