"""Pulls the user whom a request asks about, so that the answer has what they did seconds ago."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Final, TypeAlias

from autoplay_rag._describe import describe
from autoplay_rag.errors import AutoplayError
from autoplay_rag.ingest.pipeline import IngestPipeline
from autoplay_rag.sources.activity import LiveActivitySource

__all__ = ["AskedPulls"]

_log = logging.getLogger(__name__)

_SECONDS: Final = 0.6
"""How long a request waits for a pull. A client with a limit of one second, as the middleware and
`autoplay-rag mcp` have, still gets the answer."""
_FRESH_SECONDS: Final = 1.0
"""Who was pulled within this time is not pulled again."""
_PAUSE_SECONDS: Final = 5.0
"""After a failure, requests are answered without a pull for this long, instead of each waiting."""
_MOST_AT_ONCE: Final = 16

_Who: TypeAlias = tuple[str, str]


class AskedPulls:
    """Pulls users when a request asks about them. What is new goes into the pipeline first.

    So the answer has nothing that the pipeline would not keep: its rules for redaction, selection and
    forgotten people apply. Requests about one user share a pull. A failure is logged, and the request
    is answered without.

    Args:
        pipeline: Its attached sources are asked.
    """

    def __init__(self, pipeline: IngestPipeline) -> None:
        self._pipeline = pipeline
        self._slots = asyncio.Semaphore(_MOST_AT_ONCE)
        self._running: dict[_Who, asyncio.Future[None]] = {}
        self._pulled_at: OrderedDict[_Who, float] = OrderedDict()
        self._paused_until = float("-inf")

    async def refresh(self, user_id: str | None, product_id: str | None) -> None:
        """Pull a user now; return after at most 0.6 s, also if that fails.

        Args:
            user_id: The user, whom the caller may see; None pulls nobody.
            product_id: The product. If it is None, the user is pulled if only one product is
                pulled, and if the user is not known from another product alone.
        """
        if not user_id or (source := await self._source_of(user_id, product_id)) is None:
            return
        who = (source.product_id, user_id)
        if (running := self._running.get(who)) is not None:
            await asyncio.wait([running])  # the request that pulls has the time limit
        elif self._may_pull(who, asyncio.get_running_loop().time()):
            await self._pull(source, who)

    def _may_pull(self, who: _Who, now: float) -> bool:
        fresh_until = self._pulled_at.get(who, float("-inf")) + _FRESH_SECONDS
        return now >= max(self._paused_until, fresh_until)

    async def _source_of(self, user_id: str, product_id: str | None) -> LiveActivitySource | None:
        source = self._pipeline.pull_source(product_id)
        if source is None or product_id is not None:
            return source
        # The same id in another product may be another person.
        known = await self._pipeline.products(user_id=user_id)
        return source if not known or source.product_id in known else None

    async def _pull(self, source: LiveActivitySource, who: _Who) -> None:
        loop = asyncio.get_running_loop()
        ended = self._running[who] = loop.create_future()
        try:
            async with asyncio.timeout(_SECONDS), self._slots:
                await source.get(who[1], at_once=True)
        except (AutoplayError, TimeoutError, OSError) as error:
            self._paused_until = loop.time() + _PAUSE_SECONDS
            _log.warning("answering without what a pull would add: %s", describe(error))
        else:
            self._note(who, loop.time())
        finally:
            del self._running[who]
            ended.set_result(None)

    def _note(self, who: _Who, now: float) -> None:
        while self._pulled_at:
            oldest, at = next(iter(self._pulled_at.items()))
            if now - at < _FRESH_SECONDS:
                break
            del self._pulled_at[oldest]
        self._pulled_at[who] = now
        self._pulled_at.move_to_end(who)
