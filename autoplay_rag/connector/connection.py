"""One attempt to connect: the request, and the checks of the response before its body is read."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx

from autoplay_rag._http_environment import environment_proxy, tls_context
from autoplay_rag._retry_after import parse_retry_after
from autoplay_rag.connector.backoff import LONGEST_WAIT, classify
from autoplay_rag.connector.transport import AsyncioTransport
from autoplay_rag.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectorStatusError,
    NotAnEventStreamError,
    NotStreamModeError,
    ProductNotFoundError,
    RedirectError,
    TransientError,
)

__all__ = [
    "READ_TIMEOUT",
    "TOKEN_VARIABLE",
    "Endpoint",
    "Token",
    "bare",
    "display",
    "open_stream",
    "tls_fault",
]

TOKEN_VARIABLE: Final = "AUTOPLAY_APP_UNKEY_TOKEN"  # noqa: S105 - its name, not its value
READ_TIMEOUT: Final = 75.0
"""Seconds: heartbeats come every 30, and two may be missed."""

_MAX_REDIRECTS: Final = 5
_MAX_ID_BYTES: Final = 1024
_CUT_OFF: Final = (
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
    ssl.SSLSyscallError,
    ssl.SSLWantReadError,
    ssl.SSLWantWriteError,
)
_FORM: Final = "https://host/stream/{product_id}"


class Token:
    """A token that does not appear in any repr."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        value = value.strip()
        if [word.lower() for word in value.split()[:1]] == ["bearer"]:
            raise ConfigurationError(
                "the token begins with the word Bearer; give it without, the client adds the word"
            )
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise ConfigurationError(
                "the token has characters that no HTTP header can carry; copy it anew"
            )
        self._value = value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Token(...)"

    def authorize(self, request: httpx.Request) -> None:
        """Put the token into a request's headers, if there is one."""
        if self._value:
            request.headers["Authorization"] = f"Bearer {self._value}"


class Endpoint:
    """Where and how to connect.

    Args:
        url: The full URL of the stream, `https://.../stream/{product_id}`. If there is no token,
            a user and password in the URL are sent as a header.
        token: The token; "" sends none.
        connect_timeout: Seconds to connect.
        read_timeout: Seconds without a byte after which a connection counts as lost.

    Raises:
        ConfigurationError: If the URL or the token is invalid.
    """

    def __init__(
        self, url: str, token: str, *, connect_timeout: float, read_timeout: float
    ) -> None:
        try:
            self.url = httpx.URL(url)
        except (httpx.InvalidURL, TypeError):
            # `from None`: httpx's message may quote the URL, which may hold a secret.
            raise ConfigurationError(
                f"the connector's url is not a valid URL; it has the form {_FORM}"
            ) from None
        if self.url.scheme not in ("http", "https") or not self.url.host:
            given = display(self.url) if self.url.host else _display_text(url)
            raise ConfigurationError(
                "the connector's url must start with http:// or https://, as in "
                f"{_FORM}; given was {given}"
            )
        self.token = Token(token)
        # Sent as a header, because httpx logs the full URL of every request.
        self._userinfo = (
            httpx.BasicAuth(self.url.username, self.url.password) if self.url.userinfo else None
        )
        self.url = self.url.copy_with(userinfo=b"")
        self._timeout = httpx.Timeout(connect_timeout, read=read_timeout)

    def __repr__(self) -> str:
        return f"Endpoint({display(self.url)!r})"

    async def http_client(self) -> httpx.AsyncClient:
        """A client for this endpoint; the caller closes it.

        Raises:
            ConfigurationError: If the environment names a proxy or certificates that cannot be
                used; the message names the variable.
        """
        proxy = environment_proxy(str(self.url))
        if self.url.scheme == "https":
            # In a thread: reading the trusted certificates takes tens of milliseconds.
            context = await asyncio.to_thread(tls_context, httpx.create_ssl_context)
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; trusts nobody
        own_loop = isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
        if proxy is None and own_loop:
            # It takes a third less processor time than httpx's own, if events come one by one.
            return httpx.AsyncClient(transport=AsyncioTransport(context), trust_env=False)
        try:
            return httpx.AsyncClient(verify=context, proxy=proxy, trust_env=False)
        except (ValueError, ImportError, httpx.InvalidURL):
            # `from None`: the message may quote the proxy's URL, which may hold a password.
            raise ConfigurationError(
                "the proxy that the environment names cannot be used; see HTTP_PROXY, HTTPS_PROXY "
                "and ALL_PROXY"
            ) from None

    def request(self, http: httpx.AsyncClient, url: httpx.URL, last_event_id: str) -> httpx.Request:
        """The request for the stream, resuming after `last_event_id` if there is one."""
        request = http.build_request(
            "GET",
            url,
            headers={
                "Accept": "text/event-stream",
                "Accept-Encoding": "identity",
                "Cache-Control": "no-store",
            },
            timeout=self._timeout,
        )
        self.token.authorize(request)
        if self._userinfo is not None and "Authorization" not in request.headers:
            next(self._userinfo.auth_flow(request))
        event_id = last_event_id.encode()
        if event_id and _fits_a_header(event_id):
            request.headers.update([(b"Last-Event-ID", event_id)])
            # httpx chose ASCII before the id was added, and decodes all headers again.
            request.headers.encoding = "utf-8"
        return request


@asynccontextmanager
async def open_stream(
    http: httpx.AsyncClient, endpoint: Endpoint, last_event_id: str
) -> AsyncIterator[httpx.AsyncByteStream]:
    """Connect, check the response, and yield its raw body.

    Args:
        http: Sends the request.
        endpoint: Where to connect.
        last_event_id: The id to resume after; "" for none.

    Yields:
        The unread body of an event stream.

    Raises:
        TransientError: If the same request may succeed later.
        ConnectorStatusError: If the same request will fail again.
        NotAnEventStreamError: If the response is not an event stream, or is compressed.
        RedirectError: If it redirects to another origin, which must not see the token.
        httpx.TransportError: If there was no response.
    """
    response = await _request_following_redirects(http, endpoint, last_event_id)
    try:
        _check_stream(response)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        yield response.stream
    finally:
        await response.aclose()


async def _request_following_redirects(
    http: httpx.AsyncClient, endpoint: Endpoint, last_event_id: str
) -> httpx.Response:
    url = endpoint.url
    # A client's own auth would replace the token.
    auth = httpx.Auth() if endpoint.token else httpx.USE_CLIENT_DEFAULT
    for _ in range(_MAX_REDIRECTS + 1):
        request = endpoint.request(http, url, last_event_id)
        response = await http.send(request, stream=True, auth=auth, follow_redirects=False)
        verdict = classify(response.status_code)
        if verdict == "stream":
            return response
        await response.aclose()
        if verdict == "retry":
            asked = parse_retry_after(response.headers.get("Retry-After"), longest=LONGEST_WAIT)
            raise TransientError(
                f"the connector answered {response.status_code}", retry_after=asked
            )
        if verdict == "fatal":
            raise _refusal(response)
        url = _redirect_target(url, response.headers.get("Location", ""))
    raise RedirectError(f"more than {_MAX_REDIRECTS} redirects from {display(endpoint.url)}")


def _redirect_target(url: httpx.URL, location: str) -> httpx.URL:
    try:
        target = url.join(location).copy_with(userinfo=b"")
    except httpx.InvalidURL:
        raise RedirectError(f"{display(url)} redirects to something that is no URL") from None
    if not location:
        raise RedirectError(f"{display(url)} redirects, but does not say where to")
    if origin(target) != origin(url):
        raise RedirectError(
            f"{display(url)} redirects to another origin, {origin(target)}, which must not see the "
            "token; if that is right, give the client that address"
        )
    return target


def _refusal(response: httpx.Response) -> ConnectorStatusError:
    status, at = response.status_code, display(response.request.url)
    if status == httpx.codes.BAD_REQUEST:
        return NotStreamModeError(
            f"400 from {at}: the product is not in stream mode; switch it in the dashboard, or "
            "receive its events by webhook",
            response=response,
        )
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        page = _the_one(response, "Content-Type") in ("text/html", "application/xhtml+xml")
        hint = "; the answer is a web page: a firewall or proxy may have sent it" if page else ""
        return AuthenticationError(
            f"{status} from {at}: the token is missing, wrong, or not good for this product; "
            f"give token= or set {TOKEN_VARIABLE}{hint}",
            response=response,
        )
    if status == httpx.codes.NOT_FOUND:
        return ProductNotFoundError(
            f"404 from {at}: no such product, or another path than /stream/{{product_id}}; check the "
            "end of the url",
            response=response,
        )
    return ConnectorStatusError(
        f"{status} from {at}: no stream, and trying again would not change it", response=response
    )


def _check_stream(response: httpx.Response) -> None:
    at = display(response.request.url)
    media_type = _the_one(response, "Content-Type")
    if media_type != "text/event-stream":
        raise NotAnEventStreamError(
            f"{at} answered 200 with {media_type[:80] or 'no content type'!r} instead of "
            "text/event-stream; check the url (it ends in /stream/{product_id})"
        )
    encoding = _the_one(response, "Content-Encoding")
    if encoding not in ("", "identity"):
        raise NotAnEventStreamError(
            f"{at} sent a body encoded as {encoding[:80]!r}, which nobody asked for; a proxy on "
            "the way may compress: turn that off for event streams"
        )


def _the_one(response: httpx.Response, name: str) -> str:
    """A header's value without parameters, in lower case; repeated equal values count as one.

    A proxy and the server behind it may both set a header. Different values stay joined, as httpx
    joins them, so that they match no expected value.
    """
    given = response.headers.get_list(name, split_commas=True)
    values = dict.fromkeys(value.partition(";")[0].strip().lower() for value in given)
    return ", ".join(value for value in values if value)


def bare(error: Exception) -> Exception:
    """A connection's error, safe to keep and show: without token, payload text or frames.

    httpx's errors hold the request, whose headers hold the token. h11's errors quote bytes that
    are not valid HTTP. A traceback keeps its frames' variables alive. Other errors are unchanged.
    """
    if isinstance(error, httpx.ProtocolError):
        message = str(error)
        known = message.startswith(("peer closed connection", "Server disconnected"))
        return type(error)(message if known else "what was sent is not valid HTTP")
    if isinstance(error, httpx.TransportError | OSError):
        link: BaseException | None = error
        while link is not None:
            link.__traceback__ = None
            if isinstance(link, httpx.RequestError):
                link.request = httpx.Request("GET", "/")
            link = link.__cause__ or link.__context__
    return error


def _fits_a_header(value: bytes) -> bool:
    """Whether an id can be sent back: servers choose it, and it may not be valid in a header."""
    printable = all(byte >= 0x20 and byte != 0x7F for byte in value)  # noqa: PLR2004 - ASCII controls
    return printable and len(value) <= _MAX_ID_BYTES and value.strip() == value


def tls_fault(error: BaseException) -> str | None:
    """Why a TLS handshake failed, if a retry alone will not fix it.

    Returns:
        The reason in OpenSSL's words, such as "certificate verify failed"; None for other errors,
        and for handshakes that were only cut off.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"the certificate is not trusted ({link.verify_message})"
        if isinstance(link, ssl.SSLError) and not isinstance(link, _CUT_OFF):
            reason = getattr(link, "reason", None)  # set only on errors from OpenSSL itself
            return (reason or "the handshake failed").lower().replace("_", " ")
        link = link.__cause__ or link.__context__
    return None


def origin(url: httpx.URL) -> str:
    """Scheme, host and port."""
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return f"{url.scheme}://{url.host}:{port}"


def display(url: httpx.URL) -> str:
    """A URL, safe to show in messages: without userinfo and query, which may hold secrets."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))


def _display_text(given: str) -> str:
    """As `display`, for text without a host, which is not a full URL."""
    shown, *cut = re.split("[?#]", given, maxsplit=1)
    shown = shown.rpartition("@")[2][:200]
    # A password may contain a question mark, and a single word may be a misplaced token.
    safe = "@" not in "".join(cut) and (not shown or any(mark in shown for mark in "./:"))
    return (
        repr(shown) if safe else f"a text of {len(given)} characters, not shown: it may be a token"
    )
