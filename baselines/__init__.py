"""Merge methods for low-rank adapters: a subject's and a style's LoRA made one.

Importing the package registers the built-in methods. It needs torch but not diffusers; what trains
or generates is imported by its own name: `baselines.denoiser`, `baselines.dreambooth`.
"""

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta, check_same_layers
from baselines.checks import check_merge_method, check_policy
from baselines.formats import load_adapter, save_adapter
from baselines.merging_loss import PairTask
from baselines.methods import (  # noqa: F401  # they register
    average,
    b_lora_filter,
    breadcrumbs,
    composite,
    controls,
    core_space,
    dare,
    dare_factors,
    dare_ties,
    dare_ties_factors,
    della,
    direct_sum,
    est_lora,
    iso_c,
    joint_training,
    k_lora,
    knots,
    lora_soups,
    magnitude,
    magnitude_factors,
    np_lora,
    svd_merge,
    switch,
    ties,
    ties_factors,
    tsv_m,
    ziplora,
)
from baselines.options import Parameter, PluginError
from baselines.policy import LayerWeights, Policy
from baselines.registry import (
    METHODS,
    MergeMethod,
    Registry,
    adapter_method,
    fit_method,
    layer_method,
    parse_method,
    policy_method,
)

__all__ = [
    "METHODS",
    "AdapterError",
    "LayerWeights",
    "LoraAdapter",
    "LowRankDelta",
    "MergeMethod",
    "PairTask",
    "Parameter",
    "PluginError",
    "Policy",
    "Registry",
    "adapter_method",
    "check_merge_method",
    "check_policy",
    "check_same_layers",
    "fit_method",
    "layer_method",
    "load_adapter",
    "parse_method",
    "policy_method",
    "save_adapter",
]
