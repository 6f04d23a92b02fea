"""Pulled actions: taken in once, whichever source comes first, in the sessions they fall into."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplay_rag import (
    ActionsPayload,
    AsyncConnectorClient,
    ChatTurn,
    IngestPipeline,
    SlimAction,
)
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.errors import AuthenticationError
from autoplay_rag.ingest import pulled as pulled_module
from autoplay_rag.sources import LiveActivitySource
from autoplay_rag.sources.sessions import cut_name, is_cut_name
from autoplay_rag.stores import MemoryStore

T = 1_700_000_000.0


def click(title, at, **fields):
    return SlimAction(
        title, f"User clicked {title}", "https://a.test/p", 0, "click", at, at, **fields
    )


def streamed(session, *actions, user="ann"):
    return ActionsPayload("acme", session, user, actions=list(actions), forwarded_at=T + 9)


def pulled(*actions, user="ann", as_of=T + 90_000):
    """As a source gives it: no action has a session or a person."""
    name = cut_name("acme", user, actions[0].timestamp_start)
    return ActionsPayload("acme", name, user, actions=list(actions), forwarded_at=as_of)


def attached(pipeline):
    """Attach a source that pulls nothing by itself."""
    return pipeline.attach(LiveActivitySource("http://127.0.0.1:9", "acme", users=()))


async def sessions_of(pipeline):
    """The titles of each session, in the order of their times."""
    found = {}
    for listed in await pipeline.sessions():
        whole = await pipeline.session(listed.session_id)
        events = sorted(whole.events, key=lambda event: event.started_at or 0)
        found[listed.session_id] = [event.description.split(" ")[-1].strip('"') for event in events]
    return found


@pytest.fixture
def make(make_pipeline, tmp_path):
    def made(**options):
        return make_pipeline(journal=tmp_path / "journal.db", **options)

    return made


async def test_what_only_the_pull_has_is_taken_in_once(make):
    async with make() as pipeline:
        attached(pipeline)
        for _ in range(3):
            await pipeline._on_pulled(pulled(click("Home", T), click("Export", T + 5)))
        await pipeline._on_pulled(pulled(click("Export", T + 5), click("Save", T + 9)))
        assert await sessions_of(pipeline) == {
            cut_name("acme", "ann", T): ["Home", "Export", "Save"]
        }
        await pipeline.drain()
        assert (pipeline.ledger.pulled, pipeline.ledger.received) == (3, 2)
        assert [hit.session_id for hit in await pipeline.search("Export", mode="text")] == [
            cut_name("acme", "ann", T)
        ]


@pytest.mark.parametrize("warm", [True, False], ids=["same-run", "after-a-restart"])
async def test_what_the_stream_brought_is_recognised(make, warm):
    async with make() as pipeline:
        if warm:
            attached(pipeline)
        await pipeline.on_actions(streamed("ps_1", click("Home", T), click("Export", T + 5)))
        if warm:
            await pipeline._on_pulled(pulled(click("Home", T), click("Export", T + 5)))
            assert pipeline.ledger.received == 1
    async with make() as pipeline:
        attached(pipeline)
        await pipeline._on_pulled(pulled(click("Home", T), click("Export", T + 5)))
        assert pipeline.ledger.received == 1
        assert await sessions_of(pipeline) == {"ps_1": ["Home", "Export"]}


async def test_what_the_stream_missed_goes_into_the_session_it_falls_into(make):
    async with make() as pipeline:
        attached(pipeline)
        await pipeline.on_actions(streamed("ps_1", click("Home", T), click("Export", T + 60)))
        await pipeline.on_actions(streamed("ps_2", click("Login", T + 9000)))
        await pipeline._on_pulled(
            pulled(
                click("Home", T),
                click("Between", T + 30),
                click("After", T + 60 + 1700),
                click("Next", T + 60 + 3000),  # follows the one before it
                click("Alone", T + 7000),  # 1,440 s after it, and 2,000 s before the next session
                click("Before", T + 8500),
            )
        )
        found = await sessions_of(pipeline)
    assert found == {
        "ps_1": ["Home", "Between", "Export", "After", "Next"],
        "ps_2": ["Before", "Login"],
        cut_name("acme", "ann", T + 7000): ["Alone"],
    }


async def test_what_was_pulled_first_is_left_out_of_the_stream(make):
    async with make() as pipeline:
        attached(pipeline)
        await pipeline._on_pulled(pulled(click("Home", T)))
        batch = streamed("ps_1", click("Home", T), click("Export", T + 5))
        await pipeline.on_actions(batch)
        await pipeline.on_actions(batch)  # a push that is repeated
        await pipeline.on_actions(streamed("ps_1", click("Home", T)))
        assert await pipeline.accept(batch) == "duplicate"
        found = await sessions_of(pipeline)
        assert sorted(title for titles in found.values() for title in titles) == ["Export", "Home"]
        assert found["ps_1"] == ["Export"]
        await pipeline.drain()
        ledger = pipeline.ledger
    assert (ledger.received, ledger.stored, ledger.duplicate) == (5, 2, 3)
    async with make() as pipeline:  # the pulled ones are known after a restart, too
        attached(pipeline)
        await pipeline._on_pulled(pulled(click("Home", T), click("Export", T + 5)))
        assert await pipeline.accept(batch) == "duplicate"


async def test_pulled_actions_are_known_to_the_stream_after_a_restart(make, monkeypatch):
    now = T + 60
    monkeypatch.setattr(pulled_module.time, "time", lambda: now)
    async with make() as pipeline:
        attached(pipeline)
        await pipeline._on_pulled(pulled(click("Home", T), as_of=now))
    pipeline = make()
    attached(pipeline)  # before the start, as the command does
    async with pipeline:
        assert await pipeline.accept(streamed("ps_1", click("Home", T))) == "duplicate"


async def test_without_a_pull_source_nothing_is_compared(make):
    async with make() as pipeline:
        first = streamed("ps_1", click("Home", T))
        assert await pipeline.accept(first) == "accepted"
        assert await pipeline.accept(streamed("ps_2", click("Home", T))) == "accepted"


async def test_a_repeated_batch_stays_known_though_its_actions_are_pulled_between(make):
    async with make() as pipeline:
        attached(pipeline)
        batch = streamed("ps_1", click("Home", T), click("Export", T + 5))
        await pipeline.on_actions(batch)
        await pipeline._on_pulled(pulled(click("Home", T)))  # the answer has not all of it yet
        assert await pipeline.accept(batch) == "duplicate"
        assert await sessions_of(pipeline) == {"ps_1": ["Home", "Export"]}


async def test_recovered_actions_show_where_they_came_from(make):
    async with make() as pipeline:
        attached(pipeline)
        await pipeline.on_actions(streamed("ps_1", click("Home", T)))
        await pipeline._on_pulled(pulled(click("Export", T + 5)))
        records = [record async for record in pipeline.export(session_id="ps_1")]
    home, export = (r["payload"]["actions"][0] for r in records if r["record"] == "payload")
    assert home["session_id"] is None
    assert is_cut_name(export["session_id"])


async def test_people_and_products_are_kept_apart(make):
    async with make() as pipeline:
        attached(pipeline)
        await pipeline.on_actions(streamed("ps_1", click("Home", T), user="ann"))
        await pipeline._on_pulled(pulled(click("Home", T), user="bob"))
        found = await sessions_of(pipeline)
    assert found == {"ps_1": ["Home"], cut_name("acme", "bob", T): ["Home"]}


@pytest.mark.parametrize("options", [{"redact": "pii"}, {"keep_payloads": False}])
async def test_redacted_and_unkept_payloads_are_recognised(make, options):
    if "redact" in options:
        pytest.importorskip("phonenumbers")
    home, mail = click("Home", T), click("Mail to ann@example.com", T + 5)
    async with make(**options) as pipeline:
        await pipeline.on_actions(streamed("ps_1", home, mail))
    async with make(**options) as pipeline:
        attached(pipeline)
        await pipeline._on_pulled(pulled(home, mail))
        await pipeline._on_pulled(pulled(home, mail, click("New", T + 60)))
        assert pipeline.ledger.pulled == 1
        assert list(await sessions_of(pipeline)) == ["ps_1"]


async def test_a_redact_that_fails_makes_a_dead_letter_and_not_a_loop(make):
    def fails(payload):
        raise ValueError("no")

    async with make(redact=fails) as pipeline:
        attached(pipeline)
        for _ in range(2):
            await pipeline._on_pulled(pulled(click("Home", T)))
        assert (pipeline.ledger.dead, pipeline.ledger.received) == (1, 1)


async def test_forgotten_people_do_not_come_back(make):
    async with make() as pipeline:
        source = attached(pipeline)
        await pipeline._on_pulled(pulled(click("Home", T)))
        await pipeline.forget(user_id="ann")
        assert not pipeline._run.pulled._pulled
        await pipeline._on_pulled(pulled(click("Home", T)))
        assert pipeline.ledger.refused == 1
        assert source.state == "idle"


async def test_live_shows_pulled_actions_as_old_as_they_are(make, monkeypatch):
    async with make() as pipeline:
        attached(pipeline)
        await pipeline._on_pulled(pulled(click("Home", T), click("Export", T + 50), as_of=T + 70))
        text = pipeline.live.get(user_id="ann").render()
    assert [line[:8] for line in text.splitlines()] == ["70 s ago", "20 s ago"]


async def test_pulled_actions_wait_for_the_stream_that_names_their_session(make):
    async with make() as pipeline:
        source = attached(pipeline)
        assert source.hold_back() == 0.0
        await pipeline.on_actions(streamed("ps_1", click("Home", T)))
        assert source.hold_back() == pulled_module.HOLD_SECONDS


async def test_a_stream_that_is_attached_names_the_sessions_until_it_ends(make):
    async with make() as pipeline, LocalConnector([], product_id="acme") as connector:
        source = attached(pipeline)
        pipeline.attach(AsyncConnectorClient("http://127.0.0.1:9/stream/another"))
        assert source.hold_back() == 0.0
        client = pipeline.attach(AsyncConnectorClient(connector.url))
        assert source.hold_back() == pulled_module.HOLD_SECONDS
        running = client.run_in_background()
        client.stop()
        await running
        assert source.hold_back() == 0.0


async def test_who_asks_the_assistant_is_noted(make):
    async with make() as pipeline:
        source = pipeline.attach(LiveActivitySource("http://127.0.0.1:9", "acme", users="asked"))
        other = pipeline.attach(LiveActivitySource("http://127.0.0.1:9", "other", users="asked"))
        await pipeline.context(user_id="ann")
        await pipeline.context(user_id="bob", product_id="acme")
        await pipeline.on_chat(ChatTurn("acme", "s", "cid", question="Where?", answer="There."))
        assert await source._audience.wanted() == ["ann", "bob", "cid"]
        assert await other._audience.wanted() == ["ann"]


async def test_ingest_runs_several_sources_until_all_are_idle(make):
    recording = [streamed("ps_1", click("Home", T))]
    async with (
        LocalConnector(recording, product_id="acme") as connector,
        make() as pipeline,
    ):
        await connector.send(streamed("ps_2", click("Export", T + 5), user="bob"))
        pull = LiveActivitySource(connector.pull_url, "acme", users={"ann", "bob"}, interval=0.1)
        ledger = await pipeline.ingest(AsyncConnectorClient(connector.url), pull, idle_seconds=3)
        found = await sessions_of(pipeline)
    assert found["ps_1"] == ["Home"]
    assert sorted(title for titles in found.values() for title in titles) == ["Export", "Home"]
    assert ledger.balanced
    assert pull.state == "stopped"


async def test_a_source_that_fails_leaves_the_others_running(make):
    async with (
        LocalConnector(
            [streamed("ps_1", click("Home", T))], product_id="acme", token="key"
        ) as connector,
        make() as pipeline,
    ):
        refused = LiveActivitySource(connector.pull_url, "acme", "wrong", users={"ann"})
        client = AsyncConnectorClient(connector.url, "key")
        with pytest.raises(AuthenticationError):
            await pipeline.ingest(client, refused, idle_seconds=3)
        assert await sessions_of(pipeline) == {"ps_1": ["Home"]}
        assert "the client LiveActivitySource" in pipeline.health.reasons[0]


async def test_a_closed_pipeline_refuses_and_the_source_is_stopped(make):
    async with make() as pipeline:
        source = attached(pipeline)
        running = source.run_in_background()
    assert running.done()
    assert source.state == "stopped"


# What happened: for each person, actions at distinct times.
worlds = st.lists(
    st.tuples(st.sampled_from(["ann", "bob"]), st.integers(0, 3), st.integers(1, 40)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=max(10, settings.default.max_examples // 4))
@given(worlds, st.integers(0, 2**32))
async def test_nothing_is_doubled_or_lost_when_stream_push_and_pull_overlap(
    tmp_path_factory, scripted_embedder, world, seed
):
    journal = tmp_path_factory.mktemp("overlap") / "journal.db"
    chance = random.Random(seed)
    happened, at = [], T
    for n, (user, visit, step) in enumerate(world):
        at += step
        happened.append((user, f"ps_{user}_{visit}", click(f"a{n}", at)))
    deliveries = []
    for session in {session for _, session, _ in happened}:
        own = [one for one in happened if one[1] == session]
        while own:
            size = chance.randint(1, 4)
            batch, own = own[:size], own[size:]
            payload = streamed(session, *(action for _, _, action in batch), user=batch[0][0])
            if chance.random() < 0.7:  # otherwise the stream was cut, and no push came
                deliveries += [("named", payload)] * chance.randint(1, 3)
    for user in {user for user, _, _ in happened}:
        own = [action for who, _, action in happened if who == user]
        for end in sorted(chance.choices(range(1, len(own) + 1), k=3)):
            deliveries.append(("pulled", pulled(*own[:end], user=user)))
    chance.shuffle(deliveries)
    for user in {user for user, _, _ in happened}:
        own = [action for who, _, action in happened if who == user]
        deliveries.append(("pulled", pulled(*own, user=user)))
    pipeline = IngestPipeline(MemoryStore(), scripted_embedder(), journal=journal, batch_window=0.0)
    attached(pipeline)
    async with pipeline:
        for kind, payload in deliveries:
            if kind == "pulled":
                await pipeline._on_pulled(payload)
            else:
                await pipeline.on_actions(payload)
        found = [one.title async for one in pipeline.actions()]
        assert sorted(found) == sorted(action.title for _, _, action in happened)
        owners = {
            (one.title, user)
            for user in ("ann", "bob")
            async for one in pipeline.actions(user_id=user)
        }
        assert owners == {(action.title, user) for user, _, action in happened}
