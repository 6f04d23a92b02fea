"""`kill -9` at random moments of an ingest of 2,000 events into Chroma on disk.

    python -m benchmarks.kill [--kills 100] [--events 2000] [--seed 1]

The ingest runs in a process of its own that prints each event's number once `on_actions` has
returned for it. It is killed up to five times, some of them together with Chroma's process, and
takes up what is left each time; a last run goes to the end. Nothing that was reported is ever
handed over again, so what is stored comes from the journal alone.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ingest"))

from killing import kill_again_and_again


def main(argv: list[str] | None = None) -> int:
    """Print what came of it; 0 if nothing was lost or doubled."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcome = asyncio.run(
            kill_again_and_again(Path(folder), options.kills, options.events, options.seed)
        )
    during = ", ".join(f"{step} {count}" for step, count in outcome.during.most_common())
    print(f"kills                {outcome.kills:>8,}  in {outcome.rounds} ingests")
    print(f"step under way       {during}")
    print(f"events reported      {outcome.reported:>8,}")
    print(f"lost                 {len(outcome.lost):>8,}")
    print(f"doubled              {len(outcome.doubled):>8,}")
    print(f"seconds              {time.monotonic() - started:>8,.0f}")
    return 1 if outcome.lost or outcome.doubled else 0


if __name__ == "__main__":
    sys.exit(main())
