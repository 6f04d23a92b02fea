"""Run the notebooks and save their outputs, which readers see on the web.

    python tools/run_notebooks.py [NOTEBOOK ...]

Each notebook runs in a new kernel and in an empty folder.
"""
# ruff: noqa: INP001 - a script, not part of a package

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
    """Run all cells in a new kernel and put the outputs into the notebook.

    Args:
        notebook: The notebook; the outputs of its cells are replaced.
        folder: The kernel's working folder.
        env: The kernel's environment; None for this process's own.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell raises.
        nbclient.exceptions.CellTimeoutError: If a cell takes two minutes.
    """
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        # It warns that its local connection is not encrypted.
        extra_arguments=["--log-level=ERROR"],
        timeout=120,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    await client.async_execute(env=dict(os.environ if env is None else env))
    # Versions differ between machines and do not matter to a reader.
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            # The kernel asks for a white background behind dark text. The colours of the plots are
            # legible on a dark page as well.
            output.get("metadata", {}).pop("needs_background", None)


async def main(paths: list[Path]) -> None:
    """Run each notebook and save it."""
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
