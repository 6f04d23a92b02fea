"""The effect of signals that end a command."""

import asyncio
import signal

import pytest

from autoplay_rag.cli.interrupts import Interrupts


@pytest.fixture
def hangup(monkeypatch):
    """Let a test set the handler of SIGHUP, and restore it afterwards."""
    monkeypatch.setattr("os.isatty", lambda _: False)  # the tests' terminal must not close
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


async def test_hangups_are_one_interruption_however_many_come(hangup):
    hangup(signal.SIG_DFL)
    came = asyncio.Event()
    with Interrupts() as interrupts, interrupts.calling(came.set):
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            await came.wait()
        assert interrupts.count == 1
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


async def test_a_hangup_that_was_ignored_stays_ignored(hangup):
    hangup(signal.SIG_IGN)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGHUP)
        assert interrupts.count == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
