"""Downloads the reference images of a suite: verified, resumed, and with a word on what cannot be.

Images go to ``CACHE/references/SUITE/CONCEPT/FILE``; see `benchmark_data.references.cache_root`. The
first fetch writes their digests beside them, to ``digests.json``, and later ones hold them to it.
"""

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmark_data.references import check_image, file_digest, suite_cache
from benchmark_data.suite import Reference, Suite, SuiteError

OFFLINE_VARIABLES = ("MARS2_OFFLINE", "HF_HUB_OFFLINE")
MAX_BYTES = 100 * 2**20
"""No reference image is larger; a source that sends more is broken."""
AT_ONCE = 4
ATTEMPTS = 4
LONGEST_PAUSE = 60.0
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
HEADERS = {"User-Agent": "mars2-benchmark (reference images for research)", "Accept": "image/*"}


@dataclass(frozen=True)
class FetchReport:
    """What became of each image of a suite, in the suite's order.

    Attributes:
        fetched: Downloaded now.
        present: Were there, and are what they should be.
        manual: What has to be fetched by hand: from where, how, and where to put it.
        failed: What went wrong with the others.
    """

    fetched: tuple[Path, ...]
    present: tuple[Path, ...]
    manual: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass
class _Item:
    """One image, and then what became of it."""

    name: str
    reference: Reference
    path: Path
    outcome: str = ""
    message: str = ""


class _Failure(Exception):
    """One image could not be had; the others still can."""


def fetch(
    suite: Suite,
    *,
    root: Path | None = None,
    progress: Callable[[str], object] | None = None,
    max_bytes: int = MAX_BYTES,
    pause: float = 1.0,
) -> FetchReport:
    """Fetch what is missing of a suite's images. What is there and verified is left alone.

    An image that cannot be had does not stop the others. Load the suite again afterwards: its
    paths are those of the moment it was loaded.

    Args:
        suite: Which suite.
        root: The cache; None: as `benchmark_data.references.cache_root`.
        progress: Is told a line for each image that is done.
        max_bytes: Larger images are refused.
        pause: Seconds before the second attempt at an image; doubled at each further one.

    Raises:
        SuiteError: Something is to be downloaded, but a variable of OFFLINE_VARIABLES is set; or
            the cache cannot be written.
    """
    folder = suite_cache(suite.name, root)
    lock = _Lock(folder / "digests.json")
    items = [
        _Item(
            f"{concept.id}/{Path(reference.file).name}",
            reference,
            (reference.path or folder)
            if reference.local
            else folder / concept.id / reference.file,
        )
        for concept in suite.concepts.values()
        for reference in concept.references
    ]
    tell = progress or (lambda _: None)
    for item in items:
        _look(item, lock)
    wanted = [item for item in items if not item.outcome]
    offline = next((name for name in OFFLINE_VARIABLES if _is_set(name)), None)
    if wanted and offline:
        raise SuiteError(
            f"{len(wanted)} reference images of {suite.name} are to be downloaded, but {offline} "
            "is set: unset it, or copy them into " + str(folder)
        )
    for item in items:
        if item.outcome in ("manual", "failed"):
            tell(item.message)
    if wanted:
        with (
            httpx.Client(follow_redirects=True, timeout=30, headers=HEADERS) as client,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            download = _Download(client, lock, max_bytes, pause)
            for item in pool.map(download, wanted):
                tell(item.message)
    return FetchReport(
        fetched=tuple(item.path for item in items if item.outcome == "fetched"),
        present=tuple(item.path for item in items if item.outcome == "present"),
        manual=tuple(item.message for item in items if item.outcome == "manual"),
        failed=tuple(item.message for item in items if item.outcome == "failed"),
    )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")


def _look(item: _Item, lock: "_Lock") -> None:
    """Decide an image's outcome, unless it is to be downloaded."""
    reference, path = item.reference, item.path
    expected = lock.expected(item.name, reference)
    problem = ""
    if path.is_file():
        try:
            digest = _verified(path, expected)
        except _Failure as error:
            problem = f"{path} {error}"
        else:
            item.outcome = "present"
            if not reference.local:
                lock.record(item.name, reference, digest)
            return
    if reference.local:
        item.outcome = "failed"
        item.message = problem or f"{path} is missing, and it should have come with the suite"
    elif reference.manual:
        item.outcome = "manual"
        from_ = f" ({reference.url})" if reference.url else ""
        wrong = f"; the one there is not it: {problem}" if problem else ""
        item.message = f"{item.name}: {reference.manual}{from_} and put it at {path}{wrong}"


def _verified(path: Path, expected: str | None) -> str:
    """Return the sha256 of an image that can be decoded and is the one expected.

    Raises:
        _Failure: It is another or broken.
    """
    digest = file_digest(path)
    if expected and digest != expected:
        raise _Failure(f"has sha256 {digest[:12]}..., expected {expected[:12]}...")
    try:
        check_image(path)
    except SuiteError as error:
        raise _Failure("is no image that can be read to its end") from error
    return digest


@dataclass
class _Lock:
    """The file of digests: ``CONCEPT/FILE`` -> sha256, number of bytes and URL."""

    path: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        try:
            self.entries = dict(json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise SuiteError(
                f"{self.path} cannot be read ({error}): delete it to record the digests anew"
            ) from error

    def expected(self, name: str, reference: Reference) -> str | None:
        """Return the digest an image must have: the suite's, or the one of the first fetch."""
        entry = self.entries.get(name, {})
        return reference.sha256 or (entry.get("sha256") if entry.get("url") == reference.url else None)

    def record(self, name: str, reference: Reference, digest: str) -> None:
        """Keep an image's digest."""
        entry = {"sha256": digest, "url": reference.url}
        with self.mutex:
            if self.entries.get(name) == entry:
                return
            self.entries[name] = entry
            text = json.dumps(self.entries, indent=1, sort_keys=True)
            _write(self.path, lambda file: file.write(text.encode()))
