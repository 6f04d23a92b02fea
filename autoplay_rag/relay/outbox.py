"""The outbox of a relay: what it received, until the topic has it for good.

All functions block. They run on the relay's own thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Final, Literal, NamedTuple

from autoplay_rag.errors import JournalError
from autoplay_rag.relay.outbox_file import OutboxFile
from autoplay_rag.relay.remembered import Remembered, SessionTimes

__all__ = ["Outbox", "OutboxCounts", "Outgoing", "Row"]

_ROW_BYTES: Final = 100
"""What a row takes besides key and value."""
_SET_ASIDE_PART: Final = 10
"""The payloads that the topic refuses have at most a tenth of the room."""


class _State(IntEnum):
    WAITING = 0
    UNREAD = 1
    DEAD = 2


class Outgoing(NamedTuple):
    """A payload to be sent.

    Attributes:
        kind: Its type.
        key: The key of its message.
        value: The value of its message.
        session: Its session, if the source names none.
        actions: The keys of its actions, if a pull may bring them again.
    """

    kind: str
    key: bytes | None
    value: bytes
    session: SessionTimes | None = None
    actions: tuple[int, ...] = ()


class Row(NamedTuple):
    """A payload that waits.

    Attributes:
        seq: Its number. Numbers grow in the order of receipt.
        kind: Its type.
        key: The key of its message.
        value: The value of its message.
    """

    seq: int
    kind: str
    key: bytes | None
    value: bytes


@dataclass(frozen=True, slots=True)
class OutboxCounts:
    """What became of the payloads: received = delivered + waiting + unread + overflow + dead.

    Attributes:
        received: Received since the file was made.
        delivered: The topic has them, and the relay has forgotten them.
        overflow: LOST, because the file or the disk was full.
        dead: Refused by the topic for good, for example because they are too large.
        waiting: Not delivered yet.
        unread: Delivered, and kept until the readers of the topic have them.
        bytes: The size of what is in the file.
    """

    received: int = 0
    delivered: int = 0
    overflow: int = 0
    dead: int = 0
    waiting: int = 0
    unread: int = 0
    bytes: int = 0


class Outbox:
    """A bounded file of payloads in the order of receipt.

    A payload that is in it survives any end of the process. Of several that are too many, the newest
    are not taken in. Payloads that are delivered and only kept make room first.

    Args:
        path: The file. It is created if there is none, for its owner only.
        max_bytes: The most bytes of all payloads.
        durability: What a commit survives: "normal" any end of the process, "full" also a power loss.
        clock: Returns the time in Unix seconds.

    Attributes:
        file: The file.
        max_bytes: As above.
        remembered: What it knows of sources.

    Raises:
        JournalLockedError: If another process has it.
        JournalDamagedError: If it is damaged.
        JournalError: If it is something else, or cannot be opened.

    Example:
        >>> import tempfile
        >>> outbox = Outbox(Path(tempfile.mkdtemp()) / "relay.db")
        >>> outbox.put([Outgoing("actions", b"acme/s1", b"{}")])
        [1]
        >>> [row.seq for row in outbox.waiting_after(0, 10)], outbox.counts.waiting
        ([1], 1)
        >>> outbox.forget([1])
        >>> outbox.counts.delivered, outbox.counts.waiting
        (1, 0)
        >>> outbox.close()
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 2**30,
        durability: Literal["normal", "full"] = "normal",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_bytes = max_bytes
        self.file = OutboxFile(path, durability)
        self.remembered = Remembered(self.file, clock)
        self._connection = self.file.connection
        try:
            self._counts = self._loaded()
        except BaseException:
            self.file.close()
            raise
        self._committed = self._counts
        self._last: int = self._connection.execute(
            "SELECT coalesce(max(seq), 0) FROM message"
        ).fetchone()[0]

    @property
    def counts(self) -> OutboxCounts:
        """The counts as of the last commit. May be read from any thread."""
        return self._committed

    @property
    def last(self) -> int:
        """The number of the newest payload; 0 without one."""
        return self._last

    # -- in and out ---------------------------------------------------------------------------

    def put(self, messages: Sequence[Outgoing]) -> list[int | None]:
        """Take payloads in, all in one commit.

        Returns:
            The number of each; None for those that were not taken in, and are counted as overflow.

        Raises:
            JournalError: If the file cannot be written. All are counted as overflow.
        """
        try:
            with self._transaction():
                seqs = [self._insert(message) for message in messages]
                self.remembered.prune()
        except JournalError:
            count = len(messages)
            self._counts = self._committed = replace(
                self._committed,
                received=self._committed.received + count,
                overflow=self._committed.overflow + count,
            )
            raise
        self._last = next((seq for seq in reversed(seqs) if seq is not None), self._last)
        return seqs

    def _insert(self, message: Outgoing) -> int | None:
        size = _ROW_BYTES + len(message.key or b"") + len(message.value)
        if not self._make_room(size):
            self._add(received=1, overflow=1)
            return None
        cursor = self._connection.execute(
            "INSERT INTO message (kind, key, value, size, state) VALUES (?, ?, ?, ?, ?)",
            (message.kind, message.key, message.value, size, _State.WAITING),
        )
        self._add(received=1, waiting=1, bytes=size)
        self.remembered.add(message.session, message.actions)
        return cursor.lastrowid

    def _make_room(self, size: int) -> bool:
        """Forget the oldest of what is delivered and only kept, until there is room."""
        while (excess := self._counts.bytes + size - self.max_bytes) > 0:
            if size > self.max_bytes or not self._counts.unread:
                return False
            rows = self._connection.execute(
                "SELECT seq, size FROM message WHERE state = ? ORDER BY seq LIMIT 100",
                (_State.UNREAD,),
            ).fetchall()
            forgotten = []
            for seq, freed in rows:
                forgotten.append(seq)
                excess -= freed
                if excess <= 0:
                    break
            self._delete(forgotten)
        return True

    def waiting_after(self, seq: int, most: int) -> list[Row]:
        """Return what waits, in the order of receipt.

        Args:
            seq: Return only those with a greater number.
            most: The most to return.
        """
        with self.file.failures():
            rows = self._connection.execute(
                "SELECT seq, kind, key, value FROM message WHERE seq > ? AND state = ? "
                "ORDER BY seq LIMIT ?",
                (seq, _State.WAITING, most),
            )
            return [Row(*row) for row in rows]

    # -- what became of them ------------------------------------------------------------------

    def forget(self, seqs: Iterable[int]) -> None:
        """Delete what the topic has for good.

        Raises:
            JournalError: If the file cannot be written.
        """
        with self._transaction():
            self._delete(seqs)

    def keep_until_read(self, topic_id: str, places: Iterable[tuple[int, int, int]]) -> None:
        """Note where delivered payloads are, and keep them.

        Args:
            topic_id: The id of the topic.
            places: Number, partition and offset of each.

        Raises:
            JournalError: If the file cannot be written.
        """
        with self._transaction():
            for seq, part, offset in places:
                moved = self._connection.execute(
                    "UPDATE message SET state = ?, topic_id = ?, part = ?, place = ? "
                    "WHERE seq = ? AND state = ?",
                    (_State.UNREAD, topic_id, part, offset, seq, _State.WAITING),
                ).rowcount
                self._add(waiting=-moved, unread=moved)

    def forget_read(self, topic_id: str, part: int, next_offset: int) -> int:
        """Delete what the readers of a partition have; return how many.

        Args:
            topic_id: The id of the topic that they read.
            part: The partition.
            next_offset: They have everything before it.

        Raises:
            JournalError: If the file cannot be written.
        """
        with self._transaction():
            rows = self._connection.execute(
                "SELECT seq FROM message WHERE state = ? AND topic_id = ? AND part = ? AND place < ?",
                (_State.UNREAD, topic_id, part, next_offset),
            ).fetchall()
            self._delete(seq for (seq,) in rows)
        return len(rows)

    def send_again(self, topic_id: str) -> int:
        """Let wait again what was delivered into another topic; return how many.

        Args:
            topic_id: The id of the topic that there is now.

        Raises:
            JournalError: If the file cannot be written.
        """
        with self._transaction():
            count = self._connection.execute(
                "UPDATE message SET state = ?, topic_id = NULL, part = NULL, place = NULL "
                "WHERE state = ? AND topic_id <> ?",
                (_State.WAITING, _State.UNREAD, topic_id),
            ).rowcount
            self._add(waiting=count, unread=-count)
        return count

    def set_aside(self, seq: int) -> None:
        """Keep a payload that the topic refuses, for the next start. The oldest of these make room.

        Raises:
            JournalError: If the file cannot be written.
        """
        with self._transaction():
            moved = self._connection.execute(
                "UPDATE message SET state = ? WHERE seq = ? AND state = ?",
                (_State.DEAD, seq, _State.WAITING),
            ).rowcount
            self._add(waiting=-moved, dead=moved)
            rows = self._connection.execute(
                "SELECT seq, size FROM message WHERE state = ? ORDER BY seq", (_State.DEAD,)
            ).fetchall()
            excess = sum(size for _, size in rows) - self.max_bytes // _SET_ASIDE_PART
            for one, size in rows:
                if excess <= 0:
                    break
                excess -= size
                self._connection.execute("DELETE FROM message WHERE seq = ?", (one,))
                self._add(bytes=-size)

    def _delete(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            row = self._connection.execute(
                "DELETE FROM message WHERE seq = ? AND state <> ? RETURNING size, state",
                (seq, _State.DEAD),
            ).fetchall()
            for size, state in row:
                self._add(
                    delivered=1,
                    bytes=-size,
                    waiting=-(state == _State.WAITING),
                    unread=-(state == _State.UNREAD),
                )

    def close(self) -> None:
        """Close the file. It may be called more than once."""
        self.file.close()

    # -- counts -------------------------------------------------------------------------------

    def _loaded(self) -> OutboxCounts:
        with self.file.opening(), self.file.changing():
            # The limit of the topic may be higher since.
            again = self._connection.execute(
                "UPDATE message SET state = ? WHERE state = ?", (_State.WAITING, _State.DEAD)
            ).rowcount
            self._connection.execute("UPDATE counts SET dead = dead - ?", (again,))
            received, delivered, overflow, dead = self._connection.execute(
                "SELECT received, delivered, overflow, dead FROM counts"
            ).fetchone()
            waiting, unread, size = self._connection.execute(
                "SELECT coalesce(sum(state = ?), 0), coalesce(sum(state = ?), 0), "
                "coalesce(sum(size), 0) FROM message",
                (_State.WAITING, _State.UNREAD),
            ).fetchone()
        return OutboxCounts(received, delivered, overflow, dead, waiting, unread, size)

    def _add(self, **changes: int) -> None:
        self._counts = replace(
            self._counts,
            **{name: getattr(self._counts, name) + change for name, change in changes.items()},
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit all changes inside, with the counts, or none."""
        try:
            with self.file.failures(), self.file.changing():
                yield
                found = self._counts
                if found != self._committed:
                    self._connection.execute(
                        "UPDATE counts SET received = ?, delivered = ?, overflow = ?, dead = ?",
                        (found.received, found.delivered, found.overflow, found.dead),
                    )
        except BaseException:
            self._counts = self._committed
            raise
        self._committed = self._counts
