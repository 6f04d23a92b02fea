"""Fixtures that start connectors and make payloads.

They work in plain test functions and in coroutines, with any plugin, because each connector runs
in its own thread.

Example:
    A test of your callback::

        async def test_exports_are_noticed(local_connector, make_payload):
            noticed = asyncio.Event()
            connector = local_connector([make_payload("Clicked the Export button")])
            async with AsyncConnectorClient(connector.url).on_actions(my_callback(noticed)):
                await asyncio.wait_for(noticed.wait(), 5)
"""

# Pytest loads this module at every start, so other modules are imported where they are used.
from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

import pytest

if TYPE_CHECKING:
    import os
    from collections.abc import Coroutine, Iterable

    from autoplay_rag.devserver import LocalConnector
    from autoplay_rag.payloads import ActionsPayload, Payload, SummaryPayload

__all__ = ["MakePayload", "RunningConnector", "StartConnector", "local_connector", "make_payload"]

_T = TypeVar("_T")
_TIMEOUT_S = 10.0
_FIRST_FORWARDED_AT = 1_700_000_000.0
_FORWARDING_INTERVAL_S = 10.0


class RunningConnector:
    """A `LocalConnector` that runs in its own thread until `close`.

    Attributes:
        url: The stream's full URL.
        product_id: The product served.
    """

    def __init__(self, connector: LocalConnector) -> None:
        import asyncio
        import threading

        self._connector = connector
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="local_connector", daemon=True)
        self._thread.start()
        try:
            self._wait(connector.start())
        except BaseException:
            self.close()
            raise
        self.url = connector.url
        self.product_id = connector.product_id

    @property
    def subscribers(self) -> int:
        """The number of open streams."""
        return self._connector.subscribers

    def send(self, payload: Payload | bytes) -> int:
        """Push one event to every open stream; see `LocalConnector.send`.

        Returns:
            The number of subscribers that the event was queued for.

        Raises:
            TimeoutError: If a subscriber did not read for 10 seconds.
        """
        return self._wait(self._connector.send(payload))

    def wait_subscribers(self, count: int = 1) -> None:
        """Wait until exactly `count` streams are open.

        Raises:
            TimeoutError: If it takes more than 10 seconds.
        """
        self._wait(self._connector.wait_subscribers(count))

    def close(self) -> None:
        """End all streams and the thread. May be called more than once."""
        if not self._loop.is_closed():
            self._wait(self._connector.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        import asyncio

        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(_TIMEOUT_S)
        finally:
            future.cancel()


class StartConnector:
    """The value of the fixture `local_connector`: call it to start a connector."""

    def __init__(self) -> None:
        self._running: list[RunningConnector] = []

    def __call__(
        self,
        recording: str | os.PathLike[str] | Iterable[Payload | bytes] | None = None,
        **options: Any,
    ) -> RunningConnector:
        """Start a connector that runs until the test ends.

        Args:
            recording: A file of JSON Lines or payloads; None serves the package's samples.
            options: Other arguments of `LocalConnector`.
        """
        from autoplay_rag.devserver import LocalConnector

        running = RunningConnector(LocalConnector(recording, **options))
        self._running.append(running)
        return running

    def close(self) -> None:
        """Close all connectors that were started.

        If closing one fails, the others are still closed.

        Raises:
            Exception: The error, if closing one fails.
            ExceptionGroup: The errors, if closing several fails.
        """
        errors = []
        for running in self._running:
            try:
                running.close()
            except Exception as error:  # noqa: BLE001 - raised below, after the others are closed
                errors.append(error)
        if len(errors) > 1:
            raise ExceptionGroup("connectors could not be closed", errors)
        if errors:
            raise errors[0]


class MakePayload:
    """The value of the fixture `make_payload`: call it to make a payload.

    Each payload is forwarded 10 s after the previous one, so all payloads differ. The times are
    the same in each run.
    """

    def __init__(self) -> None:
        self._ticks = itertools.count()

    @overload
    def __call__(
        self,
        *descriptions: str,
        session_id: str | None = "s1",
        user_id: str | None = None,
        product_id: str = "acme",
        url: str = "https://app.acme.example/",
    ) -> ActionsPayload: ...

    @overload
    def __call__(
        self,
        *,
        summary: str,
        replaces: int = 0,
        session_id: str | None = "s1",
        product_id: str = "acme",
    ) -> SummaryPayload: ...

    def __call__(
        self,
        *descriptions: str,
        summary: str | None = None,
        replaces: int = 0,
        session_id: str | None = "s1",
        user_id: str | None = None,
        product_id: str = "acme",
        url: str = "https://app.acme.example/",
    ) -> ActionsPayload | SummaryPayload:
        """Make a payload with one click per description, or a summary.

        Args:
            descriptions: The descriptions of the actions. By default there is one click.
            summary: The text of a summary to make instead.
            replaces: The number of actions that the summary replaces.
            session_id: The visit.
            user_id: The person.
            product_id: The product.
            url: The page.
        """
        from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload

        forwarded_at = _FIRST_FORWARDED_AT + next(self._ticks) * _FORWARDING_INTERVAL_S
        if summary is not None:
            return SummaryPayload(product_id, session_id, summary, replaces, forwarded_at)
        actions = [
            SlimAction(
                description,
                description,
                url,
                index,
                "click",
                forwarded_at - 5 + index / 10,
                forwarded_at - 5 + index / 10,
                url,
                session_id,
                user_id,
            )
            for index, description in enumerate(descriptions or ("Clicked Save",))
        ]
        return ActionsPayload(
            product_id, session_id, user_id, None, actions, len(actions), forwarded_at
        )


@pytest.fixture
def local_connector() -> Iterator[StartConnector]:
    """Starts connectors that run until the test ends: `local_connector([payload]).url`."""
    start = StartConnector()
    yield start
    start.close()


@pytest.fixture
def make_payload() -> MakePayload:
    """Makes payloads: `make_payload("Clicked Export")`, `make_payload(summary="...")`."""
    return MakePayload()
