"""LiveActivitySource: pulls what users did from the pull endpoint."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

from autoplay_rag._cancelled import is_cancelled
from autoplay_rag._checks import check_above, check_at_least
from autoplay_rag._describe import describe
from autoplay_rag.connector.backoff import MOST_REFUSALS
from autoplay_rag.connector.callbacks import Callback, CallbackThreads
from autoplay_rag.errors import AutoplayError, ClientStateError, ConnectorError, TransientError
from autoplay_rag.payloads import ActionsPayload, Payload, SummaryPayload
from autoplay_rag.sources.activity_client import ActivityClient, PullCounts
from autoplay_rag.sources.activity_endpoint import (
    MOST_ACTIONS,
    Activity,
    ActivityEndpoint,
    Validators,
    can_be_asked,
)
from autoplay_rag.sources.audience import Audience, Users
from autoplay_rag.sources.schedule import Schedule
from autoplay_rag.sources.watched import PulledUser, Taken

__all__ = ["LiveActivitySource", "PullState"]

_log = logging.getLogger(__name__)

PullState: TypeAlias = Literal[
    "idle", "connecting", "connected", "waiting", "stopping", "stopped", "failed"
]

_LOOK_SECONDS: Final = 5.0
"""The longest interval of looking at a collection of users, which may change."""
_LEAST_LOOK_SECONDS: Final = 10.0
"""The least time that a function which names the users may take."""
_REFUSED_SECONDS: Final = 30.0
"""Seconds between two retries after a refusal, once the server has answered."""
_MOST_USERS: Final = 20_000
_THREADS: Final = 4


class LiveActivitySource:
    """Pulls what users did: the last 24 hours of each, at most 50 actions.

    New actions alone go on, known by user, time, type, page and title. The endpoint names no sessions:
    a session ends after 30 minutes without an action, and is named after its first action. An
    `IngestPipeline` puts actions into a session of the stream if they fall into one.

    All requests pause together if the server fails or asks for it (`Retry-After`). Requests of
    different users are spread over the interval. If the server has `ETag` or `Last-Modified`, only
    changed answers are sent. An action goes on again if a callback raised for it.

    Args:
        url: The server: `https://host`, or the `mcp_url` of the product.
        product_id: The product.
        token: The token: the `mcp_key` of the product. It is not part of any repr, log or error.
        users: Whom to watch: a collection of user ids, which may change; an async function that
            returns them; or "asked": whoever asked the assistant within an hour (see `note_asked`).
            An empty collection watches nobody: `get` and the gaps of a stream still work.
        interval: Seconds between two pulls of one user.
        concurrency: The most requests at once.
        request_timeout: Seconds for a request, from connecting to the last byte.
        max_users: The most users to watch, and to remember.
        retry_refusals: Whether a refusal (401, 403, ...) is retried every 30 seconds for as long as
            it lasts. By default it ends the run; see `run`.

    Attributes:
        names_sessions: False: sessions are cut by time.
        counts: The totals.
        hold_back: Returns the age in seconds below which actions wait for a later pull. A pipeline
            sets it, so that a stream beside this source, which names their session, comes first.

    Raises:
        ConfigurationError: If an argument is invalid.

    Example:
        >>> source = LiveActivitySource("https://mcp.example", "prod_x", "key", users={"u1"})
        >>> source.on_actions(lambda payload: print(payload.to_text())).state
        'idle'
    """

    names_sessions: Final = False

    def __init__(
        self,
        url: str,
        product_id: str,
        token: str = "",
        *,
        users: Users,
        interval: float = 30.0,
        concurrency: int = 8,
        request_timeout: float = 10.0,
        max_users: int = _MOST_USERS,
        retry_refusals: bool = False,
    ) -> None:
        check_above("interval", interval)
        check_above("concurrency", concurrency, whole=True)
        check_above("request_timeout", request_timeout)
        check_above("max_users", max_users, whole=True)
        self._client = ActivityClient(
            ActivityEndpoint(url, product_id, token, timeout=request_timeout)
        )
        self._audience = Audience(users, max_users, self._client.complain)
        self.product_id = product_id
        self.hold_back: Callable[[], float] = lambda: 0.0
        self._interval = interval
        self._concurrency = concurrency
        self._max_users = max_users
        self._retry_refusals = retry_refusals
        self._callbacks: list[Callback] = []
        self._threads = CallbackThreads(_THREADS)
        self._schedule = Schedule(interval)
        self._lock = threading.Lock()
        self._pulled: OrderedDict[str, PulledUser] = OrderedDict()
        self._run: _Run | None = None
        self._refusals = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, state={self.state!r})"

    # -- callbacks and users ------------------------------------------------------------------

    def on_actions(self, fn: Callable[[ActionsPayload], Any]) -> Self:
        """Add a callback for new actions; one payload for each session.

        Args:
            fn: `async def` or a plain function, which runs in a thread. Several may be added.

        Returns:
            The source, so that calls can be chained.
        """
        self._callbacks.append(Callback(fn, self._threads))
        return self

    def on_summary(self, fn: Callable[[SummaryPayload], Any]) -> Self:  # noqa: ARG002 - as a client
        """Do nothing: the endpoint has no summaries."""
        return self

    def note_asked(self, user_id: str) -> None:
        """Note that somebody asked the assistant: with `users="asked"`, they are watched for an hour.

        `get` does so too, and an `IngestPipeline` that this source is attached to, for each
        `context` and each chat turn. May be called from any thread.
        """
        if can_be_asked(user_id):
            self._audience.note_asked(user_id)
            if self._audience.is_asked and user_id not in self._schedule and self._run is not None:
                self._run.call_soon(self._run.look.set)

    def forget(self, user_id: str) -> None:
        """Forget what is known of a user. Their next pull is as the first."""
        self._audience.forget(user_id)
        with self._lock:
            self._pulled.pop(user_id, None)

    # -- one user -----------------------------------------------------------------------------

    async def get(self, user_id: str, *, at_once: bool = False) -> list[ActionsPayload]:
        """Pull one user now, whether or not they are watched.

        New actions go on to the callbacks. Call it from any event loop.

        Args:
            user_id: The user: the stable id of the analytics source, never an email address.
            at_once: Whether young actions go on now, too, instead of waiting for a source that
                names their session; see `hold_back`.

        Returns:
            All that the endpoint has of the user, one payload for each session, oldest first.

        Raises:
            ConnectorError: If the server fails, refuses, or asked for a pause that is not over.
        """
        return await self._client.elsewhere(self._get(user_id, at_once=at_once))

    def get_sync(self, user_id: str, timeout: float | None = None) -> list[ActionsPayload]:
        """Like `get`, for any thread. Inside a running event loop it blocks the loop.

        Args:
            user_id: The user.
            timeout: Seconds to wait; None for no limit.

        Raises:
            TimeoutError: If the time is over.
            ConnectorError: As `get`.
        """
        # A callback may need the event loop that this call blocks: new actions go on later then.
        inside = _in_a_loop()

        async def work() -> list[ActionsPayload]:
            async with asyncio.timeout(timeout):
                if inside:
                    return await self._get(user_id, pass_on=False)
                return await self._client.elsewhere(self._get(user_id))

        return self._client.thread().run(work())

    async def pull(self, user_id: str) -> list[ActionsPayload]:
        """Pull one user now, without the callbacks and without noting that they asked.

        Raises:
            ConnectorError: As `get`.
        """
        return await self._client.elsewhere(self._get(user_id, pass_on=False, asked=False))

    async def _get(
        self, user_id: str, *, pass_on: bool = True, asked: bool = True, at_once: bool = False
    ) -> list[ActionsPayload]:
        if not can_be_asked(user_id):
            return []
        if asked:
            self.note_asked(user_id)
        activity = await self._client.ask(user_id, Validators())
        assert activity is not None  # no version was named, so it cannot be unchanged
        if pass_on:
            await self._pass_on(user_id, activity, at_once=at_once)
        return PulledUser(self.product_id, user_id).all(activity, now=time.time())

    async def _pass_on(
        self, user_id: str, activity: Activity | None, *, at_once: bool = False
    ) -> None:
        """Call back with what is new in an answer."""
        user = self._pulled_user(user_id)
        async with user.lock:
            hold_back = 0.0 if at_once else self.hold_back()
            taken = user.take(activity, now=time.time(), hold_back=hold_back, most=MOST_ACTIONS)
            if await self._call_back(taken):
                user.confirm(taken)
                self.counts.actions += len(taken.keys)
                self.counts.full += taken.is_full

    async def _call_back(self, taken: Taken) -> bool:
        passed = True
        for payload in taken.payloads:
            for callback in list(self._callbacks):
                try:
                    await callback.call(payload)
                except (KeyboardInterrupt, SystemExit, GeneratorExit):
                    raise
                except BaseException as error:
                    if isinstance(error, asyncio.CancelledError) and is_cancelled():
                        raise
                    passed = False
                    self.counts.failures += 1
                    self._client.complain(
                        f"a callback raised ({describe(error)}); the actions go on again with the "
                        "next pull"
                    )
        return passed

    def _pulled_user(self, user_id: str) -> PulledUser:
        with self._lock:
            user = self._pulled.get(user_id)
            if user is None:
                user = self._pulled[user_id] = PulledUser(self.product_id, user_id)
            self._pulled.move_to_end(user_id)
            while len(self._pulled) > self._max_users:
                self._pulled.popitem(last=False)
            return user

    # -- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Pull and call back until `stop`, or until an error that a retry cannot fix.

        Raises:
            ConnectorStatusError: If the server refuses (401, 403, ...). Once it has answered, a
                refusal is retried five times, every 30 seconds. With `retry_refusals`, all are
                retried.
            RedirectError: If it redirects.
            ConfigurationError: If the environment names a proxy or certificates that cannot be
                used.
            ClientStateError: If the source is running already.
        """
        await self._drive(self._begin())

    def run_in_background(self) -> asyncio.Task[None]:
        """Start `run` as a task. If the run fails, its error is logged.

        Raises:
            ClientStateError: If the source is running already.
        """
        run = self._begin()
        task = run.loop.create_task(self._drive(run), name="autoplay-pull")
        task.add_done_callback(lambda ended: _background_ended(run, ended))
        return task

    def stop(self) -> None:
        """Stop pulling. Answers that came are still passed on. Safe from any thread."""
        if (run := self._run) is not None:
            run.stop()

    async def aclose(self) -> None:
        """Stop, and close connections and threads. May be called more than once."""
        self.stop()
        if (run := self._run) is not None and not run.over:
            await run.ended.wait()
        self._threads.close()
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def stream(
        self, limit: int | None = None, seconds: float | None = None, idle: float | None = None
    ) -> AsyncGenerator[Payload, None]:
        """Iterate over the payloads, without callbacks. Pulls wait for a slow consumer.

        Args:
            limit: End after this many payloads.
            seconds: End after this many seconds.
            idle: End after this many seconds without a payload.

        Yields:
            Payloads with new actions, one for each session of a user.

        Raises:
            ConfigurationError: If an argument is below 0.
            ClientStateError: If the source is running already.
            ConnectorError: As `run`.
        """
        for name, value in (("limit", limit), ("seconds", seconds), ("idle", idle)):
            check_at_least(name, value, 0, optional=True)
        run = self._begin()
        came: asyncio.Queue[ActionsPayload] = asyncio.Queue(1)
        callback = Callback(came.put, self._threads)
        self._callbacks.append(callback)
        loop = run.loop
        reading = loop.create_task(self._drive(run), name="autoplay-pull")
        end = None if seconds is None else loop.time() + seconds
        left = limit
        try:
            while left is None or left > 0:
                still = None if idle is None else loop.time() + idle
                ends = [at for at in (end, still) if at is not None]
                getting = loop.create_task(came.get())
                try:
                    await asyncio.wait(
                        [getting, reading],
                        timeout=max(0.0, min(ends) - loop.time()) if ends else None,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    if not getting.done():
                        getting.cancel()
                        await asyncio.wait([getting])
                if getting.cancelled():
                    break  # the time is over, or the run has ended
                yield getting.result()
                left = None if left is None else left - 1
            if reading.done():
                reading.result()
        finally:
            self._callbacks.remove(callback)
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.exception()  # raised above, or the consumer has left
            if not run.over:
                run.finish(None)  # cancelled before its first step

    @property
    def url(self) -> str:
        """The server, safe to show."""
        return self._client.url

    @property
    def counts(self) -> PullCounts:
        """All totals."""
        return self._client.counts

    @property
    def state(self) -> PullState:
        """The current state. Safe from any thread.

        "waiting" while all requests pause; "failed" once a run ended with an error.
        """
        run = self._run
        if run is None:
            return "idle"
        if run.over:
            return "stopped" if run.error is None else "failed"
        if run.stopping.is_set():
            return "stopping"
        if self.pause:
            return "waiting"
        return "connected" if self._client.is_reached else "connecting"

    @property
    def last_error(self) -> Exception | None:
        """Why the last request failed; None if none has. Safe from any thread."""
        return self._client.last_error

    @property
    def refusal(self) -> Exception | None:
        """The last request's error, if the server refused it. Safe from any thread."""
        return self._client.refusal

    @property
    def pause(self) -> float:
        """Seconds until the next request may be sent; 0 if one may be sent now."""
        return self._client.cooldown.left(time.monotonic())

    @property
    def watched(self) -> int:
        """The number of users that are watched now."""
        return len(self._schedule)

    # -- polling ------------------------------------------------------------------------------

    def _begin(self) -> _Run:
        if self._run is not None and not self._run.over:
            raise ClientStateError("the source is running already; stop it first, or make another")
        self._run = _Run()
        return self._run

    async def _drive(self, run: _Run) -> None:
        error: Exception | None = None
        try:
            async with self._client.connected():
                await self._poll(run)
        except Exception as found:  # noqa: BLE001 - raised again below, without its group
            error = _first_of(found)
        finally:
            run.finish(error)
        if error is not None:
            if error is not self._client.last_error:
                self._client.failed(error)
            raise error

    async def _poll(self, run: _Run) -> None:
        slots = asyncio.Semaphore(self._concurrency)
        look_at = float("-inf")
        async with asyncio.TaskGroup() as group:
            while not run.stopping.is_set():
                now = time.monotonic()
                if run.look.is_set() or now >= look_at:
                    run.look.clear()
                    look_at = now + self._look_interval
                    await self._look()
                pause = self._client.cooldown.left(now)
                user_id = None if pause else self._schedule.take(now)
                if user_id is None:
                    due_in = pause or self._schedule.due_in(now)
                    until_look = look_at - now
                    await run.sleep(until_look if due_in is None else min(due_in, until_look))
                    continue
                await slots.acquire()
                group.create_task(self._poll_one(user_id, slots))

    async def _poll_one(self, user_id: str, slots: asyncio.Semaphore) -> None:
        try:
            known = self._pulled_user(user_id).validators
            await self._pass_on(user_id, await self._client.ask(user_id, known))
            self._refusals = 0
        except TransientError as error:
            self._schedule.again(user_id, time.monotonic())
            self._client.complain(describe(error))
        except ConnectorError as error:
            if not self._retry_refusals and (
                not self._client.worked or self._refusals >= MOST_REFUSALS
            ):
                raise
            # It may come from a firewall, or from a token service that restarts.
            now = time.monotonic()
            self._schedule.again(user_id, now)
            if not self._client.cooldown.left(now):
                self._refusals += 1
                self._client.cooldown.pause(now, _REFUSED_SECONDS)
            left = "" if self._retry_refusals else f" {self._refusals} of {MOST_REFUSALS}"
            self._client.complain(f"{describe(error)}; retry{left} in {_REFUSED_SECONDS:g} s")
        finally:
            slots.release()

    async def _look(self) -> None:
        """See whom to watch."""
        try:
            async with asyncio.timeout(max(self._interval, _LEAST_LOOK_SECONDS)):
                wanted = await self._audience.wanted()
        except Exception as error:  # noqa: BLE001 - the user's own function
            self._client.complain(f"the users to watch cannot be found ({describe(error)})")
            return
        self._schedule.watch(wanted, time.monotonic())

    @property
    def _look_interval(self) -> float:
        return self._interval if self._audience.is_function else min(self._interval, _LOOK_SECONDS)


class _Run:
    """One run, on the loop it was made on."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.look = asyncio.Event()
        self.ended = asyncio.Event()
        self.stopping = threading.Event()
        self.error: Exception | None = None
        self._finished = False

    @property
    def over(self) -> bool:
        return self._finished or self.loop.is_closed()

    def stop(self) -> None:
        self.stopping.set()
        self.call_soon(self.look.set)

    def call_soon(self, fn: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the run is over
            self.loop.call_soon_threadsafe(fn)

    async def sleep(self, seconds: float) -> None:
        """Sleep until the time is over, somebody is to be watched, or the run stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self.look.wait()

    def finish(self, error: Exception | None) -> None:
        self.error = error
        self._finished = True  # set after `error`, because other threads read both
        self.ended.set()


def _background_ended(run: _Run, task: asyncio.Task[None]) -> None:
    if not run.over:
        run.finish(None)  # cancelled before its first step
    if task.cancelled() or (error := task.exception()) is None:
        return
    unexpected = None if isinstance(error, AutoplayError) else error
    _log.error("the pull source ended: %s", describe(error), exc_info=unexpected)


def _first_of(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
