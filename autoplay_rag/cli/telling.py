"""Notes about the progress of long work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from autoplay_rag.cli.console import clean, note

__all__ = ["teller"]

_EVERY_SECONDS: Final = 10.0


def teller() -> Callable[[object], None]:
    """Return a function that notes how far the work is: at first, then every ten seconds."""
    last = -_EVERY_SECONDS

    def tell(progress: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY_SECONDS:
            note(clean(str(progress)))
            last = now

    return tell
