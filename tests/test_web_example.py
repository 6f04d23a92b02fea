"""The web application in the README: the login gives the user, and an empty question is a 422."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from autoplay_rag.devserver import LocalConnector
from autoplay_rag.payloads import ActionsPayload, SlimAction

ROOT = Path(__file__).parents[1]
PLACEHOLDER = "https://connector.example.com/stream/acme"
LOGIN = {"Authorization": "Bearer a-secret-of-this-user"}


def visit(user, what):
    return ActionsPayload("acme", f"s-{user}", user, actions=[SlimAction(what, what)], count=1)


VISITS = [visit("u_030", "exported the revenue report"), visit("u_031", "exported the salaries")]


def load(url):
    """Load the block as a web server imports it."""
    text = (ROOT / "README.md").read_text().partition("## In a web application")[2]
    code = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[0]
    names = {"__name__": "web_example"}
    exec(compile(code.replace(PLACEHOLDER, url), "web_example", "exec"), names)
    return names


@pytest.mark.slow
async def test_the_user_comes_from_the_login_and_an_empty_question_is_refused(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    async with LocalConnector(VISITS) as connector:
        names = load(connector.url)
        transport = httpx.ASGITransport(names["app"])
        async with (
            names["lifespan"](names["app"]),
            httpx.AsyncClient(transport=transport, base_url="http://web") as http,
        ):
            async with asyncio.timeout(30):
                while names["pipeline"].ledger.received < 2:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.02)
            await names["pipeline"].drain()

            async def ask(headers=LOGIN, **query):
                return await http.get("/search", params=query, headers=headers)

            answered = await ask(q="who exported a report?")
            assert answered.status_code == 200
            assert [("revenue" in text) for text in answered.json()] == [True]
            # A user in the query has no effect.
            for name in ("user_id", "user", "authorization"):
                other = await ask(q="who exported a report?", **{name: "u_031"})
                assert other.json() == answered.json()
            for q in ("", " ", "\n\t", "\u00a0"):
                assert (await ask(q=q)).status_code == 422
            assert (await ask()).status_code == 422
            for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": ""}):
                assert (await ask(wrong, q="who?")).status_code == 401
                assert (await ask(wrong, q="who?", user_id="u_030")).status_code == 401
