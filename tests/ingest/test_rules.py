"""The user's rules and the effect of their failures: select, redact, render."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

pytestmark = pytest.mark.timeout(30)


async def stored(pipeline) -> Counter:
    hits = await pipeline.search("?", 1000)
    return Counter(line for hit in hits for line in hit.text.split("\n"))


async def send(pipeline, make_actions, *names, session="s"):
    await asyncio.gather(*(pipeline.on_actions(make_actions(session, name)) for name in names))


def fail(_payload):
    raise RuntimeError("SECRET in the message")


async def test_a_select_that_raises_makes_a_dead_letter_with_the_payload(
    make_pipeline, make_actions
):
    async with make_pipeline(select=fail) as pipeline:
        await send(pipeline, make_actions, "a")
        (letter,) = await pipeline.dead_letters.list()
        assert letter.payload == make_actions("s", "a")
        assert letter.error == "select failed: RuntimeError: SECRET in the message"
        assert await pipeline.dead_letters.retry() == 1
        await pipeline.drain()
        assert pipeline.ledger.stored == 1


@pytest.mark.parametrize(
    "redact", [fail, lambda payload: None, lambda payload: {"title": "a dictionary"}]
)
async def test_a_redact_that_fails_keeps_key_and_error_and_never_the_body(
    make_pipeline, make_actions, tmp_path, redact, caplog
):
    journal = tmp_path / "j.db"
    async with make_pipeline(redact=redact, journal=journal) as pipeline:
        await send(pipeline, make_actions, "PRIVATE")
        await send(pipeline, make_actions, "PRIVATE")
        (letter,) = await pipeline.dead_letters.list()
        assert letter.payload is None
        assert letter.error.startswith("redact failed: ")
        assert (pipeline.ledger.dead, pipeline.ledger.duplicate) == (1, 1)
        assert await pipeline.dead_letters.retry() == 0
        written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert b"PRIVATE" not in written
        assert b"SECRET" not in written
        assert await pipeline.dead_letters.discard() == 1
    assert "PRIVATE" not in caplog.text
    assert "SECRET" not in caplog.text


async def test_with_redact_what_select_says_of_its_failure_is_not_kept(
    make_pipeline, make_actions, tmp_path, caplog
):
    def select(payload):
        raise ValueError(payload.actions[0].title)

    def redact(payload):
        return make_actions("s", "***")

    async with make_pipeline(select=select, redact=redact, journal=tmp_path / "j.db") as pipeline:
        await send(pipeline, make_actions, "PRIVATE")
        (letter,) = await pipeline.dead_letters.list()
        assert letter.error == "select failed: ValueError"
        assert letter.payload.actions[0].title == "***"
    assert "PRIVATE" not in caplog.text


async def test_the_redacted_payload_is_kept_and_the_key_is_of_the_original(
    make_pipeline, make_actions, tmp_path
):
    words = iter(["***", "---"])

    def redact(payload):
        return make_actions("s", next(words))

    async with make_pipeline(redact=redact, journal=tmp_path / "j.db") as pipeline:
        await send(pipeline, make_actions, "PRIVATE")
        await send(pipeline, make_actions, "PRIVATE")  # redacted differently, but a duplicate
        await pipeline.drain()
        assert await stored(pipeline) == Counter(["***"])
        assert pipeline.ledger.duplicate == 1
        assert all(b"PRIVATE" not in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad", [fail, lambda payloads: "", lambda payloads: None, lambda payloads: "half \ud800"]
)
async def test_a_render_that_fails_costs_that_payload_alone(
    make_pipeline, make_actions, titles, bad
):
    def render(payloads):
        text = titles(payloads)
        return bad(payloads) if "poison" in text else text

    async with make_pipeline(render=render, batch_window=60.0) as pipeline:
        await send(pipeline, make_actions, "a", "poison", "b")
        await pipeline.drain()
        assert await stored(pipeline) == Counter(["a", "b"])
        (letter,) = await pipeline.dead_letters.list()
        assert letter.error.startswith("render failed: ")


async def test_a_retried_letter_does_not_change_the_user_of_a_session(
    make_pipeline, make_actions, embedder, tmp_path
):
    def refuse(texts):
        if any("poison" in text for text in texts):
            raise ValueError("poison")

    embedder.script = refuse
    async with make_pipeline(journal=tmp_path / "j.db") as pipeline:
        await pipeline.on_actions(make_actions("s", "poison of ann", user="ann"))
        await pipeline.on_actions(make_actions("t", "other"))
        await pipeline.drain()
        await pipeline.on_actions(make_actions("s", "of bob", user="bob"))
        await pipeline.drain()
        embedder.script = lambda texts: None
        assert await pipeline.dead_letters.retry() == 1
        await pipeline.drain()
        await pipeline.on_actions(make_actions("s", "of bob, too"))
        await pipeline.drain()
        for user, expected in (("ann", {"poison of ann"}), ("bob", {"of bob", "of bob, too"})):
            assert {hit.text for hit in await pipeline.search("?", 10, user_id=user)} == expected
