"""LocalConnector: serves the connector's stream and its pull endpoint from a recording, on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import time
from collections.abc import Collection, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, unquote

from autoplay_rag._checks import check_above, check_choice
from autoplay_rag.devserver.activity import Activity
from autoplay_rag.devserver.pace import Pace
from autoplay_rag.devserver.posting import Poster
from autoplay_rag.devserver.shipped import samples
from autoplay_rag.devserver.source import Source, as_line, first_product, open_source
from autoplay_rag.devserver.subscriber import Subscriber
from autoplay_rag.errors import ClientStateError, MissingExtraError
from autoplay_rag.payloads import Payload
from autoplay_rag.sources.specs import ANALYTICS_TOOLS, AnalyticsTool

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from autoplay_rag.devserver.serving import ConnectorServer

__all__ = ["LocalConnector"]

_DEFAULT_PRODUCT = "local"


class LocalConnector:
    """Serves `GET /stream/{product_id}` as the connector does, from a recording.

    Every subscriber gets the recording from its beginning, line by line. After the last line the
    response stays open and carries heartbeats and the events pushed with `send`. Unlike the real
    connector, this one drops nothing: a slow reader delays only its own stream.

    Args:
        recording: A file of JSON Lines, or payloads. Bytes among the payloads are sent unchanged.
            None serves the samples of this package.
        rate: Events per second for each subscriber; None is as fast as it reads.
        token: The bearer token required; None requires none.
        heartbeat: Seconds between heartbeats; None sends none.
        loop: Start again at the end of the recording.
        product_id: The product served; by default that of the recording's first payload.
        push_only: Products that answer 400, like a product that is not in stream mode.
        host: The address to bind.
        port: The port to bind; 0 lets the system choose.

    Raises:
        ConfigurationError: If the rate or the heartbeat is not above 0.

    Example:
        >>> import asyncio, httpx
        >>> from autoplay_rag.payloads import SummaryPayload
        >>> async def first_line():
        ...     async with LocalConnector([SummaryPayload("acme", "s1", "Exported.")]) as connector:
        ...         async with httpx.AsyncClient() as client:
        ...             async with client.stream("GET", connector.url) as response:
        ...                 async for line in response.aiter_lines():
        ...                     return line
        >>> asyncio.run(first_line())
        'data: {"type":"summary","product_id":"acme","session_id":"s1","summary":"Exported.","replaces":0,"forwarded_at":0.0}'
    """

    def __init__(
        self,
        recording: str | os.PathLike[str] | Iterable[Payload | bytes] | None = None,
        rate: float | None = None,
        token: str | None = None,
        heartbeat: float | None = 30.0,
        loop: bool = False,
        *,
        product_id: str | None = None,
        push_only: Collection[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        check_above("rate", rate, optional=True)
        check_above("heartbeat", heartbeat, optional=True)
        self._source: Source = open_source(samples() if recording is None else recording)
        self._pace = Pace(rate)
        self._token = token
        self._heartbeat = heartbeat
        self._loop = loop
        self._given_product = product_id
        self._push_only = frozenset(push_only)
        self._host = host
        self._port = port
        self._product_id = ""
        self._address = ""
        self._server: ConnectorServer | None = None
        self._subscribers: set[Subscriber] = set()
        self._changed = asyncio.Event()
        self._activity: Activity

    def __repr__(self) -> str:
        return f"<LocalConnector {self.url if self._server else 'not started'}>"

    @property
    def url(self) -> str:
        """The stream's full URL.

        Raises:
            ClientStateError: If the connector is not running.
        """
        self._require_running("url")
        return f"{self._address}/stream/{quote(self._product_id, safe='')}"

    @property
    def pull_url(self) -> str:
        """The address of the pull endpoint, for `LiveActivitySource`.

        Raises:
            ClientStateError: If the connector is not running.
        """
        self._require_running("pull_url")
        return self._address

    @property
    def product_id(self) -> str:
        """The product served.

        Raises:
            ClientStateError: If the connector is not running.
        """
        self._require_running("product_id")
        return self._product_id

    @property
    def subscribers(self) -> int:
        """The number of open streams."""
        return len(self._subscribers)

    async def start(self) -> Self:
        """Start serving. Does nothing if the connector is already running.

        Returns:
            The connector itself, so that a notebook needs one line.

        Raises:
            MissingExtraError: If the extra "devserver" is not installed.
            OSError: If the recording cannot be read or the address cannot be bound.
        """
        if self._server is None:
            try:
                from autoplay_rag.devserver.serving import ConnectorServer
            except ImportError:
                raise MissingExtraError("LocalConnector", "devserver") from None
            found = await first_product(self._source)
            self._product_id = self._given_product or found or _DEFAULT_PRODUCT
            self._activity = Activity(self._source, self._pace, time.time)
            server = ConnectorServer(self._app())
            port = await server.listen(self._host, self._port)
            host = f"[{self._host}]" if ":" in self._host else self._host
            self._address = f"http://{host}:{port}"
            self._server = server
        return self

    async def send(self, payload: Payload | bytes) -> int:
        """Push one event to every open stream, ahead of the rest of the recording.

        Waits while 256 pushed events are pending for a subscriber that does not read. As with the
        real connector, an event sent while no subscriber is connected is lost to the stream. The
        pull endpoint has it.

        Args:
            payload: A payload. Bytes are sent unchanged as the data of one event.

        Returns:
            The number of subscribers that the event was queued for.

        Raises:
            ClientStateError: If the connector is not running.
        """
        self._require_running("send()")
        line = as_line(payload)
        self._activity.add(line)
        return sum(await asyncio.gather(*(each.push(line) for each in self._subscribers)))

    async def post_webhooks(
        self,
        url: str,
        tool: AnalyticsTool = "posthog",
        *,
        secret: str = "",
        batch: int = 1,
        rate: float | None = None,
    ) -> int:
        """Post the recording to a webhook, as an analytics tool would report it.

        An event that fails with a status of 5xx is posted again, up to five times. The connector
        need not be running.

        Args:
            url: The webhook, such as `http://127.0.0.1:8760/v1/webhooks/northwind/posthog`.
            tool: The tool to imitate: "posthog", "amplitude" or "segment". It reports less than the
                stream, such as not what was typed.
            secret: The secret of the webhook, sent as the tool sends it.
            batch: Events per request.
            rate: Events per second; None is as fast as they are accepted.

        Returns:
            The number of events posted.

        Raises:
            ConfigurationError: If an argument cannot be used.
            ConnectorError: If the webhook refuses an event, or cannot be reached.
        """
        check_choice("tool", tool, ANALYTICS_TOOLS)
        check_above("batch", batch, whole=True)
        check_above("rate", rate, optional=True)
        poster = Poster(url, tool, secret=secret, batch=batch, pace=Pace(rate))
        return await poster.post(self._source)

    async def wait_subscribers(self, count: int = 1) -> None:
        """Wait until exactly `count` streams are open."""
        while len(self._subscribers) != count:
            self._changed.clear()
            await self._changed.wait()

    async def aclose(self) -> None:
        """End all streams and stop serving. May be called more than once."""
        server, self._server = self._server, None
        if server is not None:
            for subscriber in self._subscribers:
                subscriber.end()
            await server.aclose()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _require_running(self, what: str) -> None:
        if self._server is None:
            raise ClientStateError(
                f"{what} needs a running LocalConnector: call `await connector.start()` "
                "or use `async with`"
            )

    def _app(self) -> Starlette:
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/stream/{product_id:path}", self._respond),
                # A path, because an id may contain an encoded slash.
                Route("/users/{path:path}/live-activity", self._respond_to_pull),
            ]
        )

    async def _respond(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        from autoplay_rag.devserver.response import EventStreamResponse

        product_id = request.path_params["product_id"]
        if not self._may_enter(request.headers.get("authorization", "")):
            return _unauthorized()
        if product_id in self._push_only:
            return JSONResponse(
                {"error": f"product {product_id!r} is not in stream mode"}, status_code=400
            )
        if product_id != self._product_id:
            return JSONResponse({"error": f"no product {product_id!r}"}, status_code=404)
        subscriber = Subscriber(
            self._source, self._pace, heartbeat=self._heartbeat, loop=self._loop
        )
        return EventStreamResponse(subscriber.stream(), self._present(subscriber))

    async def _respond_to_pull(self, request: Request) -> Response:
        from starlette.responses import JSONResponse, Response

        if not self._may_enter(request.headers.get("authorization", "")):
            return _unauthorized()
        raw = request.scope.get("raw_path", b"").decode("ascii", "replace")
        _, _, product_id, user_id, _ = ([unquote(part) for part in raw.split("/")] + [""] * 5)[:5]
        if product_id != self._product_id:
            return JSONResponse(
                {"error": f"the token is not for the product {product_id!r}"}, status_code=403
            )
        try:
            limit = int(request.query_params.get("limit", "0"))
        except ValueError:
            return JSONResponse({"error": "limit is not a whole number"}, status_code=422)
        answer, tag = await self._activity.answer(product_id, user_id, limit)
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return JSONResponse(answer, headers=headers)

    @contextlib.contextmanager
    def _present(self, subscriber: Subscriber) -> Iterator[None]:
        """Register `subscriber` for `send` while its response is open."""
        self._subscribers.add(subscriber)
        self._changed.set()
        try:
            yield
        finally:
            self._subscribers.discard(subscriber)
            subscriber.end()
            self._changed.set()

    def _may_enter(self, authorization: str) -> bool:
        if self._token is None:
            return True
        scheme, _, token = authorization.partition(" ")
        right = hmac.compare_digest(token.strip().encode(), self._token.encode())
        return scheme.lower() == "bearer" and right


def _unauthorized() -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(
        {"error": "missing or wrong bearer token"},
        status_code=401,
        headers={"WWW-Authenticate": "Bearer"},
    )
