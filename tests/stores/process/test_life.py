"""The life of the worker of a `ProcessStore`, and how its failures reach the parent."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import word_store
from word_store import Bare, Misbehaving, WordStore

from autoplay_rag import ActionsPayload, Filter, IngestPipeline, SlimAction
from autoplay_rag._failures import is_forbidden, is_rejection, retry_after
from autoplay_rag.errors import (
    ConfigurationError,
    MissingCapabilityError,
    StoreRejectedError,
    StoreUnavailableError,
)
from autoplay_rag.stores import Chunk, ProcessStore, TextStore
from autoplay_rag.stores.workers.child import WorkerProcess

ALL = Filter()


@asynccontextmanager
async def started(*arguments, **options):
    store = ProcessStore(*arguments, **options)
    await store.start("m")
    try:
        yield store
    finally:
        await store.aclose()


def action(number: int) -> ActionsPayload:
    return ActionsPayload("p", f"s{number}", actions=[SlimAction("Export", f"Clicked {number}")])


def popen_of(store: ProcessStore) -> subprocess.Popen[bytes]:
    return store._worker._process._popen


async def test_a_worker_that_dies_fails_the_call_and_is_started_again(tmp_path):
    async with started(Misbehaving, str(tmp_path / "w.db")) as store:
        await store.add([Chunk("a", "billing", {})])
        first = popen_of(store)
        with pytest.raises(StoreUnavailableError, match=r"status -9; the next call restarts it"):
            await store.search("die", 1, ALL)
        assert [match.id for match in await store.search("billing", 1, ALL)] == ["a"]
        assert popen_of(store).pid != first.pid
        assert first.returncode == -signal.SIGKILL


async def test_a_worker_that_hangs_is_killed_after_the_timeout(tmp_path):
    async with started(Misbehaving, str(tmp_path / "w.db")) as store:
        hasty = ProcessStore(Misbehaving, str(tmp_path / "w.db"), timeout=0.2)
        with pytest.raises(StoreUnavailableError, match=r"within 0\.2 s"):
            await hasty.search("hang", 1, ALL)
        await hasty.aclose()
        assert await store.count() == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the worker has no alarm")
async def test_a_worker_whose_own_alarm_comes_first_did_not_answer_in_time(tmp_path, monkeypatch):
    @contextmanager
    def late(worker, timeout):
        yield threading.Event()

    async with started(Misbehaving, str(tmp_path / "w.db"), timeout=2.0) as store:
        with monkeypatch.context() as patched:
            patched.setattr(WorkerProcess, "_deadline", late)
            with pytest.raises(StoreUnavailableError, match=r"within 2 s"):
                await store.search("hang", 1, ALL)
        assert await store.count() == 0


async def test_what_a_store_prints_does_not_disturb_the_replies(tmp_path, capfd):
    async with started(Misbehaving, str(tmp_path / "w.db")) as store:
        assert await store.search("print", 1, ALL) == []
        assert await store.count() == 0
    assert "noise" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "rejection", "forbidden", "seconds"),
    [
        ("connection", False, False, 0.0),
        ("limited", False, False, 7.0),
        ("forbidden", False, True, 0.0),
        ("refused", True, False, 0.0),
        ("value", True, False, 0.0),
        ("key", True, False, 0.0),
    ],
)
async def test_an_error_means_the_same_as_without_a_worker(
    tmp_path, name, rejection, forbidden, seconds
):
    error = word_store.ERRORS[name]
    assert (is_rejection(error), is_forbidden(error)) == (rejection, forbidden)
    async with started(Misbehaving, str(tmp_path / "w.db")) as store:
        with pytest.raises(StoreRejectedError if rejection else StoreUnavailableError) as raised:
            await store.search(f"raise {name}", 1, ALL)
    assert is_rejection(raised.value) == rejection
    assert is_forbidden(raised.value) == forbidden
    assert retry_after(raised.value) == seconds
    assert str(error) in str(raised.value)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("in_memory", ConfigurationError, "would be lost with the worker process"),
        ("not_a_text_store", ConfigurationError, "returns a MemoryStore, not a TextStore"),
        ("out_of_order", StoreUnavailableError, "ConnectionError: the database does not answer"),
        ("wrong_password", ConfigurationError, "the password is empty"),
    ],
)
async def test_a_function_that_makes_no_store_is_reported_at_the_start(function, error, message):
    store = ProcessStore(getattr(word_store, function))
    with pytest.raises(error, match=message):
        await store.start("m")
    await store.aclose()


async def test_a_function_that_the_worker_does_not_find_is_named(monkeypatch):
    def added_later(): ...

    added_later.__module__, added_later.__qualname__ = "word_store", "added_later"
    monkeypatch.setattr(word_store, "added_later", added_later, raising=False)
    store = ProcessStore(added_later)
    with pytest.raises(ConfigurationError, match="word_store:added_later is not found in the wo"):
        await store.start("m")
    await store.aclose()


@pytest.mark.parametrize("function", [lambda: None, partial(WordStore, "x"), object()])
def test_a_function_without_a_name_of_its_own_is_refused(function):
    with pytest.raises(ConfigurationError, match="top level of a module"):
        ProcessStore(function)


@pytest.mark.parametrize("argument", [object(), 2**70, "\ud800", [{"a": object()}]])
def test_an_argument_that_is_not_plain_data_is_refused(argument):
    with pytest.raises(ConfigurationError, match="word_store:WordStore"):
        ProcessStore(WordStore, argument)


def test_no_argument_is_shown():
    store = ProcessStore(WordStore, "postgresql://u:secret@h/d", word_store.likeness)
    assert repr(store) == "<ProcessStore of word_store:WordStore(word_store:likeness)>"


async def test_stores_with_the_same_call_share_a_worker_until_the_last_is_closed(tmp_path):
    path = str(tmp_path / "w.db")
    async with started(Misbehaving, path) as one, started(Misbehaving, path) as two:
        popen = popen_of(one)
        assert popen_of(two) is popen
        async with started(WordStore, path) as other:
            assert popen_of(other) is not popen
        await one.aclose()
        assert await two.count() == 0
        assert popen.poll() is None
    assert popen.returncode == 0


async def test_a_scan_does_not_go_on_in_another_run_of_the_worker(tmp_path):
    async with started(Misbehaving, str(tmp_path / "w.db")) as store:
        await store.add([Chunk(f"c{n}", "text", {}) for n in range(10)])
        pages = store.scan(5)
        await anext(pages)
        popen_of(store).kill()
        with pytest.raises(StoreUnavailableError):
            await anext(pages)
        assert len([page async for page in store.scan(5)]) == 2


async def test_a_missing_capability_names_the_store():
    async with started(Bare) as store:
        assert store.capabilities == set()
        with pytest.raises(
            MissingCapabilityError, match="ProcessStore of word_store:Bare"
        ) as missing:
            await store.get(["a"])
    assert missing.value.capability == "get"


async def test_a_pipeline_stores_everything_though_workers_are_killed(tmp_path):
    store = ProcessStore(Misbehaving, str(tmp_path / "w.db"), max_batch=5)
    journal = tmp_path / "journal.db"
    async with IngestPipeline(store, journal=journal, batch_window=0) as pipeline:
        for number in range(60):
            await pipeline.on_actions(action(number))
            if number in (20, 40):
                await pipeline.drain(30)
                popen_of(store).kill()
        await pipeline.drain(30)
        assert pipeline.ledger.stored == 60
        assert pipeline.ledger.balanced
        assert await store.count() == 60


PROGRAM = """
import asyncio, os, signal, sys
sys.path.insert(0, {tests!r})
from word_store import WordStore
from autoplay_rag.stores import Chunk, ProcessStore
def make(path):
    return WordStore(path)
async def main():
    store = ProcessStore(make, {path!r})
    await store.start("m")
    await store.add([Chunk("a", "text", {{}})])
    print(await store.count(), store, store._worker._process._popen.pid, flush=True)
    {then}
if {guard}:
    asyncio.run(main(), debug=False)  # a loaded machine makes callbacks slow
"""


@asynccontextmanager
async def program(tmp_path, then, guard='__name__ == "__main__"'):
    """A program that defines the function itself. The worker shares its stderr."""
    source = PROGRAM.format(
        tests=str(Path(word_store.__file__).parent), path=str(tmp_path / "w.db"), then=then,
        guard=guard,
    )  # fmt: skip
    (tmp_path / "my-app.py").write_text(source)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "dev", str(tmp_path / "my-app.py"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("then", ["await store.aclose()", "del store", "sys.exit(0)"])
async def test_the_program_itself_may_define_the_function(tmp_path, then):
    async with program(tmp_path, then) as process:
        out, err = await process.communicate()
    count, *rest = out.decode().split()
    assert count == "1"
    assert "my-app.py:make" in " ".join(rest)
    assert err == b""
    assert process.returncode == 0


async def test_a_program_without_a_guard_is_told_so_and_starts_one_worker(tmp_path):
    async with program(tmp_path, "await store.aclose()", guard="True") as process:
        _, err = await process.communicate()
    assert b"a worker does not start another" in err
    assert b"__name__ == '__main__'" in err


async def test_a_killed_parent_leaves_no_worker(tmp_path):
    async with program(tmp_path, "signal.pause()") as process:
        assert (await process.stdout.readline()).startswith(b"1 ")
        process.kill()
        async with asyncio.timeout(30):
            # Ends when the worker, which has the other copy of the pipe, has ended.
            assert b"Traceback" not in await process.stderr.read()


def test_a_function_of_an_interactive_session_is_refused():
    code = (
        "from autoplay_rag.stores import ProcessStore\n"
        "def make(): ...\n"
        "try:\n    ProcessStore(make)\nexcept ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, check=True
    )
    assert "define it in a module" in done.stdout


def test_it_is_a_text_store():
    assert issubclass(ProcessStore, TextStore)
