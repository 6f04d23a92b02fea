"""The same payloads in SQLite and in PostgreSQL: searches and lists return the same."""

from __future__ import annotations

import asyncio
import random
from uuid import uuid4

import pytest

from autoplay_rag.cluster import PostgresJournal
from autoplay_rag.content.words import lookups
from autoplay_rag.ingest.intake import Intake
from autoplay_rag.ingest.planner import Planner
from autoplay_rag.journal.base import Acknowledgement
from autoplay_rag.journal.expiring import limits_at
from autoplay_rag.journal.exporting import chunks_of, payloads_of, select_all
from autoplay_rag.journal.selecting import Asked
from autoplay_rag.journal.sqlite import SqliteJournal
from autoplay_rag.journal.timeline import Place, Wanted, terms_of
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload
from autoplay_rag.stores.base import Filter

NOW = 1_700_000_000.0
WORDS = [
    "export",
    "exported",
    "exports",
    "exportCsv",
    "invoice",
    "invoices",
    "INV-0042",
    "1,000",
    "three",
    "café",
    "cafe",
    "naïve",
    "settings",
    "running",
    "runs",
    "the",
    "and",
    "Q3",
    "März",
    "設定画面",
    "user_name",
    "a/b/c",
    "app.example.com",
    "hyphen-ated",
    "organisation",
    "organization",
    "universal",
    "university",
    "3000x",
    "1e5",
]


def _payloads() -> list[ActionsPayload | SummaryPayload]:
    source = random.Random(11)
    made: list[ActionsPayload | SummaryPayload] = []
    for number in range(160):
        session = source.choice([None, *(f"s{i}" for i in range(12))])
        at = NOW + source.randrange(100_000)
        if session and not number % 9:
            text = " ".join(source.choices(WORDS, k=8))
            made.append(SummaryPayload("acme", session, f"{text} {number}", 1, at))
            continue
        actions = [
            SlimAction(
                source.choice(WORDS),
                f'User clicked the "{source.choice(WORDS)} {source.choice(WORDS)}" button',
                f"https://app.test/{source.choice(['Billing', 'team', 'x'])}/{number}",
                i,
                "click",
                at + i,
                at + i + 0.5,
            )
            for i in range(source.randrange(1, 4))
        ]
        user = source.choice([None, "ann", "bob", "cy"])
        chat = source.choice([None, "c1", "c2"])
        product = source.choice(["acme", "other"])
        made.append(ActionsPayload(product, session, user, None, actions, len(actions), at, chat))
    return made


async def _fill(journal) -> None:
    await journal.open()
    entries = [Intake(None, None).entry(one, seq) for seq, one in enumerate(_payloads(), 1)]
    outcomes = await asyncio.gather(*(journal.accept(entry) for entry in entries))
    assert set(outcomes) == {"accepted"}
    lanes: dict[int, list[int]] = {}
    for entry in entries[:120]:  # the others wait
        lanes.setdefault(entry.lane, []).append(entry.seq)
    planner = Planner(lambda payloads: "\n".join(map(str, payloads))[:400], len, 4, False)
    for number, seqs in enumerate(lanes.values(), 1):
        waiting = await journal.read(seqs, 2**30)
        plan, session = planner.plan(number, waiting, None)
        await journal.record_plans([plan], [session] if session else [])
        dead = {seq: "store: no" for seq in seqs if seq % 17 == 0}
        await journal.acknowledge([Acknowledgement(plan, {**plan.unplanned, **dead})])


@pytest.fixture
async def both(tmp_path, postgres):
    given = {"on_entry": lambda *_: None, "on_returned": lambda _: None, "model": "m"}
    journals = (
        SqliteJournal(tmp_path / "journal.db", clock=lambda: NOW, **given),
        PostgresJournal(postgres.dsn, schema=f"t_{uuid4().hex[:12]}", clock=lambda: NOW, **given),
    )
    for journal in journals:
        await _fill(journal)
    yield journals
    for journal in journals:
        await journal.close()


async def _same(both, read):
    """Return what both journals answer."""
    lite, server = [await read(journal) for journal in both]
    assert server == lite
    return lite


CONDITIONS = [
    Filter(),
    Filter(user_id="ann"),
    Filter(session_id="s3"),
    Filter(product_id="other", conversation_id="c1"),
    Filter(since=NOW + 30_000, until=NOW + 80_000),
    Filter(kind="summary"),
    Filter(user_id="nobody"),
]


async def test_a_search_finds_the_same(both):
    questions = [*WORDS, "exported three invoices", "the and", "running organisation", "zzz", "!?"]
    for one in CONDITIONS:
        conditions = one.conditions()
        scope = await _same(both, lambda journal, c=conditions: _scope(journal, c))
        for question in questions:

            async def find(journal, question=question, conditions=conditions):
                asked = lookups(question)
                phrases = [question] if " " in question else []
                found = await journal.finder.find(asked, phrases, conditions, 1000)
                return found.total, found.counts, sorted(found.passages)

            await _same(both, find)
        assert isinstance(scope, tuple)


async def _scope(journal, conditions):
    scope = await journal.finder.scope(conditions)
    return scope.known, sorted(scope.lanes) if scope.lanes is not None else None, scope.pending


async def test_what_is_found_is_read_alike(both):
    lanes = [lane for lane in (await both[0].finder.recent_lanes((), 100)) if lane >= 0]
    assert len(lanes) > 10
    await _same(both, lambda journal: journal.finder.recent_lanes((), 100))
    passages = await _same(both, lambda journal: journal.finder.passages(lanes))
    assert {passage.chunk is None for passage in passages} == {True, False}
    parts = await _same(both, lambda journal: journal.finder.parts(lanes))
    assert [(one.seq, one.chunk) for one in parts] == [(one.seq, one.chunk) for one in passages]
    ids = sorted(await both[0].finder.chunk_ids(lanes))
    assert ids

    async def chunk_ids(journal):
        return sorted(await journal.finder.chunk_ids(lanes))

    async def chunks(journal):
        found = await journal.finder.chunks(ids)
        return sorted((chunk.id, chunk.text, sorted(chunk.metadata.items())) for chunk in found)

    await _same(both, chunk_ids)
    await _same(both, chunks)
    await _same(both, lambda journal: journal.finder.lanes_of([*ids, "unknown"]))
    await _same(both, lambda journal: journal.finder.visits(lanes))
    waiting = [passage.seq for passage in passages if passage.chunk is None]
    found = await _same(both, lambda journal: journal.finder.waiting(waiting))
    assert found
    assert await both[1].finder.passages([]) == []
    assert await both[1].finder.parts([]) == []
    assert await both[1].finder.chunk_ids([]) == []
    assert await both[1].finder.lanes_of([]) == {}


WANTED = [
    Wanted(),
    Wanted(user_id="ann"),
    Wanted(user_id="ann", shared=False),
    Wanted(session_id="s3", product_id="acme"),
    Wanted(since=NOW + 50_000),
    Wanted(until=NOW + 50_000, product_id="other"),
    Wanted(matching=terms_of("exported")),
    Wanted(matching=terms_of("exports invoice")),
    Wanted(matching=terms_of("three OR 1,000"), user_id="bob"),
    Wanted(without=terms_of("invoices settings")),
    Wanted(without=terms_of("organization"), user_id="cy"),
    Wanted(page="/billing/"),
    Wanted(page="/TEAM/1", session_id="s3"),
    Wanted(page="nowhere"),
    Wanted(page="100%_"),
]


@pytest.mark.parametrize("wanted", WANTED, ids=range(len(WANTED)))
async def test_sessions_are_listed_alike(both, wanted):
    def comparable(listed):
        total, sessions = listed
        return total, [one._replace(users=tuple(sorted(one.users))) for one in sessions]

    async def all_at_once(journal):
        return comparable(await journal.timeline.sessions(wanted, 100, None))

    total, sessions = await _same(both, all_at_once)
    assert total == len(sessions)

    async def by_page(journal):
        found, place = [], None
        while page := (await journal.timeline.sessions(wanted, 3, place, count=False))[1]:
            found += page
            place = Place(page[-1].last, page[-1].lane)
        return comparable((total, found))

    assert await by_page(both[1]) == (total, sessions)
    await _same(both, lambda journal: journal.timeline.spans(wanted, 100))

    async def payloads(journal):
        last = await journal.timeline.last_seq()
        return await journal.timeline.payloads(wanted, "actions", None, last)

    await _same(both, payloads)


async def test_a_timeline_is_read_alike(both):
    lanes = await _same(both, lambda journal: journal.timeline.lanes("s3", None))
    assert len(lanes) == 2
    for product in (None, "acme", "nothing"):
        await _same(both, lambda journal, p=product: journal.timeline.lanes("s3", p))
    for lane in lanes.values():
        await _same(both, lambda journal, lane=lane: journal.timeline.whole(lane))
        await _same(both, lambda journal, lane=lane: journal.timeline.whole(lane, 40, 2))
        await _same(both, lambda journal, lane=lane: journal.timeline.pending([lane], 150))
    await _same(both, lambda journal: journal.timeline.last_seq())
    await _same(both, lambda journal: journal.timeline.last_arrival())
    await _same(both, lambda journal: journal.timeline.lag(120))

    async def people(journal):
        return sorted(await journal.timeline.people_since("acme", NOW, 10))

    assert await _same(both, people) == ["ann", "bob", "cy"]
    await _same(both, lambda journal: journal.timeline.beginning("s1", NOW, 100))
    for ids in (("ann", None, None), ("ann", "s3", "c1"), (None, "s3", None), (None, None, "c2")):
        await _same(both, lambda journal, ids=ids: journal.timeline.products(*ids))


@pytest.mark.parametrize(
    "asked",
    [
        Asked(user_id="ann"),
        Asked(user_id="bob", until=NOW + 50_000),
        Asked(session_id="s3", product_id="acme"),
        Asked(conversation_id="c1", user_id="cy"),
        Asked(user_id="nobody"),
    ],
    ids=range(5),
)
async def test_a_person_is_exported_and_forgotten_alike(both, asked):
    async def export(journal):
        selected, seqs = await journal.read_in_order(lambda c: select_all(c, asked))
        payloads = await journal.read_in_order(lambda c: payloads_of(c, seqs))
        chunks = await journal.read_in_order(lambda c: chunks_of(c, seqs, 0))
        return selected, seqs, payloads, [record for _, record in chunks]

    await _same(both, export)

    async def forget(journal):
        selected, sizes = await journal.erasures.select(asked)
        begun = await journal.erasures.begin(asked, selected, block=False)
        pages = []
        await journal.erasures.delete_all(pages.append)
        pages = [page._replace(chunks=sorted(page.chunks)) for page in pages]
        state = await journal.erasures.state(begun.number)
        counts = {name: journal.counts[name] for name in journal.counts}
        return sizes, begun, pages, state.unconfirmed, counts

    await _same(both, forget)
    await _same(both, _everything)
    again = _payloads()[0]
    entry = Intake(None, None).entry(again, 500)
    await _same(both, lambda journal: journal.accept(entry))


async def test_what_is_old_is_deleted_alike(both):
    limits = limits_at(NOW + 60_000, 1 / 24, 30.0)

    async def expire(journal):
        due, after = [], None
        while page := await journal.expiry.received(after, limits, complete=True):
            due += page.due
            after = page.after
        late, after = [], None
        while page := await journal.expiry.late(after, limits):
            late += page.due
            after = page.after
        outbox = []
        await journal.expiry.expire([*due, *late], limits, outbox.extend)
        return sorted(due), sorted(late), sorted(outbox), dict(journal.counts)

    due, *_ = await _same(both, expire)
    assert due
    await _same(both, _everything)


async def _everything(journal):
    """What is left: passages, sessions, the queue, deletions, dead letters."""
    lanes = sorted(await journal.finder.recent_lanes((), 500))
    return (
        lanes,
        await journal.finder.passages(lanes),
        await journal.waiting(0, 500),
        sorted(await journal.deletions(-1)),
        [letter.id for letter in await journal.dead_letters(500)],
        await journal.sessions(lanes),
    )
