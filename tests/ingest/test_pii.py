"""With `redact="pii"`, what is removed is in no file, no log, no live session and no search result."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplay_rag import (
    ActionsPayload,
    ChatTurn,
    IngestPipeline,
    PiiRedactor,
    SlimAction,
    SummaryPayload,
    follow_journal,
)
from autoplay_rag.content.render import render
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.journal.bodies import unpack
from autoplay_rag.stores import MemoryStore

pytestmark = pytest.mark.timeout(60)

KEY = b"0123456789abcdef0123456789abcdef"
PERSONAL = [
    "ann.smith@acme.test",
    "+49 151 23456789",
    "4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00",
    "203.0.113.77",
    "2001:db8::77",
    "sk-abcDEF1234567890abcDEF",
]


def payloads(secret: str) -> list:
    """Payloads of each kind with a text in every field."""
    action = SlimAction(
        f"About {secret} here",
        f'User typed "{secret}" into "Search"',
        f"https://app.test/of/{secret}",
        0,
        "type",
        1000.0,
        1001.0,
        f"https://app.test/?q={secret}",
        email=secret,
    )
    return [
        ActionsPayload("acme", "s1", "u1", secret, [action], 1, 1010.0),
        SummaryPayload("acme", "s1", f"Asked for {secret} twice.", 1, 1011.0),
        ChatTurn(
            "acme", "s1", "u1", None, f"Is {secret} right?", f"{secret} is.", [secret], 1012.0
        ),
    ]


def bytes_of(folder: Path) -> bytes:
    """All bytes of the files, and all payloads in the journal, unpacked."""
    found = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    with sqlite3.connect(folder / "j.db") as db:
        found += [unpack(body) or b"" for (body,) in db.execute("SELECT body FROM payload")]
    db.close()
    return b"\n".join(found)


async def ingest(given, journal, embedder, **options) -> tuple[IngestPipeline, list, list]:
    async with IngestPipeline(
        MemoryStore(), embedder, journal=journal, batch_window=0.0, **{"redact": "pii", **options}
    ) as pipeline:
        for payload in given:
            send = pipeline.on_chat if isinstance(payload, ChatTurn) else None
            if isinstance(payload, SummaryPayload):
                send = pipeline.on_summary
            await (send or pipeline.on_actions)(payload)
        await pipeline.drain()
        hits = await pipeline.search("who?", 100)
        letters = await pipeline.dead_letters.list()
    return pipeline, hits, letters


@pytest.mark.parametrize("redact", ["pii", PiiRedactor(pseudonyms=KEY), ["pii", lambda p: p]])
@pytest.mark.parametrize("secret", PERSONAL)
async def test_it_is_nowhere(secret, redact, tmp_path, embedder, caplog):
    caplog.set_level(logging.DEBUG)
    pipeline, hits, _ = await ingest(
        payloads(secret), tmp_path / "j.db", embedder, redact=redact, include_email=True
    )
    assert pipeline.ledger.stored == 3
    (session,) = pipeline.live.sessions()
    shown = str([hits, session])
    assert "<" in shown
    for found in (shown, caplog.text, str(embedder.requests)):
        assert secret not in found
    assert secret.encode() not in bytes_of(tmp_path)


@pytest.mark.parametrize("secret", PERSONAL)
async def test_it_is_in_no_dead_letter(secret, tmp_path, embedder, caplog):
    def select(payload):
        raise ValueError(secret)

    caplog.set_level(logging.DEBUG)
    pipeline, _, letters = await ingest(
        payloads(secret), tmp_path / "j.db", embedder, select=select
    )
    assert (pipeline.ledger.dead, len(letters)) == (3, 3)
    assert all(letter.payload is not None for letter in letters)
    assert secret not in str([(letter.error, letter.payload.to_dict()) for letter in letters])
    assert secret not in caplog.text
    assert secret.encode() not in bytes_of(tmp_path)


async def test_it_is_in_no_followed_payload_and_not_in_live_after_a_restart(tmp_path, embedder):
    secret = PERSONAL[0]
    await ingest(payloads(secret), tmp_path / "j.db", embedder)
    pipeline, hits, _ = await ingest([], tmp_path / "j.db", embedder)
    assert secret not in str([hits, pipeline.live.sessions()])
    async with follow_journal(tmp_path / "j.db", seconds=1e9) as live:
        (session,) = live.sessions()
        assert secret not in str(session)


async def test_what_was_redacted_is_still_recognised_when_it_comes_again(tmp_path, embedder):
    given = payloads(PERSONAL[0])
    pipeline, _, _ = await ingest([*given, *given], tmp_path / "j.db", embedder)
    assert (pipeline.ledger.stored, pipeline.ledger.duplicate) == (3, 3)


async def test_people_with_addresses_as_ids_can_be_looked_up_by_their_pseudonyms(embedder):
    redact = PiiRedactor(pseudonyms=KEY)
    given = [
        ActionsPayload("acme", f"{name}@acme.test", f"{name}@acme.test", None, [action], 1, 1010.0)
        for name in ("ann", "bob")
        for action in [SlimAction("Export", f"User met {name}", "https://a.test/", 0, "click", 1.0)]
    ]
    async with IngestPipeline(
        MemoryStore(), embedder, batch_window=0.0, redact=redact, render=render
    ) as pipeline:
        await asyncio.gather(*map(pipeline.on_actions, given))
        await pipeline.drain()
        for name in ("ann", "bob"):
            value = redact.redact_id(f"{name}@acme.test")
            for where in ({"user_id": value}, {"session_id": value}):
                hits = await pipeline.search("who?", **where)
                assert [f"met {name}" in hit.text for hit in hits] == [True], where
        assert await pipeline.search("who?", user_id="ann@acme.test") == []


async def test_without_pseudonyms_people_with_addresses_as_ids_are_not_mixed_up(embedder):
    given = [
        ActionsPayload(
            "acme", f"s-{name}", f"{name}@acme.test", None, [SlimAction(name)], 1, 1010.0
        )
        for name in ("ann", "bob")
    ]
    async with IngestPipeline(MemoryStore(), embedder, batch_window=0.0, redact="pii") as pipeline:
        await asyncio.gather(*map(pipeline.on_actions, given))
        await pipeline.drain()
        hits = await pipeline.search("who?")
        assert sorted((hit.session_id, hit.user_id) for hit in hits) == [
            ("s-ann", None),
            ("s-bob", None),
        ]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigurationError, match='redact must be "pii", a function, or a sequence'):
        IngestPipeline(MemoryStore(), redact="names")


REGIONS = ("US", "DE", "GB", "FR", "BR", "IN", "JP")
NUMBERS = [
    phonenumbers.format_number(phonenumbers.example_number(region), style)
    for region in REGIONS
    for style in (
        phonenumbers.PhoneNumberFormat.E164,
        phonenumbers.PhoneNumberFormat.INTERNATIONAL,
    )
]
ADDRESSES = st.emails().filter(lambda email: "/@" not in email and len(email) > 8)
IPV6 = st.ip_addresses(v=6).map(str).filter(lambda text: len(text) > 8)


@settings(max_examples=max(10, settings.default.max_examples // 5))
@given(
    st.lists(
        st.one_of(ADDRESSES, IPV6, st.sampled_from(NUMBERS + PERSONAL)), min_size=1, max_size=5
    )
)
def test_generated_values_are_in_no_byte_of_the_journal(
    tmp_path_factory, scripted_embedder, values
):
    folder = tmp_path_factory.mktemp("journal")
    given = [payload for value in values for payload in payloads(value)]
    asyncio.run(ingest(given, folder / "j.db", scripted_embedder()))
    found = bytes_of(folder)
    for value in values:
        assert value.encode() not in found
