"""Events come in from analytics tools."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Request

from autoplay_rag.connector.sse import MAX_EVENT_BYTES
from autoplay_rag.errors import DecodeError, SignatureError
from autoplay_rag.serve.access import Admits, Caller
from autoplay_rag.serve.models import EventsAnswer, Id
from autoplay_rag.serve.problems import ProblemError, check_kept
from autoplay_rag.serve.serving import receiving_of
from autoplay_rag.sources.analytics import Events
from autoplay_rag.sources.specs import AnalyticsTool
from autoplay_rag.sources.tools import READERS, check_sender

__all__ = ["router"]

_log = logging.getLogger(__name__)

_LARGE_BODY: Final = 65_536
"""Bytes; larger bodies are read in a thread."""
_GZIP: Final = 31
_GZIP_MAGIC: Final = b"\x1f\x8b"

router = APIRouter(tags=["ingest"])


@router.post(
    "/v1/webhooks/{product_id}/{tool}",
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}
    },
)
async def analytics(
    product_id: Annotated[Id, Path()],
    tool: Annotated[AnalyticsTool, Path()],
    request: Request,
    caller: Annotated[Caller, Depends(Admits("open"))],
) -> EventsAnswer:
    """Accept events of PostHog, Amplitude, Segment or RudderStack, one or many.

    Answers once they are in the journal, or in the topic of a relay. An event that cannot be read is counted as `bad`, and
    costs no other. The request is let through by the secret (`X-Webhook-Secret`), by Segment's
    signature (`X-Signature`), or by an ingest key. The body may be compressed with gzip.
    """
    raw = await request.body()
    _check(request, tool, raw, caller)
    receiving = receiving_of(request)
    read = partial(_read, raw, request.headers.get("content-encoding", ""), tool)
    found = await asyncio.to_thread(read) if len(raw) > _LARGE_BODY or _is_gzip(raw) else read()
    outcomes = await receiving.events.take(found.events, product_id)
    answer = EventsAnswer(
        **{
            name: outcomes[name]
            for name in ("accepted", "duplicate", "filtered", "refused", "dead")
        },
        skipped=found.skipped,
        repeated=found.repeated,
        bad=found.bad,
    )
    for name, count in answer.model_dump().items():
        receiving.event_counts[tool, name] += count
    if found.bad:
        _log.warning(
            "%s: %d events could not be read, %d could", tool, found.bad, len(found.events)
        )
    # What was accepted is a duplicate when the request comes again.
    check_kept(*outcomes)
    return answer


def _check(request: Request, tool: AnalyticsTool, raw: bytes, caller: Caller) -> None:
    """Check who sends the request."""
    if caller.principal is not None:
        if not caller.principal.allows("ingest"):
            raise ProblemError(403, "This needs an ingest key.")
        return
    secret = receiving_of(request).settings.analytics_secrets.get(tool)
    if secret is None:
        raise ProblemError(
            401,
            "Events need an ingest key, or a webhook secret on the server and in the request.",
            {"www-authenticate": "Bearer"},
        )
    try:
        check_sender(tool, raw, request.headers, secret)
    except SignatureError as error:
        _log.warning("refused events of %s: %s", tool, error)
        raise ProblemError(401, f"{error}.") from None


def _read(raw: bytes, encoding: str, tool: AnalyticsTool) -> Events:
    # A proxy may have decompressed the body and left the header.
    if encoding.strip().lower() not in ("", "identity", "gzip", "x-gzip"):
        raise ProblemError(415, "The body may be compressed with gzip only.")
    body = _unpacked(raw) if _is_gzip(raw) else raw
    try:
        return READERS[tool](body, now=time.time())
    except DecodeError as error:
        raise ProblemError(400, f"{error}.") from None


def _is_gzip(raw: bytes) -> bool:
    # Some senders compress and do not say so.
    return raw.startswith(_GZIP_MAGIC)


def _unpacked(raw: bytes) -> bytes:
    """Decompress a body, as far as it is not larger than a body may be."""
    decompress = zlib.decompressobj(_GZIP)
    try:
        body = decompress.decompress(raw, MAX_EVENT_BYTES + 1)
    except zlib.error:
        raise ProblemError(400, "The body is damaged: it is not gzip.") from None
    if len(body) > MAX_EVENT_BYTES:
        raise ProblemError(413, f"The body has more than {MAX_EVENT_BYTES} bytes, decompressed.")
    if not decompress.eof:
        raise ProblemError(400, "The body is cut off: its gzip data has no end.")
    return body
