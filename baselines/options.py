"""Options of a merge method, read off its signature, and their values, read from text."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

Scalar = str | int | float | bool | None

_PLAIN = (int, float, str, bool)
_ARTICLE = {int: "an int", float: "a finite float", str: "text", bool: "true or false"}


class PluginError(ValueError):
    """A plugin that cannot be used: a wrong signature or name, an unknown option, a bad value."""


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one, and all there are.

    >>> nearest("stpes", ["steps", "lr"])
    "did you mean 'steps'? There are: steps, lr"
    """
    names = list(names)
    spellings = {one.lower(): one for one in names}
    near = get_close_matches(name.lower(), spellings, n=1)
    return (f"did you mean {spellings[near[0]]!r}? There are: " if near else "there are: ") + (
        ", ".join(names) or "none"
    )


@dataclass(frozen=True)
class Parameter:
    """One option of a method."""

    name: str
    """As in the signature."""
    type: type[int] | type[float] | type[str] | type[bool] | None
    """Of its values; None for an option with choices."""
    choices: tuple[Scalar, ...]
    """The values it may have; empty: all of ``type``."""
    optional: bool
    """Whether None is a value; "none" in text."""
    default: Scalar
    """Used when it is not passed."""

    @property
    def expected(self) -> str:
        """What it must be, in words.

        >>> Parameter("steps", int, (), optional=True, default=None).expected
        'an int or none'
        """
        if self.type is None:
            text = "one of " + ", ".join(str(choice) for choice in self.choices)
        else:
            text = _ARTICLE[self.type]
        return f"{text} or none" if self.optional else text

    def parse(self, value: Any, method: str) -> Scalar:
        """The value, read by the option's type if it is text.

        Raises:
            PluginError: If it is not of the type.
        """
        try:
            return self._convert(value)
        except (ValueError, OverflowError) as error:
            raise PluginError(
                f"option {self.name!r} of method {method!r} must be {self.expected}, got {value!r}"
            ) from error

    def _convert(self, value: Any) -> Scalar:
        text = value.strip() if isinstance(value, str) else None
        if self.optional and (value is None or (text is not None and text.lower() == "none")):
            return None
        if self.type is None:
            for choice in self.choices:
                if text == str(choice) or (type(choice) is type(value) and choice == value):
                    return choice
        elif self.type is str:
            if text is not None:
                return text
        elif self.type is bool:
            if isinstance(value, bool):
                return value
            if text is not None and text.lower() in {"true", "false"}:
                return text.lower() == "true"
        elif text is not None or (isinstance(value, int | float) and not isinstance(value, bool)):
            if self.type is int and (text is not None or isinstance(value, int)):
                return int(value)
            if self.type is float and math.isfinite(number := float(value)):
                return number
        raise ValueError(value)


def read_parameters(
    method: str, function: Callable[..., Any], *, positional: int, supplied: Sequence[str]
) -> tuple[dict[str, Parameter], frozenset[str]]:
    """The options of a function, and which of ``supplied`` it asks for.

    Args:
        method: Name of the method, for messages.
        function: What was decorated.
        positional: How many arguments it must take before the ``*``.
        supplied: Keyword arguments that are not options; they have no default.

    Raises:
        PluginError: For anything in the signature that is not understood, with file and line.
    """
    if not inspect.isfunction(function):
        raise PluginError(f"method {method!r} must be a function, not {function!r}")
    code = inspect.unwrap(function).__code__
    where = f"{code.co_filename}:{code.co_firstlineno}: method {method!r}"
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError as error:
        raise PluginError(f"{where}: an annotation cannot be read: {error}") from error
    items = signature.parameters.values()
    before = [item.name for item in items if item.kind is not item.KEYWORD_ONLY]
    if len(before) != positional or any(
        item.kind in (item.VAR_POSITIONAL, item.VAR_KEYWORD) for item in items
    ):
        raise PluginError(
            f"{where} takes {', '.join(before) or 'nothing'} before its options: it must take "
            f"{positional} argument{'s'[: positional - 1]}, then * and options, no *args, no "
            f"**kwargs, such as def {function.__name__}("
            f"{'deltas' if positional == 1 else 'adapters, task'}, *, weight: float = 0.5)"
        )
    asked = {item.name for item in items if item.kind is item.KEYWORD_ONLY} & set(supplied)
    options = {
        item.name: _read_parameter(where, item)
        for item in items
        if item.kind is item.KEYWORD_ONLY and item.name not in asked
    }
    return options, frozenset(asked)


def _read_parameter(where: str, item: inspect.Parameter) -> Parameter:
    if item.name in {"rng", "seed", "task", "adapters", "method"}:
        raise PluginError(
            f"{where}: {item.name!r} cannot be an option: a layer method may ask for rng, other "
            "methods for seed; task, adapters and method are arguments of the call"
        )
    if item.default is item.empty or item.annotation is item.empty:
        raise PluginError(f"{where}: option {item.name!r} needs an annotation and a default")
    annotation, optional = item.annotation, False
    if get_origin(annotation) in (Union, UnionType):
        parts = [part for part in get_args(annotation) if part is not NoneType]
        if len(parts) == 1:
            annotation, optional = parts[0], True
    choices: tuple[Scalar, ...] = get_args(annotation) if get_origin(annotation) is Literal else ()
    kind = annotation if annotation in _PLAIN else None
    if not choices and kind is None:
        raise PluginError(
            f"{where}: option {item.name!r} is annotated {item.annotation!r}: use int, float, str, "
            "bool, Literal[...], or one of these | None"
        )
    parameter = Parameter(item.name, kind, choices, optional, item.default)
    try:
        default = parameter.parse(item.default, "")
        if isinstance(item.default, str) and not isinstance(default, str):
            raise PluginError("text is not read in a default")
    except PluginError as error:
        raise PluginError(
            f"{where}: the default of {item.name!r} is {item.default!r}, but it must be "
            f"{parameter.expected}"
        ) from error
    return Parameter(item.name, kind, choices, optional, default)
