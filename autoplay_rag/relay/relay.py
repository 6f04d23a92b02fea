"""The relay: passes payloads on into a topic of Kafka, and loses none while the broker is away."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import msgspec

from autoplay_rag._checks import check_above, check_at_least, check_choice
from autoplay_rag._describe import describe
from autoplay_rag.content.identity import people_of
from autoplay_rag.content.times import own_time
from autoplay_rag.errors import ConfigurationError, PipelineClosedError, PipelineError
from autoplay_rag.ingest.clients import C, Clients
from autoplay_rag.ingest.pulled import HOLD_SECONDS
from autoplay_rag.journal.base import Health
from autoplay_rag.kafka.address import TopicAddress
from autoplay_rag.kafka.messages import message_of
from autoplay_rag.kafka.settings import ClientSettings, require_client
from autoplay_rag.payloads import ActionsPayload, Payload, SlimAction, SummaryPayload
from autoplay_rag.relay.outbox import Outbox, OutboxCounts, Outgoing
from autoplay_rag.relay.readers import Readers
from autoplay_rag.relay.remembered import SessionTimes
from autoplay_rag.relay.sender import Sender
from autoplay_rag.relay.worker import Arrival, RelayOutcome, RelayWorker
from autoplay_rag.sources.cutting import DeviceSessions, Known
from autoplay_rag.sources.known import action_key
from autoplay_rag.sources.sessions import cut_names, is_cut_name

if TYPE_CHECKING:
    from autoplay_rag.relay.watch import TopicWatch

__all__ = ["Relay"]

_LEAVE_SECONDS: Final = 30.0


class Relay:
    """Passes payloads on into a topic of Kafka. An async context manager.

    A payload is safe once it is in the outbox, a bounded file. While the broker is away, the outbox keeps
    what comes in. Within a session the order is kept. A payload may be in the topic twice, after a
    failure or from two relays on one stream: an `IngestPipeline` that reads the topic stores it once.

    Args:
        topic: The topic: a `TopicAddress`, or `kafka://host:port/topic?group=name`.
        outbox: The file for what is not delivered yet. Each relay needs its own.
        settings: The properties of Kafka's clients; by default those of the environment.
        max_bytes: The most bytes of payloads in the outbox. When it is full, new payloads are lost, and
            counted.
        durability: What a payload in the outbox survives: "normal" any end of the process, "full" also
            a power loss.
        partitions: The number of partitions, if the topic has to be created.
        postgres: The database that the readers of the topic save their offsets in. A payload is kept
            until they have it, and sent again if the broker has lost the topic. Needs the group in
            `topic`. By default a payload is forgotten once it is delivered.
        schema: The schema of their journal in that database.
        delivery_timeout: Seconds that `accept` waits for the broker.
        drain_timeout: Seconds that leaving the context waits for the broker. What is not delivered then
            stays in the outbox for the next start.

    Raises:
        ConfigurationError: If an argument is invalid, or the client refuses its settings.
        MissingExtraError: If the extra `kafka` is not installed.

    Example:
        >>> import tempfile
        >>> address = TopicAddress("broker.test:9092", "events")
        >>> relay = Relay(address, outbox=Path(tempfile.mkdtemp()) / "relay.db")
        >>> relay.is_running
        False
    """

    def __init__(
        self,
        topic: TopicAddress | str,
        *,
        outbox: str | os.PathLike[str],
        settings: ClientSettings | None = None,
        max_bytes: int = 2**30,
        durability: Literal["normal", "full"] = "normal",
        partitions: int = 6,
        postgres: str | None = None,
        schema: str = "autoplay",
        delivery_timeout: float = 10.0,
        drain_timeout: float = 10.0,
    ) -> None:
        check_above("max_bytes", max_bytes, whole=True)
        check_above("partitions", partitions, whole=True)
        check_above("delivery_timeout", delivery_timeout)
        check_at_least("drain_timeout", drain_timeout, 0)
        check_choice("durability", durability, ("normal", "full"))
        require_client()
        self._address = TopicAddress.parse(topic) if isinstance(topic, str) else topic
        self._path = Path(outbox).expanduser()
        self._settings = ClientSettings() if settings is None else settings
        self._max_bytes = max_bytes
        self._durability: Literal["normal", "full"] = durability
        self._partitions = partitions
        self._delivery_timeout = delivery_timeout
        self._drain_timeout = drain_timeout
        self._postgres = postgres
        self._schema = schema
        if postgres is not None and not self._address.group:
            raise ConfigurationError(
                "postgres needs the group of the readers: the offsets in the database are those of a "
                "group"
            )
        self._clients = Clients()
        self._run: _Run | None = None
        self._counts = OutboxCounts()
        self._sessions = DeviceSessions()

    def __repr__(self) -> str:
        return f"<Relay to {self._address}: {'running' if self.is_running else 'not running'}>"

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the outbox, and begin to send what is in it. The broker may be away.

        Raises:
            PipelineError: If it is running already.
            JournalError: If the outbox cannot be opened, or another process has it.
            ConfigurationError: If the client refuses its settings.
        """
        if self._run is not None:
            raise PipelineError("the relay is running already")
        from autoplay_rag.relay.watch import TopicWatch  # needs the client library

        readers = None
        if self._postgres is not None:
            readers = Readers(self._postgres, self._address, schema=self._schema)
        try:
            outbox = await asyncio.to_thread(
                Outbox, self._path, max_bytes=self._max_bytes, durability=self._durability
            )
            try:
                worker = RelayWorker(
                    outbox,
                    lambda on_settled: Sender(
                        outbox,
                        self._address,
                        self._settings,
                        keeps=readers is not None,
                        on_settled=on_settled,
                    ),
                )
                watch = TopicWatch(
                    self._address, self._settings, worker, readers, partitions=self._partitions
                )
            except BaseException:
                outbox.close()
                raise
        except BaseException:
            if readers is not None:
                await readers.aclose()
            raise
        worker.start()
        task = asyncio.create_task(watch.run(), name="autoplay-relay-watch")
        self._run = _Run(worker, watch, readers, task)

    async def aclose(self) -> None:
        """Stop the attached clients, wait until the broker has everything, and close the outbox.

        What the broker does not take within `drain_timeout` stays in the outbox.
        """
        run = self._run
        if run is None:
            return
        try:
            await self._clients.leave(_LEAVE_SECONDS)
            await self.drain(self._drain_timeout)
        finally:
            self._run = None
            await asyncio.shield(self._end(run))

    async def _end(self, run: _Run) -> None:
        run.task.cancel()
        await asyncio.wait([run.task])
        if not run.task.cancelled():
            run.task.exception()  # `watch` raises it, and `health` says it
        if run.readers is not None and run.watch.is_available:
            # What was delivered since the last look is noted, and not sent again by the next run.
            with suppress(PipelineClosedError):
                await run.watch.look_at_topic()
        await asyncio.to_thread(run.worker.close)
        self._counts = run.worker.counts
        await run.watch.close()
        if run.readers is not None:
            await run.readers.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def watch(self) -> None:
        """Wait, and raise if the relay fails, which is a bug or a lack of memory.

        Raises:
            PipelineError: If it fails, or is not running.
        """
        if self._run is None:
            raise PipelineClosedError("the relay is not running: use it inside `async with`")
        await asyncio.shield(self._run.task)

    # -- in -----------------------------------------------------------------------------------

    def attach(self, client: C) -> C:
        """Pass on what a client receives.

        Args:
            client: An `AsyncConnectorClient`, a `ConnectorClient`, a `LiveActivitySource`, or any object
                with `on_actions` and `on_summary`. It is stopped when the relay closes.

        Returns:
            The client.
        """
        if getattr(client, "names_sessions", True):
            return self._clients.attach(client, self.on_actions, self.on_summary)
        source: Any = client
        source.hold_back = functools.partial(self._hold_back, source.product_id)
        return self._clients.attach(client, self._on_pulled, self.on_summary)

    def read_in_background(self, client: Any) -> asyncio.Task[None]:
        """Attach a client, and start it. Its failure is logged, and part of `health`."""
        self.attach(client)
        task: asyncio.Task[None] = client.run_in_background()
        self._clients.track(client, task)
        return task

    async def on_actions(self, payload: ActionsPayload) -> None:
        """Pass on a batch of actions; returns once it is in the outbox, or counted as lost."""
        await self._keep(payload, actions=self._keys_of(payload))

    async def on_summary(self, payload: SummaryPayload) -> None:
        """Pass on a summary; returns once it is in the outbox, or counted as lost."""
        await self._keep(payload)

    async def accept(self, payload: Payload) -> RelayOutcome:
        """Pass on a payload; returns once the topic has it.

        Args:
            payload: The payload.

        Returns:
            "accepted" if the topic has it. "waiting" if it is in the outbox, and the broker did not take
            it within `delivery_timeout`: it is sent later. "overflow" if it is lost, because the outbox
            or the disk is full. "dead" if the topic refuses it, for example because it is too large.

        Raises:
            PipelineClosedError: If the relay is not running.
        """
        settled: asyncio.Future[RelayOutcome] = asyncio.get_running_loop().create_future()
        if not await self._keep(payload, settled, self._keys_of(payload)):
            return "overflow"
        try:
            async with asyncio.timeout(self._delivery_timeout):
                return await settled
        except TimeoutError:
            return "waiting"

    async def session_times(
        self, product_id: str, session_ids: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """Return when sessions began and ended that were cut here within two days.

        Args:
            product_id: The product.
            session_ids: Their ids.
        """
        worker = self._open_worker()
        return await worker.ask(
            lambda outbox: outbox.remembered.session_times(product_id, session_ids)
        )

    def _keep(
        self,
        payload: Payload,
        settled: asyncio.Future[RelayOutcome] | None = None,
        actions: tuple[int, ...] = (),
    ) -> asyncio.Future[bool]:
        """Give a payload to the worker before the first await, so that the order is that of the calls."""
        worker = self._open_worker()
        saved: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        worker.take(Arrival(_outgoing(payload, actions), saved, settled))
        return saved

    def _open_worker(self) -> RelayWorker:
        if self._run is None:
            raise PipelineClosedError("the relay is not running: use it inside `async with`")
        return self._run.worker

    # -- pulled actions -----------------------------------------------------------------------

    def _keys_of(self, payload: Payload) -> tuple[int, ...]:
        """The keys of actions that a pull source may bring again."""
        product_id = payload.product_id
        if not isinstance(payload, ActionsPayload) or not self._clients.pull_sources(product_id):
            return ()
        user_id = people_of(payload).user_id
        if user_id is None:
            return ()
        keys = (action_key(product_id, user_id, action) for action in payload.actions)
        return tuple(key for key in keys if key is not None)

    def _hold_back(self, product_id: str) -> float:
        """Seconds by which pulled actions wait for a stream, which names their session."""
        return HOLD_SECONDS if self._clients.is_streaming(product_id) else 0.0

    async def _on_pulled(self, payload: ActionsPayload) -> None:
        """Pass on the pulled actions that no source has brought, also after a restart."""
        user_id = payload.user_id or ""
        keyed = [(action_key(payload.product_id, user_id, one), one) for one in payload.actions]
        keys = [key for key, _ in keyed if key is not None]
        known = await self._open_worker().ask(lambda outbox: outbox.remembered.known_actions(keys))
        sessions: dict[str, list[tuple[int | None, SlimAction]]] = {}
        for key, action in keyed:
            if key not in known:
                name = await self._session_of(payload.product_id, user_id, action)
                sessions.setdefault(name, []).append((key, action))
        for name, own in sessions.items():
            actions = [action for _, action in own]
            part = msgspec.structs.replace(
                payload, session_id=name, actions=actions, count=len(actions)
            )
            if not await self._keep(part, actions=tuple(key for key, _ in own if key is not None)):
                # The source passes it on again with its next pull.
                raise PipelineError("the outbox is full")

    async def _session_of(self, product_id: str, user_id: str, action: SlimAction) -> str:
        at = own_time(action.timestamp_start)
        if self._sessions.lacks(product_id, user_id, at):
            names = cut_names(product_id, user_id, at)
            times = await self.session_times(product_id, names)
            known = [Known(name, *times[name]) for name in names if name in times]
            self._sessions.remember(product_id, user_id, at, known)
        return self._sessions.name(product_id, user_id, at)

    # -- state --------------------------------------------------------------------------------

    async def drain(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the field's name for it
        """Wait until the broker has everything.

        Args:
            timeout: Seconds to wait at most; None for no limit.

        Returns:
            False if something is left.

        Raises:
            PipelineClosedError: If the relay is not running.
        """
        worker = self._open_worker()
        try:
            async with asyncio.timeout(timeout):
                await worker.drained()
        except TimeoutError:
            return False
        return worker.is_alive

    @property
    def address(self) -> TopicAddress:
        """The topic."""
        return self._address

    @property
    def outbox(self) -> Path:
        """The file for what is not delivered yet."""
        return self._path

    @property
    def is_running(self) -> bool:
        """Whether payloads are taken."""
        return self._run is not None and self._run.worker.is_alive

    @property
    def is_available(self) -> bool:
        """Whether the broker answers."""
        return self._run is not None and self._run.watch.is_available

    @property
    def counts(self) -> OutboxCounts:
        """What became of the payloads since the outbox was made."""
        return self._counts if self._run is None else self._run.worker.counts

    @property
    def client_states(self) -> list[tuple[str, str]]:
        """Product and state of each attached client."""
        return self._clients.states

    @property
    def health(self) -> Health:
        """Whether payloads reach the topic."""
        run = self._run
        if run is None:
            return Health()
        if (error := run.worker.error) is not None:
            return Health("failed", (f"the relay has failed: {describe(error)}",))
        reasons = [
            *run.watch.problems,
            run.worker.sending_problem,
            run.worker.problem,
            "the outbox is full: payloads are lost" if run.worker.is_full else "",
            *self._clients.problems,
        ]
        found = tuple(reason for reason in reasons if reason)
        return Health("degraded", found) if found else Health()


class _Run:
    """What exists while a relay runs."""

    __slots__ = ("readers", "task", "watch", "worker")

    def __init__(
        self,
        worker: RelayWorker,
        watch: TopicWatch,
        readers: Readers | None,
        task: asyncio.Task[None],
    ) -> None:
        self.worker = worker
        self.watch = watch
        self.readers = readers
        self.task = task


def _outgoing(payload: Payload, actions: tuple[int, ...]) -> Outgoing:
    message = message_of(payload)
    session = None
    if isinstance(payload, ActionsPayload) and is_cut_name(payload.session_id):
        times = [own_time(one.timestamp_start) for one in payload.actions]
        if times and payload.session_id is not None:
            session = SessionTimes(payload.product_id, payload.session_id, min(times), max(times))
    return Outgoing(payload.kind, message.key, message.value, session, actions)
