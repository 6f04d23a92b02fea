"""Push mode: the connector posts each payload, and retries until it is acknowledged."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, Self

from autoplay_rag._checks import check_above
from autoplay_rag._describe import describe
from autoplay_rag.connector.asgi import (
    ASGIApp,
    Receive,
    Scope,
    Send,
    SenderGoneError,
    read_body,
)
from autoplay_rag.connector.callbacks import Callback, CallbackThreads
from autoplay_rag.connector.sse import MAX_EVENT_BYTES
from autoplay_rag.decoding import decode
from autoplay_rag.errors import (
    BodyTooLargeError,
    ConfigurationError,
    DecodeError,
    JournalError,
    PipelineClosedError,
    PipelineError,
    SignatureError,
    UnknownPayloadError,
)
from autoplay_rag.payloads import ActionsPayload, Payload, SummaryPayload

__all__ = ["ASGIApp", "Pipeline", "WebhookReceiver", "webhook_app"]

logger = logging.getLogger(__name__)

_HEADER: Final = b"x-connector-signature"
_OK: Final = 200
_UNAVAILABLE: Final = 503
_REFUSALS: Final = {DecodeError: 400, SignatureError: 401, BodyTooLargeError: 413}


class WebhookReceiver:
    """Verifies and decodes the connector's requests, and calls back with their payloads.

    For your own endpoint in any web framework: pass it the raw body and the header
    `X-Connector-Signature`. To fill a pipeline, use `webhook_app`, which is a complete endpoint.

    A body that is signed but is not a JSON object raises `DecodeError`. The public SDK returns
    None, and an endpoint that then answers 200 loses the payload silently.

    Args:
        secret: The secret the connector signs with.
        on_actions: Called with each batch of actions.
        on_summary: Called with each summary.
        allow_unsigned: Allows an empty secret. Then signatures are not checked, and anyone who
            knows the URL can post. With a secret it has no effect.
        max_body_bytes: Larger bodies are refused.

    Attributes:
        max_body_bytes: The limit as given.

    Raises:
        ConfigurationError: If the secret is empty without `allow_unsigned`, or the limit is not
            above 0.

    Example:
        >>> import hashlib, hmac
        >>> body = b'{"type": "summary", "session_id": "s1", "summary": "Exported a report."}'
        >>> signature = "sha256=" + hmac.new(b"whsec", body, hashlib.sha256).hexdigest()
        >>> receiver = WebhookReceiver("whsec", on_summary=lambda payload: print(payload.summary))
        >>> receiver.handle_sync(body, signature).session_id
        Exported a report.
        's1'
    """

    def __init__(
        self,
        secret: str | bytes = "",
        on_actions: Callable[[ActionsPayload], Any] | None = None,
        on_summary: Callable[[SummaryPayload], Any] | None = None,
        *,
        allow_unsigned: bool = False,
        max_body_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        if not secret and not allow_unsigned:
            raise ConfigurationError(
                "the webhook's secret is empty, so anyone could post: give the secret the connector "
                "signs with, or allow_unsigned=True where nobody else can reach the endpoint"
            )
        check_above("max_body_bytes", max_body_bytes)
        self._secret = secret.encode() if isinstance(secret, str) else secret
        self.max_body_bytes = max_body_bytes
        self._threads = CallbackThreads()
        self._callbacks: dict[str, list[Callback]] = {}
        if on_actions is not None:
            self.on_actions(on_actions)
        if on_summary is not None:
            self.on_summary(on_summary)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'signed' if self._secret else 'unsigned'})"

    def on_actions(self, fn: Callable[[ActionsPayload], Any]) -> Self:
        """Add a callback for batches of actions.

        Args:
            fn: `async def` or a plain function; several are called one after the other.

        Returns:
            The receiver, so that calls can be chained.
        """
        return self._add(ActionsPayload.kind, fn)

    def on_summary(self, fn: Callable[[SummaryPayload], Any]) -> Self:
        """Add a callback for summaries; see `on_actions`."""
        return self._add(SummaryPayload.kind, fn)

    def verify(self, body: bytes, signature_header: str | bytes | None) -> bool:
        """Whether the body was signed with the secret. Compares in constant time.

        Args:
            body: The raw body, byte for byte.
            signature_header: `sha256=` and the lower-case hex digest; None if there is none.
        """
        if not self._secret:
            return True
        given = signature_header or b""
        if isinstance(given, str):
            given = given.encode("utf-8", "replace")
        wanted = b"sha256=" + hmac.digest(self._secret, body, "sha256").hex().encode()
        return hmac.compare_digest(given, wanted)

    def read(self, body: bytes, signature_header: str | bytes | None = None) -> Payload | None:
        """The payload of a delivery, without calling back.

        Args:
            body: The raw body, byte for byte.
            signature_header: The value of `X-Connector-Signature`.

        Returns:
            The payload; None if this version does not know its type. Acknowledge it all the same.

        Raises:
            BodyTooLargeError: If the body is over the limit: answer 413.
            SignatureError: If the signature is missing or wrong: answer 401.
            DecodeError: If the body is not a JSON object: answer 400.
        """
        if len(body) > self.max_body_bytes:
            raise BodyTooLargeError(self.max_body_bytes)
        if not self.verify(body, signature_header):
            raise SignatureError(
                "X-Connector-Signature does not fit the body"
                if signature_header
                else "X-Connector-Signature is missing"
            )
        try:
            return decode(body, on_repair=_repaired)
        except UnknownPayloadError as error:
            logger.debug("acknowledged without use: %s", error)
            return None

    def parse(self, body: bytes) -> Payload | None:
        """The payload of a body, without checking the signature. Check it elsewhere.

        Returns:
            The payload; None if this version does not know its type, or if it cannot be decoded,
            which is logged.
        """
        try:
            return decode(body, on_repair=_repaired)
        except UnknownPayloadError as error:
            logger.debug("acknowledged without use: %s", error)
        except DecodeError as error:
            logger.warning("a body could not be read: %s", error)
        return None

    async def handle(
        self, body: bytes, signature_header: str | bytes | None = None
    ) -> Payload | None:
        """Read a delivery and call back; plain callbacks run in a thread.

        An exception from a callback propagates. Let it become a 5xx response: then the connector
        sends the payload again.

        Returns:
            As `read`.

        Raises:
            WebhookError: As `read`.
            DecodeError: As `read`.
        """
        payload = self.read(body, signature_header)
        for callback in self._wanting(payload):
            await callback.call(payload)
        return payload

    def handle_sync(
        self, body: bytes, signature_header: str | bytes | None = None
    ) -> Payload | None:
        """As `handle`, without an event loop: callbacks run in this thread, one after the other.

        Raises:
            WebhookError: As `read`.
            DecodeError: As `read`.
            ConfigurationError: If a callback is async.
        """
        payload = self.read(body, signature_header)
        for callback in self._wanting(payload):
            callback.call_now(payload)
        return payload

    def _add(self, kind: str, fn: Callable[..., Any]) -> Self:
        self._callbacks.setdefault(kind, []).append(Callback(fn, self._threads))
        return self

    def _wanting(self, payload: Payload | None) -> list[Callback]:
        return self._callbacks.get(payload.kind, []) if payload is not None else []


class Pipeline(Protocol):
    """The part of `IngestPipeline` that `webhook_app` uses."""

    def accept(self, payload: Payload, /) -> Awaitable[str]:
        """Hand over a payload; the awaitable finishes when the journal has committed."""

    async def start(self) -> None:
        """Start; raises PipelineError if it is running already."""

    async def aclose(self) -> None:
        """Drain and close."""


def webhook_app(
    pipeline: Pipeline,
    secret: str | bytes,
    *,
    max_body_bytes: int = MAX_EVENT_BYTES,
    allow_unsigned: bool = False,
    timeout: float = 30.0,
) -> ASGIApp:
    """An ASGI application that puts the connector's webhook payloads into a pipeline.

    It answers 200 once the journal has committed, also for duplicates, payloads that `select`
    or `redact` refused, and unknown types. It answers 503 when the payload could not be stored
    (the journal is full or fails, the pipeline is closed, or the timeout passed); the connector
    then retries. 400, 401, 405 and 413 mean that a retry would not help.

    Serve it alone (`uvicorn module:app`), or as a route or a mount of a larger application.
    Served alone, it starts the pipeline and closes it at shutdown, unless the pipeline was running
    already. A larger application must start the pipeline itself, on the same event loop.

    Args:
        pipeline: Takes the payloads.
        secret: The secret the connector signs with.
        max_body_bytes: Larger bodies are refused, and never held in memory.
        allow_unsigned: Allows an empty secret, as for `WebhookReceiver`.
        timeout: Seconds that a body may take to arrive and be committed.

    Raises:
        ConfigurationError: If an argument is invalid.

    Example:
        >>> from autoplay_rag import IngestPipeline
        >>> from autoplay_rag.stores import MemoryStore
        >>> app = webhook_app(IngestPipeline(store=MemoryStore()), secret="whsec")
    """
    check_above("timeout", timeout)
    receiver = WebhookReceiver(secret, allow_unsigned=allow_unsigned, max_body_bytes=max_body_bytes)
    return _WebhookApp(pipeline, receiver, timeout)


class _WebhookApp:
    """An object, not a function, so that Starlette uses it as an ASGI endpoint of a route."""

    def __init__(self, pipeline: Pipeline, receiver: WebhookReceiver, timeout: float) -> None:
        self._pipeline = pipeline
        self._receiver = receiver
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            raise ValueError(f"webhook_app serves HTTP, not {scope['type']!r}")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _respond(send, 405, "only POST is served here", (b"allow", b"POST"))
            return
        try:
            status, text = await self._take(scope, receive)
        except SenderGoneError:
            logger.debug("a sender went away before its body had come")
            return
        if status != _OK:
            logger.warning("answered a delivery with %d: %s", status, text)
        await _respond(send, status, text)

    async def _take(self, scope: Scope, receive: Receive) -> tuple[int, str]:
        """Store the payload. Return the HTTP status and its reason."""
        try:
            async with asyncio.timeout(self._timeout):
                body = await read_body(receive, self._receiver.max_body_bytes)
                payload = self._receiver.read(body, _signature(scope))
                outcome = (
                    "unknown type" if payload is None else await self._pipeline.accept(payload)
                )
        except (BodyTooLargeError, SignatureError, DecodeError) as error:
            return _REFUSALS[type(error)], str(error)
        except TimeoutError:
            return _UNAVAILABLE, f"the payload was not kept within {self._timeout:g} s"
        except (JournalError, PipelineClosedError) as error:
            # Logged, not returned: the message may name files of this machine.
            logger.warning("a delivered payload could not be kept: %s", error)
            return _UNAVAILABLE, "the payload could not be kept now"
        if outcome == "overflow":
            return _UNAVAILABLE, "the journal is full"
        if outcome == "waiting":  # of a relay
            return _UNAVAILABLE, "the broker does not answer"
        return _OK, outcome

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start and close the pipeline with the server, unless it was running already."""
        started = False
        while (message := await receive())["type"] == "lifespan.startup":
            try:
                started = await self._start()
            except Exception as error:  # noqa: BLE001 - the server logs it and ends
                await send({"type": "lifespan.startup.failed", "message": describe(error)})
                return
            await send({"type": "lifespan.startup.complete"})
        assert message["type"] == "lifespan.shutdown"
        try:
            if started:
                await self._pipeline.aclose()
        except Exception as error:  # noqa: BLE001 - the server logs it and ends
            await send({"type": "lifespan.shutdown.failed", "message": describe(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> bool:
        try:
            await self._pipeline.start()
        except PipelineError:
            return False  # it is running already; its owner closes it
        return True


def _signature(scope: Scope) -> bytes | None:
    return next((value for name, value in scope["headers"] if name.lower() == _HEADER), None)


async def _respond(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"detail": text}).encode()
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def _repaired(what: str) -> None:
    logger.debug("a value was given up: %s", what)
