"""Random interleavings of events, batches, restarts and requests to forget, checked against a model."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

import pytest
from hypothesis import settings

from autoplay_rag import IngestPipeline
from autoplay_rag.payloads import ActionsPayload, SlimAction, SummaryPayload
from autoplay_rag.stores import MemoryStore, VectorStore

USERS = ("ann", "bob", "cat")
SESSIONS = ("s1", "s2", "s3")


@dataclass
class Sent:
    word: str
    session: str
    user: str | None
    payload: object
    at: float
    gone: bool = False
    unsure: bool = False


class Model:
    """What has to be found and what must not be. Anonymous payloads of shared sessions may be either."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.sent: list[Sent] = []
        self.people: dict[str, set[str]] = {}

    def next(self) -> Sent:
        source, number = self.source, len(self.sent)
        word, session = f"word{number}x", source.choice(SESSIONS)
        user = source.choice((*USERS, None, None))
        at = time.time()
        if source.random() < 0.2:
            payload, user = SummaryPayload("acme", session, f"did {word}", 1, at), None
        else:
            action = SlimAction(word, f"User clicked {word}", "https://a.test", 0, "click", at, at)
            payload = ActionsPayload("acme", session, user, None, [action], 1, at)
        made = Sent(word, session, user, payload, at)
        self.sent.append(made)
        if user:
            self.people.setdefault(session, set()).add(user)
        return made

    def forget(self, *, user: str | None, session: str | None, until: float | None) -> None:
        for one in self.sent:
            if until is not None and one.at > until:
                continue
            if one.gone or (session is not None and one.session != session):
                continue
            people = self.people.get(one.session, set())
            if user is None or one.user == user or (one.user is None and people == {user}):
                one.gone = True
            elif one.user is None and user in people:
                one.unsure = True


async def found_in(pipeline: IngestPipeline, store: VectorStore) -> list[str]:
    """The words of all texts that the store, the listings and the live sessions have."""
    texts = [chunk.text async for page in store.scan() for chunk in page]
    for session in SESSIONS:
        texts += [hit.text for hit in await pipeline.search("word", session_id=session, k=100)]
        if whole := await pipeline.session(session):
            texts.append(str(whole))
    texts += [one.render(100_000) for one in pipeline.live.sessions()]
    texts += [str(letter.payload) for letter in await pipeline.dead_letters.list()]
    return texts


async def check(
    pipeline: IngestPipeline, store: VectorStore, model: Model, *, drained: bool
) -> None:
    texts = await found_in(pipeline, store)
    for one in model.sent:
        if one.gone:
            found = [text for text in texts if one.word in text]
            assert not found, f"{one} is still in {found}"
    if drained:
        stored = [chunk.text async for page in store.scan() for chunk in page]
        for one in model.sent:
            if not one.gone and not one.unsure:
                count = sum(one.word in text for text in stored)
                assert count == 1, f"{one} is stored {count} times"
        assert pipeline.ledger.balanced
        assert pipeline.ledger.pending == 0
        assert (await pipeline.verify()).clean


@pytest.mark.timeout(900)
@pytest.mark.parametrize("memory", [False, True], ids=["file", "memory"])
async def test_interleavings(make_pipeline, scripted_embedder, tmp_path, memory):
    for seed in range(max(3, settings.default.max_examples // 8)):
        journal = None if memory else tmp_path / f"{seed}.db"
        await _run(seed, make_pipeline, scripted_embedder(), MemoryStore(), journal)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_interleavings_in_postgres(make_pipeline, scripted_embedder, make_pg_store, postgres):
    for seed in range(3):
        store = make_pg_store(index="none")
        await _run(seed, make_pipeline, scripted_embedder(), store, postgres.dsn)


async def _run(seed, make_pipeline, embedder, store, journal):  # noqa: C901 - one step of each kind
    source = random.Random(seed)
    model, memory = Model(source), journal is None

    async def slow(texts):
        await asyncio.sleep(source.choice((0.0, 0.0, 0.01, 0.03)))

    embedder.script = slow

    def make():
        return make_pipeline(
            store,
            embedder=embedder,
            journal=journal,
            batch_window=source.choice((0.0, 0.0, 0.02)),
            max_batch_actions=source.choice((1, 2, 20)),
            drain_timeout=source.choice((0.0, 5.0)) if not memory else 30.0,
        )

    pipeline = make()
    await pipeline.start()
    try:
        for _ in range(40):
            choice = source.random()
            if choice < 0.6:
                await asyncio.gather(
                    *(pipeline.accept(model.next().payload) for _ in range(source.randint(1, 6)))
                )
            elif choice < 0.7:
                await asyncio.sleep(source.choice((0.0, 0.01, 0.03)))
            elif choice < 0.78:
                await pipeline.drain(30)
                await check(pipeline, store, model, drained=True)
            elif choice < 0.9:
                await _forget(pipeline, model, source)
                await check(pipeline, store, model, drained=False)
            elif choice < 0.95 and (gone := [one for one in model.sent if one.gone]):
                assert await pipeline.accept(source.choice(gone).payload) == "refused"
            elif not memory:
                await pipeline.aclose()
                pipeline = make()
                await pipeline.start()
        await pipeline.drain(30)
        await check(pipeline, store, model, drained=True)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        await pipeline.aclose()


async def _forget(pipeline, model, source):
    """Forget somebody while more events arrive. Nobody can say which of them came before."""
    user = source.choice(USERS) if source.random() < 0.7 else None
    session = source.choice(SESSIONS) if user is None or source.random() < 0.2 else None
    before = len(model.sent)
    until = source.choice(model.sent).at if model.sent and source.random() < 0.4 else None
    model.forget(user=user, session=session, until=until)
    receipt, *_ = await asyncio.gather(
        pipeline.forget(user_id=user, session_id=session, until=until),
        *(pipeline.accept(model.next().payload) for _ in range(source.randint(0, 5))),
    )
    for one in model.sent[before:]:
        one.unsure = one.user in (None, user) or one.session == session
        if one.user is not None and one.user == user:
            for other in model.sent:
                other.unsure |= other.user is None and other.session == one.session
    if receipt.text_only:
        # Payloads in a chunk with forgotten ones whose body was not kept, as in memory: they have
        # left the store. On a busy machine more payloads share a chunk.
        for one in model.sent:
            one.unsure |= not one.gone
    assert receipt.deleted, receipt
