"""Stage `manifest`: lists every shipped weight file with its size and digest."""

import json
from pathlib import Path
from typing import TypedDict

from benchmark_data.miniworld.train.common import log, write_json
from benchmark_data.references import file_digest

NOT_LISTED = ("MANIFEST.json", "MODEL_CARD.md")


class Entry(TypedDict):
    """Size and digest of one file."""

    bytes: int
    sha256: str


def entries(weights: Path) -> dict[str, Entry]:
    """Return what lies in a weights folder, by relative path, sorted."""
    return {
        path.relative_to(weights).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in sorted(weights.rglob("*"))
        if path.is_file() and path.name not in NOT_LISTED
    }


def read(path: Path) -> dict[str, Entry]:
    """Read a manifest."""
    listed: dict[str, Entry] = json.loads(path.read_text())
    return listed


def run(out: Path, work: Path, *, smoke: bool, seed: int, steps: int | None) -> None:
    """Write `out/MANIFEST.json`."""
    del work, smoke, seed, steps  # it only lists what is there
    listed = entries(out)
    write_json(out / "MANIFEST.json", listed)
    total = sum(entry["bytes"] for entry in listed.values())
    log.info("manifest: %d files, %.1f MB", len(listed), total / 1e6)
