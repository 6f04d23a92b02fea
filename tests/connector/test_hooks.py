"""Slow hooks while connections open and close."""

import asyncio

import pytest

from autoplay_rag.connector import hooks
from autoplay_rag.connector.callbacks import Callback, CallbackThreads
from autoplay_rag.connector.hooks import ConnectionHooks


class Hook:
    """Two hooks that record their calls; the first call waits until the test releases it."""

    def __init__(self):
        self.calls = []
        self.release = asyncio.Event()
        threads = CallbackThreads()
        self.hooks = ConnectionHooks(
            Callback(self._on_connect, threads), Callback(self._on_disconnect, threads)
        )

    async def _on_connect(self):
        self.calls.append("on")
        await self.release.wait()

    async def _on_disconnect(self):
        self.calls.append("off")


@pytest.fixture
async def hook():
    return Hook()


async def test_connections_during_a_running_hook_are_coalesced(hook):
    gates = []
    for _ in range(1000):
        gates.append(hook.hooks.connected())
        await asyncio.sleep(0)
        hook.hooks.lost()
    assert len(hook.hooks._waiting) == 3
    assert hook.calls == ["on"]
    assert not any(gate.is_set() for gate in gates)  # the first hook may still reset shared state
    hook.release.set()
    await hook.hooks.join(5)
    assert hook.calls == ["on", "off", "on", "off"]
    assert all(gate.is_set() for gate in gates)


async def test_hooks_that_keep_up_are_called_for_each_connection(hook):
    hook.release.set()
    for _ in range(3):
        gate = hook.hooks.connected()
        await gate.wait()
        hook.hooks.lost()
        await hook.hooks.join(5)
    assert hook.calls == ["on", "off"] * 3


@pytest.mark.parametrize("which", ["connected", "lost"])
async def test_with_one_hook_at_most_one_call_is_pending(which):
    calls, release = [], asyncio.Event()

    async def work():
        calls.append(which)
        await release.wait()

    callback = Callback(work, CallbackThreads())
    made = ConnectionHooks(*((callback, None) if which == "connected" else (None, callback)))
    for _ in range(10):
        made.connected()
        made.lost()
        await asyncio.sleep(0)
    release.set()
    await made.join(5)
    assert calls == [which] * 2


async def test_payloads_wait_so_long_from_their_connection_on(hook, monkeypatch):
    monkeypatch.setattr(hooks, "_LONGEST", 0.01)
    first = hook.hooks.connected()
    await asyncio.sleep(0)
    monkeypatch.setattr(hooks, "_LONGEST", 3600.0)
    never = hook.hooks.connected()
    async with asyncio.timeout(5):
        await first.wait()
    assert not never.is_set()
    await hook.hooks.cancel()


async def test_a_hook_that_is_late_for_the_end_is_cancelled(hook, caplog):
    hook.hooks.connected()
    hook.hooks.lost()
    await asyncio.sleep(0)
    await hook.hooks.join(0)
    assert hook.calls == ["on"]
    assert hook.hooks._worker.cancelled()
    assert "is cancelled" in caplog.text


async def test_a_hook_that_will_not_end_is_left_after_a_grace(hook, monkeypatch, caplog):
    monkeypatch.setattr(hooks, "_GRACE", 0.01)
    release = asyncio.Event()

    async def stubborn():
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    made = ConnectionHooks(Callback(stubborn, CallbackThreads()), None)
    made.connected()
    await asyncio.sleep(0)
    await made.join(0)
    assert "does not end although cancelled" in caplog.text
    release.set()
    await asyncio.wait({made._worker})


@pytest.mark.parametrize("error", [asyncio.CancelledError, ValueError, pytest.fail.Exception])
async def test_a_hook_that_ends_badly_does_so_alone(error, caplog):
    calls = []

    async def bad():
        raise error

    async def good():
        calls.append("off")

    made = ConnectionHooks(*(Callback(fn, CallbackThreads()) for fn in (bad, good)))
    gate = made.connected()
    made.lost()
    await made.join(5)
    assert gate.is_set()
    assert calls == ["off"]
    assert "on_connect raised" in caplog.text


async def test_drain_timeout_holds_for_hooks_too(server, connect, event, until):
    server.script(server.stream(event("s1")))
    started = asyncio.Event()

    async def hang():
        started.set()
        await asyncio.Event().wait()

    async def work(payload):
        raise AssertionError("on_connect has not ended")

    client = connect(on_connect=hang, drain_timeout=0.05).on_actions(work)
    task = client.run_in_background()
    await started.wait()
    await until(lambda: client.pending == 1)
    client.stop()
    async with asyncio.timeout(5):
        await task
    assert (client.state, client.dropped_count) == ("stopped", 1)


async def test_drain_timeout_holds_for_the_hooks_of_a_stream_too(server, connect, event):
    server.script(server.stream(event("s1")))

    async def hang():
        await asyncio.Event().wait()

    client = connect(on_connect=hang, drain_timeout=0.05)
    async with asyncio.timeout(5):
        assert [p.session_id async for p in client.stream(limit=1)] == ["s1"]
