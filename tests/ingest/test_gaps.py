"""A stream that was cut: what it missed is pulled, once, and into the right sessions."""

import asyncio
import time
from collections import Counter

import pytest

from autoplay_rag import ActionsPayload, AsyncConnectorClient, SlimAction
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.ingest import gaps as gaps_module
from autoplay_rag.journal.finder import AsyncTimeline
from autoplay_rag.sources import LiveActivitySource


class Proxy:
    """Passes TCP connections on, until it is cut."""

    def __init__(self, port):
        self.target = port
        self.is_cut = False
        self.writers = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.cut()
        self.server.close()
        await self.server.wait_closed()

    def cut(self):
        self.is_cut = True
        for writer in self.writers:
            writer.transport.abort()

    async def serve(self, reader, writer):
        if self.is_cut:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        ends = {writer, back}
        self.writers |= ends

        async def copy(source, target):
            try:
                while part := await source.read(65536):
                    target.write(part)
                    await target.drain()
            except OSError:
                pass
            finally:
                target.close()

        await asyncio.gather(copy(reader, back), copy(there, writer))
        self.writers -= ends


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(gaps_module, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(gaps_module, "_SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(gaps_module, "_LEAST_PAUSE", 0.02)


def clicks(user, *titles, at, session=None, step=1.0):
    actions = [
        SlimAction(
            title, f"User clicked {title}", "https://a.test/p", n, "click", at + n * step,
            at + n * step,
        )
        for n, title in enumerate(titles)
    ]  # fmt: skip
    session = session or f"ps_{user}"
    return ActionsPayload("acme", session, user, actions=actions, forwarded_at=at + 10)


def client_of(proxy):
    url = f"http://127.0.0.1:{proxy.port}/stream/acme"
    return AsyncConnectorClient(url, initial_backoff_s=0.02, max_backoff_s=0.05)


def reasons(pipeline):
    return " ".join(pipeline.health.reasons)


async def titles(pipeline, **wanted):
    return Counter([one.title async for one in pipeline.actions(**wanted)])


async def test_everything_of_the_last_fifty_actions_is_there_afterwards_once(
    make_pipeline, tmp_path, eventually, caplog
):
    now = time.time()
    users = [f"u{n}" for n in range(12)]
    async with (
        LocalConnector([], product_id="acme") as connector,
        Proxy(int(connector.pull_url.rsplit(":", 1)[1])) as proxy,
        make_pipeline(journal=tmp_path / "journal.db") as pipeline,
    ):
        client = pipeline.attach(client_of(proxy))
        pipeline.attach(LiveActivitySource(connector.pull_url, "acme", users=()))
        client.run_in_background()
        await connector.wait_subscribers()
        for user in users:
            await connector.send(clicks(user, f"{user} before", at=now - 900))
        await eventually(lambda: pipeline.ledger.received == len(users))
        gaps = pipeline._run._gaps
        await eventually(lambda: gaps._clients and not gaps._gaps)  # the start is a connect, too
        proxy.cut()
        await connector.wait_subscribers(0)
        await eventually(lambda: client.state != "connected")
        for watched in gaps._clients.values():
            watched.alive_at = now - 750
        # Ten minutes pass: from two actions of the first user to 68 of the last one.
        for n, user in enumerate(users):
            missed = [f"{user} missed {k}" for k in range(2 + 6 * n)]
            await connector.send(clicks(user, *missed, at=now - 700, step=600 / 70))
        proxy.is_cut = False
        await connector.wait_subscribers()
        expected = [min(50, 2 + 6 * n) for n in range(12)]
        await eventually(lambda: pipeline.ledger.recovered == sum(expected))
        await connector.send(clicks("u0", "u0 after", at=now - 10))
        await eventually(lambda: pipeline.ledger.received > 12 + 12)
        found = await titles(pipeline)
        for n, user in enumerate(users):
            own = [f"{user} missed {k}" for k in range(2 + 6 * n)][-50:]
            assert all(found[title] == 1 for title in [f"{user} before", *own])
            sessions = await pipeline.sessions(user)
            assert [one.session_id for one in sessions] == [f"ps_{user}"]
        assert sum(found.values()) == 12 + sum(expected) + 1
        # Three did more than fifty, and one exactly fifty: there may have been more.
        assert pipeline.ledger.beyond_recovery == 4
        assert pipeline.ledger.balanced
        assert pipeline.health.state == "ok"
    assert "4 users did 50 actions or more" in caplog.text
    assert not any(user in caplog.text for user in ("u0", "u11"))


async def test_a_second_gap_and_a_repeated_push_double_nothing(make_pipeline, tmp_path, eventually):
    now = time.time()
    async with (
        LocalConnector([], product_id="acme") as connector,
        Proxy(int(connector.pull_url.rsplit(":", 1)[1])) as proxy,
        make_pipeline(journal=tmp_path / "journal.db") as pipeline,
    ):
        client = pipeline.attach(client_of(proxy))
        pipeline.attach(LiveActivitySource(connector.pull_url, "acme", users=()))
        client.run_in_background()
        await connector.wait_subscribers()
        await connector.send(clicks("ann", "first", at=now - 900))
        await eventually(lambda: pipeline.ledger.received == 1)
        for n in (1, 2):
            proxy.cut()
            await connector.wait_subscribers(0)
            missed = clicks("ann", f"missed {n}", f"too {n}", at=now - 900 + 60 * n)
            await connector.send(missed)
            proxy.is_cut = False
            await connector.wait_subscribers()
            await eventually(lambda n=n: pipeline.ledger.recovered == 2 * n)
            assert await pipeline.accept(missed) == "duplicate"  # the connector pushes as well
        assert set((await titles(pipeline)).values()) == {1}
        assert [one.session_id for one in await pipeline.sessions("ann")] == ["ps_ann"]


async def test_what_happened_while_the_process_was_down_is_pulled(
    make_pipeline, tmp_path, eventually
):
    now = time.time()
    async with LocalConnector([], product_id="acme") as connector:
        async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
            await pipeline.on_actions(clicks("ann", "before", at=now - 900))
        await connector.send(clicks("ann", "missed", at=now - 600))
        async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
            pipeline.attach(LiveActivitySource(connector.pull_url, "acme", users=()))
            client = pipeline.attach(AsyncConnectorClient(connector.url))
            client.run_in_background()
            await eventually(lambda: pipeline.ledger.recovered == 1)
            assert set(await titles(pipeline, session_id="ps_ann")) == {"before", "missed"}


async def test_young_actions_wait_for_the_stream_and_are_asked_for_again(
    make_pipeline, tmp_path, eventually
):
    now = time.time()
    async with LocalConnector([], product_id="acme") as connector:
        async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
            await pipeline.on_actions(clicks("ann", "before", at=now - 900))
        await connector.send(clicks("ann", "old", at=now - 600))
        await connector.send(clicks("ann", "young", at=time.time() - 0.1))
        async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
            pipeline._run.pulled.hold = 1.5
            pipeline.attach(LiveActivitySource(connector.pull_url, "acme", users=()))
            pipeline.attach(AsyncConnectorClient(connector.url)).run_in_background()
            await eventually(lambda: pipeline.ledger.recovered == 1)
            assert "young" not in await titles(pipeline)
            await eventually(lambda: pipeline.ledger.recovered == 2)
            assert set((await titles(pipeline)).values()) == {1}


async def test_an_outage_of_the_endpoint_is_waited_for_and_said(
    make_pipeline, tmp_path, eventually
):
    now = time.time()
    async with (
        LocalConnector([], product_id="acme") as connector,
        Proxy(int(connector.pull_url.rsplit(":", 1)[1])) as pulls,
    ):
        async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
            await pipeline.on_actions(clicks("ann", "before", at=now - 900))
        await connector.send(clicks("ann", "missed", at=now - 600))
        pulls.cut()
        async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
            pipeline.attach(LiveActivitySource(f"http://127.0.0.1:{pulls.port}", "acme", users=()))
            pipeline.attach(AsyncConnectorClient(connector.url)).run_in_background()
            await eventually(lambda: "gap of a stream is not filled yet" in reasons(pipeline))
            pulls.is_cut = False
            await eventually(lambda: pipeline.ledger.recovered == 1)
            await eventually(lambda: "gap" not in reasons(pipeline))


async def test_a_refusal_is_said_and_the_stream_goes_on(
    make_pipeline, tmp_path, eventually, caplog
):
    now = time.time()
    async with LocalConnector([], product_id="acme", token="key") as connector:
        async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
            await pipeline.on_actions(clicks("ann", "before", at=now - 900))
        async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
            pipeline.attach(LiveActivitySource(connector.pull_url, "acme", "wrong", users=()))
            pipeline.attach(AsyncConnectorClient(connector.url, "key")).run_in_background()
            await eventually(lambda: "cannot be filled" in reasons(pipeline))
            assert "401" in reasons(pipeline)
            await connector.wait_subscribers()
            await connector.send(clicks("ann", "after", at=now))
            await eventually(lambda: pipeline.ledger.received == 2)
    assert "wrong" not in caplog.text.replace("missing, wrong, or not good", "")


async def test_a_gap_of_more_than_a_day_is_said(
    make_pipeline, tmp_path, eventually, caplog, monkeypatch
):
    now = time.time()

    async def long_ago(timeline):
        return now - 100_000

    monkeypatch.setattr(AsyncTimeline, "last_arrival", long_ago)
    async with LocalConnector([], product_id="acme") as connector:
        async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
            await pipeline.on_actions(clicks("ann", "before", at=now - 100_000))
        await connector.send(clicks("ann", "missed", at=now - 600))
        async with make_pipeline(journal=tmp_path / "journal.db") as pipeline:
            pipeline.attach(LiveActivitySource(connector.pull_url, "acme", users=()))
            pipeline.attach(AsyncConnectorClient(connector.url)).run_in_background()
            await eventually(lambda: pipeline.ledger.recovered == 1)
            await eventually(lambda: "more than 24 hours ago" in caplog.text)
            # Three quarters of a day are between them: another session.
            assert len(await pipeline.sessions("ann")) == 2


async def test_without_a_pull_source_a_gap_is_left(make_pipeline, tmp_path, eventually):
    async with (
        LocalConnector([], product_id="acme") as connector,
        make_pipeline(journal=tmp_path / "journal.db") as pipeline,
    ):
        client = pipeline.attach(AsyncConnectorClient(connector.url))
        pipeline.attach(LiveActivitySource(connector.pull_url, "another", users=()))
        client.run_in_background()
        await connector.wait_subscribers()
        await eventually(lambda: client.state == "connected")
        assert pipeline._run._gaps._gaps == {}
