"""Whose cancellation a CancelledError is."""

from __future__ import annotations

import asyncio

__all__ = ["is_cancelled"]


def is_cancelled() -> bool:
    """Whether the running task itself was cancelled.

    If not, a CancelledError comes from something that other people's code awaited: it is their
    failure, and no reason to end.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
