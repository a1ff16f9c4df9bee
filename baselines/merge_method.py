"""A registered merge method: a function with its options, called with adapters."""

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from baselines.adapter import (
    AdapterError,
    LoraAdapter,
    LowRankDelta,
    check_same_layers,
    make_deltas,
)
from baselines.merging_loss import PairTask
from baselines.options import Parameter, PluginError, nearest
from baselines.policy import Policy
from baselines.training import generator_for

Kind = Literal["layer", "adapter", "fit", "policy"]

_OWN = ("baselines", "lorarar", "mars2")
"""Packages whose errors are bugs of ours, and keep their traceback."""


def place(error: BaseException, file: str) -> str:
    """Return ``FILE:LINE`` where an error left a file; of a file that it did not pass, its name."""
    lines = [
        number
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == file
    ]
    return f"{file}:{lines[-1]}" if lines else file


@dataclass(frozen=True)
class MergeMethod:
    """A registered merge method; call it with adapters, for the benchmark ``[subject, style]``."""

    name: str
    """What it is registered under."""
    paper: str | None
    """URL of the paper that describes the algorithm."""
    kind: Kind
    """"layer": layer by layer; "adapter": all layers at once; "fit": optimises for the pair;
    "policy": weighs the adapters anew at every denoising step, and gives no merged adapter."""
    parameters: Mapping[str, Parameter]
    """Its options, in the order of the signature."""
    source: str
    """The sha256 (64 hex) of the file it is defined in; "" if it is in none."""
    function: Callable[..., Any] = field(repr=False)
    """As decorated."""
    supplied: frozenset[str] = field(default=frozenset(), repr=False)
    """Which of ``rng`` and ``seed`` the function asks for."""

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def __call__(
        self,
        adapters: Sequence[LoraAdapter],
        *,
        seed: int = 0,
        task: PairTask | None = None,
        **options: Any,
    ) -> LoraAdapter:
        """Merge adapters, in their order; the result is float32 or float64.

        A layer method's merge of lazy adapters is lazy: a layer is merged when it is asked for.

        Args:
            adapters: At least one; a layer method needs the same layers in all of them.
            seed: Of methods that draw random numbers. A layer method gets a generator for each
                layer, from the seed and the layer's name, so that their order does not matter.
            task: What a "fit" method optimises on; other methods do not see it.
            **options: As ``resolve`` takes them.

        Raises:
            PluginError: For wrong options, a missing task, a policy, or a method that returns
                something else than a merge.
            AdapterError: If the adapters do not fit together.
        """
        if self.kind == "policy":
            raise PluginError(
                f"method {self.name!r} weighs the adapters anew at every denoising step: it has no "
                "merged adapter; ask for its policy"
            )
        resolved, inputs = self._inputs(adapters, options)
        if self.kind == "layer":
            merged = self._merge_layers(inputs, seed, resolved)
        else:
            given: list[Any] = [inputs]
            if self.kind == "fit":
                if task is None:
                    raise PluginError(
                        f"method {self.name!r} optimises for a pair: it needs the base model and "
                        "reference images (a task)"
                    )
                given.append(task)
            supplied = {"seed": seed} if "seed" in self.supplied else {}
            merged = self._call(*given, **supplied, **resolved)
            if not isinstance(merged, LoraAdapter):
                raise PluginError(
                    f"method {self.name!r} returned a {type(merged).__name__}, not a LoraAdapter"
                )
        merged = merged.full_precision()
        origin = {
            "method": self.name,
            "method_options": ",".join(f"{key}={value}" for key, value in resolved.items()),
            "merged_from": ", ".join(adapter.name for adapter in adapters),
        }
        return replace(
            merged, name=merged.name or self.name, metadata={**merged.metadata, **origin}
        )

    def policy(self, adapters: Sequence[LoraAdapter], *, seed: int = 0, **options: Any) -> Policy:
        """The policy of a "policy" method for these adapters, in their order.

        Raises:
            PluginError: For wrong options, a method of another kind, or one that returns something
                else than functions (layer, step, total_steps) -> weights.
            AdapterError: If the adapters do not fit together.
        """
        if self.kind != "policy":
            raise PluginError(f"method {self.name!r} merges adapters: it is no policy")
        resolved, inputs = self._inputs(adapters, options)
        supplied = {"seed": seed} if "seed" in self.supplied else {}
        made = self._call(inputs, **supplied, **resolved)
        passes = tuple(made) if isinstance(made, list | tuple) else (made,)
        return Policy(tuple(inputs), passes, self.name)

    def _inputs(
        self, adapters: Sequence[LoraAdapter], options: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[LoraAdapter]]:
        """All options, and the adapters as the function gets them."""
        resolved = self.resolve(options)
        if not adapters:
            raise PluginError(f"method {self.name!r} was given no adapter to merge")
        return resolved, [adapter.full_precision() for adapter in adapters]

    def _call(self, *given: Any, **options: Any) -> Any:
        """Call the function; what goes wrong in someone else's is told in one line.

        Raises:
            PluginError: With place and reason. Our own methods' errors stay as they are.
        """
        try:
            return self.function(*given, **options)
        except (AdapterError, PluginError):
            raise
        except Exception as error:
            code = inspect.unwrap(self.function).__code__
            if self.function.__module__.partition(".")[0] in _OWN:
                raise
            raise PluginError(
                f"method {self.name!r} failed at {place(error, code.co_filename)}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _merge_layers(
        self, adapters: Sequence[LoraAdapter], seed: int, options: Mapping[str, Any]
    ) -> LoraAdapter:
        check_same_layers(adapters)
        shapes = adapters[0].shapes()

        def merge(layer: str) -> LowRankDelta:
            supplied = {"rng": generator_for(seed, layer)} if "rng" in self.supplied else {}
            deltas = [adapter.deltas[layer] for adapter in adapters]
            delta = self._call(deltas, **supplied, **options)
            if not isinstance(delta, LowRankDelta) or delta.shape != shapes[layer]:
                what = f"shape {delta.shape}" if isinstance(delta, LowRankDelta) else type(delta)
                raise PluginError(
                    f"method {self.name!r} returned {what} for layer {layer!r}, not a LowRankDelta "
                    f"of shape {shapes[layer]}"
                )
            return delta

        return LoraAdapter(make_deltas(shapes, merge, source=adapters))

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options with the values to be used: those given, parsed and checked, and defaults.

        Text is read by the option's annotation, as from a command line.

        Raises:
            PluginError: For an unknown option, naming the nearest, or a value of the wrong type.
        """
        given = self.parse(options)
        return {name: given.get(name, option.default) for name, option in self.parameters.items()}

    def parse(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """As ``resolve``, but only the options given, in their order."""
        for name in options:
            if name not in self.parameters:
                raise PluginError(
                    f"method {self.name!r} has no option {name!r}; {nearest(name, self.parameters)}"
                )
        return {
            name: self.parameters[name].parse(value, self.name) for name, value in options.items()
        }
