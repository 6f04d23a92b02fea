"""`autoplay-rag ingest` with several streams: one pipeline, with a client and a token per stream."""

import json

import httpx
import pytest

from autoplay_rag.cli.app import run
from autoplay_rag.cli.sources import token_variable
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.errors import JournalError
from autoplay_rag.journal.reader import JournalReader
from autoplay_rag.payloads import SummaryPayload

pytestmark = pytest.mark.timeout(120)


def summary(product, n=0):
    return SummaryPayload(product, f"s-{product}-{n}", f"The user of {product} paid {n}.", 1, 5.0)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "give the URL of a stream"),
        (["http://c.example/stream/a", "http://c.example/stream/a"], "a URL is given twice"),
        (
            ["http://c.example/stream/a", "http://c.example/stream/b", "--token", "uk_1"],
            "got 2 URLs and 1 tokens",
        ),
        (
            ["http://c.example/stream/a", "--token", "uk_1", "--token", "uk_2"],
            "got 1 URLs and 2 tokens",
        ),
        (["http://c.example/stream/a", "ftp://c.example/stream/b"], "http:// or https://"),
        (["http://c.example/stream/a", "--batch-window", "-1"], "batch_window must be at least 0"),
        (["http://c.example/stream/a", "--batch-window", "nan"], "batch_window must be at least 0"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, args, says):
    monkeypatch.chdir(tmp_path)
    assert run(["ingest", *args]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "uk_" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://c.example/stream/acme", "ACME"),
        ("https://c.example/stream/acme/", "ACME"),
        ("https://c.example/stream/Acme-eu.2?x=1", "ACME_EU_2"),
        ("https://c.example/stream/caf%C3%A9", "CAF_"),
    ],
)
def test_each_stream_has_a_variable_for_its_token(url, name):
    assert token_variable(url) == f"AUTOPLAY_APP_UNKEY_TOKEN_{name}"


@pytest.mark.slow
async def test_several_streams_are_read_into_one_store(ended, tmp_path):
    env = {"AUTOPLAY_APP_UNKEY_TOKEN_ACME": "uk_acme", "AUTOPLAY_APP_UNKEY_TOKEN": "uk_other"}
    async with (
        LocalConnector([summary("acme")], token="uk_acme") as acme,
        LocalConnector([summary("globex", n) for n in range(2)], token="uk_other") as globex,
        LocalConnector([summary("initech")], token="uk_other") as initech,
    ):
        urls = [acme.url, globex.url, initech.url]
        args = ("ingest", *urls, "--idle-seconds", "5", "--batch-window", "0")
        code, out, err = await ended(*args, "--collection", "all", **env)
        assert (code, out) == (0, "received 4 · pending 0 · stored 4\n")
        assert "uk_" not in err
        assert "--collection all" in err
        tokens = [f"--token={token}" for token in ("uk_acme", "uk_other", "uk_other")]
        code, out, _ = await ended(*args, *tokens)
        assert code == 1, "the journal belongs to the other collection"
    code, out, _ = await ended("search", "who paid?", "--k", "9", "--json", "--collection", "all")
    products = sorted(hit["metadata"]["product_id"] for hit in json.loads(out))
    assert (code, products) == (0, ["acme", "globex", "globex", "initech"])


@pytest.mark.slow
async def test_one_stream_that_fails_for_good_does_not_end_the_others(started):
    async with (
        LocalConnector([summary("acme")], token="uk_right") as acme,
        LocalConnector([summary("globex", n) for n in range(20)], rate=4) as globex,
    ):
        tokens = ("--token", "uk_wrong", "--token", "uk_any")
        args = ("ingest", acme.url, globex.url, *tokens, "--batch-window", "0")
        async with started(*args, "--idle-seconds", "4") as running:
            said = await running.line("401", "stderr")
            assert " ERROR the connector client ended: 401" in said, "at once, with its time"
            code, out, err = await running.end()
    assert (code, out) == (1, "received 20 · pending 0 · stored 20\n")
    assert err.splitlines()[-1].startswith("error: 401")
    assert "/stream/acme" in err.splitlines()[-1]
    assert "uk_" not in said + err


@pytest.mark.slow
async def test_a_stream_that_nobody_answers_is_named(ended, silent_port):
    async with LocalConnector([summary("acme")]) as acme:
        silent = f"http://127.0.0.1:{silent_port}/stream/x"
        code, out, err = await ended("ingest", acme.url, silent, "--idle-seconds", "3")
    assert (code, out) == (1, "received 1 · pending 0 · stored 1\n")
    assert err.splitlines()[-1].startswith(f"error: could not connect to a stream at {silent}")


@pytest.mark.slow
async def test_all_that_fail_are_named(ended):
    async with (
        LocalConnector([], token="uk_right") as acme,
        LocalConnector([], token="uk_right") as globex,
    ):
        code, out, err = await ended("ingest", acme.url, globex.url)
    assert (code, out) == (1, "")
    assert [line.startswith("error: 401") for line in err.splitlines()[-2:]] == [True, True]


@pytest.mark.slow
async def test_a_stream_that_comes_back_is_said(started, eventually, tmp_path):
    connector = LocalConnector([summary("acme")])
    await connector.start()
    port = httpx.URL(connector.url).port
    async with started("ingest", connector.url) as running:
        await eventually(lambda: received(tmp_path / "chroma-journal.db") == 1)
        for _ in range(2):
            await connector.aclose()
            said = await running.line("no stream from", "stderr")
            assert " WARNING no stream from" in said
            connector = LocalConnector([summary("acme")], port=port)
            await connector.start()
            said = await running.line("connected again to", "stderr")
            assert said.endswith(f" WARNING connected again to {connector.url}")
        running.interrupt()
        code, _, _ = await running.end()
    await connector.aclose()
    assert code == 0


def received(journal):
    try:
        return JournalReader(journal).status().ledger.received
    except JournalError:  # not created yet
        return 0
