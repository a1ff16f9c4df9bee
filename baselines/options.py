"""Options of a merge method, read off its signature, and their values, read from text."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

Scalar = str | int | float | bool | None

_PLAIN = (int, float, str, bool)
_ARTICLE = {int: "an int", float: "a finite float", str: "text", bool: "true or false"}


class PluginError(ValueError):
    """A plugin that cannot be used: a wrong signature or name, an unknown option, a bad value."""


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
        except ValueError as error:
            raise PluginError(
                f"option {self.name!r} of method {method!r} must be {self.expected}, got {value!r}"
            ) from error

    def _convert(self, value: Any) -> Scalar:
        text = isinstance(value, str)
        if self.optional and (value is None or (text and value.lower() == "none")):
            return None
        if self.type is None:
            for choice in self.choices:
                same = (
                    str(choice) == value
                    if text
                    else type(choice) is type(value) and (choice == value)
                )
                if same:
                    return choice
        elif self.type is bool:
            if isinstance(value, bool):
                return value
            if text and value.lower() in {"true", "false"}:
                return bool(value.lower() == "true")
        elif self.type is str:
            if text:
                return str(value)
        elif text or (isinstance(value, int | float) and not isinstance(value, bool)):
            if self.type is int and (text or isinstance(value, int)):
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
    code = function.__code__
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
            "**kwargs"
        )
    asked = {item.name for item in items if item.kind is item.KEYWORD_ONLY} & set(supplied)
    options = {
        item.name: _read_parameter(where, item)
        for item in items
        if item.kind is item.KEYWORD_ONLY and item.name not in asked
    }
    return options, frozenset(asked)


def _read_parameter(where: str, item: inspect.Parameter) -> Parameter:
    if item.name in {"rng", "seed", "task"}:
        raise PluginError(
            f"{where}: {item.name!r} cannot be an option: a layer method may ask for rng, other "
            "methods for seed, a fit method takes the task as its second argument"
        )
    if item.default is item.empty or item.annotation is item.empty:
        raise PluginError(f"{where}: option {item.name!r} needs an annotation and a default")
    annotation, optional = item.annotation, False
    if get_origin(annotation) in (Union, UnionType):
        rest = [part for part in get_args(annotation) if part is not NoneType]
        if len(rest) == 1:
            annotation, optional = rest[0], True
    kind, choices = None, ()
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if None in choices:
            choices, optional = tuple(c for c in choices if c is not None), True
    elif annotation in _PLAIN:
        kind = annotation
    if not choices and kind is None:
        raise PluginError(
            f"{where}: option {item.name!r} is annotated {item.annotation!r}: use int, float, str, "
            "bool, Literal[...], or one of these | None"
        )
    parameter = Parameter(item.name, kind, choices, optional, item.default)
    if isinstance(item.default, str) and kind not in (None, str):
        raise PluginError(f"{where}: the default of {item.name!r} must be {parameter.expected}")
    try:
        default = parameter.parse(item.default, "")
    except PluginError as error:
        raise PluginError(
            f"{where}: the default of {item.name!r} is {item.default!r}, but it must be "
            f"{parameter.expected}"
        ) from error
    return Parameter(item.name, kind, choices, optional, default)
