"""Run `kill -9` on `autoplay-rag serve` at random moments while payloads come in.

    python -m benchmarks.serve_kill [--kills 50]

A payload that was answered with 200 before a kill must be stored once, after the last start. The
store is Chroma on disk, with the bundled embedder.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from serve_kill import kill_again_and_again

from benchmarks.table import Figure, show


def main(argv: list[str] | None = None) -> list[Figure]:
    """Run the benchmark; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_kill")
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args(argv or [])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(kill_again_and_again(Path(folder), options.kills))
    seconds = time.monotonic() - began
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    fine = found.balanced and found.clean and found.exit_code == 0
    return [
        Figure(
            f"`autoplay-rag serve` killed {options.kills} times at random under load: events "
            "answered with 200 that are lost, events stored twice",
            f"{found.lost:,} lost, {found.doubled:,} doubled of {found.acknowledged:,}; ledger "
            f"balanced: {found.balanced}; `verify` clean: {found.clean}",
            f"{found.pushed:,} sent in {seconds:.0f} s, load average {load}",
            "0 and 0", not (found.lost or found.doubled) and fine,
        )
    ]  # fmt: skip


if __name__ == "__main__":
    figures = main(sys.argv[1:])
    show(figures)
    sys.exit(0 if all(figure.met for figure in figures) else 1)
