"""LoRA Composite (Zhong et al. 2024, arXiv 2402.16843, "Multi-LoRA Composition"): mean guidance.

At every step each LoRA gives its own guided noise, alone in the UNet, and the mean is taken:

    eps = 1/k sum_i [eps_i(z) + s (eps_i(z, prompt) - eps_i(z))]

Guidance is linear in both terms, so this is the guidance of the UNet's mean answers, which is how
it is computed: k runs of the UNet a step, which take k times as long. (Guidance rescaling, which is
not linear, is not used here.) Both enter with weight 1 (the paper's scripts: 0.8).
"""

from collections.abc import Sequence

from baselines.adapter import LoraAdapter
from baselines.pair import subject_and_style
from baselines.policy import LayerWeights
from baselines.registry import policy_method


@policy_method("composite", paper="https://arxiv.org/abs/2402.16843")
def composite(
    adapters: Sequence[LoraAdapter], *, w_subject: float = 1.0, w_style: float = 1.0
) -> list[LayerWeights]:
    """Average the guidance of the two LoRAs, each alone in the UNet, at every step.

    Args:
        adapters: The subject's and the style's.
        w_subject: Weight of the subject's updates in its run.
        w_style: Weight of the style's.

    Raises:
        AdapterError: If there are not two adapters.
    """
    subject_and_style("composite", adapters)
    return [_always((w_subject, 0.0)), _always((0.0, w_style))]


def _always(fixed: tuple[float, float]) -> LayerWeights:
    def weights(_layer: str, _step: int, _total_steps: int) -> tuple[float, float]:
        return fixed

    return weights
