"""A connector's stream as an async iterator of reads, over any number of connections."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Final, Literal, TypeAlias

import httpx

from autoplay_rag._describe import describe
from autoplay_rag.connector.backoff import MOST_REFUSALS, REFUSALS, Backoff, classify
from autoplay_rag.connector.connection import Endpoint, bare, display, open_stream, tls_fault
from autoplay_rag.connector.metrics import Recorder
from autoplay_rag.connector.sse import MAX_EVENT_BYTES, Event, EventParser
from autoplay_rag.decoding import decode
from autoplay_rag.errors import (
    ConnectorError,
    DecodeError,
    RetriesExhaustedError,
    TransientError,
    UnknownPayloadError,
)
from autoplay_rag.payloads import Payload

__all__ = ["EventStream", "StreamState"]

logger = logging.getLogger(__name__)

StreamState: TypeAlias = Literal["idle", "connecting", "connected", "waiting"]

_HEARTBEAT: Final = "heartbeat"
_COMPLAIN_EVERY: Final = 60.0


class EventStream:
    """Connects, authenticates, reconnects and resumes; iterating yields what each read brought.

    One iteration at a time. It ends only with an error that a retry cannot fix, or when the
    iterator is closed or its task cancelled.

    Args:
        endpoint: Where and how to connect.
        recorder: Counts what happens.
        initial_backoff_s: Seconds before the first reconnect.
        max_backoff_s: The longest wait between attempts, unless the server asks for more.
        max_retries: The most retries in a row before it gives up; None never gives up.
        retry_refusals: Whether refusals are retried as slowly and for as long as they last.
        max_event_bytes: Larger events are skipped and counted.
        http_client: Sends the requests and is not closed; by default each iteration opens its own.
        on_connected: Called when a connection is made; must be quick.
        on_lost: Called when an open connection has ended; must be quick.

    Attributes:
        state: "idle", "connecting", "connected", or "waiting" (for the next attempt).
        last_event_at: Unix seconds of the last event, heartbeats included; None before the first.
        last_event_id: The last id the server sent; "" if it sent none.
        last_error: Why the last connection or attempt ended; None if none has.
        refusal: The last attempt's error, if the connector refused it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        recorder: Recorder,
        *,
        initial_backoff_s: float = 1.0,
        max_backoff_s: float = 30.0,
        max_retries: int | None = None,
        retry_refusals: bool = False,
        max_event_bytes: int = MAX_EVENT_BYTES,
        http_client: httpx.AsyncClient | None = None,
        on_connected: Callable[[], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.state: StreamState = "idle"
        self.last_event_at: float | None = None
        self.last_event_id = ""
        self.last_error: Exception | None = None
        self.refusal: Exception | None = None
        self._endpoint = endpoint
        self._recorder = recorder
        self._initial_backoff_s = initial_backoff_s
        self._max_backoff_s = max_backoff_s
        self._max_retries = max_retries
        self._retry_refusals = retry_refusals
        self._max_event_bytes = max_event_bytes
        self._http_client = http_client
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._said_lost = False
        self._silent = True  # whether the connection has received no byte yet
        self._refusals = 0
        self._tls_faults = 0
        self._complaints = 0
        self._complained_at = -_COMPLAIN_EVERY

    async def __aiter__(self) -> AsyncGenerator[Iterator[Payload], None]:
        """The payloads of each read, from all connections.

        They are decoded as they are taken. One that was not taken does not count as received.

        Raises:
            ConnectorStatusError: If the connector refuses. Before the first connection, at once;
                later, only after several slow retries were refused too, and never for a 404. With
                `retry_refusals`, never.
            NotAnEventStreamError: If the response is not an event stream, and none was before.
            RedirectError: If it redirects to another origin, which must not see the token. After
                the first connection it is retried like a refusal.
            ConnectorError: If TLS fails in the same way at every attempt before the first
                connection.
            ConfigurationError: If the environment names a proxy or certificates that cannot be
                used.
            RetriesExhaustedError: If `max_retries` retries in a row failed too.
        """
        backoff = Backoff(self._initial_backoff_s, self._max_backoff_s)
        given = self._http_client
        worked = False
        self._refusals = self._tls_faults = 0
        try:
            async with nullcontext(given) if given else await self._endpoint.http_client() as http:
                while True:
                    try:
                        async with self._connection(http, backoff) as (body, parser):
                            worked = True
                            self._refusals = 0
                            async for chunk in body:
                                self._silent = False
                                if events := parser.feed(chunk):
                                    yield self._payloads(events, backoff)
                        failure: Exception = TransientError("the connector closed the stream")
                    except Exception as error:  # noqa: BLE001 - raised below, unless retried
                        failure = bare(error)
                    self.last_error = failure
                    self.refusal = failure if isinstance(failure, REFUSALS) else None
                    # Raised outside `except`, which would attach the error that `bare` stripped.
                    verdict = classify(failure, worked=worked)
                    if verdict == "fatal" and self.refusal and self._retry_refusals:
                        verdict = "refused"
                    if verdict == "fatal":
                        raise failure
                    if verdict == "refused":
                        delay = self._delay_after_refusal(backoff, failure)
                    elif (fault := tls_fault(failure)) is not None:
                        delay = self._delay_after_tls_fault(backoff, failure, fault, worked=worked)
                    else:
                        delay = self._next_delay(backoff, failure)
                    self.state = "waiting"
                    await asyncio.sleep(delay)
        finally:
            self.state = "idle"

    @asynccontextmanager
    async def _connection(
        self, http: httpx.AsyncClient, backoff: Backoff
    ) -> AsyncIterator[tuple[httpx.AsyncByteStream, EventParser]]:
        self.state = "connecting"
        parser = EventParser(
            self.last_event_id, max_event_bytes=self._max_event_bytes, on_oversize=self._oversize
        )
        async with open_stream(http, self._endpoint, self.last_event_id) as body:
            self.state = "connected"
            self.refusal = None
            self._silent = True
            started = time.monotonic()
            again = self._said_lost
            self._said_lost = False
            logger.log(
                # The same level as the warning that the connection was lost.
                logging.WARNING if again else logging.INFO,
                "connected again to %s" if again else "connected to %s",
                display(self._endpoint.url),
            )
            self._recorder.connected()
            if self._on_connected:
                self._on_connected()
            timed_out = False
            try:
                yield body, parser
            except httpx.ReadTimeout:
                timed_out = True
                raise
            finally:
                lasted = time.monotonic() - started
                backoff.connection_ended(lasted=lasted, silent=timed_out and self._silent)
                if self._on_lost:
                    self._on_lost()

    def _payloads(self, events: Sequence[Event], backoff: Backoff) -> Iterator[Payload]:
        self.last_event_at = time.time()
        for event in events:
            payload = self._read(event, backoff)
            if payload is not None:
                yield payload

    def _read(self, event: Event, backoff: Backoff) -> Payload | None:
        """The payload of an event; None for a heartbeat or an event that is not a payload."""
        data: bytes | str
        if isinstance(event, bytes):
            data = event
        else:
            self.last_event_id = event.id
            if event.retry is not None:
                backoff.ask(event.retry)
            data = "" if event.event == _HEARTBEAT else event.data
        if not data:
            return None
        try:
            payload = decode(data, on_repair=self._repaired)
        except UnknownPayloadError as error:
            self._recorder.skipped("unknown_type")
            logger.debug("skipped an event: %s", error)
            return None
        except DecodeError as error:
            self._recorder.skipped("malformed")
            self._complain(str(error))
            return None
        self._recorder.received(payload.kind)
        return payload

    def _oversize(self) -> None:
        self._recorder.skipped("oversize")
        self._complain(f"an event is larger than max_event_bytes={self._max_event_bytes}")

    def _repaired(self, what: str) -> None:
        self._recorder.repaired()
        logger.debug("a value was given up: %s", what)

    def _complain(self, about: str) -> None:
        """Warn of skipped events, at most once a minute: a broken sender may send many."""
        self._complaints += 1
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_EVERY:
            logger.warning("skipped %d event(s), lastly because %s", self._complaints, about)
            self._complaints, self._complained_at = 0, now

    def _delay_after_refusal(self, backoff: Backoff, failure: Exception) -> float:
        """Seconds to wait after a refusal that is retried.

        Raises:
            Exception: The refusal itself, after too many in a row.
        """
        if self._given_up(backoff):
            raise failure
        self._refusals += 1
        self._said_lost = True
        if self._retry_refusals:
            delay = backoff.refused()
            logger.error(
                "%s refuses (%s); trying again in %.1f s",
                display(self._endpoint.url),
                describe(failure),
                delay,
            )
            return delay
        if self._refusals > MOST_REFUSALS:
            raise failure
        delay = backoff.refused()
        logger.error(
            "%s gave a stream before and refuses now (%s); retry %d of %d in %.1f s, then the client "
            "ends",
            display(self._endpoint.url),
            describe(failure),
            self._refusals,
            MOST_REFUSALS,
            delay,
        )
        return delay

    def _delay_after_tls_fault(
        self, backoff: Backoff, failure: Exception, fault: str, *, worked: bool
    ) -> float:
        """Seconds to wait after a TLS fault that a retry alone will not fix.

        If there was a stream before, retries continue: the certificate will likely be renewed.

        Raises:
            ConnectorError: If there was no stream before, and TLS failed several times.
        """
        said = (
            f"no TLS connection to {display(self._endpoint.url)}: {fault}; check the url, this "
            "machine's clock and the trusted certificates (SSL_CERT_FILE)"
        )
        self._tls_faults += 1
        if not worked and (self._tls_faults > MOST_REFUSALS or self._given_up(backoff)):
            raise ConnectorError(said) from failure
        delay = self._next_delay(backoff, failure)
        logger.error("%s", said)
        return delay

    def _given_up(self, backoff: Backoff) -> bool:
        return self._max_retries is not None and backoff.failures >= self._max_retries

    def _next_delay(self, backoff: Backoff, failure: Exception) -> float:
        name = display(self._endpoint.url)
        if self._given_up(backoff):
            raise RetriesExhaustedError(
                f"gave up on {name} after {backoff.failures + 1} failed attempts in a row "
                f"(max_retries={self._max_retries}); the last: {describe(failure)}"
            ) from failure
        asked = failure.retry_after if isinstance(failure, TransientError) else None
        delay = backoff.next_delay(asked)
        self._said_lost = True
        logger.warning(
            "no stream from %s (%s); trying again in %.1f s", name, describe(failure), delay
        )
        return delay
