"""Payloads come in by push mode."""

from __future__ import annotations

import logging
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Request

from autoplay_rag.decoding import decode
from autoplay_rag.errors import DecodeError, SignatureError, UnknownPayloadError
from autoplay_rag.payloads import Payload
from autoplay_rag.serve.access import Admits, Caller
from autoplay_rag.serve.models import Id, OutcomeAnswer
from autoplay_rag.serve.problems import ProblemError, check_kept
from autoplay_rag.serve.serving import receiving_of

__all__ = ["router"]

_log = logging.getLogger(__name__)

router = APIRouter(tags=["ingest"])


@router.post(
    "/v1/webhooks/{product_id}",
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}
    },
)
async def webhooks(
    product_id: Annotated[Id, Path()],
    request: Request,
    caller: Annotated[Caller, Depends(Admits("open"))],
) -> OutcomeAnswer:
    """Accept a delivery of the connector. Answers once it is in the journal, or in the topic of a relay.

    It is let through by its signature (`X-Connector-Signature`), or by an ingest key.
    """
    body = await request.body()
    payload = _read(request, body, caller)
    if payload is None:
        return OutcomeAnswer(outcome="unknown type")
    if not payload.product_id:
        payload = msgspec.structs.replace(payload, product_id=product_id)
    elif payload.product_id != product_id:
        raise ProblemError(422, "The payload is of another product than the address.")
    outcome = await receiving_of(request).intake.accept(payload)
    check_kept(outcome)
    return OutcomeAnswer(outcome=outcome)


def _read(request: Request, body: bytes, caller: Caller) -> Payload | None:
    """Check and decode a delivery; None if this version does not know its type."""
    receiver = receiving_of(request).settings.webhooks
    signature = request.headers.get("x-connector-signature")
    try:
        if receiver is not None and (signature is not None or caller.principal is None):
            return receiver.read(body, signature)
        if caller.principal is None:
            raise ProblemError(
                401,
                "Deliveries need an ingest key, or a webhook secret on the server and a signature.",
                {"www-authenticate": "Bearer"},
            )
        if not caller.principal.allows("ingest"):
            raise ProblemError(403, "This needs an ingest key.")
        return decode(body)
    except SignatureError as error:
        _log.warning("refused a delivery: %s", error)
        raise ProblemError(401, f"{error}.") from None
    except UnknownPayloadError as error:
        _log.debug("acknowledged without use: %s", error)
        return None
    except DecodeError as error:
        raise ProblemError(400, f"{error}.") from None
