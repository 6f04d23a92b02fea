"""The client for code without an event loop: runs the async client in a thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, closing, suppress
from types import TracebackType
from typing import Any, Final, Self

from autoplay_rag._bridge import iterate
from autoplay_rag._checks import check_above
from autoplay_rag.connector.callbacks import Callback, CallbackThreads, check_plain
from autoplay_rag.connector.client import AsyncConnectorClient, ClientState
from autoplay_rag.connector.connection import READ_TIMEOUT
from autoplay_rag.connector.metrics import ConnectorCounts, ConnectorMetrics
from autoplay_rag.errors import AutoplayError, ClientStateError
from autoplay_rag.payloads import ActionsPayload, Payload, SummaryPayload

__all__ = ["ConnectorClient"]

logger = logging.getLogger(__name__)

_DRAIN_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 5.0
_RESTING: Final = ("idle", "stopped", "failed")


class ConnectorClient:
    """Reads a connector's stream and calls functions back, one payload at a time.

    One thread reads at network speed. Callbacks run in another, in the order the payloads
    arrived. Payloads wait for their callbacks in a queue. When it is full, the payload that has
    waited longest is dropped and counted. If no payload may be lost, use `AsyncConnectorClient`
    with a pipeline.

    Args:
        url: The full URL of the stream, `https://.../stream/{product_id}`.
        token: The product's token; by default the value of `AUTOPLAY_APP_UNKEY_TOKEN`.
        max_queue_size: The most payloads that wait.
        connect_timeout: Seconds to connect.
        read_timeout_s: Seconds without a byte after which a connection counts as lost; None is
            the default of `AsyncConnectorClient`.
        initial_backoff_s: Seconds before the first reconnect; see `AsyncConnectorClient`.
        max_backoff_s: The longest wait between attempts, unless the server asks for more.
        max_retries: The most retries in a row; `run` raises at the next failure. None never gives
            up.
        on_connect: Called without arguments whenever a connection is made.
        on_disconnect: Called without arguments whenever a connection has ended.
        metrics: An object with the methods of `ConnectorMetrics`; they are called in the reading
            thread.

    Raises:
        ConfigurationError: If an argument is invalid.

    Example:
        >>> client = ConnectorClient("https://connector.example/stream/acme", "uk_live_...")
        >>> client.on_actions(lambda payload: print(payload.to_text())).queue_size
        0
    """

    def __init__(  # noqa: PLR0917 - the public SDK's order
        self,
        url: str,
        token: str = "",
        max_queue_size: int = 500,
        connect_timeout: float = 10.0,
        read_timeout_s: float | None = None,
        initial_backoff_s: float = 1.0,
        max_backoff_s: float = 30.0,
        max_retries: int | None = None,
        on_connect: Callable[[], Any] | None = None,
        on_disconnect: Callable[[], Any] | None = None,
        metrics: ConnectorMetrics | None = None,
    ) -> None:
        check_above("max_queue_size", max_queue_size)
        self._client = AsyncConnectorClient(
            url,
            token,
            max_pending=max_queue_size,
            overflow="drop_oldest",
            connect_timeout=connect_timeout,
            read_timeout=READ_TIMEOUT if read_timeout_s is None else read_timeout_s,
            initial_backoff_s=initial_backoff_s,
            max_backoff_s=max_backoff_s,
            max_retries=max_retries,
            on_connect=on_connect,
            on_disconnect=on_disconnect,
            on_drop=lambda payload, total: _call_each(self._on_drop, payload, total),
            metrics=metrics,
        )
        self._threads = CallbackThreads()
        self._callbacks: dict[str, list[Callback]] = {}
        self._on_drop: list[Callback] = []
        self._run: _SyncRun | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return repr(self._client).removeprefix("Async")

    def on_actions(self, fn: Callable[[ActionsPayload], Any]) -> Self:
        """Add a callback for batches of actions.

        Args:
            fn: A plain function, or `async def`, which runs to completion in the callback thread,
                on that thread's own event loop. Several callbacks are called one after the other.
                An error in one is logged; the other callbacks and the stream continue.

        Returns:
            The client, so that calls can be chained.

        Raises:
            ConfigurationError: If `fn` is not callable.
        """
        self._callbacks.setdefault(ActionsPayload.kind, []).append(Callback(fn, self._threads))
        return self

    def on_summary(self, fn: Callable[[SummaryPayload], Any]) -> Self:
        """Add a callback for summaries; see `on_actions`."""
        self._callbacks.setdefault(SummaryPayload.kind, []).append(Callback(fn, self._threads))
        return self

    def on_drop(self, fn: Callable[[Payload, int], Any]) -> Self:
        """Add a function to call with each dropped payload and the total so far.

        It runs in the reading thread and blocks reading, so it must be quick. Otherwise see
        `on_actions`.

        Raises:
            ConfigurationError: If `fn` is `async def` or not callable.
        """
        check_plain("on_drop", fn)
        self._on_drop.append(Callback(fn, self._threads))
        return self

    @property
    def dropped_count(self) -> int:
        """How many payloads were dropped, over all runs."""
        return self._client.dropped_count

    @property
    def queue_size(self) -> int:
        """How many payloads wait for their callbacks now."""
        return self._client.pending

    @property
    def counts(self) -> ConnectorCounts:
        """All totals, over all runs."""
        return self._client.counts

    @property
    def url(self) -> str:
        """The stream's URL, safe to show: without user, password and query."""
        return self._client.url

    @property
    def state(self) -> ClientState:
        """The current state, as `AsyncConnectorClient.state`. Safe from any thread."""
        run, state = self._run, self._client.state
        if run is None or state not in _RESTING:
            return state
        if run.ended.is_set():
            return "stopped" if state == "idle" else state
        return "stopping" if run.reading or run.stopping else "connecting"

    @property
    def last_error(self) -> Exception | None:
        """Why the last connection or attempt ended, as `AsyncConnectorClient.last_error`."""
        return self._client.last_error

    def run(self) -> None:
        """Read until `stop`, or until an error that a retry cannot fix. Calls back in this thread.

        Payloads received before the end are still processed; after a stop, for at most 30 seconds.

        Raises:
            ConnectorError: As `AsyncConnectorClient.run`.
            ClientStateError: If the client is running already.
        """
        self._work(self._begin())

    def run_in_background(self) -> threading.Thread:
        """Start `run` in a thread. If the run fails, its error is logged.

        Returns:
            The callback thread. It is a daemon: it does not keep the process alive.

        Raises:
            ClientStateError: If the client is running already.
        """
        run = self._begin()
        run.thread = threading.Thread(
            target=self._work_and_log, args=(run,), name="autoplay-connector-callbacks", daemon=True
        )
        run.thread.start()
        return run.thread

    def stop(self) -> None:
        """Stop reading; `run` returns when the received payloads are processed.

        Safe from any thread, callbacks included, at any time, and more than once.
        """
        if self._run is not None:
            self._run.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if self._run is not None:
            self._run.join()

    def _begin(self) -> _SyncRun:
        with self._lock:
            if self._run is not None and not self._run.ended.is_set():
                raise ClientStateError(
                    "the client is running already; stop it first, or make another"
                )
            self._run = _SyncRun(self._client, self._wants)
            return self._run

    def _wants(self, payload: Payload) -> bool:
        return payload.kind in self._callbacks

    def _work(self, run: _SyncRun) -> None:
        run.worker = threading.current_thread()
        try:
            with (
                # It creates its loop only when there is something to await.
                closing(asyncio.Runner(loop_factory=asyncio.new_event_loop)) as runner,
                closing(iterate(run.payloads, "autoplay-connector")) as payloads,
            ):
                for payload in payloads:
                    run.ask(
                        _call_each(self._callbacks.get(payload.kind, ()), payload, runner=runner)
                    )
        finally:
            run.ended.set()

    def _work_and_log(self, run: _SyncRun) -> None:
        error: Exception | None = None
        try:
            self._work(run)
        except Exception as found:  # noqa: BLE001 - no caller can catch it
            error = found
        if error is not None:
            unexpected = None if isinstance(error, AutoplayError) else error
            logger.error("the connector client ended: %s", error, exc_info=unexpected)


class _SyncRun:
    """The state of one run that its two threads share.

    Attributes:
        worker: The callback thread; None until it begins.
        thread: The same thread, if the client started it and must join it.
        ended: Set when the run has ended.
        reading: Whether the client has begun to read.
        stopping: Whether `stop` was called.
    """

    def __init__(self, client: AsyncConnectorClient, wants: Callable[[Payload], bool]) -> None:
        self.worker: threading.Thread | None = None
        self.thread: threading.Thread | None = None
        self.ended = threading.Event()
        self.reading = False
        self.stopping = False
        self._client = client
        self._wants = wants
        self._deadline: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = asyncio.Event()
        self._well = True

    async def payloads(self) -> AsyncGenerator[Payload, None]:
        """The client's payloads, each on request; the others wait in the client's queue."""
        self._loop = loop = asyncio.get_running_loop()
        if self.stopping:
            return
        # Nothing else runs on the loop until the client does, so no stop can come in between.
        self.reading = True
        client = self._client
        async with aclosing(client._taken(None, wants=self._wants)) as payloads:  # noqa: SLF001 - the same client, behind a thread
            recorder = client._recorder  # noqa: SLF001
            async for payload in payloads:
                yield payload
                # Counted here, not in the callback thread: metrics are called in this thread.
                try:
                    await self._asked.wait()
                except asyncio.CancelledError:  # a callback ended the run, e.g. by Ctrl-C
                    recorder.failed(payload.kind)
                    raise
                self._asked.clear()
                if self._well:
                    recorder.delivered(payload.kind)
                else:
                    recorder.failed(payload.kind)
                if self._deadline is not None and loop.time() >= self._deadline:
                    logger.warning(
                        "%d payloads still waited %g s after the stop and are given up",
                        self._client.pending,
                        _DRAIN_SECONDS,
                    )
                    return

    def ask(self, well: bool) -> None:
        """Request the next payload.

        Args:
            well: Whether the last payload's callbacks all ended without an error.
        """
        self._well = well
        self._call(self._asked.set)

    def stop(self) -> None:
        """Stop reading."""
        self.stopping = True
        self._call(self._stop)

    def join(self) -> None:
        """Wait for the end, unless called in the callback thread, which would wait for itself."""
        if threading.current_thread() is self.worker:
            return
        if not self.ended.wait(_DRAIN_SECONDS + _GRACE_SECONDS):
            logger.error("a callback does not end; its thread is left behind")
        elif self.thread is not None:
            self.thread.join()

    def _stop(self) -> None:
        if self._deadline is None and self._loop is not None:
            self._deadline = self._loop.time() + _DRAIN_SECONDS
        self._client.stop()

    def _call(self, fn: Callable[[], object]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the run is over
                self._loop.call_soon_threadsafe(fn)


def _call_each(
    callbacks: Iterable[Callback], *args: Any, runner: asyncio.Runner | None = None
) -> bool:
    """Call all, one after the other. Return whether none raised."""
    well = True
    for callback in callbacks:
        try:
            callback.call_now(*args, runner=runner)
        except Exception:
            well = False
            logger.exception("callback %r raised", callback)
    return well
