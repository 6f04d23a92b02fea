"""Print the figures of the README in one table, and write it into the README.

    python -m benchmarks                        all that takes seconds: under 15 minutes on two cores
    python -m benchmarks --large                what takes longer: hours
    python -m benchmarks --only live,chroma     some of them
    python -m benchmarks --write README.md      also put the table between the marks in this file

Each module also runs on its own: `python -m benchmarks.client`. What a row stands beside is of the same run.
Nothing else should run meanwhile: the line below the table has the load before and after.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from autoplay_rag._describe import describe
from benchmarks.machine import machine
from benchmarks.table import Figure, rows

SMALL = (
    "imports",
    "client",
    "live",
    "embedding",
    "stored",
    "pipeline",
    "chroma",
    "langchain_lag",
    "journal",
    "journal_cost",
    "filters",
    "search",
    "findable",
    "memory",
)
LARGE = (
    "million",
    "search_large",
    "filters_large",
    "fulltext_cost",
    "redaction",
    "langchain_loader",
    "llama_index_lag",
    "pull",
    "postgres",
    "search_postgres",
    "serve",
    "soak",
)
OPTIONS: dict[str, tuple[str, str, list]] = {
    "live": ("live", "main", [["--events", "1000"]]),
    "langchain_lag": ("langchain_lag", "main", [["--rounds", "1"]]),
    "filters": ("filters", "short", []),
    "filters_large": ("filters", "large", []),
    "search_large": ("search", "large", []),
    "search_postgres": ("search", "large_in_postgres", []),
}
"""Module, function and arguments, where they are not those of the name alone."""


def figures(names: list[str]) -> Iterator[Figure]:
    """Yield the figures of modules, and say on standard error how long each took.

    One that fails, for example because a package is missing, is a row too: the others go on.
    """
    for name in names:
        started = time.perf_counter()
        module, function, arguments = OPTIONS.get(name, (name, "main", []))
        try:
            yield from getattr(import_module(f"benchmarks.{module}"), function)(*arguments)
        except Exception as error:  # noqa: BLE001 - hours of other figures would be lost
            traceback.print_exc()
            yield Figure(
                f"`benchmarks.{name}`", f"failed: {describe(error)}", "-", "runs", met=False
            )
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def report(found: Iterator[Figure]) -> str:
    """Print the table while it grows, and return it with the machine and the load."""
    load, started = os.getloadavg()[0], time.perf_counter()
    lines = []
    for row in rows(found):
        print(row, flush=True)
        lines.append(row)
    missed = sum(row.endswith("| NO |") for row in lines)
    lines.append(
        f"\n{len(lines) - 1} figures, {missed} of them below their bar. {datetime.now(UTC):%d %B %Y}, "
        f"{(time.perf_counter() - started) / 60:.0f} minutes, load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after. Machine: {machine()}."
    )
    print(lines[-1], flush=True)
    return "\n".join(lines)


def replaced(text: str, mark: str, table: str) -> str:
    """Return a page with a new table between `<!-- mark: begin -->` and `<!-- mark: end -->`.

    Raises:
        ValueError: If the page has no such marks.
    """
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no {begin.strip()} and {end}")
    return f"{before}{begin}{table}\n{end}{after}"


def main() -> int:
    """Run the benchmarks of the command line. Returns the exit code: 1 if a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--large", action="store_true", help="what takes longer")
    parser.add_argument("--only", help="names, with commas between them")
    parser.add_argument("--write", type=Path, help="a page with marks for the table")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(LARGE if options.large else SMALL)
    if unknown := set(names) - {*SMALL, *LARGE}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    mark = "bench-large" if options.large else "bench"
    page = options.write
    if page:
        replaced(page.read_text(), mark, "")  # a page without marks fails now, not in an hour
    table = report(figures(names))
    if page:
        page.write_text(replaced(page.read_text(), mark, table))
    return int("| NO |" in table)


if __name__ == "__main__":
    sys.exit(main())
