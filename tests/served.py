"""A server in a thread of its own, so that the test's thread can run commands, which need signals."""

import asyncio
import os
import threading
from contextlib import ExitStack, contextmanager

from autoplay_rag import ActionsPayload, ChatTurn, IngestPipeline, SlimAction
from autoplay_rag.serve import Keys, create_app
from autoplay_rag.serve.running import RunningServer, announced
from autoplay_rag.serve.server import HttpServer

KEYS = Keys(admin="admin-key-of-tests", read="read-key-of-tests")


class Served:
    """A running server.

    Attributes:
        url: Its address.
        pipeline: Its pipeline.
        audit: The lines of its audit log: one for each request about someone's data.
    """

    def __init__(self):
        self.audit = []
        self._written = threading.Condition()
        self._ready = threading.Event()
        self._stop = None
        self._error = None

    def run(self, coroutine):
        """Run a coroutine on the server's loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def audited(self, count):
        """Wait until so many requests about someone's data have ended; returns whether they did."""
        with self._written:
            return self._written.wait_for(lambda: len(self.audit) >= count, timeout=30)

    def stop(self):
        self.loop.call_soon_threadsafe(self.server.stop)

    def _note(self, line):
        with self._written:
            self.audit.append(line)
            self._written.notify_all()

    async def _serve(self, make_pipeline, journal, announces, port, options):
        self.loop = asyncio.get_running_loop()
        self.pipeline = make_pipeline()
        app = create_app(self.pipeline, keys=KEYS, rate=10_000, audit=self._note, **options)
        self.server = HttpServer(app, "127.0.0.1", port)
        self.url = self.server.url
        async with self.pipeline:
            with ExitStack() as announcing:
                if announces:
                    about = RunningServer(self.url, KEYS.admin, os.getpid(), **announces)
                    announcing.enter_context(announced(journal, about))
                task = asyncio.create_task(self.server.run_until_stopped())
                await self.server.ready()
                self._ready.set()
                await task

    def _run(self, *args):
        try:
            asyncio.run(self._serve(*args))
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self._error = error
        finally:
            self._ready.set()


@contextmanager
def serving(store, embedder, journal, *, announces=None, job_kinds=None, select=None, port=0):
    """Serve until the block ends.

    Args:
        store: A function that makes the store.
        embedder: A function that makes the embedder.
        journal: The journal's file.
        announces: More of what the file beside the journal says; None for no file.
        job_kinds: As in `create_app`.
        select: As in `IngestPipeline`.
        port: The port; 0 for any free port.
    """
    served = Served()

    def make():
        return IngestPipeline(store(), embedder(), journal=journal, select=select)

    args = (make, journal, announces, port, {"job_kinds": job_kinds})
    thread = threading.Thread(target=served._run, args=args)
    thread.start()
    try:
        assert served._ready.wait(30)
        if served._error is not None:
            raise served._error
        yield served
    finally:
        if served._error is None:
            served.stop()
        thread.join(30)
    assert not thread.is_alive()


def payloads():
    """What Ann, Bob and a chat did; and what cannot be stored."""
    for n, (user, text) in enumerate(
        (
            ("ann", "Opened the report about revenue"),
            ("bob", "Entered the promo code \u2028 SAVE10\x85"),  # ends a line, but not one of JSON
            ("ann", "Exported the report as a file"),
        )
    ):
        click = SlimAction(text, f"User: {text}", f"https://app.test/{n}", 0, "click", 10.0, 11.0)
        yield ActionsPayload("acme", f"s{n}", user, user, [click], 1, 1000.0 + n)
    yield ChatTurn("acme", "s0", "ann", "thread", "How do I export?", "Click Export.", [], 1600.0)
    for n in range(3):
        click = SlimAction("bad", "User: bad", "https://app.test/", 0, "click", 10.0, 11.0)
        yield ActionsPayload("acme", f"bad{n}", "eve", "eve", [click], 1, 1000.0 + n)


def refuse_bad(payload):
    """A rule with a bug."""
    if (payload.session_id or "").startswith("bad"):
        raise RuntimeError("a bug in the user's own rule")
    return True


async def fill(pipeline):
    for payload in payloads():
        await pipeline.accept(payload)
    await pipeline.drain()
