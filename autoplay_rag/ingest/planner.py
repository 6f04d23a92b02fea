"""Plans the chunks of a batch with their text and metadata. Pure.

The plan is recorded in the journal before anything is embedded. Planning runs on its own thread:
rendering calls the user's code, and rendering and token counting take time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autoplay_rag._describe import describe
from autoplay_rag.content.chunks import Accepted, Chunk, draft_chunks, metadata_of
from autoplay_rag.content.identity import NOBODY, People, changes_hands, people_of
from autoplay_rag.content.render import Render
from autoplay_rag.journal.base import Plan, PlannedChunk, Session, Waiting
from autoplay_rag.journal.bodies import decoded
from autoplay_rag.payloads import Payload

__all__ = ["Planner"]

_log = logging.getLogger(__name__)

_DAMAGED = "the payload's copy in the journal is damaged"


@dataclass(frozen=True, slots=True)
class Planner:
    """Turns payloads into planned chunks.

    Attributes:
        render: Makes a chunk's text.
        count_tokens: Returns the tokens of a text.
        max_actions: The most actions in one chunk.
        include_email: Whether email addresses go into the store.
    """

    render: Render
    count_tokens: Callable[[str], int]
    max_actions: int
    include_email: bool

    def plan(
        self, number: int, waiting: Sequence[Waiting], session: Session | None
    ) -> tuple[Plan, Session | None]:
        """Plan a batch.

        A payload that fails to render is left out of the chunks and recorded with its error. A
        retried dead letter gets its own chunks, because later payloads of the session may be
        stored already.

        Args:
            number: The batch's number.
            waiting: Its payloads: at least one, all of one lane, in order.
            session: The session as known so far; None if it is not known.

        Returns:
            The plan and the updated session. The session is None for payloads without a session.
        """
        plan = Plan(number, waiting[0].lane, [])
        people, ambiguous = (session.people, session.ambiguous) if session else (NOBODY, False)
        accepted: list[Accepted] = []
        retried: list[Accepted] = []
        last: Payload | None = None
        first = NOBODY
        for item in waiting:
            payload = decoded(item.body)
            if payload is None:
                plan.unplanned[item.seq] = _DAMAGED
                continue
            last = payload
            after = people.after(payload)
            ambiguous = ambiguous or changes_hands(people.user_id, after.user_id)
            if item.retried and ambiguous:
                # It may belong to an earlier user of the session: use only its own ids.
                retried.append(Accepted(item.seq, item.key, payload, people_of(payload)))
                continue
            people = after
            first = first.or_else(after)
            (retried if item.retried else accepted).append(
                Accepted(item.seq, item.key, payload, people)
            )
        # The first payloads of a visit often come before its person is known.
        later = NOBODY if ambiguous else first
        self._add(plan, accepted, later)
        for alone in retried:
            self._add(plan, [alone], later)
        plan.chunks.sort(key=_first_seq)
        if last is None or plan.lane < 0:
            return plan, None
        return plan, _session(plan, last, people, ambiguous=ambiguous)

    def divide(self, plan: Plan, chunk: PlannedChunk, waiting: Sequence[Waiting]) -> Plan:
        """Return the plan with one chunk divided into one chunk per payload.

        Args:
            plan: The plan as last recorded.
            chunk: The chunk to divide.
            waiting: Its payloads.
        """
        others = [other for other in plan.chunks if other is not chunk]
        divided = Plan(plan.number, plan.lane, others, dict(plan.unplanned))
        people = _people_of(chunk)
        for item in waiting:
            payload = decoded(item.body)
            if payload is None:
                divided.unplanned[item.seq] = _DAMAGED
            else:
                alone = Accepted(item.seq, item.key, payload, people.after(payload))
                self._add(divided, [alone])
        kept = {id(other) for other in others}
        divided.chunks = [
            one if id(one) in kept else replace(one, linked=chunk.linked) for one in divided.chunks
        ]
        divided.chunks.sort(key=_first_seq)
        return divided

    def render_again(self, chunk: Chunk, waiting: Sequence[Waiting], parts: int) -> str:
        """Return the text of a stored chunk as `render` makes it now.

        Args:
            chunk: The chunk.
            waiting: All of its payloads, in order.
            parts: How many chunks its first payload is divided into.

        Returns:
            Its present text if a payload was not kept or now divides into other chunks, or if
            `render` fails.
        """
        accepted: list[Accepted] = []
        for item in waiting:
            payload = decoded(item.body)
            if payload is None:
                return chunk.text
            accepted.append(Accepted(item.seq, item.key, payload))
        shares: Sequence[Payload] = [one.payload for one in accepted]
        if parts > 1:
            drafts = list(draft_chunks(accepted, self.max_actions))
            own = [draft.payloads for draft in drafts if draft.id == chunk.id]
            if len(drafts) != parts or not own:
                return chunk.text
            shares = own[0]
        try:
            return self._text(shares)
        except Exception as error:  # noqa: BLE001 - the user's own code
            _log.warning("render failed (%s); a text stays as it is", type(error).__name__)
            return chunk.text

    def count(self, chunks: Sequence[Chunk]) -> list[int]:
        """Return the tokens of each chunk.

        If `count_tokens` fails, the tokens are estimated: the chunks are already planned, and one
        of them must not block the others.
        """
        return [self._cost(chunk.text) for chunk in chunks]

    def _cost(self, text: str) -> int:
        try:
            return int(self.count_tokens(text))
        except Exception as error:  # noqa: BLE001 - other people's code
            _log.warning("count_tokens failed (%s); the tokens are estimated", type(error).__name__)
            return len(text)

    def _add(self, plan: Plan, accepted: Sequence[Accepted], later: People = NOBODY) -> None:
        chunks: list[PlannedChunk] = []
        for draft in draft_chunks(accepted, self.max_actions):
            try:
                chunks.append(self._planned(draft.id, draft.payloads, draft.sources, later))
            except BaseException as error:  # noqa: BLE001 - `render` is the user's own code, in a thread
                if len(draft.sources) > 1:
                    for source in draft.sources:
                        self._add(plan, [source], later)
                else:
                    plan.unplanned[draft.sources[0].seq] = f"render failed: {describe(error)}"
            # Release Python's global lock to the event loop now, not after the usual 5 ms.
            time.sleep(0)
        # A payload of several chunks fails as a whole.
        plan.chunks += [chunk for chunk in chunks if chunk.seqs[0] not in plan.unplanned]

    def _text(self, payloads: Sequence[Payload]) -> str:
        text = self.render(payloads)
        if not text.strip():
            raise ValueError("it returned an empty text")
        text.encode()  # raises for a lone surrogate, which cannot be stored
        return text

    def _planned(
        self, id: str, payloads: Sequence[Payload], sources: Sequence[Accepted], later: People
    ) -> PlannedChunk:
        text = self._text(payloads)
        people = sources[-1].people
        metadata = metadata_of(
            payloads, people=people.or_else(later), include_email=self.include_email
        )
        linked = sum(
            1 << bit
            for bit, name in enumerate(People._fields)
            if name in metadata and people[bit] is None
        )
        return PlannedChunk(
            Chunk(id, text, metadata),
            tuple(source.seq for source in sources),
            int(self.count_tokens(text)),
            linked,
        )


def _first_seq(planned: PlannedChunk) -> int:
    return planned.seqs[0]


def _session(plan: Plan, payload: Payload, people: People, *, ambiguous: bool) -> Session:
    started = [value for chunk in plan.chunks if (value := chunk.chunk.metadata.get("started_at"))]
    ended = [value for chunk in plan.chunks if (value := chunk.chunk.metadata.get("ended_at"))]
    return Session(
        lane=plan.lane,
        product_id=payload.product_id,
        session_id=payload.session_id or "",
        people=people,
        ambiguous=ambiguous,
        first=min(map(float, started), default=payload.forwarded_at),
        last=max(map(float, ended), default=payload.forwarded_at),
    )


def _people_of(chunk: PlannedChunk) -> People:
    found = (chunk.chunk.metadata.get(name) for name in People._fields)
    return People(*(value if isinstance(value, str) else None for value in found))
