"""Measure what `import autoplay_rag` costs beyond `import httpx`, on a warm disk."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.table import Figure, show

CODE = "import time, httpx; t = time.perf_counter(); import {0}; print((time.perf_counter() - t) * 1e3)"


def _cost(module: str) -> float:
    command = [sys.executable, "-c", CODE.format(module)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(9)]
    return statistics.median(float(run.stdout) for run in runs)


def main() -> list[Figure]:
    alone, whole = _cost("autoplay_rag"), _cost("autoplay_rag.ingest.pipeline")
    return [
        Figure(
            "import autoplay_rag, beyond import httpx",
            f"{alone:.1f} ms", f"{whole:.0f} ms with the whole pipeline", "at most 30 ms", alone <= 30,
        )
    ]  # fmt: skip


if __name__ == "__main__":
    show(main())
