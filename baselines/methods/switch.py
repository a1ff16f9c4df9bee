"""LoRA Switch (Zhong et al. 2024, arXiv 2402.16843, "Multi-LoRA Composition"): take turns.

One LoRA is active at a time, in all layers; every tau steps it is the other's turn. At step t,
counted from 1, LoRA number floor(((t - 1) mod (k tau)) / tau) + 1 of k speaks. The subject begins,
as the paper puts characters first. Both enter with weight 1 (the paper's scripts: 0.8).
"""

from collections.abc import Sequence
from typing import Literal

from baselines.adapter import AdapterError, LoraAdapter
from baselines.pair import subject_and_style
from baselines.policy import LayerWeights
from baselines.registry import policy_method


@policy_method("switch", paper="https://arxiv.org/abs/2402.16843")
def switch(
    adapters: Sequence[LoraAdapter],
    *,
    tau: int = 5,
    first: Literal["subject", "style"] = "subject",
    w_subject: float = 1.0,
    w_style: float = 1.0,
) -> LayerWeights:
    """Let the LoRAs speak in turns of ``tau`` denoising steps.

    Args:
        adapters: The subject's and the style's.
        tau: Steps of a turn, at least 1.
        first: Whose turn the first is.
        w_subject: Weight of the subject's updates in its turns.
        w_style: Weight of the style's.

    Raises:
        AdapterError: If there are not two adapters, or ``tau`` is below 1.
    """
    subject_and_style("switch", adapters)
    if tau < 1:
        raise AdapterError(f"switch: tau is {tau}: a turn has at least 1 step")
    turns = [(w_subject, 0.0), (0.0, w_style)]
    if first == "style":
        turns.reverse()

    def weights(_layer: str, step: int, _total_steps: int) -> tuple[float, float]:
        return turns[step // tau % 2]

    return weights
