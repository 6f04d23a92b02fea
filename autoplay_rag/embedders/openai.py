"""Embeddings from OpenAI, or from a service with the same protocol.

OpenAI's limits (https://platform.openai.com/docs/api-reference/embeddings/create) are 2,048 inputs
and 300,000 tokens per request, and 8,192 tokens per input. An input must not be empty.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import math
import os
import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from autoplay_rag._checks import check_above, check_at_least
from autoplay_rag._http_environment import environment_proxy, tls_context
from autoplay_rag._retry_after import LONGEST_PAUSE, parse_retry_after
from autoplay_rag._statuses import REJECTING_STATUSES, hint_of
from autoplay_rag.embedders.base import Embedder
from autoplay_rag.errors import (
    ConfigurationError,
    EmbedderRejectedError,
    EmbedderUnavailableError,
    MissingExtraError,
)

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

__all__ = ["OpenAIEmbedder"]

_SURE_BYTES = 8192
"""A text of this many bytes always fits: a token is at least one byte of UTF-8."""
_MOST_BYTES = 4 * _SURE_BYTES
"""A longer text hardly ever fits: prose has four bytes per token or more."""
_MOST_TOKENS = 10**9
"""More tokens than any request can cost."""
_FORMAT_STATUSES = frozenset({400, 422})
"""Statuses of a service that refuses base64."""
_Encoding: TypeAlias = Literal["base64", "float"]
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}|[A-Za-z]{1,64}")
_HINTS = [
    ("model", {400, 404, 422}, "check the model's name"),
    ("deployment", {400, 404, 422}, "check the deployment's name and base_url"),
    ("quota", {402, 403, 429}, "check the quota and the balance of the account"),
    ("billing", {402, 403, 429}, "check the quota and the balance of the account"),
]
"""What to check if the service's error code contains a word, for some statuses."""
_CONNECT_SECONDS = 10.0
"""The most seconds to connect. An address that does not answer is probably wrong: report it soon."""


_READ_AT_ONCE = 2**16
"""The most bytes of an answer that are parsed on the event loop, in 0.1 ms. That of a full request is
16 MB. A thread for the answer to each question would take longer than the parsing."""


class _Item(msgspec.Struct):
    embedding: str | list[float]
    # OpenAI-compatible services omit it, or send null or a string.
    index: Any = None


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: Any = None


class OpenAIEmbedder(Embedder):
    """Embeds with the OpenAI API, through its official client. Needs the extra `openai`.

    Limits are checked in bytes, because the tokenizer's vocabulary would have to be downloaded at
    run time. A token is at least one byte, so a request may be smaller than necessary, but never
    too large. A text of more than 8,192 bytes may be too long. It is sent in a request of its own,
    cut to 32,768 bytes, and halved each time the service refuses it. Cuts are made between words.

    OpenAI-compatible services work too. A vector without an `index` belongs to the input
    at the same position. A missing or unclear `usage` counts as 0 tokens. After a 400 or 422 to
    base64 the request is repeated with floats. The format that works is remembered.

    Nothing else is retried here. The caller retries, and can pause all requests together.

    Args:
        model: The model's name.
        dimensions: Shortens the vectors, if the model supports it.
        base_url: The service's address. By default `OPENAI_BASE_URL`, otherwise OpenAI's.
        api_key: By default `OPENAI_API_KEY`.
        timeout: Seconds for one request. Connecting may take at most 10 of them.

    Attributes:
        model: "openai:text-embedding-3-small", followed by the dimensions if they are given.
        tokens_used: Tokens that the service has counted so far.
        truncated: Texts embedded so far that had to be cut.

    Raises:
        MissingExtraError: If the extra is not installed.
        ConfigurationError: If there is no API key, or an argument is invalid.

    Example:
        >>> OpenAIEmbedder(dimensions=512, api_key="sk-...")
        OpenAIEmbedder('openai:text-embedding-3-small:512')
    """

    max_inputs = 2048
    max_request_tokens = 300_000

    def __init__(
        self,
        model: str = "text-embedding-3-small",
        *,
        dimensions: int | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        if importlib.util.find_spec("openai") is None:
            raise MissingExtraError("OpenAIEmbedder", "openai")
        if not model:
            raise ConfigurationError("model must name an embedding model, not be empty")
        check_at_least("dimensions", dimensions, 1, whole=True, optional=True)
        check_above("timeout", timeout)
        if base_url is not None and not re.match(r"https?://[^/]", base_url):
            raise ConfigurationError("base_url must start with http:// or https:// and a host")
        key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not key:
            raise ConfigurationError(
                "OpenAIEmbedder needs an API key: pass api_key= or set OPENAI_API_KEY "
                "(for a service that needs no key, pass any text)"
            )
        self.model = f"openai:{model}" if dimensions is None else f"openai:{model}:{dimensions}"
        self._name = model
        self._dimensions = dimensions
        self._base_url = base_url
        self._key = key
        self._timeout = timeout
        # One client per event loop: connections cannot be shared between loops.
        self._clients: dict[asyncio.AbstractEventLoop, AsyncOpenAI] = {}
        self._making: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}
        # What the service accepts; None until a request has succeeded.
        self._encoding: _Encoding | None = None
        self.tokens_used: int = 0
        self.truncated = 0

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self.model!r})"

    async def embed(self, texts: Sequence[str]) -> list[array[float]]:
        """Embed texts, in one or more requests, one after another.

        Raises:
            EmbedderUnavailableError: If the service cannot be reached, or answers 401, 403, 404,
                408, 409, 429 or 5xx. `retry_after` is the wait that the service asked for.
            EmbedderRejectedError: If a text is empty, if the service answers 400, 413 or 422, or
                if it does not return exactly one vector for each text.
        """
        # A lone surrogate cannot be encoded as UTF-8.
        texts = [text.encode("utf-8", "replace").decode().strip() for text in texts]
        for i, text in enumerate(texts):
            if not text:
                raise EmbedderRejectedError(f"text {i} of {len(texts)} is empty")
        client = await self._client()
        vectors: list[array[float]] = []
        for request in _requests(texts, self.max_inputs, self.max_request_tokens):
            if len(request) == 1:
                vectors.append(await self._embed_one(client, request[0]))
            else:
                vectors += await self._request(client, request)
        return vectors

    def count_tokens(self, text: str) -> int:
        """Return the most tokens that `text` can cost: the bytes of it that are sent.

        English text costs about a quarter of that. `tokens_used` has the service's own count.
        """
        return min(_size(text), _MOST_BYTES)

    async def prepare(self) -> None:
        """Import the official client, which takes almost a second, and make one for this event loop."""
        await self._client()

    async def aclose(self) -> None:
        """Close the connections in every event loop that is still running."""
        while self._clients:
            loop, client = self._clients.popitem()
            if loop is asyncio.get_running_loop():
                await client.close()
            elif loop.is_running():
                closing = asyncio.run_coroutine_threadsafe(client.close(), loop)
                await asyncio.wait([asyncio.wrap_future(closing)], timeout=1.0)

    async def _embed_one(self, client: AsyncOpenAI, text: str) -> array[float]:
        limit = _MOST_BYTES
        while True:
            sent = _cut(text, limit)
            encoding = self._encoding
            try:
                (vector,) = await self._request(client, [sent])
            except EmbedderRejectedError:
                if _size(sent) <= _SURE_BYTES:
                    raise
                limit = max(_size(sent) // 2, _SURE_BYTES)
                continue
            if limit < _MOST_BYTES and encoding is None and self._encoding == "float":
                limit = _MOST_BYTES  # base64 was refused, not the length
                continue
            self.truncated += sent != text
            return vector

    async def _request(self, client: AsyncOpenAI, texts: list[str]) -> list[array[float]]:
        from openai import APIStatusError

        try:
            content, encoding = await self._post_as_taken(client, texts)
        except APIStatusError as error:
            # Not chained: the service's message may quote the text or a part of the key.
            raise _error_of(error, self._name, len(texts)) from None
        if len(content) <= _READ_AT_ONCE:
            vectors, tokens = _read_answer(content, len(texts))
        else:
            vectors, tokens = await asyncio.to_thread(_read_answer, content, len(texts))
        if self._encoding is None:
            self._encoding = encoding
        self.tokens_used += tokens
        return vectors

    async def _post_as_taken(
        self, client: AsyncOpenAI, texts: list[str]
    ) -> tuple[bytes, _Encoding]:
        """Return the answer and its encoding: base64, which is shorter, or floats if it is refused."""
        from openai import APIStatusError

        if self._encoding is not None:
            return await self._post(client, texts, self._encoding), self._encoding
        try:
            return await self._post(client, texts, "base64"), "base64"
        except APIStatusError as error:
            # A text that may be too long is the more likely reason.
            sure = all(_size(text) <= _SURE_BYTES for text in texts)
            if not sure or error.status_code not in _FORMAT_STATUSES:
                raise
        return await self._post(client, texts, "float"), "float"

    async def _post(self, client: AsyncOpenAI, texts: list[str], encoding: _Encoding) -> bytes:
        """Return the body of a successful answer. Raises the client's own error for a status."""
        from openai import APIConnectionError, APITimeoutError

        body: dict[str, Any] = {"input": texts, "model": self._name, "encoding_format": encoding}
        if self._dimensions is not None:
            body["dimensions"] = self._dimensions
        try:
            # The client's timeout is per read, so a slow trickle of bytes would never reach it.
            async with asyncio.timeout(self._timeout):
                # A quarter less of a processor than `client.embeddings`, which looks through all texts.
                response = await client.post("/embeddings", cast_to=_http().Response, body=body)
        except (APIConnectionError, TimeoutError) as error:
            cause = type(error.__cause__ or error).__name__
            if isinstance(error, APITimeoutError | TimeoutError) and cause != "ConnectTimeout":
                said = f"the embedding service did not answer within {self._timeout:g} s"
            else:
                said = (
                    f"the embedding service at {client.base_url.host} could not be reached "
                    f"({cause}); check base_url and the network"
                )
            raise EmbedderUnavailableError(said) from None
        content: bytes = response.content
        return content

    async def _client(self) -> AsyncOpenAI:
        loop = asyncio.get_running_loop()
        for other in [known for known in self._making if known.is_closed()]:
            self._making.pop(other, None)
            self._clients.pop(other, None)
        # Importing openai and creating a client takes almost a second of a processor. Requests that
        # come meanwhile wait for it: if each made one, a busy start would take many seconds.
        async with self._making.setdefault(loop, asyncio.Lock()):
            if loop not in self._clients:
                self._clients[loop] = await asyncio.to_thread(self._new_client)
            return self._clients[loop]

    def _new_client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        timeout = Timeout(self._timeout, connect=min(self._timeout, _CONNECT_SECONDS))
        return AsyncOpenAI(
            api_key=self._key,
            base_url=self._base_url,
            timeout=timeout,
            max_retries=0,
            # The default client starts a task to close itself, possibly on another event loop.
            http_client=DefaultAsyncHttpxClient(timeout=timeout, **self._environment()),
        )

    def _environment(self) -> dict[str, Any]:
        """Return the proxy and the certificates that the environment sets for the service."""
        url = self._base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        try:
            proxy, context = environment_proxy(url), tls_context(_http().create_ssl_context)
        except ConfigurationError as error:
            # The texts are valid: they must be retried once the variable is corrected.
            raise EmbedderUnavailableError(str(error)) from None
        return {"proxy": proxy, "verify": context, "trust_env": False}


def _http() -> Any:
    """Return the HTTP library of the official client: httpx2 since openai 3, and httpx before."""
    from openai import DefaultAsyncHttpxClient

    base = DefaultAsyncHttpxClient.__mro__[-2]
    return sys.modules[base.__module__.partition(".")[0]]


def _requests(texts: Sequence[str], most_inputs: int, most_bytes: int) -> Iterator[list[str]]:
    """Divide texts into requests, in order. A text that may be too long gets its own request."""
    request: list[str] = []
    size = 0
    for text in texts:
        cost = _size(text)
        alone = cost > _SURE_BYTES
        if request and (alone or len(request) == most_inputs or size + cost > most_bytes):
            yield request
            request, size = [], 0
        if alone:
            yield [text]
        else:
            request.append(text)
            size += cost
    if request:
        yield request


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _cut(text: str, limit: int) -> str:
    """Return the start of `text` in at most `limit` bytes.

    The cut is between words, unless a single word fills half of the limit.
    """
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    start = encoded[:limit].decode("utf-8", "ignore")
    whole = start.rstrip()
    if whole == start and not text[len(start)].isspace():  # the last word was cut
        whole = start[: -len(start.split()[-1])].rstrip()
    return whole if len(whole) > len(start) // 2 else start


def _read_answer(content: bytes, expected: int) -> tuple[list[array[float]], int]:
    """Return the vectors in the order of the inputs, and the tokens that the service counted."""
    try:
        answer = msgspec.json.decode(content, type=_Answer)
        vectors = [_vector(item.embedding) for item in answer.data]
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError):
        raise EmbedderUnavailableError(
            "the embedding service answered 200 with something that holds no embeddings; "
            "check base_url"
        ) from None
    places = [_index(item.index, position) for position, item in enumerate(answer.data)]
    if sorted(places) != list(range(expected)):
        raise EmbedderRejectedError(
            f"the embedding service answered with {len(answer.data)} vectors for {expected} texts, "
            "or numbered them wrongly"
        )
    by_place = dict(zip(places, vectors, strict=True))
    return [by_place[place] for place in range(expected)], _tokens(answer.usage)


def _index(given: Any, position: int) -> int:
    """Return the index of the input that a vector belongs to.

    Args:
        given: The `index` in the answer. If it is missing or null, the position counts.
        position: The vector's position in the answer.

    Returns:
        -1 if `given` is not a whole number. No input has that index.
    """
    if given is None:
        return position
    try:
        found = float(given) if isinstance(given, str | int | float) else -1.0
    except (ValueError, OverflowError):
        return -1
    return int(found) if found.is_integer() and not isinstance(given, bool) else -1


def _tokens(usage: Any) -> int:
    """Return the tokens that the service counted; 0 if its answer has no usable number."""
    if not isinstance(usage, dict):
        return 0
    for name in ("total_tokens", "prompt_tokens"):
        given = usage.get(name)
        if isinstance(given, int | float) and 0 < given <= _MOST_TOKENS:
            return math.ceil(given)
    return 0


def _vector(found: str | list[float]) -> array[float]:
    if not isinstance(found, str):
        return array("f", found)
    vector = array("f", base64.b64decode(found, validate=True))
    if sys.byteorder == "big":
        vector.byteswap()
    return vector


def _error_of(error: APIStatusError, model: str, count: int) -> Exception:
    status = error.status_code
    # A code is one word, such as "insufficient_quota". Anything else may hold text or a key.
    code = error.code if isinstance(error.code, str) and _CODE.fullmatch(error.code) else ""
    said = f"the embedding service answered {status}{f' ({code})' if code else ''}"
    said += f" for {count} texts, model {model!r}"
    by_code = [hint for word, on, hint in _HINTS if word in code.lower() and status in on]
    if check := by_code[0] if by_code else hint_of(status):
        said += f"; {check}"
    if status in REJECTING_STATUSES:
        return EmbedderRejectedError(said)
    retry_after = parse_retry_after(
        error.response.headers.get("retry-after"), longest=LONGEST_PAUSE
    )
    return EmbedderUnavailableError(said, retry_after=retry_after)
