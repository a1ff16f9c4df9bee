"""Merge methods by name: the decorators that register them, and their options from signatures.

A method is a function. What stands after ``*`` in its signature, annotated and with a default, is
an option of the method everywhere; anything else is refused when the function is decorated.

    @layer_method("halves")
    def halves(deltas: Sequence[LowRankDelta], *, weight: float = 0.5) -> LowRankDelta:
        return weight * (deltas[0] + deltas[1])
"""

import hashlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Generic, TypeVar

from baselines.merge_method import Kind, MergeMethod, place
from baselines.options import Parameter, PluginError, nearest, read_parameters

__all__ = [
    "METHODS",
    "MergeMethod",
    "Parameter",
    "PluginError",
    "Registry",
    "adapter_method",
    "fit_method",
    "layer_method",
    "parse_method",
    "policy_method",
]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

ENTRY_POINTS = "mars2.merge_methods"
"""Entry-point group in which installed packages announce modules that register methods."""
_POSITIONAL: Mapping[Kind, int] = {"layer": 1, "adapter": 1, "fit": 2, "policy": 1}
_SUPPLIED: Mapping[Kind, tuple[str, ...]] = {
    "layer": ("rng",),
    "adapter": ("seed",),
    "fit": ("seed",),
    "policy": ("seed",),
}
_FILE_METHOD = re.compile(r"(?P<file>[^:=,]+\.py)(?::(?P<method>.*))?", re.DOTALL)


class Registry(Generic[T]):
    """Things by name, in the order of registration; a name is never given twice."""

    def __init__(self, kind: str, *, entry_points: str | None = None) -> None:
        """Make an empty registry.

        Args:
            kind: What it holds, in the singular, for messages: "method".
            entry_points: Group of entry points that is loaded when a name is not found, and before
                all names are listed.
        """
        self._kind = kind
        self._entry_points = entry_points
        self._loaded: set[str] = set()
        self._values: dict[str, T] = {}

    def register(self, name: str, value: T) -> None:
        """Add a thing.

        Raises:
            PluginError: If the name is taken or cannot be written on a command line.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
            raise PluginError(
                f"{name!r} cannot name a {self._kind}: use letters, digits and any of _ . + -"
            )
        if name in self._values:
            raise PluginError(f"there is a {self._kind} {name!r} already: choose another name")
        self._values[name] = value

    def unregister(self, name: str) -> None:
        """Remove a thing; a name that is not there is ignored."""
        self._values.pop(name, None)

    def get(self, name: str) -> T:
        """The thing of that name.

        Raises:
            PluginError: If there is none, naming the nearest; or if a plugin cannot be loaded.
        """
        if name not in self._values and self._entry_points is not None:
            self.load_entry_points(self._entry_points)
        if name not in self._values:
            raise PluginError(f"there is no {self._kind} {name!r}; {nearest(name, self._values)}")
        return self._values[name]

    def names(self) -> tuple[str, ...]:
        """All names in the order of registration, those of installed plugins last.

        Raises:
            PluginError: If a plugin cannot be loaded.
        """
        if self._entry_points is not None:
            self.load_entry_points(self._entry_points)
        return tuple(self._values)

    def load_entry_points(self, group: str) -> None:
        """Import the modules that installed packages announce in ``group``, once.

        Raises:
            PluginError: If one cannot be imported.
        """
        if group in self._loaded:
            return
        modules = {entry.value: entry for entry in importlib.metadata.entry_points(group=group)}
        for module in sorted(modules):
            try:
                modules[module].load()
            except (ImportError, PluginError) as error:
                raise PluginError(
                    f"plugin {module} (entry-point group {group}) cannot be loaded: {error}"
                ) from error
        self._loaded.add(group)


METHODS: Registry[MergeMethod] = Registry("method", entry_points=ENTRY_POINTS)
"""All merge methods; installed plugins are found when they are looked up."""


def layer_method(name: str, paper: str | None = None) -> Callable[[F], F]:
    """Register a function that merges one layer: ``f(deltas, *, options) -> LowRankDelta``.

    It may ask for ``rng: torch.Generator`` (on the CPU) after the ``*``.

    Raises:
        PluginError: If the name is taken or the signature has anything else.
    """
    return _decorator(name, paper, "layer")


def adapter_method(name: str, paper: str | None = None) -> Callable[[F], F]:
    """Register a function of all layers: ``f(adapters, *, options) -> LoraAdapter``.

    It may ask for ``seed: int`` after the ``*``.

    Raises:
        PluginError: If the name is taken or the signature has anything else.
    """
    return _decorator(name, paper, "adapter")


def fit_method(name: str, paper: str | None = None) -> Callable[[F], F]:
    """Register a function that optimises: ``f(adapters, task, *, options) -> LoraAdapter``.

    ``task`` is a ``PairTask``. It may ask for ``seed: int`` after the ``*``.

    Raises:
        PluginError: If the name is taken or the signature has anything else.
    """
    return _decorator(name, paper, "fit")


def policy_method(name: str, paper: str | None = None) -> Callable[[F], F]:
    """Register a function that weighs adapters step by step: ``f(adapters, *, options)``.

    It returns ``weights(layer, step, total_steps)``, which gives a number for each adapter, or a
    list of such functions: the UNet is run once with each, and its answer is the mean. What takes
    time belongs into ``f``, which is called once a pair. It may ask for ``seed: int``.

    Raises:
        PluginError: If the name is taken or the signature has anything else.
    """
    return _decorator(name, paper, "policy")


def _decorator(name: str, paper: str | None, kind: Kind) -> Callable[[F], F]:
    if not isinstance(name, str):
        raise PluginError(
            f"@{kind}_method stands without a name: write @{kind}_method({name.__name__!r})"
            if callable(name)
            else f"the name of a method is {name!r}; it must be text"
        )

    def register(function: F) -> F:
        parameters, supplied = read_parameters(
            name, function, positional=_POSITIONAL[kind], supplied=_SUPPLIED[kind]
        )
        path = Path(inspect.unwrap(function).__code__.co_filename)
        source = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        try:
            METHODS.register(
                name,
                MergeMethod(
                    name, paper, kind, MappingProxyType(parameters), source, function, supplied
                ),
            )
        except PluginError as error:
            raise PluginError(f"{path}: {error}") from error
        return function

    return register


def parse_method(text: str) -> tuple[MergeMethod, dict[str, Any]]:
    """A method and the options passed, from text; the options are parsed, none is filled in.

    ``NAME``, ``NAME:OPTION=VALUE,OPTION=VALUE``, or the same after a file: ``./mine.py:NAME``,
    whose methods are registered under their names.

    Raises:
        PluginError: For an unknown method or option, a wrong value, or a file that cannot be used.
    """
    rest = text
    match = _FILE_METHOD.fullmatch(text)
    if match:
        rest = match["method"] or ""
    name, _, option_text = rest.partition(":")
    method = _from_file(Path(match["file"]), name) if match else _known(name)
    options: dict[str, str] = {}
    for part in option_text.split(",") if option_text else []:
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise PluginError(
                f"method {text!r}: {part!r} is no option; write NAME:OPTION=VALUE,OPTION=VALUE"
            )
        if key in options:
            raise PluginError(f"method {text!r}: option {key!r} is given twice")
        options[key] = value.strip()
    return method, method.parse(options)


def _known(name: str) -> MergeMethod:
    try:
        return METHODS.get(name)
    except PluginError as error:
        if name and Path(f"{name}.py").is_file():
            raise PluginError(
                f"there is no method {name!r}; the one in {name}.py is written ./{name}.py:{name}"
            ) from error
        raise PluginError(
            f"{error}; one of your own is written FILE.py:{name or 'NAME'}"
        ) from error


_FILES: dict[Path, tuple[str, tuple[str, ...]]] = {}
"""User's file -> digest of what was loaded, and the methods it registered."""


def _from_file(path: Path, name: str) -> MergeMethod:
    """Load a user's file, unless its content is loaded already, and look a method up in it."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise PluginError(f"{path}: no such file")
    code = path.read_bytes()
    digest = hashlib.sha256(code).hexdigest()
    if _FILES.get(path, ("",))[0] != digest:
        _FILES[path] = (digest, _load_file(path, code, f"_merge_methods_{digest}"))
    registered = _FILES[path][1]
    if not name and registered:
        raise PluginError(f"{path}: say which of its methods: {path.name}:{registered[0]}")
    if not registered:
        raise PluginError(f"{path} has no method: register one, as by @layer_method({name!r})")
    if name not in registered:
        raise PluginError(f"{path} has no method {name!r}; {nearest(name, registered)}")
    return METHODS.get(name)


def _load_file(path: Path, code: bytes, module_name: str) -> tuple[str, ...]:
    """Run a file as a module; the methods it registers, which replace its older version's."""
    for old in _FILES.pop(path, ("", ()))[1]:
        METHODS.unregister(old)
    before = METHODS.names()
    module = ModuleType(module_name)
    module.__file__ = str(path)
    sys.modules[module_name] = module  # dataclasses and annotations look their module up
    complete = False
    try:
        # not importlib's loader: its bytecode cache misses an edit within a second
        exec(compile(code, path, "exec"), vars(module))
        complete = True
    except (ImportError, SyntaxError) as error:
        raise PluginError(f"{path} cannot be imported: {error}") from error
    except PluginError:
        raise
    except Exception as error:
        where = place(error, str(path))
        raise PluginError(f"{where} fails: {type(error).__name__}: {error}") from error
    finally:
        registered = tuple(name for name in METHODS.names() if name not in before)
        if not complete:
            del sys.modules[module_name]
            for name in registered:
                METHODS.unregister(name)
    return registered
