"""Stage `manifest`: lists every shipped weight file with its size and digest."""

import json
from pathlib import Path

from benchmark_data.miniworld.train.common import log, sha256


def run(out: Path, work: Path, *, smoke: bool, seed: int, steps: int | None) -> None:
    """Write `out/MANIFEST.json`."""
    del work, smoke, seed, steps  # it only lists what is there
    files = sorted(
        path
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("MANIFEST.json", "MODEL_CARD.md")
    )
    entries = {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
    temporary = out / ".MANIFEST.tmp"
    temporary.write_text(json.dumps(entries, indent=1) + "\n")
    temporary.replace(out / "MANIFEST.json")
    total = sum(path.stat().st_size for path in files)
    log.info("manifest: %d files, %.1f MB", len(files), total / 1e6)
