"""The progress display of an ingest, without running one."""

import asyncio
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoplay_rag import AsyncConnectorClient, IngestPipeline
from autoplay_rag.cli import progress
from autoplay_rag.cli.console import log_to_stderr
from autoplay_rag.cli.progress import Meter, counts
from autoplay_rag.embedders import LocalEmbedder
from autoplay_rag.journal.ledger import Ledger
from autoplay_rag.stores import MemoryStore


def test_a_meter_forgets_what_was_long_ago():
    meter = Meter(5.0)
    assert meter.rate(0.0, 0) == 0.0
    assert meter.rate(1.0, 100) == 100.0
    assert meter.rate(7.0, 100) == 0.0


@pytest.mark.parametrize("every", [5.0, 5.01, 60.0])
def test_a_meter_that_is_rarely_asked_tells_the_rate_since_it_was_last_asked(every):
    meter = Meter(5.0)
    shown = [meter.rate(n * every, count) for n, count in enumerate((0, 600, 900, 900))]
    assert shown == pytest.approx([0.0, 600 / every, 300 / every, 0.0])


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=30))
def test_a_meter_of_one_look_a_second_is_the_mean_of_its_span(steps):
    meter = Meter(5.0)
    total, shown = 0, 0.0
    for second, step in enumerate(steps):
        total += step
        shown = meter.rate(float(second), total)
    recent = steps[1:][-5:]
    assert abs(shown - sum(recent) / len(recent)) < 1e-9


def test_what_is_lost_or_dead_is_always_shown_and_what_is_zero_is_not():
    usual = counts(Ledger(received=1))
    assert usual == "received 1 · pending 0 · stored 0"
    assert "overflow 3" in counts(Ledger(overflow=3))
    assert "dead 2" in counts(Ledger(dead=2))


async def test_without_a_terminal_each_line_has_its_time(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PLAIN_EVERY_S", 0.01)
    for name, value in (("handlers", []), ("level", logging.WARNING)):
        monkeypatch.setattr(logging.getLogger(), name, value)
    monkeypatch.setattr(logging.getLogger("autoplay_rag.cli.console"), "level", logging.NOTSET)
    log_to_stderr(verbose=False)
    clients = [AsyncConnectorClient(f"http://c.example/stream/{n}") for n in range(2)]
    async with IngestPipeline(MemoryStore(), LocalEmbedder()) as pipeline:
        async with progress.showing_progress(pipeline, clients[:1]):
            await asyncio.sleep(0.05)
        async with progress.showing_progress(pipeline, clients):
            await asyncio.sleep(0.05)
    lines = capsys.readouterr().err.splitlines()
    form = re.compile(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO (idle|0 of 2 streams connected) · received 0 · "
        r"pending 0 · stored 0 · 0 events/s · lag 0.0 s"
    )
    assert all(form.fullmatch(line) for line in lines)
    assert {form.fullmatch(line)[1] for line in lines} == {"idle", "0 of 2 streams connected"}


def test_one_line_a_minute():
    assert progress._PLAIN_EVERY_S == 60.0
