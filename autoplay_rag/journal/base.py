"""What a queue and a catalog must do. SQLite (`journal/sqlite.py`) implements both in one file.

The **queue** keeps what was received until it is stored or given up. The **catalog** knows what
is stored: chunks with their text and metadata, sessions, and what is still to be deleted. One
transaction moves a payload from one to the other, so an implementation provides both.

No method takes a function: each names one operation, which is one transaction.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.content.filters import Condition
from autoplay_rag.content.identity import People
from autoplay_rag.content.passages import Passage
from autoplay_rag.journal.ledger import Counts
from autoplay_rag.payloads import Payload

__all__ = [
    "Acknowledgement",
    "Action",
    "Catalog",
    "DeadLetter",
    "Durability",
    "Entry",
    "Findable",
    "Found",
    "FoundPassage",
    "Health",
    "Heard",
    "Journal",
    "Known",
    "Notes",
    "Outcome",
    "Plan",
    "PlannedChunk",
    "Prepared",
    "Queue",
    "QueuedChunk",
    "Scope",
    "Session",
    "Unindexed",
    "Visit",
    "Waiting",
]

Outcome = Literal["accepted", "duplicate", "filtered", "dead", "overflow"]
"""What became of a payload that was handed over."""
Durability = Literal["normal", "full"]
Action = Literal["retry", "discard"]
"""What can be asked of dead letters."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A payload on its way into the queue.

    Attributes:
        seq: Its sequence number.
        key: Its `payload_key`.
        lane: Its `lane_of`.
        payload: As it is kept; None if only its receipt is recorded.
        body: Its JSON; None if only its receipt is recorded.
        first_chunk: The id of the chunk that begins with it: how a payload is recognised whose
            chunk was adopted from a store, which knows no payload keys.
        outcome: "accepted" for the queue, "filtered" to count it only, "dead" for `error`.
        error: Why it is dead.
    """

    seq: int
    key: str
    lane: int
    payload: Payload | None
    body: bytes | None
    first_chunk: str = ""
    outcome: Literal["accepted", "filtered", "dead"] = "accepted"
    error: str | None = None

    @property
    def size(self) -> int:
        """Bytes of its JSON."""
        return 0 if self.body is None else len(self.body)


class Prepared(NamedTuple):
    """What of an entry is kept, made before the transaction that keeps it.

    Attributes:
        body: Its JSON as it is stored; None if only its receipt is recorded.
        passage: What full-text search finds it by; None if it is not to be found.
    """

    body: bytes | None = None
    passage: Passage | None = None


class Waiting(NamedTuple):
    """A payload of the queue, as planning needs it.

    Attributes:
        seq: Its sequence number.
        key: Its `payload_key`.
        lane: Its lane.
        body: Its JSON; None if the journal's copy is damaged.
        retried: Whether it is a dead letter that was put back: later ones may be stored already.
    """

    seq: int
    key: str
    lane: int
    body: bytes | None
    retried: bool = False


class Session(NamedTuple):
    """Who a session belongs to, and when it was active.

    Attributes:
        lane: Its lane.
        product_id: Its product.
        session_id: Its id.
        people: Who it belongs to.
        ambiguous: Whether more than one person used it.
        first: Unix seconds of its first known activity.
        last: Unix seconds of its last known activity.
    """

    lane: int
    product_id: str
    session_id: str
    people: People
    ambiguous: bool
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """A chunk with the payloads it holds.

    Attributes:
        chunk: Id, text and metadata.
        seqs: The sequence numbers of its payloads, in order.
        tokens: What embedding it costs, as the embedder counts.
    """

    chunk: Chunk
    seqs: tuple[int, ...]
    tokens: int


@dataclass(slots=True)
class Plan:
    """The chunks of one session that are stored together: recorded before anything is embedded.

    After a crash it is carried out as recorded, so that what was half stored is overwritten and
    never doubled, whatever the settings are by then.

    Attributes:
        number: The number of the batch; numbers only grow.
        lane: The session's lane.
        chunks: In the session's order.
        unplanned: Errors of payloads that could not be rendered, by sequence number.
    """

    number: int
    lane: int
    chunks: list[PlannedChunk]
    unplanned: dict[int, str] = field(default_factory=dict)

    @property
    def seqs(self) -> list[int]:
        """The sequence numbers of all its payloads, in order."""
        planned = {seq for chunk in self.chunks for seq in chunk.seqs}
        return sorted(planned | self.unplanned.keys())


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A plan that was carried out.

    Attributes:
        plan: As it was recorded last.
        dead: Errors of payloads that could not be stored, by sequence number.
    """

    plan: Plan
    dead: Mapping[int, str]


class Scope(NamedTuple):
    """What a filter leaves of the catalog.

    Attributes:
        known: Whether the session, the person and the chat thread that were asked for were ever
            seen; True if none was asked for.
        lanes: The sessions that pass, the latest first, if they are few; None if they are many.
        pending: How many payloads wait: those of the asked sessions, where they are few.
    """

    known: bool
    lanes: list[int] | None
    pending: int


class Found(NamedTuple):
    """What full text finds for a question.

    Attributes:
        total: About how many passages there are.
        counts: In how many of them each term of the question is.
        passages: (sequence number, lane) of those that match best.
    """

    total: int
    counts: dict[str, int]
    passages: list[tuple[int, int]]


class FoundPassage(NamedTuple):
    """What one payload says.

    Attributes:
        seq: Its sequence number.
        lane: Its session's lane.
        text: Its lines.
        chunk: The id of the stored chunk it is in; None while there is none.
        started: Unix seconds of its first action; None if unknown.
        ended: Unix seconds of its last one; None if unknown.
    """

    seq: int
    lane: int
    text: str
    chunk: str | None
    started: float | None
    ended: float | None


class Heard(NamedTuple):
    """A payload for the index.

    Attributes:
        seq: Its sequence number.
        lane: Its lane.
        product_id: Its product.
        session_id: Its session; None if it has none.
        passage: What it says.
    """

    seq: int
    lane: int
    product_id: str
    session_id: str | None
    passage: Passage


class Unindexed(NamedTuple):
    """A payload that an older version accepted, or a chunk that was read from a store.

    Attributes:
        seq: Its sequence number.
        lane: The lane of its chunk, or its own; None if the chunk has no session.
        body: Its body as it is kept; None if it was not kept.
        chunk: Text, product, session, user, conversation, start and end of the chunk that begins
            with it; None if none does.
    """

    seq: int
    lane: int
    body: bytes | None
    chunk: tuple[Any, ...] | None


class Visit(NamedTuple):
    """A session as it was received.

    Attributes:
        lane: Its lane.
        product_id: Its product.
        session_id: Its id; None for a payload without a session.
        first: Unix seconds of its first known action; None if unknown.
        last: Unix seconds of its last known action; None if unknown.
        payloads: How many payloads it has.
        actions: How many actions they hold.
    """

    lane: int
    product_id: str
    session_id: str | None
    first: float | None
    last: float | None
    payloads: int
    actions: int


class QueuedChunk(NamedTuple):
    """A chunk of the catalog that is to be embedded and stored again.

    Attributes:
        number: Its number in the catalog.
        chunk: As the catalog has it.
    """

    number: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A payload that could not be stored.

    Attributes:
        id: Names it in `retry` and `discard`.
        kind: "actions", "summary" or "chat"; "unknown" where nothing was kept.
        session_id: Its session.
        error: Why it was given up.
        died_at: Unix seconds.
        payload: The payload; None where `redact` failed on it and nothing was kept.
    """

    id: int
    kind: str
    session_id: str | None
    error: str
    died_at: float
    payload: Payload | None


@dataclass(frozen=True, slots=True)
class Health:
    """Whether payloads reach the store.

    Attributes:
        state: "ok"; "degraded" while something fails that is retried or needs attention; "failed"
            once the pipeline stores nothing more.
        reasons: What is wrong, a line each; empty while all is well.

    Example:
        >>> str(Health()), str(Health("degraded", ("store: ConnectionError: refused",)))
        ('ok', 'degraded: store: ConnectionError: refused')
    """

    state: Literal["ok", "degraded", "failed"] = "ok"
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.state}: {'; '.join(self.reasons)}" if self.reasons else self.state


@dataclass(frozen=True, slots=True)
class Notes:
    """What a journal notes about itself and the store it belongs to.

    Attributes:
        journal_id: Names this journal for good.
        store_id: The store it belongs to; "" if none yet.
        store_batch: The batch number that the store confirmed last.
        model: The embedder of what is stored; "" if none is known.
        adopted: Whether it holds chunks that were read from a store.
    """

    journal_id: str
    store_id: str = ""
    store_batch: int = 0
    model: str = ""
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """How far a journal has come.

    Attributes:
        seq: The highest sequence number given out.
        batch: The highest number of a recorded plan.
        acknowledged: The highest number of an acknowledged one.
        chunks: How many chunks were stored: those of plans under way are not counted.
    """

    seq: int
    batch: int
    acknowledged: int
    chunks: int


class Queue(ABC):
    """What was received and is not stored yet."""

    @property
    @abstractmethod
    def counts(self) -> Counts:
        """The durable counts, as of the last commit. Readable from any thread."""

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """What prevents writing now, in one line; None while all is well."""

    @abstractmethod
    def accept(self, entry: Entry) -> asyncio.Future[Outcome]:
        """Hand over a payload; the future ends when it is committed.

        Entries are committed in the order in which they are handed over. Cancelling the future
        changes nothing.
        """

    @abstractmethod
    async def known(self) -> Known:
        """How far the journal has come."""

    @abstractmethod
    async def settled_of(self, lane: int) -> int | None:
        """The watermark of one lane: all its payloads up to this number are settled.

        Returns:
            None if nothing of the lane is waiting: everything that was received is settled.
        """

    @abstractmethod
    async def waiting(self, after: int, limit: int) -> list[tuple[int, int, bool]]:
        """What waits, in order of sequence numbers: (seq, lane, whether it is a retried letter)."""

    @abstractmethod
    async def read(self, seqs: Sequence[int], most_bytes: int) -> list[Waiting]:
        """Payloads that wait, in the order asked for: as many as `most_bytes` allow, at least one."""

    @abstractmethod
    async def recent(self, since: float, limit: int) -> list[tuple[float, Payload]]:
        """Accepted payloads by time of arrival, oldest first: the last `limit` since a time."""

    @abstractmethod
    async def plans(self) -> list[Plan]:
        """Plans that were recorded and not acknowledged, oldest first."""

    @abstractmethod
    async def record_plans(self, plans: Sequence[Plan], sessions: Sequence[Session]) -> None:
        """Record plans, and who their sessions belong to."""

    @abstractmethod
    async def replace_plan(self, plan: Plan) -> None:
        """Record a plan anew under its number; chunks that it no longer has are forgotten."""

    @abstractmethod
    async def acknowledge(self, ended: Sequence[Acknowledgement]) -> list[str]:
        """Settle the payloads of plans that were carried out.

        Returns:
            Ids of chunks that are now in the deletion outbox: parts of payloads that died.
        """

    @abstractmethod
    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """The dead letters, oldest first."""

    @abstractmethod
    async def retry(self, ids: Sequence[int] | None) -> list[tuple[int, int]]:
        """Put dead letters back into the queue; None means all.

        They keep their sequence numbers, and the watermark stays where it is.

        Returns:
            (lane, sequence number) of each that was put back.
        """

    @abstractmethod
    async def discard(self, ids: Sequence[int] | None) -> int:
        """Drop dead letters for good; returns how many. None means all."""

    @abstractmethod
    async def carry_out_requests(self) -> list[tuple[int, int]]:
        """Do what other processes asked for; returns what was put back, as `retry` does."""

    @abstractmethod
    async def note_health(self, health: Health) -> None:
        """Keep how the pipeline is, for other processes."""

    @abstractmethod
    async def tokens(self, day: str) -> int:
        """The tokens embedded on a day."""

    @abstractmethod
    async def note_tokens(self, day: str, count: int) -> None:
        """Keep the tokens embedded on a day."""


class Findable(ABC):
    """What a search asks of the catalog. Nothing here waits for a writer."""

    @abstractmethod
    async def scope(self, conditions: Sequence[Condition]) -> Scope:
        """What a filter leaves."""

    @abstractmethod
    async def find(
        self,
        lookups: Mapping[str, Sequence[str]],
        phrases: Sequence[str],
        conditions: Sequence[Condition],
        limit: int,
    ) -> Found:
        """The passages that match a question best.

        Args:
            lookups: The question's terms, each with the words to look up.
            phrases: What is looked up as it stands.
            conditions: As `Filter.conditions` gives them.
            limit: The most passages.
        """

    @abstractmethod
    async def lanes_of(self, chunk_ids: Sequence[str]) -> dict[str, int]:
        """The lanes of stored chunks, where they are known."""

    @abstractmethod
    async def recent_lanes(self, conditions: Sequence[Condition], limit: int) -> list[int]:
        """The sessions that pass a filter, the latest first."""

    @abstractmethod
    async def chunk_ids(self, lanes: Sequence[int]) -> list[str]:
        """The ids of the chunks that the store has of these sessions."""

    @abstractmethod
    async def passages(
        self, lanes: Sequence[int], matched: Sequence[int] = ()
    ) -> list[FoundPassage]:
        """What sessions say, in order; of a long one the latest, and what matched."""

    @abstractmethod
    async def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """Stored chunks with text and metadata, in no order."""

    @abstractmethod
    async def waiting(self, seqs: Sequence[int]) -> dict[int, Chunk]:
        """Payloads that are in no stored chunk yet, each as a chunk of its own."""

    @abstractmethod
    async def visits(self, lanes: Sequence[int]) -> dict[int, Visit]:
        """Sessions as they were received, where they are known."""


class Catalog(ABC):
    """What is stored."""

    @abstractmethod
    async def sessions(self, lanes: Sequence[int]) -> dict[int, Session]:
        """Who these lanes' sessions belong to, where that is known."""

    @abstractmethod
    async def notes(self) -> Notes:
        """What the journal notes about itself and its store."""

    @abstractmethod
    async def note_store(self, store_id: str, batch: int, model: str) -> None:
        """Keep which store the journal belongs to, and the batch that the store confirmed."""

    @abstractmethod
    async def acknowledged_for_good(self) -> int:
        """The highest acknowledged batch, which no power loss will undo after this returned."""

    @abstractmethod
    async def sample(self, count: int) -> list[str]:
        """Ids of stored chunks, spread over the catalog."""

    @abstractmethod
    async def queue_all(self) -> int:
        """Have every stored chunk embedded and stored again, where its text is known.

        Returns:
            How many chunks are to be stored again.
        """

    @abstractmethod
    async def queue_unconfirmed(self) -> int:
        """With "full" durability, after a crash: queue what was acknowledged in the last minutes."""

    @abstractmethod
    async def queued(self, after: int, limit: int) -> list[QueuedChunk]:
        """Chunks to be stored again, by number."""

    @abstractmethod
    async def count_queued(self) -> int:
        """How many chunks are to be stored again."""

    @abstractmethod
    async def stored_again(self, numbers: Sequence[int], refused: Mapping[int, str]) -> list[str]:
        """Chunks were stored again; those refused take their payloads to the dead letters.

        Returns:
            Ids of chunks that are now in the deletion outbox.
        """

    @abstractmethod
    async def deletions(self, limit: int, *, planned: bool = True) -> list[str]:
        """Ids of chunks that the store has not confirmed to have deleted, oldest first.

        Args:
            limit: The most; -1 for all.
            planned: Whether chunks that a plan stores anew are among them. A deletion that
                starts after such a plan would delete what the plan stored.
        """

    @abstractmethod
    async def deleted(self, ids: Sequence[str]) -> None:
        """The store has deleted these."""

    @abstractmethod
    async def missing_texts(self) -> int:
        """How many stored chunks have no text here: those of an older format."""

    @abstractmethod
    async def fill(self, chunks: Sequence[Chunk]) -> int:
        """Take texts and metadata of known chunks from the store; returns how many were missing."""

    @abstractmethod
    async def adopt(self, chunks: Sequence[Chunk]) -> int:
        """Take chunks that a store holds into the catalog; returns how many were not known."""

    @property
    @abstractmethod
    def finder(self) -> Findable:
        """What a search asks."""

    @abstractmethod
    async def unindexed(self, limit: int) -> tuple[list[Unindexed], int]:
        """The next payloads that full text does not find yet, and about how many are left."""

    @abstractmethod
    async def index(self, heard: Sequence[Heard], below: int) -> None:
        """Have full text find what `unindexed` gave; `below` is its lowest sequence number."""

    @abstractmethod
    async def tidy(self) -> None:
        """Drop what has expired."""


class Journal(Queue, Catalog):
    """A queue and a catalog that one transaction can change together.

    Attributes:
        upgraded_from: The older format that opening upgraded; None if none.
    """

    upgraded_from: int | None = None

    @abstractmethod
    async def open(self) -> None:
        """Open what is there, or make it.

        Raises:
            JournalError: One of its kinds, if it cannot be used.
        """

    @abstractmethod
    async def close(self) -> None:
        """Carry out what was handed over, and close."""
