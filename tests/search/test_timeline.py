"""Reading without a ranking: `sessions`, `session` and `actions` of a pipeline."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoplay_rag import ActionsPayload, ChatTurn, IngestPipeline, SlimAction, SummaryPayload
from autoplay_rag.errors import ConfigurationError, JournalError, PipelineClosedError
from autoplay_rag.search.timeline import joined_parts
from autoplay_rag.stores import MemoryStore

FEW = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


def done(session, *descriptions, user="ann", at=1000.0, page="https://app.test/reports", **more):
    actions = [
        SlimAction("", said, page, n, "click", at and at + n, at and at + n)
        for n, said in enumerate(descriptions)
    ]
    product = more.pop("product", "acme")
    return ActionsPayload(product, session, user, actions=actions, forwarded_at=at, **more)


@pytest.fixture(params=["file", "memory"])
def journal(request, tmp_path):
    return tmp_path / "journal.db" if request.param == "file" else None


@pytest.fixture
async def pipeline(embedder, journal):
    async with IngestPipeline(
        MemoryStore(), embedder, journal=journal, batch_window=3600.0, drain_timeout=0.0
    ) as running:
        yield running


async def accept(pipeline, *payloads):
    for payload in payloads:
        await pipeline.accept(payload)


def ids(sessions):
    return [one.session_id for one in sessions]


# -- sessions -------------------------------------------------------------------------------------


async def test_sessions_are_listed_latest_first_with_a_description(pipeline):
    await accept(
        pipeline,
        done("s1", "User opened billing", 'User clicked the "Export" button', at=1000.0),
        done("s2", "User opened help", at=2000.0, user="bob"),
        done(None, "User paid", at=3000.0),
    )
    found = await pipeline.sessions()
    assert ids(found) == ["s2", "s1"], "what has no session is no session"
    assert (found.total, found.next) == (2, None)
    first = found[1]
    assert first.what == 'opened billing; clicked "Export"'
    assert (first.user_id, first.product_id) == ("ann", "acme")
    assert (first.started_at, first.ended_at) == (1000.0, 1001.0)
    assert (first.payloads, first.actions, first.ambiguous) == (1, 2, False)
    assert "opened help" in found._repr_html_()


async def test_a_summary_is_the_description(pipeline):
    await accept(pipeline, done("s1", "User opened billing"))
    await accept(pipeline, SummaryPayload("acme", "s1", "Paid an\ninvoice.", forwarded_at=1010.0))
    assert (await pipeline.sessions())[0].what == "Paid an; invoice."


async def test_a_shared_session_has_no_owner_and_shows_each_person_only_their_own_actions(pipeline):
    await accept(
        pipeline,
        done("s1", "User opened billing", user="ann"),
        done("s1", "User opened secrets", user="bob", at=2000.0),
    )
    (whole,) = await pipeline.sessions()
    assert whole.ambiguous
    assert whole.user_id is None
    (of_ann,) = await pipeline.sessions(user_id="ann")
    assert of_ann.what == "opened billing"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"user_id": "ann"}, ["s3", "s1"]),
        ({"user_id": "nobody"}, []),
        ({"user_id": ""}, []),
        ({"product_id": "other"}, ["s3"]),
        ({"since": 2500.0}, ["s3"]),
        ({"since": datetime.fromtimestamp(2500, UTC)}, ["s3"]),
        ({"since": "1970-01-01T00:41:40Z"}, ["s3"]),
        ({"until": 1500}, ["s1"]),
        ({"since": 1001, "until": 2000}, ["s2", "s1"]),
        ({"since": "1d"}, []),
        ({"matching": "export"}, ["s2", "s1"]),
        ({"matching": "exported CSV"}, ["s1"]),
        ({"matching": "export", "without": "csv"}, ["s2"]),
        ({"without": "export"}, ["s3"]),
        ({"user_id": "ann", "matching": "export"}, ["s1"]),
        ({"user_id": "ann", "without": "export"}, ["s3"]),
        ({"page": "/Billing"}, ["s2"]),
        ({"page": "nowhere"}, []),
        ({"user_id": "bob", "page": "billing"}, ["s2"]),
        ({"matching": "設定"}, ["s3"]),
        ({"matching": "!!!"}, []),
        ({"without": "!!!"}, ["s3", "s2", "s1"]),
        ({"matching": "\ud800\0 NEAR("}, []),
    ],
)
async def test_conditions_select_sessions(pipeline, options, found):
    await accept(
        pipeline,
        done("s1", "User exported", "User chose CSV", at=1000.0),
        done("s2", "User clicked Export", at=2000.0, user="bob", page="https://a.test/billing"),
        done("s3", "User opened 設定画面", at=3000.0, product="other"),
    )
    assert ids(await pipeline.sessions(**options)) == found


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": True + 0.5},
        {"cursor": "nonsense"},
        {"cursor": ""},
        {"cursor": "é"},
        {"matching": " "},
        {"without": ""},
        {"page": "\n"},
        {"since": "yesterday"},
        {"until": datetime(2026, 1, 1)},  # noqa: DTZ001 - has no zone on purpose
    ],
)
async def test_invalid_conditions_are_refused(pipeline, wrong):
    with pytest.raises(ConfigurationError):
        await pipeline.sessions(**wrong)


@settings(max_examples=settings.default.max_examples // 2 or 1, **FEW)
@given(
    times=st.lists(st.sampled_from([0.0, 1000.0, 2000.0]) | st.floats(1, 5e9), max_size=12),
    limit=st.integers(1, 7),
    text=st.text(max_size=20).filter(str.strip),
)
async def test_pages_have_each_session_once(embedder, times, limit, text):
    async with IngestPipeline(MemoryStore(), embedder, batch_window=3600, drain_timeout=0) as pipe:
        for n, at in enumerate(times):
            said = text if n % 2 else "User opened help"
            await accept(pipe, done(f"s{n}", said, at=at, user=f"u{n % 3}"))
        for options in ({}, {"user_id": "u0"}, {"matching": text}, {"without": text}):
            seen, cursor = [], None
            while True:
                page = await pipe.sessions(**options, limit=limit, cursor=cursor)
                assert len(page) <= limit
                seen += page
                cursor = page.next
                if cursor is None:
                    break
                assert len(page) == limit
            assert len(set(ids(seen))) == len(seen) == page.total
            ended = [one.ended_at or float("-inf") for one in seen]
            assert ended == sorted(ended, reverse=True)
        both = [await pipe.sessions(matching=text), await pipe.sessions(without=text)]
        assert sorted(ids(both[0] + both[1])) == sorted(f"s{n}" for n in range(len(times)))


async def test_a_session_that_continues_between_two_pages_is_not_repeated(pipeline):
    await accept(pipeline, *(done(f"s{n}", "User paid", at=1000.0 * n) for n in range(1, 5)))
    first = await pipeline.sessions(limit=2)
    await accept(pipeline, done("s1", "User left", at=9000.0))
    rest = await pipeline.sessions(limit=9, cursor=first.next)
    assert ids(first) + ids(rest) == ["s4", "s3", "s2"]
    assert ids(await pipeline.sessions(limit=1)) == ["s1"]


# -- one session ----------------------------------------------------------------------------------


async def test_a_session_is_complete_and_in_order(pipeline):
    await accept(
        pipeline,
        done("s1", "User paid", at=3000.0),
        done("s1", "User opened billing", "User chose an invoice", at=1000.0),
        ChatTurn("acme", "s1", "ann", None, "Where?", "There.", forwarded_at=2000.0),
        SummaryPayload("acme", "s1", "Paid an invoice.", forwarded_at=4000.0),
    )
    session = await pipeline.session("s1")
    assert [(event.kind, event.description) for event in session.events] == [
        ("actions", "User opened billing"),
        ("actions", "User chose an invoice"),
        ("chat", "User asked: Where?\nAssistant answered: There."),
        ("actions", "User paid"),
        ("summary", "Paid an invoice."),
    ]
    assert [action.index for action in session.actions] == [0, 1, 0]
    assert {event.user_id for event in session.events} == {"ann"}
    action = session.actions[0]
    assert (action.page, action.type, action.started_at) == (
        "https://app.test/reports",
        "click",
        1000.0,
    )
    assert session.users == ("ann",)
    assert (session.user_id, session.ambiguous, session.missing) == ("ann", False, 0)
    assert (session.started_at, session.ended_at, session.payloads) == (1000.0, 4000.0, 4)
    for said in ("paid", "opened billing", "There.", "Paid an invoice."):
        assert said in session.text
    assert "opened billing" in session._repr_html_()


async def test_an_unknown_session_is_none(pipeline):
    await accept(pipeline, done("s1", "User paid"))
    assert await pipeline.session("s2") is None
    assert await pipeline.session("s1", "other") is None
    assert await pipeline.session("") is None
    assert await pipeline.session("\ud800\0") is None


async def test_a_session_id_of_two_products_needs_the_product(pipeline):
    await accept(pipeline, done("s1", "User paid"), done("s1", "User left", product="other"))
    with pytest.raises(ConfigurationError, match="'acme', 'other'"):
        await pipeline.session("s1")
    assert (await pipeline.session("s1", "other")).actions[0].description == "User left"


async def test_a_session_of_several_people(pipeline):
    await accept(
        pipeline,
        done("s1", "User opened billing", user="ann"),
        done("s1", "User left", user=None, at=1500.0),
        done("s1", "User opened secrets", user="bob", at=2000.0),
    )
    session = await pipeline.session("s1")
    assert session.ambiguous
    assert session.user_id is None
    assert session.users == ("ann", "bob")
    assert [event.user_id for event in session.events] == ["ann", None, "bob"]
    of_ann = await pipeline.session("s1", user_id="ann")
    assert [event.description for event in of_ann.events] == ["User opened billing"]
    assert "secrets" not in of_ann.text
    assert await pipeline.session("s1", user_id="eve") is None


async def test_an_action_of_unknown_time_stays_beside_its_neighbour(pipeline):
    await accept(pipeline, done("s1", "a", at=2000.0), done("s1", "b", at=0.0), done("s1", "c"))
    session = await pipeline.session("s1")
    assert [event.description for event in session.events] == ["c", "a", "b"]


async def test_payloads_without_a_body_are_counted_and_their_text_is_kept(embedder, tmp_path):
    path = tmp_path / "journal.db"
    async with IngestPipeline(
        MemoryStore(), embedder, journal=path, keep_payloads=False, batch_window=0.0
    ) as pipeline:
        await accept(pipeline, done("s1", "User opened billing"))
        await accept(pipeline, SummaryPayload("acme", "s1", "Paid.", forwarded_at=2000.0))
        await pipeline.drain()
        session = await pipeline.session("s1")
        assert session.missing == 1
        assert [(event.kind, event.description) for event in session.events] == [
            ("summary", "Paid.")
        ]
        assert "opened billing" in session.text
        with pytest.raises(JournalError, match="keep_payloads"):
            await anext(pipeline.actions())


# -- actions --------------------------------------------------------------------------------------


async def read(pipeline, **options):
    return [event.description async for event in pipeline.actions(**options)]


async def test_actions_are_in_order_of_acceptance(pipeline, monkeypatch):
    monkeypatch.setattr("autoplay_rag.journal.timeline._PAGE", 2)
    await accept(
        pipeline,
        done("s2", "b", at=2000.0, user="bob"),
        done("s1", "a1", "a2", at=1000.0),
        done(None, "c", at=3000.0),
        SummaryPayload("acme", "s1", "Paid.", forwarded_at=2000.0),
        done("s1", "d", at=4000.0, product="other"),
        done("s1", "e", at=0.0),
    )
    assert await read(pipeline) == ["b", "a1", "a2", "c", "d", "e"]
    assert await read(pipeline, user_id="bob") == ["b"]
    assert await read(pipeline, session_id="s1") == ["a1", "a2", "d", "e"]
    assert await read(pipeline, session_id="s1", product_id="other") == ["d"]
    assert await read(pipeline, product_id="other", user_id="ann") == ["d"]
    assert await read(pipeline, since=1001.0, until=2000.0) == ["b", "a2"]
    assert await read(pipeline, since="1d") == []
    assert await read(pipeline, matching="b") == ["b"]
    assert await read(pipeline, user_id="eve") == []


async def test_actions_of_a_person_exclude_other_people(pipeline):
    await accept(
        pipeline,
        done("s1", "a", user="ann"),
        done("s1", "b", user="bob", at=2000.0),
        done("s1", "c", user=None, at=3000.0),
        done("s2", "d", user=None, at=4000.0),
        done("s2", "e", user="ann", at=5000.0),
    )
    assert await read(pipeline, user_id="ann") == ["a", "d", "e"]


async def test_actions_accepted_during_the_reading_are_not_included(pipeline):
    await accept(pipeline, done("s1", "a"))
    actions = pipeline.actions()
    assert (await anext(actions)).description == "a"
    await accept(pipeline, done("s2", "b"))
    assert [event async for event in actions] == []
    await actions.aclose()


async def test_missing_payloads_are_counted(embedder, tmp_path, caplog):
    async with IngestPipeline(
        MemoryStore(),
        embedder,
        journal=tmp_path / "journal.db",
        keep_payloads=False,
        batch_window=3600,
        drain_timeout=0,
    ) as pipeline:
        await accept(pipeline, done("s1", "a"), done("s1", "b", at=1100.0))
        await pipeline.drain()
        await accept(pipeline, done("s2", "c"))
        actions = pipeline.actions()
        assert [event.description async for event in actions] == ["c"]
        assert actions.missing == 2
    assert "2 payloads are missing" in caplog.text
    caplog.clear()


async def test_a_damaged_body_is_missing(embedder, tmp_path):
    import sqlite3

    path = tmp_path / "journal.db"
    async with IngestPipeline(MemoryStore(), embedder, journal=path, batch_window=0.0) as pipeline:
        await accept(pipeline, done("s1", "a"))
        await pipeline.drain()
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE payload SET body = x'0102'")
        connection.close()
        with pytest.raises(JournalError, match="1 payloads fit"):
            await anext(pipeline.actions())
        assert (await pipeline.session("s1")).missing == 1


async def test_sync_methods_in_a_running_loop_and_after_closing(pipeline):
    await accept(pipeline, done("s1", "User paid", at=time.time()))
    assert ids(pipeline.sessions_sync(since="1h")) == ["s1"]
    assert pipeline.session_sync("s1").actions
    await pipeline.aclose()
    with pytest.raises(PipelineClosedError):
        await pipeline.sessions()
    with pytest.raises(PipelineClosedError):
        pipeline.actions()


@settings(max_examples=settings.default.max_examples // 2 or 1, **FEW)
@given(
    payloads=st.lists(
        st.tuples(
            st.sampled_from(["s1", "s2", None]),
            st.sampled_from(["ann", "bob", None]),
            st.lists(st.text(max_size=5), min_size=1, max_size=3),
        ),
        max_size=8,
    ),
    page=st.integers(1, 4),
)
async def test_every_action_is_read_once_and_belongs_to_one_person_at_most(
    embedder, tmp_path_factory, payloads, page
):
    # In a file: a journal in memory drops the bodies of payloads that are stored meanwhile.
    path = tmp_path_factory.mktemp("journal") / "journal.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoplay_rag.journal.timeline._PAGE", page)
        async with IngestPipeline(
            MemoryStore(), embedder, journal=path, batch_window=3600, drain_timeout=0
        ) as pipeline:
            for n, (session, user, said) in enumerate(payloads):
                texts = [f"{text} {n}.{at}" for at, text in enumerate(said)]
                await accept(pipeline, done(session, *texts, user=user, at=1000.0 + 10 * n))
            everything = [event async for event in pipeline.actions()]
            assert len({(event.seq, event.index) for event in everything}) == len(everything)
            assert len(everything) == sum(len(said) for _, _, said in payloads)
            of_people = {
                user: [event async for event in pipeline.actions(user_id=user)]
                for user in ("ann", "bob")
            }
            for user, events in of_people.items():
                assert events == [event for event in everything if event.user_id == user]
            for name in ("s1", "s2"):
                session = await pipeline.session(name)
                own = [event for event in everything if event.session_id == name]
                assert (session.actions if session else []) == own


async def test_common_and_rare_words_have_equal_results(pipeline, monkeypatch):
    await accept(
        pipeline,
        done("s1", "User exported", "User chose CSV", at=1000.0),
        done("s2", "User clicked Export", at=2000.0, user="bob"),
        done("s3", "User left", at=3000.0),
    )
    for common in (0, 20_000):
        monkeypatch.setattr("autoplay_rag.journal.timeline._COMMON", common)
        assert ids(await pipeline.sessions(matching="export")) == ["s2", "s1"]
        assert ids(await pipeline.sessions(matching="export csv")) == ["s1"]
        assert ids(await pipeline.sessions(without="export")) == ["s3"]
        assert await read(pipeline, matching="csv") == ["User exported", "User chose CSV"]


# -- a session in parts ---------------------------------------------------------------------------


@pytest.fixture
async def kept(embedder, tmp_path):
    """A pipeline that keeps the bodies of payloads, and stores at once."""
    async with IngestPipeline(
        MemoryStore(), embedder, journal=tmp_path / "journal.db", batch_window=3600.0
    ) as running:
        yield running


async def parts_of(pipeline, session, limit, **options):
    found, after = [], None
    while part := await pipeline.session_part(session, after=after, limit=limit, **options):
        found.append(part)
        if (after := part.next) is None:
            return found
    return found


@settings(max_examples=25, deadline=None, **FEW)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12), limit=st.integers(1, 12))
async def test_the_parts_of_a_session_are_the_session(embedder, sizes, limit):
    async with IngestPipeline(
        MemoryStore(), embedder, batch_window=3600.0, drain_timeout=0.0
    ) as one:
        for n, size in enumerate(sizes):
            steps = [f"step {n}.{k}" for k in range(size)]
            await accept(one, done("s1", *steps, at=1000.0 + 10 * n))
        whole = await one.session("s1")
        parts = await parts_of(one, "s1", limit)
    events = [event for part in parts for event in part.session.events]
    assert tuple(events) == whole.events
    assert joined_parts([part.session for part in parts]) == whole
    assert all(part.actions == sum(sizes) for part in parts)
    assert all(part.session.payloads == len(sizes) for part in parts)
    assert all(len(part.session.events) < limit + max(sizes) for part in parts)
    assert all(len(part.session.events) >= limit for part in parts[:-1])


@settings(max_examples=25, deadline=None, **FEW)
@given(
    people=st.lists(st.sampled_from(["ann", "bob", None]), min_size=1, max_size=14),
    limit=st.integers(1, 5),
)
async def test_what_others_did_does_not_change_where_the_parts_of_a_person_end(
    embedder, people, limit
):
    said = {}
    for others in (True, False):
        async with IngestPipeline(
            MemoryStore(), embedder, batch_window=3600.0, drain_timeout=0.0
        ) as one:
            await accept(one, done("s1", "first", user="ann", at=999.0))
            await accept(one, done("s1", "second", user="bob", at=999.0))
            for n, user in enumerate(people):
                if user == "ann" or others:
                    await accept(one, done("s1", f"step {n}", user=user, at=1000.0 + n))
            parts = await parts_of(one, "s1", limit, user_id="ann")
            said[others] = [[e.description for e in part.session.events] for part in parts]
            whole = await one.session("s1", user_id="ann")
            assert joined_parts([part.session for part in parts]) == whole
    assert said[True] == said[False]


async def test_a_part_is_of_one_person_if_asked_for(kept):
    for n in range(6):
        user = "ann" if n % 2 else "bob"
        await accept(kept, done("s1", f"step {n}", user=user, at=1000.0 + n))
    parts = await parts_of(kept, "s1", 2, user_id="ann")
    said = [event.description for part in parts for event in part.session.events]
    assert said == ["step 1", "step 3", "step 5"]
    assert [len(part.session.events) for part in parts] == [2, 1]  # as without bob
    assert await kept.session_part("s1", user_id="cid") is None
    assert await kept.session_part("unknown") is None


async def test_a_part_of_an_ambiguous_id_or_of_nothing_is_refused(kept):
    await accept(kept, done("s1", "here"), done("s1", "there", product="other"))
    with pytest.raises(ConfigurationError, match="2 products"):
        await kept.session_part("s1")
    with pytest.raises(ConfigurationError, match="2 products"):
        await kept.session_chunks("s1")
    with pytest.raises(ConfigurationError, match="limit"):
        await kept.session_part("s1", "acme", limit=0)
    assert len((await kept.session_part("s1", "other")).session.events) == 1


async def test_the_chunks_of_a_session_say_where_its_payloads_are(kept, embedder):
    await accept(kept, done("s1", "opened", at=1000.0), done("s1", "paid", at=1100.0))
    await kept.drain()
    (chunk,) = await kept.session_chunks("s1")
    assert (chunk.payloads, chunk.started_at, chunk.ended_at) == (2, 1000.0, 1100.0)
    (hit,) = await kept.search("paid")
    assert chunk.id == hit.id
    embedder.script = refuse
    # A refusal counts only while something else succeeds.
    await accept(kept, done("s1", "cancelled", at=1200.0), done("s2", "looked", at=1200.0))
    await kept.drain()
    assert kept.ledger.dead == 1
    assert [(one.id, one.payloads) for one in await kept.session_chunks("s1")] == [
        (chunk.id, 2),
        (None, 1),
    ]
    assert await kept.session_chunks("unknown") == []


def refuse(texts):
    if any("cancelled" in text for text in texts):
        raise ValueError("no")


async def test_chunks_that_a_summary_replaced_are_said_to_be(embedder, tmp_path):
    async with IngestPipeline(
        MemoryStore(),
        embedder,
        journal=tmp_path / "journal.db",
        batch_window=0.0,
        summaries="replace",
    ) as one:
        await accept(one, done("s1", "opened"))
        await one.drain()
        await accept(one, SummaryPayload("acme", "s1", "Opened it.", 1, 1010.0))
        await one.drain()
        assert [chunk.replaced for chunk in await one.session_chunks("s1")] == [True, False]


async def test_sessions_can_be_listed_without_counting_them(pipeline):
    await accept(pipeline, *(done(f"s{n}", "opened", at=1000.0 + n) for n in range(5)))
    counted = await pipeline.sessions(limit=2)
    listed = await pipeline.sessions(limit=2, count=False)
    assert ids(listed) == ids(counted) == ["s4", "s3"]
    assert (counted.total, listed.total) == (5, 0)
    rest = await pipeline.sessions(limit=3, cursor=listed.next, count=False)
    assert (ids(rest), rest.next) == (["s2", "s1", "s0"], None)
