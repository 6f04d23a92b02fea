"""Spans for OpenTelemetry. Without it, or before a provider is set, nothing is recorded.

The package does not import OpenTelemetry: it costs 30 ms, and an application that wants spans has
imported it to set a provider. Errors are recorded by their type alone, because their messages may
have personal data.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final, Protocol, TypeAlias

__all__ = ["Attribute", "Origin", "Span", "captures_content", "current_origin", "traced"]

Attribute: TypeAlias = str | bool | int | float
Origin: TypeAlias = Any
"""What a span can be linked to: a `SpanContext`. None without OpenTelemetry."""

_log = logging.getLogger(__name__)

_NAME: Final = "autoplay_rag"
_CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_CAPTURING: Final = frozenset(("true", "1", "span_only", "span_and_event"))
_MOST_LINKS: Final = 64


class Span(Protocol):
    """What this package uses of a span."""

    def set_attribute(self, key: str, value: Attribute) -> None:
        """Set one attribute."""

    def update_name(self, name: str) -> None:
        """Set another name."""

    def is_recording(self) -> bool:
        """Whether attributes are kept. If not, computing one is a waste."""


class _NoSpan:
    def set_attribute(self, key: str, value: Attribute) -> None:
        """Do nothing."""

    def update_name(self, name: str) -> None:
        """Do nothing."""

    def is_recording(self) -> bool:
        return False


_NO_SPAN: Final = _NoSpan()


class _Tracers:
    """Returns the tracer of the current provider.

    Attributes:
        made: The last provider with its tracer.
    """

    def __init__(self) -> None:
        self.made: tuple[Any, Any] = (None, None)

    def current(self) -> Any:
        """Return the tracer; None if no provider is set."""
        # A module that is being imported by another thread lacks functions for a moment.
        trace = sys.modules.get("opentelemetry.trace")
        find: Callable[[], Any] | None = getattr(trace, "get_tracer_provider", None)
        if find is None:
            return None
        provider = find()
        if isinstance(provider, trace.ProxyTracerProvider):  # type: ignore[union-attr]
            return None  # no provider is set
        known, tracer = self.made
        if provider is not known:
            tracer = provider.get_tracer(_NAME, version("autoplay-rag"))
            self.made = (provider, tracer)
        return tracer


_TRACERS: Final = _Tracers()


@contextmanager
def traced(
    name: str,
    attributes: Mapping[str, Attribute] | None = None,
    *,
    root: bool = False,
    origins: Collection[Origin] = (),
    headers: Mapping[str, str] | None = None,
) -> Iterator[Span]:
    """Make the block a span, the child of the current one.

    Args:
        name: The name of the span.
        attributes: Its first attributes.
        root: Begin a new trace. For work that no caller waits for: tasks inherit the span in which
            they were started, which may have ended days ago.
        origins: Spans that led to this one; see `current_origin`.
        headers: Those of a request that this span answers. It continues the trace that they name.

    Example:
        >>> with traced("search", {"k": 5}) as span:
        ...     span.set_attribute("hits", 3)
    """
    tracer = _TRACERS.current()
    if tracer is None:
        yield _NO_SPAN
        return
    from opentelemetry.context import Context, attach, detach
    from opentelemetry.propagate import extract
    from opentelemetry.trace import Link, SpanKind, StatusCode, set_span_in_context

    distinct = {origin.span_id: origin for origin in origins if origin is not None}
    try:
        span = tracer.start_span(
            name,
            context=extract(headers) if headers is not None else Context() if root else None,
            kind=SpanKind.INTERNAL if headers is None else SpanKind.SERVER,
            attributes=attributes,
            links=[Link(origin) for origin in list(distinct.values())[:_MOST_LINKS]],
        )
    except Exception:  # noqa: BLE001 - other people's code: what is traced goes on
        _log.exception("a span could not be started")
        yield _NO_SPAN
        return
    token = attach(set_span_in_context(span))
    try:
        yield span
    except BaseException as error:
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_status(StatusCode.ERROR)
        raise
    finally:
        detach(token)
        try:
            span.end()
        except Exception:  # noqa: BLE001 - see above
            _log.exception("a span could not be ended")


def current_origin() -> Origin:
    """Return the current span, for later work that it leads to; None without one."""
    if _TRACERS.current() is None:
        return None
    from opentelemetry.trace import get_current_span

    found = get_current_span().get_span_context()
    return found if found.is_valid else None


def captures_content(given: bool | None) -> bool:
    """Return whether questions and documents go into spans.

    Args:
        given: The user's choice; None for that of the environment.
    """
    if given is not None:
        return given
    return os.environ.get(_CAPTURE, "").strip().lower() in _CAPTURING
