"""Export and forget people, sessions, threads and products."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Response
from starlette.responses import StreamingResponse

from autoplay_rag.errors import ConfigurationError
from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.models import Asked, ForgetRequest, ReceiptModel
from autoplay_rag.serve.problems import ProblemError

__all__ = ["router"]

router = APIRouter(tags=["forgetting"])

Admin = Annotated[Access, Depends(Needs("admin", audited=True))]
_LINES: str = "application/x-ndjson"
_NOTHING: dict[str, Any] = {}


class _Lines(StreamingResponse):
    media_type = _LINES


@router.post(
    "/v1/export",
    response_class=_Lines,
    responses={200: {"content": {_LINES: {"schema": {"type": "string"}}}}},
)
async def export(asked: Asked, access: Admin) -> _Lines:
    """Return everything that is held about ids: a JSON record on each line."""
    ids = await access.select(asked.ids)
    records = access.pipeline.export(**ids.given)
    # The first record is read before the answer begins, so that errors have a status.
    first = await anext(records, _NOTHING)

    async def lines() -> AsyncIterator[bytes]:
        record = first
        try:
            while record:
                access.audit.counts["records"] = access.audit.counts.get("records", 0) + 1
                yield msgspec.json.encode(record) + b"\n"
                record = await anext(records, _NOTHING)
        finally:
            await records.aclose()  # type: ignore[attr-defined]  # it is a generator

    return _Lines(lines())


@router.post("/v1/forget", responses={202: {"model": ReceiptModel}})
async def forget(asked: ForgetRequest, access: Admin, response: Response) -> ReceiptModel:
    """Forget what ids select, and return the receipt.

    200 once no search and no listing finds it; 202 if the store has not confirmed its deletions:
    `remaining` has the reasons, and `GET /v1/forget/{number}` the receipt as of then.
    """
    ids = await access.select(asked.ids)
    receipt = await access.pipeline.forget(
        **ids.given, until=asked.until, dry_run=asked.dry_run, block=asked.block
    )
    access.audit.counts |= {
        "payloads": receipt.payloads,
        "chunks": receipt.chunks,
        "sessions": receipt.sessions,
        "dry_run": int(receipt.dry_run),
    }
    if not receipt.deleted and not receipt.dry_run:
        response.status_code = 202
    return ReceiptModel.model_validate(receipt)


@router.get("/v1/forget/{number}")
async def receipt(number: Annotated[int, Path(ge=1, le=2**53)], access: Admin) -> ReceiptModel:
    """Return the receipt of an earlier request to forget, as of now."""
    try:
        return ReceiptModel.model_validate(await access.pipeline.receipt(number))
    except ConfigurationError:
        raise ProblemError(404, "There is no request of this number.") from None
