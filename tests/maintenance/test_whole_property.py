"""Everything at once, against a model: events, summaries, late identities, requests to forget,
retention, outages, crashes and changes of the model, in random order.

Whatever the order: each action that is not retired, forgotten or too old is stored exactly once, under
the person it belongs to; and no file holds anything of what was forgotten. The same in PostgreSQL, where
no row holds anything of it.
"""

from __future__ import annotations

import asyncio
import random
import sys
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings
from schema_copies import SchemaCopies, WatchedPgStore
from watched import WatchedStore

sys.path.insert(0, str(Path(__file__).parent))

from aging import DAY, Clock, actions, at_time, contents, sweep

from autoplay_rag.errors import StoreMismatchError, StoreUnavailableError
from autoplay_rag.journal import bodies
from autoplay_rag.payloads import SummaryPayload

USERS = ("ann", "bob", "cat", "dan")
SESSIONS = tuple(f"s{n}" for n in range(6))
DIMENSIONS = {"one": 8, "two": 12}
KEPT_DAYS = 7


@dataclass
class Sent:
    """An event and what has to become of it.

    Attributes:
        gone: It was forgotten.
        unsure: Nobody can say whether it had to be forgotten.
    """

    word: str
    session: str
    user: str | None
    at: float
    is_summary: bool
    gone: bool = False
    unsure: bool = False


@dataclass
class Model:
    sent: list[Sent] = field(default_factory=list)
    people: dict[str, set[str]] = field(default_factory=dict)
    replaced: Counter[str] = field(default_factory=Counter)
    forgotten_in: set[str] = field(default_factory=set)

    def forget(
        self, *, user: str | None, session: str | None, until: float | None, since: float
    ) -> None:
        """What a request concerns. What happened before `since` may be deleted by its age."""
        known = {
            one.session for one in self.sent if one.user == user and not one.gone and one.at > since
        }
        for one in self.sent:
            if (until is not None and one.at > until) or one.gone:
                continue
            if session is not None and one.session != session:
                continue
            people = self.people.get(one.session, set())
            of_person = one.user is None and people == {user} and one.session in known
            if user is None or one.user == user or of_person:
                one.gone = True
                self.forgotten_in.add(one.session)
            elif one.user is None and user in people:
                # Nobody can say, or the journal does not know the person any more.
                one.unsure = True


class Outages:
    """A store that is out of service while `down`."""

    down = False

    async def upsert(self, chunks, vectors):
        self._check()
        await super().upsert(chunks, vectors)

    async def delete(self, ids):
        self._check()
        await super().delete(ids)

    async def update_metadata(self, changes):
        self._check()
        await super().update_metadata(changes)

    def _check(self):
        if self.down:
            raise StoreUnavailableError("out of service")


class FileStore(Outages, WatchedStore):
    pass


class PgStore(Outages, WatchedPgStore):
    pass


class InFiles:
    """A journal in a file, and a store in memory."""

    def __init__(self, folder: Path) -> None:
        self.store = FileStore()
        self.journal = folder / "0" / "journal.db"
        self.journal.parent.mkdir(parents=True)
        self._folder = folder
        self._starts = 0

    def copy(self) -> object:
        """What a crash leaves now."""
        operations = list(self.store.operations)
        self._starts += 1
        folder = self._folder / str(self._starts)
        folder.mkdir()
        for part in self.journal.parent.glob("journal.db*"):
            if not part.name.endswith(".lock"):
                (folder / part.name).write_bytes(part.read_bytes())
        return folder / "journal.db", operations

    async def restore(self, copy) -> None:
        """Go on with a copy."""
        self.journal, operations = copy
        self.store = await FileStore().replay(operations)

    def texts(self) -> str:
        """All that the files hold."""
        texts = contents(self.journal)
        for path in self.journal.parent.iterdir():
            raw = path.read_bytes()
            texts += raw.decode("latin-1") + inflated(raw)
        return texts


class InPostgres:
    """Journal and store in one schema."""

    def __init__(self, dsn: str, schema: str, copies: SchemaCopies) -> None:
        self.journal = dsn
        self._schema = schema
        self._copies = copies
        self.store = self._make_store()

    def _make_store(self) -> PgStore:
        return PgStore(self.journal, schema=self._schema, index="none")

    def copy(self) -> object:
        """What a crash leaves now."""
        return self._copies.take()

    async def restore(self, copy) -> None:
        """Go on with a copy."""
        self._copies.restore(copy)
        self.store = self._make_store()

    def texts(self) -> str:
        """All that the rows hold."""
        return "".join(
            raw.decode("latin-1") + inflated(raw) for raw in self._copies.take().values()
        )


class Run:
    """One random run."""

    def __init__(self, seed, place, make_pipeline, make_embedder) -> None:
        self.source = random.Random(seed)
        self.place = place
        self.make_pipeline = make_pipeline
        self.make_embedder = make_embedder
        self.model = Model()
        self.clock = Clock()
        self.moving: asyncio.Task | None = None
        self.pipeline = None

    # -- the pipeline -------------------------------------------------------------------------

    def embedder(self, model: str):
        made = self.make_embedder(DIMENSIONS[model])
        made.model = model

        async def slow(texts):
            await asyncio.sleep(self.source.choice((0.0, 0.0, 0.005)))

        made.script = slow
        return made

    @property
    def store(self):
        return self.place.store

    async def start(self) -> None:
        for model in DIMENSIONS:
            self.pipeline = at_time(
                self.make_pipeline(
                    self.store,
                    embedder=self.embedder(model),
                    journal=self.place.journal,
                    batch_window=self.source.choice((0.0, 0.0, 0.02)),
                    max_batch_actions=self.source.choice((1, 2, 20)),
                    summaries="replace",
                    retention_days=KEPT_DAYS,
                    drain_timeout=self.source.choice((0.0, 5.0)),
                ),
                self.clock,
            )
            try:
                await self.pipeline.start()
            except StoreMismatchError:
                continue
            return
        raise AssertionError("no model fits")

    async def close(self) -> None:
        await self.stop_moving()
        await self.pipeline.aclose()

    async def crash(self) -> None:
        """Go on with the journal and the store as they are now, whatever is under way."""
        # On the writer's thread, which may write the journal's files anew otherwise.
        copy = await self.pipeline._run._journal._writer.look(self.place.copy)
        await self.close()
        await self.place.restore(copy)
        await self.start()

    async def restart(self) -> None:
        self.store.down = False
        await self.close()
        await self.start()

    # -- steps --------------------------------------------------------------------------------

    async def send(self) -> None:
        await asyncio.gather(*(self._send_one() for _ in range(self.source.randint(1, 6))))

    async def _send_one(self) -> None:
        source, model = self.source, self.model
        self.clock.now += 0.01
        word, session = f"word{len(model.sent)}x", source.choice(SESSIONS)
        user = source.choice((USERS[int(session[1:]) % 4], None, None))
        if source.random() < 0.08:
            user = source.choice(USERS)
        is_summary = source.random() < 0.15
        if is_summary:
            user, count = None, source.choice((0, 1, 2, 1_000_000))
            payload = SummaryPayload("acme", session, f"did {word}", count, self.clock.now)
            model.replaced[session] += count
        else:
            payload = actions(session, word, at=self.clock.now, user=user)
        model.sent.append(Sent(word, session, user, self.clock.now, is_summary))
        if user:
            model.people.setdefault(session, set()).add(user)
        outcome = await self.pipeline.accept(payload)
        assert outcome == "accepted"

    async def forget(self) -> None:
        source, model = self.source, self.model
        user = source.choice(USERS) if source.random() < 0.7 else None
        session = source.choice(SESSIONS) if user is None or source.random() < 0.2 else None
        until = source.choice(model.sent).at if model.sent and source.random() < 0.3 else None
        self.clock.now += 0.01
        since = self.clock.now - KEPT_DAYS * DAY
        model.forget(user=user, session=session, until=until, since=since)
        receipt = await self.pipeline.forget(user_id=user, session_id=session, until=until)
        assert receipt.text_only == 0

    async def move(self) -> None:
        """Begin to change the model, or stop a change that is under way."""
        if await self.stop_moving():
            return
        other = self.source.choice(list(DIMENSIONS))
        render = self.source.random() < 0.2
        self.moving = asyncio.create_task(
            self.pipeline.reembed(self.embedder(other), render=render)
        )
        if self.source.random() < 0.3 and not self.store.down:
            await self.moving

    async def stop_moving(self) -> bool:
        moving, self.moving = self.moving, None
        if moving is None or moving.done():
            return False
        moving.cancel()
        await asyncio.wait([moving])
        return True

    async def age(self) -> None:
        await self.settle()
        self.clock.now += self.source.choice((0.5, 3.0, 5.0)) * DAY
        await sweep(self.pipeline, complete=True)
        self.clock.now += 1.0

    async def settle(self) -> None:
        self.store.down = False
        if self.moving is not None and not self.moving.done():
            await self.moving
        self.moving = None
        await self.pipeline.drain(30)

    async def outage(self) -> None:
        self.store.down = not self.store.down

    async def pause(self) -> None:
        await asyncio.sleep(self.source.choice((0.0, 0.01, 0.03)))

    async def run(self) -> None:
        await self.start()
        try:
            steps = {
                self.send: 50,
                self.pause: 10,
                self.check: 6,
                self.forget: 8,
                self.move: 10,
                self.age: 4,
                self.outage: 5,
                self.crash: 6,
                self.restart: 4,
            }
            for step in self.source.choices(list(steps), list(steps.values()), k=50):
                if self.store.down and step in (self.forget, self.restart):
                    self.store.down = False
                await step()
            await self.check()
            await self.check_texts()
        finally:
            await self.close()

    # -- checks -------------------------------------------------------------------------------

    async def check(self) -> None:
        await self.settle()
        pipeline, model = self.pipeline, self.model
        await sweep(pipeline, complete=True)
        chunks = [chunk async for page in self.store.scan() for chunk in page]
        whole = {}
        for session in SESSIONS:
            found = await pipeline.session(session)
            whole[session] = found.text if found else ""
        retired: Counter[str] = Counter()
        for one in model.sent:
            holding = [chunk for chunk in chunks if one.word in chunk.text]
            told = f"{one} in {holding}"
            assert len(holding) <= 1, told
            is_old = one.at < self.clock.now - KEPT_DAYS * DAY
            if one.gone or is_old:
                assert not holding, told
                assert one.word not in whole[one.session], told
            elif not one.unsure:
                assert one.word in whole[one.session], told
                if not holding:
                    retired[one.session] += 1
                    assert not one.is_summary, told
                else:
                    self._check_person(one, holding[0].metadata.get("user_id"))
        for session, count in retired.items():
            assert count <= model.replaced[session], f"{count} actions are missing in {session}"
        assert pipeline.ledger.balanced
        assert pipeline.ledger.pending == pipeline.ledger.dead == 0
        report = await pipeline.verify()
        assert report.clean, report

    def _check_person(self, one: Sent, user: str | None) -> None:
        people = self.model.people.get(one.session, set())
        if one.user is not None:
            assert user == one.user, f"{one} is under {user}"
        elif len(people) == 1 and one.session not in self.model.forgotten_in and not one.is_summary:
            young = [
                other
                for other in self.model.sent
                if other.session == one.session and other.user and not other.gone
            ]
            known = any(other.at > self.clock.now - KEPT_DAYS * DAY for other in young)
            assert user in ((*people,) if known else (*people, None)), f"{one} is under {user}"
        else:
            assert user is None or user in people, f"{one} is under {user}"

    async def check_texts(self) -> None:
        """Once all requests are complete, nothing holds a word of what was forgotten."""
        async with asyncio.timeout(30):
            while await self.pipeline._run._journal.erasures.open_requests():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        gone = [one.word for one in self.model.sent if one.gone]
        texts = self.place.texts()
        assert not [word for word in gone if word in texts]


def inflated(raw: bytes) -> str:
    """All that can be unpacked from any place of a file, its free pages included."""
    found = []
    at = raw.find(bodies._PACKED)
    while at >= 0:
        state = zlib.decompressobj(bodies._WINDOW, bodies._DICTIONARY)
        with suppress(zlib.error):
            found.append(state.decompress(raw[at + 1 : at + 4096]))
        at = raw.find(bodies._PACKED, at + 1)
    return b"\n".join(found).decode("latin-1")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_any_order(make_pipeline, scripted_embedder, tmp_path):
    for seed in range(max(4, settings.default.max_examples // 20)):
        place = InFiles(tmp_path / f"run {seed}")
        await run_with(seed, place, make_pipeline, scripted_embedder)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_any_order_in_postgres(make_pipeline, scripted_embedder, postgres):
    for seed in range(2):
        schema = f"t_{uuid4().hex[:12]}"
        with SchemaCopies(postgres.dsn, schema) as copies:
            place = InPostgres(postgres.dsn, schema, copies)
            await run_with(seed, place, make_pipeline, scripted_embedder)


async def run_with(seed, place, make_pipeline, make_embedder):
    try:
        await Run(seed, place, make_pipeline, make_embedder).run()
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
