"""The async client: reads a stream and calls back with its payloads."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, get_args

import httpx

from autoplay_rag._checks import check_above, check_at_least, check_choice
from autoplay_rag.connector.buffer import PayloadBuffer
from autoplay_rag.connector.callbacks import Callback, CallbackThreads, check_plain
from autoplay_rag.connector.connection import READ_TIMEOUT, TOKEN_VARIABLE, Endpoint, display
from autoplay_rag.connector.dispatch import Dispatcher
from autoplay_rag.connector.hooks import ConnectionHooks
from autoplay_rag.connector.metrics import ConnectorCounts, ConnectorMetrics, Recorder
from autoplay_rag.connector.overflow import Overflow
from autoplay_rag.connector.run import ClientRun
from autoplay_rag.connector.sse import MAX_EVENT_BYTES
from autoplay_rag.connector.stream import EventStream
from autoplay_rag.errors import AutoplayError, ClientStateError
from autoplay_rag.payloads import ActionsPayload, Payload, SummaryPayload

__all__ = ["TOKEN_VARIABLE", "AsyncConnectorClient", "ClientState"]

logger = logging.getLogger(__name__)

_FEW_THREADS: Final = 4

ClientState: TypeAlias = Literal[
    "idle", "connecting", "connected", "waiting", "stopping", "stopped", "failed"
]


class AsyncConnectorClient:
    """Reads a connector's stream and calls back with every payload.

    It reads at network speed, however slow the callbacks are, because the connector drops events
    for a slow reader. Up to `max_pending` payloads wait in memory.

    Payloads of one session start in order, at most `session_concurrency` at once. Sessions do not
    wait for each other, except that at most 32 plain functions run at once. Payloads without a
    session id wait for no other payload. Broken or silent connections are reopened, by default
    without limit.

    Args:
        url: The full URL of the stream, `https://.../stream/{product_id}`.
        token: The product's token; by default the value of `AUTOPLAY_APP_UNKEY_TOKEN`.
        session_concurrency: How many payloads of one session are processed at once.
        connect_timeout: Seconds to connect.
        read_timeout: Seconds without a byte after which a connection counts as lost. Heartbeats
            come every 30 s; the default allows for two missed ones.
        initial_backoff_s: Seconds before the first reconnect; it doubles with every failure.
            A server's `retry:` and `Retry-After` are followed, up to five minutes.
        max_backoff_s: The longest wait between attempts, unless the server asks for more.
        max_retries: The most retries in a row; `run` raises at the next failure. None never gives
            up. The count restarts after a connection that lasted five seconds and either received
            anything or was ended by the other side.
        retry_refusals: Whether a refusal (400, 401, 403, 404, ...) is retried at intervals of
            `max_backoff_s` for as long as it lasts, also before the first connection. By default
            it ends the run; see `run`.
        drain_timeout: Seconds after a stop to process received payloads and finish the hooks.
        max_pending: The most payloads that wait or are being processed.
        overflow: What to do when `max_pending` is reached. "wait" stops reading until there is
            room; the connector may drop events meanwhile, and those are not counted.
            "drop_oldest" drops and counts the payload that has waited longest.
        max_event_bytes: Larger events are skipped and counted.
        on_connect: Called without arguments whenever a connection is made. Payload callbacks wait
            until it ends, for at most 30 seconds from the connection.
        on_disconnect: Called without arguments whenever a connection has ended, unless `run` was
            cancelled or `drain_timeout` has passed. Connects and disconnects during a running
            hook are coalesced.
        on_error: Called with a payload and the exception a callback raised for it.
        on_drop: Called on the event loop with each dropped payload and the total so far. Must be
            a plain function that does not block.
        metrics: An object with the methods of `ConnectorMetrics`, or with the public SDK's
            `record_event_dropped` and `record_queue_depth`.
        http_client: Sends the requests; set it to use your own proxies or certificates. It is not
            closed. By default each run opens its own.

    Raises:
        ConfigurationError: If an argument is invalid.

    Example:
        >>> client = AsyncConnectorClient("https://connector.example/stream/acme", "uk_live_...")
        >>> client.on_actions(lambda payload: print(payload.to_text())).state
        'idle'
    """

    def __init__(  # noqa: PLR0917 - the public SDK's order
        self,
        url: str,
        token: str = "",
        # The public SDK's order, since callers may pass these by position. Our own follow.
        connect_timeout: float = 10.0,
        session_concurrency: int = 4,
        initial_backoff_s: float = 1.0,
        max_backoff_s: float = 30.0,
        max_retries: int | None = None,
        on_connect: Callable[[], Any] | None = None,
        on_disconnect: Callable[[], Any] | None = None,
        metrics: ConnectorMetrics | None = None,
        *,
        read_timeout: float = READ_TIMEOUT,
        retry_refusals: bool = False,
        drain_timeout: float = 30.0,
        max_pending: int = 100_000,
        overflow: Overflow = "wait",
        max_event_bytes: int = MAX_EVENT_BYTES,
        on_error: Callable[[Payload, BaseException], Any] | None = None,
        on_drop: Callable[[Payload, int], Any] | None = None,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        check_above("connect_timeout", connect_timeout)
        check_above("session_concurrency", session_concurrency)
        check_above("initial_backoff_s", initial_backoff_s)
        check_at_least("max_backoff_s", max_backoff_s, initial_backoff_s)
        check_at_least("max_retries", max_retries, 0, optional=True)
        check_above("read_timeout", read_timeout)
        check_at_least("drain_timeout", drain_timeout, 0)
        check_above("max_pending", max_pending)
        check_choice("overflow", overflow, get_args(Overflow))
        check_above("max_event_bytes", max_event_bytes)
        check_plain("on_drop", on_drop)
        self._endpoint = Endpoint(
            url,
            token or os.environ.get(TOKEN_VARIABLE, ""),
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )
        self._recorder = Recorder(metrics)
        self._stream = EventStream(
            self._endpoint,
            self._recorder,
            initial_backoff_s=initial_backoff_s,
            max_backoff_s=max_backoff_s,
            max_retries=max_retries,
            retry_refusals=retry_refusals,
            max_event_bytes=max_event_bytes,
            http_client=http_client,
            on_connected=self._connected,
            on_lost=self._lost,
        )
        self._threads = CallbackThreads()
        # Separate threads: slow callbacks must not delay hooks or `on_error`, nor these each other.
        self._hook_threads = CallbackThreads(_FEW_THREADS)
        self._error_threads = CallbackThreads(_FEW_THREADS)
        self._callbacks: dict[str, list[Callback]] = {}
        self._on_connect = _optional(on_connect, self._hook_threads)
        self._on_disconnect = _optional(on_disconnect, self._hook_threads)
        self._on_error = _optional(on_error, self._error_threads)
        self._on_drop = on_drop
        self._session_concurrency = session_concurrency
        self._drain_timeout = drain_timeout
        self._max_pending = max_pending
        self._overflow: Overflow = overflow
        self._run: ClientRun | None = None
        self._abandoned: list[ClientRun] = []
        self._background: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, state={self.state!r})"

    def on_actions(self, fn: Callable[[ActionsPayload], Any]) -> Self:
        """Add a callback for batches of actions.

        Args:
            fn: `async def` or a plain function. Plain functions run in the client's own threads,
                at most 32 at once; when all are busy, sessions wait for each other.
                Several may be added. Each is called for every payload, even if another raises.

        Returns:
            The client, so that calls can be chained.
        """
        return self._add(ActionsPayload.kind, fn)

    def on_summary(self, fn: Callable[[SummaryPayload], Any]) -> Self:
        """Add a callback for summaries; see `on_actions`."""
        return self._add(SummaryPayload.kind, fn)

    async def run(self) -> None:
        """Read and call back until `stop`, or until an error that a retry cannot fix.

        After a stop or an error, received payloads are still processed, for at most
        `drain_timeout` seconds. Cancelling cancels the callbacks and waits for them to end.

        Raises:
            ConnectorStatusError: If the connector refuses (400, 401, 403, 404, ...). Once a
                connection was made, a 404 is retried, and any other refusal is retried five times
                at intervals of `max_backoff_s`. With `retry_refusals`, all are retried.
            NotAnEventStreamError: If the response is not an event stream, and none was before.
            RedirectError: If it redirects to another origin, which must not see the token.
            ConnectorError: If TLS fails in the same way at every attempt before the first
                connection.
            ConfigurationError: If the environment names a proxy or certificates that cannot be
                used.
            RetriesExhaustedError: If `max_retries` retries in a row failed too.
            ClientStateError: If the client is running already, or there is no asyncio event loop.
        """
        dispatcher = self._dispatcher()
        await self._drive(self._begin(dispatcher), dispatcher)

    def run_in_background(self) -> asyncio.Task[None]:
        """Start `run` as a task. If the run fails, its error is logged.

        Raises:
            ClientStateError: If the client is running already.
        """
        dispatcher = self._dispatcher()
        run = self._begin(dispatcher)
        run.in_background = True
        task = run.loop.create_task(self._drive(run, dispatcher), name="autoplay-connector")
        task.add_done_callback(functools.partial(self._background_ended, run))
        self._background = task
        return task

    def stop(self) -> None:
        """Stop reading; `run` returns when the received payloads are processed.

        Safe from any thread, at any time, and more than once.
        """
        if self._run is not None:
            self._run.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if self._run is not None and not self._run.over:
            await self._run.ended.wait()

    def stream(
        self, limit: int | None = None, seconds: float | None = None, idle: float | None = None
    ) -> AsyncGenerator[Payload, None]:
        """Iterate over the payloads, without callbacks.

        The stream is read at network speed, however slow the consumer is. Up to `max_pending`
        payloads wait for it. After an early exit from the loop, the connection stays open until
        the generator is closed; `contextlib.aclosing` closes it at once.

        Args:
            limit: End after this many payloads.
            seconds: End after this many seconds. Payloads received by then are still yielded.
            idle: End after this many seconds without a payload or a new connection.

        Yields:
            Payloads in the order they arrived.

        Raises:
            ConfigurationError: If an argument is below 0.
            ClientStateError: If the client is running already.
            ConnectorError: As `run`.
        """
        for name, value in (("limit", limit), ("seconds", seconds), ("idle", idle)):
            check_at_least(name, value, 0, optional=True)
        return self._taken(self._recorder.delivered, limit=limit, seconds=seconds, idle=idle)

    async def _taken(
        self,
        on_taken: Callable[[str], None] | None,
        *,
        limit: int | None = None,
        seconds: float | None = None,
        idle: float | None = None,
        wants: Callable[[Payload], bool] | None = None,
    ) -> AsyncGenerator[Payload, None]:
        """As `stream`.

        Args:
            on_taken: Called with the kind of each payload when it is handed out.
            limit: As `stream`.
            seconds: As `stream`.
            idle: As `stream`.
            wants: See `PayloadBuffer`.
        """
        _require_asyncio()
        buffer = PayloadBuffer(
            self._recorder,
            wanted=limit,
            seconds=seconds,
            idle=idle,
            wants=wants,
            limit=self._max_pending,
            overflow=self._overflow,
            on_drop=self._on_drop,
        )
        run = self._begin(buffer)
        buffer.start(run.stop)
        reading = run.loop.create_task(run.read(), name="autoplay-connector")
        reading.add_done_callback(lambda _: buffer.close())

        async def end() -> None:
            await asyncio.wait({reading})
            await run.hooks.join(self._drain_timeout)
            # Leaving `async with` must not wait until the consumer has taken the rest.
            run.ended.set()

        ending = run.loop.create_task(end(), name="autoplay-connector-end")
        error: BaseException | None = None
        try:
            while (payload := buffer.take_nowait() or await buffer.take()) is not None:
                if on_taken is not None:
                    on_taken(payload.kind)
                yield payload
            await asyncio.wait({reading})
            error = None if reading.cancelled() else reading.exception()
            if error is not None:
                raise error
        finally:
            reading.cancel()
            await asyncio.wait({reading})
            buffer.discard()
            await asyncio.wait({ending})
            self._end(run, error)

    async def wait_connected(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the field's name for it
        """Wait until there is a connection.

        Args:
            timeout: Seconds to wait at most; None for no limit.

        Raises:
            TimeoutError: If there was none in time.
            ClientStateError: If the client is not running.
            ConnectorError: The run's error, if it failed.
        """
        run = self._run
        if run is None:
            raise ClientStateError("the client is not running; call run_in_background() first")
        if not run.over:
            async with asyncio.timeout(timeout):
                await run.connected.wait()
        if run.error is not None:
            raise run.error
        if run.over:
            raise ClientStateError("the client was stopped")

    @property
    def url(self) -> str:
        """The stream's URL, safe to show: without user, password and query."""
        return display(self._endpoint.url)

    @property
    def state(self) -> ClientState:
        """The current state. Safe from any thread.

        "idle" before the first run; "waiting" for the next attempt; "stopping" while it processes
        received payloads but no longer reads; "failed" once a run ended with an error.
        """
        run = self._run
        if run is None:
            return "idle"
        if run.over:
            return "stopped" if run.error is None else "failed"
        if run.stopping:
            return "stopping"
        return "connecting" if self._stream.state == "idle" else self._stream.state

    @property
    def last_event_at(self) -> float | None:
        """Unix seconds when the last event came, heartbeats included."""
        return self._stream.last_event_at

    @property
    def last_error(self) -> Exception | None:
        """Why the last connection or attempt ended; None if none has. Safe from any thread.

        After a failed run it is the error that ended the run, or the last attempt's error if
        `max_retries` was reached.
        """
        found = self._stream.last_error
        run = self._run
        if found is None and run is not None and isinstance(run.error, Exception):
            return run.error  # it failed before its first attempt
        return found

    @property
    def refusal(self) -> Exception | None:
        """The last attempt's error, if the connector refused it; None after a connection.

        Safe from any thread.
        """
        return self._stream.refusal

    @property
    def pending(self) -> int:
        """How many payloads wait or are being processed."""
        return 0 if self._run is None or self._run.over else self._run.sink.pending

    @property
    def dropped_count(self) -> int:
        """How many payloads were dropped: by `overflow`, or unprocessed when a run ended."""
        return self._recorder.counts.dropped

    @property
    def counts(self) -> ConnectorCounts:
        """All totals, over all runs."""
        return self._recorder.counts

    def _add(self, kind: str, fn: Callable[..., Any]) -> Self:
        self._callbacks.setdefault(kind, []).append(Callback(fn, self._threads))
        return self

    def _dispatcher(self) -> Dispatcher:
        _require_asyncio()
        return Dispatcher(
            self._callbacks,
            self._recorder,
            on_error=self._on_error,
            session_concurrency=self._session_concurrency,
            limit=self._max_pending,
            overflow=self._overflow,
            on_drop=self._on_drop,
        )

    def _begin(self, sink: Dispatcher | PayloadBuffer) -> ClientRun:
        if self._run is not None and not self._run.over:
            raise ClientStateError("the client is running already; stop it first, or make another")
        if self._run is not None and self._run.loop.is_closed():
            # Keep a reference: destroying its tasks would run their cleanup during the new run.
            self._abandoned.append(self._run)
        hooks = ConnectionHooks(self._on_connect, self._on_disconnect)
        self._run = ClientRun(self._stream, sink, hooks)
        return self._run

    async def _drive(self, run: ClientRun, dispatcher: Dispatcher) -> None:
        error: Exception | None = None
        try:
            try:
                await run.read()
            except Exception as found:  # noqa: BLE001 - raised again below, after the drain
                error = found
            until = run.loop.time() + self._drain_timeout
            await dispatcher.drain(self._drain_timeout)
            await run.hooks.join(max(0.0, until - run.loop.time()))
            if error is not None:
                raise error
        except asyncio.CancelledError:
            await dispatcher.cancel()
            await run.hooks.cancel()
            raise
        finally:
            self._end(run, error)

    def _end(self, run: ClientRun, error: BaseException | None) -> None:
        for threads in (self._threads, self._hook_threads, self._error_threads):
            threads.close()
        if error is not None and run.in_background:
            unexpected = None if isinstance(error, AutoplayError) else error
            logger.error("the connector client ended: %s", error, exc_info=unexpected)
        run.finish(error)

    def _background_ended(self, run: ClientRun, task: asyncio.Task[None]) -> None:
        if self._background is task:
            self._background = None
        if not run.over:
            run.finish()  # cancelled before its first step
        if not task.cancelled():
            task.exception()  # already logged; this stops asyncio's "never retrieved" warning

    def _connected(self) -> None:
        run = self._run
        assert run is not None
        run.connected.set()
        run.sink.connection_made(run.hooks.connected())

    def _lost(self) -> None:
        run = self._run
        assert run is not None
        run.connected.clear()
        run.hooks.lost()


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ClientStateError(
            "no asyncio event loop is running here. AsyncConnectorClient needs asyncio: start it with "
            "asyncio.run(). Under trio, or without an event loop, use ConnectorClient, which runs in "
            "threads of its own"
        ) from None


def _optional(fn: Callable[..., Any] | None, threads: CallbackThreads) -> Callback | None:
    return None if fn is None else Callback(fn, threads)
