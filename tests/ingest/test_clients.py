"""Attached clients: what they hand over, how their end is noticed, and how they are closed."""

from __future__ import annotations

import asyncio
import threading

import pytest

from autoplay_rag import AsyncConnectorClient, ConnectorClient
from autoplay_rag.errors import AuthenticationError
from autoplay_rag.ingest.clients import Clients
from autoplay_rag.stores import MemoryStore

pytestmark = pytest.mark.timeout(40)


class Client:
    """The minimum that can be attached; records what is done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.callbacks: list[object] = []

    def on_actions(self, fn) -> None:
        self.callbacks.append(fn)

    def on_summary(self, fn) -> None:
        self.callbacks.append(fn)

    def stop(self) -> None:
        self.done.append("stop")


class AsyncClient(Client):
    async def __aexit__(self, *_) -> None:
        self.done.append("aexit")


class BlockingClient(Client):
    def __init__(self) -> None:
        super().__init__()
        self.thread: threading.Thread | None = None

    def __exit__(self, *_) -> None:
        self.thread = threading.current_thread()
        self.done.append("exit")


class FailingToStop(AsyncClient):
    def stop(self) -> None:
        raise RuntimeError("cannot be stopped")


class FailingToLeave(AsyncClient):
    async def __aexit__(self, *_) -> None:
        raise RuntimeError("cannot be left")


class FailingToExit(Client):
    def __exit__(self, *_) -> None:
        raise RuntimeError("cannot be left")


class Endless(AsyncClient):
    async def __aexit__(self, *_) -> None:
        await asyncio.Event().wait()


def attached(*clients) -> Clients:
    found = Clients()
    for client in clients:
        found.attach(client, print, repr)
    return found


# -- attach and leave -------------------------------------------------------------------------


def test_callbacks_are_registered_once():
    client = Client()
    clients = attached(client)
    assert clients.attach(client, print, repr) is client
    assert client.callbacks == [print, repr]


async def test_all_are_stopped_before_the_first_is_waited_for():
    done: list[str] = []
    first, second, third = AsyncClient(), BlockingClient(), Client()
    for client in (first, second, third):
        client.done = done
    await attached(first, second, third).leave(10.0)
    assert done[:3] == ["stop"] * 3
    assert sorted(done[3:]) == ["aexit", "exit"]
    assert second.thread is not threading.current_thread()  # it may wait for this loop


@pytest.mark.parametrize("failing", [FailingToStop, FailingToLeave, FailingToExit])
async def test_a_client_that_fails_does_not_prevent_closing_others(failing, caplog):
    other = AsyncClient()
    await attached(failing(), other).leave(10.0)
    assert other.done == ["stop", "aexit"]
    assert "RuntimeError" in caplog.text


async def test_the_wait_for_a_client_that_does_not_end_is_bounded(caplog):
    other = AsyncClient()
    await attached(Endless(), other).leave(0.05)
    assert other.done == ["stop", "aexit"]
    assert "a client has not stopped within 0.05 s" in caplog.text


async def test_closing_without_clients_works():
    await Clients().leave(0.0)


# -- health -----------------------------------------------------------------------------------


class Stateful(Client):
    state = "failed"
    last_error: object = None

    def __repr__(self) -> str:
        return "<the client>"


def test_a_client_that_failed_is_a_problem_with_its_reason():
    client = Stateful()
    clients = attached(Client(), client)
    assert clients.problems == ["the client <the client> has ended: it failed"]
    client.last_error = ValueError("no such\nproduct")
    assert clients.problems == ["the client <the client> has ended: ValueError: no such product"]
    client.state = "connected"
    assert clients.problems == []


def test_a_client_that_is_refused_is_a_problem_until_it_is_connected_or_stopped():
    client = Stateful()
    client.refusal, client.url = ValueError("401: the token\nis wrong"), "https://a.test/stream/x"
    clients = attached(client)
    refused = "the source https://a.test/stream/x refuses: ValueError: 401: the token is wrong"
    for state, problems in (
        ("waiting", [refused]),
        ("connecting", [refused]),
        ("stopping", []),
        ("stopped", []),
        ("failed", ["the client <the client> has ended: it failed"]),
    ):
        client.state = state
        assert clients.problems == problems
    client.state, client.refusal = "connected", None
    assert clients.problems == []


def test_a_client_that_does_not_tell_its_state_is_a_problem_and_no_failure():
    class Broken(Client):
        @property
        def state(self):
            raise RuntimeError("a bug")

    assert attached(Broken()).problems == [
        "the state of a client cannot be read: RuntimeError: a bug"
    ]


# -- in a pipeline ----------------------------------------------------------------------------


class ClosedStore(MemoryStore):
    closed = 0

    async def aclose(self) -> None:
        self.closed += 1
        await super().aclose()


@pytest.mark.parametrize("failing", [FailingToStop, FailingToLeave, FailingToExit, Endless])
async def test_closing_closes_store_and_journal_although_a_client_fails(
    make_pipeline, make_actions, tmp_path, failing
):
    store, journal = ClosedStore(), tmp_path / "j.db"
    async with make_pipeline(store, journal=journal, drain_timeout=0.5) as pipeline:
        pipeline.attach(failing())
        await pipeline.on_actions(make_actions("s", "a"))
    assert store.closed == 1
    async with make_pipeline(journal=journal) as again:  # no lock remains
        assert again.ledger.received == 1


async def test_closing_closes_store_and_journal_although_draining_raises(
    make_pipeline, make_actions, tmp_path, monkeypatch, caplog
):
    async def broken(_timeout):
        raise RuntimeError("a bug")

    store, journal = ClosedStore(), tmp_path / "j.db"
    async with make_pipeline(store, journal=journal) as pipeline:
        monkeypatch.setattr(pipeline._run.draining, "drain", broken)
        await pipeline.on_actions(make_actions("s", "a"))
    assert "draining failed" in caplog.text
    assert store.closed == 1
    async with make_pipeline(journal=journal) as again:
        await again.drain()
        assert again.ledger.stored == 1


async def test_closing_closes_the_journal_although_the_store_fails_at_its_last_note(
    make_pipeline, make_actions, tmp_path
):
    class Forgetful(ClosedStore):
        notes = 0

        async def save_identity(self, identity):
            self.notes += 1
            if self.notes == 2:
                raise ValueError("not now")
            await super().save_identity(identity)

    store, journal = Forgetful(), tmp_path / "j.db"
    async with make_pipeline(store, journal=journal) as pipeline:
        await pipeline.on_actions(make_actions("s", "a"))
    assert (store.notes, store.closed) == (2, 1)
    async with make_pipeline(store, journal=journal) as again:
        assert again.ledger.stored == 1


async def test_closing_closes_the_journal_although_the_store_cannot_be_closed(
    make_pipeline, make_actions, tmp_path
):
    class Stuck(MemoryStore):
        async def aclose(self) -> None:
            raise RuntimeError("cannot be closed")

    journal = tmp_path / "j.db"
    pipeline = make_pipeline(Stuck(), journal=journal)
    await pipeline.start()
    await pipeline.on_actions(make_actions("s", "a"))
    with pytest.raises(RuntimeError, match="cannot be closed"):
        await pipeline.aclose()
    async with make_pipeline(journal=journal) as again:
        assert again.ledger.received == 1


async def test_two_that_close_at_once_both_wait_for_the_end(make_pipeline, make_actions, tmp_path):
    store, journal = ClosedStore(), tmp_path / "j.db"
    pipeline = make_pipeline(store, journal=journal, batch_window=60.0)
    await pipeline.start()
    await pipeline.on_actions(make_actions("s", "a"))
    await asyncio.gather(pipeline.aclose(), pipeline.aclose())
    assert pipeline.ledger.stored == 1
    async with make_pipeline(store, journal=journal) as again:
        assert again.ledger.stored == 1


async def test_the_blocking_client_hands_over_through_the_pipelines_loop(
    make_pipeline, make_payload, local_connector, eventually, caplog
):
    payloads = [make_payload("Clicked", session_id=f"s{n % 3}") for n in range(60)]
    connector = local_connector([*payloads, make_payload(summary="Clicked.", session_id="s0")])
    async with make_pipeline() as pipeline:
        client = pipeline.attach(ConnectorClient(connector.url))
        client.run_in_background()
        await eventually(lambda: pipeline.ledger.received == 61)
        await pipeline.drain()
        assert pipeline.ledger.stored == 61
        assert client.counts.failed == 0
    assert client.state == "stopped"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_closing_while_the_blocking_client_calls_back_does_not_deadlock(
    make_pipeline, make_payload, local_connector, eventually
):
    connector = local_connector([make_payload("Clicked", session_id="s") for _ in range(300)])
    async with make_pipeline(drain_timeout=20.0) as pipeline:
        client = pipeline.attach(ConnectorClient(connector.url))
        client.run_in_background()
        await eventually(lambda: client.counts.received == 300)
        # Most payloads wait for their callbacks now, which wait for this loop.
    assert client.state == "stopped"
    assert (client.counts.delivered, client.counts.failed) == (300, 0)
    assert pipeline.ledger.received == pipeline.ledger.stored == 300


async def test_a_client_ended_by_its_token_is_part_of_health_in_any_thread(
    make_pipeline, local_connector, eventually
):
    connector = local_connector([], token="right")
    async with make_pipeline() as pipeline:
        client = pipeline.attach(AsyncConnectorClient(connector.url, token="SECRET-token"))
        assert pipeline.health.state == "ok"
        task = client.run_in_background()
        await asyncio.wait([task])
        assert isinstance(task.exception(), AuthenticationError)
        health = await asyncio.to_thread(lambda: pipeline.health)
        assert health.state == "degraded"
        (reason,) = health.reasons
        assert connector.url in reason
        assert "AuthenticationError" in reason
        assert "SECRET" not in str(health)
        # The pipeline continues to store what other clients hand over.
        assert pipeline.ledger.balanced


async def test_a_failed_client_is_a_problem_until_another_one_is_run(
    make_pipeline, make_payload, local_connector
):
    refused = local_connector([], token="right")
    connector = local_connector([make_payload("Clicked Export")])
    async with make_pipeline() as pipeline:
        with pytest.raises(AuthenticationError):
            await pipeline.ingest(AsyncConnectorClient(refused.url, token="wrong"))
        assert pipeline.health.state == "degraded"
        ledger = await pipeline.ingest(AsyncConnectorClient(connector.url), idle_seconds=2.0)
        assert ledger.stored == 1
        assert pipeline.health.state == "ok"


async def test_a_client_that_is_run_again_hands_everything_over_once(
    make_pipeline, make_payload, local_connector
):
    connector = local_connector([make_payload("Clicked Export")])
    async with make_pipeline() as pipeline:
        client = AsyncConnectorClient(connector.url)
        await pipeline.ingest(client, idle_seconds=2.0)
        await pipeline.ingest(AsyncConnectorClient(connector.url), idle_seconds=2.0)
        ledger = await pipeline.ingest(client, idle_seconds=2.0)
        assert (ledger.received, ledger.duplicate) == (3, 2)
