"""The state of journal, store and pipeline: what `autoplay-rag status` shows."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from autoplay_rag.serve.access import Access, Needs
from autoplay_rag.serve.routes.ledger import CountsModel

__all__ = ["router"]

router = APIRouter(tags=["operation"])

_OTHER = ("reembedding", "space")
"""Fields that `JournalStatus` does not have under the same name."""


class HealthModel(BaseModel):
    """The health of the pipeline; see `Health`."""

    state: str
    reasons: list[str]


class ReembeddingModel(BaseModel):
    """A move to another model that is not complete."""

    model: str
    done: int
    total: int


class SpaceModel(BaseModel):
    """The disk space of journal and store, in bytes; see `Space`."""

    journal: int | None
    store: int | None
    free: int


class TopicPartModel(BaseModel):
    """One partition of a topic; see `TopicPart`."""

    number: int
    owner: str | None
    offset: int | None
    end: int | None
    lag: int
    missed: int


class TopicModel(BaseModel):
    """How far a topic of Kafka is taken in; see `TopicStatus`."""

    topic: str
    group: str
    lag: int
    missed: int
    parts: list[TopicPartModel]


class StatusAnswer(BaseModel):
    """The state as of now; see `JournalStatus`."""

    ledger: CountsModel
    queue_bytes: int
    oldest_at: float | None
    watermark: int
    health: HealthModel
    running: bool
    model: str
    reembedding: ReembeddingModel | None
    space: SpaceModel
    topic: TopicModel | None


@router.get("/v1/status")
async def status(access: Annotated[Access, Depends(Needs("read"))]) -> StatusAnswer:
    """Return counts, health, model and sizes."""
    found = await access.pipeline.status()
    return StatusAnswer.model_validate(
        {
            **{
                name: getattr(found, name)
                for name in StatusAnswer.model_fields
                if name not in _OTHER
            },
            "reembedding": found.copy,
            "space": await access.pipeline.measure_space(),
        },
        from_attributes=True,
    )
