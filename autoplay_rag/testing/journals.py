"""The contract of journals: what every `Journal` must do.

Example:
    The whole test file of your own journal::

        class TestMyJournal(DurableJournalContract):
            @pytest.fixture
            def make_journal(self, tmp_path):
                return lambda **options: MyJournal(tmp_path / "journal", **options)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace

import msgspec
import pytest

from autoplay_rag.content.chunks import Chunk
from autoplay_rag.content.identity import People
from autoplay_rag.content.keys import chunk_id, lane_of, payload_key
from autoplay_rag.errors import PipelineClosedError
from autoplay_rag.journal.base import (
    Acknowledgement,
    Entry,
    Health,
    Journal,
    Outcome,
    Plan,
    PlannedChunk,
    Session,
)
from autoplay_rag.journal.bodies import decoded
from autoplay_rag.journal.ledger import COUNTERS, Ledger
from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction, SummaryPayload

__all__ = ["DurableJournalContract", "JournalContract"]

_MUCH = 2**30
_DAY = "2026-01-31"


def _actions(session: str | None, *titles: str, at: float = 1000.0) -> ActionsPayload:
    actions = [
        SlimAction(title, title, "https://app.example.com/p", i, "click", at + i, at + i)
        for i, title in enumerate(titles)
    ]
    return ActionsPayload("acme", session, "ann", None, actions, len(actions), at + 10)


def _entry(payload: Payload, seq: int) -> Entry:
    body = msgspec.json.encode(payload)
    key = payload_key(payload)
    return Entry(seq, key, lane_of(payload, seq), payload, body, chunk_id(payload, key))


def _nothing_kept(payload: Payload, seq: int) -> Entry:
    entry = _entry(payload, seq)
    return replace(
        entry, payload=None, body=None, outcome="dead", error="redact failed: ValueError"
    )


def _id_of(payload: Payload, part: int = 0) -> str:
    return chunk_id(payload, payload_key(payload), part)


def _chunk(id: str, text: str, **metadata: str | float) -> Chunk:
    return Chunk(id, text, {"product_id": "acme", "kind": "actions", **metadata})


def _planned(first: Payload, *seqs: int, part: int = 0) -> PlannedChunk:
    metadata = {"session_id": first.session_id} if first.session_id else {}
    chunk = _chunk(
        _id_of(first, part), f"text of {seqs}, part {part}", **metadata, started_at=1000.5, urls="x"
    )
    return PlannedChunk(chunk, seqs, 0)


def _plan(number: int, *chunks: PlannedChunk, lane: int = 1, **unplanned: str) -> Plan:
    errors = {int(seq.removeprefix("seq")): error for seq, error in unplanned.items()}
    return Plan(number, lane, list(chunks), errors)


def _counts(journal: Journal) -> dict[str, int]:
    return {name: journal.counts[name] for name in COUNTERS if journal.counts[name]}


async def _accept(journal: Journal, *payloads: Payload, first: int = 1) -> list[Outcome]:
    entries = [_entry(payload, seq) for seq, payload in enumerate(payloads, first)]
    return await asyncio.gather(*(journal.accept(entry) for entry in entries))


async def _acknowledge(
    journal: Journal, *plans: Plan, dead: Mapping[int, str] | None = None
) -> list[str]:
    await journal.record_plans(plans, [])
    found = await journal.acknowledge(
        [Acknowledgement(plan, {**plan.unplanned, **(dead or {})}) for plan in plans]
    )
    return found.outbox


async def _store(
    journal: Journal, *payloads: Payload, first: int = 1, number: int = 1, dead: str = ""
) -> list[str]:
    """Store each payload in its own chunk, or make each a dead letter with the error `dead`."""
    plans = [
        _plan(number + i, _planned(payload, first + i), lane=lane_of(payload, first + i))
        for i, payload in enumerate(payloads)
    ]
    errors = dict.fromkeys(range(first, first + len(payloads)), dead) if dead else {}
    ids: list[str] = []
    for plan in plans:
        own = {seq: error for seq, error in errors.items() if seq in plan.seqs}
        ids += await _acknowledge(journal, plan, dead=own)
    return ids


class _Seen:
    """Records what a journal reports through its callbacks."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, Outcome | None]] = []
        self.returned: list[tuple[int, int]] = []

    @property
    def accepted(self) -> list[int]:
        return [seq for seq, outcome in self.entries if outcome == "accepted"]

    def on_entry(self, entry: Entry, outcome: Outcome | None) -> None:
        self.entries.append((entry.seq, outcome))

    def on_returned(self, back: list[tuple[int, int]]) -> None:
        self.returned += back


class JournalContract:
    """What every journal must do.

    Add a fixture `make_journal`: a function that takes `on_entry`, `on_returned`, `max_bytes` and
    `model` as keywords (see `SqliteJournal`) and returns a journal that is not open yet. All calls
    within one test must return the same journal, to be opened again.
    """

    @pytest.fixture
    def seen(self) -> _Seen:
        """What the journal reported through its callbacks."""
        return _Seen()

    @pytest.fixture
    async def open_journal(
        self, make_journal: Callable[..., Journal], seen: _Seen
    ) -> AsyncIterator[Callable[..., Awaitable[Journal]]]:
        """Opens the journal. At the end, checks that its counts balance and closes it."""
        opened: list[Journal] = []

        async def open_(**options: object) -> Journal:
            given = {"max_bytes": _MUCH, "model": "model-a", **options}
            journal = make_journal(on_entry=seen.on_entry, on_returned=seen.on_returned, **given)
            await journal.open()
            opened.append(journal)
            return journal

        yield open_
        for journal in opened:
            counts = {name: journal.counts[name] for name in COUNTERS}
            assert Ledger(**counts).balanced, counts
        for journal in opened[-1:]:
            await journal.close()

    @pytest.fixture
    async def journal(self, open_journal: Callable[..., Awaitable[Journal]]) -> Journal:
        """A new journal, open."""
        return await open_journal()

    # -- in -----------------------------------------------------------------------------------

    async def test_a_new_journal_is_empty(self, journal: Journal) -> None:
        assert _counts(journal) == {}
        assert journal.counts["bytes"] == 0
        assert journal.problem is None
        assert journal.upgraded_from is None
        known = await journal.known()
        assert (known.seq, known.batch, known.acknowledged, known.chunks) == (0, 0, 0, 0)
        notes = await journal.notes()
        assert notes.journal_id
        assert (notes.store_id, notes.store_batch, notes.model, notes.adopted) == ("", 0, "", False)
        assert await journal.waiting(0, 9) == []
        assert await journal.plans() == []
        assert await journal.dead_letters(9) == []
        assert await journal.deletions(9) == []
        assert await journal.carry_out_requests() == []
        assert await journal.sample(9) == []
        assert await journal.missing_texts() == 0
        assert await journal.sessions([1, 2]) == {}

    async def test_what_becomes_of_a_payload(self, journal: Journal, seen: _Seen) -> None:
        wanted, broken, unkept = (_actions("s", title) for title in "abc")
        entries = [
            _entry(wanted, 1),
            Entry(2, payload_key(broken), 7, None, None, outcome="filtered"),
            replace(_entry(broken, 3), outcome="dead", error="select failed: a bug"),
            _nothing_kept(unkept, 4),
            _entry(wanted, 5),
        ]
        outcomes = [await journal.accept(entry) for entry in entries]
        assert outcomes == ["accepted", "filtered", "dead", "dead", "duplicate"]
        assert _counts(journal) == {
            "received": 5, "pending": 1, "filtered": 1, "dead": 2, "duplicate": 1
        }  # fmt: skip
        assert seen.entries == list(enumerate(outcomes, 1))
        kept, unknown = await journal.dead_letters(9)
        assert (kept.id, kept.kind, kept.session_id) == (3, "actions", "s")
        assert (kept.error, kept.payload) == ("select failed: a bug", broken)
        assert time.time() - 60 < kept.died_at <= time.time()
        assert (unknown.id, unknown.kind, unknown.session_id) == (4, "unknown", None)
        assert (unknown.error, unknown.payload) == ("redact failed: ValueError", None)
        assert await journal.dead_letters(1) == [kept]
        assert await journal.dead_letters(9, after=kept.id) == [unknown]
        assert journal.counts["bytes"] == entries[0].size + entries[2].size

    async def test_payloads_keep_the_order_in_which_they_are_handed_over(
        self, journal: Journal, seen: _Seen
    ) -> None:
        payloads = [_actions(f"s{i % 7}", str(i), at=1000.0 - i) for i in range(600)]
        settled: list[tuple[int, bool]] = []
        futures = [journal.accept(_entry(p, seq)) for seq, p in enumerate(payloads, 1)]
        for seq, future in enumerate(futures, 1):
            future.add_done_callback(
                lambda _, seq=seq: settled.append((seq, seq in seen.accepted))  # type: ignore[misc]
            )
        assert await asyncio.gather(*futures) == ["accepted"] * 600
        await asyncio.sleep(0)
        assert seen.accepted == list(range(1, 601))
        assert settled == [(seq, True) for seq in range(1, 601)]
        waiting = await journal.waiting(0, 1000)
        assert [seq for seq, _, _ in waiting] == list(range(1, 601))
        assert await journal.waiting(100, 50) == waiting[100:150]
        assert {retried for _, _, retried in waiting} == {False}
        assert [lane for _, lane, _ in waiting] == [
            lane_of(payload, seq) for seq, payload in enumerate(payloads, 1)
        ]
        assert (await journal.known()).seq == 600

    async def test_a_duplicate_is_known_in_one_commit_after_it_and_once_stored_or_dead(
        self, journal: Journal
    ) -> None:
        one, other = _actions("s", "a"), _actions("s", "b")
        assert await _accept(journal, one, other, one, other, one) == [
            "accepted", "accepted", "duplicate", "duplicate", "duplicate"
        ]  # fmt: skip
        assert await _accept(journal, one, first=6) == ["duplicate"]
        await _store(journal, one)
        await _store(journal, other, first=2, number=2, dead="store: no")
        assert await _accept(journal, one, other, first=7) == ["duplicate"] * 2
        await journal.discard(None)
        assert await _accept(journal, other, first=9) == ["duplicate"]
        assert _counts(journal) == {"received": 9, "stored": 1, "discarded": 1, "duplicate": 7}

    async def test_what_was_filtered_is_not_known(self, journal: Journal) -> None:
        payload = _actions("s", "a")
        filtered = Entry(1, payload_key(payload), 7, None, None, outcome="filtered")
        assert await journal.accept(filtered) == "filtered"
        assert await _accept(journal, payload, first=2) == ["accepted"]

    async def test_what_is_known_in_another_form_is_only_counted(self, journal: Journal) -> None:
        payload = _actions("s", "a")
        known = Entry(1, payload_key(payload), 7, None, None, outcome="duplicate")
        assert await journal.accept(known) == "duplicate"
        assert _counts(journal) == {"received": 1, "duplicate": 1}
        assert await _accept(journal, payload, first=2) == ["accepted"]

    async def test_a_caller_that_is_cancelled_changes_nothing(
        self, journal: Journal, seen: _Seen
    ) -> None:
        futures = [journal.accept(_entry(_actions("s", str(i)), i)) for i in range(1, 51)]
        for future in futures[::2]:
            future.cancel()
        await asyncio.gather(*futures[1::2])
        assert seen.accepted == list(range(1, 51))
        assert journal.counts["pending"] == 50

    async def test_more_bytes_than_allowed_are_overflow_until_there_is_room(
        self, open_journal: Callable[..., Awaitable[Journal]]
    ) -> None:
        payloads = [_actions("s", str(i)) for i in range(5)]
        size = _entry(payloads[0], 1).size
        journal = await open_journal(max_bytes=3 * size)
        assert await _accept(journal, *payloads) == ["accepted"] * 3 + ["overflow"] * 2
        assert journal.counts["bytes"] == 3 * size
        # A duplicate needs no room.
        assert await _accept(journal, payloads[0], payloads[3], first=6) == [
            "duplicate", "overflow"
        ]  # fmt: skip
        await _store(journal, payloads[0], dead="store: no")
        await _store(journal, payloads[1], first=2, number=2)
        # Dead letters still take up room; stored payloads do not.
        assert await _accept(journal, *payloads[3:], first=8) == ["accepted", "overflow"]
        assert await journal.discard(None) == 1
        assert await _accept(journal, payloads[4], first=10) == ["accepted"]
        assert journal.counts["bytes"] == 3 * size
        assert _counts(journal) == {
            "received": 10, "stored": 1, "pending": 3, "discarded": 1, "duplicate": 1,
            "overflow": 4,
        }  # fmt: skip

    # -- out ----------------------------------------------------------------------------------

    async def test_payloads_are_read_as_they_were_handed_over(self, journal: Journal) -> None:
        odd = SlimAction("a\0b", "half \ufffd a pair \U0001f600", "https://app.example.com/\0")
        payloads: list[Payload] = [
            ActionsPayload("p\0", "s\0", "u\0", None, [odd], 1, 5.0),
            SummaryPayload("acme", "s", "x" * 3_000_000, 1, 5.0),
            _actions(None, "alone"),
        ]
        await _accept(journal, *payloads)
        found = await journal.read([3, 1, 99, 2], _MUCH)
        assert [item.seq for item in found] == [3, 1, 2]
        assert [decoded(item.body) for item in found] == [payloads[2], payloads[0], payloads[1]]
        assert [item.key for item in found] == [
            payload_key(payloads[seq]) for seq in (2, 0, 1)
        ]  # fmt: skip
        assert found[0].lane == -3
        assert await journal.read([], _MUCH) == []

    async def test_reading_is_bounded_but_gives_at_least_one(self, journal: Journal) -> None:
        payloads = [_actions("s", f"{i}" * 100) for i in range(4)]
        await _accept(journal, *payloads)
        size = _entry(payloads[0], 1).size
        for most, seqs in ((0, [4]), (size, [4]), (2 * size, [4, 2]), (4 * size, [4, 2, 1, 3])):
            found = await journal.read([4, 2, 1, 3], most)
            assert [item.seq for item in found] == seqs
        await _store(journal, payloads[3], first=4)
        assert [item.seq for item in await journal.read([4, 1], _MUCH)] == [1]

    async def test_a_plan_is_kept_as_it_was_recorded(self, journal: Journal) -> None:
        one, other, third = (_actions("s", title) for title in "abc")
        await _accept(journal, one, other, third, _actions("t", "d"))
        first = _plan(3, _planned(one, 1, 2), lane=11, seq3="render failed: a bug")
        second = _plan(5, _planned(_actions("t", "d"), 4), lane=12)
        await journal.record_plans([first, second], [])
        assert await journal.plans() == [first, second]
        assert await journal.under_way([12, 13]) == {12}
        assert first.seqs == [1, 2, 3]
        known = await journal.known()
        assert (known.batch, known.acknowledged, known.chunks) == (5, 0, 0)
        assert journal.counts["pending"] == 4

    async def test_numbers_of_plans_are_given_once(self, journal: Journal) -> None:
        numbers = [*await journal.take_batches(2), *await journal.take_batches(3)]
        assert len(numbers) == 5
        assert numbers == sorted(set(numbers))

    async def test_a_plan_can_be_replaced(self, journal: Journal) -> None:
        one, other = _actions("s", "a"), _actions("s", "b")
        await _accept(journal, one, other)
        await journal.record_plans([_plan(1, _planned(one, 1, 2))], [])
        apart = _plan(1, _planned(one, 1), _planned(other, 2))
        await journal.replace_plan(apart)
        assert await journal.plans() == [apart]
        unplanned = _plan(1, _planned(one, 1), seq2="the copy is damaged")
        await journal.replace_plan(unplanned)
        assert await journal.plans() == [unplanned]
        assert (await journal.known()).chunks == 0
        await journal.acknowledge([Acknowledgement(unplanned, unplanned.unplanned)])
        assert await journal.plans() == []
        assert _counts(journal) == {"received": 2, "stored": 1, "dead": 1}

    async def test_an_acknowledgement_settles_payloads(self, journal: Journal) -> None:
        payloads = [_actions("s", title) for title in "abcd"]
        await _accept(journal, *payloads)
        plans = [_plan(1, _planned(payloads[0], 1, 2)), _plan(2, _planned(payloads[2], 3))]
        assert await _acknowledge(journal, *plans) == []
        assert [seq for seq, _, _ in await journal.waiting(0, 9)] == [4]
        assert await journal.plans() == []
        known = await journal.known()
        assert (known.seq, known.batch, known.acknowledged, known.chunks) == (4, 2, 2, 2)
        assert await journal.acknowledged_for_good() == 2
        assert _counts(journal) == {"received": 4, "stored": 3, "pending": 1}
        assert journal.counts["bytes"] == _entry(payloads[3], 4).size
        assert await journal.acknowledge([]) == ([], [], [])

    async def test_the_highest_acknowledged_batch_stays_whatever_ends_first(
        self, journal: Journal
    ) -> None:
        one, other = _actions("s", "a"), _actions("t", "b")
        await _accept(journal, one, other)
        early, late = _plan(1, _planned(one, 1)), _plan(2, _planned(other, 2))
        await journal.record_plans([early, late], [])
        await journal.acknowledge([Acknowledgement(late, {})])
        assert (await journal.known()).acknowledged == 2
        await journal.acknowledge([Acknowledgement(early, {})])
        assert (await journal.known()).acknowledged == 2

    async def test_a_payload_that_dies_takes_its_chunk_along(self, journal: Journal) -> None:
        one, other = _actions("s", "a"), _actions("s", "b")
        await _accept(journal, one, other)
        plan = _plan(1, _planned(one, 1), _planned(other, 2))
        assert await _acknowledge(journal, plan, dead={2: "store: no"}) == []
        (letter,) = await journal.dead_letters(9)
        assert (letter.id, letter.error, letter.payload) == (2, "store: no", other)
        assert (letter.kind, letter.session_id) == ("actions", "s")
        assert (await journal.known()).chunks == 1
        assert await journal.sample(9) == [_id_of(one)]
        assert await journal.deletions(9) == []
        assert journal.counts["bytes"] == _entry(other, 2).size

    async def test_parts_of_a_payload_that_dies_are_deleted(self, journal: Journal) -> None:
        long, short = _actions("s", "a"), _actions("s", "b")
        await _accept(journal, long, short)
        parts = [_planned(long, 1, part=part) for part in range(3)]
        plan = _plan(1, *parts, _planned(short, 2))
        ids = [part.chunk.id for part in parts]
        assert await _acknowledge(journal, plan, dead={1: "store: no"}) == ids
        assert sorted(await journal.deletions(9)) == sorted(ids)
        assert len(await journal.deletions(2)) == 2
        assert (await journal.known()).chunks == 1
        await journal.deleted([ids[0], "unknown"])
        assert sorted(await journal.deletions(9)) == sorted(ids[1:])
        assert _counts(journal) == {"received": 2, "stored": 1, "dead": 1}

    async def test_what_is_stored_anew_is_not_deleted_any_more(self, journal: Journal) -> None:
        long = _actions("s", "a")
        await _accept(journal, long)
        parts = [_planned(long, 1, part=part) for part in range(2)]
        await _acknowledge(journal, _plan(1, *parts), dead={1: "store: no"})
        assert await journal.retry(None) == [(lane_of(long, 1), 1)]
        await journal.record_plans([_plan(2, parts[0])], [])
        assert len(await journal.deletions(9)) == 2  # it is only planned
        assert await journal.deletions(9, planned=False) == [parts[1].chunk.id]
        await journal.acknowledge([Acknowledgement(_plan(2, parts[0]), {})])
        assert await journal.deletions(9) == [parts[1].chunk.id]

    # -- dead letters -------------------------------------------------------------------------

    async def test_a_retried_letter_keeps_its_number(self, journal: Journal, seen: _Seen) -> None:
        payloads = [_actions("s", title) for title in "abc"]
        await _accept(journal, *payloads, _actions(None, "alone"))
        await _store(journal, *payloads, _actions(None, "alone"), dead="store: no")
        lane = lane_of(payloads[0], 1)
        assert await journal.retry([]) == []
        assert await journal.retry([99]) == []
        assert await journal.retry([2, 4]) == [(lane, 2), (-4, 4)]
        await asyncio.sleep(0)
        assert seen.returned == [(lane, 2), (-4, 4)]
        assert await journal.retry([2]) == []  # not dead any more
        assert await journal.waiting(0, 9) == [(2, lane, True), (4, -4, True)]
        assert [letter.id for letter in await journal.dead_letters(9)] == [1, 3]
        (item,) = await journal.read([2], _MUCH)
        assert decoded(item.body) == payloads[1]
        # The watermark does not move back.
        assert await journal.settled_of(lane) is None
        assert _counts(journal) == {"received": 4, "pending": 2, "dead": 2}
        await _store(journal, payloads[1], first=2, number=9)
        await _store(journal, _actions(None, "alone"), first=4, number=10, dead="store: again")
        assert [(one.id, one.error) for one in await journal.dead_letters(9)] == [
            (1, "store: no"), (3, "store: no"), (4, "store: again")
        ]  # fmt: skip
        assert len(await journal.retry(None)) == 3
        assert (await journal.known()).seq == 4

    async def test_a_letter_of_which_nothing_was_kept_can_only_be_discarded(
        self, journal: Journal
    ) -> None:
        await journal.accept(_nothing_kept(_actions("s", "a"), 1))
        assert await journal.retry(None) == []
        assert await journal.retry([1]) == []
        assert await journal.discard([1]) == 1
        assert _counts(journal) == {"received": 1, "discarded": 1}

    async def test_letters_can_be_discarded(self, journal: Journal) -> None:
        payloads = [_actions("s", title) for title in "abc"]
        await _accept(journal, *payloads)
        await _store(journal, *payloads, dead="store: no")
        assert await journal.discard([]) == 0
        assert await journal.discard([1, 99]) == 1
        assert await journal.discard([1]) == 0
        assert [letter.id for letter in await journal.dead_letters(9)] == [2, 3]
        assert await journal.discard(None) == 2
        assert await journal.dead_letters(9) == []
        assert await journal.retry(None) == []
        assert journal.counts["bytes"] == 0
        assert _counts(journal) == {"received": 3, "discarded": 3}

    # -- watermark and recent payloads ----------------------------------------------------------

    async def test_a_lane_is_settled_up_to_what_waits_first(self, journal: Journal) -> None:
        payloads = [_actions(session, title) for session, title in ("sa", "tb", "sc", "td")]
        await _accept(journal, *payloads)
        s, t = lane_of(payloads[0], 1), lane_of(payloads[1], 2)
        assert (await journal.settled_of(s), await journal.settled_of(t)) == (0, 1)
        await _store(journal, payloads[0])
        assert await journal.settled_of(s) == 2
        await _store(journal, payloads[2], first=3, number=2, dead="store: no")
        assert await journal.settled_of(s) is None
        assert await journal.settled_of(12345) is None

    async def test_recent_payloads_come_oldest_first(self, journal: Journal) -> None:
        before = time.time()
        payloads = [_actions("s", str(i), at=1000.0 - i) for i in range(5)]
        await _accept(journal, *payloads)
        await _store(journal, payloads[1], first=2, dead="store: no")
        found = await journal.recent(before, 99)
        assert [payload for _, payload in found] == [payloads[i] for i in (0, 2, 3, 4)]
        times = [at for at, _ in found]
        assert times == sorted(times)
        assert before <= times[0]
        assert times[-1] <= time.time()
        assert [payload for _, payload in await journal.recent(before, 2)] == payloads[3:]
        assert await journal.recent(time.time() + 60, 99) == []

    # -- sessions and notes -----------------------------------------------------------------------

    async def test_sessions_are_kept(self, journal: Journal) -> None:
        ann = Session(5, "acme", "s", People("ann", "t1"), ambiguous=False, first=10.0, last=20.0)
        other = Session(6, "acme", "t", People(), ambiguous=False, first=1.0, last=2.0)
        await journal.record_plans([], [ann, other])
        assert await journal.sessions([5, 6, 7]) == {5: ann, 6: other}
        assert await journal.sessions([]) == {}
        bob = ann._replace(people=People("bob"), ambiguous=True, first=15.0, last=30.0)
        await journal.record_plans([], [bob])
        assert await journal.sessions([5]) == {5: bob._replace(first=10.0)}
        late = bob._replace(ambiguous=False, first=5.0, last=6.0)
        await journal.record_plans([], [late])
        # An ambiguous session stays ambiguous.
        assert await journal.sessions([5]) == {5: bob._replace(first=5.0)}

    async def test_it_notes_its_store(self, journal: Journal) -> None:
        before = await journal.notes()
        await journal.note_store("store-1", 7, "model-a")
        noted = replace(before, store_id="store-1", store_batch=7, model="model-a")
        assert await journal.notes() == noted
        await journal.note_store("store-1", 8, "model-a")
        assert await journal.notes() == replace(noted, store_batch=8)

    async def test_it_keeps_health_and_the_tokens_of_a_day(self, journal: Journal) -> None:
        await journal.note_health(Health("degraded", ("store: it said no",)))
        assert await journal.tokens(_DAY) == 0
        await journal.note_tokens(_DAY, 12_345)
        assert await journal.tokens(_DAY) == 12_345
        assert await journal.tokens("2026-02-01") == 0

    async def test_tidying_drops_nothing_that_is_fresh(self, journal: Journal) -> None:
        payloads = [_actions("s", title) for title in "abc"]
        await _accept(journal, *payloads)
        await _store(journal, payloads[0])
        await _store(journal, payloads[1], first=2, number=2, dead="store: no")
        await journal.discard(None)
        await journal.tidy()
        assert await _accept(journal, *payloads, first=4) == ["duplicate"] * 3
        assert (await journal.known()).chunks == 1

    # -- the catalog ------------------------------------------------------------------------------

    async def test_a_sample_is_of_stored_chunks_and_no_larger_than_asked(
        self, journal: Journal
    ) -> None:
        payloads = [_actions("s", str(i)) for i in range(30)]
        await _accept(journal, *payloads)
        await _store(journal, *payloads[:29])
        await journal.record_plans([_plan(30, _planned(payloads[29], 30))], [])
        stored = {_id_of(payload) for payload in payloads[:29]}
        for count in (1, 2, 7, 20, 29, 100):
            found = await journal.sample(count)
            assert set(found) <= stored
            assert len(found) == len(set(found))
            assert 0 < len(found) <= count
        assert set(await journal.sample(100)) == stored

    async def test_stored_chunks_can_be_stored_again(self, journal: Journal) -> None:
        payloads = [_actions("s", str(i)) for i in range(5)]
        await _accept(journal, *payloads, _actions("s", "planned"))
        await _store(journal, *payloads)
        await journal.record_plans([_plan(6, _planned(_actions("s", "planned"), 6))], [])
        assert await journal.count_queued() == 0
        assert await journal.queue_all() == 5
        queued = await journal.queued(0, 99)
        assert [one.chunk for one in queued] == [
            _planned(payload, seq).chunk for seq, payload in enumerate(payloads, 1)
        ]
        numbers = [one.number for one in queued]
        assert numbers == sorted(numbers)
        assert await journal.queued(numbers[1], 2) == queued[2:4]
        stored = {one.number: one.chunk.id for one in queued[:2]}
        assert await journal.stored_again(stored, {}) == []
        assert await journal.count_queued() == 3
        assert await journal.queued(0, 99) == queued[2:]
        assert await journal.queue_all() == 5
        assert _counts(journal) == {"received": 6, "stored": 5, "pending": 1}

    async def test_what_is_refused_when_stored_again_is_dead(self, journal: Journal) -> None:
        together, other, long = _actions("s", "a"), _actions("s", "b"), _actions("s", "c")
        fine = _actions("s", "d")
        await _accept(journal, together, other, long, fine)
        parts = [_planned(long, 3, part=part) for part in range(2)]
        plan = _plan(1, _planned(together, 1, 2), *parts, _planned(fine, 4))
        await _acknowledge(journal, plan)
        await journal.queue_all()
        first, part, other_part, last = await journal.queued(0, 99)
        refused = {first.number: "store: no", other_part.number: "store: never"}
        stored = {one.number: one.chunk.id for one in (part, last)}
        ids = await journal.stored_again(stored, refused)
        # The store may have an older version of each.
        assert sorted(ids) == sorted([first.chunk.id, part.chunk.id, other_part.chunk.id])
        assert sorted(await journal.deletions(9)) == sorted(ids)
        assert [(letter.id, letter.error) for letter in await journal.dead_letters(9)] == [
            (1, "store: no"), (2, "store: no"), (3, "store: never")
        ]  # fmt: skip
        assert await journal.count_queued() == 0
        assert (await journal.known()).chunks == 1
        assert _counts(journal) == {"received": 4, "stored": 1, "dead": 3}

    async def test_what_left_while_it_was_stored_again_is_deleted(self, journal: Journal) -> None:
        payload, other = _actions("s", "a"), _actions("s", "b")
        await _accept(journal, payload, other)
        await _store(journal, payload, other)
        await journal.queue_all()
        first, last = await journal.queued(0, 9)
        await journal.stored_again({}, {first.number: "store: no"})
        await journal.deleted([first.chunk.id])
        stored = {one.number: one.chunk.id for one in (first, last)}
        assert await journal.stored_again(stored, {}) == [first.chunk.id]
        assert await journal.deletions(9) == [first.chunk.id]
        assert await journal.count_queued() == 0

    async def test_the_catalog_can_be_compared(self, journal: Journal) -> None:
        payloads = [_actions("s", str(i)) for i in range(4)]
        await _accept(journal, *payloads)
        await _store(journal, *payloads[:3])
        await journal.record_plans([_plan(4, _planned(payloads[3], 4))], [])
        chunks = [_planned(payload, seq).chunk for seq, payload in enumerate(payloads, 1)]
        ids = [chunk.id for chunk in chunks]
        for in_order in (False, True):
            found = await journal.recorded([*ids, "unknown"], in_order=in_order)
            assert [found[one].chunk for one in ids] == chunks
            assert [found[one].stored for one in ids] == [True, True, True, False]
            assert all(one.has_text for one in found.values())
            assert len(found) == 4
        rows = await journal.recorded_after(0, 99)
        assert [row.chunk for row in rows] == chunks
        assert await journal.recorded_after(rows[0].number, 2) == rows[1:3]
        stored = [(row.number, row.chunk.id) for row in rows[:3]]
        assert await journal.stored_after(0, 99) == stored
        assert await journal.stored_after(rows[0].number, 1) == stored[1:2]
        assert await journal.queue_again([rows[0].number, rows[3].number, 10**6]) == 1
        assert [one.chunk for one in await journal.queued(0, 9)] == chunks[:1]
        assert not (await journal.recorded(ids))[ids[0]].stored

    async def test_unknown_chunks_can_be_deleted(self, journal: Journal) -> None:
        payload = _actions("s", "a")
        await _accept(journal, payload)
        await _store(journal, payload)
        known = _id_of(payload)
        assert await journal.delete_unknown([known, "x", "y", "x"]) == ["x", "y"]
        assert await journal.in_outbox([known, "x", "z"]) == {"x"}
        assert sorted(await journal.deletions(9)) == ["x", "y"]

    async def test_chunks_of_a_store_can_be_adopted(self, journal: Journal) -> None:
        first, later = _actions("s", "a"), _actions("s", "b")
        mine = _actions("s", "c")
        await _accept(journal, mine)
        await _store(journal, mine)
        theirs = [
            _chunk(_id_of(first), "a and b", session_id="s", user_id="ann", started_at=5.0,
                   ended_at=6.0, extra=1.5),
            _chunk("not one of ours", "foreign"),
        ]  # fmt: skip
        known = _planned(mine, 1).chunk
        assert await journal.adopt([*theirs, known]) == 2
        assert await journal.adopt([*theirs, known]) == 0
        assert (await journal.notes()).adopted
        assert (await journal.known()).chunks == 3
        assert _counts(journal) == {"received": 1, "stored": 1}
        lane = lane_of(first, 1)
        assert (await journal.sessions([lane]))[lane].people == People("ann")
        # Only the first payload of an adopted chunk can be recognised.
        assert await _accept(journal, first, later, mine, first=2) == [
            "duplicate", "accepted", "duplicate"
        ]  # fmt: skip
        await journal.queue_all()
        assert [one.chunk for one in await journal.queued(0, 9)] == [known, *theirs]

    async def test_adopted_chunks_that_are_refused_are_not_counted(self, journal: Journal) -> None:
        payload = _actions("s", "a")
        await journal.adopt([_chunk(_id_of(payload), "a"), _chunk("foreign", "b")])
        await journal.queue_all()
        refused = {one.number: "store: no" for one in await journal.queued(0, 9)}
        assert sorted(await journal.stored_again({}, refused)) == sorted(
            [_id_of(payload), "foreign"]
        )
        assert _counts(journal) == {}
        assert await journal.dead_letters(9) == []
        # No chunk contains it any more, so it is stored when it is delivered again.
        assert await _accept(journal, payload) == ["accepted"]

    async def test_texts_that_are_known_are_not_filled(self, journal: Journal) -> None:
        payload = _actions("s", "a")
        await _accept(journal, payload)
        await _store(journal, payload)
        assert await journal.missing_texts() == 0
        assert await journal.fill([_chunk(_id_of(payload), "other"), _chunk("unknown", "x")]) == 0
        assert (await journal.known()).chunks == 1
        await journal.queue_all()
        (queued,) = await journal.queued(0, 9)
        assert queued.chunk == _planned(payload, 1).chunk

    # -- the end ----------------------------------------------------------------------------------

    async def test_what_was_handed_over_is_carried_out_before_closing(
        self, open_journal: Callable[..., Awaitable[Journal]]
    ) -> None:
        journal = await open_journal()
        futures = [journal.accept(_entry(_actions("s", str(i)), i)) for i in range(1, 401)]
        await journal.close()
        assert [future.result() for future in futures] == ["accepted"] * 400
        with pytest.raises(PipelineClosedError):
            journal.accept(_entry(_actions("s", "late"), 401))
        with pytest.raises(PipelineClosedError):
            await journal.known()


class DurableJournalContract(JournalContract):
    """What a durable journal must do: its state survives closing and opening it again."""

    @pytest.fixture
    async def reopened(
        self, open_journal: Callable[..., Awaitable[Journal]]
    ) -> Callable[[Journal], Awaitable[Journal]]:
        """Closes a journal and opens it again."""

        async def reopen(journal: Journal) -> Journal:
            await journal.close()
            return await open_journal()

        return reopen

    async def test_the_queue_survives(
        self, journal: Journal, reopened: Callable[[Journal], Awaitable[Journal]]
    ) -> None:
        payloads = [_actions(f"s{i % 3}", str(i), at=1000.0 - i) for i in range(20)]
        await _accept(journal, *payloads)
        await _store(journal, payloads[0])
        await _store(journal, payloads[1], first=2, number=2, dead="store: no")
        await _store(journal, payloads[2], first=3, number=3, dead="store: never")
        await journal.retry([2])
        counts = _counts(journal), journal.counts["bytes"]
        letters, waiting = await journal.dead_letters(9), await journal.waiting(0, 99)
        journal = await reopened(journal)
        assert (_counts(journal), journal.counts["bytes"]) == counts
        assert await journal.dead_letters(9) == letters
        assert await journal.waiting(0, 99) == waiting
        assert waiting[0] == (2, lane_of(payloads[1], 2), True)
        assert decoded((await journal.read([9], _MUCH))[0].body) == payloads[8]
        assert await _accept(journal, *payloads[:4], first=21) == ["duplicate"] * 4
        known = await journal.known()
        assert (known.seq, known.batch, known.acknowledged, known.chunks) == (20, 3, 3, 1)

    async def test_plans_survive(
        self, journal: Journal, reopened: Callable[[Journal], Awaitable[Journal]]
    ) -> None:
        payloads = [_actions("s", title) for title in "abcd"]
        await _accept(journal, *payloads)
        plan = _plan(8, _planned(payloads[0], 1, 2), seq3="render failed: a bug")
        await journal.record_plans([_plan(7, _planned(payloads[3], 4)), plan], [])
        await journal.replace_plan(
            _plan(8, _planned(payloads[0], 1), _planned(payloads[1], 2), seq3="a bug")
        )
        plans = await journal.plans()
        journal = await reopened(journal)
        assert await journal.plans() == plans
        assert (await journal.known()).batch == 8
        for one in await journal.plans():
            await journal.acknowledge([Acknowledgement(one, one.unplanned)])
        journal = await reopened(journal)
        assert await journal.plans() == []
        assert (await journal.known()).acknowledged == 8
        assert _counts(journal) == {"received": 4, "stored": 3, "dead": 1}

    async def test_the_catalog_survives(
        self, journal: Journal, reopened: Callable[[Journal], Awaitable[Journal]]
    ) -> None:
        payloads = [_actions("s", title) for title in "abc"]
        await _accept(journal, *payloads)
        await _store(journal, *payloads[:2])
        parts = [_planned(payloads[2], 3, part=part) for part in range(2)]
        ids = await _acknowledge(journal, _plan(3, *parts), dead={3: "store: no"})
        ann = Session(5, "acme", "s", People("ann", "t1"), ambiguous=True, first=10.0, last=20.0)
        await journal.record_plans([], [ann])
        await journal.note_store("store-1", 2, "model-a")
        await journal.note_tokens(_DAY, 7)
        await journal.queue_all()
        queued = await journal.queued(0, 9)
        await journal.stored_again({queued[0].number: queued[0].chunk.id}, {})
        notes = await journal.notes()
        journal = await reopened(journal)
        assert await journal.notes() == notes
        assert sorted(await journal.deletions(9)) == sorted(ids)
        assert await journal.sessions([5]) == {5: ann}
        assert await journal.tokens(_DAY) == 7
        assert await journal.queued(0, 9) == queued[1:]
        assert await journal.count_queued() == 1

    async def test_numbers_only_grow(
        self, journal: Journal, reopened: Callable[[Journal], Awaitable[Journal]]
    ) -> None:
        numbers: list[tuple[int, int]] = []
        for seq in range(1, 6):
            await _accept(journal, _actions("s", str(seq)), first=seq)
            await _store(journal, _actions("s", str(seq)), first=seq, number=seq)
            await journal.tidy()
            journal = await reopened(journal)
            known = await journal.known()
            numbers.append((known.seq, known.batch))
        assert numbers == [(seq, seq) for seq in range(1, 6)]
