"""The interfaces of the queue and the catalog. `journal/sqlite.py` implements both in one file.

The **queue** keeps received payloads until they are stored or dead. The **catalog** lists what the
store holds: chunks with their text and metadata, sessions, and pending deletions. One transaction
moves a payload from the queue to the catalog, so an implementation provides both.

Each method is one operation and one transaction. No method takes a callback.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.content.filters import Condition
from autoplay_rag.content.identity import People
from autoplay_rag.content.passages import Passage
from autoplay_rag.journal.ledger import Counts
from autoplay_rag.payloads import Payload

__all__ = [
    "Acknowledged",
    "Acknowledgement",
    "Action",
    "Catalog",
    "Claim",
    "Claimable",
    "DeadLetter",
    "Durability",
    "Entry",
    "Findable",
    "Found",
    "FoundPassage",
    "Health",
    "IndexEntry",
    "Journal",
    "Known",
    "NewPlans",
    "Notes",
    "Outcome",
    "Outdated",
    "Part",
    "Plan",
    "PlannedChunk",
    "Prepared",
    "Queue",
    "QueuedChunk",
    "Recorded",
    "Scope",
    "Session",
    "Task",
    "Unindexed",
    "Visit",
    "Waiting",
]

Outcome = Literal["accepted", "duplicate", "filtered", "dead", "refused", "overflow"]
"""What happened to a submitted payload."""
Durability = Literal["normal", "full"]
Action = Literal["retry", "discard"]
"""Actions on dead letters."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A payload to be added to the queue.

    Attributes:
        seq: Its sequence number.
        key: Its `payload_key`.
        lane: Its `lane_of`.
        payload: The payload as it is kept; None if only its receipt is recorded.
        body: Its JSON; None if only its receipt is recorded.
        first_chunk: The id of the chunk that begins with it. It identifies duplicates of payloads
            in chunks adopted from a store, because a store has no payload keys.
        outcome: "accepted" adds it to the queue, "filtered" and "duplicate" only count it, "dead"
            adds it to the dead letters.
        error: Why it is dead.
        ticket: The number with which it was submitted, if the journal assigned another one, because
            several processes share it; otherwise 0.
    """

    seq: int
    key: str
    lane: int
    payload: Payload | None
    body: bytes | None
    first_chunk: str = ""
    outcome: Literal["accepted", "filtered", "duplicate", "dead"] = "accepted"
    error: str | None = None
    ticket: int = 0

    @property
    def is_kept(self) -> bool:
        """Whether anything of it but its count is kept."""
        return self.outcome not in ("filtered", "duplicate")

    @property
    def size(self) -> int:
        """The size of its JSON in bytes."""
        return 0 if self.body is None else len(self.body)


class Prepared(NamedTuple):
    """The data of an entry to save, made before the transaction that saves it.

    Attributes:
        body: Its JSON as it is stored; None if only its receipt is recorded.
        passage: Its passage for the full-text index; None to leave it out of the index.
    """

    body: bytes | None = None
    passage: Passage | None = None


class Waiting(NamedTuple):
    """A queued payload, in the form that planning needs.

    Attributes:
        seq: Its sequence number.
        key: Its `payload_key`.
        lane: Its lane.
        body: Its JSON; None if the journal's copy is damaged.
        retried: True if it is a retried dead letter. Later payloads may be stored already.
    """

    seq: int
    key: str
    lane: int
    body: bytes | None
    retried: bool = False


class Session(NamedTuple):
    """The people of a session, and when it was active.

    Attributes:
        lane: Its lane.
        product_id: Its product.
        session_id: Its id.
        people: The people it belongs to.
        ambiguous: True if more than one person used it.
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
        tokens: Tokens to embed, as the embedder counts them.
        linked: A bit for each field of `People` that only a later payload of the session named.
    """

    chunk: Chunk
    seqs: tuple[int, ...]
    tokens: int
    linked: int = 0


@dataclass(slots=True)
class Plan:
    """A batch: chunks of one session that are stored together.

    A plan is recorded before its chunks are embedded. After a crash it is executed as recorded,
    even if the settings have changed. Partly stored chunks are overwritten, so there are no
    duplicates.

    Attributes:
        number: The batch number; it only increases.
        lane: The session's lane.
        chunks: The chunks in the session's order.
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
    """An executed plan.

    Attributes:
        plan: The plan as last recorded.
        dead: Errors of payloads that could not be stored, by sequence number.
    """

    plan: Plan
    dead: Mapping[int, str]


class NewPlans(NamedTuple):
    """What became of new plans.

    Attributes:
        plans: The plans as they are recorded: without chunks that hold anything which was forgotten
            since the plan was made. Those must not be stored.
        again: The sequence numbers of payloads that still wait, because their chunk also held
            forgotten ones.
        linked: Whether the people of chunks that were stored before changed.
    """

    plans: list[Plan]
    again: set[int]
    linked: bool


class Acknowledged(NamedTuple):
    """What became of the payloads of executed plans.

    Attributes:
        outbox: Ids of chunks added to the deletion outbox: parts of payloads that are now dead, and
            chunks with forgotten payloads.
        settled: The sequence numbers of payloads that are now stored or dead.
        again: (lane, sequence number) of payloads that still wait, because their chunk also held
            forgotten ones.
    """

    outbox: list[str]
    settled: list[int]
    again: list[tuple[int, int]]


class Scope(NamedTuple):
    """The part of the catalog that a filter selects.

    Attributes:
        known: Whether the session, person and chat thread of the filter were ever seen; True if
            the filter names none.
        lanes: The lanes of the sessions that pass, latest first; None if there are many.
        pending: The number of queued payloads: of the sessions that pass if the filter names a
            session, person or thread and they are few; otherwise of all.
    """

    known: bool
    lanes: list[int] | None
    pending: int


class Found(NamedTuple):
    """The full-text matches of a question.

    Attributes:
        total: The approximate number of passages.
        counts: The number of passages with each term of the question.
        passages: (sequence number, lane) of the best matches.
    """

    total: int
    counts: dict[str, int]
    passages: list[tuple[int, int]]


class FoundPassage(NamedTuple):
    """The text of one payload, and its place.

    Attributes:
        seq: Its sequence number.
        lane: The lane of its session.
        text: Its rendered text.
        chunk: The id of its stored chunk; None if it is not stored yet.
        started: Unix seconds of its first action; None if unknown.
        ended: Unix seconds of its last action; None if unknown.
        retired: Whether the chunk left the store, because a summary replaces it.
    """

    seq: int
    lane: int
    text: str
    chunk: str | None
    started: float | None
    ended: float | None
    retired: bool = False


class Part(NamedTuple):
    """A payload of a session, and the chunk that it is stored in. Without texts.

    Attributes:
        seq: The payload's sequence number.
        lane: The lane of its session.
        chunk: The id of its stored chunk; None if it is not stored yet. Then the rest is unknown.
        user_id: The person the chunk belongs to; None if unknown.
        conversation_id: The chunk's chat thread; None if unknown.
        started: Unix seconds of the chunk's first action; None if unknown.
        ended: Unix seconds of the chunk's last action; None if unknown.
    """

    seq: int
    lane: int
    chunk: str | None
    user_id: str | None
    conversation_id: str | None
    started: float | None
    ended: float | None


class IndexEntry(NamedTuple):
    """A payload to add to the full-text index.

    Attributes:
        seq: Its sequence number.
        lane: Its lane.
        product_id: Its product.
        session_id: Its session; None if it has none.
        passage: Its text, times and people.
    """

    seq: int
    lane: int
    product_id: str
    session_id: str | None
    passage: Passage


class Unindexed(NamedTuple):
    """A payload that is not in the full-text index yet.

    It was accepted by an older version, or by a process that was killed before it indexed it, or it
    stands for a chunk that was read from a store.

    Attributes:
        seq: Its sequence number.
        lane: The lane of its chunk, or its own; None if the chunk has no session.
        body: Its packed body; None if it was not kept.
        chunk: Text, product, session, user, conversation, start, end and number of actions of the
            chunk that begins with this payload; None if there is no such chunk.
    """

    seq: int
    lane: int
    body: bytes | None
    chunk: tuple[Any, ...] | None


class Visit(NamedTuple):
    """A session, with the totals of its payloads.

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


class Outdated(NamedTuple):
    """A stored chunk whose metadata changed in the catalog.

    Attributes:
        id: The chunk's id.
        version: The number of the change.
        changes: The values that the store must set; None to remove a key.
    """

    id: str
    version: int
    changes: dict[str, str | None]


class Claim(NamedTuple):
    """A summary's claim on the actions it replaces.

    Attributes:
        seq: The summary's sequence number.
        lane: Its session's lane.
        until: Unix seconds; it claims no later actions.
        remaining: How many actions it still claims.
    """

    seq: int
    lane: int
    until: float
    remaining: int


class Claimable(NamedTuple):
    """A stored payload with actions that no summary has claimed.

    Attributes:
        seq: Its sequence number.
        unclaimed: How many of its actions are unclaimed.
        claimed: How many are claimed: the oldest ones.
        at: Unix seconds of its arrival.
        started: Unix seconds of its first action; None if unknown.
        ended: Unix seconds of its last one; None if unknown.
        body: Its body as it is kept; None if it was not kept.
    """

    seq: int
    unclaimed: int
    claimed: int
    at: float
    started: float | None
    ended: float | None
    body: bytes | None


class QueuedChunk(NamedTuple):
    """A chunk of the catalog that must be embedded and stored again.

    Attributes:
        number: Its number in the catalog.
        chunk: The chunk as the catalog has it.
    """

    number: int
    chunk: Chunk


class Recorded(NamedTuple):
    """A chunk as the catalog has it.

    Attributes:
        number: Its number in the catalog.
        chunk: Id, text and metadata.
        stored: Whether the store has it. False while it is to be stored, or stored again.
        has_text: False if an older format did not keep text and metadata.
        outdated: Whether the store still has to change its metadata.
        retired: Whether a summary replaced it, so that the store must not have it.
    """

    number: int
    chunk: Chunk
    stored: bool
    has_text: bool
    outdated: bool = False
    retired: bool = False


class Task(NamedTuple):
    """A request of another process that waits for an answer.

    Attributes:
        token: Names the request.
        action: "verify", "backup" or "forget".
        options: The arguments.
    """

    token: str
    action: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A payload that could not be stored.

    Attributes:
        id: Its id, for `retry` and `discard`.
        kind: "actions", "summary" or "chat"; "unknown" if the payload was not kept.
        session_id: Its session.
        error: Why it could not be stored.
        died_at: When it became a dead letter, in Unix seconds.
        payload: The payload; None if `redact` failed on it, so that it was not kept.
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
        state: "ok"; "degraded" while a failure is retried or needs attention; "failed" when the
            pipeline has stopped storing.
        reasons: What is wrong, one line each; empty if the state is "ok".

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
    """A journal's notes about itself and its store.

    Attributes:
        journal_id: The permanent id of this journal.
        store_id: The id of its store; "" if it has none yet.
        store_batch: The batch number that the store confirmed last.
        model: The embedder of the stored chunks; "" if unknown.
        adopted: True if it holds chunks that were read from a store.
    """

    journal_id: str
    store_id: str = ""
    store_batch: int = 0
    model: str = ""
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """The progress of a journal.

    Attributes:
        seq: The highest sequence number assigned.
        batch: The highest number of a recorded plan.
        acknowledged: The highest number of an acknowledged plan.
        chunks: The number of stored chunks, without those of pending plans.
    """

    seq: int
    batch: int
    acknowledged: int
    chunks: int


class Queue(ABC):
    """The payloads that were received and are not stored yet."""

    @property
    @abstractmethod
    def counts(self) -> Counts:
        """The durable counts as of the last commit. May be read from any thread."""

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """What prevents writing now, in one line; None if writing works."""

    @abstractmethod
    def accept(self, entry: Entry) -> asyncio.Future[Outcome]:
        """Submit a payload. The future completes when the payload is committed.

        Entries are committed in the order of the calls. Cancelling the future does not cancel the
        commit.
        """

    @abstractmethod
    async def known(self) -> Known:
        """Return the progress of the journal."""

    @abstractmethod
    async def settled_of(self, lane: int) -> int | None:
        """Return the watermark of one lane: all its payloads up to this number are settled.

        Returns:
            The watermark; None if all received payloads of the lane are settled.
        """

    @abstractmethod
    async def waiting(self, after: int, limit: int) -> list[tuple[int, int, bool]]:
        """Return queued payloads by sequence number: (seq, lane, whether it is a retried letter)."""

    @abstractmethod
    async def read(self, seqs: Sequence[int], most_bytes: int) -> list[Waiting]:
        """Read queued payloads in the given order, up to `most_bytes`, but at least one."""

    @abstractmethod
    async def recent(self, since: float, limit: int) -> list[tuple[float, Payload]]:
        """Return the last `limit` payloads accepted since a time, with arrival time, oldest first."""

    @abstractmethod
    async def plans(self) -> list[Plan]:
        """Return the plans that are not acknowledged, oldest first."""

    @abstractmethod
    async def under_way(self, lanes: Collection[int]) -> set[int]:
        """Return those of these lanes that have a plan which is not acknowledged."""

    @abstractmethod
    async def take_batches(self, count: int) -> list[int]:
        """Reserve numbers for plans, in ascending order. Numbers that are not used do no harm."""

    @abstractmethod
    async def record_plans(self, plans: Sequence[Plan], sessions: Sequence[Session]) -> NewPlans:
        """Record plans, and the people of their sessions."""

    @abstractmethod
    async def replace_plan(self, plan: Plan) -> None:
        """Overwrite the plan of the same number. Chunks it no longer has leave the catalog."""

    @abstractmethod
    async def acknowledge(self, ended: Sequence[Acknowledgement]) -> Acknowledged:
        """Settle the payloads of executed plans. Payloads forgotten meanwhile stay forgotten."""

    @abstractmethod
    async def dead_letters(self, limit: int, after: int = 0) -> list[DeadLetter]:
        """Return at most `limit` dead letters with an id above `after`, oldest first."""

    @abstractmethod
    async def retry(self, ids: Sequence[int] | None) -> list[tuple[int, int]]:
        """Put dead letters back into the queue; None means all.

        They keep their sequence numbers. The watermark does not move.

        Returns:
            (lane, sequence number) of each retried dead letter.
        """

    @abstractmethod
    async def discard(self, ids: Sequence[int] | None) -> int:
        """Delete dead letters permanently, and return how many. None means all."""

    @abstractmethod
    async def carry_out_requests(self) -> list[tuple[int, int]]:
        """Execute the requests of other processes. Returns retried letters, as `retry` does."""

    @abstractmethod
    async def take_tasks(self) -> list[Task]:
        """Return the requests of other processes that wait for an answer, and remove them."""

    @abstractmethod
    async def answer_task(self, token: str, answer: Mapping[str, Any]) -> None:
        """Save the answer to a task for the process that asked."""

    @abstractmethod
    async def note_health(self, health: Health) -> None:
        """Save the health of the pipeline for other processes."""

    @abstractmethod
    async def tokens(self, day: str) -> int:
        """Return the number of tokens embedded on a day."""

    @abstractmethod
    async def note_tokens(self, day: str, count: int) -> None:
        """Save the number of tokens embedded on a day."""


class Findable(ABC):
    """Reads the catalog for a search. No call waits for a writer."""

    @abstractmethod
    async def scope(self, conditions: Sequence[Condition]) -> Scope:
        """Return the scope of a filter."""

    @abstractmethod
    async def find(
        self,
        lookups: Mapping[str, Sequence[str]],
        phrases: Sequence[str],
        conditions: Sequence[Condition],
        limit: int,
    ) -> Found:
        """Return the passages that match a question best.

        Args:
            lookups: The question's terms, each with the words to look up.
            phrases: Phrases to look up literally.
            conditions: The result of `Filter.conditions`.
            limit: The most passages; 0 only counts the terms.
        """

    @abstractmethod
    async def lanes_of(self, chunk_ids: Sequence[str]) -> dict[str, int]:
        """Return the lanes of those stored chunks that the catalog knows."""

    @abstractmethod
    async def being_deleted(self, chunk_ids: Sequence[str]) -> set[str]:
        """Return those of these chunks that the store is yet to delete."""

    @abstractmethod
    async def recent_lanes(self, conditions: Sequence[Condition], limit: int) -> list[int]:
        """Return the lanes of sessions that pass a filter, latest first."""

    @abstractmethod
    async def chunk_ids(self, lanes: Sequence[int]) -> list[str]:
        """Return the ids of the stored chunks of these sessions."""

    @abstractmethod
    async def passages(
        self,
        lanes: Sequence[int],
        matched: Sequence[int] = (),
        *,
        chunks: Sequence[str] = (),
        latest: int | None = None,
    ) -> list[FoundPassage]:
        """Return the passages of sessions, in order. Of a long session: the latest and the matches.

        Args:
            lanes: The lanes of the sessions.
            matched: Sequence numbers from `find`.
            chunks: Ids of stored chunks whose passages match too.
            latest: The most passages of a session, besides the matches; None for a limit that few
                sessions reach.
        """

    @abstractmethod
    async def parts(self, lanes: Sequence[int]) -> list[Part]:
        """Return the payloads of sessions, in order. Of a long session, the latest as in `passages`."""

    @abstractmethod
    async def chunks(self, ids: Sequence[str]) -> list[Chunk]:
        """Return stored chunks with text and metadata, in any order."""

    @abstractmethod
    async def waiting(self, seqs: Sequence[int]) -> dict[int, Chunk]:
        """Return payloads that are not in a stored chunk yet, each as a separate chunk."""

    @abstractmethod
    async def visits(self, lanes: Sequence[int]) -> dict[int, Visit]:
        """Return the known sessions of these lanes, with the totals of their payloads."""


class Catalog(ABC):
    """The chunks in the store, their sessions, and pending deletions."""

    @abstractmethod
    async def sessions(self, lanes: Sequence[int]) -> dict[int, Session]:
        """Return the known sessions of these lanes."""

    @abstractmethod
    async def notes(self) -> Notes:
        """Return the journal's notes about itself and its store."""

    @abstractmethod
    async def note_store(self, store_id: str, batch: int, model: str) -> None:
        """Save the store's id, the batch it confirmed, and its model."""

    @abstractmethod
    async def acknowledged_for_good(self) -> int:
        """Return the highest acknowledged batch, after making it survive a power loss."""

    @abstractmethod
    async def sample(self, count: int) -> list[str]:
        """Return ids of stored chunks, spread over the catalog."""

    @abstractmethod
    async def queue_all(self) -> int:
        """Queue every stored chunk with a known text to be embedded and stored again.

        Returns:
            The number of queued chunks.
        """

    @abstractmethod
    async def queue_unconfirmed(self) -> int:
        """Queue recently acknowledged chunks after a crash. Needs "full" durability.

        Returns:
            The number of chunks queued by this call.
        """

    @abstractmethod
    async def queued(self, after: int, limit: int, *, own: bool = False) -> list[QueuedChunk]:
        """Return queued chunks, ordered by number.

        Args:
            after: The last number of the page before.
            limit: The most chunks.
            own: Whether to leave out the sessions that other processes work on.
        """

    @abstractmethod
    async def count_queued(self, *, own: bool = False) -> int:
        """Return the number of queued chunks; for `own` see `queued`."""

    @abstractmethod
    async def queue_again(self, numbers: Sequence[int]) -> int:
        """Queue those of these chunks that are stored and whose text is known.

        Returns:
            The number of chunks queued by this call.
        """

    @abstractmethod
    async def stored_again(
        self, stored: Mapping[int, str], refused: Mapping[int, str]
    ) -> list[str]:
        """Record that chunks were stored again. Payloads of refused chunks become dead letters.

        Args:
            stored: Ids of the chunks that the store has, by number. A chunk that has left the
                catalog meanwhile is added to the deletion outbox.
            refused: Errors of the chunks that the store refused, by number.

        Returns:
            Ids of chunks added to the deletion outbox.
        """

    @abstractmethod
    async def recorded(self, ids: Sequence[str], *, in_order: bool = False) -> dict[str, Recorded]:
        """Return chunks of the catalog by id, in any state.

        Args:
            ids: Ids of chunks. Unknown ids are left out.
            in_order: Whether to read after all operations that were submitted before. Otherwise
                the read does not wait for the writer, and sees what is committed.
        """

    @abstractmethod
    async def recorded_after(self, number: int, limit: int) -> list[Recorded]:
        """Return chunks of the catalog with a higher number, ordered by number."""

    @abstractmethod
    async def stored_after(self, number: int, limit: int) -> list[tuple[int, str]]:
        """Return number and id of stored chunks with a higher number, ordered by number."""

    @abstractmethod
    async def in_outbox(self, ids: Sequence[str]) -> set[str]:
        """Return those of these ids that are in the deletion outbox. Reads in order."""

    @abstractmethod
    async def delete_unknown(self, ids: Sequence[str], *, forgotten: bool = False) -> list[str]:
        """Add to the deletion outbox those of these ids that the catalog does not know.

        Args:
            ids: The chunks.
            forgotten: Whether requests to forget wait until they are deleted.
        """

    @abstractmethod
    async def deletions(self, limit: int, *, planned: bool = True, own: bool = False) -> list[str]:
        """Return ids of chunks whose deletion the store has not confirmed, oldest first.

        Args:
            limit: The most ids; -1 for all.
            planned: Whether to include chunks that a plan stores again. Deleting such a chunk
                after the plan was executed would delete what the plan stored.
            own: See `queued`.
        """

    @abstractmethod
    async def deleted(self, ids: Sequence[str]) -> None:
        """Record that the store has deleted these chunks."""

    @abstractmethod
    async def missing_texts(self) -> int:
        """Return how many stored chunks have no text here, as in older formats."""

    @abstractmethod
    async def fill(self, chunks: Sequence[Chunk]) -> int:
        """Add missing texts and metadata from the store's chunks. Returns how many were missing."""

    @abstractmethod
    async def adopt(self, chunks: Sequence[Chunk]) -> int:
        """Add chunks of a store to the catalog, and return how many were unknown."""

    @abstractmethod
    async def outdated(self, limit: int, *, own: bool = False) -> list[Outdated]:
        """Return stored chunks with metadata changes that the store does not have yet.

        Args:
            limit: The most chunks.
            own: See `queued`.
        """

    @abstractmethod
    async def updated(self, done: Sequence[Outdated]) -> None:
        """Record that the store has made these changes."""

    @abstractmethod
    async def claim_lanes(self) -> list[int]:
        """Return the lanes with open claims of stored summaries."""

    @abstractmethod
    async def open_claims(self, lane: int) -> tuple[list[Claim], list[Claimable]]:
        """Return a session's open claims, and its stored payloads that have unclaimed actions."""

    @abstractmethod
    async def apply_claims(self, used: Mapping[int, int], claimed: Mapping[int, int]) -> list[str]:
        """Carry out a decision, and retire chunks without unclaimed actions.

        Args:
            used: By the number of a claim, how many actions it claimed.
            claimed: By the number of a payload, how many of its actions were claimed.

        Returns:
            The ids of retired chunks. They are in the deletion outbox.
        """

    @property
    @abstractmethod
    def finder(self) -> Findable:
        """Reads the catalog for a search."""

    @abstractmethod
    async def unindexed(self, limit: int) -> tuple[list[Unindexed], int]:
        """Return the next payloads to index, and about how many are left after them."""

    @abstractmethod
    async def index(self, entries: Sequence[IndexEntry], below: int) -> None:
        """Add payloads of `unindexed` to the index; `below` is their lowest sequence number."""

    @abstractmethod
    async def tidy(self) -> None:
        """Delete expired data."""


class Journal(Queue, Catalog):
    """A queue and a catalog that one transaction can change together.

    Attributes:
        upgraded_from: The format before `open` upgraded the file; None if it did not.
    """

    upgraded_from: int | None = None

    @abstractmethod
    async def open(self) -> None:
        """Open the journal, or create it.

        Raises:
            JournalError: If it cannot be used. Subclasses name the reason.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish all submitted operations and close."""
