"""The contract of loaders of connector streams, for authors of a loader for another library.

It needs the extra "devserver", pytest and pytest-asyncio, and uses the fixtures of
`autoplay_rag.testing`.

Example:
    A test file of your package::

        class TestLoader(LoaderContract):
            def make(self, url, **options):
                return MyLoader(url, **options)

            def make_from_recording(self, path, **options):
                return MyLoader.from_recording(path, **options)
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import threading
import tracemalloc
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from autoplay_rag.connector.recording import RecordingWriter
from autoplay_rag.errors import (
    AuthenticationError,
    AutoplayError,
    ConfigurationError,
    NotStreamModeError,
    ProductNotFoundError,
)
from autoplay_rag.payloads import Payload
from autoplay_rag.testing.fixtures import MakePayload, RunningConnector, StartConnector

__all__ = ["LoaderContract"]

_TOKEN = "uk_live_must_not_be_seen"  # noqa: S105 - made up
_WAIT = 10.0
_IDLE = 0.3
_HUGE = 6_000
_ALLOWED_GROWTH = 3_000_000


class LoaderContract(ABC):
    """What every loader of connector streams must do.

    Implement `make` and `make_from_recording`. Override the other hooks if the library's names
    differ from LangChain's. Options have the names of the arguments of `PayloadLoader` and its
    parts.
    """

    # -- hooks --------------------------------------------------------------------------------

    @abstractmethod
    def make(self, url: str, **options: Any) -> Any:
        """Make a loader of a live stream."""

    @abstractmethod
    def make_from_recording(self, path: Path, **options: Any) -> Any:
        """Make a loader of a recording."""

    def lazy(self, loader: Any) -> Iterator[Any]:
        """Iterate over its documents as they arrive."""
        found: Iterator[Any] = loader.lazy_load()
        return found

    def alazy(self, loader: Any) -> AsyncIterator[Any]:
        """The same for asynchronous code."""
        found: AsyncIterator[Any] = loader.alazy_load()
        return found

    def load(self, loader: Any) -> list[Any]:
        """Load all its documents."""
        found: list[Any] = loader.load()
        return found

    async def aload(self, loader: Any) -> list[Any]:
        """The same for asynchronous code."""
        found: list[Any] = await loader.aload()
        return found

    def read(self, document: Any) -> tuple[str, str, dict[str, Any]]:
        """Id, text and metadata of a document."""
        return document.id, document.page_content, document.metadata

    def dropped(self, loader: Any) -> int:
        """The number of payloads dropped because the consumer was slow."""
        count: int = loader.dropped
        return count

    # -- documents ----------------------------------------------------------------------------

    async def test_all_four_ways_give_the_same_documents(
        self, local_connector: StartConnector
    ) -> None:
        """Sync and async, lazy and eager, for the sample recording."""
        connector = local_connector()
        loader = self.make(connector.url, idle_seconds=_IDLE)
        found = await self.aload(loader)
        assert len(found) > 300
        assert found == self.load(loader)
        assert found == list(self.lazy(loader))
        assert found == [document async for document in self.alazy(loader)]

    def test_a_document_has_text_an_id_and_flat_metadata(
        self, local_connector: StartConnector, make_payload: MakePayload
    ) -> None:
        """So any vector store can store it."""
        connector = local_connector([make_payload("Clicked Export", user_id="u1")])
        [document] = self.load(self.make(connector.url, max_documents=1))
        id_, text, metadata = self.read(document)
        assert "Clicked Export" in text
        assert metadata["chunk_id"] == id_
        assert metadata["source"] == connector.url
        assert (metadata["session_id"], metadata["user_id"]) == ("s1", "u1")
        assert metadata["kind"] == "actions"
        assert {type(value) for value in metadata.values()} <= {str, int, float}

    def test_long_texts_come_in_pieces(
        self, local_connector: StartConnector, make_payload: MakePayload
    ) -> None:
        """Each part has its own id, and no text is lost between parts."""
        words = [f"clicked item {n}" for n in range(200)]
        connector = local_connector([make_payload(*words)])
        found = self.load(self.make(connector.url, max_chars=500, idle_seconds=_IDLE))
        read = [self.read(document) for document in found]
        assert len(read) > 1
        assert max(len(text) for _, text, _ in read) <= 500
        assert len({id_ for id_, _, _ in read}) == len(read)
        assert [metadata["chunk_id"] for _, _, metadata in read] == [id_ for id_, _, _ in read]
        whole = " ".join(text for _, text, _ in read)
        assert re.findall(r"item (\d+)", whole) == [str(n) for n in range(200)]

    def test_kinds_that_were_not_asked_for_are_left_out(
        self, local_connector: StartConnector, make_payload: MakePayload
    ) -> None:
        """A load returns only the kinds in `include`."""
        events: list[Payload] = [make_payload("Clicked Export"), make_payload(summary="Exported.")]
        loader = self.make(local_connector(events).url, include=("summary",), idle_seconds=_IDLE)
        assert [self.read(document)[1] for document in self.load(loader)] == ["Exported."]

    def test_what_is_redacted_does_not_come_out(
        self, local_connector: StartConnector, make_payload: MakePayload
    ) -> None:
        """A payload whose redaction fails is left out too. The others are loaded."""
        events: list[Payload] = [
            make_payload(summary="Paid with 4242."),
            make_payload(summary="unreadable"),
            make_payload(summary="Left."),
        ]

        def redact(payload: Payload) -> Payload:
            changed = payload.to_dict()
            if changed["summary"] == "unreadable":
                raise ValueError(changed["summary"])
            changed["summary"] = changed["summary"].replace("4242", "****")
            return type(payload).from_dict(changed)

        loader = self.make(local_connector(events).url, redact=redact, idle_seconds=_IDLE)
        read = [self.read(document) for document in self.load(loader)]
        assert [text for _, text, _ in read] == ["Paid with ****.", "Left."]
        plain = self.load(self.make(local_connector(events).url, idle_seconds=_IDLE))
        assert self.read(plain[0])[0] == read[0][0], "the id is that of what was received"

    # -- sessions -----------------------------------------------------------------------------

    def test_a_session_comes_when_it_is_summarised(
        self, local_connector: StartConnector, make_payload: MakePayload
    ) -> None:
        """It does not wait for another session, a limit or the end of the stream."""
        connector = local_connector(
            [
                make_payload("Clicked Reports"),
                make_payload("Clicked Billing", session_id="s2"),
                make_payload("Clicked Export"),
                make_payload(summary="Exported a report."),
            ]
        )
        loader = self.make(connector.url, group_by="session", max_documents=1)
        [document] = self.load(loader)
        _, text, metadata = self.read(document)
        assert metadata["session_id"] == "s1"
        assert metadata["action_count"] == 2
        assert all(part in text for part in ("Reports", "Export", "Exported a report."))

    async def test_a_session_comes_when_it_is_idle(
        self, local_connector: StartConnector, make_payload: MakePayload
    ) -> None:
        """It arrives while the stream continues."""
        connector = local_connector([make_payload("Clicked Reports"), make_payload("Clicked Save")])
        loader = self.make(connector.url, group_by="session", session_idle_seconds=0.05)
        async with asyncio.timeout(_WAIT), _closing(self.alazy(loader)) as documents:
            text = self.read(await anext(documents))[1]
        assert "Clicked Reports" in text
        assert "Clicked Save" in text

    def test_all_sessions_come_at_the_end(
        self, local_connector: StartConnector, make_payload: MakePayload
    ) -> None:
        """This includes sessions without a summary that were never idle."""
        events = [make_payload("Clicked Save", session_id=f"s{n % 3}") for n in range(9)]
        loader = self.make(local_connector(events).url, group_by="session", idle_seconds=_IDLE)
        counts = [self.read(document)[2]["action_count"] for document in self.load(loader)]
        assert counts == [3, 3, 3]

    # -- limits -------------------------------------------------------------------------------

    async def test_a_load_that_would_never_end_is_refused(
        self, local_connector: StartConnector
    ) -> None:
        """It raises before it connects. The message names the limits."""
        connector = local_connector()
        loader = self.make(connector.url)
        with pytest.raises(ConfigurationError, match="max_documents, max_seconds or idle_seconds"):
            self.load(loader)
        with pytest.raises(ConfigurationError, match="max_documents, max_seconds or idle_seconds"):
            await self.aload(loader)

    def test_limits_that_make_no_sense_are_refused(self) -> None:
        """The constructor raises."""
        for name in ("max_documents", "max_seconds", "idle_seconds", "max_chars"):
            with pytest.raises(ConfigurationError, match=name):
                self.make("http://127.0.0.1:1/stream/x", **{name: 0})
        for name in ("max_documents", "max_chars"):
            with pytest.raises(ConfigurationError, match=name):
                self.make("http://127.0.0.1:1/stream/x", **{name: 20.5})
        for name in ("group_by", "include"):
            with pytest.raises(ConfigurationError, match=name):
                self.make("http://127.0.0.1:1/stream/x", **{name: "nonsense"})

    def test_it_ends_after_so_many_documents(self, local_connector: StartConnector) -> None:
        """It ends while the stream continues."""
        loader = self.make(local_connector().url, max_documents=7)
        assert len(self.load(loader)) == 7

    def test_it_ends_after_so_many_seconds(self, local_connector: StartConnector) -> None:
        """It ends while the stream continues."""
        loader = self.make(local_connector(loop=True, rate=200).url, max_seconds=0.3)
        assert self.load(loader)

    async def test_an_empty_load_says_why(self, local_connector: StartConnector) -> None:
        """The message says how long it listened, and that a stream has no history."""
        loader = self.make(local_connector([]).url, max_seconds=0.1)
        with pytest.warns(UserWarning, match=r"for 0\.\d s .* no history"):
            assert self.load(loader) == []
        with pytest.warns(UserWarning, match=r"for 0\.\d s .* no history"):
            assert await self.aload(loader) == []
        nobody = self.make("http://127.0.0.1:9/stream/x", max_seconds=0.1)
        with pytest.warns(UserWarning, match="could not be reached: ConnectError"):
            assert self.load(nobody) == []

    # -- loops and threads ----------------------------------------------------------------------

    async def test_sync_methods_work_inside_a_running_loop(
        self, local_connector: StartConnector
    ) -> None:
        """A notebook cell runs in such a loop."""
        loader = self.make(local_connector().url, max_documents=5)
        assert len(self.load(loader)) == 5
        assert len(list(self.lazy(loader))) == 5

    def test_sync_methods_work_in_several_threads_at_once(
        self, local_connector: StartConnector
    ) -> None:
        """The threads share one loader."""
        loader = self.make(local_connector().url, max_documents=50)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: self.load(loader), range(4)))
        assert found == [found[0]] * 4

    def test_leaving_early_leaves_nothing_behind(self, local_connector: StartConnector) -> None:
        """No thread and no connection stays open."""
        connector = local_connector(loop=True)
        before = _threads()
        for document in self.lazy(self.make(connector.url)):
            assert self.read(document)
            break
        self._nothing_left(connector, before)

    def test_a_consumer_that_raises_leaves_nothing_behind(
        self, local_connector: StartConnector
    ) -> None:
        """This holds even while the exception's traceback is referenced."""
        connector = local_connector(loop=True)
        before = _threads()

        def consume() -> None:
            for _ in self.lazy(self.make(connector.url)):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as kept:
            consume()
        self._nothing_left(connector, before)
        assert kept.tb is not None

    def test_an_iterator_that_was_never_asked_leaves_nothing_behind(
        self, local_connector: StartConnector
    ) -> None:
        """An iterator that was never advanced has not connected."""
        connector = local_connector()
        before = _threads()
        documents = self.lazy(self.make(connector.url))
        assert connector.subscribers == 0
        del documents
        self._nothing_left(connector, before)

    async def test_closing_the_async_generator_closes_the_connection(
        self, local_connector: StartConnector
    ) -> None:
        """This works even while it waits for the next event."""
        connector = local_connector(loop=True)
        for group_by in ("payload", "session"):
            options = {"group_by": group_by, "session_idle_seconds": 0.01}
            async with _closing(self.alazy(self.make(connector.url, **options))) as documents:
                await anext(documents)
            await asyncio.to_thread(connector.wait_subscribers, 0)

    async def test_cancelling_ends_it(
        self, local_connector: StartConnector, make_payload: MakePayload
    ) -> None:
        """Cancellation is not swallowed."""
        connector = local_connector([make_payload("Clicked Save")])
        started = asyncio.Event()

        async def consume() -> None:
            async with _closing(self.alazy(self.make(connector.url))) as documents:
                async for _ in documents:
                    started.set()

        task = asyncio.create_task(consume())
        await asyncio.wait_for(started.wait(), _WAIT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(connector.wait_subscribers, 0)

    # -- errors ---------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("product", "token", "expected"),
        [
            ("acme", "wrong", AuthenticationError),
            ("nobody", _TOKEN, ProductNotFoundError),
            ("pushed", _TOKEN, NotStreamModeError),
        ],
    )
    async def test_a_refusal_is_raised(
        self,
        local_connector: StartConnector,
        product: str,
        token: str,
        expected: type[AutoplayError],
    ) -> None:
        """All four methods raise the core's own error. No task or thread is left."""
        connector = local_connector([], product_id="acme", token=_TOKEN, push_only=["pushed"])
        url = connector.url.replace("acme", product)
        before = _threads()
        loader = self.make(url, token=token, idle_seconds=_WAIT)
        with pytest.raises(expected):
            list(self.lazy(loader))
        with pytest.raises(expected):
            self.load(loader)
        with pytest.raises(expected):
            async for _ in self.alazy(loader):
                pass
        with pytest.raises(expected) as raised:
            await self.aload(loader)
        assert _TOKEN not in f"{raised.value!r} {raised.value}"
        self._nothing_left(connector, before)

    def test_the_token_is_shown_nowhere(
        self, local_connector: StartConnector, make_payload: MakePayload
    ) -> None:
        """The loader's repr, its pickle and its documents do not contain it."""
        connector = local_connector([make_payload("Clicked Save")], token=_TOKEN)
        loader = self.make(connector.url, token=_TOKEN, max_documents=1)
        found = self.load(loader)
        assert _TOKEN not in f"{loader!r} {loader} {found!r}"
        assert _TOKEN.encode() not in pickle.dumps(loader)

    def test_an_unpickled_loader_takes_the_token_from_the_environment(
        self,
        local_connector: StartConnector,
        make_payload: MakePayload,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A worker process needs this."""
        connector = local_connector([make_payload("Clicked Save")], token=_TOKEN)
        loader = self.make(connector.url, token=_TOKEN, max_documents=1)
        again = pickle.loads(pickle.dumps(loader))  # noqa: S301 - our own bytes
        monkeypatch.setenv("AUTOPLAY_APP_UNKEY_TOKEN", _TOKEN)
        assert self.load(again) == self.load(loader)

    def test_a_copy_keeps_the_token(
        self,
        local_connector: StartConnector,
        make_payload: MakePayload,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A copy stays in this process, so it may keep the token."""
        connector = local_connector([make_payload("Clicked Save")], token=_TOKEN)
        monkeypatch.delenv("AUTOPLAY_APP_UNKEY_TOKEN", raising=False)
        loader = self.make(connector.url, token=_TOKEN, max_documents=1)
        for copied in (copy.copy(loader), copy.deepcopy(loader)):
            assert len(self.load(copied)) == 1
            assert _TOKEN.encode() not in pickle.dumps(copied)

    # -- much of it -----------------------------------------------------------------------------

    async def test_a_slow_consumer_loses_the_oldest_and_knows_it(
        self, local_connector: StartConnector, make_payload: MakePayload
    ) -> None:
        """Reading continues at network speed; the buffer is bounded."""
        events = [make_payload(f"Clicked item {n}") for n in range(2_000)]
        last = make_payload(summary="The end.")
        for lazily in (self.alazy, lambda loader: _threaded(self.lazy(loader))):
            full = threading.Event()

            def on_drop(_: Payload, total: int, full: threading.Event = full) -> None:
                if total >= 500:
                    full.set()

            connector = local_connector([*events, last])
            loader = self.make(connector.url, max_pending=20, on_drop=on_drop)
            read: list[str] = []
            async with _closing(lazily(loader)) as documents:
                async for document in documents:
                    read.append(self.read(document)[1])
                    if read[-1] == "The end.":
                        break
                    assert await asyncio.to_thread(full.wait, _WAIT)
            assert self.dropped(loader) >= 500
            assert len(read) + self.dropped(loader) == len(events) + 1

    def test_a_recording_gives_what_its_stream_gives(self, local_connector: StartConnector) -> None:
        """Only `source` differs between the documents."""
        from autoplay_rag.devserver import samples

        live = self.load(self.make(local_connector(samples()).url, idle_seconds=_IDLE))
        recorded = self.load(self.make_from_recording(samples()))
        read = [self.read(document) for document in recorded]
        assert [r[:2] for r in read] == [self.read(document)[:2] for document in live]
        assert {metadata["source"] for _, _, metadata in read} == {str(samples())}

    def test_a_recording_takes_the_same_options(
        self, tmp_path: Path, make_payload: MakePayload
    ) -> None:
        """Sessions (by the recording's own times), limits and kinds work for recordings."""
        path = tmp_path / "visits.jsonl"
        with RecordingWriter(path) as recording:
            for _ in range(2):
                recording.write(make_payload("Clicked Save"))
            for _ in range(9):
                recording.write(make_payload("Clicked Next", session_id="s2"))
            recording.write(make_payload("Clicked Close"))
        loader = self.make_from_recording(path, group_by="session", session_idle_seconds=60)
        counts = [self.read(document)[2]["action_count"] for document in self.load(loader)]
        assert counts == [2, 9, 1]
        loader = self.make_from_recording(path, max_documents=2)
        assert len(self.load(loader)) == 2
        with pytest.warns(UserWarning, match="holds no chat payload"):
            assert self.load(self.make_from_recording(path, include=("chat",))) == []

    def test_a_missing_recording_is_an_error(self, tmp_path: Path) -> None:
        """It raises the usual error for a missing file."""
        with pytest.raises(FileNotFoundError):
            self.load(self.make_from_recording(tmp_path / "none.jsonl"))

    def test_lines_that_cannot_be_read_cost_only_themselves(
        self, tmp_path: Path, make_payload: MakePayload
    ) -> None:
        """The other lines are loaded."""
        path = tmp_path / "visits.jsonl"
        with RecordingWriter(path) as recording:
            recording.write(make_payload(summary="before"))
        with path.open("ab") as file:
            file.write(b"no JSON\n")
        with RecordingWriter(path, append=True) as recording:
            recording.write(make_payload(summary="after"))
        found = self.load(self.make_from_recording(path))
        assert [self.read(document)[1] for document in found] == ["before", "after"]

    def test_memory_stays_flat_however_long_it_runs(
        self, tmp_path: Path, make_payload: MakePayload, local_connector: StartConnector
    ) -> None:
        """Both the stream and the recording are much larger than the memory allowed."""
        path = tmp_path / "long.jsonl"
        with RecordingWriter(path) as recording:
            for n in range(_HUGE):
                recording.write(make_payload(f"Clicked item {n}", session_id=f"s{n % 50}"))
        connector = local_connector(path)
        for loader in (
            self.make_from_recording(path),
            self.make_from_recording(path, group_by="session"),
            self.make(connector.url, max_pending=500, idle_seconds=_IDLE),
        ):
            _consume_flatly(self.lazy(loader))

    def _nothing_left(self, connector: RunningConnector, before: set[threading.Thread]) -> None:
        connector.wait_subscribers(0)
        assert _threads() - before == set()


def _threads() -> set[threading.Thread]:
    # These threads belong to the loop's executor, which other code may use too.
    return {t for t in threading.enumerate() if not t.name.startswith("asyncio_")}


def _consume_flatly(documents: Iterator[Any]) -> None:
    tracemalloc.start()
    try:
        for _, _ in zip(range(1_000), documents, strict=False):
            pass
        settled, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in documents:
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - settled < _ALLOWED_GROWTH


def _closing(documents: AsyncIterator[Any]) -> aclosing[AsyncGenerator[Any, None]]:
    assert isinstance(documents, AsyncGenerator)
    return aclosing(documents)


async def _threaded(documents: Any) -> AsyncGenerator[Any, None]:
    """Consume a plain iterator in threads, so the event loop of the test stays free."""
    done = object()
    step: Callable[[], Any] = lambda: next(documents, done)  # noqa: E731 - short, and named
    try:
        while (document := await asyncio.to_thread(step)) is not done:
            yield document
    finally:
        await asyncio.to_thread(documents.close)
