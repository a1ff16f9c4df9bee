"""Downloads the reference images of a suite: verified, resumed, and with a word on what cannot be.

Images go to ``CACHE/references/SUITE/CONCEPT/FILE``; see `benchmark_data.references.cache_root`.
The first fetch writes their digests to ``digests.json`` beside them; later ones hold them to it.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

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
class SourceReport:
    """How many images of one source there are.

    Attributes:
        name: A server, or "the suite" for images that come with it.
        fetched: Downloaded now.
        present: Were there.
        manual: To be fetched by hand.
        failed: Could not be had.
        first: What there is to know of the first that is not there, or "".
    """

    name: str
    fetched: int
    present: int
    manual: int
    failed: int
    first: str

    def __str__(self) -> str:
        counts = {
            "fetched": self.fetched,
            "there already": self.present,
            "to get by hand": self.manual,
            "failed": self.failed,
        }
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        first = " ".join(self.first.split())
        if len(first) > 160:
            first = f"{first[:157]}..."
        return f"{self.name}: {told}{f'; first {first}' if first else ''}"


@dataclass(frozen=True)
class FetchReport:
    """What became of each image of a suite, in the suite's order.

    Attributes:
        fetched: Downloaded now.
        present: Were there, and are what they should be.
        manual: What has to be fetched by hand: from where, how, and where to put it.
        failed: What went wrong with the others.
        sources: The same by where the images come from.
    """

    fetched: tuple[Path, ...]
    present: tuple[Path, ...]
    manual: tuple[str, ...]
    failed: tuple[str, ...]
    sources: tuple[SourceReport, ...] = ()


@dataclass
class _Item:
    """One image, and then what became of it."""

    name: str
    reference: Reference
    path: Path
    outcome: str = ""
    message: str = ""


class _FetchError(Exception):
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
        progress: Is told a line for each download, whether it went well or not.
        max_bytes: Larger images are refused.
        pause: Seconds before the second attempt at an image; doubled at each further one.

    Raises:
        SuiteError: Something is to be downloaded, but a variable of OFFLINE_VARIABLES is set; or
            the cache cannot be written.
    """
    folder = suite_cache(suite.name, root)
    digests = _Digests(folder / "digests.json")
    items = [
        _Item(
            f"{concept.id}/{Path(reference.file).name}",
            reference,
            (reference.path or folder) if reference.local else folder / concept.id / reference.file,
        )
        for concept in suite.concepts.values()
        for reference in concept.references
    ]
    tell = progress or (lambda _: None)
    for item in items:
        _look(item, digests)
    wanted = [item for item in items if not item.outcome]
    offline = next((name for name in OFFLINE_VARIABLES if _is_set(name)), None)
    if wanted and offline:
        raise SuiteError(
            f"{len(wanted)} reference images of {suite.name} are to be downloaded, but {offline} "
            "is set: unset it, or copy them into " + str(folder)
        )
    if wanted:
        with (
            httpx.Client(follow_redirects=True, timeout=30, headers=HEADERS) as client,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            download = _Download(client, digests, max_bytes, pause)
            for item in pool.map(download, wanted):
                tell(item.message)
    return FetchReport(
        fetched=tuple(item.path for item in items if item.outcome == "fetched"),
        present=tuple(item.path for item in items if item.outcome == "present"),
        manual=tuple(item.message for item in items if item.outcome == "manual"),
        failed=tuple(item.message for item in items if item.outcome == "failed"),
        sources=_by_source(items),
    )


def _by_source(items: Sequence[_Item]) -> tuple[SourceReport, ...]:
    """Count what became of images by where they come from, in the order of the suite."""
    groups: dict[str, list[_Item]] = {}
    for item in items:
        host = urlsplit(item.reference.url).netloc or "by hand"
        groups.setdefault("the suite" if item.reference.local else host, []).append(item)
    reports = []
    for name, members in groups.items():
        outcomes = [item.outcome for item in members]
        absent = [item.message for item in members if item.outcome in ("manual", "failed")]
        reports.append(
            SourceReport(
                name,
                fetched=outcomes.count("fetched"),
                present=outcomes.count("present"),
                manual=outcomes.count("manual"),
                failed=outcomes.count("failed"),
                first=absent[0] if absent else "",
            )
        )
    return tuple(reports)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")


def _look(item: _Item, digests: "_Digests") -> None:
    """Decide an image's outcome, unless it is to be downloaded."""
    reference, path = item.reference, item.path
    expected = digests.expected(item.name, reference)
    problem = ""
    if path.is_file() and not digests.outdated(item.name, reference):
        try:
            digest = _verified(path, expected)
        except _FetchError as error:
            problem = f"{path} {error}"
        else:
            item.outcome = "present"
            if not reference.local:
                digests.record(item.name, reference, digest)
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
        _FetchError: It is another or broken.
    """
    digest = file_digest(path)
    if expected and digest != expected:
        raise _FetchError(f"has sha256 {digest[:12]}..., expected {expected[:12]}...")
    try:
        check_image(path)
    except SuiteError as error:
        raise _FetchError("is no image that can be read to its end") from error
    return digest


@dataclass
class _Digests:
    """The file of digests: ``CONCEPT/FILE`` -> sha256 and URL."""

    path: Path
    entries: dict[str, dict[str, str]] = field(default_factory=dict)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.entries = self.read()

    def read(self) -> dict[str, dict[str, str]]:
        """Return what is on the disk.

        Raises:
            SuiteError: It cannot be read.
        """
        try:
            return {
                str(name): {"sha256": str(entry["sha256"]), "url": str(entry["url"])}
                for name, entry in json.loads(self.path.read_text(encoding="utf-8")).items()
            }
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SuiteError(
                f"{self.path} cannot be read ({error}): delete it to record the digests anew"
            ) from error

    def expected(self, name: str, reference: Reference) -> str | None:
        """Return the digest an image must have: the suite's, or the one of the first fetch."""
        entry = self.entries.get(name)
        known = entry["sha256"] if entry and entry["url"] == reference.url else None
        return reference.sha256 or known

    def outdated(self, name: str, reference: Reference) -> bool:
        """Return whether the image is from another source than the suite now names."""
        entry = self.entries.get(name)
        return entry is not None and entry["url"] != reference.url and not reference.sha256

    def record(self, name: str, reference: Reference, digest: str) -> None:
        """Keep an image's digest; what another process has kept meanwhile stays."""
        entry = {"sha256": digest, "url": reference.url}
        with self.mutex:
            if self.entries.get(name) == entry:
                return
            self.entries = {**self.read(), name: entry}
            text = json.dumps(self.entries, indent=1, sort_keys=True)
            with _written(self.path) as temporary:
                temporary.write_text(text, encoding="utf-8")


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place at the end if all went well.

    Raises:
        SuiteError: The disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SuiteError(f"{path} cannot be written: {error}") from error


class _Download:
    """Downloads one image after the other; called from several threads."""

    def __init__(
        self, client: httpx.Client, digests: _Digests, max_bytes: int, pause: float
    ) -> None:
        self.client = client
        self.digests = digests
        self.max_bytes = max_bytes
        self.pause = pause
        self.unreachable: set[str] = set()

    def __call__(self, item: _Item) -> _Item:
        """Fill in the image's outcome."""
        reference = item.reference
        try:
            with _written(item.path) as temporary:
                self.get(reference.url, temporary)
                expected = self.digests.expected(item.name, reference)
                try:
                    digest = _verified(temporary, expected)
                except _FetchError as error:
                    accept = f"; to accept it, delete its entry in {self.digests.path}"
                    changed = expected is not None and not reference.sha256
                    raise _FetchError(
                        f"what {reference.url} gives {error}{accept if changed else ''}"
                    ) from error
        except _FetchError as error:
            item.outcome = "failed"
            item.message = f"{item.name}: {error}; or get it by hand and put it at {item.path}"
        else:
            self.digests.record(item.name, reference, digest)
            item.outcome = "fetched"
            item.message = f"{item.name}: fetched, {item.path.stat().st_size / 1000:.0f} kB"
        return item

    def get(self, url: str, path: Path) -> None:
        """Write what a URL gives to a file; try again where that may help.

        Raises:
            _FetchError: It cannot be had.
        """
        host, problem = urlsplit(url).netloc, ""
        for attempt in range(1, ATTEMPTS + 1):
            if host in self.unreachable:
                raise _FetchError(f"{host} cannot be reached")
            wait = self.pause * 2 ** (attempt - 1)
            try:
                with self.client.stream("GET", url) as response:
                    if response.is_success:
                        self.save(response, path)
                        return
                    problem = f"{url} answered {response.status_code} {response.reason_phrase}"
                    if response.status_code not in TRY_AGAIN:
                        raise _FetchError(problem)
                    after = response.headers.get("Retry-After", "")
                    wait = max(wait, float(after) if after.isdecimal() else 0.0)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                problem = f"{host} cannot be reached: {error}"
                if attempt == ATTEMPTS:
                    self.unreachable.add(host)  # the next images from there need not wait as long
            except httpx.TransportError as error:
                problem = f"{url} broke off: {str(error) or type(error).__name__}"
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _FetchError(f"{url} cannot be fetched: {error}") from error
            if attempt < ATTEMPTS:
                time.sleep(min(wait, LONGEST_PAUSE))
        raise _FetchError(f"{problem} ({ATTEMPTS} attempts)")

    def save(self, response: httpx.Response, path: Path) -> None:
        """Write a response to a file.

        Raises:
            _FetchError: It is too large.
        """
        written = 0
        with path.open("wb") as file:
            for chunk in response.iter_bytes():
                written += len(chunk)
                if written > self.max_bytes:
                    raise _FetchError(f"{response.url} gives more than {self.max_bytes} bytes")
                file.write(chunk)
