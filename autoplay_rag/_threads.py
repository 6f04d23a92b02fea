"""Calls of other people's functions from threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["call", "call_in_thread"]

T = TypeVar("T")


def call(fn: Callable[..., T], *args: Any) -> T:
    """Call `fn` so that a future can take whatever it raises.

    Raises:
        RuntimeError: If it raised StopIteration, which no future takes: who awaits the call would
            wait forever.
    """
    try:
        return fn(*args)
    except StopIteration as error:
        name = getattr(fn, "__qualname__", None) or type(fn).__name__
        raise RuntimeError(f"{name} raised StopIteration") from error


async def call_in_thread(fn: Callable[..., T], *args: Any) -> T:
    """As `call`, in one of the event loop's threads."""
    return await asyncio.to_thread(call, fn, *args)
