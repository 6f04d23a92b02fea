"""Runs the notebooks and keeps what they put out, for those who read them on the web.

    python tools/run_notebooks.py [NOTEBOOK ...]

Each runs in a fresh kernel and in an empty folder, and is written back with its outputs.
"""
# ruff: noqa: INP001 - a script, in no package

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


async def run(
    notebook: nbformat.NotebookNode, folder: Path, env: Mapping[str, str] | None = None
) -> None:
    """Run all cells in a fresh kernel that works in `folder`; outputs go into the notebook.

    Args:
        notebook: Its cells' outputs are replaced.
        folder: The kernel's working folder.
        env: The kernel's environment; this process's own if None.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell raises.
        nbclient.exceptions.CellTimeoutError: If a cell takes two minutes.
    """
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        # It warns that its connection, on this machine alone, is not encrypted.
        extra_arguments=["--log-level=ERROR"],
        timeout=120,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    await client.async_execute(env=dict(os.environ if env is None else env))
    # Versions differ from machine to machine, and say nothing to a reader.
    notebook.metadata["language_info"] = {"name": "python"}


async def main(paths: list[Path]) -> None:
    """Run each, and write it back."""
    for path in paths:
        started = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            await run(notebook, Path(folder))
        nbformat.write(notebook, path)
        print(  # noqa: T201 - a script's result
            f"{path.name}: {time.monotonic() - started:.0f} s, {path.stat().st_size / 1000:.0f} kB"
        )


if __name__ == "__main__":
    asyncio.run(main([Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb"))))
