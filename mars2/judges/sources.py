"""Finds a model's files: in a folder, or on the Hugging Face hub (downloaded once, then cached)."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mars2.judges.errors import JudgeError

MODEL_FILES = ("*.json", "*/config.json", "*.safetensors", "merges.txt")
"""What a model is made of, a vision tower's config in a folder of its own included; all else in a
folder changes nothing."""


@dataclass(frozen=True)
class ModelSource:
    """Files of a model.

    Attributes:
        folder: Where they lie.
        name: Hub id, or the folder's name.
        revision: 12 hex: of the commit on the hub, or of the sha256 over a folder's files.
        from_hub: Whether they were fetched by hub id.
    """

    folder: Path
    name: str
    revision: str
    from_hub: bool = False

    @property
    def id(self) -> str:
        """Name and revision."""
        return f"{self.name}@{self.revision}"


def find_model(source: str, files: Sequence[str] = MODEL_FILES) -> ModelSource:
    """Return the files of ``FOLDER``, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.

    Args:
        source: A folder goes before a hub id of the same name.
        files: Patterns of the files that belong to the model.

    Raises:
        JudgeError: There is no such folder, and the hub does not give it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        return ModelSource(folder, folder.name, folder_revision(folder, files))
    name, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise JudgeError(f"model {source!r} is neither a folder nor a hub id such as OWNER/NAME")
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(name, revision=revision or None, allow_patterns=list(files))
    except (OSError, ValueError) as error:
        raise JudgeError(
            f"model {source!r} is no folder here and cannot be had from the hub "
            f"({type(error).__name__}): give a folder, or run `hf download {name}` on a machine "
            "with network and HF_HUB_OFFLINE unset"
        ) from error
    return ModelSource(Path(snapshot), name, Path(snapshot).name[:12], from_hub=True)


def folder_revision(folder: Path, files: Sequence[str] = MODEL_FILES) -> str:
    """Return 12 hex of the sha256 over names and contents of a model's files."""
    whole = hashlib.sha256()
    for path in sorted({path for pattern in files for path in folder.glob(pattern)}):
        name = path.relative_to(folder).as_posix()
        whole.update(f"{name} {_digest_now(path)}\n".encode())
    return whole.hexdigest()[:12]


def file_revision(path: Path) -> str:
    """Return 12 hex of the sha256 of a file."""
    return _digest_now(path)[:12]


def _digest_now(path: Path) -> str:
    state = path.stat()
    return _digest(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _digest(path: Path, changed: int, size: int) -> str:
    """Return the sha256 of a file, read once as long as it does not change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def architectures_of(config: Mapping[str, Any]) -> list[str]:
    """Return the architectures that a model's config.json names."""
    named = config.get("architectures")
    return list(map(str, named)) if isinstance(named, list) else []


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Return the object in a model's JSON file.

    Raises:
        JudgeError: It is missing or no JSON object.
    """
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JudgeError(f"{folder / name} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise JudgeError(f"{folder / name} holds a {type(data).__name__}, not an object")
    return data
