"""The user's functions, `async def` or plain, called so that plain ones do not block the loop."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from autoplay_rag._checks import check_function
from autoplay_rag._threads import call
from autoplay_rag.errors import ConfigurationError

__all__ = ["Callback", "CallbackThreads", "check_plain"]

_THREADS: Final = 32


class CallbackThreads:
    """The threads that plain functions run in. They are the client's own, so no other code waits.

    Args:
        most: The most threads; by default 32.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call `fn` in a thread. Calls start in the order they were made."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(
                self._most or _THREADS, thread_name_prefix="autoplay-callback"
            )
        made = functools.partial(contextvars.copy_context().run, call, fn, *args)
        return await asyncio.get_running_loop().run_in_executor(self._executor, made)

    def close(self) -> None:
        """Accept no more calls and cancel those not started. Does not wait for running ones."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


class Callback:
    """A function of the user, plain or `async def`.

    Attributes:
        call: Calls the function, and returns an awaitable of its result.
    """

    __slots__ = ("_fn", "_threads", "call")

    def __init__(self, fn: Callable[..., Any], threads: CallbackThreads) -> None:
        check_function("a callback", fn, optional=False)
        self._fn = fn
        self._threads = threads
        # Chosen once, so that an `async def` function is called directly.
        self.call = fn if _is_async(fn) else self._call_in_thread

    def __repr__(self) -> str:
        return getattr(self._fn, "__qualname__", None) or type(self._fn).__name__

    def call_now(self, *args: Any, runner: asyncio.Runner | None = None) -> None:
        """Call the function in this thread and wait for its end, for code without an event loop.

        Args:
            args: The function's arguments.
            runner: Awaits the result if it is awaitable; None awaits nothing.

        Raises:
            ConfigurationError: If the result is awaitable, and there is no runner or the thread
                runs an event loop already.
        """
        result = self._fn(*args)
        if inspect.isawaitable(result):
            if runner is not None and not _in_a_loop():
                runner.run(_awaited(result))
                return
            if inspect.iscoroutine(result):
                result.close()  # avoids the warning that it was never awaited
            raise ConfigurationError(f"{self!r} is async, and nothing here can await it")

    async def _call_in_thread(self, *args: Any) -> Any:
        result = await self._threads.run(self._fn, *args)
        # A plain function may return a coroutine: `lambda payload: store.add(payload)`.
        return await result if inspect.isawaitable(result) else result


def check_plain(name: str, fn: Callable[..., Any] | None) -> None:
    """Refuse an `async def` function where nothing can await it.

    Raises:
        ConfigurationError: If it is `async def` or not callable.
    """
    check_function(name, fn)
    if fn is not None and _is_async(fn):
        raise ConfigurationError(f"{name} must be a plain function: nothing awaits it")


async def _awaited(result: Awaitable[Any]) -> None:
    await result


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _is_async(fn: Callable[..., Any]) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004 - whether it is async is the question
    )
