"""Pulls what one user did just now, for the prompt that answers them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from autoplay_rag._checks import check_above
from autoplay_rag._describe import describe
from autoplay_rag.errors import AutoplayError
from autoplay_rag.live.sessions import LiveSession, LiveSessions
from autoplay_rag.payloads import ActionsPayload
from autoplay_rag.sources.activity import LiveActivitySource
from autoplay_rag.sources.age import arrived_at

__all__ = ["PromptPull"]

_log = logging.getLogger(__name__)

_DAY: Final = 86_400.0


class PromptPull:
    """Pulls the user of a prompt, in bounded time. If it fails, the prompt is made without it.

    Args:
        source: The source; None pulls nobody.
        timeout: The most seconds for a pull.

    Raises:
        ConfigurationError: If the timeout is not above 0.
    """

    def __init__(self, source: LiveActivitySource | None, timeout: float) -> None:
        check_above("timeout", timeout)
        self._source = source
        self._timeout = timeout

    async def session(self, ids: Mapping[str, Any]) -> LiveSession | None:
        """Return what the user did last; None if they are unknown or it cannot be pulled in time.

        Args:
            ids: `user_id` is the user. Without it, or with the `product_id` of another product,
                nobody is pulled.
        """
        if (source := self._wanted(ids)) is None:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                return _latest(await source.get(ids["user_id"]))
        except (AutoplayError, TimeoutError, OSError) as error:
            _log_failure(error)
            return None

    def session_sync(self, ids: Mapping[str, Any]) -> LiveSession | None:
        """Like `session`, for any thread. Inside a running event loop it blocks the loop."""
        if (source := self._wanted(ids)) is None:
            return None
        try:
            return _latest(source.get_sync(ids["user_id"], self._timeout))
        except (AutoplayError, TimeoutError, OSError) as error:
            _log_failure(error)
            return None

    def _wanted(self, ids: Mapping[str, Any]) -> LiveActivitySource | None:
        source = self._source
        if source is None or not ids.get("user_id"):
            return None
        return source if ids.get("product_id") in (None, "", source.product_id) else None


def _latest(payloads: Sequence[ActionsPayload]) -> LiveSession | None:
    if not payloads:
        return None
    now = time.time()
    live = LiveSessions(max_age=2 * _DAY, clock=lambda: now)
    for payload in payloads:
        live.add(payload, at=arrived_at(payload, now))
    return next(iter(live.sessions(1)), None)


def _log_failure(error: BaseException) -> None:
    _log.warning("a model is not shown what was pulled: %s", describe(error))
