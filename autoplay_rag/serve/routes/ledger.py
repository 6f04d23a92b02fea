"""The counts that show that nothing was lost."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import create_model

from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.serve.access import Access, Needs

__all__ = ["CountsModel", "LedgerModel", "router"]

router = APIRouter(tags=["operation"])

_SECONDS = ("oldest_pending", "lag_p50", "lag_p99")
_FIELDS: dict[str, Any] = {
    name: (float | None if name in _SECONDS else int, ...) for name in Ledger.__dataclass_fields__
}
CountsModel = create_model("CountsModel", **_FIELDS)
"""The fields of `Ledger`."""
LedgerModel = create_model(
    "LedgerModel",
    __base__=CountsModel,
    balanced=(bool, ...),
    watermark=(int, ...),
    health=(str, ...),
)
"""The fields of `Ledger`, and `balanced`, `watermark` and the state of `health`."""


@router.get("/v1/ledger", response_model=LedgerModel)
async def ledger(access: Annotated[Access, Depends(Needs("read"))]) -> dict[str, Any]:
    """Return the ledger: received = the sum of the other eight payload counts."""
    pipeline = access.pipeline
    found = pipeline.ledger
    return {
        **{name: getattr(found, name) for name in Ledger.__dataclass_fields__},
        "balanced": found.balanced,
        "watermark": pipeline.watermark,
        "health": pipeline.health.state,
    }
