"""The clients attached to a pipeline: registers, monitors and stops them."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from autoplay_rag._describe import describe

__all__ = ["BackgroundConnector", "Clients", "Connector"]

_log = logging.getLogger(__name__)


class Connector(Protocol):
    """A client that `attach` accepts: one of this package, or any with these methods."""

    def on_actions(self, fn: Any, /) -> Any:
        """Register a callback for batches of actions."""

    def on_summary(self, fn: Any, /) -> Any:
        """Register a callback for summaries."""


class BackgroundConnector(Connector, Protocol):
    """A client that `ingest` accepts: it can be started and stopped."""

    def run_in_background(self) -> asyncio.Task[None]:
        """Start to read."""

    def stop(self) -> None:
        """Stop reading."""


C = TypeVar("C", bound=Connector)


class Clients:
    """The clients that pass their payloads to one pipeline."""

    def __init__(self) -> None:
        self._attached: list[Any] = []
        self._runs: list[tuple[Any, asyncio.Task[None]]] = []
        # By id, the clients with our callbacks: a released client may be attached again.
        self._registered: dict[int, weakref.ref[Any]] = {}

    def attach(
        self,
        client: C,
        on_actions: Callable[..., Any],
        on_summary: Callable[..., Any],
    ) -> C:
        """Register the callbacks with a client; once, even if it is attached again."""
        known = self._registered.get(id(client))
        if known is None or known() is not client:
            client.on_actions(on_actions)
            client.on_summary(on_summary)
            number = id(client)
            self._registered[number] = weakref.ref(
                client, lambda _: self._registered.pop(number, None)
            )
        if not any(client is other for other in self._attached):
            self._attached.append(client)
        return client

    @property
    def states(self) -> list[tuple[str, str]]:
        """Name and state of each attached client that has a state. Readable from any thread."""
        found = []
        for number, client in enumerate(list(self._attached)):
            state = getattr(client, "state", None)
            if isinstance(state, str):
                product = str(getattr(client, "url", "")).rstrip("/").rpartition("/")[2]
                found.append((product.partition("?")[0] or str(number), state))
        return found

    def track(self, client: Any, task: asyncio.Task[None]) -> None:
        """Remember the task that runs a client, for `detach_ended`."""
        self._runs.append((client, task))

    def detach_ended(self) -> None:
        """Detach the clients with an ended task, before another client is run.

        Until then their failures are part of `problems`.
        """
        ended = [client for client, task in self._runs if task.done()]
        self._runs = [(client, task) for client, task in self._runs if not task.done()]
        self._attached = [
            client for client in self._attached if not any(client is other for other in ended)
        ]

    @property
    def problems(self) -> list[str]:
        """The clients that ended with an error, one line each. Readable from any thread."""
        found = []
        for client in list(self._attached):
            try:
                if getattr(client, "state", None) == "failed":
                    found.append(_why_failed(client))
            except Exception as error:  # noqa: BLE001 - other people's code
                found.append(f"the state of a client cannot be read: {describe(error)}")
        return found

    async def leave(self, within: float) -> None:
        """Stop all clients and wait until they have passed on what they received.

        A failure of a client is logged and does not affect the others.

        Args:
            within: Seconds to wait, for all clients together.
        """
        for client in self._attached:
            try:
                if callable(stop := getattr(client, "stop", None)):
                    stop()
            except Exception:  # noqa: BLE001 - other people's code
                _log.exception("a client could not be stopped")
        try:
            async with asyncio.timeout(within):
                await asyncio.gather(*(_leave(client) for client in self._attached))
        except TimeoutError:
            _log.error(
                "a client has not stopped within %g s; payloads that it still holds will be refused",
                within,
            )


def _why_failed(client: Any) -> str:
    error = getattr(client, "last_error", None)
    why = describe(error) if isinstance(error, BaseException) else "it failed"
    return f"the client {client!r} has ended: {why}"


async def _leave(client: Any) -> None:
    try:
        if callable(leave := getattr(client, "__aexit__", None)):
            await leave(None, None, None)
        elif callable(leave := getattr(client, "__exit__", None)):
            # Not on this loop: `__exit__` waits for a thread with callbacks that wait for the loop.
            await asyncio.to_thread(leave, None, None, None)
    except Exception:  # noqa: BLE001 - other people's code
        _log.exception("a client failed while it was stopped")
