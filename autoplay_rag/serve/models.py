"""The JSON of requests and answers. Unknown keys of a request are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from autoplay_rag.serve.access import Ids

__all__ = [
    "Asked",
    "ContextAnswer",
    "ContextRequest",
    "DeadLetterModel",
    "DeadLettersAnswer",
    "DeadLettersChanged",
    "DeadLettersRequest",
    "ForgetRequest",
    "HitModel",
    "HitsAnswer",
    "Id",
    "JobModel",
    "JobRequest",
    "JobsAnswer",
    "LiveAnswer",
    "LiveSessionModel",
    "OutcomeAnswer",
    "ProductsAnswer",
    "ReceiptModel",
    "SearchRequest",
    "SearchSessionsRequest",
    "SessionHitModel",
    "SessionHitsAnswer",
    "SessionModel",
    "SessionSummaryModel",
    "SessionsAnswer",
    "TurnRequest",
]

_MOST_HITS = 100
_LONGEST_QUERY = 8_000

Id = Annotated[str, Field(min_length=1, max_length=512)]
Time = Annotated[float, Field(allow_inf_nan=False)] | Annotated[str, Field(max_length=64)]
"""Unix seconds, an ISO text, or an age such as "7d"."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Asked(_Request):
    """Whose data."""

    user_id: Id | None = None
    session_id: Id | None = None
    product_id: Id | None = None
    conversation_id: Id | None = None

    @property
    def ids(self) -> Ids:
        """The ids."""
        return Ids(self.user_id, self.session_id, self.product_id, self.conversation_id)


class SearchSessionsRequest(Asked):
    """A question about sessions, as for `IngestPipeline.search_sessions`."""

    query: Annotated[str, Field(min_length=1, max_length=_LONGEST_QUERY)]
    k: Annotated[int, Field(ge=1, le=_MOST_HITS)] = 5
    mode: Literal["hybrid", "dense", "text"] = "hybrid"
    kind: Literal["actions", "summary", "chat"] | None = None
    since: Time | None = None
    until: Time | None = None


class SearchRequest(SearchSessionsRequest):
    """A question, as for `IngestPipeline.search`."""

    collapse: bool = False


class ContextRequest(Asked):
    """What the context is about, as for `IngestPipeline.context`."""

    query: Annotated[str, Field(max_length=_LONGEST_QUERY)] | None = None
    since_turn: bool = False
    seconds: Annotated[float, Field(gt=0, le=1e9)] = 600.0
    max_actions: Annotated[int, Field(ge=1, le=1000)] | None = None
    max_chars: Annotated[int, Field(ge=1, le=100_000)] = 4000


class TurnRequest(_Request):
    """A chat turn with an assistant, as `ChatTurn`."""

    product_id: Id
    session_id: Id | None = None
    user_id: Id | None = None
    conversation_id: Id | None = None
    question: Annotated[str, Field(max_length=200_000)] = ""
    answer: Annotated[str, Field(max_length=200_000)] = ""
    tools: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=100)] = []
    forwarded_at: Annotated[float, Field(ge=0, le=1e11)] | None = None


class ForgetRequest(Asked):
    """Whom to forget, as for `IngestPipeline.forget`."""

    until: Time | None = None
    dry_run: bool = False
    block: bool = False


class DeadLettersRequest(_Request):
    """Which dead letters: some ids, or all."""

    ids: Annotated[list[Annotated[int, Field(ge=0, le=2**53)]], Field(max_length=1000)] | None = (
        None
    )
    all: bool = False


class JobRequest(_Request):
    """A job to start."""

    kind: Annotated[str, Field(max_length=40)]
    options: dict[str, Any] = {}


class _Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class MatchedModel(_Answer):
    """The lines that answer the question."""

    text: str
    places: list[tuple[int, int]]


class HitModel(_Answer):
    """A chunk that a search found; see `Hit`."""

    id: str
    session_id: str | None
    user_id: str | None
    text: str
    score: float
    metadata: dict[str, str | int | float]
    dense_score: float | None
    text_score: float | None
    matched: MatchedModel
    embedded: bool
    sessions: int


class SessionHitModel(_Answer):
    """A session that a search found; see `SessionHit`."""

    session_id: str | None
    product_id: str
    user_id: str | None
    started_at: float | None
    ended_at: float | None
    score: float
    hits: list[HitModel]
    text: str


class _Found(_Answer):
    watermark: int
    unembedded: int | None = Field(description="Null under a token: it counts other people's, too.")
    scope_known: bool | None = Field(description="Null under a token.")
    problem: str | None


class HitsAnswer(_Found):
    """Hits, best first."""

    hits: list[HitModel]


class SessionHitsAnswer(_Found):
    """Sessions, best first."""

    hits: list[SessionHitModel]


class SessionSummaryModel(_Answer):
    """One session of a list; see `SessionSummary`."""

    session_id: str
    product_id: str
    user_id: str | None
    started_at: float | None
    ended_at: float | None
    payloads: int
    actions: int
    what: str
    ambiguous: bool


class SessionsAnswer(_Answer):
    """One page of sessions, latest first."""

    sessions: list[SessionSummaryModel]
    total: int
    next: str | None


class ProductsAnswer(_Answer):
    """Products, in order."""

    products: list[str]


class SessionEventModel(_Answer):
    """One action, summary or chat turn; see `SessionEvent`."""

    session_id: str | None
    product_id: str
    user_id: str | None
    kind: str
    started_at: float | None
    ended_at: float | None
    page: str
    type: str
    title: str
    description: str
    seq: int
    index: int


class SessionModel(_Answer):
    """One session, or one part of it; see `WholeSession`."""

    session_id: str
    product_id: str
    user_id: str | None
    users: list[str]
    ambiguous: bool
    started_at: float | None
    ended_at: float | None
    payloads: int
    events: list[SessionEventModel]
    text: str
    missing: int
    next: str | None = None


class LiveEventModel(_Answer):
    """One event of a live session; see `LiveEvent`."""

    at: float
    kind: str
    text: str
    url: str


class LiveSessionModel(_Answer):
    """A live session; see `LiveSession`."""

    product_id: str
    session_id: str
    user_id: str | None
    conversation_id: str | None
    seen_at: float
    events: list[LiveEventModel]


class LiveAnswer(_Answer):
    """What happens now, as text and as events."""

    session: LiveSessionModel | None
    text: str


class ContextAnswer(_Answer):
    """The context for a language model."""

    text: str


class OutcomeAnswer(_Answer):
    """What became of a payload."""

    outcome: str


class EventsAnswer(_Answer):
    """What became of the events of an analytics tool: how many had each outcome.

    Those with the first five outcomes are payloads, and counted in the ledger. `skipped` were not
    actions, `repeated` had the id of another event of the same body, `bad` could not be read.
    """

    accepted: int
    duplicate: int
    filtered: int
    refused: int
    dead: int
    skipped: int
    repeated: int
    bad: int


class ReceiptModel(_Answer):
    """What was forgotten; see `Receipt`."""

    number: int
    asked: dict[str, str]
    asked_at: float
    until: float | None
    block: bool
    dry_run: bool
    payloads: int
    chunks: int
    sessions: int
    pending: int
    dead_letters: int
    text_only: int
    deleted_at: float | None
    erased_at: float | None
    remaining: list[str]


class DeadLetterModel(_Answer):
    """A payload that could not be stored; see `DeadLetter`."""

    id: int
    kind: str
    session_id: str | None
    error: str
    died_at: float
    payload: dict[str, Any] | None


class DeadLettersAnswer(_Answer):
    """One page of dead letters, oldest first, and how many there are in all."""

    dead_letters: list[DeadLetterModel]
    total: int
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class DeadLettersChanged(_Answer):
    """How many dead letters were retried or discarded."""

    count: int


class JobModel(_Answer):
    """A job."""

    id: str
    kind: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    created_at: float
    started_at: float | None
    ended_at: float | None
    done: int | None = Field(description="Units done; null if the kind does not count.")
    total: int | None
    rate: float | None = Field(description="Units per second; null if unknown.")
    unit: Literal["chunks", "bytes"] = Field(description="What is counted.")
    seconds_left: float | None
    problem: str | None = Field(description="What it waits for; null if nothing.")
    report: Any
    error: str | None


class JobsAnswer(_Answer):
    """The jobs, the latest first."""

    jobs: list[JobModel]
