"""`autoplay-rag serve` and `autoplay-rag token`, each in its own process."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import stat
import sys
import time

import httpx
import pytest

from autoplay_rag.cli.serve import new_loop
from autoplay_rag.devserver import LocalConnector, questions
from autoplay_rag.serve import SigningKeys, find_running
from autoplay_rag.serve.tokens import verify_token

ADMIN = "an-admin-key-of-tests"
SIGNING = "s" * 32


async def address(running):
    return (await running.line("serving ")).removeprefix("serving ")


async def test_it_ingests_and_answers_until_it_is_stopped(started, tmp_path):
    """A SIGTERM tells the subscribers, stores what was received, and ends with exit code 0."""
    async with (
        LocalConnector(rate=200) as connector,
        started("serve", connector.url, "--port", "0", AUTOPLAY_RAG_ADMIN_KEY=ADMIN) as running,
    ):
        url = await address(running)
        headers = {"authorization": f"Bearer {ADMIN}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            while (ledger := (await client.get("/v1/ledger")).json())["received"] < 100:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
            found = await client.post("/v1/search", json={"query": "export a report"})
            assert found.json()["hits"]
            async with client.stream("GET", "/v1/stream") as stream:
                running.interrupt(signal.SIGTERM)
                text = (await stream.aread()).decode()
            assert text.endswith('event: end\ndata: {"reason":"the server stops"}\n\n')
        code, out, err = await running.end()
    assert code == 0, err
    assert "Traceback" not in err
    assert ADMIN not in out + err
    assert '"route":"POST /v1/search"' in err
    assert ledger["balanced"]
    last = next(line for line in err.splitlines()[::-1] if line.startswith("received"))
    assert "pending 0" in last


@pytest.mark.slow
async def test_without_keys_one_is_made_and_named(started, tmp_path):
    async with started("serve", "--port", "0", "--store", "chroma:data/store") as running:
        url = await address(running)
        told = await running.line("one was made", "stderr")
        path = tmp_path / "data" / "store-journal.db.server"
        assert str(path) in told
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        server = find_running(tmp_path / "data" / "store-journal.db")
        assert server.url == url
        assert server.key not in told
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/v1/ledger")).status_code == 401
            headers = {"authorization": f"Bearer {server.key}"}
            assert (await client.get("/v1/ledger", headers=headers)).status_code == 200
        running.interrupt(signal.SIGKILL)
        await running.end()
        # The file is still there, and not believed.
        assert path.exists()
        assert find_running(tmp_path / "data" / "store-journal.db") is None
    async with started("serve", "--port", "0", "--store", "chroma:data/store") as running:
        await address(running)
        running.interrupt()
        code, _, err = await running.end()
    assert code == 0, err
    assert not path.exists()


@pytest.mark.slow
async def test_commands_find_it_and_notice_when_it_was_killed(started, ended, tmp_path):
    async with started("serve", "--port", "0", "--store", "chroma:data/store") as running:
        url = await address(running)
        await running.line("one was made", "stderr")
        found = find_running(tmp_path / "data" / "store-journal.db")
        assert (found.url, found.collection) == (url, "autoplay")
        assert found.store == str(tmp_path / "data" / "store")
        # A command that opened the Chroma folder itself would fail.
        assert (await ended("verify", "--store", "chroma:data/store"))[:2] == (
            0,
            "0 chunks checked: no difference\n",
        )
        code, _, err = await ended("sessions", "--store", "chroma:data/store")
        assert (code, f"answered by the server at {url}" in err) == (0, True)
        assert (await ended("status", "data/store-journal.db", "--check"))[:2] == (0, "ok\n")
        running.interrupt(signal.SIGKILL)
        await running.end()
    assert (tmp_path / "data" / "store-journal.db.server").exists()
    code, out, _ = await ended("status", "data/store-journal.db", "--check")
    assert (code, "the pipeline is not running" in out) == (1, True)
    assert (await ended("verify", "--store", "chroma:data/store"))[0] == 0


@pytest.mark.slow
def test_on_a_terminal_the_address_of_the_page_has_the_key(started_on_terminal):
    process, master = started_on_terminal("serve", "--port", "0")
    shown = b""
    while not (found := re.search(rb"open (http://\S+\?key=\S+)\r", shown)):
        shown += os.read(master, 65536)
    with httpx.Client(follow_redirects=True) as client:
        page = client.get(found[1].decode())
    assert page.status_code == 200
    assert "key=" not in str(page.url)
    process.send_signal(signal.SIGTERM)
    while True:
        try:
            if not os.read(master, 65536):
                break
        except OSError:
            break
    os.close(master)
    assert process.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("installed", [True, False])
def test_the_loop_is_of_uvloop_if_that_is_installed(installed, monkeypatch):
    if installed:
        uvloop = pytest.importorskip("uvloop")
    else:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_loop()
    try:
        assert loop.run_until_complete(asyncio.sleep(0, 7)) == 7
        assert isinstance(loop, uvloop.Loop if installed else asyncio.SelectorEventLoop)
    finally:
        loop.close()


async def test_a_port_that_is_taken_fails_before_anything_starts(ended, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = await ended("serve", "--port", port)
    assert code == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in err
    assert not list(tmp_path.glob("*.db*"))


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_deleted_store_is_rebuilt_and_another_journals_is_adopted(started, ended, tmp_path):
    async with LocalConnector() as connector:
        assert (await ended("ingest", connector.url, "--idle-seconds", "5"))[0] == 0
    shutil.rmtree(tmp_path / "chroma")
    code, out, err = await ended("serve", "--port", "0")
    assert (code, out) == (1, "")
    assert "--rebuild" in err.splitlines()[-1]
    async with started(
        "serve", "--rebuild", "--port", "0", AUTOPLAY_RAG_ADMIN_KEY=ADMIN
    ) as running:
        url = await address(running)
        headers = {"authorization": f"Bearer {ADMIN}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            async with asyncio.timeout(30):
                while not await found_by_meaning(client):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
        running.interrupt()
        assert (await running.end())[0] == 0

    other = ("serve", "--journal", "other.db", "--port", "0")
    code, out, err = await ended(*other)
    assert (code, out) == (1, "")
    assert "--adopt" in err.splitlines()[-1]
    async with started(*other, "--adopt", AUTOPLAY_RAG_ADMIN_KEY=ADMIN) as running:
        url = await address(running)
        headers = {"authorization": f"Bearer {ADMIN}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            assert await found_by_meaning(client)
        running.interrupt()
        assert (await running.end())[0] == 0


async def found_by_meaning(client):
    found = await client.post("/v1/search", json={"query": "export a report", "mode": "dense"})
    return found.json()["hits"]


@pytest.mark.slow
async def test_audit_lines_go_to_a_file(started, tmp_path):
    options = ("--audit-log", "audit.jsonl", "--allow-host", "search.test")
    async with started("serve", "--port", "0", *options, AUTOPLAY_RAG_READ_KEY=ADMIN) as running:
        url = await address(running)
        headers = {"authorization": f"Bearer {ADMIN}", "host": "search.test"}
        async with httpx.AsyncClient(base_url=url, headers=headers) as client:
            assert (await client.get("/v1/sessions")).status_code == 200
        running.interrupt()
        await running.end()
    path = tmp_path / "audit.jsonl"
    assert json.loads(path.read_text())["route"] == "GET /v1/sessions"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.slow
async def test_samples_are_found_within_a_minute_and_nothing_stays(started, tmp_path):
    (tmp_path / "tmp").mkdir()
    began = time.monotonic()
    options = {"AUTOPLAY_RAG_READ_KEY": ADMIN, "TMPDIR": str(tmp_path / "tmp")}
    async with started("serve", "--samples", "--port", "0", **options) as running:
        url = await address(running)
        question = (await running.line("search for", "stderr")).partition('"')[2].removesuffix('"')
        (session,) = (q.session_id for q in questions() if q.question == question)
        headers = {"authorization": f"Bearer {ADMIN}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            body = {"query": question, "k": 1}
            while True:
                found = (await client.post("/v1/search/sessions", json=body)).json()["hits"]
                if found and found[0]["session_id"] == session:
                    break
                await asyncio.sleep(0.1)  # another process
            assert time.monotonic() - began < 60
        assert list((tmp_path / "tmp").iterdir())
        running.interrupt()
        code, _, err = await running.end()
    assert code == 0, err
    assert "Traceback" not in err
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["https://c.test/stream/acme"], ["--config", "a.toml"]])
def test_samples_do_not_mix_with_a_stream(cli, tmp_path, arguments):
    (tmp_path / "a.toml").write_text('store = "chroma:./chroma"')
    done = cli("serve", "--samples", *arguments)
    assert done.returncode == 2
    assert "--samples takes no URL" in done.stderr
    assert not (tmp_path / "chroma").exists()


@pytest.mark.slow
async def test_variables_name_the_settings_the_hosts_and_the_files_of_tokens(started, tmp_path):
    """As a container does."""
    async with LocalConnector(token="stream-token") as connector:
        (tmp_path / "other.toml").write_text(f'url = "{connector.url}"\nstore = "chroma:./kept"')
        (tmp_path / "token").write_text("stream-token\n")
        env = {
            "AUTOPLAY_RAG_CONFIG": "other.toml",
            "AUTOPLAY_RAG_ALLOW_HOST": "one.test two.test",
            "AUTOPLAY_APP_UNKEY_TOKEN_FILE": "token",
            "AUTOPLAY_RAG_READ_KEY": ADMIN,
        }
        async with started("serve", "--port", "0", **env) as running:
            url = await address(running)
            async with asyncio.timeout(30):
                await connector.wait_subscribers()
            async with httpx.AsyncClient(base_url=url) as client:
                for host, status in (("one.test", 200), ("two.test", 200), ("three.test", 421)):
                    headers = {"authorization": f"Bearer {ADMIN}", "host": host}
                    assert (await client.get("/v1/ledger", headers=headers)).status_code == status
            running.interrupt()
            code, _, err = await running.end()
    assert code == 0, err
    assert "settings: other.toml" in err
    assert (tmp_path / "kept").is_dir()


def test_a_token_is_printed_alone(cli):
    done = cli(
        "token",
        "--product",
        "acme",
        "--user",
        "ann",
        "--ttl",
        "5m",
        AUTOPLAY_RAG_SIGNING_KEY=SIGNING,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    token = done.stdout.removesuffix("\n")
    assert verify_token(token, SigningKeys(SIGNING)).user_id == "ann"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", "ann"], "AUTOPLAY_RAG_SIGNING_KEY"),
        (["--user", "ann", "--session", "s1"], "not both"),
        (["--user", "ann", "--ttl", "9d"], "ttl must be"),
    ],
)
def test_a_token_that_cannot_be_made(cli, arguments, message):
    done = cli("token", "--product", "acme", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
