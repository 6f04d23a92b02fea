"""The running server that a command speaks to, if there is one, and requests to it."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from autoplay_rag._describe import describe
from autoplay_rag._http_environment import environment_proxy, tls_context
from autoplay_rag._secrets import secret_from
from autoplay_rag.cli.console import clean, note
from autoplay_rag.cli.interrupts import Interrupts
from autoplay_rag.cli.options import URL_VARIABLE, Place
from autoplay_rag.cli.telling import teller
from autoplay_rag.errors import (
    ConfigurationError,
    ServerAccessError,
    ServerError,
    ServerUnavailableError,
)
from autoplay_rag.maintenance.progress import Progress
from autoplay_rag.remote.client import ServeClient
from autoplay_rag.serve.running import find_running

__all__ = [
    "KEY_VARIABLE",
    "Api",
    "Server",
    "ask",
    "find_server",
    "read",
    "server_of",
]

T = TypeVar("T")

KEY_VARIABLE: Final = "AUTOPLAY_RAG_KEY"
_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 300.0
_CANCEL_SECONDS: Final = 30.0
_ATTEMPTS: Final = 5
"""How often in a row a look at a job may fail."""
_SOON, _LATER = 0.02, 1.0
"""The first and the longest wait between two looks at a job."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server to ask.

    Attributes:
        url: Its address.
        key: A key.
        journal: Its journal; None if the environment names the server, which may be anywhere.
    """

    url: str
    key: str = field(repr=False)
    journal: Path | None

    def path(self, path: Path) -> str:
        """Return a path on the server's machine.

        Raises:
            ConfigurationError: If it is relative, and the server may be on another machine.
        """
        path = path.expanduser()
        if self.journal is None and not path.is_absolute():
            raise ConfigurationError(
                f"{path} must be an absolute path: the server at {self.url} may be on another machine"
            )
        return str(path.absolute())


def find_server(
    journal: Path | None,
    *,
    is_named: bool,
    store: Path | None = None,
    collection: str | None = None,
) -> Server | None:
    """Find the server that answers for a command.

    `AUTOPLAY_RAG_URL` counts only if the command line names neither a journal nor a store. Then
    the server that uses the journal is asked, unless it uses another store than the named one.

    Args:
        journal: The journal's file; None if it is in PostgreSQL.
        is_named: Whether the command line names the journal or the store.
        store: The folder of the store, if the command line names it.
        collection: The collection, if the command line names it.

    Returns:
        The server; None if the command has to open the files itself.

    Raises:
        ConfigurationError: If the environment names a server, but no valid address or no key.
    """
    url = os.environ.get(URL_VARIABLE, "").strip()
    if url and not is_named:
        key = secret_from(KEY_VARIABLE)
        if key is None:
            raise ConfigurationError(
                f"{URL_VARIABLE} is set, so {KEY_VARIABLE} or {KEY_VARIABLE}_FILE must be set too"
            )
        if not all("!" <= character <= "~" for character in key):
            raise ConfigurationError(f"{KEY_VARIABLE} has characters that no key has")
        if not _is_address(url):
            raise ConfigurationError(
                f"{URL_VARIABLE} must be an address such as http://127.0.0.1:8760, without a password"
            )
        return Server(url.rstrip("/"), key, None)
    running = None if journal is None else find_running(journal)
    if running is None:
        return None
    if store is not None and str(store.resolve()) != running.store:
        return None
    if collection is not None and collection != running.collection:
        return None
    return Server(running.url, running.key, journal)


def _is_address(url: str) -> bool:
    try:
        parsed, split = httpx.URL(url), urlsplit(url)
        valid = split.port != 0 and bool(split.hostname)
    except (httpx.InvalidURL, ValueError):
        return False
    return valid and parsed.scheme in ("http", "https") and not parsed.userinfo and not parsed.query


def server_of(
    place: Place,
    *,
    journal: Path | None,
    store: str | None,
    collection: str | None = None,
) -> Server | None:
    """Find the server that answers for a place.

    Args:
        place: What `find_place` made of the options.
        journal: The option.
        store: The option.
        collection: The option.
    """
    return find_server(
        place.journal,
        is_named=any(one is not None for one in (journal, store, collection)),
        store=place.folder if store is not None else None,
        collection=collection,
    )


def read(server: Server, work: Callable[[ServeClient], Awaitable[T]]) -> T:
    """Run the reading requests of a command. Ctrl-C cancels them.

    Args:
        server: The server.
        work: Makes the requests.
    """

    async def opened() -> T:
        with Interrupts():
            async with ServeClient(server.url, server.key, timeout=_ANSWER_SECONDS) as client:
                return await work(client)

    return asyncio.run(opened())


def ask(server: Server, work: Callable[[Api], Awaitable[T]]) -> T:
    """Run requests that `ServeClient` does not make. Otherwise like `read`."""

    async def opened() -> T:
        with Interrupts():
            async with Api(server) as api:
                return await work(api)

    return asyncio.run(opened())


class Api:
    """Requests to a server. Use it in `async with`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._client: httpx.AsyncClient

    async def __aenter__(self) -> Self:
        """Open the connections."""
        url = self._server.url
        context: ssl.SSLContext
        if url.startswith("https:"):
            # In a thread: reading the trusted certificates takes tens of milliseconds.
            context = await asyncio.to_thread(tls_context, httpx.create_ssl_context)
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; trusts nobody
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {self._server.key}"},
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            proxy=environment_proxy(url),
            verify=context,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Get JSON; parameters that are None are left out.

        Raises:
            ConfigurationError: If the server says that the request cannot be answered.
            ServerError: Or a subclass, if there is no answer that can be used.
        """
        given = {name: value for name, value in query.items() if value is not None}
        return await self._json("GET", path, params=given)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post JSON; values that are None are left out. Raises as `get`."""
        return await self._json("POST", path, json=_given(body))

    @asynccontextmanager
    async def parts(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Make a request, and give the answer in parts, as they come. Raises as `get`.

        Args:
            method: "GET" or "POST".
            path: The route.
            options: As for `httpx.AsyncClient.build_request`.
        """
        answer = await self._send(method, path, stream=True, **options)
        try:
            yield self._parts(answer)
        finally:
            await answer.aclose()

    async def run_job(self, kind: str, **options: Any) -> Any:
        """Run a job, show its progress, and return its report. If cancelled, it cancels the job.

        Raises:
            ServerError: If the job fails or is cancelled by another client; else as `get`.
        """
        body = {"kind": kind, "options": _given(options)}
        # Even if this is cancelled meanwhile: the answer has the id of the job to cancel.
        starting = asyncio.ensure_future(self.post("/v1/jobs", body))
        try:
            job = await asyncio.shield(starting)
            return await self._wait_for(job)
        except asyncio.CancelledError:
            try:
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await self._cancel((await starting)["id"])
            except (ServerError, ConfigurationError, TimeoutError) as error:
                note(f"the job could not be cancelled, and may go on: {describe(error)}")
            raise
        finally:
            starting.cancel()

    async def _wait_for(self, job: dict[str, Any]) -> Any:
        tell, waits, shown, failures = teller(), _SOON, None, 0
        while job["ended_at"] is None:
            await asyncio.sleep(waits)
            waits = min(_LATER, 2 * waits)
            try:
                job = await self.get(f"/v1/jobs/{job['id']}")
            except ServerUnavailableError:
                # The job goes on without its observer, and may take hours.
                failures += 1
                if failures == _ATTEMPTS:
                    raise
                continue
            failures = 0
            if job["state"] == "waiting" and waits == _LATER:
                tell("waiting: another job runs first")
            elif job["done"] is not None:
                now = Progress(
                    job["done"],
                    job["total"] or 0,
                    job["rate"] or 0.0,
                    job["problem"],
                    job.get("unit", "chunks"),
                )
                if now != shown:
                    tell(str(now))
                shown = now
        if job["state"] == "failed":
            raise ServerError(job["error"])
        if job["state"] == "cancelled":
            raise ServerError(f"the job was cancelled on the server at {self._server.url}")
        return job["report"]

    async def _cancel(self, id: str) -> None:
        job = await self.post(f"/v1/jobs/{id}/cancel", {})
        if job["state"] == "cancelled":
            note("the job is cancelled")
        else:
            note(f"the job had ended before it was cancelled: {job['state']}")

    async def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = await self._send(method, path, **options)
        try:
            found = msgspec.json.decode(answer.content, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError):
            raise ServerError(
                f"{self._server.url} answered with something else than JSON: is it the address of "
                "`autoplay-rag serve`?"
            ) from None
        return found

    async def _send(
        self, method: str, path: str, *, stream: bool = False, **options: Any
    ) -> httpx.Response:
        request = self._client.build_request(method, path, **options)
        try:
            answer = await self._client.send(request, stream=stream)
        except httpx.TransportError as error:
            raise self._lost(error) from None
        if answer.is_success:
            return answer
        try:
            await answer.aread()
        except httpx.TransportError as error:
            raise self._lost(error) from None
        finally:
            await answer.aclose()
        raise self._refusal(answer)

    async def _parts(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for part in answer.aiter_bytes():
                yield part
        except httpx.TransportError as error:
            raise self._lost(error) from None

    def _lost(self, error: httpx.TransportError) -> ServerUnavailableError:
        if self._server.journal is None:
            what = f"check {URL_VARIABLE}, and whether it runs"
        else:
            what = "it may be stopping; run the command again"
        return ServerUnavailableError(
            f"no answer from the server at {self._server.url} ({describe(error)}): {what}"
        )

    def _refusal(self, answer: httpx.Response) -> Exception:
        status, detail = answer.status_code, _detail(answer)
        where = f"the server at {self._server.url}"
        if status in (401, 403):
            return ServerAccessError(
                f"{where} refused the key: {detail} Set {KEY_VARIABLE} to another one."
            )
        if status in (409, 422):
            return ConfigurationError(detail)
        if status == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error:
            return ServerUnavailableError(f"{where} answered {status}: {detail}")
        return ServerError(f"{where} answered {status}: {detail}")


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _detail(answer: httpx.Response) -> str:
    """What a refusal says; problem details if it has them."""
    try:
        problem = msgspec.json.decode(answer.content, type=dict[str, Any])
        detail = str(problem["detail"])
        errors = [f"{one['in']}: {one['detail']}" for one in problem.get("errors", ())]
    except (msgspec.MsgspecError, UnicodeError, KeyError, TypeError):
        return answer.reason_phrase
    return clean(" ".join([detail, "; ".join(errors)]).strip())
