"""Controls, which merge nothing: what scores come from the prompt, or from one adapter, alone."""

from collections.abc import Sequence

from baselines.adapter import AdapterError, LoraAdapter
from baselines.registry import adapter_method


@adapter_method("base")
def base(adapters: Sequence[LoraAdapter]) -> LoraAdapter:
    """Leave the base model as it is: an adapter without layers."""
    del adapters
    return LoraAdapter({})


@adapter_method("subject_only")
def subject_only(adapters: Sequence[LoraAdapter]) -> LoraAdapter:
    """Take the subject's adapter alone: the first."""
    return adapters[0]


@adapter_method("style_only")
def style_only(adapters: Sequence[LoraAdapter]) -> LoraAdapter:
    """Take the style's adapter alone: the second.

    Raises:
        AdapterError: If there is none.
    """
    if len(adapters) < 2:
        raise AdapterError("style_only takes the second adapter, but there is only one")
    return adapters[1]
