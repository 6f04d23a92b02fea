"""Commands that speak to a running server give what they give without one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from array import array
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from served import KEYS, fill, refuse_bad, serving

from autoplay_rag import ActionsPayload, SlimAction
from autoplay_rag.cli import reembed as reembedding
from autoplay_rag.cli.app import run
from autoplay_rag.cli.remote import find_server
from autoplay_rag.embedders import Embedder, LocalEmbedder
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.serve import jobs
from autoplay_rag.serve.running import running_file
from autoplay_rag.stores import ChromaStore, MemoryStore

JOURNAL = "chroma-journal.db"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in [name for name in os.environ if name.startswith("AUTOPLAY_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def served(here):
    """A server on the default journal, announced beside it."""
    with serving(
        MemoryStore, LocalEmbedder, here / JOURNAL, announces={"store": ""}, select=refuse_bad
    ) as started:
        started.run(fill(started.pipeline))
        yield started


@pytest.fixture
def other(tmp_path):
    """Another server, empty, which is not announced."""
    with serving(MemoryStore, LocalEmbedder, tmp_path / "elsewhere.db") as started:
        yield started


def outcome(capsys, *args):
    """The exit code and the standard output of a command."""
    code = run([str(arg) for arg in args])
    return code, capsys.readouterr().out


READING = (
    ("sessions", "--json"),
    ("sessions", "--user", "ann", "--limit", "1", "--json"),
    ("sessions", "--matching", "promo code", "--without", "report"),
    ("sessions", "--since", "never"),
    ("session", "s0"),
    ("session", "s1", "--json"),
    ("session", "none"),
    ("search", "promo code", "--mode", "text", "--json"),
    ("search", "report", "--mode", "text", "--user", "ann", "-k", "1"),
    ("search", "report", "--mode", "text", "--since", "never"),
    ("search", "report", "--mode", "loud"),
    ("export", "--user", "bob"),
    ("export", "--session", "s0"),
    ("export", "--user", "nobody"),
    ("dead-letters", "list"),
    ("dead-letters", "list", "--json"),
    ("dead-letters", "list", JOURNAL, "--limit", "2", "--json"),
    ("dead-letters", "retry", "99"),
    ("dead-letters", "discard", JOURNAL, "7", "--all"),
)


def test_reading_commands_give_the_same_from_a_server_and_from_files(here, capsys):
    with serving(
        MemoryStore, LocalEmbedder, here / JOURNAL, announces={"store": ""}, select=refuse_bad
    ) as served:
        served.run(fill(served.pipeline))
        asked = [outcome(capsys, *command) for command in READING]
        assert served.audited(len(READING) - 4)  # a usage error asks nothing
        status = json.loads(outcome(capsys, "status", "--json")[1])
    read = [outcome(capsys, *command) for command in READING]
    assert asked == read
    assert [code for code, _ in asked].count(0) == 13
    records = dict(zip(READING, asked, strict=True))["export", "--user", "bob"][1]
    assert records.count("\n") == 2
    assert "SAVE10" in records
    stopped = json.loads(outcome(capsys, "status", "--json")[1])
    assert (status["running"], stopped["running"]) == (True, False)
    sizes = ("journal_bytes", "free_bytes", "lag_p50", "lag_p99", "running")
    for name in sizes:
        del status[name], stopped[name]
    assert status == stopped
    assert (status["stored"], status["dead"]) == (4, 3)


class Small(Embedder):
    """Another model than the bundled one."""

    model = "small"

    async def embed(self, texts):
        return [array("f", [float(len(text)), 1.0]) for text in texts]


WITH_STORE = (
    ("search", "Who exported a report?", "--json"),
    ("search", "promotion", "--mode", "dense"),
    ("verify",),
    ("verify", "--repair", "--json"),
    ("forget", "--user", "ann", "--dry-run"),
    ("forget", "--user", "bob"),
    ("backup", "copies/monday", "--json"),
    ("backup", "copies/monday", "--json"),  # it exists now
    ("copy", "--to", "chroma:other", "--json"),
    ("copy", "--to", "chroma:other", "--json"),  # all of it is there now
    ("reembed", "--embedder", "openai:small", "--json"),
    ("reembed",),  # back to the bundled model
)
VARIES = re.compile(
    r'"(seconds|paused|size|files|[a-z]+_at)":[^,}]+|in [0-9.]+ s|[0-9: -]{19} UTC|"folder":"[^"]*"'
    r"|deleted: .*"
)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_commands_that_need_the_store_give_the_same_from_a_server_and_from_files(
    here, capsys, monkeypatch
):
    """The same commands in two folders with equal content; times and sizes are left out."""
    for module in (jobs, reembedding):
        make = module.make_embedder
        monkeypatch.setattr(
            module,
            "make_embedder",
            lambda name, make=make: Small() if name == "openai:small" else make(name),
        )
    outcomes = {}
    for name in ("asked", "read"):
        folder = here / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        announces = {"store": str(folder / "chroma"), "collection": "autoplay"}
        with serving(
            lambda: ChromaStore("chroma"), LocalEmbedder, folder / JOURNAL, announces=announces
        ) as served:
            served.run(fill(served.pipeline))
            if name == "asked":
                outcomes[name] = [outcome(capsys, *command) for command in WITH_STORE]
                ran = [job["kind"] for job in served.run(jobs_of(served))][::-1]
        if name == "read":
            outcomes[name] = [outcome(capsys, *command) for command in WITH_STORE]
    for command, asked, read in zip(WITH_STORE, *outcomes.values(), strict=True):
        assert (command, asked[0], VARIES.sub("", asked[1])) == (
            command,
            read[0],
            VARIES.sub("", read[1]),
        )
    assert ran == [command[0] for command in WITH_STORE if command[0] not in ("search", "forget")]
    for name in ("asked", "read"):
        assert (here / name / "copies" / "monday").is_dir()
        assert (here / name / "other").is_dir()


def test_dead_letters_are_changed_by_the_server(served, capsys):
    first, second, third = [letter.id for letter in JournalReader(JOURNAL).dead_letters()]
    assert outcome(capsys, "dead-letters", "discard", first) == (
        0,
        "discard 1: the pipeline will do this now\n",
    )
    assert [letter.id for letter in JournalReader(JOURNAL).dead_letters()] == [second, third]
    assert outcome(capsys, "dead-letters", "retry", JOURNAL, second, third)[0] == 0
    served.run(served.pipeline.drain())
    assert served.pipeline.ledger.dead == 0
    assert outcome(capsys, "dead-letters", "discard", "--all") == (0, "")


def test_status_check(served, capsys):
    assert outcome(capsys, "status", "--check") == (0, "ok\n")


def test_forget_is_done_by_the_server(served, capsys):
    code, out = outcome(capsys, "forget", "--user", "bob", "--dry-run")
    assert (code, out) == (
        0,
        "would be forgotten: 1 payloads in 1 chunks of 1 sessions, 0 of them dead letters\n",
    )
    code, out = outcome(capsys, "forget", "--user", "bob", "--json")
    receipt = json.loads(out)
    assert (code, receipt["payloads"], receipt["dry_run"]) == (0, 1, False)
    assert receipt["deleted_at"] is not None
    assert outcome(capsys, "export", "--user", "bob") == (0, "")


def test_the_environment_names_a_server(served, other, monkeypatch, capsys):
    monkeypatch.setenv("AUTOPLAY_RAG_URL", served.url + "/")
    monkeypatch.setenv("AUTOPLAY_RAG_KEY", KEYS.admin)
    monkeypatch.chdir("/")  # no journal here
    assert outcome(capsys, "export", "--user", "bob")[1].count("\n") == 2
    assert json.loads(outcome(capsys, "status", "--json")[1])["stored"] == 4
    monkeypatch.setenv("AUTOPLAY_RAG_URL", other.url)
    assert outcome(capsys, "export", "--user", "bob") == (0, "")


def test_the_key_may_be_in_a_file(served, here, monkeypatch, capsys):
    (here / "key").write_text(KEYS.admin + "\n")
    monkeypatch.setenv("AUTOPLAY_RAG_URL", served.url)
    assert run(["status"]) == 2
    assert "AUTOPLAY_RAG_KEY" in capsys.readouterr().err
    monkeypatch.setenv("AUTOPLAY_RAG_KEY_FILE", str(here / "key"))
    assert outcome(capsys, "status", "--check") == (0, "ok\n")
    (here / "key").write_text("two words")
    assert run(["status"]) == 2
    assert "AUTOPLAY_RAG_KEY has characters that no key has" in capsys.readouterr().err


@pytest.mark.parametrize("named", [("--journal", JOURNAL), ("--store", "chroma:./chroma")])
def test_a_named_journal_or_store_is_not_answered_by_another_server(
    here, other, monkeypatch, capsys, named
):
    """Neither by the one of the environment, nor by one whose file was copied or left behind."""
    with serving(
        MemoryStore,
        LocalEmbedder,
        here / JOURNAL,
        announces={"store": str(here / "chroma")},
        select=refuse_bad,
    ) as served:
        served.run(fill(served.pipeline))
        monkeypatch.setenv("AUTOPLAY_RAG_URL", other.url)
        monkeypatch.setenv("AUTOPLAY_RAG_KEY", KEYS.admin)
        code, out = outcome(capsys, "export", "--user", "bob", *named)
        assert (code, out.count("\n")) == (0, 2)
        assert outcome(capsys, "export", "--user", "bob") == (0, "")  # of the other server
        assert served.audited(1)
        assert other.audited(1)
        left = running_file(here / JOURNAL).read_bytes()
    running_file(here / JOURNAL).write_bytes(left)
    running_file(here / JOURNAL).chmod(0o600)
    code, out = outcome(capsys, "export", "--user", "bob", *named)  # from the file
    assert (code, out.count("\n"), len(other.audit)) == (0, 2, 1)


def test_a_server_with_another_store_or_collection_is_not_asked(here):
    announces = {"store": str(here / "chroma"), "collection": "autoplay"}
    with serving(MemoryStore, LocalEmbedder, here / JOURNAL, announces=announces):
        assert find_server(here / JOURNAL, is_named=True)
        assert find_server(here / JOURNAL, is_named=True, store=here / "chroma")
        assert find_server(here / JOURNAL, is_named=True, collection="autoplay")
        assert not find_server(here / JOURNAL, is_named=True, store=here / "other")
        assert not find_server(here / JOURNAL, is_named=True, collection="other")
        assert not find_server(here / "other.db", is_named=True)
    assert not find_server(here / JOURNAL, is_named=False)


@pytest.mark.parametrize(
    "url", ["localhost:8760", "ftp://x", "http://", "http://a:b@x", "http://["]
)
def test_an_address_that_cannot_be_used(url, monkeypatch, here):
    monkeypatch.setenv("AUTOPLAY_RAG_URL", url)
    monkeypatch.setenv("AUTOPLAY_RAG_KEY", "x")
    with pytest.raises(ConfigurationError, match="AUTOPLAY_RAG_URL must be an address"):
        find_server(here / JOURNAL, is_named=False)


def test_a_server_that_does_not_answer_or_refuses(served, silent_port, monkeypatch, capsys):
    monkeypatch.setenv("AUTOPLAY_RAG_KEY", KEYS.read)
    monkeypatch.setenv("AUTOPLAY_RAG_URL", served.url)
    assert run(["export", "--user", "bob"]) == 1
    shown = capsys.readouterr().err
    assert "This needs an admin key" in shown
    assert KEYS.read not in shown
    monkeypatch.setenv("AUTOPLAY_RAG_URL", f"http://127.0.0.1:{silent_port}")
    assert run(["status"]) == 1
    assert "no answer from the server at" in capsys.readouterr().err


def test_wrong_values_are_usage_errors_on_both_ways(served, capsys):
    assert run(["export"]) == 2
    assert run(["forget", "--user", "bob", "--until", "soon"]) == 2
    assert run(["copy", "--to", "pg:x"]) == 2
    assert run(["reembed", "--embedder", "bert"]) == 2
    assert "embedder must be local, local:int8 or openai:MODEL" in capsys.readouterr().err


def test_verify_shows_the_report_of_the_server(served, capsys):
    assert outcome(capsys, "verify") == (0, "4 chunks checked: no difference\n")
    assert [job["kind"] for job in served.run(jobs_of(served))] == ["verify"]


def test_a_job_that_fails_says_why(served, here, capsys):
    (here / "full").mkdir()
    (here / "full" / "x").touch()
    assert run(["backup", "full"]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_relative_folder_is_refused_for_a_server_elsewhere(served, monkeypatch, capsys):
    monkeypatch.setenv("AUTOPLAY_RAG_URL", served.url)
    monkeypatch.setenv("AUTOPLAY_RAG_KEY", KEYS.admin)
    assert run(["backup", "copies"]) == 2
    assert "must be an absolute path" in capsys.readouterr().err


async def jobs_of(served):
    jobs = served.server._serving.jobs.all()
    return [{"kind": job.kind, "state": job.state} for job in jobs]


def test_ctrl_c_cancels_the_job_and_progress_is_shown(here, capsys):
    shown = threading.Event()

    async def count_forever(_, job):
        job.progress(3, 10)
        shown.set()
        await asyncio.Event().wait()

    with serving(
        MemoryStore,
        LocalEmbedder,
        here / JOURNAL,
        announces={"store": ""},
        job_kinds={"verify": count_forever},
    ) as served:
        threading.Thread(
            target=lambda: (shown.wait(30), _told(served), os.kill(os.getpid(), signal.SIGINT))
        ).start()
        assert run(["verify"]) == 1
        err = capsys.readouterr().err
        assert "3 of 10 chunks" in err
        assert "the job is cancelled" in err
        assert served.run(jobs_of(served)) == [{"kind": "verify", "state": "cancelled"}]


def _told(served):
    """Wait until the command has asked for the progress once more than it had to."""
    served.run(_asked(served))


async def _asked(served):
    before = served.server.server_state.total_requests
    while served.server.server_state.total_requests < before + 2:  # noqa: ASYNC110 - of uvicorn
        await asyncio.sleep(0)


def test_tail_prints_what_the_server_receives(served, capsys):
    def send():
        served.run(_subscribed(served))
        served.run(fill(served.pipeline))  # known already: duplicates are not shown
        served.run(_more(served.pipeline))

    sender = threading.Thread(target=send)
    sender.start()
    assert run(["tail", "--jsonl", "--limit", "2"]) == 0
    sender.join()
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["session_id"] for line in out] == ["new0", "new1"]


def test_tail_ends_when_the_server_stops(served, capsys):
    def stop():
        served.run(_subscribed(served))
        served.run(_more(served.pipeline))
        served.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    assert run(["tail"]) == 0
    stopper.join()
    shown = capsys.readouterr()
    assert "Opened billing 1" in shown.out
    assert "the server stops" in shown.err
    assert shown.err.endswith("2 payloads\n")


class Cutting(BaseHTTPRequestHandler):
    """A server that sends one event, then loses the connection; the second time it ends."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        seq = len(self.asked)
        payload = {"type": "summary", "product_id": "acme", "session_id": f"s{seq}", "summary": "x"}
        event = f"id: {seq}\nevent: summary\ndata: {json.dumps({'payload': payload})}\n\n"
        if seq == 2:
            event = 'event: gap\ndata: {"missed": 4}\n\n' + event
            event += 'event: end\ndata: {"reason": "the server stops"}\n\n'
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(f"{len(event):x}\r\n{event}\r\n".encode())
        # No last chunk: the answer is not complete.

    def log_message(self, *args):
        pass


def test_tail_goes_on_after_a_lost_connection(monkeypatch, capsys):
    Cutting.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Cutting) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("AUTOPLAY_RAG_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AUTOPLAY_RAG_KEY", KEYS.read)
        assert run(["tail", "--jsonl"]) == 0
        server.shutdown()
        thread.join()
    shown = capsys.readouterr()
    assert Cutting.asked == ["/v1/stream", "/v1/stream?after=1"]
    assert [json.loads(line)["session_id"] for line in shown.out.splitlines()] == ["s1", "s2"]
    assert "connecting again" in shown.err
    assert "4 events are missing" in shown.err


def test_tail_needs_a_server_or_a_url(capsys):
    assert run(["tail"]) == 2
    assert "give the URL of a stream" in capsys.readouterr().err


async def _subscribed(served):
    while not served.server._serving.streams:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)


async def _more(pipeline):
    for n in range(2):
        click = SlimAction(
            "billing", f"Opened billing {n}", "https://app.test/", 0, "click", 9.0, 9.0
        )
        await pipeline.accept(ActionsPayload("acme", f"new{n}", "ann", "ann", [click], 1, 2000.0))


def test_copy_finds_the_server_of_the_store(here, capsys):
    """Also if the settings file is about another store; and not one of another store."""
    (here / "autoplay-rag.toml").write_text("store = 'chroma:mine'\njournal = 'mine.db'\n")
    announces = {"store": str(here / "chroma"), "collection": "autoplay"}
    with serving(MemoryStore, LocalEmbedder, here / JOURNAL, announces=announces) as served:
        to = ["--to", "pg:x"]
        assert run(["copy", "--from", "chroma:chroma", *to]) == 2
        assert "store must be chroma:PATH" in capsys.readouterr().err
        for args in ([], ["--from", "chroma:chroma", "--from-collection", "b"]):
            assert run(["copy", *args, "--to", "chroma:other"]) == 1
            assert "no Chroma store at" in capsys.readouterr().err
        assert served.run(jobs_of(served)) == []
        # The server makes the copy: Chroma fails there, because `other` is a file.
        (here / "other").touch()
        assert run(["copy", "--from", "chroma:chroma", "--to", "chroma:other"]) == 1
        assert served.run(jobs_of(served)) == [{"kind": "copy", "state": "failed"}]
