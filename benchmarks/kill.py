"""Run `kill -9` at random moments of an ingest of 2,000 events into Chroma on disk.

    python -m benchmarks.kill [--kills 100] [--events 2000] [--seed 1]

The ingest runs in its own process and prints each event's number once `on_actions` has returned.
It is killed up to five times, sometimes together with Chroma's process, and restarted each time.
The last run completes. A reported event is never passed to `on_actions` again, so it can only be
stored from the journal.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ingest"))

from killing import kill_again_and_again

from benchmarks.table import Figure, show


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv or [])
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(
            kill_again_and_again(Path(folder), options.kills, options.events, options.seed)
        )
    during = ", ".join(f"{step} {count}" for step, count in found.during.most_common())
    return [
        Figure(
            f"`kill -9` {found.kills} times in {found.rounds} ingests of {options.events:,} events: "
            "events reported that are lost, events stored twice",
            f"{len(found.lost):,} lost, {len(found.doubled):,} doubled of {found.reported:,}",
            f"under way when killed: {during}",
            "0 and 0", not (found.lost or found.doubled or found.unclean),
        )
    ]  # fmt: skip


if __name__ == "__main__":
    figures = main(sys.argv[1:])
    show(figures)
    sys.exit(0 if all(figure.met for figure in figures) else 1)
