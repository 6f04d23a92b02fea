"""A server on loopback, with people of two products and a session that two people used."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from pipelines import make_actions

from autoplay_rag import ActionsPayload, ChatTurn, SlimAction, SummaryPayload
from autoplay_rag.serve import Keys, SigningKeys, create_app, mint_token
from autoplay_rag.serve.server import HttpServer

KEYS = Keys(admin="admin-key-of-tests", read="read-key-of-tests", ingest="ingest-key-of-tests")
SIGNING = SigningKeys("s" * 32, previous="p" * 32)
WEBHOOK_SECRET = "webhook-secret"
SECRET_WORD = "bobsecret"
"""In what Bob did. Nothing that Ann's token returns may have it."""


class Running:
    """A running server, its pipeline and the lines of its audit log."""

    def __init__(self, server, pipeline, audit):
        self.server = server
        self.pipeline = pipeline
        self.audit = audit

    def client(self, credential=None, **options):
        headers = {"authorization": f"Bearer {credential}"} if credential else {}
        return httpx.AsyncClient(
            base_url=self.server.url, headers=headers | options.pop("headers", {}), timeout=30
        )


def token(**bound):
    return mint_token(bound.pop("product_id", "acme"), keys=SIGNING, **bound)


def credentials():
    """One credential for each kind of principal."""
    return {
        "nobody": None,
        "admin": KEYS.admin,
        "read": KEYS.read,
        "ingest": KEYS.ingest,
        "user token": token(user_id="ann"),
        "session token": token(session_id="s1"),
    }


@pytest.fixture
def serve(make_pipeline):
    """Start a server with an empty pipeline."""

    @asynccontextmanager
    async def start(*, journal=None, pipeline=None, **options):
        lines = []
        pipeline = pipeline or make_pipeline(journal=journal)
        given = {"keys": KEYS, "signing_keys": SIGNING, "rate": 10_000, "audit": lines.append}
        app = create_app(pipeline, webhook_secret=WEBHOOK_SECRET, **(given | options))
        server = HttpServer(app, "127.0.0.1", 0)
        async with pipeline:
            task = asyncio.create_task(server.run_until_stopped())
            ready = asyncio.create_task(server.ready())
            try:
                await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
                yield Running(server, pipeline, lines)
            finally:
                ready.cancel()
                server.stop()
                await task

    return start


@pytest.fixture
async def running(serve, tmp_path):
    """A server with data; see `fill`."""
    async with serve(journal=tmp_path / "journal.db") as started:
        await fill(started.pipeline)
        yield started


async def fill(pipeline):
    for payload in (
        make_actions("s1", "ann opened reports", "ann exported", user="ann", at=1000.0),
        make_actions("s2", f"bob opened {SECRET_WORD}", user="bob", at=2000.0),
        # Ann, then Bob.
        make_actions("s3", "ann paid", user="ann", at=3000.0),
        make_actions("s3", f"bob cancelled {SECRET_WORD}", user="bob", at=4000.0),
        make_actions("s3", f"somebody wrote {SECRET_WORD}", at=5000.0),
        of_both(),
        SummaryPayload("acme", "s1", "Ann exported a report.", 0, 1500.0),
        ChatTurn("acme", "s1", "ann", "thread", "How do I export?", "Click Export.", [], 1600.0),
    ):
        await pipeline.accept(payload)
    # The same ids in another product are other people.
    other = make_actions("s1", f"other ann {SECRET_WORD}", user="ann", at=7000.0)
    other.product_id = "umbrella"
    await pipeline.accept(other)
    await pipeline.drain()


def of_both(session="s4"):
    """One payload with actions of Ann and Bob."""
    actions = [
        SlimAction(
            text, text, "https://app.test/p", n, "click", 6000.0 + n, 6000.0 + n, user_id=who
        )
        for n, (who, text) in enumerate((("ann", "ann looked"), ("bob", f"bob {SECRET_WORD}")))
    ]
    return ActionsPayload("acme", session, None, None, actions, 2, 6010.0)
