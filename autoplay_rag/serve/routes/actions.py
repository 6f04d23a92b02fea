"""Reads that are not about one person: the actions of all sessions, and the products."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query
from starlette.responses import StreamingResponse

from autoplay_rag.errors import JournalError
from autoplay_rag.serve.access import Access, Ids, Needs
from autoplay_rag.serve.models import Id, ProductsAnswer
from autoplay_rag.serve.routes.sessions import Text, Time, moment_of

__all__ = ["router"]

router = APIRouter(tags=["sessions"])

# Not with a token: `matching`, `without` and `page` are about all people of a session.
Read = Annotated[Access, Depends(Needs("read", audited=True))]
_LINES: str = "application/x-ndjson"
_BATCH = 100


class _Lines(StreamingResponse):
    media_type = _LINES


@router.get(
    "/v1/actions",
    response_class=_Lines,
    responses={200: {"content": {_LINES: {"schema": {"type": "string"}}}}},
)
async def actions(
    access: Read,
    *,
    user_id: Annotated[Id | None, Query()] = None,
    session_id: Annotated[Id | None, Query()] = None,
    product_id: Annotated[Id | None, Query()] = None,
    since: Time = None,
    until: Time = None,
    matching: Text = None,
    without: Text = None,
    page: Text = None,
) -> _Lines:
    """Return actions in the order of acceptance: a JSON object on each line.

    The last line is `{"missing": n}`: the number of payloads that were left out, because their
    bodies were not kept. An answer without it is not complete.
    """
    ids = await access.select(Ids(user_id, session_id, product_id))
    found = access.pipeline.actions(
        moment_of(since),
        moment_of(until),
        user_id=ids.user_id,
        session_id=ids.session_id,
        product_id=ids.product_id,
        matching=matching,
        without=without,
        page=page,
    )
    try:
        # The first action is read before the answer begins, so that errors have a status.
        first = await anext(found, None)
    except JournalError:
        if not found.missing:
            raise
        first = None  # no body was kept: the last line says it

    async def lines() -> AsyncIterator[bytes]:
        one, batch, count = first, bytearray(), 0
        try:
            while one is not None:
                batch += msgspec.json.encode(one) + b"\n"
                count += 1
                if count % _BATCH == 0:
                    yield bytes(batch)
                    batch.clear()
                one = await anext(found, None)
            yield bytes(batch) + msgspec.json.encode({"missing": found.missing}) + b"\n"
        finally:
            access.audit.counts["actions"] = count
            await found.aclose()

    return _Lines(lines())


@router.get("/v1/products")
async def products(
    access: Read,
    *,
    user_id: Annotated[Id | None, Query()] = None,
    session_id: Annotated[Id | None, Query()] = None,
    conversation_id: Annotated[Id | None, Query()] = None,
) -> ProductsAnswer:
    """Return the products in which ids occur; without ids, all products."""
    given = Ids(user_id, session_id, None, conversation_id)
    access.audit.about(given.given)
    found = await access.pipeline.products(**given.given)
    access.audit.counts["products"] = len(found)
    return ProductsAnswer(products=found)
