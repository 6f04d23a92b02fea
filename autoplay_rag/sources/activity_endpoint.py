"""One request to the pull endpoint: what one user did in the last 24 hours, at most 50 actions."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import httpx
import msgspec

from autoplay_rag._describe import describe
from autoplay_rag._http_environment import environment_proxy, tls_context
from autoplay_rag._retry_after import parse_retry_after
from autoplay_rag.connector.backoff import LONGEST_WAIT, classify
from autoplay_rag.connector.connection import Token, bare, display
from autoplay_rag.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectorStatusError,
    RedirectError,
    TransientError,
)
from autoplay_rag.payloads import ActionsPayload, SlimAction

__all__ = ["MOST_ACTIONS", "Activity", "ActivityEndpoint", "Validators", "can_be_asked"]

MOST_ACTIONS: Final = 50
"""The endpoint keeps this many actions of a user, for 24 hours."""

_MOST_BYTES: Final = 4 * 2**20
"""50 actions take about 30 KB."""
_LONGEST_ID: Final = 500
_NOT_MODIFIED: Final = 304
_OK: Final = 200
_NOT_FOUND: Final = 404
_REFUSED: Final = (401, 403)
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}


class _Answer(msgspec.Struct):
    user_id: str | None = None
    as_of: float = 0.0
    actions: list[SlimAction] = []


_decode_strictly = msgspec.json.Decoder(_Answer).decode


class Validators(NamedTuple):
    """What a server said about the version of an answer. Sent back, so that it can say "unchanged"."""

    etag: str = ""
    last_modified: str = ""


class Activity(NamedTuple):
    """What one user did.

    Attributes:
        actions: The actions, in the order of the answer.
        as_of: The server's time, in Unix seconds; 0 if it named none.
        validators: The version of the answer.
    """

    actions: list[SlimAction]
    as_of: float
    validators: Validators


class ActivityEndpoint:
    """Asks for the activity of users.

    Requests go directly to a transport, not through an `httpx.AsyncClient`: that would log the URL of
    each request, which contains the user.

    Args:
        url: The address of the server. A path `/mcp` is left out.
        product_id: The product.
        token: The token; "" sends none.
        timeout: Seconds for a request, from connecting to the last byte.

    Raises:
        ConfigurationError: If an argument is invalid.
    """

    def __init__(self, url: str, product_id: str, token: str, *, timeout: float) -> None:
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError):
            # `from None`: httpx's message may quote the URL, which may hold a secret.
            raise ConfigurationError("the url of the pull endpoint is not a valid URL") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigurationError(
                "the url of the pull endpoint must start with http:// or https://, as in "
                "https://host"
            )
        if parsed.userinfo:
            raise ConfigurationError(
                "the url of the pull endpoint has a user or password in it; give token= instead"
            )
        if not product_id:
            raise ConfigurationError(f"product_id is missing for {display(parsed)}")
        path = parsed.path.rstrip("/").removesuffix("/mcp")
        self.url = parsed.copy_with(path=path or "/", query=None, fragment=None)
        self._users = f"{str(self.url).rstrip('/')}/users/{quote(product_id, safe='')}/"
        self._token = Token(token)
        self._timeout = timeout
        self._steps = httpx.Timeout(timeout).as_dict()

    def __repr__(self) -> str:
        return f"ActivityEndpoint({display(self.url)!r})"

    def transport(self) -> httpx.AsyncHTTPTransport:
        """Make a transport for this endpoint; the caller closes it. Reads certificates: use a thread.

        Raises:
            ConfigurationError: If the environment names a proxy or certificates that cannot be
                used; the message names the variable.
        """
        proxy = environment_proxy(str(self.url))
        secure = self.url.scheme == "https"
        try:
            return httpx.AsyncHTTPTransport(
                # Without TLS, reading the trusted certificates would only take time.
                verify=tls_context(httpx.create_ssl_context) if secure else False,
                proxy=proxy,
                trust_env=False,
            )
        except (ValueError, ImportError, httpx.InvalidURL):
            raise ConfigurationError(
                "the proxy that the environment names cannot be used; see HTTP_PROXY, HTTPS_PROXY "
                "and ALL_PROXY"
            ) from None

    async def ask(
        self, transport: httpx.AsyncBaseTransport, user_id: str, known: Validators
    ) -> Activity | None:
        """Ask for the activity of one user.

        Args:
            transport: Sends the request.
            user_id: The user; one that `can_be_asked`.
            known: The version that is known already, if any.

        Returns:
            The activity; None if it is unchanged. It is empty if the server does not know the user.

        Raises:
            AuthenticationError: If the server refuses the token (401, 403).
            ConnectorStatusError: If it refuses the request in another way.
            RedirectError: If it redirects: the address is wrong.
            TransientError: If the same request may succeed later. The message names no user.
        """
        request = httpx.Request(
            "GET", self._users + quote(user_id, safe="") + "/live-activity", headers=_HEADERS
        )
        request.extensions = {"timeout": self._steps}
        self._token.authorize(request)
        if known.etag:
            request.headers["If-None-Match"] = known.etag
        if known.last_modified:
            request.headers["If-Modified-Since"] = known.last_modified
        try:
            async with asyncio.timeout(self._timeout):
                response = await transport.handle_async_request(request)
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
        except (httpx.TransportError, OSError) as error:
            failure = f"no answer from {display(self.url)} ({describe(bare(error))})"
        else:
            return self._answer(response, body, user_id, known)
        # Raised outside `except`: the error's request has the token and the user.
        raise TransientError(failure)

    def _answer(
        self, response: httpx.Response, body: bytes, user_id: str, known: Validators
    ) -> Activity | None:
        status = response.status_code
        if status == _NOT_MODIFIED and any(known):
            return None
        if status != _OK:
            self._refuse(response)
            return Activity([], 0.0, Validators())
        found = _decode(body)
        if found is None:
            raise TransientError(
                f"{display(self.url)} answered 200 with something that is not the activity of a "
                "user; check the url"
            )
        if found.user_id is not None and found.user_id != user_id:
            raise TransientError(
                f"{display(self.url)} answered with the activity of another user than asked for; "
                "it is not used"
            )
        headers = response.headers
        return Activity(
            found.actions,
            found.as_of if math.isfinite(found.as_of) else 0.0,
            Validators(headers.get("etag", ""), headers.get("last-modified", "")),
        )

    def _refuse(self, response: httpx.Response) -> None:
        """Raise what a status means; a user that the server does not know is no error."""
        status, at = response.status_code, display(self.url)
        # Without the user, who is part of the URL.
        response.request = httpx.Request("GET", self.url)
        if status == _NOT_FOUND:
            return
        # "Unchanged", though no version was named.
        verdict = "retry" if status == _NOT_MODIFIED else classify(status)
        if status in _REFUSED:
            raise AuthenticationError(
                f"{status} from {at}: the token is missing, wrong, or not good for this product; "
                "give token= (the mcp_key of the product)",
                response=response,
            )
        if verdict == "redirect":
            raise RedirectError(
                f"{at} redirects; if that is right, give the address that it redirects to"
            )
        if verdict == "retry":
            asked = parse_retry_after(response.headers.get("Retry-After"), longest=LONGEST_WAIT)
            raise TransientError(f"{at} answered {status}", retry_after=asked)
        raise ConnectorStatusError(
            f"{status} from {at}: no activity, and trying again would not change it",
            response=response,
        )


def can_be_asked(user_id: str) -> bool:
    """Whether an id can be part of the URL. `.` and `..` would change the path.

    Example:
        >>> can_be_asked("u1"), can_be_asked(".."), can_be_asked("")
        (True, False, False)
    """
    try:
        user_id.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return 0 < len(user_id) <= _LONGEST_ID and user_id not in (".", "..")


async def _read(response: httpx.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    async for part in stream:
        size += len(part)
        if size > _MOST_BYTES:
            raise httpx.ReadError(f"the answer is larger than {_MOST_BYTES:,} bytes")
        parts.append(part)
    return b"".join(parts)


def _decode(body: bytes) -> _Answer | None:
    """Decode an answer, strictly first; None if it is not a JSON object."""
    try:
        return _decode_strictly(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    try:
        found: Any = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    # A value of a wrong type costs itself alone.
    read = ActionsPayload.from_dict({**found, "forwarded_at": found.get("as_of")})
    return _Answer(read.user_id, read.forwarded_at, read.actions)
