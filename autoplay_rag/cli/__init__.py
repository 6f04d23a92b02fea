"""The `autoplay-rag` command."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from autoplay_rag.errors import MissingExtraError

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit the process with its exit code."""
    if not (find_spec("typer") and find_spec("rich")):
        sys.exit(f"error: {MissingExtraError('autoplay-rag', 'cli')}")
    try:
        from autoplay_rag.cli.app import run
        from autoplay_rag.cli.console import flush_streams, prepare_streams

        prepare_streams()
        code = run()
        flush_streams()
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    sys.exit(code)
