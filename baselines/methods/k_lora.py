"""K-LoRA (Ouyang et al. 2025, arXiv 2502.18461, id not verified): one LoRA a layer and step.

For every layer the sums of the k largest |entries| of both updates are compared, k = r_c r_s; the
style's sum is scaled up with time, so that the subject speaks early and the style late:

    S = sum of the k largest |dW|,    subject if S_c >= gamma s(t) S_s,    s(t) = alpha t / T + beta

gamma = sum |dW_c| / sum |dW_s| over all layers makes LoRAs of different strength comparable;
``balance=false`` sets it to 1. As the method section describes it, written down without the paper
at hand. Here t counts denoising steps from 0 (the first is s = beta). A style that is zero leaves
the subject alone.
"""

from collections.abc import Sequence

from torch import Tensor

from baselines.adapter import LoraAdapter, check_same_layers
from baselines.importance import more_important, ratio
from baselines.pair import subject_and_style
from baselines.policy import LayerWeights
from baselines.registry import policy_method


@policy_method("k_lora", paper="https://arxiv.org/abs/2502.18461")
def k_lora(
    adapters: Sequence[LoraAdapter],
    *,
    alpha: float = 1.5,
    beta: float = 0.5,
    balance: bool = True,
) -> LayerWeights:
    """Let the LoRA with the larger top-k sum speak alone, layer by layer, the style more with time.

    Args:
        adapters: The subject's and the style's, with the same layers.
        alpha: How much more the style counts at the last step than at the first.
        beta: What the style counts at the first step.
        balance: Whether the style's sums are scaled to the subject's total.

    Raises:
        AdapterError: If there are not two adapters, or their layers differ.
    """
    subject, style = subject_and_style("k_lora", adapters)
    check_same_layers([subject, style])
    importance = {}
    of_subject = of_style = 0.0
    for layer, delta in subject.deltas.items():  # two updates are built at a time
        other = style.deltas[layer]
        k = min(delta.rank * other.rank, delta.shape[0] * delta.shape[1])
        entries = delta.dense().abs().flatten(), other.dense().abs().flatten()
        importance[layer] = (_largest(entries[0], k), _largest(entries[1], k))
        of_subject += float(entries[0].sum())
        of_style += float(entries[1].sum())
    gamma = ratio(of_subject, of_style) if balance else 1.0
    return more_important(importance, alpha=alpha, beta=beta, gamma=gamma)


def _largest(entries: Tensor, k: int) -> float:
    return float(entries.topk(k).values.sum())
