"""The clients attached to a pipeline: registers, monitors and stops them."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import unquote

from autoplay_rag._describe import describe

__all__ = ["BackgroundConnector", "Clients", "Connector"]

_log = logging.getLogger(__name__)

_ENDED: Final = ("stopping", "stopped", "failed")


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
        # The ids of clients that another process of the journal may run now.
        self._standby: set[int] = set()

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
    def streams(self) -> list[tuple[Any, str]]:
        """The attached clients that name sessions, each with its product."""
        return [
            (client, _product_of(client))
            for client in list(self._attached)
            if getattr(client, "names_sessions", True)
        ]

    def pull_source(self, product_id: str) -> Any | None:
        """The attached source that can be asked for one user of a product; None without one."""
        return next(iter(self.pull_sources(product_id)), None)

    def pull_sources(self, product_id: str | None = None) -> list[Any]:
        """The attached sources that can be asked for one user; None for those of all products."""
        return [
            source
            for source in list(self._attached)
            if not getattr(source, "names_sessions", True)
            and product_id in (None, source.product_id)
        ]

    def note_asked(self, user_id: str, product_id: str | None) -> None:
        """Tell the sources of a product that somebody asked; None for those of all products."""
        for source in self.pull_sources(product_id or None):
            source.note_asked(user_id)

    def is_streaming(self, product_id: str) -> bool:
        """Whether a client that names the sessions of a product runs, or will run."""
        return any(
            product == product_id
            and (id(client) in self._standby or getattr(client, "state", None) not in _ENDED)
            for client, product in self.streams
        )

    def stand_by(self, client: Any, standby: bool) -> None:
        """Note whether a client waits for its turn, while another process runs it."""
        (self._standby.add if standby else self._standby.discard)(id(client))

    def is_standing_by(self, client: Any) -> bool:
        """Whether a client waits for its turn."""
        return id(client) in self._standby

    @property
    def states(self) -> list[tuple[str, str]]:
        """Name and state of each attached client that has a state. Readable from any thread.

        The state is "standby" while another process of the journal may run the client.
        """
        found = []
        for number, client in enumerate(list(self._attached)):
            state = "standby" if id(client) in self._standby else getattr(client, "state", None)
            if isinstance(state, str):
                found.append((_product_of(client) or str(number), state))
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
        """The clients that failed or are refused, one line each. Readable from any thread."""
        found = []
        for client in list(self._attached):
            try:
                state = getattr(client, "state", None)
                if state == "failed" and id(client) not in self._standby:
                    found.append(_why_failed(client))
                elif state not in _ENDED and (refusal := getattr(client, "refusal", None)):
                    found.append(f"the source {_name(client)} refuses: {describe(refusal)}")
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


def _product_of(client: Any) -> str:
    named = getattr(client, "product_id", None)
    if isinstance(named, str):
        return named
    path = str(getattr(client, "url", "")).partition("?")[0].rstrip("/")
    return unquote(path.rpartition("/")[2])


def _name(client: Any) -> str:
    return str(getattr(client, "url", "") or _product_of(client))


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
