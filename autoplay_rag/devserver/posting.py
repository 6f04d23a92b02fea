"""Posts the events of a recording to a webhook, as an analytics tool does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx

from autoplay_rag.decoding import decode
from autoplay_rag.devserver.analytics import delivery, events_of, headers_for
from autoplay_rag.devserver.pace import Pace
from autoplay_rag.devserver.source import Source
from autoplay_rag.errors import ConnectorError, DecodeError, TransientError
from autoplay_rag.sources.specs import AnalyticsTool

__all__ = ["Poster"]

_log = logging.getLogger(__name__)

_ATTEMPTS: Final = 5
_BACKOFF_S: Final = 0.2
_TIMEOUT_S: Final = 30.0
_RETRIED: Final = frozenset((408, 425, 429))
_SERVER_ERROR: Final = 500


class Poster:
    """Posts events, and repeats a request that fails as if it may pass later.

    Args:
        url: The address, such as `http://127.0.0.1:8760/v1/webhooks/northwind/posthog`.
        tool: What the events look like.
        secret: Proves who sends them; "" sends none.
        batch: Events per request.
        pace: Of the events.
    """

    def __init__(
        self, url: str, tool: AnalyticsTool, *, secret: str, batch: int, pace: Pace
    ) -> None:
        self._url = url
        self._tool = tool
        self._secret = secret
        self._batch = batch
        self._pace = pace

    async def post(self, source: Source) -> int:
        """Post the events of all payloads of a source.

        Returns:
            How many events were accepted.

        Raises:
            ConnectorError: If the address refuses them.
            TransientError: If it cannot be reached, or fails again and again.
            OSError: If the source cannot be read.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        sent = 0
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
            async for events in self._batches(source):
                await asyncio.sleep(self._pace.due_in(clock() - started, sent))
                await self._deliver(client, delivery(events, self._tool))
                sent += len(events)
        return sent

    async def _batches(self, source: Source) -> AsyncIterator[list[dict[str, Any]]]:
        lines = source.lines()
        batch: list[dict[str, Any]] = []
        while lot := await source.take(lines):
            for line in lot:
                try:
                    events = events_of(decode(line), self._tool)
                except DecodeError:
                    continue  # a recording may hold anything
                for event in events:
                    batch.append(event)
                    if len(batch) >= self._batch:
                        yield batch
                        batch = []
        if batch:
            yield batch

    async def _deliver(self, client: httpx.AsyncClient, body: bytes) -> None:
        headers = headers_for(body, self._tool, self._secret)
        for attempt in range(_ATTEMPTS):
            try:
                answer = await client.post(self._url, content=body, headers=headers)
            except httpx.HTTPError as error:
                why = f"the webhook cannot be reached ({type(error).__name__})"
            else:
                if answer.is_success:
                    return
                why = f"the webhook answered {answer.status_code}"
                if answer.status_code < _SERVER_ERROR and answer.status_code not in _RETRIED:
                    raise ConnectorError(f"{why}: {_detail(answer)}")
            _log.debug("%s; trying again", why)
            await asyncio.sleep(_BACKOFF_S * 2**attempt)
        raise TransientError(f"{why}, {_ATTEMPTS} times in a row")


def _detail(answer: httpx.Response) -> str:
    """What the server says, if it says it as problem details."""
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase
    return str(detail)[:200]
