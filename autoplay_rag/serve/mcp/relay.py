"""Passes the tool calls of a process on this machine on to a running server.

The server decides what a key or token may see, and which arguments its tools have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

import httpx
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from autoplay_rag._http_environment import tls_context
from autoplay_rag.content.marking import plain_line
from autoplay_rag.serve.mcp.server import INSTRUCTIONS, SERVER_NAME, refusal

__all__ = ["Relay", "Target"]

_PROTOCOL: Final = "2025-11-25"
_LONGEST_DETAIL: Final = 300
_Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A running server.

    Attributes:
        url: Its address.
        key: A key or a token.
    """

    url: str
    key: str = field(repr=False)


class _UnavailableError(Exception):
    """The server gave no answer. Its text is one line for the model."""


class Relay:
    """Passes tool calls on to a running server.

    Args:
        find: Returns the server; None if none runs. It is asked before each call, in a thread: a
            server that was started again may have another address.
        proxy: The URL of a proxy; None for none, as for a server on this machine.
        timeout: Seconds for an answer.
    """

    def __init__(
        self,
        find: Callable[[], Target | None],
        proxy: str | None = None,
        *,
        timeout: float = 1.0,
    ) -> None:
        self._find = find
        self._timeout = timeout
        self._http = httpx.AsyncClient(
            timeout=None,  # noqa: S113 - `_asked` has one for the whole answer
            trust_env=False,
            proxy=proxy,
            verify=tls_context(httpx.create_ssl_context),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def server(self) -> Server[Any]:
        """Make the server of the calls that are passed on."""
        return Server(
            SERVER_NAME,
            version=version("autoplay-rag"),
            instructions=INSTRUCTIONS,
            get_tool_input_schema=lambda _: None,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )

    async def _list_tools(
        self, _: _Context, __: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        try:
            return types.ListToolsResult.model_validate(await self._asked("tools/list", {}))
        except _UnavailableError as error:
            raise MCPError(types.INTERNAL_ERROR, str(error)) from None

    async def _call_tool(
        self, _: _Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        given = {"name": params.name, "arguments": params.arguments or {}}
        try:
            return types.CallToolResult.model_validate(await self._asked("tools/call", given))
        except _UnavailableError as error:
            return refusal(str(error))

    async def _asked(self, method: str, params: Mapping[str, Any]) -> Any:
        target = await asyncio.to_thread(self._find)
        if target is None:
            raise _UnavailableError(
                "This is not available: the server is not running. Nothing was searched."
            )
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._http.post(
                    f"{target.url.rstrip('/')}/mcp",
                    json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params},
                    headers={
                        "authorization": f"Bearer {target.key}",
                        "accept": "application/json",
                        "mcp-protocol-version": _PROTOCOL,
                    },
                )
        except (httpx.HTTPError, TimeoutError) as error:
            reason = "in time" if isinstance(error, TimeoutError) else "at its address"
            raise _UnavailableError(
                f"This is not available: the server does not answer {reason}. Nothing was searched."
            ) from None
        return _result_of(answer)


def _result_of(answer: httpx.Response) -> Any:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and "result" in body:
        return body["result"]
    said = ""
    if isinstance(body, dict):
        error = body.get("error")
        said = str(body.get("detail") or (error.get("message") if isinstance(error, dict) else ""))
    detail = plain_line(said, _LONGEST_DETAIL)
    raise _UnavailableError(
        f"This is not available: the server answered with status {answer.status_code}. {detail}".strip()
    )
