"""The sources that a command reads: from its arguments, the settings file and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import httpx

from autoplay_rag._secrets import secret_from
from autoplay_rag.cli.config import Config, Pull, Stream
from autoplay_rag.connector.client import TOKEN_VARIABLE, AsyncConnectorClient
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.sources.activity import LiveActivitySource
from autoplay_rag.sources.specs import AnalyticsTool, SourceSpec, parse_spec, tools_of

__all__ = ["SOURCES_HELP", "Sources", "sources_of", "token_variable"]

SOURCES_HELP: Final = (
    "The sources to read: stream:URL, or the URL alone, https://.../stream/PRODUCT; pull:URL, whose "
    "product, users and token come from the settings file or from AUTOPLAY_RAG_PULL_PRODUCT, "
    "AUTOPLAY_RAG_PULL_USERS and AUTOPLAY_RAG_PULL_TOKEN."
)
_INTERVAL: Final = 30.0
_PRODUCT: Final = "AUTOPLAY_RAG_PULL_PRODUCT"
_USERS: Final = "AUTOPLAY_RAG_PULL_USERS"
_TOKEN: Final = "AUTOPLAY_RAG_PULL_TOKEN"  # noqa: S105 - its name, not its value


@dataclass(frozen=True, slots=True)
class Sources:
    """What a command reads.

    Attributes:
        streams: The clients of streams.
        pulls: The pull sources.
        tools: The analytics tools whose webhooks are expected.
    """

    streams: list[AsyncConnectorClient] = field(default_factory=list)
    pulls: list[LiveActivitySource] = field(default_factory=list)
    tools: frozenset[AnalyticsTool] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.streams or self.pulls or self.tools)

    @property
    def running(self) -> list[AsyncConnectorClient | LiveActivitySource]:
        """Those that have to be run."""
        return [*self.streams, *self.pulls]

    @property
    def warning(self) -> str:
        """What to know of this combination of sources; "" if there is nothing."""
        if not self.tools or not self.running:
            return ""
        named, other = ", ".join(sorted(self.tools)), "stream" if self.streams else "pull endpoint"
        return (
            f"warning: {named} and the {other} describe the same clicks in other words: if both come "
            "from one product, they are stored twice"
        )


def sources_of(
    arguments: Sequence[str],
    tokens: Sequence[str],
    file: Config,
    *,
    retry_refusals: bool = False,
) -> Sources:
    """Return the sources of the command line or, if it names none, of the file.

    Args:
        arguments: The sources as given.
        tokens: The tokens of the streams, in the same order; or none.
        file: The settings.
        retry_refusals: Whether a source that refuses is asked again for as long as it does.

    Raises:
        ConfigurationError: If a source cannot be used.
    """
    if arguments:
        specs = [parse_spec(text) for text in arguments]
    else:
        specs = [parse_spec(f"webhook:{tool}") for tool in file.get("webhooks") or ()]
    urls = [spec.value for spec in specs if spec.kind == "stream"]
    has_streams = bool(urls) or (not arguments and bool(file.streams(tokens=False)))
    streams = _streams_of(urls, tokens, file) if has_streams or tokens else []
    pulls = _pulls_of(specs, file) if arguments else file.pulls()
    if len({pull.url for pull in pulls}) < len(pulls):
        raise ConfigurationError("a URL is given twice")
    return Sources(
        [_client_of(stream, retry_refusals) for stream in streams],
        [_source_of(pull, retry_refusals) for pull in pulls],
        tools_of(specs),
    )


def token_variable(url: str) -> str:
    """Return the name of the environment variable for a stream's token.

    Example:
        >>> token_variable("https://connector.example.com/stream/acme-eu")
        'AUTOPLAY_APP_UNKEY_TOKEN_ACME_EU'
    """
    product = httpx.URL(url).path.rstrip("/").rpartition("/")[2]
    return f"{TOKEN_VARIABLE}_{re.sub(r'[^A-Za-z0-9]', '_', product).upper()}"


def _streams_of(urls: Sequence[str], tokens: Sequence[str], file: Config) -> list[Stream]:
    from_file = file.streams(urls, tokens=not tokens)
    if urls:
        # A token of the file is only used for the URL in the same table.
        known = {stream.url: stream.token for stream in from_file}
        streams = [Stream(url, known.get(url, "")) for url in urls]
    else:
        streams = from_file
    if len({stream.url for stream in streams}) < len(streams):
        raise ConfigurationError("a URL is given twice")
    if tokens and len(tokens) != len(streams):
        raise ConfigurationError(
            "give --token once for each URL, in the same order: "
            f"got {len(streams)} URLs and {len(tokens)} tokens"
        )
    if tokens:
        return [replace(stream, token=one) for stream, one in zip(streams, tokens, strict=True)]
    return streams


def _client_of(stream: Stream, retry_refusals: bool) -> AsyncConnectorClient:
    """Make the client of a stream, with the token of its environment variable if it has none.

    The token may be in the file that the variable with `_FILE` at the end of its name names.
    """
    try:
        variable = token_variable(stream.url)
    except httpx.InvalidURL:
        variable = TOKEN_VARIABLE  # the client reports what is wrong with the URL
    try:
        token = stream.token or secret_from(variable) or secret_from(TOKEN_VARIABLE)
        return AsyncConnectorClient(stream.url, token or "", retry_refusals=retry_refusals)
    except ConfigurationError as error:
        if not stream.where:
            raise
        raise ConfigurationError(f"{stream.where}: {error}") from None


def _pulls_of(specs: Sequence[SourceSpec], file: Config) -> list[Pull]:
    """The pull endpoints that are named, with what the file says of the same URL."""
    urls = [spec.value for spec in specs if spec.kind == "pull"]
    known = {pull.url: pull for pull in file.pulls()} if urls else {}
    return [known.get(url, Pull(url)) for url in urls]


def _source_of(pull: Pull, retry_refusals: bool) -> LiveActivitySource:
    """Make a pull source. What the file does not say comes from the environment."""
    product_id = pull.product_id or os.environ.get(_PRODUCT, "")
    if not product_id:
        where = f"{pull.where}: " if pull.where else ""
        raise ConfigurationError(
            f"{where}a pull needs its product: set {_PRODUCT}, or write product_id below [[pulls]] "
            "in autoplay-rag.toml"
        )
    users = pull.users or os.environ.get(_USERS, "").strip() or "asked"
    if isinstance(users, str) and users != "asked":
        users = tuple(user.strip() for user in users.split(",") if user.strip())
    try:
        return LiveActivitySource(
            pull.url,
            product_id,
            pull.token or secret_from(_TOKEN) or "",
            users=users,
            interval=_INTERVAL if pull.interval is None else pull.interval,
            retry_refusals=retry_refusals,
        )
    except ConfigurationError as error:
        if not pull.where:
            raise
        raise ConfigurationError(f"{pull.where}: {error}") from None
