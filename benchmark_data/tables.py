"""Reads TOML tables strictly: wrong types, missing and unknown keys are errors naming them."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmark_data.suite import SuiteError

T = TypeVar("T")

_KINDS: Mapping[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def read_toml(path: Path) -> "Table":
    """Return the top table of a file.

    Raises:
        SuiteError: The file cannot be read or is not TOML.
    """
    try:
        return Table(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise SuiteError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise SuiteError(f"{path} is not valid TOML: {error}") from error


def nearest(name: str, known: Sequence[str]) -> str:
    """Return "did you mean ...?" if a known name is near, else the known names."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


class Table:
    """A TOML table whose keys are taken one by one; `finish` refuses those that nobody took.

    Args:
        data: Its content.
        where: File and table, for errors.
    """

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where
        self._taken: list[str] = []

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return the value of a key; without a default it must be there.

        Raises:
            SuiteError: It is missing or of another type.
        """
        self._taken.append(key)
        if key not in self.data:
            if default is None:
                near = difflib.get_close_matches(key, self.data, n=1, cutoff=0.8)
                hint = f"; is {near[0]!r} a misspelling of it?" if near else ""
                raise SuiteError(f"{self.where}: {key}, {_KINDS[kind]}, is missing{hint}")
            return default
        return checked(self.data[key], kind, f"{self.where}: {key}")

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; without a default it must be there and have other than blanks.

        Raises:
            SuiteError: It is missing, empty or no text.
        """
        value = self.take(key, str, default)
        if default is None and not value.strip():
            raise SuiteError(f"{self.where}: {key} is empty")
        return value

    def table(self, key: str, *, optional: bool = False) -> "Table":
        """Return a table below this one.

        Raises:
            SuiteError: It is missing or no table.
        """
        return Table(self.take(key, dict, {} if optional else None), f"{self.where} [{key}]")

    def tables(self) -> dict[str, "Table"]:
        """Return all that is in this table, which must be tables, by their names.

        Raises:
            SuiteError: Something else is in it.
        """
        return {key: self.table(key) for key in self.data}

    def finish(self) -> None:
        """Refuse keys that were not taken.

        Raises:
            SuiteError: There is such a key.
        """
        for key in self.data:
            if key not in self._taken:
                raise SuiteError(f"{self.where}: unknown key {key!r}; {nearest(key, self._taken)}")


def checked(value: object, kind: type[T], where: str) -> T:
    """Return a value of a type; whole numbers count as numbers, true and false do not.

    Raises:
        SuiteError: It is of another type.
    """
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SuiteError(f"{where} is {value!r}; it must be {_KINDS[kind]}")
    return value
