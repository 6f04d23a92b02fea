"""The worker's life cycle: who may have one, how it ends, and what happens if it dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import termios
from array import array
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from store_helpers import ALL, EAST, chunk, ids

from autoplay_rag.errors import StoreLockedError, StoreUnavailableError
from autoplay_rag.stores import ChromaStore
from autoplay_rag.stores.workers import shared

PRELUDE = """
import asyncio, os, signal, sys
from autoplay_rag.stores import ChromaStore, Chunk, Filter
store = ChromaStore(sys.argv[1])
batch = [Chunk(f"c{i}", "text", {}) for i in range(200)]
vectors = [[1.0, i / 200, 0.0] for i in range(200)]
def worker_pid():
    return store._worker._process._popen.pid
"""


def popen_of(store: ChromaStore) -> subprocess.Popen[bytes]:
    return store._worker._process._popen


def unread_bytes(pipe) -> int:
    found = array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, found)
    return found[0]


@asynccontextmanager
async def script(body: str, folder: Path, *options: str, **kwargs):
    """A process that runs `body`. Its worker shares its stderr, which closes when both have ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *options, "-", str(folder),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs,
    )  # fmt: skip
    process.stdin.write((PRELUDE + body).encode())
    process.stdin.close()
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_killed_worker_fails_the_call_in_flight_and_the_next_one_starts_another(tmp_path):
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    await store.upsert([chunk("a")], [EAST])
    popen = popen_of(store)
    popen.send_signal(signal.SIGSTOP)
    call = asyncio.create_task(store.upsert([chunk("b")], [EAST]))
    async with asyncio.timeout(10):
        while not unread_bytes(popen.stdin):  # noqa: ASYNC110 - the frozen worker says nothing
            await asyncio.sleep(0.001)
    popen.kill()
    with pytest.raises(
        StoreUnavailableError, match=r"ended unexpectedly with status -9.*the next call restarts it"
    ):
        await call
    await store.upsert([chunk("b")], [EAST])
    assert await store.count() == 2
    assert popen_of(store).pid != popen.pid
    await store.aclose()


async def test_a_worker_that_died_while_idle_is_not_noticed(tmp_path):
    store = ChromaStore(tmp_path)
    await store.upsert([chunk("a")], [EAST])
    popen_of(store).kill()
    popen_of(store).wait()
    assert ids(await store.query(EAST, 1, ALL)) == ["a"]
    await store.aclose()


async def test_killed_at_any_moment_of_an_upsert_the_store_takes_the_batch_again(tmp_path):
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    batch = [chunk(f"c{i}", number=i) for i in range(300)]
    vectors = [[1.0, i / 300, 0.0] for i in range(300)]
    for delay in (0.005, 0.03, 0.08, 0.15):
        kill = asyncio.get_running_loop().call_later(delay, popen_of(store).kill)
        with suppress(StoreUnavailableError):
            await store.upsert(batch, vectors)
        kill.cancel()
        with suppress(StoreUnavailableError):
            await store.count()  # the kill may have come after the last reply
        await store.upsert(batch, vectors)
        assert await store.count() == 300
        hits = await store.query(EAST, 300, ALL)
        assert ids(hits) == [f"c{i}" for i in range(300)]
        await store.delete(ids(hits))
        batch = [chunk(f"c{i}", number=i, delay=delay) for i in range(300)]
    await store.aclose()


async def test_a_stuck_worker_is_ended_after_the_timeout(tmp_path):
    store, hasty = ChromaStore(tmp_path), ChromaStore(tmp_path, timeout=0.2)
    await store.start("model-a")
    popen = popen_of(store)
    popen.send_signal(signal.SIGSTOP)
    with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.2 s"):
        await hasty.count()
    assert popen.returncode == -signal.SIGKILL
    assert await store.count() == 0
    await hasty.aclose()
    await store.aclose()


async def test_stores_of_one_process_share_the_worker_until_the_last_is_closed(tmp_path):
    first = ChromaStore(tmp_path, collection="first")
    again = ChromaStore(tmp_path / "." / "x" / "..", collection="first")
    other = ChromaStore(tmp_path, collection="other")
    await first.upsert([chunk("a")], [EAST])
    await other.upsert([chunk("b")], [[1.0, 0.0]])
    assert ids(await again.query(EAST, 5, ALL)) == ["a"]
    popen = popen_of(first)
    assert popen_of(again) is popen is popen_of(other)
    await first.aclose()
    await first.aclose()
    assert ids(await other.query([1.0, 0.0], 5, ALL)) == ["b"]
    await again.aclose()
    assert popen.poll() is None
    await other.aclose()
    assert popen.returncode == 0
    assert await first.count() == 1
    await first.aclose()


async def test_closing_waits_for_what_was_asked_before(tmp_path):
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    popen = popen_of(store)
    async with asyncio.TaskGroup() as group:
        group.create_task(store.upsert([chunk(f"c{i}") for i in range(300)], [EAST] * 300))
        await asyncio.sleep(0)
        group.create_task(store.aclose())
    assert popen.returncode == 0
    assert await store.count() == 300
    await store.aclose()


async def test_a_cancelled_close_ends_the_worker_all_the_same(tmp_path):
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    popen = popen_of(store)
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert await asyncio.to_thread(popen.wait, 20) == 0


async def test_closing_does_not_wait_for_a_worker_that_is_stuck(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "_RELEASE_TIMEOUT_S", 0.1)
    store = ChromaStore(tmp_path)
    await store.start("model-a")
    os.kill(popen_of(store).pid, signal.SIGSTOP)
    asking = asyncio.create_task(store.count())
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await store.aclose()
    with pytest.raises(StoreUnavailableError):
        await asking


@pytest.mark.slow
async def test_another_process_is_refused_with_the_owner_and_the_way_out(tmp_path):
    body = "asyncio.run(store.start('m')); print('ready', flush=True); signal.pause()"
    store = ChromaStore(tmp_path)
    async with script(body, tmp_path) as owner:
        assert await owner.stdout.readline() == b"ready\n"
        with pytest.raises(StoreLockedError) as refused:
            await store.start("m")
        message = str(refused.value)
        assert f"process {owner.pid}" in message
        assert str(tmp_path) in message
        assert "even for searches" in message
        owner.kill()
        await owner.wait()
        await store.start("m")
    await store.aclose()


@pytest.mark.parametrize("work", ["signal.pause()", "asyncio.run(store.upsert(batch, vectors))"])
async def test_a_killed_parent_leaves_no_worker(tmp_path, work):
    body = f"""
asyncio.run(store.start('m'))
print(worker_pid(), flush=True)
while True:
    {work}
"""
    async with script(body, tmp_path) as parent:
        assert int(await parent.stdout.readline()) != parent.pid
        parent.kill()
        async with asyncio.timeout(20):
            assert b"Traceback" not in await parent.stderr.read()
    store = ChromaStore(tmp_path)
    assert await store.count() in (0, 200)
    await store.aclose()


async def test_ctrl_c_is_for_the_parent_which_can_still_drain(tmp_path):
    body = """
async def main():
    await store.start('m')
    print(worker_pid(), flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await store.upsert(batch, vectors)
        print(await store.count(), worker_pid(), flush=True)
        await store.aclose()
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print('drained', flush=True)
"""
    async with script(body, tmp_path, start_new_session=True) as parent:
        worker = int(await parent.stdout.readline())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker, number)
        os.killpg(parent.pid, signal.SIGINT)
        stdout, stderr = await parent.communicate()
    assert stdout.decode() == f"200 {worker}\ndrained\n"
    assert stderr == b""


@pytest.mark.parametrize(
    "ending", ["asyncio.run(store.aclose(), debug=False)", "", "del store", "sys.exit(0)"]
)
async def test_no_way_to_end_leaves_a_warning_or_a_worker(tmp_path, ending):
    # In debug mode, asyncio says on stderr which steps were slow.
    body = f"asyncio.run(store.upsert(batch, vectors), debug=False)\n{ending}"
    async with script(body, tmp_path, "-X", "dev", "-W", "error") as process:
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 0


async def test_settings_where_the_parent_runs_do_not_reach_chroma(tmp_path):
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / ".env").write_bytes(b"CHROMA_SERVER_HTTP_PORT=none\n\xff\xfe")
    (tmp_path / "cwd" / "chromadb.py").write_text("raise RuntimeError('not the real one')")
    body = "asyncio.run(store.upsert(batch, vectors)); asyncio.run(store.aclose()); print('well')"
    env = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": os.pathsep.join(sys.path)}
    async with script(body, tmp_path / "db", "-P", cwd=tmp_path / "cwd", env=env) as process:
        assert await process.communicate() == (b"well\n", b"")


@pytest.mark.slow
async def test_a_forked_child_neither_uses_nor_keeps_the_worker(tmp_path):
    body = """
asyncio.run(store.start('m'))
worker = worker_pid()
child = os.fork()
if child == 0:
    try:
        asyncio.run(store.count())
    except Exception as error:
        print(type(error).__name__, f"process {os.getppid()}" in str(error), flush=True)
    os._exit(0)
os.waitpid(child, 0)
asyncio.run(store.upsert(batch, vectors))
print(worker_pid() == worker, flush=True)
child = os.fork()
if child == 0:
    signal.pause()
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    async with script(body, tmp_path, "-W", "ignore") as process:
        assert await process.stdout.readline() == b"StoreLockedError True\n"
        assert await process.stdout.readline() == b"True\n"
        child = int(await process.stdout.readline())
        store = ChromaStore(tmp_path)
        assert await store.count() == 200
        await store.aclose()
        os.kill(child, signal.SIGKILL)


async def test_a_stuck_worker_does_not_outlive_a_killed_parent(tmp_path):
    body = """
from pathlib import Path
import autoplay_rag.stores.chroma.worker as worker
class Stuck:
    def __init__(self, path):
        pass
    def answer(self, request):
        signal.sigwait([signal.SIGUSR1])
worker.Folder = Stuck
worker.main(Path(sys.argv[1]), 1)
"""
    from autoplay_rag.stores.chroma.frames import Count
    from autoplay_rag.stores.workers.pipe import encode

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PRELUDE + body, str(tmp_path),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    frame = encode(Count(collection="c", model=None, timeout=0.2))
    async with asyncio.timeout(20):
        await process.communicate(frame)
    assert process.returncode == -signal.SIGALRM
