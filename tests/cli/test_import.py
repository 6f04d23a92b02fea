"""`autoplay-rag import`."""

import gzip
import json

import pytest

from autoplay_rag import ActionsPayload, IngestPipeline, SlimAction
from autoplay_rag.connector.encodings import open_lines
from autoplay_rag.connector.recording import encode_line, read_recording
from autoplay_rag.devserver import samples
from autoplay_rag.devserver.analytics import events_of
from autoplay_rag.errors import DrainTimeoutError, RecordingError
from autoplay_rag.ingest.importing import Imported, import_records
from autoplay_rag.sources.records import read_records
from autoplay_rag.sources.tools import READERS
from autoplay_rag.stores import MemoryStore

VISIT = ActionsPayload(
    "acme",
    "s1",
    "ann",
    actions=[
        SlimAction("", 'User visited the "Reports" page', "https://a.test/reports", 0, "pageview", 1772524874.0, 0, "https://a.test/reports"),
        SlimAction("", 'User clicked the "Export" button', "https://a.test/reports", 1, "click", 1772524884.0, 0, "https://a.test/reports"),
    ],
)  # fmt: skip


def lines(tool, payload=VISIT):
    return [json.dumps(event).encode() for event in events_of(payload, tool)]


@pytest.mark.slow
@pytest.mark.parametrize("tool", READERS)
def test_a_file_is_imported_once(cli, tool, tmp_path):
    events = b"\n".join([*lines(tool), b'{"broken', b"[]"])
    (tmp_path / "events.json.gz").write_bytes(gzip.compress(events))
    command = ("import", "events.json.gz", "--format", tool, "--product-id", "acme")
    first = cli(*command)
    assert (first.returncode, first.stdout) == (0, "read 3 · accepted 2 · unreadable 1\n")
    again = cli(*command)
    assert again.stdout == "read 3 · accepted 0 · duplicate 2 · unreadable 1\n"
    found = cli("search", "export")
    assert 'clicked "Export"' in found.stdout


RECORDING = encode_line(VISIT) + b"\n\n" + b'{"type": "new"}\n'


@pytest.mark.slow
async def test_a_recording_and_standard_input(started, tmp_path):
    (tmp_path / "part.jsonl").write_bytes(RECORDING)
    async with started(
        "import", "part.jsonl", "-", "--format", "jsonl", stdin=RECORDING
    ) as running:
        code, out, _ = await running.end()
    assert (code, out) == (0, "read 4 · accepted 1 · duplicate 1 · not actions 2\n")


@pytest.mark.slow
async def test_ctrl_c_stores_what_was_read(started, tmp_path):
    """Standard input stays open: it ends when the command was interrupted."""
    async with started("import", "-", "--format", "jsonl", stdin=None) as running:
        await running.line("reading standard input", "stderr")
        running.process.stdin.write(RECORDING)
        await running.process.stdin.drain()
        running.interrupt()
        await running.line("storing what was read", "stderr")
        running.process.stdin.close()
        code, out, err = await running.end()
    assert (code, out) == (0, "read 2 · accepted 1 · not actions 1\n")
    assert "run the same command again to continue" in err


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("events.json",), 2, "--format"),
        (("events.json", "--format", "csv"), 2, "csv"),
        (("none.json", "--format", "posthog"), 1, "none.json: No such file"),
        (("-", "-", "--format", "posthog"), 2, "give - once"),
    ],
)
def test_wrong_usage(cli, args, code, said):
    ended = cli("import", *args)
    assert ended.returncode == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_file_of_another_format_is_a_failure(cli, tmp_path):
    (tmp_path / "events.json").write_bytes(b"\n".join(lines("segment")))
    ended = cli("import", "events.json", "--format", "amplitude")
    assert (ended.returncode, ended.stdout) == (1, "read 2 · accepted 0 · unreadable 2\n")
    assert "are these files of the format amplitude?" in ended.stderr


async def test_all_samples_twice_and_in_parts(embedder, tmp_path):
    """The second half was imported before: from an export that begins in the middle."""
    events = [
        json.dumps(event).encode()
        for payload in read_recording(samples())
        for event in events_of(payload, "segment")
    ]
    async with IngestPipeline(MemoryStore(), embedder, journal=tmp_path / "journal.db") as pipeline:
        total = Imported()
        for part in (events[len(events) // 2 :], events, events):
            found = await import_records(
                pipeline, iter(part), "segment", product_id="northwind", imported=total
            )
        assert found is total
        sessions = await pipeline.sessions(limit=200)
    assert total.bad == total.skipped == 0
    assert total.outcomes["accepted"] == len(events)
    assert total.outcomes["duplicate"] == len(events) + len(events) // 2
    assert sum(one.actions for one in sessions) == len(events)


async def test_reading_waits_for_what_is_not_stored(embedder, monkeypatch):
    monkeypatch.setattr("autoplay_rag.ingest.importing._MOST_PENDING", 20)
    monkeypatch.setattr("autoplay_rag.ingest.importing._LOT", 10)
    most = 0

    def some():
        nonlocal most
        for n in range(200):
            most = max(most, pipeline.ledger.pending)
            yield json.dumps({"type": "track", "event": f"e{n}", "userId": "u"}).encode()

    async with IngestPipeline(MemoryStore(), embedder, batch_window=60) as pipeline:
        await import_records(pipeline, some(), "segment", product_id="acme")
    assert most <= 30


async def test_an_outage_ends_the_import(embedder, monkeypatch):
    monkeypatch.setattr("autoplay_rag.ingest.importing._MOST_PENDING", 0)
    monkeypatch.setattr("autoplay_rag.ingest.importing._DRAIN_SECONDS", 0.05)
    event = b'{"type": "track", "event": "e", "userId": "u"}'

    def down(texts):
        raise ConnectionError("down")

    embedder.script = down
    async with IngestPipeline(MemoryStore(), embedder, drain_timeout=0, batch_window=0) as pipeline:
        with pytest.raises(DrainTimeoutError, match="not stored"):
            await import_records(pipeline, iter([event]), "segment")


async def test_what_comes_before_the_break_of_a_file_is_kept(embedder, tmp_path):
    path = tmp_path / "events.gz"
    some = [b'{"type": "track", "event": "e%d", "userId": "u"}' % n for n in range(600)]
    path.write_bytes(gzip.compress(b"\n".join(some))[:-4])
    async with IngestPipeline(MemoryStore(), embedder) as pipeline:
        with pytest.raises(RecordingError, match="cut-off"), open_lines(path) as file:
            await import_records(pipeline, read_records(file, pytest.fail), "segment")
        kept = pipeline.ledger.received
    # The decompressor gives blocks of 8 KiB; that of the break is lost.
    assert 400 < kept < 600


async def test_it_stops_when_asked(embedder):
    async with IngestPipeline(MemoryStore(), embedder) as pipeline:
        found = await import_records(
            pipeline, iter(lines("segment")), "segment", stopped=lambda: True
        )
    assert found.read == 0
