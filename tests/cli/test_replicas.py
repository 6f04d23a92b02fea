"""`autoplay-rag serve --postgres`: several servers of one database, each in its own process."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from autoplay_rag.cli.app import run
from autoplay_rag.devserver import LocalConnector

ADMIN = "an-admin-key-of-tests"
VARIABLE = "AUTOPLAY_RAG_POSTGRES_DSN"
SECRET = "pa55word"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def database(postgres, tmp_path):
    """An empty database; the environment that names it."""
    postgres.run("DROP SCHEMA IF EXISTS autoplay CASCADE")
    path = tmp_path / "dsn"
    path.write_text(postgres.dsn.replace("postgres:@", f"postgres:{SECRET}@"))
    yield {f"{VARIABLE}_FILE": str(path), "AUTOPLAY_RAG_ADMIN_KEY": ADMIN}
    postgres.run("DROP SCHEMA IF EXISTS autoplay CASCADE")


class Server:
    """One running server."""

    def __init__(self, running, client):
        self.running = running
        self.client = client

    async def get(self, path, **query):
        answer = await self.client.get(path, params=query)
        answer.raise_for_status()
        return answer.json()

    async def push(self, session, title):
        action = {"title": title, "description": title, "canonical_url": "https://app.test/p"}
        body = {"product_id": "acme", "session_id": session, "user_id": "ann", "type": "actions"}
        answer = await self.client.post("/v1/webhooks/acme", json={**body, "actions": [action]})
        answer.raise_for_status()

    async def metric(self, name):
        """Return the values of one metric by labels."""
        text = (await self.client.get("/metrics")).text
        found = re.findall(rf"^autoplay_rag_{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
        return {labels: float(value) for labels, value in found}


@pytest.fixture
def serve(started, database):
    """Start a server."""

    @asynccontextmanager
    async def start(*args, **env):
        given = ("serve", *args, "--port", "0", "--postgres", "postgresql:")
        async with started(*given, **database, **env) as running:
            url = (await running.line("serving ")).removeprefix("serving ")
            headers = {"authorization": f"Bearer {ADMIN}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
                yield Server(running, client)

    return start


async def until(condition, seconds=60.0):
    """Wait for a change that another process makes."""
    async with asyncio.timeout(seconds):
        while not (found := await condition()):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    return found


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--postgres", f"postgresql://ann:{SECRET}@db.test/app"], "a password in the address"),
        (["--postgres", f"ann:{SECRET}@db.test/app"], "must have the form postgresql://"),
        (["--postgres", "postgresql:", "--journal", "j.db"], "leave out --journal"),
        (["--postgres", "postgresql:", "--samples"], "--samples needs a store of its own"),
        (["--role", "serve"], "role needs --postgres"),
        (["--postgres", "postgresql:", "--role", "idle"], "role must be"),
        (["--journal", f"postgresql://ann:{SECRET}@db.test/app"], "set AUTOPLAY_RAG_URL"),
    ],
)
def test_what_is_refused(args, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(["serve", *args]) == 2
    shown = capsys.readouterr()
    assert said in " ".join(shown.err.split())
    assert SECRET not in shown.out + shown.err


@pytest.mark.parametrize("key", ["store", "journal"])
def test_a_file_with_another_store_or_journal_is_refused(key, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "autoplay-rag.toml").write_text(f'postgres = "postgresql:"\n{key} = "data"\n')
    assert run(["serve"]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "line 2" in shown
    assert "postgres is store and journal" in shown


def test_without_a_key_nobody_could_ask_all_servers(database, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"{VARIABLE}_FILE", database[f"{VARIABLE}_FILE"])
    monkeypatch.delenv("AUTOPLAY_RAG_ADMIN_KEY", raising=False)
    assert run(["serve", "--postgres", "postgresql:"]) == 2
    assert "set AUTOPLAY_RAG_ADMIN_KEY" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["search", "export"],
        ["sessions"],
        ["forget", "--user", "u1"],
        ["dead-letters", "list"],
        ["verify"],
        ["backup", "folder"],
        ["ingest", "http://127.0.0.1:9/stream/acme"],
    ],
    ids=lambda command: command[0],
)
def test_other_commands_say_whom_to_ask(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOPLAY_RAG_URL", raising=False)
    (tmp_path / "autoplay-rag.toml").write_text('postgres = "postgresql://db.test/app"\n')
    assert run(command) == 2
    assert "autoplay-rag serve" in " ".join(capsys.readouterr().err.split())
    if command[0] not in ("status", "dead-letters"):
        (tmp_path / "autoplay-rag.toml").unlink()
        assert run([*command, "--journal", f"postgresql://ann:{SECRET}@db.test/app"]) == 2
        shown = capsys.readouterr()
        assert "set AUTOPLAY_RAG_URL" in " ".join(shown.err.split())
        assert SECRET not in shown.err


@pytest.mark.parametrize(
    "command",
    [
        ["restore", "folder"],
        ["verify", "--collection", "other"],
        ["reembed", "--collection", "other"],
    ],
    ids=lambda command: command[0],
)
def test_what_no_server_does_needs_a_file(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPLAY_RAG_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AUTOPLAY_RAG_KEY", ADMIN)
    monkeypatch.setenv(VARIABLE, "postgresql://db.test/app")
    (tmp_path / "autoplay-rag.toml").write_text('postgres = "postgresql://db.test/app"\n')
    assert run(command) == 2
    assert "name it with --journal" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["autoplay-rag.toml"]


@pytest.mark.slow
async def test_a_stream_is_read_by_one_of_two_and_taken_over(serve):
    async with LocalConnector(rate=20, loop=True) as connector, AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serve(connector.url)) for _ in range(2)]

        async def states():
            found = [await server.metric("client_state") for server in servers]
            return [re.search(r'state="(\w+)"', "".join(one))[1] for one in found]

        await until(
            lambda: is_true(states, lambda found: sorted(found) == ["connected", "standby"])
        )
        reader = (await states()).index("connected")
        assert (await servers[1 - reader].get("/readyz"))["status"] == "ok"
        # Frozen: the other one reads within seconds, and this one does not go on.
        servers[reader].running.interrupt(signal.SIGSTOP)
        other = servers[1 - reader]
        started = asyncio.get_running_loop().time()
        await until(lambda: is_connected(other))
        assert asyncio.get_running_loop().time() - started < 25
        servers[reader].running.interrupt(signal.SIGCONT)
        await until(lambda: is_true(states, lambda found: found[reader] == "standby"))
        # A clean stop gives the stream back at once.
        started = asyncio.get_running_loop().time()
        other.running.interrupt(signal.SIGTERM)
        await until(lambda: is_connected(servers[reader]))
        assert asyncio.get_running_loop().time() - started < 8
        code, _, err = await other.running.end()
        assert code == 0, err
        assert SECRET not in err
        ledger = await servers[reader].get("/v1/ledger")
        assert ledger["balanced"]
        assert not ledger["overflow"]


async def is_true(read, condition):
    return condition(await read())


async def is_connected(server):
    return 'state="connected"' in "".join(await server.metric("client_state"))


@pytest.mark.slow
async def test_roles_pushes_live_context_and_commands(serve, ended, database):
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(serve("--role", "ingest"))
        front, other = [await stack.enter_async_context(serve("--role", "serve")) for _ in range(2)]
        assert (await worker.client.get("/v1/ledger")).status_code == 404
        assert (await worker.client.get("/")).status_code == 404
        assert (await worker.get("/readyz"))["status"] == "ok"
        async with other.client.stream("GET", "/v1/stream") as stream:
            lines = stream.aiter_lines()
            await front.push("s1", "Export report")
            async with asyncio.timeout(30):
                line = await anext(line async for line in lines if line.startswith("data:"))
            assert "Export report" in line
        live = await other.get("/v1/live", user_id="ann")
        assert "Export report" in json.dumps(live)
        shares = await until(lambda: owned(worker))
        assert sorted(shares.values()) == [0.0, 0.0, 64.0]
        assert await until(lambda: owned(front)) == shares
        assert len(await front.metric("replica_lag_seconds")) == 3
        page = (await front.client.get("/", headers={"accept": "text/html"})).text
        assert "Replicas" in page
        # The commands ask whichever server they are told.
        asked = {"AUTOPLAY_RAG_URL": str(other.client.base_url), "AUTOPLAY_RAG_KEY": ADMIN}
        await until(lambda: is_stored(other))
        for command, said in (
            (["search", "who exported a report?", "--json"], "s1"),
            (["sessions"], "s1"),
            (["status", "--json"], '"stored":1'),
            (["dead-letters", "list"], ""),
            (["verify"], "1 chunks checked"),
            (["forget", "--user", "ann"], ""),
        ):
            code, out, err = await ended(*command, **asked)
            assert code == 0, err
            assert said in out
        await until(lambda: is_gone(front))
        for server in (worker, front, other):
            server.running.interrupt(signal.SIGTERM)
        for server in (worker, front, other):
            code, _, err = await server.running.end()
            assert code == 0, err
            assert SECRET not in err


async def owned(server):
    found = await server.metric("replica_partitions")
    return found if sum(found.values()) == 64 and len(found) == 3 else None


async def is_stored(server):
    return (await server.get("/v1/ledger"))["stored"] == 1


async def is_gone(server):
    return (await server.get("/v1/live", user_id="ann"))["session"] is None


@pytest.mark.slow
async def test_ready_again_when_the_database_is_back(serve, postgres):
    async with serve() as server:
        await server.push("s1", "Export report")
        postgres.stop()

        async def status():
            answer = await server.client.get("/readyz")
            return answer.status_code, answer.json()["status"]

        await until(lambda: is_true(status, lambda found: found == (503, "unavailable")))
        reasons = (await server.client.get("/readyz")).json()["reasons"]
        assert any("lease" in reason for reason in reasons)
        postgres.start()
        await until(lambda: is_true(status, lambda found: found == (200, "ok")))
        await server.push("s1", "Open billing")
        await until(lambda: is_both(server))


async def is_both(server):
    return (await server.get("/v1/ledger"))["stored"] == 2
