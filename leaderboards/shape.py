"""JSON of strangers into frozen dataclasses: every field checked, every problem told.

The types say what is allowed: ``Annotated[str, Text(...)]``, ``Annotated[float, Number(...)]``,
``Annotated[tuple[X, ...], Count(...)]``. `read` checks data against them and `json_schema` writes
them down as JSON Schema, so that the two cannot differ.
"""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

UNSAFE = "\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
"""What no string may hold: control characters, marks that turn the direction of what follows, and
characters that cannot be seen; as in a character class. Right-to-left letters are letters."""

T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """A string of at most `most` characters, which `pattern` matches as a whole, if given."""

    most: int
    pattern: str = ""
    least: int = 0


@dataclass(frozen=True)
class Number:
    """A finite number in ``[low, high]``."""

    low: float
    high: float


@dataclass(frozen=True)
class Count:
    """A list or an object of `least` to `most` items."""

    most: int
    least: int = 0


@dataclass(frozen=True)
class Problem:
    """Something wrong: in which file, at which field, what it should be and what it is."""

    file: str
    field: str
    expected: str
    found: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.field}" if self.field else self.file
        return f"{place}: expected {self.expected}; found {self.found}"


class EntryError(ValueError):
    """Entries that cannot be published as they are.

    Attributes:
        problems: All that is wrong with them.
    """

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems: tuple[Problem, ...] = () if isinstance(problems, str) else tuple(problems)
        super().__init__(
            problems if isinstance(problems, str) else "; ".join(map(str, self.problems))
        )


def shown(value: object, most: int = 80) -> str:
    r"""Return a value in short, with nothing in it that a terminal would obey.

    >>> shown(chr(27)), shown([1, 2])
    ("'\\x1b'", '[1, 2]')
    """
    text = ascii(value) if re.search(f"[{UNSAFE}]", str(value)) else repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def load_json(path: Path, *, most_bytes: int) -> dict[str, Any]:
    """Return the object in a JSON file, read strictly.

    Raises:
        EntryError: The file is missing, no plain file or too large, is not UTF-8 or no JSON,
            names a key twice, or holds NaN or an infinity.
    """
    name = str(path)
    if path.is_symlink() or not path.is_file():
        raise EntryError([Problem(name, "", "a plain file", "none, or a link")])
    size = path.stat().st_size
    if size > most_bytes:
        raise EntryError([Problem(name, "", f"at most {most_bytes} bytes", f"{size}")])
    try:
        data = json.loads(
            path.read_bytes().decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise EntryError([Problem(name, "", "JSON", shown(str(error)))]) from error
    if not isinstance(data, dict):
        raise EntryError([Problem(name, "", "an object", type(data).__name__)])
    return data


def read(cls: type[T], data: Mapping[str, Any], *, file: str) -> T:
    """Return a dataclass from parsed JSON.

    Raises:
        EntryError: Fields are unknown, missing, of another type or out of range: all are listed.
    """
    reader = _Reader(file)
    value = reader.read(cls, data, "")
    if reader.problems:
        raise EntryError(reader.problems)
    return typing.cast(T, value)


def as_json(value: Any) -> Any:
    """Return plain JSON data of a dataclass and all that is in it; floats to nine decimals."""
    if dataclasses.is_dataclass(value):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    return round(value, 9) if isinstance(value, float) else value


def json_schema(cls: type, *, id_: str, title: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a dataclass, its parts as ``$defs``."""
    definitions: dict[str, Any] = {}
    reference = _schema(cls, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": id_,
        "title": title,
        **reference,
        "$defs": dict(sorted(definitions.items())),
    }


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def fail(self, at: str, expected: str, found: object) -> None:
        self.problems.append(
            Problem(self.file, at, expected, found if isinstance(found, _Words) else shown(found))
        )

    def read(self, kind: Any, data: Any, at: str) -> Any:
        rule: Any = None
        if get_origin(kind) is Annotated:
            kind, rule, *_ = get_args(kind)
        origin = get_origin(kind)
        if dataclasses.is_dataclass(kind):
            return self._object(typing.cast(type, kind), data, at)
        if origin is Literal:
            if not any(data == one and type(data) is type(one) for one in get_args(kind)):
                self.fail(at, f"one of {', '.join(map(repr, get_args(kind)))}", data)
            return data
        if origin in (Union, types.UnionType):
            return self._union(get_args(kind), data, at)
        if origin is tuple:
            return self._list(get_args(kind)[0], rule, data, at)
        if origin is not None and issubclass(origin, Mapping):
            key, value = get_args(kind)
            return self._mapping(key, value, rule, data, at)
        return self._plain(kind, rule, data, at)

    def _object(self, cls: type, data: Any, at: str) -> Any:
        if not isinstance(data, dict):
            self.fail(at, "an object", data)
            return None
        hints = typing.get_type_hints(cls, include_extras=True)
        fields = {item.name: item for item in dataclasses.fields(cls)}
        for name in data.keys() - fields.keys():
            self.fail(_join(at, name), "no such field", data[name])
        values = {}
        for name, item in fields.items():
            if name in data:
                values[name] = self.read(hints[name], data[name], _join(at, name))
            elif item.default is dataclasses.MISSING:
                self.fail(_join(at, name), _describe(hints[name]), _Words("nothing"))
        return None if self.problems else cls(**values)

    def _union(self, kinds: Sequence[Any], data: Any, at: str) -> Any:
        if data is None and type(None) in kinds:
            return None
        others = [kind for kind in kinds if kind is not type(None)]
        if len(others) == 1:
            return self.read(others[0], data, at)
        for kind in others:
            attempt = _Reader(self.file)
            value = attempt.read(kind, data, at)
            if not attempt.problems:
                return value
        self.fail(at, " or ".join(_describe(kind) for kind in kinds), data)
        return None

    def _list(self, kind: Any, rule: Count, data: Any, at: str) -> Any:
        if not isinstance(data, list):
            self.fail(at, "a list", data)
            return ()
        if not rule.least <= len(data) <= rule.most:
            self.fail(at, f"{rule.least} to {rule.most} items", _Words(str(len(data))))
            return ()
        return tuple(self.read(kind, x, f"{at}[{i}]") for i, x in enumerate(data))

    def _mapping(self, key_kind: Any, kind: Any, rule: Count, data: Any, at: str) -> Any:
        if not isinstance(data, dict):
            self.fail(at, "an object", data)
            return {}
        if not rule.least <= len(data) <= rule.most:
            self.fail(at, f"{rule.least} to {rule.most} items", _Words(str(len(data))))
            return {}
        for key in data:
            self.read(key_kind, key, f"{at}: the key {shown(key)}")
        return {k: self.read(kind, x, _join(at, k)) for k, x in data.items()}

    def _plain(self, kind: Any, rule: Any, data: Any, at: str) -> Any:
        if kind is str:
            if not isinstance(data, str):
                self.fail(at, "a string", data)
            elif unsafe := re.search(f"[{UNSAFE}]", data):
                self.fail(at, "no control character", _Words(f"U+{ord(unsafe[0]):04X}"))
            elif not rule.least <= len(data) <= rule.most:
                limit = f"{rule.least} to {rule.most} characters"
                self.fail(at, limit, _Words(f"{len(data)}"))
            elif rule.pattern and not re.fullmatch(rule.pattern, data):
                self.fail(at, f"a string like {rule.pattern}", data)
        elif kind is bool or kind is type(None):
            if type(data) is not (bool if kind is bool else type(None)):
                self.fail(at, _describe(kind), data)
        elif isinstance(data, bool) or not isinstance(data, int if kind is int else int | float):
            self.fail(at, _describe(kind), data)
        elif not rule.low <= data <= rule.high:  # nor is NaN
            self.fail(at, f"a number from {rule.low:g} to {rule.high:g}", data)
        elif kind is float:
            return float(data)
        return data


class _Words(str):
    """What was found, in words already."""


def _join(at: str, name: str) -> str:
    name = name if re.fullmatch(r"[\w.@+-]{1,100}", name, re.ASCII) else shown(name)
    return f"{at}.{name}" if at else name


def _describe(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if kind is type(None):
        return "null"
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    if kind in names:
        return names[kind]
    return "an object" if dataclasses.is_dataclass(kind) else "a value"


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    rule: Any = None
    if get_origin(kind) is Annotated:
        kind, rule, *_ = get_args(kind)
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _object_schema(typing.cast(type, kind), definitions)
    if origin is Literal:
        return {"enum": list(get_args(kind))}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(one, definitions) for one in get_args(kind)]}
    if origin is tuple:
        items = _schema(get_args(kind)[0], definitions)
        return {"type": "array", "items": items, "minItems": rule.least, "maxItems": rule.most}
    if origin is not None and issubclass(origin, Mapping):
        key, value = get_args(kind)
        return {
            "type": "object",
            "propertyNames": _schema(key, definitions),
            "additionalProperties": _schema(value, definitions),
            "minProperties": rule.least,
            "maxProperties": rule.most,
        }
    if kind is str:
        pattern = f"^(?:{rule.pattern})$" if rule.pattern else f"^[^{_escaped(UNSAFE)}]*$"
        return {
            "type": "string",
            "minLength": rule.least,
            "maxLength": rule.most,
            "pattern": pattern,
        }
    if kind is bool:
        return {"type": "boolean"}
    if kind is type(None):
        return {"type": "null"}
    name = "integer" if kind is int else "number"
    return {"type": name, "minimum": rule.low, "maximum": rule.high}


def _object_schema(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}  # a place, for types that hold themselves
        hints = typing.get_type_hints(cls, include_extras=True)
        definitions[cls.__name__] = {
            "type": "object",
            "description": (cls.__doc__ or "").strip().partition("\n")[0],
            "properties": {
                item.name: _schema(hints[item.name], definitions)
                for item in dataclasses.fields(cls)
            },
            "required": [
                item.name for item in dataclasses.fields(cls) if item.default is dataclasses.MISSING
            ],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _escaped(text: str) -> str:
    return "".join(c if c == "-" else f"\\u{ord(c):04x}" for c in text)
