"""What a client counts, and the interface for a metrics library."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.payloads import Payload

__all__ = ["ConnectorCounts", "ConnectorMetrics", "Recorder"]

logger = logging.getLogger(__name__)


@runtime_checkable
class ConnectorMetrics(Protocol):
    """What a client reports while it runs. Pass an object with these methods as `metrics=`.

    They are called on the event loop, once or more per payload, and must not block. An error in
    one does not affect the stream; only the first error is logged. `kind` is "actions", "summary"
    or "chat".
    """

    def received(self, kind: str) -> None:
        """A payload arrived."""

    def delivered(self, kind: str) -> None:
        """All callbacks of a payload ended without an error (or the consumer took it)."""

    def failed(self, kind: str) -> None:
        """A callback of a payload raised. The payload is given up."""

    def dropped(self, kind: str) -> None:
        """A payload was dropped, by `overflow="drop_oldest"` or unprocessed when a run ended.

        A run leaves payloads unprocessed if its drain timed out, if it was cancelled, or if the
        consumer of `stream` left early.
        """

    def skipped(self, reason: str) -> None:
        """An event, a payload or a value was not used.

        Args:
            reason: "unknown_type", "malformed" or "oversize" for an event, "no_callback" for a
                payload without a callback, "value" for one value inside a payload.
        """

    def reconnected(self) -> None:
        """A connection after the first was made."""

    def pending(self, n: int) -> None:
        """How many payloads wait or are being processed now."""

    def paused(self, seconds: float) -> None:
        """How long the reader was paused because `max_pending` was reached."""

    def callback_seconds(self, seconds: float) -> None:
        """How long one callback took."""


_METHODS: Final = tuple(name for name in vars(ConnectorMetrics) if not name.startswith("_"))
_SDK_METHODS: Final = ("record_event_dropped", "record_queue_depth")


@dataclass(slots=True)
class ConnectorCounts:
    """Totals of a client, over all its runs.

    Attributes:
        received: Payloads read from the wire.
        delivered: Payloads for which all callbacks ended without an error.
        failed: Payloads for which a callback raised.
        dropped: Payloads dropped by `overflow="drop_oldest"`, or unprocessed when a run ended:
            its drain timed out, it was cancelled, or the consumer of `stream` left early.
        skipped: Events that were not a payload, or a payload without a callback.
        repaired: Values of a wrong type that became their default; ids that came as numbers.
        connections: Connections made.
    """

    received: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    skipped: int = 0
    repaired: int = 0
    connections: int = 0


class Recorder:
    """Counts, and reports to the user's metrics object if there is one.

    Args:
        metrics: An object with methods of `ConnectorMetrics`, or with those of the public SDK's
            hook, `record_event_dropped` and `record_queue_depth`.

    Attributes:
        counts: The totals.
        observed: Whether there is a metrics object. Costly measurements are made only for one.

    Raises:
        ConfigurationError: If the object has none of these methods.
    """

    def __init__(self, metrics: ConnectorMetrics | None) -> None:
        self._is_sdk_hook = metrics is not None and not _has_any(metrics, _METHODS)
        if self._is_sdk_hook and not _has_any(metrics, _SDK_METHODS):
            raise ConfigurationError(
                f"metrics={type(metrics).__name__} has none of the methods of ConnectorMetrics "
                f"({', '.join(_METHODS)})"
            )
        self.counts = ConnectorCounts()
        self.observed = metrics is not None
        self._metrics = metrics
        self._complained = False

    def received(self, kind: str) -> None:
        """A payload was read."""
        self.counts.received += 1
        if self.observed:
            self._tell("received", kind)

    def delivered(self, kind: str) -> None:
        """A payload's callbacks all ended without an error."""
        self.counts.delivered += 1
        if self.observed:
            self._tell("delivered", kind)

    def failed(self, kind: str) -> None:
        """A callback of a payload raised."""
        self.counts.failed += 1
        if self.observed:
            self._tell("failed", kind)

    def dropped(self, payload: Payload) -> None:
        """A payload was dropped."""
        self.counts.dropped += 1
        if self._is_sdk_hook:
            self._tell(
                "record_event_dropped",
                reason="queue_full",
                event_type=payload.kind,
                session_id=payload.session_id,
                product_id=payload.product_id,
            )
        elif self.observed:
            self._tell("dropped", payload.kind)

    def skipped(self, reason: str) -> None:
        """An event was not used."""
        self.counts.skipped += 1
        if self.observed:
            self._tell("skipped", reason)

    def repaired(self) -> None:
        """A value of a payload was repaired."""
        self.counts.repaired += 1
        if self.observed:
            self._tell("skipped", "value")

    def connected(self) -> None:
        """A connection was made."""
        self.counts.connections += 1
        if self.counts.connections > 1 and self.observed:
            self._tell("reconnected")

    def pending(self, n: int) -> None:
        """How many payloads are held now."""
        if self._is_sdk_hook:
            self._tell("record_queue_depth", depth=n)
        elif self.observed:
            self._tell("pending", n)

    def paused(self, seconds: float) -> None:
        """How long the reader was paused."""
        if self.observed:
            self._tell("paused", seconds)

    def callback_seconds(self, seconds: float) -> None:
        """How long a callback took."""
        if self.observed:
            self._tell("callback_seconds", seconds)

    def _tell(self, method: str, *values: Any, **named: Any) -> None:
        if self._is_sdk_hook and not (
            method in _SDK_METHODS and _has_any(self._metrics, (method,))
        ):
            return  # the SDK's hook has only these two methods, and either may be missing
        try:
            getattr(self._metrics, method)(*values, **named)
        except Exception:
            if not self._complained:
                self._complained = True
                logger.exception("metrics.%s raised; further errors of it are not logged", method)


def _has_any(metrics: object, methods: Iterable[str]) -> bool:
    try:
        return any(callable(getattr(metrics, name, None)) for name in methods)
    except Exception:  # noqa: BLE001 - the user's `__getattr__` raised; the call will log it
        return True
