"""The samples, as analytics tools would report them, are the same sessions as by the stream."""

import random
import re
from collections import defaultdict

import msgspec
import pytest
from outages import Outages

from autoplay_rag import ActionsPayload, IngestPipeline
from autoplay_rag.connector.recording import read_recording
from autoplay_rag.content.render import action_line
from autoplay_rag.devserver import LocalConnector, questions, samples
from autoplay_rag.devserver.analytics import delivery, events_of
from autoplay_rag.devserver.serving import ConnectorServer
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.ingest.events import EventIntake
from autoplay_rag.serve import Keys, create_app
from autoplay_rag.sources.analytics import payloads_of
from autoplay_rag.sources.cutting import DeviceSessions
from autoplay_rag.sources.sessions import is_cut_name
from autoplay_rag.sources.tools import READERS
from autoplay_rag.stores import MemoryStore

PAYLOADS = [one for one in read_recording(samples()) if isinstance(one, ActionsPayload)]
TYPED = re.compile(r'^typed ".*" into ("[^"]*")$')
SELECTED = re.compile(r'^selected ".*" in ("[^"]*")(?: picker)?$')
UNKNOWN_ROLE = re.compile(r" (?:tile|card|entry|table|picker|column)$")


def carried(line: str) -> str:
    """What of a line no analytics tool leaves out: not what was typed, selected or chosen."""
    line = SELECTED.sub(r"selected in \1", TYPED.sub(r"typed into \1", line))
    line = line.replace("selected an option in ", "selected in ").removesuffix(" field")
    if line.startswith(("chose the file", "chose a file")):
        return "chose a file"
    return UNKNOWN_ROLE.sub("", line)


def lines(payloads):
    """The lines of each session, by time."""
    found = defaultdict(list)
    for payload in payloads:
        for action in payload.actions:
            found[payload.session_id].append((action.timestamp_start, carried(action_line(action))))
    return {session: sorted(some) for session, some in found.items() if session is not None}


@pytest.mark.parametrize("shuffled", [False, True])
async def test_posthog_gives_the_sessions_of_the_stream(shuffled, embedder, tmp_path):
    """Also with duplicates, in another order, and divided into other requests."""
    events = [event for payload in PAYLOADS for event in events_of(payload, "posthog")]
    requests = [events[n : n + 7] for n in range(0, len(events), 7)]
    if shuffled:
        source = random.Random(1)
        again = source.sample(events, len(events) // 3)
        requests += [again[n : n + 11] for n in range(0, len(again), 11)]  # retries
        source.shuffle(requests)
        for request in requests:
            source.shuffle(request)
    async with IngestPipeline(MemoryStore(), embedder, journal=tmp_path / "journal.db") as pipeline:
        intake = EventIntake(pipeline)
        for request in requests:
            found = READERS["posthog"](delivery(request, "posthog"))
            assert (found.bad, found.skipped) == (0, 0)
            await intake.take(found.events, "northwind")
        stored = [action async for action in pipeline.actions()]
        assert pipeline.ledger.received - pipeline.ledger.duplicate == len(events)
        sessions = await pipeline.sessions(limit=200)
    by_session = defaultdict(list)
    for event in stored:
        by_session[event.session_id].append((event.started_at, carried(action_line(event))))
    found = {session: sorted(some) for session, some in by_session.items() if session}
    assert {s: some for s, some in found.items() if not is_cut_name(s)} == lines(PAYLOADS)
    people = {payload.session_id: payload.user_id for payload in PAYLOADS if payload.user_id}
    assert {one.session_id: one.user_id for one in sessions if one.user_id is not None} == people


@pytest.mark.parametrize("tool", ["amplitude", "segment"])
def test_the_sessions_of_other_tools_are_the_same_with_other_names(tool):
    sessions = DeviceSessions()
    names = defaultdict(set)
    for payload in PAYLOADS:
        found = READERS[tool](delivery(events_of(payload, tool), tool)).events
        made = payloads_of(found, "northwind", sessions.name)
        assert [one.actions[0].timestamp_start for one in made] == [
            action.timestamp_start for action in payload.actions
        ]
        if payload.session_id is not None:
            names[payload.session_id].update(one.session_id for one in made)
    assert {len(some) for some in names.values()} == {1}
    assert len(set.union(*names.values())) == len(names)


@pytest.mark.slow
async def test_over_http_with_outages(embedder, tmp_path, monkeypatch):
    """Requests are refused, answers are cut, lost or late: the tool then posts the events again."""
    monkeypatch.setattr("autoplay_rag.devserver.posting._BACKOFF_S", 0.0)
    monkeypatch.setattr("autoplay_rag.devserver.posting._ATTEMPTS", 100)
    monkeypatch.setattr("autoplay_rag.devserver.posting._TIMEOUT_S", 0.5)
    # One chunk for each session, so that texts can be compared.
    options = {"batch_window": 600.0, "max_batch_actions": 1000}
    found, texts = defaultdict(list), {}
    async with IngestPipeline(
        MemoryStore(), embedder, journal=tmp_path / "posthog.db", **options
    ) as pipeline:
        keys = Keys(ingest="k" * 16)
        app = Outages(create_app(pipeline, keys=keys, webhook_secret="whsec"), seed=3)
        server = ConnectorServer(app)
        url = (
            f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}/v1/webhooks/northwind/posthog"
        )
        try:
            posted = await LocalConnector().post_webhooks(url, secret="whsec", batch=2)
        finally:
            await server.aclose()
        async for event in pipeline.actions():
            found[event.session_id].append((event.started_at, carried(action_line(event))))
        assert pipeline.ledger.duplicate > 0
        assert pipeline.ledger.received - pipeline.ledger.duplicate == posted
        texts["posthog"] = await carried_texts(pipeline)
    assert app.counts.keys() == {"passed", "refused", "cut", "lost", "silent"}
    named = {session: sorted(some) for session, some in found.items() if not is_cut_name(session)}
    assert named == lines(PAYLOADS)
    async with IngestPipeline(
        MemoryStore(), embedder, journal=tmp_path / "stream.db", **options
    ) as pipeline:
        for payload in PAYLOADS:
            await pipeline.accept(payload)
        texts["stream"] = await carried_texts(pipeline)
    assert texts["posthog"] == texts["stream"]
    assert len(texts["stream"]) >= 60


async def carried_texts(pipeline):
    """The lines of each session's chunk, without what no analytics tool carries.

    That is, besides the values that `carried` leaves out: which file was chosen, because a text has
    no field without a name; and the second of two lines that only differ by such a value.
    """
    await pipeline.drain()
    found = {}
    async for chunks in pipeline.store.scan():
        for chunk in chunks:
            session = chunk.metadata.get("session_id")
            if session and not is_cut_name(session):
                lines = dict.fromkeys(carried(line.rstrip(",")) for line in chunk.text.split("\n"))
                assert session not in found, "one chunk for each session"
                found[session] = [line for line in lines if line != "chose a file"]
    return found


def without_values(payload):
    """The payload as the stream would send it if it left out what PostHog leaves out."""
    found = READERS["posthog"](delivery(events_of(payload, "posthog"), "posthog"))
    actions = [
        msgspec.structs.replace(
            action, type=event.did.type, title=event.did.title, description=event.did.description
        )
        for action, event in zip(payload.actions, found.events, strict=True)
    ]
    return msgspec.structs.replace(payload, actions=actions)


@pytest.mark.slow
async def test_searches_find_the_same_sessions(tmp_path):
    answered = []
    for name in ("stream", "posthog"):
        async with IngestPipeline(
            MemoryStore(), LocalEmbedder(), journal=tmp_path / f"{name}.db", batch_window=60
        ) as pipeline:
            intake = EventIntake(pipeline)
            for payload in PAYLOADS:
                if name == "stream":
                    await pipeline.accept(without_values(payload))
                else:
                    body = delivery(events_of(payload, "posthog"), "posthog")
                    await intake.take(READERS["posthog"](body).events, "northwind")
            await pipeline.drain()
            answered.append(
                {
                    one.question
                    for one in questions()
                    if one.session_id
                    in [hit.session_id for hit in await pipeline.search_sessions(one.question, k=5)]
                }
            )
    assert answered[0] == answered[1]
    assert len(answered[1]) >= 55, "of 62; the others ask for what was typed or selected"
