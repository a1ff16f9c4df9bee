"""Many raters at once, and a server that is killed under them: nothing lost, nothing double.

`python tests/mars2/rating/hammer.py RUN --raters 50 --sample 25 --kills 4` does it at full size.
"""

import argparse
import asyncio
import csv
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

ANSWERS = {"yes_no": ("yes", "no"), "pairs": ("left", "right", "tie", "both_bad")}


@dataclass
class Outcome:
    """What happened: answers meant, acknowledged and sent, kills, and the exit code in the end."""

    meant: dict[tuple[str, int, str], str]
    acknowledged: int
    sent: int
    kills: int
    seconds: float
    code: int = -1


def start(run: Path, out: Path, port: int, options: Sequence[str]) -> subprocess.Popen[str]:
    """Start `mars2 rate` and wait until it says its link."""
    command = [sys.executable, "-m", "mars2", "rate", run, "--out", out, "--port", port, *options]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Ctrl-C"):
            return process
    raise RuntimeError(f"the server ended with {process.wait()}")


def end(process: subprocess.Popen[str], by: signal.Signals) -> int:
    """End a server, and return its exit code."""
    process.send_signal(by)
    assert process.stdout is not None
    process.stdout.close()
    return process.wait()


def meant(token: str, position: int, aspect: str, mode: str) -> str:
    """What a rater answers, at random but always the same."""
    number = hashlib.sha256(f"{token} {position} {aspect}".encode()).digest()[0]
    return ANSWERS[mode][number % len(ANSWERS[mode])]


def hammer(
    run: Path, out: Path, *, raters: int, kills: int, options: Sequence[str] = ()
) -> Outcome:
    """Have all raters answer everything while the server is killed and started again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--raters", str(raters), "--per-item", str(raters), *options]
    process = start(run, out, port, options)
    outcome = Outcome({}, 0, 0, 0, 0.0)
    with (out / "links.csv").open(newline="") as file:
        links = [line["link"] for line in csv.DictReader(file)]
    total = 0

    async def post(client: httpx.AsyncClient, link: str, answer: dict[str, object]) -> None:
        while True:
            outcome.sent += 1
            try:
                reply = await client.post(f"{link}answers", json=answer)
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            assert reply.status_code == 200, reply.text
            return

    async def rate(client: httpx.AsyncClient, link: str) -> None:
        nonlocal total
        tasks = (await client.get(f"{link}state")).json()["tasks"]
        token = link.rstrip("/").rpartition("/")[2]
        total += sum(len(task["aspects"]) for task in tasks)
        for position, task in enumerate(tasks):
            for aspect in task["aspects"]:
                answer = meant(token, position, aspect, task["mode"])
                outcome.meant[token, position, aspect] = answer
                sent = {"position": position, "aspect": aspect, "answer": answer, "seconds": 1.0}
                await post(client, link, sent)
                outcome.acknowledged += 1

    async def killer() -> None:
        nonlocal process
        for number in range(kills):
            while not total or outcome.acknowledged < total * (number + 1) / (kills + 1):
                await asyncio.sleep(0.005)
            await asyncio.to_thread(end, process, signal.SIGKILL)
            outcome.kills += 1
            process = await asyncio.to_thread(start, run, out, port, ())

    async def everything() -> None:
        limits = httpx.Limits(max_connections=raters)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            await asyncio.gather(*(rate(client, link) for link in links), killer())

    began = time.monotonic()
    try:
        asyncio.run(everything())
    finally:
        outcome.code = end(process, signal.SIGINT)
    outcome.seconds = time.monotonic() - began
    return outcome


def differences(run: Path, out: Path, outcome: Outcome) -> list[str]:
    """What is in the database and was not meant, or the other way round."""
    from mars2.rating.database import RatingDatabase
    from mars2.store import RunStore

    database = RatingDatabase(out / "study.sqlite", RunStore.open(run).folder)
    rows = [
        (seat.token, one.position, one.aspect, one.answer, one.changes)
        for seat in database.seats()
        for one in database.answers(seat.rater)
    ]
    database.close()
    kept = {row[:3]: row[3] for row in rows}
    double = [key for key, count in Counter(row[:3] for row in rows).items() if count > 1]
    return [
        *(f"lost {key}" for key in outcome.meant if key not in kept),
        *(f"not meant {key}" for key in kept if key not in outcome.meant),
        *(f"other {key}" for key, answer in outcome.meant.items() if kept.get(key) != answer),
        *(f"double {key}" for key in double),
        *(f"changed {row}" for row in rows if row[4]),
    ]


def main() -> None:
    """Print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--sample", type=int, default=25)
    parser.add_argument("--kills", type=int, default=4)
    arguments = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", ".")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rating"
        options = ["--sample", str(arguments.sample), "--check-every", "0"]
        outcome = hammer(
            arguments.run, out, raters=arguments.raters, kills=arguments.kills, options=options
        )
        wrong = differences(arguments.run, out, outcome)
    sys.stdout.write(
        f"{arguments.raters} raters, {len(outcome.meant)} answers, {outcome.kills} kills: "
        f"{outcome.sent} sent, {outcome.acknowledged} acknowledged, in {outcome.seconds:.1f} s; "
        f"{len(wrong)} lost, double or other\n"
    )
    sys.stdout.writelines(f"{line}\n" for line in wrong[:20])


if __name__ == "__main__":
    main()
